//! What the interfaces ask of the actors.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dosql_actors::host::actix::Client;
use dosql_actors::runtime::Call;
use dosql_proto::subscriber::BATCH_BYTES;
use dosql_proto::{
    AcknowledgeChanges, BatchRequest, BatchResponse, CatalogProtocol, CatalogRequest, CdcProtocol, CdcRequest,
    CdcStatus, CdcStatusRequest, ChangeBatch, CloseRequest, CloseSession, DropSubscriptionRequest, Error,
    ExecuteRequest, ExecuteResponse, ExplainRequest, ExplainResponse, FetchRequest, FlushLake, LakeCleaned,
    LakeCleanup, LakeCompact, LakeCompacted, LakeConfigure, LakeFlushed, LakeOptions, LakeOptionsRequest, LakeProtocol,
    LakeRequest, LakeStatus, LakeStatusRequest, ListSubscriptionsRequest, LoadRequest, LoadResponse, OpenSession,
    PollChanges, Promote, Promoted, QueryRequest, RouterProtocol, RouterRequest, RowBatch, SessionClosed,
    SessionOpened, ShardsHealthRequest, Statement, SubscribeRequest, SubscriptionList, SubscriptionNoted, Topology,
    catalog_reply, catalog_request, cdc_reply, cdc_request, lake_reply, lake_request, router_reply, router_request,
};
use tokio::sync::watch;

use super::audience::Audiences;

/// The name of the one router, change stream and lake writer.
const DEFAULT: &str = "default";
/// The longest that a client may have a statement take, in milliseconds.
const LONGEST_TIMEOUT_MS: u64 = 3_600_000;
/// How long everything written may take to reach the lake, in milliseconds.
const FLUSH_TIMEOUT_MS: u64 = 600_000;
const HEALTH_TIMEOUT_MS: u64 = 10_000;

/// The actors behind the interfaces.
#[derive(Clone)]
pub(super) struct Backend {
    client: Client,
    query_timeout_ms: u64,
    stopping: watch::Receiver<bool>,
    audiences: Audiences,
}

impl Backend {
    pub(super) fn new(client: Client, query_timeout_ms: u64, stopping: watch::Receiver<bool>) -> Self {
        Self { client, query_timeout_ms, stopping, audiences: Audiences::default() }
    }

    /// What subscribers to the change stream have in common.
    pub(super) fn audiences(&self) -> &Audiences {
        &self.audiences
    }

