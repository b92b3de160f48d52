//! The state of the change stream and the lake.

use serde_json::{Value as Json, json};

use crate::v1::{CdcStatus, LakeStatus};

/// The answer of `GET /status`.
#[must_use]
pub fn status_document(cdc: &CdcStatus, lake: &LakeStatus) -> Json {
    let shards: Vec<Json> = cdc
        .shards
        .iter()
        .map(|shard| {
            json!({
                "shard": shard.shard,
                "last_lsn": shard.last_lsn,
                "delivered_lsn": shard.delivered_lsn,
                "durable_lsn": shard.durable_lsn,
                "fallback_records": shard.fallback_records,
                "fallback_bytes": shard.fallback_bytes,
            })
        })
        .collect();
    let positions: Vec<Json> = lake
        .shards
        .iter()
        .map(
            |shard| json!({"shard": shard.shard, "buffered_lsn": shard.buffered_lsn, "durable_lsn": shard.durable_lsn}),
        )
        .collect();
    let tables: Vec<Json> = lake
        .tables
        .iter()
        .map(|table| {
            json!({
                "namespace": table.namespace,
                "name": table.name,
                "location": table.location,
                "snapshot_id": table.snapshot_id,
                "rows": table.rows,
            })
        })
        .collect();
    json!({
        "cdc": {"shards": shards},
        "lake": {
            "buffer_bytes": lake.buffer_bytes,
            "buffer_events": lake.buffer_events,
            "max_buffer_bytes": lake.max_buffer_bytes,
            "last_flush_ms": lake.last_flush_ms,
            "flush_error": lake.flush_error,
            "shards": positions,
            "tables": tables,
        },
    })
}
