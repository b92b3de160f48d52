//! The Iceberg REST catalog: other engines attach the lake by this server's URL, read its tables and commit to them.
//!
//! Paths, bodies and errors are the protocol's (`rest-catalog-open-api.yaml` of Apache Iceberg). Tables are made, renamed and
//! dropped by SQL, and by nothing else.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use dosql_actors::host::actix::S3Settings;
use dosql_proto::json::http_status;
use dosql_proto::{
    CatalogCommit, CatalogList, CatalogLoad, CatalogTable, Error, ErrorCode, catalog_reply, catalog_request,
};
use serde::Deserialize;
use serde_json::json;

use super::backend::Backend;
use super::http::json as json_response;

/// The one namespace there is.
const NAMESPACE: &str = "default";

/// What is served of the protocol, for clients that ask before they try.
const ENDPOINTS: [&str; 10] = [
    "GET /v1/{prefix}/namespaces",
    "GET /v1/{prefix}/namespaces/{namespace}",
    "HEAD /v1/{prefix}/namespaces/{namespace}",
    "GET /v1/{prefix}/namespaces/{namespace}/tables",
    "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}/metrics",
    "GET /v1/{prefix}/namespaces/{namespace}/views",
    "HEAD /v1/{prefix}/namespaces/{namespace}/views/{view}",
];

/// Properties by which clients find the bucket. Never a secret: each client brings its own.
#[derive(Debug, Clone, Default)]
pub(super) struct StorageHints(BTreeMap<&'static str, String>);

impl StorageHints {
    pub(super) fn of(bucket: Option<&S3Settings>) -> Self {
        let mut hints = BTreeMap::new();
        if let Some(bucket) = bucket {
            hints.insert("s3.region", bucket.region.clone());
            hints.insert("s3.path-style-access", bucket.path_style.to_string());
            if let Some(endpoint) = &bucket.endpoint {
                hints.insert("s3.endpoint", endpoint.clone());
            }
        }
        Self(hints)
    }
}

pub(super) fn routes(hints: StorageHints) -> Router<Backend> {
    Router::new()
        .route("/v1/config", get(config))
        .route("/v1/namespaces", get(namespaces).post(refuse_namespace))
        .route("/v1/namespaces/{namespace}", get(namespace).head(namespace_exists).delete(refuse_namespace))
        .route("/v1/namespaces/{namespace}/properties", post(refuse_namespace))
        .route("/v1/namespaces/{namespace}/tables", get(tables).post(refuse_table))
        .route(
            "/v1/namespaces/{namespace}/tables/{table}",
            get(load).head(table_exists).post(commit).delete(refuse_table),
        )
        .route("/v1/namespaces/{namespace}/tables/{table}/metrics", post(metrics))
        .route("/v1/namespaces/{namespace}/register", post(refuse_table))
        .route("/v1/tables/rename", post(refuse_table))
        .route("/v1/namespaces/{namespace}/views", get(views).post(refuse_view))
        .route("/v1/namespaces/{namespace}/views/{view}", get(no_view).head(no_view))
        .layer(Extension(hints))
}

/// An error in the protocol's words.
struct CatalogError {
    status: u16,
    kind: &'static str,
    message: String,
}

impl CatalogError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    /// What went wrong with a table: `missing` says what it is called that there is none.
    fn of(error: Error, is_commit: bool) -> Self {
        let (status, kind) = match error.code() {
            ErrorCode::NotFound => (404, "NoSuchTableException"),
            ErrorCode::Conflict if is_commit => (409, "CommitFailedException"),
            ErrorCode::InvalidRequest => (400, "BadRequestException"),
            ErrorCode::Unsupported => (406, "UnsupportedOperationException"),
            ErrorCode::Overloaded => (503, "ServiceUnavailableException"),
            ErrorCode::DeadlineExceeded if is_commit => (504, "CommitStateUnknownException"),
            // Whether it took effect, the client finds out by loading the table.
            _ if is_commit => (500, "CommitStateUnknownException"),
            _ => (http_status(&error), "InternalServerError"),
        };
        Self::new(status, kind, error.message)
    }
}

impl IntoResponse for CatalogError {
    fn into_response(self) -> Response {
        let Self { status, kind, message } = self;
        if status >= 500 {
            tracing::warn!(message, kind, "a catalog request failed");
        }
        let body = json!({ "error": { "message": message, "type": kind, "code": status } });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, json_response(body.to_string())).into_response()
    }
}

fn known(namespace: &str) -> Result<(), CatalogError> {
    if namespace == NAMESPACE {
        return Ok(());
    }
    let message = format!("there is no namespace {namespace:?}; the lake's tables are in {NAMESPACE:?}");
    Err(CatalogError::new(404, "NoSuchNamespaceException", message))
}

async fn config(Extension(StorageHints(defaults)): Extension<StorageHints>) -> Response {
    json_response(json!({ "defaults": defaults, "overrides": {}, "endpoints": ENDPOINTS }).to_string())
}

#[derive(Deserialize)]
struct NamespacesQuery {
    parent: Option<String>,
}

