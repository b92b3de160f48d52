//! The gRPC interface: queries, the change stream, health and reflection.

use axum::response::Response;
use dosql_proto::cdc_service_server::{CdcService, CdcServiceServer};
use dosql_proto::query_service_server::{QueryService, QueryServiceServer};
use dosql_proto::subscriber::Terms;
use dosql_proto::{
    AcknowledgeChanges, BatchRequest, BatchResponse, ChangeBatch, CloseSession, Credit, DESCRIPTORS,
    DropSubscriptionRequest, ERROR_CODE_METADATA, Error, ErrorCode, ExecuteRequest, ExecuteResponse, ExplainRequest,
    ExplainResponse, ListSubscriptionsRequest, LoadRequest, LoadResponse, OpenSession, QueryRequest, QueryResponse,
    RowBatch, SessionClosed, SessionOpened, SessionRequest, SessionResponse, SubscribeRequest, SubscriberMessage,
    SubscriptionList, SubscriptionNoted, subscriber_message,
};
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _, try_unfold};
use prost::Message as _;
use tonic::service::Routes;
use tonic::{Code, Request, Status, Streaming};

use super::backend::Backend;
use super::changes::Changes;
use super::conversation::Conversation;

/// Longest request, in bytes; as long as the body of an HTTP request.
pub(super) const LARGEST_REQUEST: usize = 32 << 20;
/// Requests of one load that are on their way to the shards at a time.
const LOADS_IN_FLIGHT: usize = 4;

/// Everything that answers gRPC.
pub(super) async fn routes(backend: &Backend) -> Routes {
    let query = QueryServiceServer::new(Queries { backend: backend.clone() })
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let cdc = CdcServiceServer::new(Subscriptions { backend: backend.clone() })
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<QueryServiceServer<Queries>>().await;
    health.set_serving::<CdcServiceServer<Subscriptions>>().await;
    let mut routes = Routes::new(query).add_service(cdc).add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptors are compiled in; what they lack shows in the tests, and is no reason not to serve.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "there is no gRPC reflection"),
    }
    Routes::from(routes.into_axum_router().layer(axum::middleware::map_response(type_foreign_status)))
}

struct Queries {
    backend: Backend,
}

#[tonic::async_trait]
impl QueryService for Queries {
    type QueryStream = BoxStream<'static, Result<QueryResponse, Status>>;
    type SessionStream = BoxStream<'static, Result<SessionResponse, Status>>;
    type LoadStream = BoxStream<'static, Result<LoadResponse, Status>>;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<tonic::Response<ExecuteResponse>, Status> {
        Ok(tonic::Response::new(self.backend.execute(request.into_inner()).await?))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<tonic::Response<Self::QueryStream>, Status> {
        let (first, rest) = self.backend.query(request.into_inner()).await?;
        let rest = try_unfold(rest, async |mut rest| Ok(rest.next().await?.map(|batch| (batch, rest))));
        let batches = futures_util::stream::iter([Ok(first)]).chain(rest);
        Ok(tonic::Response::new(batches.map_ok(response_of).map_err(|error: Error| error.into()).boxed()))
    }

    async fn batch(&self, request: Request<BatchRequest>) -> Result<tonic::Response<BatchResponse>, Status> {
        Ok(tonic::Response::new(self.backend.batch(request.into_inner()).await?))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<tonic::Response<ExplainResponse>, Status> {
        Ok(tonic::Response::new(self.backend.explain(request.into_inner(), 0).await?))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let conversation = Conversation::open(self.backend.clone(), request.into_inner()).await?;
        Ok(tonic::Response::new(try_unfold(conversation, Conversation::next).boxed()))
    }

    async fn open_session(&self, _: Request<OpenSession>) -> Result<tonic::Response<SessionOpened>, Status> {
        Ok(tonic::Response::new(self.backend.open_session().await?))
    }

    async fn close_session(&self, request: Request<CloseSession>) -> Result<tonic::Response<SessionClosed>, Status> {
        self.backend.close_session(request.into_inner().session).await?;
        Ok(tonic::Response::new(SessionClosed {}))
    }

    async fn load(
        &self,
        request: Request<Streaming<LoadRequest>>,
    ) -> Result<tonic::Response<Self::LoadStream>, Status> {
        let backend = self.backend.clone();
        let loaded = request
            .into_inner()
            .map_err(|status| Status::from(error_of(&status)))
            .map_ok(move |request| {
                let backend = backend.clone();
                async move { backend.load(request).await.map_err(Status::from) }
            })
            // In the order of the requests, whichever is done first.
            .try_buffered(LOADS_IN_FLIGHT);
        Ok(tonic::Response::new(loaded.boxed()))
    }
}

pub(super) fn response_of(batch: RowBatch) -> QueryResponse {
    QueryResponse {
        columns: batch.columns,
        rows: batch.rows,
        bookmark: batch.bookmark,
        rows_affected: batch.rows_affected,
        query_plan: batch.query_plan,
        stats: batch.stats,
    }
}

struct Subscriptions {
    backend: Backend,
}

#[tonic::async_trait]
impl CdcService for Subscriptions {
    type SubscribeStream = BoxStream<'static, Result<ChangeBatch, Status>>;
    type FollowStream = BoxStream<'static, Result<ChangeBatch, Status>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<tonic::Response<Self::SubscribeStream>, Status> {
        let changes = Changes::open(self.backend.clone(), request.into_inner()).await?;
        let batches = try_unfold(changes, async |mut changes| {
            let answer = changes.next().await?;
            Ok(Some((answer.batch.clone(), changes)))
        });
        Ok(tonic::Response::new(batches.map_err(|error: Error| error.into()).boxed()))
    }

