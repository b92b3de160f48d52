//! How DataFusion's threads get bytes of files: the actor asks its context for them, on its own thread.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use dosql_actors::ObjectStore;
use dosql_lake::scan::bytes_of;
use futures_channel::{mpsc, oneshot};
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{FutureExt, StreamExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;

/// Reads that are under way at a time, of one scan.
const AT_ONCE: usize = 16;

/// Bytes of a file that are wanted.
pub(crate) struct Wanted {
    path: String,
    range: Range<u64>,
    reply: oneshot::Sender<Result<Bytes, String>>,
}

/// Answers a scan's reads until nobody can ask any more.
pub(crate) async fn serve(objects: Rc<dyn ObjectStore>, wanted: mpsc::UnboundedReceiver<Wanted>) {
    let read = |Wanted { path, range, reply }: Wanted| {
        let objects = Rc::clone(&objects);
        async move {
            let bytes = bytes_of(&*objects, &path, range).await.map_err(|error| error.to_string());
            // Whoever asked may have given up.
            let _ = reply.send(bytes);
        }
    };
    wanted.for_each_concurrent(AT_ONCE, read).await;
}

/// Makes a scan's readers.
pub(crate) struct Readers {
    requests: mpsc::UnboundedSender<Wanted>,
    /// By the path as DataFusion writes it: the object's path and its footer.
    files: HashMap<String, (String, Arc<ParquetMetaData>)>,
    bytes_read: Arc<AtomicU64>,
}

impl Readers {
    pub(crate) fn new(
        requests: mpsc::UnboundedSender<Wanted>,
        files: HashMap<String, (String, Arc<ParquetMetaData>)>,
    ) -> Self {
        Self { requests, files, bytes_read: Arc::default() }
    }

    /// Bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Readers of {} files", self.files.len())
    }
}

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        _partition: usize,
        file: PartitionedFile,
        _size_hint: Option<usize>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> EngineResult<Box<dyn AsyncFileReader + Send>> {
        let unknown = || DataFusionError::Internal(format!("{} is not part of the scan", file.path()));
        let (path, footer) = self.files.get(&file.path().to_string()).cloned().ok_or_else(unknown)?;
        let (requests, bytes_read) = (self.requests.clone(), Arc::clone(&self.bytes_read));
        Ok(Box::new(Reader { requests, path, footer, bytes_read }))
    }
}

struct Reader {
    requests: mpsc::UnboundedSender<Wanted>,
    path: String,
    footer: Arc<ParquetMetaData>,
    bytes_read: Arc<AtomicU64>,
}

impl Reader {
    /// Asks at once; the future waits for the answer.
    fn ask(&self, range: Range<u64>) -> BoxFuture<'static, ParquetResult<Bytes>> {
        self.bytes_read.fetch_add(range.end.saturating_sub(range.start), Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.unbounded_send(Wanted { path: self.path.clone(), range, reply });
        async move {
            let gone = || ParquetError::General("the actor has ended".to_owned());
            sent.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?.map_err(ParquetError::General)
        }
        .boxed()
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.ask(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        try_join_all(ranges.into_iter().map(|range| self.ask(range)).collect::<Vec<_>>()).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        futures_util::future::ready(Ok(Arc::clone(&self.footer))).boxed()
    }
}
