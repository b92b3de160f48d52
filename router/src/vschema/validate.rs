//! What must hold of a VSchema as a whole.

use std::collections::BTreeSet;

use super::{ColumnVindex, TableEntry, VSchema, VindexChoice, VindexEntry};
use crate::affinity::Collation;
use crate::catalog::OWNER_ROW;
use crate::vindex::{Bounds, MAX_POINTS, RangeFault, Ranges};

impl VSchema {
    /// Adds everything that is wrong to `faults`, with its path.
    pub(super) fn validate(&self, faults: &mut Vec<String>) {
        self.validate_shards(faults);
        let ids: BTreeSet<String> = self.shards.iter().map(|shard| shard.id.to_ascii_lowercase()).collect();
        // Names of numbered shards are checked when their number is known.
        let known = |id: &str| self.shards.is_empty() || ids.contains(&id.to_ascii_lowercase());
        if let Some(id) = self.default_shard.as_ref().filter(|id| !known(id)) {
            faults.push(format!("defaultShard: there is no shard {id:?}"));
        }
        let mut names = BTreeSet::new();
        for (name, vindex) in &self.vindexes {
            if !names.insert(name.to_ascii_lowercase()) {
                faults.push(format!("vindexes.{name}: the vindex is there twice (names compare without case)"));
            }
            self.validate_vindex(&format!("vindexes.{name}"), vindex, faults);
        }
        names.clear();
        for (name, sequence) in &self.sequences {
            if !names.insert(name.to_ascii_lowercase()) {
                faults.push(format!("sequences.{name}: the sequence is there twice (names compare without case)"));
            }
            if !(1..=1_000_000).contains(&sequence.cache) {
                faults.push(format!("sequences.{name}.cache: it must be 1 to 1000000"));
            }
        }
        names.clear();
        for (name, entry) in &self.tables {
            if name.to_ascii_lowercase().starts_with("_dosql_") || name.is_empty() {
                faults.push(format!("tables.{name}: the name is reserved"));
            }
            if !names.insert(name.to_ascii_lowercase()) {
                faults.push(format!("tables.{name}: the table is there twice (names compare without case)"));
            }
            match entry {
                TableEntry::Sharded { column, vindex, auto_increment, lookups } => {
                    if let Some(increment) = auto_increment
                        && self.sequence_named(&increment.sequence).is_none()
                    {
                        let sequence = &increment.sequence;
                        faults.push(format!("tables.{name}.autoIncrement.sequence: there is no sequence {sequence:?}"));
                    }
                    if column.is_empty() {
                        faults.push(format!("tables.{name}.column: the name is empty"));
                    }
                    match (vindex, self.vindex(vindex)) {
                        (VindexChoice::Own(vindex), _) => {
                            self.validate_vindex(&format!("tables.{name}.vindex"), vindex, faults);
                        }
                        (VindexChoice::Named(vindex), None) => {
                            faults.push(format!("tables.{name}.vindex: there is no vindex {vindex:?}"));
                        }
                        _ => {}
                    }
                    if let Some(vindex) = self.vindex(vindex).filter(|vindex| vindex.lookup().is_some()) {
                        faults.push(format!(
                            "tables.{name}.vindex: a table cannot be sharded by a {} vindex; it belongs to `lookups`",
                            vindex.kind()
                        ));
                    }
                    self.validate_lookups(name, column, lookups, faults);
                }
                TableEntry::Unsharded { shard: Some(id) } if !known(id) => {
                    faults.push(format!("tables.{name}.shard: there is no shard {id:?}"));
                }
                TableEntry::Unsharded { .. } | TableEntry::Reference {} => {}
            }
        }
        let mut lookup_tables = BTreeSet::new();
        for (name, lookup) in
            self.tables.keys().flat_map(|name| self.lookups(name).into_iter().map(move |(_, lookup)| (name, lookup)))
        {
            if !lookup_tables.insert(lookup.table.to_ascii_lowercase()) {
                faults.push(format!("tables.{name}.lookups: another column has the lookup table {:?}", lookup.table));
            }
        }
        if self.settings.max_parallel_shards.is_some_and(|shards| !(1..=4096).contains(&shards)) {
            faults.push("settings.maxParallelShards: it must be 1 to 4096".to_owned());
        }
        if self.settings.shard_timeout_ms.is_some_and(|timeout| !(1..=3_600_000).contains(&timeout)) {
            faults.push("settings.shardTimeoutMs: it must be 1 to 3600000".to_owned());
        }
    }

