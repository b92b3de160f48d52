//! Plans, and what running them took.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::v1::{ExplainResponse, LakeScanStats, QueryStats, StepStats};

/// `{"route": "...", "shards": [...], "text": "..."}`.
pub(super) struct JsonPlan<'a>(pub(super) &'a ExplainResponse);

impl Serialize for JsonPlan<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("route", &self.0.route)?;
        map.serialize_entry("shards", &self.0.shards)?;
        map.serialize_entry("text", &self.0.plan)?;
        map.end()
    }
}

/// The numbers of a statement, and a list of its steps.
pub(super) struct JsonStats<'a>(pub(super) &'a QueryStats);

impl Serialize for JsonStats<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(stats) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("elapsedMs", &milliseconds(stats.elapsed_us))?;
        map.serialize_entry("planningMs", &(stats.planning_ns as f64 / 1_000_000.0))?;
        map.serialize_entry("planCached", &stats.plan_cached)?;
        map.serialize_entry("rows", &stats.rows)?;
        map.serialize_entry("bytes", &stats.bytes)?;
        map.serialize_entry("gatheredRows", &stats.gathered_rows)?;
        map.serialize_entry("gatheredBytes", &stats.gathered_bytes)?;
        map.serialize_entry("scratchMemoryBytes", &stats.scratch_memory_bytes)?;
        map.serialize_entry("scratchDiskBytes", &stats.scratch_disk_bytes)?;
        let steps: Vec<JsonStep<'_>> = stats.steps.iter().map(JsonStep).collect();
        map.serialize_entry("steps", &steps)?;
        map.end()
    }
}

struct JsonStep<'a>(&'a StepStats);

impl Serialize for JsonStep<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(step) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &step.step)?;
        for (name, value) in [("table", &step.table), ("shard", &step.shard)] {
            if !value.is_empty() {
                map.serialize_entry(name, value)?;
            }
        }
        map.serialize_entry("rows", &step.rows)?;
        map.serialize_entry("bytes", &step.bytes)?;
        map.serialize_entry("batches", &step.batches)?;
        map.serialize_entry("elapsedMs", &milliseconds(step.elapsed_us))?;
        if let Some(lake) = &step.lake {
            map.serialize_entry("lake", &JsonLakeScan(lake))?;
        }
        map.end()
    }
}

struct JsonLakeScan<'a>(&'a LakeScanStats);

impl Serialize for JsonLakeScan<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(lake) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("files", &lake.files)?;
        map.serialize_entry("filesSkipped", &lake.files_skipped)?;
        map.serialize_entry("rowGroups", &lake.row_groups)?;
        map.serialize_entry("rowGroupsSkipped", &lake.row_groups_skipped)?;
        map.serialize_entry("rowsDeleted", &lake.rows_deleted)?;
        map.serialize_entry("bytesRead", &lake.bytes_read)?;
        map.end()
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}
