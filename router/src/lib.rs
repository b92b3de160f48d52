//! The router: VSchema, vindexes, planning, scatter and gather, and the actor that does it.
//!
//! A statement is compiled by SQLite on an empty copy of the schema first, which tells what is wrong with it, which tables and
//! columns it touches and what it returns. Then it is routed: to one shard where everything it reads is there; to several
//! shards whose rows are simply put one after the other; or the rows it needs (their first ones, their partial aggregates,
//! their filtered columns) are gathered into a scratch SQLite and the statement is finished there. No SQL semantics are
//! implemented here: what a value compares equal to, how it sorts and what it sums to is always SQLite's answer.

mod actor;
mod affinity;
mod catalog;
mod execute;
mod literals;
mod plan;
mod replicas;
mod sql_text;
mod transaction;
pub mod vindex;
mod vschema;

pub use actor::Router;
pub use affinity::{Affinity, Collation};
pub use vschema::{
    AutoIncrement, ColumnVindex, KeyValue, RangeEntry, RouterSettings, SequenceEntry, ShardEntry, ShardMetadata,
    TableEntry, VSchema, VindexChoice, VindexEntry, json_schema, with_shards,
};
