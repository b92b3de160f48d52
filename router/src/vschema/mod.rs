//! The VSchema: which tables are sharded, by which column and vindex, and which shards there are.

mod alter;
mod read;
mod rename;
mod validate;

use std::collections::BTreeMap;

use dosql_actors::runtime::Settings;
use dosql_proto::{Error, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::vindex::Shard;

/// A VSchema document.
///
/// As JSON or TOML; every part may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct VSchema {
    /// The shards, in the order of their parts of the keyspace. Empty: `shard-0`, `shard-1`, ..., as many as SHARD_COUNT says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardEntry>,
    /// Vindexes that tables refer to by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub vindexes: BTreeMap<String, VindexEntry>,
    /// Tables by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TableEntry>,
    /// Sequences by name, which give tables' columns their values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sequences: BTreeMap<String, SequenceEntry>,
    /// Where unsharded tables live that name no shard. Default: the first shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_shard: Option<String>,
    /// The router's settings; those left out come from the environment.
    pub settings: RouterSettings,
}

/// A shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its name: `shard-0`.
    pub id: String,
    /// What is known about it.
    #[serde(default)]
    pub metadata: ShardMetadata,
    /// Whether it has no part of the keyspace, and holds only what names it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dedicated: bool,
}

/// What is known about a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShardMetadata {
    /// The region it is placed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Its share of a `consistent_hash` ring and of weighted reads. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
    /// Its replicas; where `REPLICAS_PER_SHARD` says more, there are more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaEntry>,
}

/// A replica of a shard: the first one listed of shard-0 is shard-0-r1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicaEntry {
    /// The region it is placed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Which reads it is for.
    pub role: Purpose,
    /// Its share of weighted reads. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
}

/// Which reads a replica is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// All but those that ask for analytics.
    #[default]
    General,
    /// Those that ask for analytics, and no others.
    Analytics,
}

/// How a table is spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum TableEntry {
    /// Each row on the shard its column's vindex says.
    Sharded {
        /// The sharding column.
        column: String,
        /// How its values map to shards.
        #[serde(default)]
        vindex: VindexChoice,
        /// The column that a sequence fills where an INSERT gives it no value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        auto_increment: Option<AutoIncrement>,
        /// Lookup vindexes of other columns.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lookups: Vec<ColumnVindex>,
    },
    /// All rows on one shard.
    Unsharded {
        /// Which; default: the default shard.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shard: Option<String>,
    },
    /// All rows on every shard.
    Reference {},
}

/// A column and its lookup vindex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColumnVindex {
    /// The column.
    pub column: String,
    /// A vindex of type `lookup` or `lookup_unique`.
    pub vindex: VindexChoice,
}

/// A column that a sequence fills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoIncrement {
    /// The column.
    pub column: String,
    /// The name of one under `sequences`.
    pub sequence: String,
}

/// A sequence: numbers that grow and are given out once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceEntry {
    /// Its first number.
    pub start: i64,
    /// How many numbers are written down as used before the first of them is. After a crash those that were not are left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub cache: u32,
}

impl Default for SequenceEntry {
    fn default() -> Self {
        Self { start: 1, cache: 1_000 }
    }
}

/// A table's vindex: one of the document's by its name, or one of its own.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum VindexChoice {
    /// The name of one under `vindexes`.
    Named(String),
    /// The vindex itself.
    Own(VindexEntry),
}

/// Says what is wrong with the vindex, which an untagged enum would not.
impl<'de> Deserialize<'de> for VindexChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) => Ok(Self::Named(name)),
            other => serde_json::from_value(other)
                .map(Self::Own)
                .map_err(|error| serde::de::Error::custom(format!("vindex: {error}"))),
        }
    }
}

impl VindexChoice {
    /// What statements and SHOW call it: its own name, its lookup table's, or its type's.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Own(own) => own.lookup().map_or(own.kind(), |lookup| lookup.table),
        }
    }
}

impl Default for VindexChoice {
    fn default() -> Self {
        Self::Own(VindexEntry::default())
    }
}

/// A vindex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Vitess's `lookup`: a table that names, for each value of a column, the sharding keys of the rows that have it.
    Lookup {
        /// The lookup table, which the vindex makes and keeps.
        table: String,
        /// Its column of values. Default: named as the table's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Its column of sharding keys. Default: `keyspace_id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// The table whose rows it looks up. Default: the one that has the vindex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
    /// Vitess's `lookup_unique`: the same for values that no two rows of all shards share, which it enforces.
    LookupUnique {
        /// The lookup table, which the vindex makes and keeps.
        table: String,
        /// Its column of values. Default: named as the table's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Its column of sharding keys. Default: `keyspace_id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// The table whose rows it looks up. Default: the one that has the vindex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
}

/// What a lookup vindex says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookupEntry<'a> {
    pub(crate) unique: bool,
    pub(crate) table: &'a str,
    pub(crate) from: Option<&'a str>,
    pub(crate) to: Option<&'a str>,
    pub(crate) owner: Option<&'a str>,
}

