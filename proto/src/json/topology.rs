//! The members of the shards.

use serde_json::{Value as Json, json};

use crate::v1::{MemberHealth, Promoted, Topology};

/// The answer of `GET /admin/shards/health`.
#[must_use]
pub fn topology_document(topology: &Topology) -> Json {
    let shards = topology.shards.iter().map(|shard| {
        json!({
            "shard": shard.shard,
            "epoch": shard.epoch,
            "primary": shard.primary,
            "promoting": shard.promoting,
            "members": shard.members.iter().map(member).collect::<Vec<Json>>(),
        })
    });
    json!({"shards": shards.collect::<Vec<Json>>()})
}

fn member(member: &MemberHealth) -> Json {
    let mut document = json!({
        "name": member.name,
        "region": member.region,
        "purpose": member.purpose,
        "healthy": member.healthy,
        "role": member.role,
        "epoch": member.epoch,
        "last_lsn": member.last_lsn,
        "lag_records": member.lag_records,
        "lag_ms": member.lag_ms,
        "ejected": member.ejected,
        "latency_us": member.latency_us,
    });
    if !member.error.is_empty() {
        document["error"] = Json::from(member.error.as_str());
    }
    document
}

/// The answer of `POST /admin/shards/ID/promote`.
#[must_use]
pub fn promoted_document(promoted: &Promoted) -> Json {
    json!({
        "shard": promoted.shard,
        "primary": promoted.primary,
        "epoch": promoted.epoch,
        "lsn": promoted.lsn,
    })
}
