//! What a schema change means: rehearsed on the mirror and rolled back there, before any shard hears of it.

use std::collections::{BTreeMap, BTreeSet};

use dosql_actors::runtime::AutoShard;
use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};

use super::lookup::Definition;
use super::place::{Place, moved};
use super::renaming::Renaming;
use super::table::{self, Placement, Shape, Table};
use super::versions::Version;
use super::{Catalog, Ddl, Prepared};
use crate::sql_text::quote;
use crate::vschema::VSchema;

/// How the log names the change that moves tables to one shard; their names follow.
pub(crate) const COLLECT: &str = "/*_dosql_*/ collect ";

/// A schema change that may go ahead.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// What shards get, in phases: each begins when all shards have applied the one before. Only the first can be taken back.
    pub(crate) phases: Vec<Vec<Part>>,
    /// Every table's place afterwards.
    pub(crate) places: BTreeMap<String, Place>,
    /// The table it makes, where AUTO_SHARD placed it.
    pub(crate) auto: Option<String>,
    /// The rows it fills its table with, where they are on other shards.
    pub(crate) fill: Option<Fill>,
    /// Tables whose rows all move to the default shard, by name.
    pub(crate) collected: Vec<String>,
    /// Tables that may have no rows, since they would have to move.
    pub(crate) emptied: Vec<String>,
    /// The VSchema afterwards, where it changes.
    pub(crate) vschema: Option<Version>,
    /// What the mirror runs beside the statement: lookup tables come and go with their owners and vindexes.
    pub(crate) also: Vec<String>,
    /// Lookup tables that it makes for rows there are, or may be by then: they are filled afterwards.
    pub(crate) filling: Vec<String>,
}

/// A shard's part of a schema change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// By index.
    pub(crate) shard: usize,
    pub(crate) statements: Vec<String>,
    /// What takes it back where another shard refuses its part.
    pub(crate) undo: Vec<String>,
}

/// CREATE TABLE ... AS SELECT over several shards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fill {
    /// The SELECT.
    pub(crate) select: String,
    pub(crate) table: Table,
}

/// What a rehearsal found.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// Nothing would change (IF NOT EXISTS, IF EXISTS).
    Nothing,
    /// A view of this incarnation's was made or dropped.
    Temporary,
    /// It could if these tables, which AUTO_SHARD had sharded, were on one shard.
    Collect(Vec<String>),
    /// This would.
    Change(Box<Change>),
}

impl Catalog {
    /// Rehearses a DDL statement.
    ///
    /// # Errors
    /// What SQLite says; `UNSUPPORTED` naming what cannot be done on several shards.
    pub(crate) fn rehearse(&mut self, sql: &str, auto_shard: AutoShard) -> Result<Outcome, Error> {
        if let Some(names) = sql.strip_prefix(COLLECT) {
            return Ok(Outcome::Change(Box::new(self.collect(names.split(',').map(str::to_owned).collect()))));
        }
        let prepared = self.mirror.prepare(sql)?;
        let Some(ddl) = prepared.uses.ddl.clone() else { return Ok(Outcome::Nothing) };
        if let Ddl::Refused(construct) = ddl {
            return Err(unsupported(format!("{construct} is not supported")));
        }
        if ddl == Ddl::TemporaryView {
            self.mirror.connection.execute_batch(sql).map_err(sql_error)?;
            let names = super::strings(&self.mirror.connection, "SELECT lower(name) FROM sqlite_temp_schema");
            self.temporary = names.map_err(sql_error)?.into_iter().collect();
            return Ok(Outcome::Temporary);
        }
        let sources: Vec<String> =
            prepared.uses.reads.keys().filter(|name| self.table(name).is_some()).cloned().collect();
        let version = |catalog: &Self| -> Result<i64, Error> {
            catalog.mirror.connection.query_row("PRAGMA schema_version", [], |row| row.get(0)).map_err(sql_error)
        };
        let before = version(self)?;
        self.mirror.connection.execute_batch("SAVEPOINT _dosql_rehearsal").map_err(sql_error)?;
        let rehearsed = self.mirror.connection.execute_batch(sql).map_err(sql_error).and_then(|()| {
            if version(self)? == before {
                return Ok(Outcome::Nothing);
            }
            self.judge(sql, &ddl, &sources, auto_shard)
        });
        self.mirror
            .connection
            .execute_batch("ROLLBACK TO _dosql_rehearsal; RELEASE _dosql_rehearsal")
            .map_err(sql_error)?;
        rehearsed
    }

