//! The VSchema: which tables are sharded, by which column and vindex, and which shards there are.

use std::collections::{BTreeMap, BTreeSet};

use dosql_actors::runtime::Settings;
use dosql_proto::{Error, Value};
use serde::{Deserialize, Serialize};

use crate::affinity::Collation;
use crate::vindex::{Bounds, MAX_POINTS, RangeFault, Ranges, Shard};

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
    /// Its share of a `consistent_hash` ring and of weighted reads, 1 to 1000. Default: 1.
    pub weight: Option<u32>,
}

impl ShardEntry {
    fn weight(&self) -> u32 {
        self.metadata.weight.unwrap_or(1)
    }
}

/// How a table is spread.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VindexEntry {
    /// Vitess's `hash`: integers by DES under the null key, anything else by xxHash64.
    Hash {},
    /// Vitess's `xxhash`: xxHash64 of any value.
    Xxhash {},
    /// A ring on which each shard has points by its weight.
    ConsistentHash {
        /// Points of a shard of weight 1.
        #[serde(default = "default_virtual_nodes")]
        virtual_nodes: u32,
    },
    /// Ranges of keys.
    Range {
        /// The ranges, without gap or overlap; in any order.
        ranges: Vec<RangeEntry>,
    },
}

/// A range of keys and its shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeEntry {
    /// The shard that holds these keys.
    pub shard: String,
    /// The lowest key. Left out: no lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<KeyValue>,
    /// The lowest key after the range. Left out: no upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<KeyValue>,
}

/// A bound of a range: a number, or a text such as a date.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyValue {
    /// An integer of 64 bits.
    Integer(i64),
    /// Any other number.
    Real(f64),
    /// A text.
    Text(String),
}

fn default_virtual_nodes() -> u32 {
    128
}

impl Default for VindexEntry {
    fn default() -> Self {
        Self::Hash {}
    }
}

impl VindexEntry {
    /// Its type's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hash {} => "hash",
            Self::Xxhash {} => "xxhash",
            Self::ConsistentHash { .. } => "consistent_hash",
            Self::Range { .. } => "range",
        }
    }

    /// The shards it names.
    pub fn named_shards(&self) -> impl Iterator<Item = &str> {
        let ranges = match self {
            Self::Range { ranges } => ranges.as_slice(),
            _ => &[],
        };
        ranges.iter().map(|range| range.shard.as_str())
    }
}

impl RangeEntry {
    pub(crate) fn min(&self) -> Option<Value> {
        self.min.as_ref().map(KeyValue::value)
    }

    pub(crate) fn max(&self) -> Option<Value> {
        self.max.as_ref().map(KeyValue::value)
    }
}

impl KeyValue {
    fn value(&self) -> Value {
        match self {
            Self::Integer(integer) => (*integer).into(),
            Self::Real(real) => (*real).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

/// Settings with the shards that their VSchema names. A host calls it before it starts actors; a VSchema that is not usable is
/// left for the router to refuse.
#[must_use]
pub fn with_shards(mut settings: Settings) -> Settings {
    let resolved =
        VSchema::parse(&settings.vschema).and_then(|vschema| vschema.resolve_shards(settings.numbered_shards()));
    if let Ok(shards) = resolved {
        settings.shards = shards.into_iter().map(|shard| shard.name).collect();
    }
    settings
}

const NAMES: &str = "a shard's name has 1 to 64 letters, digits, '-', '_' and '.', and begins with a letter or digit";

/// Whether files and addresses can be named so.
fn usable_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// A name's place in a list; names of shards compare without case, since files are named after them.
pub(crate) fn named<'a>(mut names: impl Iterator<Item = &'a str>, name: &str) -> Option<usize> {
    names.position(|known| known.eq_ignore_ascii_case(name))
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
    /// `INVALID_REQUEST` naming the path of what is wrong.
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
            if !usable_name(&shard.id) {
                return bad(format!("shards[{index}].id"), NAMES);
            }
            if shard.metadata.weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
                return bad(format!("shards[{index}].metadata.weight"), "it must be 1 to 1000");
            }
            if !ids.insert(shard.id.to_ascii_lowercase()) {
                return bad(format!("shards[{index}].id"), &format!("{:?} is there twice", shard.id));
            }
        }
        let known = |id: &str| self.shards.is_empty() || ids.contains(&id.to_ascii_lowercase());
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
                TableEntry::Sharded { vindex, .. } => self.validate_vindex(&format!("tables.{name}.vindex"), vindex)?,
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