async fn namespaces(Query(NamespacesQuery { parent }): Query<NamespacesQuery>) -> Result<Response, CatalogError> {
    let below = match parent.filter(|parent| !parent.is_empty()) {
        Some(parent) => {
            known(&parent)?;
            json!([])
        }
        None => json!([[NAMESPACE]]),
    };
    Ok(json_response(json!({ "namespaces": below }).to_string()))
}

async fn namespace(Path(namespace): Path<String>) -> Result<Response, CatalogError> {
    known(&namespace)?;
    Ok(json_response(json!({ "namespace": [NAMESPACE], "properties": {} }).to_string()))
}

async fn namespace_exists(Path(namespace): Path<String>) -> Result<StatusCode, CatalogError> {
    known(&namespace).map(|()| StatusCode::NO_CONTENT)
}

async fn tables(State(backend): State<Backend>, Path(namespace): Path<String>) -> Result<Response, CatalogError> {
    known(&namespace)?;
    let reply = backend.catalog(catalog_request::Request::List(CatalogList {})).await;
    let catalog_reply::Reply::Tables(tables) = reply.map_err(|error| CatalogError::of(error, false))? else {
        return Err(unexpected());
    };
    let identifiers: Vec<_> =
        tables.names.into_iter().map(|name| json!({ "namespace": [NAMESPACE], "name": name })).collect();
    Ok(json_response(json!({ "identifiers": identifiers }).to_string()))
}

fn unexpected() -> CatalogError {
    CatalogError::new(500, "InternalServerError", "the catalog answered something else than was asked")
}

#[derive(Deserialize)]
struct LoadQuery {
    /// `refs`: only the snapshots that branches and tags name.
    snapshots: Option<String>,
}

async fn found(backend: &Backend, table: String, named_snapshots: bool) -> Result<CatalogTable, CatalogError> {
    let request = catalog_request::Request::Load(CatalogLoad { table, named_snapshots });
    match backend.catalog(request).await.map_err(|error| CatalogError::of(error, false))? {
        catalog_reply::Reply::Table(table) => Ok(table),
        catalog_reply::Reply::Tables(_) => Err(unexpected()),
    }
}

/// The metadata goes as it comes: it may be long.
fn table_response(table: &CatalogTable) -> Response {
    let CatalogTable { metadata_location, metadata } = table;
    let mut body =
        format!("{{\"metadata-location\":{},\"config\":{{}},\"metadata\":", json!(metadata_location)).into_bytes();
    body.extend_from_slice(metadata);
    body.push(b'}');
    json_response(body)
}

async fn load(
    State(backend): State<Backend>,
    Path((namespace, table)): Path<(String, String)>,
    Query(LoadQuery { snapshots }): Query<LoadQuery>,
) -> Result<Response, CatalogError> {
    known(&namespace)?;
    let named_snapshots = match snapshots.as_deref() {
        None | Some("all") => false,
        Some("refs") => true,
        Some(other) => {
            let message = format!("snapshots={other} is not known; expected all or refs");
            return Err(CatalogError::new(400, "BadRequestException", message));
        }
    };
    Ok(table_response(&found(&backend, table, named_snapshots).await?))
}

async fn table_exists(
    State(backend): State<Backend>,
    Path((namespace, table)): Path<(String, String)>,
) -> Result<StatusCode, CatalogError> {
    known(&namespace)?;
    found(&backend, table, true).await.map(|_| StatusCode::NO_CONTENT)
}

async fn commit(
    State(backend): State<Backend>,
    Path((namespace, table)): Path<(String, String)>,
    body: Bytes,
) -> Result<Response, CatalogError> {
    known(&namespace)?;
    let request = catalog_request::Request::Commit(CatalogCommit { table, commit: body.into() });
    match backend.catalog(request).await.map_err(|error| CatalogError::of(error, true))? {
        catalog_reply::Reply::Table(table) => Ok(table_response(&table)),
        catalog_reply::Reply::Tables(_) => Err(unexpected()),
    }
}

/// What a client's scan or commit took, which it tells whoever serves the catalog.
async fn metrics(Path((namespace, table)): Path<(String, String)>, body: Bytes) -> Result<StatusCode, CatalogError> {
    known(&namespace)?;
    tracing::debug!(table, report = %String::from_utf8_lossy(&body), "a client reports");
    Ok(StatusCode::NO_CONTENT)
}

async fn views(Path(namespace): Path<String>) -> Result<Response, CatalogError> {
    known(&namespace)?;
    Ok(json_response(json!({ "identifiers": [] }).to_string()))
}

async fn no_view(Path((namespace, view)): Path<(String, String)>) -> Result<Response, CatalogError> {
    known(&namespace)?;
    Err(CatalogError::new(404, "NoSuchViewException", format!("there is no view {view:?}; the lake has none")))
}

async fn refuse_namespace() -> CatalogError {
    let message = format!("the lake has the one namespace {NAMESPACE:?}");
    CatalogError::new(406, "UnsupportedOperationException", message)
}

async fn refuse_table() -> CatalogError {
    let message = "the lake's tables are made, renamed and dropped with their source tables, by SQL";
    CatalogError::new(406, "UnsupportedOperationException", message)
}

async fn refuse_view() -> CatalogError {
    CatalogError::new(406, "UnsupportedOperationException", "the lake has no views")
}