    /// Looks at the mirror as the statement left it.
    fn judge(&mut self, sql: &str, ddl: &Ddl, sources: &[String], auto_shard: AutoShard) -> Result<Outcome, Error> {
        let mut after = table::shapes(&self.mirror.connection).map_err(sql_error)?;
        if let Some(shape) = after.values().find(|shape| reserved(&shape.name)) {
            return Err(Error::invalid(format!(
                "the name {} is reserved: names of tables may not start with _dosql_",
                shape.name
            )));
        }
        let created: Vec<String> = after.keys().filter(|name| !self.tables.contains_key(*name)).cloned().collect();
        let dropped: Vec<String> = self.tables.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
        let renaming = match ddl {
            Ddl::OfTable(name) => self.table(name).and_then(|table| Renaming::of(ddl, table, &after, &created)),
            _ => None,
        };
        let followed = match (&renaming, ddl) {
            (Some(renaming), Ddl::OfTable(name)) => {
                let shape = after.get(&renaming.table.to_ascii_lowercase());
                match (self.table(name), shape) {
                    (Some(table), Some(shape)) => Some(self.follow(renaming, table, shape)?),
                    _ => None,
                }
            }
            _ => None,
        };
        let vschema = followed.as_ref().unwrap_or(&self.version.vschema);
        let (made, also) = self.companions(ddl, &after, &created, &dropped, (vschema, renaming.as_ref()))?;
        for statement in &also {
            self.mirror.connection.execute_batch(statement).map_err(sql_error)?;
        }
        if !also.is_empty() {
            after = table::shapes(&self.mirror.connection).map_err(sql_error)?;
        }
        let mut places = BTreeMap::new();
        let mut auto = None;
        for lookup in &made {
            let place = self.lookup_place(lookup, vschema)?;
            places.insert(lookup.table.to_ascii_lowercase(), place);
        }
        for (name, shape) in &after {
            if places.contains_key(name) {
                continue;
            }
            let old = match (self.tables.get(name), ddl, dropped.first()) {
                (Some(table), ..) => Some(table),
                // ALTER TABLE ... RENAME TO: one name went, another came.
                (None, Ddl::OfTable(_), Some(old)) => self.tables.get(old),
                _ => None,
            };
            let place = match old {
                Some(table) => moved(table, shape)?,
                None => {
                    let (placement, by_itself) = self.place(shape, auto_shard)?;
                    auto = by_itself.then(|| name.clone());
                    placement
                }
            };
            places.insert(name.clone(), place);
        }
        for (name, shape) in &after {
            let covered = Self::covered(vschema, shape, &self.filling)?;
            if let Err(error) = self.check_table(shape, &covered, &after, &places) {
                let collected = self.collectable(name, shape, &after, &places);
                return if collected.is_empty() { Err(error) } else { Ok(Outcome::Collect(collected)) };
            }
        }
        Self::check_increments(vschema, &after)?;
        let followed = followed.filter(|after| *after != self.version.vschema).map(|vschema| Version {
            version: self.version.version + 1,
            document: self.version.document.clone(),
            vschema,
        });
        let all: Vec<usize> = (0..self.shards.len()).collect();
        let mut text = sql.to_owned();
        let mut undo = None;
        let mut fill = None;
        let shards = match ddl {
            Ddl::CreateTable => {
                let Some(name) = created.first() else { return Err(Error::internal("CREATE TABLE made no table")) };
                let shards = self.shards_of(&places[name].placement);
                if !self.has_sources(sources, &shards) {
                    let shape = after[name].clone();
                    let Some(select) = crate::sql_text::as_select(sql) else {
                        return Err(Error::internal("CREATE TABLE reads tables without AS SELECT"));
                    };
                    fill = Some(Fill { select: select.to_owned(), table: places[name].clone().table(shape) });
                    text = self
                        .mirror
                        .connection
                        .query_row(
                            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
                            [&after[name].name],
                            |row| row.get(0),
                        )
                        .map_err(sql_error)?;
                }
                undo = Some(format!("DROP TABLE IF EXISTS {}", quote(&after[name].name)));
                shards
            }
            Ddl::OfTable(name) => {
                let table = self
                    .table(name)
                    .ok_or_else(|| Error::new(ErrorCode::UnknownTable, format!("no such table: {name}")))?;
                undo = self.undo_for(sql)?;
                self.shards_of(&table.placement)
            }
            Ddl::CreateTrigger(trigger, name) => {
                undo = Some(format!("DROP TRIGGER IF EXISTS {}", quote(trigger)));
                match self.table(name).map(|table| table.placement.clone()) {
                    // Others fire where the statement is worked out.
                    Some(placement) if self.fires_on_shard(name)? => self.shards_of(&placement),
                    None if all.len() == 1 => all,
                    _ => Vec::new(),
                }
            }
            Ddl::DropTrigger(trigger, name) => {
                text = format!("DROP TRIGGER IF EXISTS {}", quote(trigger));
                match self.table(name) {
                    Some(table) => self.shards_of(&table.placement),
                    None if all.len() == 1 => all,
                    None => Vec::new(),
                }
            }
            Ddl::TemporaryView => Vec::new(),
            Ddl::CreateView(view) => {
                undo = Some(format!("DROP VIEW IF EXISTS {}", quote(view)));
                // A view that refers to something missing is legal; it then lives in the router alone.
                let reads = self.mirror.prepare(&format!("SELECT * FROM {}", quote(view))).map(|read| read.uses.reads);
                let mut shards: BTreeSet<usize> =
                    if reads.is_ok() { all.iter().copied().collect() } else { BTreeSet::new() };
                for table in reads.unwrap_or_default().keys().filter_map(|name| self.table(name)) {
                    let here = self.shards_of(&table.placement);
                    shards.retain(|shard| here.contains(shard));
                }
                shards.into_iter().collect()
            }
            Ddl::DropView(view) => {
                text = format!("DROP VIEW IF EXISTS {}", quote(view));
                all.clone()
            }
            Ddl::Refused(construct) => return Err(unsupported(format!("{construct} is not supported"))),
        };
        let undo: Vec<String> = undo.into_iter().chain(made.iter().map(Definition::drop)).collect();
        let statements: Vec<String> = std::iter::once(text).chain(also.iter().cloned()).collect();
        let part = |shard| Part { shard, statements: statements.clone(), undo: undo.clone() };
        let phases = vec![shards.into_iter().map(part).collect()];
        let filling = match crate::sql_text::as_select(sql) {
            Some(_) => made.into_iter().map(|lookup| lookup.table).collect(),
            None => Vec::new(),
        };
        let (emptied, collected) = (Vec::new(), Vec::new());
        let vschema = followed;
        Ok(Outcome::Change(Box::new(Change { phases, places, auto, fill, collected, emptied, vschema, also, filling })))
    }

