//! What a changed VSchema means for the tables there are: which change their place, what the shards are told, and what is refused
//! because rows would move.

use std::collections::BTreeMap;

use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};

use super::change::{Change, Outcome, Part};
use super::place::Place;
use super::table::{Placement, Shape};
use super::{Catalog, unsupported, versions};
use crate::sql_text::{has_name, quote};
use crate::vschema::{TableEntry, VSchema, VindexEntry};

impl Catalog {
    /// What it takes to put a VSchema in force.
    ///
    /// # Errors
    /// `UNSUPPORTED` naming a constraint that could not be enforced; what is wrong with a vindex for its column.
    pub(crate) fn rehearse_vschema(&self, after: VSchema, document: Option<&str>) -> Result<Outcome, Error> {
        let before = &self.version.vschema;
        if after == *before && document.is_none() {
            return Ok(Outcome::Nothing);
        }
        let shards = after
            .resolve_shards(self.shard_list.iter().filter(|shard| shard.hashed).map(|shard| shard.name.clone()))?;
        if let Some(unknown) = shards.iter().find(|shard| self.shard_named(&shard.name).is_none()) {
            return Err(Error::invalid(format!(
                "VSchema: there is no shard {:?}; name it in the document that the server is started with",
                unknown.name
            )));
        }
        let shapes: BTreeMap<String, Shape> =
            self.tables.iter().map(|(name, table)| (name.clone(), table.shape.clone())).collect();
        let mut places = BTreeMap::new();
        let mut moving = Vec::new();
        for (name, table) in &self.tables {
            let old = Place { placement: table.placement.clone(), vindex: table.vindex.clone() };
            let changed = entry_of(before, name) != entry_of(&after, name) && self.lookup_of(name).is_none();
            let new = match after.table(name) {
                Some(entry) if changed => self.place_by(&table.shape, entry, &after)?,
                _ => old.clone(),
            };
            if let Some(TableEntry::Sharded { auto_increment: Some(increment), .. }) = after.table(name)
                && table.shape.column(&increment.column).is_none()
            {
                let message =
                    format!("no such column: {}.{}, which a sequence fills", table.shape.name, increment.column);
                return Err(Error::new(ErrorCode::UnknownColumn, message));
            }
            if !self.stays(&old, &new) {
                moving.push(name.clone());
            }
            places.insert(name.clone(), new);
        }
        let (mut made, mut gone) = (Vec::new(), Vec::new());
        let (mut also, mut filling) = (Vec::new(), Vec::new());
        for (name, table) in &self.tables {
            let now = Self::definitions(&after, &table.shape)?;
            for lookup in &table.lookups {
                if !now.contains(&lookup.definition) {
                    places.remove(&lookup.definition.table.to_ascii_lowercase());
                    let drop = lookup.definition.drop();
                    gone.extend(self.everywhere(std::slice::from_ref(&drop), &[]));
                    also.push(drop);
                }
            }
            for lookup in now.iter().filter(|lookup| !table.lookups.iter().any(|known| known.definition == **lookup)) {
                self.check_new(lookup)?;
                places.insert(lookup.table.to_ascii_lowercase(), self.lookup_place(lookup, &after)?);
                made.extend(self.everywhere(&lookup.create(), &[lookup.drop()]));
                also.extend(lookup.create());
                if !moving.contains(name) {
                    filling.push(lookup.table.clone());
                }
            }
        }
        let unfilled =
            filling.iter().map(|name| name.to_ascii_lowercase()).chain(self.filling.iter().cloned()).collect();
        for shape in shapes.values().filter(|shape| places.contains_key(&shape.name.to_ascii_lowercase())) {
            self.check_table(shape, &Self::covered(&after, shape, &unfilled)?, &shapes, &places)?;
        }
        for name in &moving {
            self.check_movable(name)?;
            let (before, after) =
                (self.shards_of(&self.tables[name].placement), self.shards_of(&places[name].placement));
            let drop = format!("DROP TABLE IF EXISTS {}", quote(&shapes[name].name));
            let create = self.definition_of(name)?;
            for shard in after.iter().filter(|shard| !before.contains(shard)) {
                made.push(Part { shard: *shard, statements: create.clone(), undo: vec![drop.clone()] });
            }
            for shard in before.iter().filter(|shard| !after.contains(shard)) {
                gone.push(Part { shard: *shard, statements: vec![drop.clone()], undo: Vec::new() });
            }
        }
        let document = document.unwrap_or(&self.version.document).to_owned();
        Ok(Outcome::Change(Box::new(Change {
            phases: vec![gather(made), gather(gone)],
            places,
            auto: None,
            fill: None,
            collected: Vec::new(),
            emptied: moving,
            vschema: Some(versions::Version { version: self.version.version + 1, document, vschema: after }),
            also,
            filling,
        })))
    }

