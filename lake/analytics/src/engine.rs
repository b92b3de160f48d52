//! DataFusion on threads of its own, and the rows it finds on their way back.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::common::DataFusionError;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::metrics::MetricValue;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use dosql_lake::scan::{TableScan, Values};
use dosql_proto::{Error, ErrorCode, LakeAggregate, LakeScanStats, Row};
use futures_channel::mpsc;
use futures_util::{SinkExt, StreamExt};
use prost::Message;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use crate::expressions;
use crate::provider::ScannedTable;
use crate::readers::Readers;

/// Batches that wait for the actor at a time.
const AHEAD: usize = 4;
/// Rows that are turned into values between two looks at how many bytes they are.
const STEP_ROWS: usize = 512;

/// Some rows of a result.
pub(crate) struct Part {
    pub(crate) rows: Vec<Row>,
    /// With the last ones.
    pub(crate) last: Option<LakeScanStats>,
}

/// A scan under way; given up when it is dropped.
pub(crate) struct Running {
    pub(crate) parts: mpsc::Receiver<Result<Part, Error>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a scan is to be run with.
pub(crate) struct Work {
    pub(crate) scan: TableScan,
    pub(crate) aggregate: Option<LakeAggregate>,
    pub(crate) files: Vec<PartitionedFile>,
    pub(crate) readers: Arc<Readers>,
    /// What is known of it before it is run.
    pub(crate) stats: LakeScanStats,
    /// Where parts are cut, in bytes.
    pub(crate) max_bytes: usize,
}

/// The threads and the memory of all scans.
pub(crate) struct Engine {
    runtime: Option<Runtime>,
    environment: Arc<RuntimeEnv>,
    threads: usize,
}

impl Engine {
    /// With a thread for each core, and so much memory for what all scans together sort, group and hold, in bytes.
    pub(crate) fn new(memory: u64) -> Result<Self, Error> {
        let threads = available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("analytics")
            .build()
            .map_err(|error| Error::internal(format!("no threads for reads of the lake: {error}")))?;
        let environment = RuntimeEnvBuilder::new()
            .with_memory_limit(usize::try_from(memory).unwrap_or(usize::MAX), 1.0)
            .build_arc()
            .map_err(|error| Error::internal(error.to_string()))?;
        Ok(Self { runtime: Some(runtime), environment, threads })
    }

    /// Begins a scan.
    pub(crate) fn run(&self, work: Work) -> Result<Running, Error> {
        let runtime = self.runtime.as_ref().ok_or_else(|| Error::internal("reads of the lake have ended"))?;
        let (sender, parts) = mpsc::channel(AHEAD);
        let config = SessionConfig::new().with_target_partitions(self.threads);
        let session = SessionContext::new_with_config_rt(config, Arc::clone(&self.environment));
        let task = runtime.spawn(async move {
            let mut sender = sender;
            if let Err(error) = rows(work, &session, &mut sender).await {
                // Whoever asked may have given up.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Running { parts, task: task.abort_handle() })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It is dropped on a thread that must not wait.
            runtime.shutdown_background();
        }
    }
}

/// Runs a scan and sends what it finds.
async fn rows(
    work: Work,
    session: &SessionContext,
    sender: &mut mpsc::Sender<Result<Part, Error>>,
) -> Result<(), Error> {
    let plan = plan(&work, session).await?;
    let context: Arc<TaskContext> = session.task_ctx();
    let mut batches = execute_stream(Arc::clone(&plan), context).map_err(of_engine)?;
    let mut part = Vec::new();
    let mut bytes = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(of_engine)?;
        let values = values(&work, &batch)?;
        for row in 0..values.len() {
            if row % STEP_ROWS == 0 && bytes >= work.max_bytes {
                let rows = std::mem::take(&mut part);
                bytes = 0;
                if sender.send(Ok(Part { rows, last: None })).await.is_err() {
                    return Ok(());
                }
            }
            let row = values.row(row)?;
            bytes += row.encoded_len();
            part.push(row);
        }
    }
    let mut stats = work.stats;
    stats.bytes_read = work.readers.bytes_read();
    count_row_groups(&*plan, &mut stats);
    // Whoever asked may have given up.
    let _ = sender.send(Ok(Part { rows: part, last: Some(stats) })).await;
    Ok(())
}

fn values<'a>(work: &'a Work, batch: &'a RecordBatch) -> Result<Values<'a>, Error> {
    Ok(match work.aggregate {
        Some(_) => Values::of_batch(batch)?,
        None => Values::of_output(&work.scan, batch)?,
    })
}

async fn plan(work: &Work, session: &SessionContext) -> Result<Arc<dyn ExecutionPlan>, Error> {
    let Work { scan, aggregate, files, readers, .. } = work;
    let fields = match aggregate {
        Some(aggregate) => {
            let called = aggregate.calls.iter().filter_map(|call| call.column);
            let columns: Vec<usize> =
                aggregate.groups.iter().copied().chain(called).map(|column| column as usize).collect();
            scan.fields(&columns)
        }
        None => scan.fields(&scan.output),
    };
    let provider =
        ScannedTable { schema: Arc::new(Schema::new(fields)), files: files.clone(), readers: Arc::clone(readers) };
    let mut frame = session.read_table(Arc::new(provider)).map_err(of_engine)?;
    if let Some(predicate) = expressions::predicate(scan) {
        frame = frame.filter(predicate).map_err(of_engine)?;
    }
    if let Some(aggregate) = aggregate {
        let (groups, calls) = expressions::aggregate(scan, aggregate)?;
        frame = frame.aggregate(groups, calls).map_err(of_engine)?;
    }
    frame.create_physical_plan().await.map_err(of_engine)
}

/// What statistics of row groups have ruled out, as the plan's scans say.
fn count_row_groups(plan: &dyn ExecutionPlan, stats: &mut LakeScanStats) {
    for metric in plan.metrics().iter().flat_map(|metrics| metrics.iter()) {
        if let MetricValue::PruningMetrics { name, pruning_metrics } = metric.value()
            && name == "row_groups_pruned_statistics"
        {
            stats.row_groups_skipped += pruning_metrics.pruned() as u64;
        }
    }
    for child in plan.children() {
        count_row_groups(&**child, stats);
    }
}

fn of_engine(error: DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(reason) => {
            let message =
                format!("the read of the lake needs more memory than it may have (DOSQL_QUERY_MEMORY): {reason}");
            Error::new(ErrorCode::TooLarge, message)
        }
        DataFusionError::ParquetError(error) => {
            Error::retryable(ErrorCode::ObjectStore, format!("a file of the lake cannot be read: {error}"), 1000)
        }
        error => Error::internal(format!("the read of the lake failed: {error}")),
    }
}
