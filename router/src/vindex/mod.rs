//! Vindexes: which shard a key's row is on.

mod hash;
mod range;
mod ring;

use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, Value};

pub use hash::{HashVindex, shard_of, xxhash_id};
pub(crate) use range::{Bounds, RangeFault, Ranges, text as key_text};
pub(crate) use ring::MAX_POINTS;
use ring::Ring;

use crate::affinity::{Affinity, Collation, Converter};
use crate::vschema::{VindexEntry, place};

/// A shard as vindexes see it; its place in the list is its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) name: String,
    /// Its share of the points of a `consistent_hash` ring.
    pub(crate) weight: u32,
    /// Whether it has a part of the keyspace that hashes are spread over. One that has none holds what names it.
    pub(crate) hashed: bool,
    /// Where it is placed.
    pub(crate) region: Option<String>,
}

/// A table's vindex: which shard a value of its sharding column belongs to.
#[derive(Debug)]
pub(crate) struct Vindex {
    definition: VindexEntry,
    column: KeyColumn,
    map: Map,
    /// The shards that may hold rows, each once, in order.
    shards: Rc<[usize]>,
    covers_all: bool,
    /// What of the shards decides where keys go: their names, in order, and on a ring their points. Ranges name shards themselves.
    layout: Vec<String>,
}

/// How a sharding column stores and compares its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyColumn {
    pub(crate) affinity: Affinity,
    pub(crate) collation: Collation,
}

#[derive(Debug)]
enum Map {
    Hash(HashVindex),
    XxHash,
    Ring(Ring),
    Ranges(Ranges),
}

/// Two are equal where they put every value on the same shard.
impl PartialEq for Vindex {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || self.definition == other.definition
                && self.column == other.column
                && self.shards == other.shards
                && self.layout == other.layout
    }
}

impl Vindex {
    /// The vindex of a column.
    ///
    /// # Errors
    /// `INVALID_REQUEST` naming gaps and overlaps of ranges as the column orders their bounds, or a shard that is not there.
    pub(crate) fn new(
        definition: VindexEntry,
        column: KeyColumn,
        all: &[Shard],
        converter: &Converter,
    ) -> Result<Self, Error> {
        let hashed: Vec<usize> = (0..all.len()).filter(|index| all[*index].hashed).collect();
        let (map, shards) = match &definition {
            VindexEntry::Hash {} => (Map::Hash(HashVindex::default()), hashed),
            VindexEntry::Xxhash {} => (Map::XxHash, hashed),
            VindexEntry::ConsistentHash { virtual_nodes } => {
                let nodes = hashed.iter().map(|index| {
                    let shard = &all[*index];
                    (shard.name.as_str(), *index, *virtual_nodes as usize * shard.weight as usize)
                });
                (Map::Ring(Ring::new(nodes)), hashed)
            }
            VindexEntry::Lookup { .. } | VindexEntry::LookupUnique { .. } => {
                return Err(Error::invalid("a lookup vindex does not say where rows are"));
            }
            VindexEntry::Range { ranges } => {
                let bound = |value: &Option<Value>| -> Result<Option<Value>, Error> {
                    match value {
                        Some(value) => converter.store(value, column.affinity).map(|stored| Some(stored.into_owned())),
                        None => Ok(None),
                    }
                };
                let mut bounds = Vec::new();
                for range in ranges {
                    let shard = place(all, &range.shard)
                        .ok_or_else(|| Error::invalid(format!("the vindex: there is no shard {:?}", range.shard)))?;
                    bounds.push(Bounds { min: bound(&range.min())?, max: bound(&range.max())?, shard });
                }
                let ranges = Ranges::new(bounds, column.collation).map_err(|faults| {
                    let faults: Vec<String> = faults.iter().map(RangeFault::to_string).collect();
                    Error::invalid(format!("the vindex, by the order of its column: {}", faults.join("; ")))
                })?;
                let mut shards: Vec<usize> = ranges.shards().collect();
                shards.sort_unstable();
                shards.dedup();
                (Map::Ranges(ranges), shards)
            }
        };
        let covers_all = shards.len() == all.len();
        let layout = match &definition {
            VindexEntry::Range { .. } | VindexEntry::Lookup { .. } | VindexEntry::LookupUnique { .. } => Vec::new(),
            VindexEntry::Hash {} | VindexEntry::Xxhash {} => {
                shards.iter().map(|index| all[*index].name.clone()).collect()
            }
            VindexEntry::ConsistentHash { .. } => {
                shards.iter().map(|index| format!("{} x {}", all[*index].name, all[*index].weight)).collect()
            }
        };
        Ok(Self { definition, column, map, shards: shards.into(), covers_all, layout })
    }