    fn validate_lookups(&self, table: &str, key: &str, lookups: &[ColumnVindex], faults: &mut Vec<String>) {
        let mut columns = BTreeSet::new();
        for (index, ColumnVindex { column, vindex }) in lookups.iter().enumerate() {
            let path = format!("tables.{table}.lookups[{index}]");
            if column.is_empty() {
                faults.push(format!("{path}.column: the name is empty"));
            }
            if column.eq_ignore_ascii_case(key) {
                faults.push(format!("{path}.column: the table is sharded by {column:?}, which needs no lookup"));
            }
            if !columns.insert(column.to_ascii_lowercase()) {
                faults.push(format!("{path}.column: {column:?} has a lookup vindex already"));
            }
            let Some(entry) = self.vindex(vindex) else {
                if let VindexChoice::Named(vindex) = vindex {
                    faults.push(format!("{path}.vindex: there is no vindex {vindex:?}"));
                }
                continue;
            };
            if let VindexChoice::Own(vindex) = vindex {
                self.validate_vindex(&format!("{path}.vindex"), vindex, faults);
            }
            let Some(lookup) = entry.lookup() else {
                faults.push(format!("{path}.vindex: a {} vindex looks nothing up", entry.kind()));
                continue;
            };
            if let Some(owner) = lookup.owner.filter(|owner| !owner.eq_ignore_ascii_case(table)) {
                faults.push(format!("{path}.vindex: its owner is {owner:?}; a table keeps its own lookups alone"));
            }
            let from = lookup.from.unwrap_or(column);
            let names = [from, lookup.to(), OWNER_ROW];
            if (0..3).any(|one| (0..one).any(|other| names[one].eq_ignore_ascii_case(names[other]))) {
                faults.push(format!("{path}.vindex: {from:?}, {:?} and {OWNER_ROW:?} must differ", lookup.to()));
            }
            match self.table(lookup.table) {
                None => {}
                Some(TableEntry::Sharded { column, auto_increment: None, lookups, .. })
                    if lookups.is_empty() && column.eq_ignore_ascii_case(from) => {}
                Some(_) => faults.push(format!(
                    "tables.{}: the lookup table of {table}.{column} can only be sharded by {from:?}",
                    lookup.table
                )),
            }
        }
    }

    fn validate_shards(&self, faults: &mut Vec<String>) {
        let mut ids = BTreeSet::new();
        for (index, shard) in self.shards.iter().enumerate() {
            if !usable_name(&shard.id) {
                faults.push(format!("shards[{index}].id: {:?} is not a shard's name: {NAMES}", shard.id));
            }
            if shard.metadata.weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
                faults.push(format!("shards[{index}].metadata.weight: it must be 1 to 1000"));
            }
            if shard.id.rsplit_once("-r").is_some_and(|(_, number)| number.parse::<u32>().is_ok()) {
                faults.push(format!("shards[{index}].id: names that end in -r and a number are those of replicas"));
            }
            for (at, replica) in shard.metadata.replicas.iter().enumerate() {
                if replica.weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
                    faults.push(format!("shards[{index}].metadata.replicas[{at}].weight: it must be 1 to 1000"));
                }
            }
            if shard.metadata.replicas.len() > 16 {
                faults.push(format!("shards[{index}].metadata.replicas: a shard has at most 16 replicas"));
            }
            if !ids.insert(shard.id.to_ascii_lowercase()) {
                faults.push(format!("shards[{index}].id: {:?} is there twice", shard.id));
            }
        }
        if !self.shards.is_empty() && self.shards.iter().all(|shard| shard.dedicated) {
            faults.push("shards: all are dedicated, so that none has the keyspace".to_owned());
        }
    }

    fn validate_vindex(&self, path: &str, vindex: &VindexEntry, faults: &mut Vec<String>) {
        match vindex {
            VindexEntry::Hash {} | VindexEntry::Xxhash {} => {}
            VindexEntry::Lookup { .. } | VindexEntry::LookupUnique { .. } => {
                let Some(lookup) = vindex.lookup() else { return };
                if lookup.table.is_empty() || lookup.table.to_ascii_lowercase().starts_with("_dosql_") {
                    faults.push(format!("{path}: {:?} cannot be the lookup table's name", lookup.table));
                }
                if lookup.from == Some("") || lookup.to().is_empty() {
                    faults.push(format!("{path}: the name of a column is empty"));
                }
            }
            VindexEntry::ConsistentHash { virtual_nodes } => {
                let weights: u64 = self.shards.iter().map(|shard| u64::from(shard.weight())).sum();
                if *virtual_nodes == 0 || u64::from(*virtual_nodes) * weights.max(1) > MAX_POINTS {
                    faults.push(format!(
                        "{path}: virtualNodes is {virtual_nodes}: it must be at least 1, and with the shards' weights at most {MAX_POINTS}"
                    ));
                }
            }
            VindexEntry::Range { ranges } => {
                for id in vindex.named_shards().filter(|id| !usable_name(id)) {
                    faults.push(format!("{path}: {id:?} is not a shard's name: {NAMES}"));
                }
                let bounds =
                    ranges.iter().map(|range| Bounds { min: range.min(), max: range.max(), shard: 0 }).collect();
                if let Err(found) = Ranges::new(bounds, Collation::Binary) {
                    let found: Vec<String> = found.iter().map(RangeFault::to_string).collect();
                    faults.push(format!("{path}: {}", found.join(", ")));
                }
            }
        }
    }
}

const NAMES: &str = "it has 1 to 64 letters, digits, '-', '_' and '.', begins with a letter or digit and does not end like a replica's (-r1)";

/// Whether files and addresses can be named so, and no replica is.
fn usable_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let replica = name
        .rsplit_once("-r")
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && !replica
}
