//! The lake's maintenance on request: bodies and answers of `POST /admin/compact` and `POST /admin/cleanup`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::v1::{CompactionMode, Error, ErrorCode, LakeCleaned, LakeCleanup, LakeCompact, LakeCompaction, LakeStatus};

/// What `POST /admin/compact` asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CompactBody {
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

impl CompactBody {
    /// Reads a body, which may be empty.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub fn from_json(body: &[u8]) -> Result<Self, Error> {
        or_default(body)
    }

    /// The lake tables to compact.
    ///
    /// # Errors
    /// `NOT_FOUND` where the lake has no table of a name.
    pub fn tables(&self, lake: &LakeStatus) -> Result<Vec<String>, Error> {
        chosen(&self.tables, lake)
    }

    /// A step of compacting one of them; to be repeated until one finds nothing to do.
    #[must_use]
    pub fn step(&self, table: &str) -> LakeCompact {
        let mode = match self.mode {
            CompactMode::Auto => CompactionMode::Auto,
            CompactMode::Full => CompactionMode::Full,
        };
        LakeCompact { table: table.to_owned(), partition: self.partition.clone(), mode: mode.into() }
    }
}

/// The answer of `POST /admin/compact`.
#[must_use]
pub fn compactions_document(done: &[LakeCompaction]) -> Json {
    let results = done.iter().map(|done| {
        json!({
            "table": done.table,
            "partition": done.partition,
            "files_before": done.files_before,
            "files_after": done.files_after,
            "deletes_folded": done.deletes_folded,
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
        })
    });
    json!({ "results": results.collect::<Vec<Json>>() })
}

/// What `POST /admin/cleanup` asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CleanupBody {
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

impl CleanupBody {
    /// Reads a body, which may be empty.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub fn from_json(body: &[u8]) -> Result<Self, Error> {
        or_default(body)
    }

    /// The lake tables to clean up.
    ///
    /// # Errors
    /// `NOT_FOUND` where the lake has no table of a name.
    pub fn tables(&self, lake: &LakeStatus) -> Result<Vec<String>, Error> {
        chosen(&self.tables, lake)
    }

    /// The clean-up of one of them.
    #[must_use]
    pub fn cleanup(&self, table: &str) -> LakeCleanup {
        let deep = self.mode == CleanupMode::Deep || self.include_orphan_scan;
        LakeCleanup { table: table.to_owned(), deep, dry_run: self.dry_run }
    }

    /// The answer, from what the clean-ups came to.
    #[must_use]
    pub fn document(&self, done: &[LakeCleaned]) -> Json {
        let objects = || done.iter().flat_map(|cleaned| &cleaned.objects);
        let failures = done.iter().flat_map(|cleaned| &cleaned.failures);
        json!({
            "dry_run": self.dry_run,
            "expired_snapshots": done.iter().map(|cleaned| cleaned.expired_snapshots.len()).sum::<usize>(),
            "deleted_files": objects().count(),
            "freed_bytes": objects().map(|object| object.bytes).sum::<u64>(),
            "files": objects()
                .map(|object| json!({ "path": object.path, "bytes": object.bytes, "reason": object.reason }))
                .collect::<Vec<Json>>(),
            "errors": failures
                .map(|failure| json!({ "file": failure.path, "error": failure.reason }))
                .collect::<Vec<Json>>(),
        })
    }
}

fn or_default<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body is not as expected: {error}")))
}

/// The lake tables that are meant: each that is named, and the change log of each.
fn chosen(named: &[String], lake: &LakeStatus) -> Result<Vec<String>, Error> {
    let tables = || lake.tables.iter().map(|table| &table.name);
    if let Some(unknown) = named.iter().find(|name| !tables().any(|table| table == *name)) {
        return Err(Error::new(ErrorCode::NotFound, format!("the lake has no table {unknown:?}")));
    }
    let is_chosen = |table: &&String| {
        let source = table.strip_suffix("__changes").unwrap_or(table);
        named.is_empty() || named.iter().any(|name| name == *table || name == source)
    };
    Ok(tables().filter(is_chosen).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::LakeTable;

    fn lake(tables: &[&str]) -> LakeStatus {
        let table = |name: &&str| LakeTable { name: (*name).to_owned(), ..LakeTable::default() };
        LakeStatus { tables: tables.iter().map(table).collect(), ..LakeStatus::default() }
    }

    #[test]
    fn a_table_is_meant_with_its_change_log() {
        let lake = lake(&["a", "a__changes", "b", "b__changes"]);
        let chosen = |body: &str| CompactBody::from_json(body.as_bytes()).unwrap().tables(&lake);
        assert_eq!(chosen(r#"{"tables": ["a"]}"#).unwrap(), ["a", "a__changes"]);
        assert_eq!(chosen(r#"{"tables": ["b__changes"]}"#).unwrap(), ["b__changes"]);
        assert_eq!(chosen(" \n").unwrap().len(), 4);
        assert_eq!(chosen(r#"{"tables": ["c"]}"#).unwrap_err().code(), ErrorCode::NotFound);
    }

    #[test]
    fn bodies_say_what_is_to_be_done() {
        let compact = CompactBody::from_json(br#"{"mode": "full", "partition": "2026-01-31"}"#).unwrap();
        let step = compact.step("a");
        assert_eq!((step.mode(), step.partition.as_str()), (CompactionMode::Full, "2026-01-31"));
        let cleanup = CleanupBody::from_json(br#"{"includeOrphanScan": true, "dryRun": true}"#).unwrap();
        assert_eq!(cleanup.cleanup("a"), LakeCleanup { table: "a".into(), deep: true, dry_run: true });
        assert_eq!(cleanup.document(&[])["dry_run"], true);
        for bad in [&b"7"[..], b"{\"mode\": \"some\"}", b"{\"table\": \"a\"}"] {
            assert_eq!(CleanupBody::from_json(bad).unwrap_err().code(), ErrorCode::InvalidRequest);
        }
    }
}