    /// As the VSchema defines it.
    pub(crate) fn definition(&self) -> &VindexEntry {
        &self.definition
    }

    /// What of the shards decides where keys go, as it is kept beside the definition.
    pub(crate) fn layout(&self) -> &[String] {
        &self.layout
    }

    /// Whether every key that `other` has a shard for is on the same one.
    pub(crate) fn extends(&self, other: &Self) -> bool {
        match (&self.map, &other.map) {
            (Map::Ranges(ranges), Map::Ranges(others)) => self.column == other.column && ranges.extends(others),
            _ => self == other,
        }
    }

    /// The shards that may hold rows.
    pub(crate) fn shards(&self) -> &Rc<[usize]> {
        &self.shards
    }

    /// Whether every shard may hold rows.
    pub(crate) fn covers_all(&self) -> bool {
        self.covers_all
    }

    /// Whether predicates on ranges of the column leave shards out.
    pub(crate) fn is_ordered(&self) -> bool {
        matches!(self.map, Map::Ranges(_))
    }

    /// The shard of a value before its column's affinity is applied; `None` where it has none.
    ///
    /// # Errors
    /// `STORAGE` where SQLite fails to convert it.
    pub(crate) fn shard(&self, value: &Value, converter: &Converter) -> Result<Option<usize>, Error> {
        let stored = converter.store(value, self.column.affinity)?;
        let collation = self.column.collation;
        let even = |keyspace_id: u64| self.shards.get(shard_of(keyspace_id, self.shards.len())).copied();
        Ok(match &self.map {
            Map::Hash(hash) => even(hash.keyspace_id(&stored, collation)),
            Map::XxHash => even(xxhash_id(&stored, collation)),
            Map::Ring(ring) => ring.shard(xxhash_id(&stored, collation)),
            Map::Ranges(ranges) => ranges.shard(&stored),
        })
    }

    /// The shards of the values between two bounds; a bound's flag says whether it is included.
    ///
    /// # Errors
    /// `STORAGE` where SQLite fails to convert a bound.
    pub(crate) fn between(
        &self,
        lower: Option<(&Value, bool)>,
        upper: Option<(&Value, bool)>,
        converter: &Converter,
    ) -> Result<Vec<usize>, Error> {
        let Map::Ranges(ranges) = &self.map else { return Ok(self.shards.to_vec()) };
        let store = |bound: Option<(&Value, bool)>| -> Result<Option<(Value, bool)>, Error> {
            let Some((value, included)) = bound else { return Ok(None) };
            Ok(Some((converter.store(value, self.column.affinity)?.into_owned(), included)))
        };
        let (lower, upper) = (store(lower)?, store(upper)?);
        Ok(ranges.between(
            lower.as_ref().map(|(value, included)| (value, *included)),
            upper.as_ref().map(|(value, included)| (value, *included)),
        ))
    }

    /// Says that a value has no shard.
    pub(crate) fn outside(&self, table: &str, column: &str, value: &Value) -> Error {
        let extent = match &self.map {
            Map::Ranges(ranges) => ranges.extent(),
            _ => "no key: it has no shard".to_owned(),
        };
        let message = format!(
            "{table}.{column} = {} is in none of the ranges that the table is sharded by; they hold {extent}",
            key_text(value)
        );
        Error::new(ErrorCode::Constraint, message)
    }
}
