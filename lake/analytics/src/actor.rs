//! The analytics actor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dosql_actors::{Actor, Call, Context, Handled, ObjectStore};
use dosql_lake::LakeError;
use dosql_lake::scan::{Footers, TableScan, Tables, check, freshen};
use dosql_proto::{
    AnalyticsProtocol, AnalyticsReply, AnalyticsRequest, Closed, Error, ErrorCode, LakeDeclined, LakeRows, LakeScan,
    LakeScanStats, analytics_reply::Reply, analytics_request::Request,
};
use futures_channel::mpsc;
use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parquet::file::metadata::ParquetMetaData;

use crate::engine::{Engine, Running, Work};
use crate::footers::renamed;
use crate::provider::partitioned;
use crate::readers::{Readers, serve};

/// An open result that is not read for so long is given up, in milliseconds.
const IDLE_MS: u64 = 60_000;
/// Where batches are cut unless the request says, in bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Footers that are read at a time.
const FOOTERS_AT_ONCE: usize = 16;

/// The actor `analytics/default`: answers reads of the lake's tables.
///
/// It owns nothing; what it remembers of files, which never change, it can read again.
pub struct Analytics {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    objects: Rc<dyn ObjectStore>,
    tables: Tables,
    engine: Engine,
    footers: Footers,
    open: RefCell<HashMap<u64, Open>>,
}

/// A result of which not everything was sent.
struct Open {
    running: Running,
    position: String,
    used_ms: u64,
}

impl Actor for Analytics {
    type Protocol = AnalyticsProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let objects = context.objects();
        let shared = Shared {
            tables: Tables::new(&context),
            footers: Footers::new(Rc::clone(&objects)),
            engine: Engine::new(context.settings().query_memory)?,
            objects,
            context,
            open: RefCell::default(),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    async fn handle(&mut self, request: AnalyticsRequest, call: &Call) -> Handled<AnalyticsReply> {
        self.shared.give_up_idle();
        let (shared, call) = (Rc::clone(&self.shared), call.clone());
        Handled::Later(Box::pin(async move {
            let work = Box::pin(shared.answer(request, &call));
            if call.deadline_ms == 0 {
                return work.await;
            }
            // Nobody waits any longer then: what it has begun ends with it.
            let left = Duration::from_millis(call.deadline_ms.saturating_sub(shared.context.now_ms()));
            match select(work, Box::pin(shared.context.sleep(left))).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => {
                    Err(Error::new(ErrorCode::DeadlineExceeded, "the read of the lake took longer than it may"))
                }
            }
        }))
    }
}

impl Shared {
    async fn answer(&self, request: AnalyticsRequest, call: &Call) -> Result<AnalyticsReply, Error> {
        let reply = match request.request {
            Some(Request::Scan(scan)) => self.scan(scan, call).await?,
            Some(Request::Fetch(fetch)) => {
                let unknown = || Error::new(ErrorCode::UnknownCursor, "the result of the lake is gone");
                let open = self.open.borrow_mut().remove(&fetch.cursor).ok_or_else(unknown)?;
                Reply::Rows(self.next(open.running, open.position, fetch.cursor).await?)
            }
            Some(Request::Close(close)) => {
                self.open.borrow_mut().remove(&close.cursor);
                Reply::Closed(Closed {})
            }
            None => return Err(Error::invalid("AnalyticsRequest without a request")),
        };
        Ok(AnalyticsReply { reply: Some(reply) })
    }

    async fn scan(&self, request: LakeScan, call: &Call) -> Result<Reply, Error> {
        check(&request)?;
        let mut position = freshen(&self.context, &request, call).await?;
        let declined = |reason: &str| Reply::Declined(LakeDeclined { reason: reason.to_owned() });
        let Some(scan) = self.tables.open(&request).await? else {
            return Ok(match request.aggregate {
                Some(_) => declined("the lake has nothing of the table"),
                None => Reply::Rows(LakeRows {
                    position: position.to_string(),
                    stats: Some(LakeScanStats::default()),
                    ..LakeRows::default()
                }),
            });
        };
        for (shard, lsn) in &scan.position.0 {
            position.advance(shard, *lsn);
        }
        if let Some(aggregate) = &request.aggregate {
            if scan.files.is_empty() {
                return Ok(declined("no file can hold such rows"));
            }
            if let Some(reason) = scan.declines(aggregate) {
                return Ok(declined(reason));
            }
        }
        let running = self.begin(scan, &request).await?;
        Ok(Reply::Rows(self.next(running, position.to_string(), request.cursor).await?))
    }

    /// Starts reading.
    async fn begin(&self, scan: TableScan, request: &LakeScan) -> Result<Running, Error> {
        let names = scan.names();
        let footers: Vec<Arc<ParquetMetaData>> = stream::iter(scan.files.iter().map(|file| self.footers.of(file)))
            .buffered(FOOTERS_AT_ONCE)
            .try_collect()
            .await?;
        let mut stats = LakeScanStats {
            files: scan.files.len() as u64 + scan.files_skipped,
            files_skipped: scan.files_skipped,
            ..LakeScanStats::default()
        };
        let (mut files, mut read) = (Vec::with_capacity(footers.len()), HashMap::with_capacity(footers.len()));
        for (file, footer) in scan.files.iter().zip(footers) {
            let footer = renamed(&footer, &names).map_err(LakeError::from)?;
            stats.row_groups += footer.num_row_groups() as u64;
            stats.rows_deleted += file.deleted.len() as u64;
            let partitioned = partitioned(file, &footer);
            read.insert(partitioned.path().to_string(), (file.path.clone(), footer));
            files.push(partitioned);
        }
        let (requests, wanted) = mpsc::unbounded();
        self.context.spawn(serve(Rc::clone(&self.objects), wanted));
        let max_bytes = match request.max_batch_bytes {
            0 => BATCH_BYTES,
            bytes => bytes as usize,
        };
        self.engine.run(Work {
            scan,
            aggregate: request.aggregate.clone(),
            files,
            readers: Arc::new(Readers::new(requests, read)),
            stats,
            max_bytes,
        })
    }

    /// The next rows of a result, which stays open where there are more.
    async fn next(&self, mut running: Running, position: String, cursor: u64) -> Result<LakeRows, Error> {
        let part = running.parts.next().await;
        let part = part.unwrap_or_else(|| Err(Error::internal("the read of the lake broke off")))?;
        let rows = LakeRows { rows: part.rows, cursor: 0, position: position.clone(), stats: part.last };
        if part.last.is_some() {
            return Ok(rows);
        }
        let used_ms = self.context.now_ms();
        self.open.borrow_mut().insert(cursor, Open { running, position, used_ms });
        Ok(LakeRows { cursor, ..rows })
    }

    /// Gives up what nobody reads.
    fn give_up_idle(&self) {
        let now_ms = self.context.now_ms();
        self.open.borrow_mut().retain(|_, open| open.used_ms + IDLE_MS > now_ms);
    }
}
