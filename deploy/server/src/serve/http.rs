//! The HTTP interface.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use dosql_proto::json::{
    ErrorBody, ResultWriter, acknowledgement_from_json, http_status, promoted_document, query_from_json,
    status_document, subscription_document, subscriptions_document, topology_document,
};
use dosql_proto::{AcknowledgeChanges, Error, ErrorCode, Promote, RowBatch, SubscriptionNoted};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tonic::Status;
use tonic::service::Routes;

use super::backend::{Backend, OpenResult};
use super::grpc::LARGEST_REQUEST;
use super::{catalog, maintenance, websocket};

/// Names the session that a request belongs to.
const SESSION_HEADER: &str = "dosql-session";
/// A body that is too long is read up to here before it is answered, since many clients read no answer while they write.
const LONGEST_DRAIN: usize = 1 << 30;

const WELCOME: &str = "\
DoSQL

POST /sql      {\"sql\": \"SELECT ?\", \"params\": [1], \"options\": {\"timeout\": 5000}}
POST /session  a session: its token goes with each request as the header dosql-session, and DELETE /session ends it
GET  /cdc      ?tables=a,b&from=latest&format=json   the change stream, as a WebSocket
GET  /cdc/subscriptions            the durable subscriptions
POST /cdc/subscriptions/NAME/ack   {\"ack\": \"shard-0:17\"}   move one forward
DELETE /cdc/subscriptions/NAME     remove one
GET  /health   whether the server answers
GET  /status   how far the change stream and the lake are
POST /flush    have the lake commit everything
GET  /admin/shards/health            the members of the shards, and how far they are
POST /admin/shards/SHARD/promote     ?member=NAME   make another member the primary
POST /admin/compact   {\"tables\": [], \"mode\": \"auto\"}        make few files of many in the lake
GET  /v1/...   the Iceberg REST catalog of the lake: other engines take this address as its URI
POST /admin/cleanup   {\"mode\": \"standard\", \"dryRun\": true}   delete what the lake no longer needs
GET  /admin/lake/options   ?table=orders   what the lake makes of a table
POST /admin/lake/options   {\"table\": \"orders\", \"set\": {\"misfits\": \"widen\"}, \"reset\": []}   change that

gRPC is answered here too, with reflection.
";

/// Everything that answers HTTP, and gRPC where a request asks for it.
pub(super) fn routes(backend: &Backend, hints: catalog::StorageHints, grpc: Routes) -> Router {
    Router::new()
        .merge(catalog::routes(hints))
        .route("/", get(async || WELCOME))
        .route("/sql", post(sql))
        .route("/session", post(open_session).delete(close_session))
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/flush", post(flush))
        .route("/admin/shards/health", get(shards_health))
        .route("/admin/shards/{shard}/promote", post(promote))
        .route("/admin/compact", post(maintenance::compact))
        .route("/admin/cleanup", post(maintenance::clean_up))
        .route("/admin/lake/options", get(maintenance::options).post(maintenance::configure))
        .route("/cdc", get(websocket::subscribe))
        .route("/cdc/subscriptions", get(subscriptions))
        .route("/cdc/subscriptions/{name}", delete(drop_subscription))
        .route("/cdc/subscriptions/{name}/ack", post(acknowledge))
        .method_not_allowed_fallback(wrong_method)
        .with_state(backend.clone())
        .fallback_service(grpc.into_axum_router().fallback(nothing_here))
}

async fn wrong_method(request: Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    (StatusCode::METHOD_NOT_ALLOWED, HttpError(Error::invalid(message))).into_response()
}

async fn nothing_here(request: Request) -> Response {
    let path = request.uri().path();
    if is_grpc(request.headers()) {
        let error = Error::new(ErrorCode::Unsupported, format!("there is no gRPC method {path}"));
        return Status::from(error).into_http::<tonic::body::Body>().map(Body::new);
    }
    HttpError(Error::new(ErrorCode::NotFound, format!("there is nothing at {path}"))).into_response()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// An error as an HTTP answer.
pub(super) struct HttpError(pub(super) Error);

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(http_status(&error)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(%error, "a request failed");
        }
        let mut response = (status, json(ErrorBody(&error).to_json())).into_response();
        if error.retry_after_ms > 0 {
            let seconds = error.retry_after_ms.div_ceil(1000);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) fn json(text: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text.into()).into_response()
}

async fn sql(State(backend): State<Backend>, request: Request) -> Result<Response, HttpError> {
    let session = session_of(request.headers())?;
    let body = read_body(request).await?;
    let mut request = query_from_json(&body)?;
    drop(body);
    request.session = session;
    let (first, rest) = backend.query(request).await?;
    Ok(json(Body::from_stream(pieces(first, rest))))
}

/// The session that a request names; "" where it names none.
fn session_of(headers: &HeaderMap) -> Result<String, Error> {
    let token = headers.get(SESSION_HEADER).map(HeaderValue::to_str).transpose();
    let token = token.map_err(|_| Error::invalid(format!("{SESSION_HEADER} is not a session's token")))?;
    Ok(token.unwrap_or_default().to_owned())
}

async fn open_session(State(backend): State<Backend>) -> Result<Response, HttpError> {
    let opened = backend.open_session().await?;
    let body = serde_json::json!({"session": opened.session, "idleTimeoutMs": opened.idle_timeout_ms});
    Ok(json(body.to_string()))
}

async fn close_session(State(backend): State<Backend>, headers: HeaderMap) -> Result<Response, HttpError> {
    let session = session_of(&headers)?;
    if session.is_empty() {
        return Err(Error::invalid(format!("the header {SESSION_HEADER} must name the session to close")).into());
    }
    backend.close_session(session).await?;
    Ok(json("{}"))
}

/// The JSON text of a result, a piece for each batch of rows, each made when the client has taken the one before.
fn pieces(
    first: RowBatch,
    rest: OpenResult,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let mut writer = ResultWriter::new();
    let mut head = Vec::new();
    writer.columns(&first.columns, &mut head);
    stream::unfold(Some((head, first, writer, rest)), async |state| {
        let (mut out, batch, mut writer, mut rest) = state?;
        writer.rows(&batch.rows, &mut out);
        let next = match rest.next().await {
            Ok(Some(next)) => Some((Vec::new(), next, writer, rest)),
            Ok(None) => {
                writer.finish(&batch, &mut out);
                None
            }
            Err(error) => {
                writer.fail(&error, &mut out);
                None
            }
        };
        Some((Ok(Bytes::from(out)), next))
    })
}

/// The body of a request, up to the limit.
async fn read_body(request: Request) -> Result<Vec<u8>, Error> {
    let too_long = || {
        Error::new(
            ErrorCode::TooLarge,
            format!("the request is longer than the limit of {} MiB", LARGEST_REQUEST >> 20),
        )
    };
    // Such a client waits for our consent before it sends the body.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let announced: usize = announced.unwrap_or(0);
    if asks_first && announced > LARGEST_REQUEST {
        return Err(too_long());
    }
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::with_capacity(if announced > LARGEST_REQUEST { 0 } else { announced });
    let mut length = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Error::invalid(format!("the request broke off: {error}")))?;
        length = length.saturating_add(chunk.len());
        if length <= LARGEST_REQUEST {
            body.extend_from_slice(&chunk);
        } else if length <= LONGEST_DRAIN {
            body = Vec::new();
        } else {
            break;
        }
    }
    if length > LARGEST_REQUEST { Err(too_long()) } else { Ok(body) }
}

async fn health(State(backend): State<Backend>) -> Result<Response, HttpError> {
    backend.healthy().await?;
    Ok(json(concat!("{\"status\":\"ok\",\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}")))
}

async fn status(State(backend): State<Backend>) -> Result<Response, HttpError> {
    let (cdc, lake) = futures_util::future::try_join(backend.cdc_status(), backend.lake_status()).await?;
    Ok(json(status_document(&cdc, &lake).to_string()))
}

async fn shards_health(State(backend): State<Backend>) -> Result<Response, HttpError> {
    Ok(json(topology_document(&backend.shards_health().await?).to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromoteQuery {
    /// The member; left out: the one that has most.
    #[serde(default)]
    member: String,
}

async fn promote(
    State(backend): State<Backend>,
    Path(shard): Path<String>,
    query: Result<Query<PromoteQuery>, QueryRejection>,
) -> Result<Response, HttpError> {
    let Query(PromoteQuery { member }) = query.map_err(|error| Error::invalid(error.body_text()))?;
    let promoted = backend.promote(Promote { shard, member }).await?;
    Ok(json(promoted_document(&promoted).to_string()))
}

async fn flush(State(backend): State<Backend>) -> Result<Response, HttpError> {
    let flushed = backend.flush_lake().await?;
    Ok(json(serde_json::json!({"position": flushed.position}).to_string()))
}

async fn subscriptions(State(backend): State<Backend>) -> Result<Response, HttpError> {
    let list = backend.subscriptions().await?;
    Ok(json(subscriptions_document(&list.subscriptions).to_string()))
}

async fn acknowledge(
    State(backend): State<Backend>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, HttpError> {
    let body = read_body(request).await?;
    let position = acknowledgement_from_json(&body)?;
    Ok(noted(backend.acknowledge_changes(AcknowledgeChanges { name, position }).await?))
}

async fn drop_subscription(State(backend): State<Backend>, Path(name): Path<String>) -> Result<Response, HttpError> {
    Ok(noted(backend.drop_subscription(name).await?))
}

fn noted(noted: SubscriptionNoted) -> Response {
    json(subscription_document(&noted.subscription.unwrap_or_default()).to_string())
}
