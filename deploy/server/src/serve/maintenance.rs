//! The lake's maintenance on request, and what it makes of tables.

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::json::{CleanupBody, CompactBody, compactions_document, configure_from_json, options_document};
use dosql_proto::{Error, LakeOptionsRequest};
use serde::Deserialize;

use super::backend::Backend;
use super::http::{HttpError, json};

/// `POST /admin/compact`: compacts until nothing is left to do.
pub(super) async fn compact(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let body = CompactBody::from_json(&bytes)?;
    let mut done = Vec::new();
    for table in body.tables(&backend.lake_status().await?)? {
        while let Some(compaction) = backend.compact_lake(body.step(&table)).await?.compaction {
            done.push(compaction);
        }
    }
    Ok(json(compactions_document(&done).to_string()))
}

/// `POST /admin/cleanup`: cleans every table up, one after the other.
pub(super) async fn clean_up(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let body = CleanupBody::from_json(&bytes)?;
    let mut done = Vec::new();
    for table in body.tables(&backend.lake_status().await?)? {
        done.push(backend.clean_up_lake(body.cleanup(&table)).await?);
    }
    Ok(json(body.document(&done).to_string()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptionsQuery {
    /// Left out: all tables that have options of their own.
    #[serde(default)]
    table: String,
}

/// `GET /admin/lake/options`.
pub(super) async fn options(
    State(backend): State<Backend>,
    query: Result<Query<OptionsQuery>, QueryRejection>,
) -> Result<Response, HttpError> {
    let Query(OptionsQuery { table }) = query.map_err(|error| Error::invalid(error.body_text()))?;
    Ok(json(options_document(backend.lake_options(LakeOptionsRequest { table }).await?).to_string()))
}

/// `POST /admin/lake/options`.
pub(super) async fn configure(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let options = backend.configure_lake(configure_from_json(&bytes)?).await?;
    Ok(json(options_document(options).to_string()))
}