impl<'a> LookupEntry<'a> {
    /// The lookup table's column of sharding keys.
    pub(crate) fn to(&self) -> &'a str {
        self.to.unwrap_or("keyspace_id")
    }
}

/// A range of keys and its shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum KeyValue {
    /// An integer of 64 bits.
    Integer(i64),
    /// Any other number.
    Real(f64),
    /// A text.
    Text(String),
}

/// The router's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RouterSettings {
    /// Shards one statement asks at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_parallel_shards: Option<u32>,
    /// How long to wait for one shard, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub shard_timeout_ms: Option<u64>,
    /// Whether plans are cached. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_caching: Option<bool>,
}

fn default_virtual_nodes() -> u32 {
    128
}

impl Default for VindexEntry {
    fn default() -> Self {
        Self::Hash {}
    }
}

impl ShardEntry {
    fn weight(&self) -> u32 {
        self.metadata.weight.unwrap_or(1)
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
            Self::Lookup { .. } => "lookup",
            Self::LookupUnique { .. } => "lookup_unique",
        }
    }

    /// What it says where it is a lookup vindex.
    pub(crate) fn lookup(&self) -> Option<LookupEntry<'_>> {
        match self {
            Self::Lookup { table, from, to, owner } | Self::LookupUnique { table, from, to, owner } => {
                Some(LookupEntry {
                    unique: matches!(self, Self::LookupUnique { .. }),
                    table,
                    from: from.as_deref(),
                    to: to.as_deref(),
                    owner: owner.as_deref(),
                })
            }
            _ => None,
        }
    }

    /// The shards it names.
    fn named_shards(&self) -> impl Iterator<Item = &str> {
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

impl VSchema {
    /// The shards there are: those listed, or else `numbered`; then those that only ranges name, which hold nothing else.
    ///
    /// # Errors
    /// `INVALID_REQUEST` naming the path of a shard that is not there.
    pub(crate) fn resolve_shards(&self, numbered: impl Iterator<Item = String>) -> Result<Vec<Shard>, Error> {
        let mut shards: Vec<Shard> = if self.shards.is_empty() {
            numbered.map(|name| Shard { name, weight: 1, hashed: true, region: None }).collect()
        } else {
            self.shards
                .iter()
                .map(|entry| Shard {
                    name: entry.id.clone(),
                    weight: entry.weight(),
                    hashed: !entry.dedicated,
                    region: entry.metadata.region.clone(),
                })
                .collect()
        };
        let own = self.tables.values().filter_map(|entry| match entry {
            TableEntry::Sharded { vindex: VindexChoice::Own(vindex), .. } => Some(vindex),
            _ => None,
        });
        for id in self.vindexes.values().chain(own).flat_map(VindexEntry::named_shards) {
            if place(&shards, id).is_none() {
                shards.push(Shard { name: id.to_owned(), weight: 1, hashed: false, region: None });
            }
        }
        let unsharded = self.tables.iter().filter_map(|(name, entry)| match entry {
            TableEntry::Unsharded { shard: Some(id) } => Some((format!("tables.{name}.shard"), id)),
            _ => None,
        });
        let faults: Vec<String> = unsharded
            .chain(self.default_shard.iter().map(|id| ("defaultShard".to_owned(), id)))
            .filter(|(_, id)| place(&shards, id).is_none())
            .map(|(path, id)| format!("{path}: there is no shard {id:?}"))
            .collect();
        if faults.is_empty() { Ok(shards) } else { Err(Error::invalid(format!("VSchema: {}", faults.join("; ")))) }
    }

    /// Whether the document says which shards there are, and SHARD_COUNT does not.
    #[must_use]
    pub fn lists_shards(&self) -> bool {
        !self.shards.is_empty()
    }

    /// A table's entry; names compare without case.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        self.tables.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, entry)| entry)
    }

    /// A table's lookup vindexes, with their columns.
    pub(crate) fn lookups(&self, table: &str) -> Vec<(&ColumnVindex, LookupEntry<'_>)> {
        let Some(TableEntry::Sharded { lookups, .. }) = self.table(table) else { return Vec::new() };
        lookups.iter().filter_map(|entry| Some((entry, self.vindex(&entry.vindex)?.lookup()?))).collect()
    }

    /// The vindex that a table has chosen; `None` where the VSchema has none of that name.
    #[must_use]
    pub fn vindex<'a>(&'a self, choice: &'a VindexChoice) -> Option<&'a VindexEntry> {
        match choice {
            VindexChoice::Own(vindex) => Some(vindex),
            VindexChoice::Named(name) => {
                self.vindexes.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, vindex)| vindex)
            }
        }
    }
}

/// A shard's place in a list. Names of shards compare without case, since files are named after them.
pub(crate) fn place(shards: &[Shard], name: &str) -> Option<usize> {
    shards.iter().position(|shard| shard.name.eq_ignore_ascii_case(name))
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

/// The JSON Schema of a VSchema document, as text.
#[must_use]
pub fn json_schema() -> String {
    let mut text = format!("{:#}", schemars::schema_for!(VSchema).as_value());
    text.push('\n');
    text
}