    /// The change that moves all rows of some tables to the default shard.
    fn collect(&self, names: Vec<String>) -> Change {
        let places = self
            .tables
            .iter()
            .map(|(name, table)| {
                let place = match names.contains(name) {
                    true => Place::unmapped(Placement::Unsharded(self.default_shard)),
                    false => Place { placement: table.placement.clone(), vindex: table.vindex.clone() },
                };
                (name.clone(), place)
            })
            .collect();
        Change {
            phases: Vec::new(),
            places,
            auto: None,
            fill: None,
            collected: names,
            emptied: Vec::new(),
            vschema: None,
            also: Vec::new(),
            filling: Vec::new(),
        }
    }

    /// The lookup tables that a statement makes with its table, and the statements for those that it makes or drops.
    fn companions(
        &self,
        ddl: &Ddl,
        after: &BTreeMap<String, Shape>,
        created: &[String],
        dropped: &[String],
        (vschema, renaming): (&VSchema, Option<&Renaming>),
    ) -> Result<(Vec<Definition>, Vec<String>), Error> {
        match ddl {
            Ddl::CreateTable => {
                let made: Vec<Definition> = match created.first().and_then(|name| after.get(name)) {
                    Some(shape) => Self::definitions(vschema, shape)?,
                    None => Vec::new(),
                };
                made.iter().try_for_each(|lookup| self.check_new(lookup))?;
                let also = made.iter().flat_map(Definition::create).collect();
                Ok((made, also))
            }
            Ddl::OfTable(name) | Ddl::CreateTrigger(_, name) => {
                self.check_own(name)?;
                let Some(table) = self.table(name).filter(|table| !table.lookups.is_empty()) else {
                    return Ok(Default::default());
                };
                let kept: Vec<Definition> = table.lookups.iter().map(|lookup| lookup.definition.clone()).collect();
                let gone = dropped.iter().any(|dropped| dropped.eq_ignore_ascii_case(name));
                if gone && created.is_empty() {
                    return Ok((Vec::new(), kept.iter().map(Definition::drop).collect()));
                }
                let now = after.get(&renaming.map_or(name, |renaming| &renaming.table).to_ascii_lowercase());
                let kept: Vec<Definition> = match renaming {
                    Some(renaming) => kept.into_iter().map(|lookup| lookup.renamed(renaming)).collect(),
                    None => kept,
                };
                let same = now.is_some_and(|shape| Self::definitions(vschema, shape).is_ok_and(|now| now == kept));
                match same {
                    true => Ok(Default::default()),
                    false => Err(unsupported(format!(
                        "this change of table {name} is not supported: its lookup vindex {} needs it as it is; drop that first",
                        kept[0].name
                    ))),
                }
            }
            _ => Ok(Default::default()),
        }
    }

