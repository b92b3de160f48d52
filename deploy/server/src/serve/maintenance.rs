//! `POST /admin/compact` and `POST /admin/cleanup`: the lake's maintenance on request.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dosql_proto::{CompactionMode, Error, LakeCleaned, LakeCleanup, LakeCompact, LakeCompaction};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::backend::Backend;
use super::http::HttpError;

/// The body of `POST /admin/compact`; it may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct CompactBody {
    /// Tables, each with its change log, or lake tables; empty for all.
    tables: Vec<String>,
    /// A day, as `2026-01-31`; empty for all.
    partition: String,
    mode: CompactMode,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum CompactMode {
    #[default]
    Auto,
    Full,
}

/// The body of `POST /admin/cleanup`; it may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct CleanupBody {
    tables: Vec<String>,
    mode: CleanupMode,
    /// As mode `deep`.
    include_orphan_scan: bool,
    dry_run: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum CleanupMode {
    #[default]
    Standard,
    Deep,
}

fn body<T: Default + DeserializeOwned>(bytes: &Bytes) -> Result<T, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(format!("the body is not as expected: {error}")))
}

pub(super) fn answer(document: &Json) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

/// The lake tables that are meant: each that is named, and the change log of each.
async fn chosen(backend: &Backend, named: &[String]) -> Result<Vec<String>, Error> {
    let tables: Vec<String> = backend.lake_status().await?.tables.into_iter().map(|table| table.name).collect();
    if let Some(unknown) = named.iter().find(|name| !tables.contains(name)) {
        return Err(Error::new(dosql_proto::ErrorCode::NotFound, format!("the lake has no table {unknown:?}")));
    }
    let is_chosen = |table: &String| {
        let source = table.strip_suffix("__changes").unwrap_or(table);
        named.is_empty() || named.iter().any(|name| name == table || name == source)
    };
    Ok(tables.into_iter().filter(is_chosen).collect())
}

/// Compacts until nothing is left to do.
pub(super) async fn compact(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let CompactBody { tables, partition, mode } = body(&bytes)?;
    let mode = match mode {
        CompactMode::Auto => CompactionMode::Auto,
        CompactMode::Full => CompactionMode::Full,
    };
    let mut results = Vec::new();
    for table in chosen(&backend, &tables).await? {
        loop {
            let step = LakeCompact { table: table.clone(), partition: partition.clone(), mode: mode.into() };
            let Some(done) = backend.compact_lake(step).await?.compaction else { break };
            results.push(compaction_json(&done));
        }
    }
    Ok(answer(&json!({ "results": results })))
}

fn compaction_json(done: &LakeCompaction) -> Json {
    json!({
        "table": done.table,
        "partition": done.partition,
        "files_before": done.files_before,
        "files_after": done.files_after,
        "deletes_folded": done.deletes_folded,
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
    })
}

/// Cleans every table up, one after the other.
pub(super) async fn clean_up(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let CleanupBody { tables, mode, include_orphan_scan, dry_run } = body(&bytes)?;
    let deep = mode == CleanupMode::Deep || include_orphan_scan;
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    let (mut snapshots, mut bytes) = (0, 0);
    for table in chosen(&backend, &tables).await? {
        let LakeCleaned { expired_snapshots, objects, failures } =
            backend.clean_up_lake(LakeCleanup { table, deep, dry_run }).await?;
        snapshots += expired_snapshots.len();
        bytes += objects.iter().map(|object| object.bytes).sum::<u64>();
        files.extend(
            objects
                .into_iter()
                .map(|object| json!({ "path": object.path, "bytes": object.bytes, "reason": object.reason })),
        );
        errors.extend(failures.into_iter().map(|failure| json!({ "file": failure.path, "error": failure.reason })));
    }
    Ok(answer(&json!({
        "dry_run": dry_run,
        "expired_snapshots": snapshots,
        "deleted_files": files.len(),
        "freed_bytes": bytes,
        "files": files,
        "errors": errors,
    })))
}