    fn validate_vindex(&self, path: &str, vindex: &VindexEntry) -> Result<(), Error> {
        let bad = |reason: String| Err(Error::invalid(format!("VSchema: {path}: {reason}")));
        match vindex {
            VindexEntry::Hash {} | VindexEntry::Xxhash {} => Ok(()),
            VindexEntry::ConsistentHash { virtual_nodes } => {
                let weights: u64 = self.shards.iter().map(|shard| u64::from(shard.weight())).sum();
                let points = u64::from(*virtual_nodes) * weights.max(1);
                if *virtual_nodes == 0 || points > MAX_POINTS {
                    return bad(format!(
                        "virtualNodes is {virtual_nodes}: it must be at least 1, and with the shards' weights at most {MAX_POINTS}"
                    ));
                }
                Ok(())
            }
            VindexEntry::Range { ranges } => {
                let bounds =
                    ranges.iter().map(|range| Bounds { min: range.min(), max: range.max(), shard: 0 }).collect();
                match Ranges::new(bounds, Collation::Binary) {
                    Ok(_) => Ok(()),
                    Err(faults) => bad(faults.iter().map(RangeFault::to_string).collect::<Vec<_>>().join("; ")),
                }
            }
        }
    }

    /// The shards there are: those listed, or else `running`; then those that only ranges name, which hold nothing else.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where an unsharded table or the default is on none of them.
    pub(crate) fn resolve_shards(&self, running: impl Iterator<Item = String>) -> Result<Vec<Shard>, Error> {
        let mut shards: Vec<Shard> = if self.shards.is_empty() {
            running.map(|name| Shard { name, weight: 1, hashed: true }).collect()
        } else {
            self.shards
                .iter()
                .map(|entry| Shard { name: entry.id.clone(), weight: entry.weight(), hashed: true })
                .collect()
        };
        let known = |shards: &[Shard], id: &str| named(shards.iter().map(|shard| shard.name.as_str()), id).is_some();
        let unknown = |path: String, id: &str| {
            Err(Error::invalid(format!("VSchema: {path}: there is no shard {id:?} among {}", shards.len())))
        };
        if let Some(id) = self.default_shard.as_ref().filter(|id| !known(&shards, id)) {
            return unknown("defaultShard".to_owned(), id);
        }
        for (name, entry) in &self.tables {
            if let TableEntry::Unsharded { shard: Some(id) } = entry
                && !known(&shards, id)
            {
                return unknown(format!("tables.{name}.shard"), id);
            }
        }
        for entry in self.tables.values() {
            let TableEntry::Sharded { vindex, .. } = entry else { continue };
            for id in vindex.named_shards() {
                if !known(&shards, id) {
                    shards.push(Shard { name: id.to_owned(), weight: 1, hashed: false });
                }
            }
        }
        Ok(shards)
    }

    /// A table's entry; names compare without case.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        self.tables.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::ErrorCode;

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
        let shards = vschema.resolve_shards(std::iter::empty()).unwrap();
        assert_eq!(shards.iter().map(|shard| shard.name.as_str()).collect::<Vec<_>>(), ["shard-0", "shard-1"]);
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
            (
                r#"{"tables":{"t":{"type":"sharded","column":"k","vindex":{"type":"range","ranges":[
                    {"shard":"a","max":5},{"shard":"b","min":6}]}}}}"#,
                "tables.t.vindex: there is a gap between ranges[0] and ranges[1], from 5 to 6",
            ),
            (r#"{"tables":{"t":{"type":"sharded","column":"k","vindex":{"type":"lookup"}}}}"#, "tables.t"),
        ] {
            let error = VSchema::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest, "{text}");
            assert!(error.message.contains(expected), "{text}: {}", error.message);
        }
    }

    #[test]
    fn shards_that_only_ranges_name_come_last() {
        let text = r#"{"defaultShard": "shard-1", "tables": {"e": {"type": "sharded", "column": "at", "vindex":
            {"type": "range", "ranges": [{"shard": "old", "max": 10}, {"shard": "shard-1", "min": 10}]}}}}"#;
        let vschema = VSchema::parse(text).unwrap();
        let shards = vschema.resolve_shards((0..2).map(|index| format!("shard-{index}"))).unwrap();
        let seen: Vec<_> = shards.iter().map(|shard| (shard.name.as_str(), shard.hashed)).collect();
        assert_eq!(seen, [("shard-0", true), ("shard-1", true), ("old", false)]);
        assert!(vschema.resolve_shards(std::iter::once("a".to_owned())).unwrap_err().message.contains("defaultShard"));
    }
}