    /// Completes when the server is told to stop.
    pub(super) async fn stopping(&self) {
        // An error means that the sender is gone, which is a stop as well.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// A client's call that may take `timeout_ms` (0: the default).
    fn call(&self, timeout_ms: u64) -> Call {
        let timeout_ms = match timeout_ms {
            0 => self.query_timeout_ms,
            timeout_ms => timeout_ms.min(LONGEST_TIMEOUT_MS),
        };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Call { deadline_ms: now_ms.saturating_add(timeout_ms), trace_id: crate::random_id(), ..Call::system() }
    }

    /// Asks at once: the request does not become a part of the future, which is moved.
    fn ask_router(
        &self,
        request: router_request::Request,
        timeout_ms: u64,
    ) -> impl Future<Output = Result<router_reply::Reply, Error>> + Send + use<> {
        let request = RouterRequest { request: Some(request) };
        let answer = self.client.ask::<RouterProtocol>(DEFAULT, request, &self.call(timeout_ms));
        async move { answer.await?.reply.ok_or_else(|| unexpected("router")) }
    }

    async fn ask_cdc(&self, request: cdc_request::Request, timeout_ms: u64) -> Result<cdc_reply::Reply, Error> {
        let request = CdcRequest { request: Some(request) };
        let reply = self.client.ask::<CdcProtocol>(DEFAULT, request, &self.call(timeout_ms)).await?;
        reply.reply.ok_or_else(|| unexpected("change stream"))
    }

    pub(super) fn execute(
        &self,
        request: ExecuteRequest,
    ) -> impl Future<Output = Result<ExecuteResponse, Error>> + Send + use<> {
        let timeout_ms = request.timeout_ms;
        let answer = self.ask_router(router_request::Request::Execute(request), timeout_ms);
        async move {
            match answer.await? {
                router_reply::Reply::Execute(response) => Ok(response),
                _ => Err(unexpected("router")),
            }
        }
    }

    pub(super) async fn batch(&self, request: BatchRequest) -> Result<BatchResponse, Error> {
        let timeout_ms = request.timeout_ms;
        match self.ask_router(router_request::Request::Batch(request), timeout_ms).await? {
            router_reply::Reply::Batch(response) => Ok(response),
            _ => Err(unexpected("router")),
        }
    }

    pub(super) async fn explain(&self, request: ExplainRequest, timeout_ms: u64) -> Result<ExplainResponse, Error> {
        match self.ask_router(router_request::Request::Explain(request), timeout_ms).await? {
            router_reply::Reply::Explain(response) => Ok(response),
            _ => Err(unexpected("router")),
        }
    }

    pub(super) async fn load(&self, request: LoadRequest) -> Result<LoadResponse, Error> {
        match self.ask_router(router_request::Request::Load(request), 0).await? {
            router_reply::Reply::Load(response) => Ok(response),
            _ => Err(unexpected("router")),
        }
    }

    /// Opens a session.
    pub(super) async fn open_session(&self) -> Result<SessionOpened, Error> {
        match self.ask_router(router_request::Request::OpenSession(OpenSession {}), 0).await? {
            router_reply::Reply::Session(opened) => Ok(opened),
            _ => Err(unexpected("router")),
        }
    }

    /// Closes a session, if it is open.
    pub(super) async fn close_session(&self, session: String) -> Result<(), Error> {
        match self.ask_router(router_request::Request::CloseSession(CloseSession { session }), 0).await? {
            router_reply::Reply::SessionClosed(SessionClosed {}) => Ok(()),
            _ => Err(unexpected("router")),
        }
    }

    /// Runs a statement and returns its first rows, and the rest of the result where there is more.
    pub(super) async fn query(&self, request: QueryRequest) -> Result<(RowBatch, OpenResult), Error> {
        let mut result = OpenResult { backend: self.clone(), cursor: 0, timeout_ms: request.timeout_ms };
        let first = result.ask(router_request::Request::Query(request)).await?;
        Ok((first, result))
    }

    /// Whether the router answers.
    pub(super) async fn healthy(&self) -> Result<(), Error> {
        let statement = Statement { sql: "SELECT 1".to_owned(), params: Vec::new() };
        self.explain(ExplainRequest { statement: Some(statement) }, HEALTH_TIMEOUT_MS).await.map(drop)
    }

    /// The members of the shards, with what they say of themselves.
    pub(super) async fn shards_health(&self) -> Result<Topology, Error> {
        match self.ask_router(router_request::Request::Health(ShardsHealthRequest {}), 0).await? {
            router_reply::Reply::Topology(topology) => Ok(topology),
            _ => Err(unexpected("router")),
        }
    }

    /// Makes another member of a shard its primary.
    pub(super) async fn promote(&self, promote: Promote) -> Result<Promoted, Error> {
        match self.ask_router(router_request::Request::Promote(promote), 0).await? {
            router_reply::Reply::Promoted(promoted) => Ok(promoted),
            _ => Err(unexpected("router")),
        }
    }

    pub(super) async fn cdc_status(&self) -> Result<CdcStatus, Error> {
        match self.ask_cdc(cdc_request::Request::Status(CdcStatusRequest {}), 0).await? {
            cdc_reply::Reply::Status(status) => Ok(status),
            _ => Err(unexpected("change stream")),
        }
    }

    async fn ask_lake(&self, request: lake_request::Request, timeout_ms: u64) -> Result<lake_reply::Reply, Error> {
        let request = LakeRequest { request: Some(request) };
        let reply = self.client.ask::<LakeProtocol>(DEFAULT, request, &self.call(timeout_ms)).await?;
        reply.reply.ok_or_else(|| unexpected("lake writer"))
    }

    pub(super) async fn lake_status(&self) -> Result<LakeStatus, Error> {
        match self.ask_lake(lake_request::Request::Status(LakeStatusRequest {}), 0).await? {
            lake_reply::Reply::Status(status) => Ok(status),
            _ => Err(unexpected("lake writer")),
        }
    }

    /// One step of compaction.
    pub(super) async fn compact_lake(&self, step: LakeCompact) -> Result<LakeCompacted, Error> {
        match self.ask_lake(lake_request::Request::Compact(step), FLUSH_TIMEOUT_MS).await? {
            lake_reply::Reply::Compacted(compacted) => Ok(compacted),
            _ => Err(unexpected("lake writer")),
        }
    }

    /// Cleans one of the lake's tables up.
    pub(super) async fn clean_up_lake(&self, cleanup: LakeCleanup) -> Result<LakeCleaned, Error> {
        match self.ask_lake(lake_request::Request::Cleanup(cleanup), FLUSH_TIMEOUT_MS).await? {
            lake_reply::Reply::Cleaned(cleaned) => Ok(cleaned),
            _ => Err(unexpected("lake writer")),
        }
    }

    /// What the lake makes of tables.
    pub(super) async fn lake_options(&self, request: LakeOptionsRequest) -> Result<LakeOptions, Error> {
        match self.ask_lake(lake_request::Request::Options(request), 0).await? {
            lake_reply::Reply::Options(options) => Ok(options),
            _ => Err(unexpected("lake writer")),
        }
    }

    /// Changes what the lake makes of a table.
    pub(super) async fn configure_lake(&self, configure: LakeConfigure) -> Result<LakeOptions, Error> {
        match self.ask_lake(lake_request::Request::Configure(configure), 0).await? {
            lake_reply::Reply::Options(options) => Ok(options),
            _ => Err(unexpected("lake writer")),
        }
    }

    /// Asks the Iceberg catalog.
    pub(super) async fn catalog(&self, request: catalog_request::Request) -> Result<catalog_reply::Reply, Error> {
        let request = CatalogRequest { request: Some(request) };
        let reply = self.client.ask::<CatalogProtocol>(DEFAULT, request, &self.call(0)).await?;
        reply.reply.ok_or_else(|| unexpected("catalog"))
    }

    /// Has the lake commit everything written before the call.
    pub(super) async fn flush_lake(&self) -> Result<LakeFlushed, Error> {
        match self.ask_cdc(cdc_request::Request::FlushLake(FlushLake {}), FLUSH_TIMEOUT_MS).await? {
            cdc_reply::Reply::Flushed(flushed) => Ok(flushed),
            _ => Err(unexpected("change stream")),
        }
    }

    /// Checks a subscription and finds where it starts.
    pub(super) async fn open_changes(&self, subscription: SubscribeRequest) -> Result<SubscribeRequest, Error> {
        match self.ask_cdc(cdc_request::Request::Open(subscription), 0).await? {
            cdc_reply::Reply::Opened(opened) => Ok(opened),
            _ => Err(unexpected("change stream")),
        }
    }

    async fn ask_subscription(&self, request: cdc_request::Request) -> Result<SubscriptionNoted, Error> {
        match self.ask_cdc(request, 0).await? {
            cdc_reply::Reply::Subscription(noted) => Ok(noted),
            _ => Err(unexpected("change stream")),
        }
    }

    /// Moves a durable subscription forward.
    pub(super) async fn acknowledge_changes(&self, moved: AcknowledgeChanges) -> Result<SubscriptionNoted, Error> {
        self.ask_subscription(cdc_request::Request::Acknowledge(moved)).await
    }

    pub(super) async fn drop_subscription(&self, name: String) -> Result<SubscriptionNoted, Error> {
        self.ask_subscription(cdc_request::Request::Drop(DropSubscriptionRequest { name })).await
    }

    pub(super) async fn subscriptions(&self) -> Result<SubscriptionList, Error> {
        match self.ask_cdc(cdc_request::Request::List(ListSubscriptionsRequest {}), 0).await? {
            cdc_reply::Reply::Subscriptions(list) => Ok(list),
            _ => Err(unexpected("change stream")),
        }
    }

    /// The next changes of a subscription, after waiting for them up to `wait`.
    pub(super) async fn poll_changes(
        &self,
        subscription: SubscribeRequest,
        wait: Duration,
    ) -> Result<ChangeBatch, Error> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let poll = PollChanges { subscription: Some(subscription), wait_ms, max_bytes: BATCH_BYTES };
        let timeout_ms = self.query_timeout_ms.saturating_add(wait_ms);
        match self.ask_cdc(cdc_request::Request::Poll(poll), timeout_ms).await? {
            cdc_reply::Reply::Changes(batch) => Ok(batch),
            _ => Err(unexpected("change stream")),
        }
    }
}