    /// The tables that AUTO_SHARD has sharded and that would have to be on one shard for a table's constraints to be enforced:
    /// itself, its parents, and whatever foreign keys tie to those.
    fn collectable(
        &self,
        name: &str,
        shape: &Shape,
        after: &BTreeMap<String, Shape>,
        places: &BTreeMap<String, Place>,
    ) -> Vec<String> {
        let movable = |name: &str| {
            self.automatic.contains(name)
                && self.tables.get(name).is_some_and(|table| matches!(table.placement, Placement::Sharded(_)))
        };
        let mut wanted: Vec<String> =
            shape.foreign_keys.iter().map(|key| key.parent.to_ascii_lowercase()).filter(|name| movable(name)).collect();
        if matches!(places[name].placement, Placement::Sharded(_)) {
            if !movable(name) {
                return Vec::new();
            }
            wanted.push(name.to_owned());
        }
        loop {
            let more: Vec<String> = after
                .iter()
                .filter(|(name, _)| movable(name) && !wanted.contains(name))
                .filter(|(name, shape)| {
                    let refers =
                        |parent: &str| shape.foreign_keys.iter().any(|key| key.parent.eq_ignore_ascii_case(parent));
                    wanted.iter().any(|known| {
                        refers(known)
                            || after.get(known).is_some_and(|known| {
                                known.foreign_keys.iter().any(|key| key.parent.eq_ignore_ascii_case(name))
                            })
                    })
                })
                .map(|(name, _)| name.clone())
                .collect();
            if more.is_empty() {
                wanted.sort();
                wanted.dedup();
                return wanted;
            }
            wanted.extend(more);
        }
    }

    /// Whether the triggers of a table are on its shard: whatever they touch is there.
    pub(super) fn fires_on_shard(&mut self, name: &str) -> Result<bool, Error> {
        if self.shards.len() == 1 {
            return Ok(true);
        }
        let Some(table) = self.table(name) else { return Ok(false) };
        let Placement::Unsharded(here) = table.placement else { return Ok(false) };
        let set: Vec<String> = table
            .shape
            .given()
            .into_iter()
            .map(|index| quote(&table.shape.columns[index].name))
            .map(|column| format!("{column} = {column}"))
            .collect();
        let target = quote(&table.shape.name);
        for sql in [
            format!("DELETE FROM {target}"),
            format!("INSERT INTO {target} DEFAULT VALUES"),
            format!("UPDATE {target} SET {}", set.join(", ")),
        ] {
            // A trigger whose body does not compile fails wherever it is.
            let Ok(Prepared { uses, .. }) = self.mirror.prepare(&sql) else { continue };
            let written = uses.inserts.iter().chain(uses.updates.keys()).chain(&uses.deletes);
            let writes_here =
                written.filter_map(|name| self.table(name)).all(|table| table.placement == Placement::Unsharded(here));
            let reads_here = uses.reads.keys().filter_map(|name| self.table(name)).all(|table| {
                matches!(table.placement, Placement::Reference) || table.placement == Placement::Unsharded(here)
            });
            if !writes_here || !reads_here {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Only what depends on rows can fail on one shard and not on another: a unique index, an added column's constraints.
    fn undo_for(&self, sql: &str) -> Result<Option<String>, Error> {
        let names = |connection: &rusqlite::Connection| -> rusqlite::Result<Vec<String>> {
            connection
                .prepare("SELECT name FROM sqlite_schema WHERE type = 'index'")?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        let words = crate::sql_text::leading_words(sql, 1);
        if words.first().is_some_and(|word| word == "CREATE") {
            let created = names(&self.mirror.connection).map_err(sql_error)?;
            return Ok(created.last().map(|name| format!("DROP INDEX IF EXISTS {}", quote(name))));
        }
        if words.first().is_some_and(|word| word == "ALTER") {
            let after = table::shapes(&self.mirror.connection).map_err(sql_error)?;
            for (name, shape) in &after {
                if let Some(old) = self.tables.get(name)
                    && shape.columns.len() == old.shape.columns.len() + 1
                    && let Some(added) = shape.columns.last()
                {
                    return Ok(Some(format!("ALTER TABLE {} DROP COLUMN {}", quote(&shape.name), quote(&added.name))));
                }
            }
        }
        Ok(None)
    }

    /// Whether CREATE TABLE ... AS SELECT finds all it reads on each of the table's shards, and may put it there.
    fn has_sources(&self, sources: &[String], shards: &[usize]) -> bool {
        self.shards.len() == 1
            || sources.iter().all(|source| match self.table(source).map(|table| &table.placement) {
                Some(Placement::Unsharded(shard)) => shards == [*shard],
                Some(Placement::Reference) => shards.len() == 1,
                _ => false,
            })
    }
}

fn reserved(name: &str) -> bool {
    name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("_dosql_"))
}

pub(crate) fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Unsupported, message)
}