    async fn follow(
        &self,
        request: Request<Streaming<SubscriberMessage>>,
    ) -> Result<tonic::Response<Self::FollowStream>, Status> {
        let mut said = request.into_inner();
        let first = said.message().await.map_err(|status| error_of(&status))?.and_then(|said| said.message);
        let Some(subscriber_message::Message::Subscribe(subscription)) = first else {
            return Err(Error::invalid("a subscriber's first message must be what it subscribes to").into());
        };
        let terms = Terms::new(&subscription.name, Some(Credit::default()));
        let changes = Changes::open(self.backend.clone(), subscription).await?;
        let follower = Follower { said: Some(said), changes, terms };
        let batches =
            try_unfold(follower, async |mut follower| Ok(follower.next().await?.map(|batch| (batch, follower))));
        Ok(tonic::Response::new(batches.map_err(|error: Error| error.into()).boxed()))
    }

    async fn acknowledge(
        &self,
        request: Request<AcknowledgeChanges>,
    ) -> Result<tonic::Response<SubscriptionNoted>, Status> {
        Ok(tonic::Response::new(self.backend.acknowledge_changes(request.into_inner()).await?))
    }

    async fn list_subscriptions(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Result<tonic::Response<SubscriptionList>, Status> {
        Ok(tonic::Response::new(self.backend.subscriptions().await?))
    }

    async fn drop_subscription(
        &self,
        request: Request<DropSubscriptionRequest>,
    ) -> Result<tonic::Response<SubscriptionNoted>, Status> {
        Ok(tonic::Response::new(self.backend.drop_subscription(request.into_inner().name).await?))
    }
}

/// A subscriber that says how much it takes.
struct Follower {
    /// `None` after its last word.
    said: Option<Streaming<SubscriberMessage>>,
    changes: Changes,
    terms: Terms,
}

impl Follower {
    /// The next batch, as soon as there is credit for it; `None` where none can come any more.
    async fn next(&mut self) -> Result<Option<ChangeBatch>, Error> {
        loop {
            let allowed = self.terms.allow();
            if !allowed && self.said.is_none() {
                return Ok(None);
            }
            let stopping = self.changes.stopping();
            let heard = tokio::select! {
                answer = self.changes.next(), if allowed => {
                    let batch = answer?.batch.clone();
                    self.terms.spend(1, batch.encoded_len() as u64);
                    return Ok(Some(batch));
                }
                heard = hear(&mut self.said) => heard?,
                error = stopping => return Err(error),
            };
            match heard {
                None => self.said = None,
                Some(message) => {
                    if let Some(acknowledged) = self.terms.hear(message)? {
                        self.changes.acknowledge(acknowledged).await?;
                    }
                }
            }
        }
    }
}

/// What a subscriber says next; waits for ever where it has said its last word.
async fn hear(said: &mut Option<Streaming<SubscriberMessage>>) -> Result<Option<subscriber_message::Message>, Error> {
    let Some(said) = said else { return std::future::pending().await };
    loop {
        match said.message().await.map_err(|status| error_of(&status))? {
            None => return Ok(None),
            Some(SubscriberMessage { message: Some(message) }) => return Ok(Some(message)),
            // Of a later version, perhaps.
            Some(SubscriberMessage { message: None }) => {}
        }
    }
}

/// Gives the errors that tonic itself answers (a request that is too long or malformed) their code, as ours have.
async fn type_foreign_status(response: Response) -> Response {
    if response.headers().contains_key(ERROR_CODE_METADATA) {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => {
            Status::from(error_of(&status)).into_http::<tonic::body::Body>().map(axum::body::Body::new)
        }
        _ => response,
    }
}

/// What tonic says, as an error of ours. It has no codes for these cases but its wording.
pub(super) fn error_of(status: &Status) -> Error {
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("message length too large") => {
            Error::new(ErrorCode::TooLarge, format!("the request is too long: {message}"))
        }
        Code::Internal | Code::InvalidArgument if message.contains("decod") || message.contains("compression flag") => {
            Error::invalid(format!("the request is malformed: {message}"))
        }
        Code::Unimplemented => Error::new(ErrorCode::Unsupported, "there is no such gRPC method"),
        _ => Error::from(status),
    }
}