    /// The same part for every shard.
    fn everywhere(&self, statements: &[String], undo: &[String]) -> Vec<Part> {
        let part = |shard| Part { shard, statements: statements.to_vec(), undo: undo.to_vec() };
        (0..self.shards.len()).map(part).collect()
    }

    /// The shards that have a table of this placement.
    pub(crate) fn shards_of(&self, placement: &Placement) -> Vec<usize> {
        match placement {
            Placement::Unsharded(shard) => vec![*shard],
            Placement::Reference | Placement::Sharded(_) => (0..self.shards.len()).collect(),
        }
    }

    /// Whether every row of a table at the old place is where the new one looks for it.
    pub(super) fn stays(&self, old: &Place, new: &Place) -> bool {
        if self.shards.len() == 1 {
            return true;
        }
        match (&old.placement, &new.placement) {
            (Placement::Sharded(one), Placement::Sharded(other)) if one == other => match (&old.vindex, &new.vindex) {
                (Some(old), Some(new)) => new.extends(old),
                _ => false,
            },
            (one, other) => one == other,
        }
    }

    /// The statements that make a table and its indexes.
    pub(crate) fn definition_of(&self, table: &str) -> Result<Vec<String>, Error> {
        let read = || -> rusqlite::Result<Vec<String>> {
            self.mirror
                .connection
                .prepare(
                    "SELECT sql FROM sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND sql IS NOT NULL
                     AND type IN ('table', 'index') ORDER BY type = 'table' DESC, rowid",
                )?
                .query_map([table], |row| row.get(0))?
                .collect()
        };
        read().map_err(sql_error)
    }

    /// Refuses to change the place of a table that triggers or views depend on.
    fn check_movable(&self, table: &str) -> Result<(), Error> {
        let dependent = |name: &str, kind: &str| {
            unsupported(format!(
                "changing the place of table {table} is not supported: {kind} {name} depends on it; drop that first"
            ))
        };
        let triggers: Vec<String> = self
            .mirror
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE")
            .and_then(|mut statement| statement.query_map([table], |row| row.get(0))?.collect())
            .map_err(sql_error)?;
        if let Some(trigger) = triggers.first() {
            return Err(dependent(trigger, "trigger"));
        }
        let views = self.named_views()?;
        if let Some((view, _)) = views.iter().find(|(_, sql)| has_name(sql, table)) {
            return Err(dependent(view, "view"));
        }
        Ok(())
    }
}

/// What a VSchema says of a table, its vindex looked up.
fn entry_of<'a>(vschema: &'a VSchema, table: &str) -> Option<(&'a TableEntry, Option<&'a VindexEntry>)> {
    let entry = vschema.table(table)?;
    let vindex = match entry {
        TableEntry::Sharded { vindex, .. } => vschema.vindex(vindex),
        _ => None,
    };
    Some((entry, vindex))
}

/// One part a shard.
fn gather(parts: Vec<Part>) -> Vec<Part> {
    let mut by_shard: BTreeMap<usize, Part> = BTreeMap::new();
    for part in parts {
        let whole = by_shard.entry(part.shard).or_insert_with(|| Part {
            shard: part.shard,
            statements: Vec::new(),
            undo: Vec::new(),
        });
        whole.statements.extend(part.statements);
        whole.undo.extend(part.undo);
    }
    by_shard.into_values().collect()
}
