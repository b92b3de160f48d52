//! The VSchema: which tables are sharded, by which column and vindex, and which shards there are.

use std::collections::{BTreeMap, BTreeSet};

use dosql_proto::{Error, ErrorCode};
use serde::Deserialize;

/// The VSchema document, as JSON:
///
/// ```json
/// {
///   "shards": [{ "id": "shard-0", "metadata": { "region": "weur" } }],
///   "tables": {
///     "users": { "type": "sharded", "column": "tenant_id", "vindex": { "type": "hash" } },
///     "plans": { "type": "reference" },
///     "jobs": { "type": "unsharded", "shard": "shard-0" }
///   },
///   "defaultShard": "shard-0",
///   "settings": { "maxParallelShards": 8, "shardTimeoutMs": 10000, "enableCaching": true }
/// }
/// ```
///
/// Every part may be left out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct VSchema {
    /// The shards, in the order of their keyspace ranges. Empty: those the settings name.
    pub shards: Vec<ShardEntry>,
    /// Tables by name.
    pub tables: BTreeMap<String, TableEntry>,
    /// Where unsharded tables live that name no shard. Default: the first shard.
    pub default_shard: Option<String>,
    /// The router's settings; those left out come from the environment.
    pub settings: RouterSettings,
}

/// A shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its name: `shard-0`.
    pub id: String,
    /// What is known about it.
    #[serde(default)]
    pub metadata: ShardMetadata,
}

/// What is known about a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardMetadata {
    /// The region it is placed in.
    pub region: Option<String>,
}

/// How a table is spread.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum TableEntry {
    /// Each row on the shard its column's vindex says.
    Sharded {
        /// The sharding column.
        column: String,
        /// How its values map to shards.
        #[serde(default)]
        vindex: VindexEntry,
    },
    /// All rows on one shard.
    Unsharded {
        /// Which; default: the default shard.
        shard: Option<String>,
    },
    /// All rows on every shard.
    Reference {},
}

/// A vindex.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VindexEntry {
    /// `hash`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Default for VindexEntry {
    fn default() -> Self {
        Self { kind: "hash".to_owned() }
    }
}

/// The router's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RouterSettings {
    /// Shards one statement asks at a time; 1 to 4096.
    pub max_parallel_shards: Option<u32>,
    /// How long to wait for one shard, in milliseconds; 1 to 3,600,000.
    pub shard_timeout_ms: Option<u64>,
    /// Whether plans are cached. Default: yes.
    pub enable_caching: Option<bool>,
}

impl VSchema {
    /// Reads and validates a document; the empty text is the empty VSchema.
    ///
    /// # Errors
    /// `INVALID_REQUEST` naming the path of what is wrong; `UNSUPPORTED` naming a vindex that this version lacks.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let document: serde_json::Value =
            serde_json::from_str(text).map_err(|error| Error::invalid(format!("VSchema: not JSON: {error}")))?;
        let tables = document.get("tables").cloned();
        if let Some(serde_json::Value::Object(tables)) = tables {
            // One table at a time, so that an error can name it.
            for (name, entry) in tables {
                refuse_later_vindexes(&name, &entry)?;
                serde_json::from_value::<TableEntry>(entry)
                    .map_err(|error| Error::invalid(format!("VSchema: tables.{name}: {error}")))?;
            }
        }
        let vschema: Self =
            serde_json::from_value(document).map_err(|error| Error::invalid(format!("VSchema: {error}")))?;
        vschema.validate()?;
        Ok(vschema)
    }

    fn validate(&self) -> Result<(), Error> {
        let bad = |path: String, reason: &str| Err(Error::invalid(format!("VSchema: {path}: {reason}")));
        let mut ids = BTreeSet::new();
        for (index, shard) in self.shards.iter().enumerate() {
            if shard.id.is_empty() || shard.id.contains(['/', ':', ',']) {
                return bad(format!("shards[{index}].id"), "a shard's name is not empty and has no '/', ':' or ','");
            }
            if !ids.insert(shard.id.as_str()) {
                return bad(format!("shards[{index}].id"), &format!("{:?} is there twice", shard.id));
            }
        }
        let known = |id: &str| self.shards.is_empty() || ids.contains(id);
        if let Some(id) = &self.default_shard
            && !known(id)
        {
            return bad("defaultShard".to_owned(), &format!("there is no shard {id:?}"));
        }
        let mut names = BTreeSet::new();
        for (name, entry) in &self.tables {
            if name.to_ascii_lowercase().starts_with("_dosql_") || name.is_empty() {
                return bad(format!("tables.{name}"), "the name is reserved");
            }
            if !names.insert(name.to_ascii_lowercase()) {
                return bad(format!("tables.{name}"), "the table is there twice (names compare without case)");
            }
            match entry {
                TableEntry::Sharded { column, .. } if column.is_empty() => {
                    return bad(format!("tables.{name}.column"), "the name is empty");
                }
                TableEntry::Unsharded { shard: Some(id) } if !known(id) => {
                    return bad(format!("tables.{name}.shard"), &format!("there is no shard {id:?}"));
                }
                _ => {}
            }
        }
        if self.settings.max_parallel_shards.is_some_and(|shards| !(1..=4096).contains(&shards)) {
            return bad("settings.maxParallelShards".to_owned(), "it must be 1 to 4096");
        }
        if self.settings.shard_timeout_ms.is_some_and(|timeout| !(1..=3_600_000).contains(&timeout)) {
            return bad("settings.shardTimeoutMs".to_owned(), "it must be 1 to 3600000");
        }
        Ok(())
    }

    /// The shards' names, in the order of their keyspace ranges.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where the VSchema names a shard that is not among those the system runs.
    pub fn shard_names(&self, running: Vec<String>) -> Result<Vec<String>, Error> {
        let unknown = |path: String, id: &str| {
            Err(Error::invalid(format!(
                "VSchema: {path}: no shard {id:?} is running; SHARD_COUNT={} names shard-0 to shard-{}",
                running.len(),
                running.len().saturating_sub(1)
            )))
        };
        for (index, shard) in self.shards.iter().enumerate() {
            if !running.contains(&shard.id) {
                return unknown(format!("shards[{index}].id"), &shard.id);
            }
        }
        if let Some(id) = self.default_shard.as_ref().filter(|id| !running.contains(id)) {
            return unknown("defaultShard".to_owned(), id);
        }
        for (name, entry) in &self.tables {
            if let TableEntry::Unsharded { shard: Some(id) } = entry
                && !running.contains(id)
            {
                return unknown(format!("tables.{name}.shard"), id);
            }
        }
        Ok(if self.shards.is_empty() { running } else { self.shards.iter().map(|shard| shard.id.clone()).collect() })
    }

    /// A table's entry; names compare without case.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        self.tables.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, entry)| entry)
    }
}