fn unexpected(who: &str) -> Error {
    Error::internal(format!("the {who} answered another question than it was asked"))
}

/// The rest of a result. Its cursor is given up when this is dropped, as when the client hangs up.
pub(super) struct OpenResult {
    backend: Backend,
    /// 0 where there is no more.
    cursor: u64,
    timeout_ms: u64,
}

impl OpenResult {
    /// Whether everything has been read.
    pub(super) fn is_done(&self) -> bool {
        self.cursor == 0
    }

    async fn ask(&mut self, request: router_request::Request) -> Result<RowBatch, Error> {
        match self.backend.ask_router(request, self.timeout_ms).await? {
            router_reply::Reply::Rows(batch) => {
                self.cursor = batch.cursor;
                Ok(batch)
            }
            _ => Err(unexpected("router")),
        }
    }

    /// The next rows; `None` after the last ones.
    pub(super) async fn next(&mut self) -> Result<Option<RowBatch>, Error> {
        match self.cursor {
            0 => Ok(None),
            cursor => self.ask(router_request::Request::Fetch(FetchRequest { cursor })).await.map(Some),
        }
    }
}

impl Drop for OpenResult {
    fn drop(&mut self) {
        if self.cursor == 0 {
            return;
        }
        let close = router_request::Request::Close(CloseRequest { cursor: self.cursor });
        let backend = self.backend.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = backend.ask_router(close, 0).await {
                    tracing::debug!(%error, "a cursor was not closed; it expires");
                }
            });
        }
    }
}