/// Vindexes other than `hash` carry parameters of their own, so they are looked for before the document is read strictly.
fn refuse_later_vindexes(table: &str, entry: &serde_json::Value) -> Result<(), Error> {
    match entry.pointer("/vindex/type").and_then(serde_json::Value::as_str) {
        None | Some("hash") => Ok(()),
        Some(kind) => Err(Error::new(
            ErrorCode::Unsupported,
            format!("VSchema: tables.{table}.vindex: the vindex {kind:?} is not supported; use \"hash\""),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_document_is_read() {
        let text = r#"{
            "shards": [
                { "id": "shard-0", "metadata": { "region": "wnam" } },
                { "id": "shard-1", "metadata": { "region": "weur" } }
            ],
            "tables": {
                "users": { "type": "sharded", "column": "tenant_id", "vindex": { "type": "hash" } },
                "countries": { "type": "reference" },
                "jobs": { "type": "unsharded", "shard": "shard-1" }
            },
            "defaultShard": "shard-0",
            "settings": { "maxParallelShards": 4, "shardTimeoutMs": 500, "enableCaching": false }
        }"#;
        let vschema = VSchema::parse(text).unwrap();
        assert_eq!(vschema.shards[1].metadata.region.as_deref(), Some("weur"));
        assert_eq!(
            vschema.table("USERS"),
            Some(&TableEntry::Sharded { column: "tenant_id".to_owned(), vindex: VindexEntry::default() })
        );
        assert_eq!(vschema.settings.max_parallel_shards, Some(4));
        let running = vec!["shard-0".to_owned(), "shard-1".to_owned()];
        assert_eq!(vschema.shard_names(running.clone()).unwrap(), running);
        assert!(vschema.shard_names(vec!["shard-0".to_owned()]).unwrap_err().message.contains("shards[1].id"));
    }

    #[test]
    fn errors_name_the_path() {
        for (text, expected) in [
            ("{", "not JSON"),
            (r#"{"shards":[{"id":"a"},{"id":"a"}]}"#, "shards[1].id"),
            (r#"{"shards":[{"id":"a"}],"defaultShard":"b"}"#, "defaultShard"),
            (r#"{"tables":{"t":{"type":"sharded"}}}"#, "tables.t"),
            (r#"{"tables":{"t":{"type":"split"}}}"#, "tables.t"),
            (r#"{"tables":{"t":{"type":"unsharded","shard":"x"}},"shards":[{"id":"a"}]}"#, "tables.t.shard"),
            (r#"{"tables":{"t":{"type":"reference"},"T":{"type":"reference"}}}"#, "twice"),
            (r#"{"tabels":{}}"#, "tabels"),
            (r#"{"settings":{"maxParallelShards":0}}"#, "settings.maxParallelShards"),
        ] {
            let error = VSchema::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest, "{text}");
            assert!(error.message.contains(expected), "{text}: {}", error.message);
        }
    }

    #[test]
    fn later_vindexes_are_named() {
        let text = r#"{"tables":{"s":{"type":"sharded","column":"a","vindex":{"type":"range","ranges":[]}}}}"#;
        let error = VSchema::parse(text).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unsupported);
        assert!(error.message.contains("tables.s.vindex") && error.message.contains("range"), "{}", error.message);
    }
}
