//! Lookup vindexes: tables that name, for a value of a column, the sharding keys of the rows that have it. A lookup table is a
//! sharded table like any other, but the router alone writes it, in the transactions that write its owner's rows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode, Row, Value, value::Kind};
use prost::Message;
use rusqlite::Connection;

use super::place::Place;
use super::renaming::Renaming;
use super::table::{Placement, Shape, Table};
use super::{Catalog, unsupported};
use crate::affinity::{Affinity, Collation};
use crate::sql_text::quote;
use crate::vindex::{KeyColumn, Vindex};
use crate::vschema::{TableEntry, VSchema, VindexEntry};

/// A lookup table's column that tells an owner's rows with the same value and the same sharding key apart.
pub(crate) const OWNER_ROW: &str = "owner_row";

/// Lookup tables that do not have all entries yet, and how far they are filled: which shard, and the last row of it.
pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS _dosql_lookups (
  name TEXT PRIMARY KEY, shard INTEGER NOT NULL DEFAULT 0, last_row BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;
";

/// What tells rows of an owner's shard apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The rowid, which no column shows, by this name.
    Rowid(&'static str),
    /// The column that is the rowid.
    Alias(String),
    /// The columns of the primary key of a table without rowids.
    Key(Vec<String>),
}

/// What a lookup vindex is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    /// The vindex's name.
    pub(crate) name: String,
    /// Whether no two rows may have the same value.
    pub(crate) unique: bool,
    /// The table whose rows are looked up, the column and the sharding column.
    pub(crate) owner: String,
    pub(crate) column: String,
    pub(crate) key: String,
    pub(crate) identity: Identity,
    /// The lookup table and its columns of values and of sharding keys.
    pub(crate) table: String,
    pub(crate) from: String,
    pub(crate) to: String,
    affinity: Affinity,
    collation: Collation,
}

/// A lookup vindex of a table that there is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lookup {
    pub(crate) definition: Definition,
    /// The shards of the lookup table's entries, by their values.
    pub(crate) entries: Rc<Vindex>,
    /// The shards of the owner's rows, by their sharding keys.
    pub(crate) rows: Rc<Vindex>,
    /// Whether it has all entries. Until then it is written, and not read.
    pub(crate) filled: bool,
}

/// A row of a lookup table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) from: Value,
    pub(crate) to: Value,
    pub(crate) owner_row: Value,
}

/// How far a lookup table is filled.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Filled {
    /// The shard whose rows are being entered, by index.
    pub(crate) shard: usize,
    /// The identity of the last row that was; empty: none was.
    pub(crate) last_row: Row,
}

impl Definition {
    /// The columns of the owner that entries are made of: the value's, the key's, and those of the identity.
    pub(crate) fn columns(&self) -> Vec<String> {
        let mut columns = vec![self.column.clone(), self.key.clone()];
        columns.extend(self.identity.columns().iter().cloned());
        columns
    }

    /// The entry of a row with these values in [`columns`](Self::columns); NULLs have none.
    pub(crate) fn entry(&self, values: &[Value], rowid: i64) -> Option<Entry> {
        let [from, to, identity @ ..] = values else { return None };
        if from.is_null() {
            return None;
        }
        let owner_row = match &self.identity {
            Identity::Rowid(_) => rowid.into(),
            Identity::Alias(_) => identity.first()?.clone(),
            Identity::Key(_) => Value { kind: Some(Kind::Blob(Row { values: identity.to_vec() }.encode_to_vec())) },
        };
        Some(Entry { from: from.clone(), to: to.clone(), owner_row })
    }

    /// The same after its owner, or a column of that, was renamed.
    pub(super) fn renamed(mut self, renaming: &Renaming) -> Self {
        self.owner.clone_from(&renaming.table);
        if let Some((old, new)) = &renaming.column {
            let rename = |column: &mut String| {
                if column.eq_ignore_ascii_case(old) {
                    column.clone_from(new);
                }
            };
            rename(&mut self.column);
            rename(&mut self.key);
            match &mut self.identity {
                Identity::Rowid(_) => {}
                Identity::Alias(column) => rename(column),
                Identity::Key(columns) => columns.iter_mut().for_each(rename),
            }
        }
        self
    }

    /// The lookup table's columns, quoted.
    pub(crate) fn entry_columns(&self) -> [String; 3] {
        [quote(&self.from), quote(&self.to), OWNER_ROW.to_owned()]
    }

    /// The statements that make the lookup table. Values compare there as they do in the owner's column.
    pub(super) fn create(&self) -> Vec<String> {
        let (table, from, to) = (quote(&self.table), quote(&self.from), quote(&self.to));
        let declared = format!("{from} {} COLLATE {}", self.affinity.name(), self.collation.name());
        if self.unique {
            return vec![format!("CREATE TABLE {table} ({declared} PRIMARY KEY, {to}, {OWNER_ROW}) WITHOUT ROWID")];
        }
        let index = quote(&self.index());
        vec![
            format!("CREATE TABLE {table} ({declared} NOT NULL, {to}, {OWNER_ROW})"),
            format!("CREATE INDEX {index} ON {table} ({from}, {to}, {OWNER_ROW})"),
        ]
    }

    /// The index of one whose values several rows may have.
    fn index(&self) -> String {
        format!("{}_{}", self.table, self.from)
    }

    /// The statement that drops it.
    pub(super) fn drop(&self) -> String {
        format!("DROP TABLE IF EXISTS {}", quote(&self.table))
    }

    /// That two rows have the same value, as SQLite says it of the owner, where an error says it of the lookup table.
    pub(crate) fn of_owner(&self, error: Error) -> Error {
        let told = format!("UNIQUE constraint failed: {}.{}", self.table, self.from);
        if error.code() != ErrorCode::Constraint || !error.message.contains(&told) {
            return error;
        }
        let of_owner = format!("UNIQUE constraint failed: {}.{}", self.owner, self.column);
        Error { message: error.message.replace(&told, &of_owner), ..error }
    }
}

impl Identity {
    fn of(shape: &Shape) -> Option<Self> {
        let name = |index: usize| shape.columns[index].name.clone();
        if let Some(alias) = shape.rowid_alias {
            return Some(Self::Alias(name(alias)));
        }
        if shape.without_rowid {
            return Some(Self::Key(shape.primary_key().into_iter().map(name).collect()));
        }
        shape.hidden_rowid().map(Self::Rowid)
    }

    /// The columns it is read from; none for a rowid.
    fn columns(&self) -> &[String] {
        match self {
            Self::Rowid(_) => &[],
            Self::Alias(column) => std::slice::from_ref(column),
            Self::Key(columns) => columns,
        }
    }

    /// What it is selected and ordered by, quoted.
    pub(crate) fn terms(&self) -> Vec<String> {
        match self {
            Self::Rowid(name) => vec![(*name).to_owned()],
            _ => self.columns().iter().map(|column| quote(column)).collect(),
        }
    }
}

impl Catalog {
    /// The lookup vindexes that a VSchema gives a table.
    ///
    /// # Errors
    /// `UNKNOWN_COLUMN`; `UNSUPPORTED` for a generated column, and for a table whose rows nothing tells apart.
    pub(super) fn definitions(vschema: &VSchema, shape: &Shape) -> Result<Vec<Definition>, Error> {
        let Some(TableEntry::Sharded { column: key, .. }) = vschema.table(&shape.name) else { return Ok(Vec::new()) };
        let lookups = vschema.lookups(&shape.name);
        lookups
            .into_iter()
            .map(|(entry, lookup)| {
                let named = |column: &str| {
                    let info = shape.column(column).map(|index| &shape.columns[index]);
                    info.ok_or_else(|| {
                        let message = format!("no such column: {}.{column}, which a lookup vindex needs", shape.name);
                        Error::new(ErrorCode::UnknownColumn, message)
                    })
                };
                let info = named(&entry.column)?;
                if info.generated {
                    let message = format!(
                        "a lookup vindex of the generated column {}.{} is not supported",
                        shape.name, info.name
                    );
                    return Err(unsupported(message));
                }
                let identity = Identity::of(shape).ok_or_else(|| {
                    unsupported(format!(
                        "a lookup vindex of table {} is not supported: nothing tells its rows apart",
                        shape.name
                    ))
                })?;
                Ok(Definition {
                    name: entry.vindex.name().to_owned(),
                    unique: lookup.unique,
                    owner: shape.name.clone(),
                    column: info.name.clone(),
                    key: named(key)?.name.clone(),
                    identity,
                    table: lookup.table.to_owned(),
                    from: lookup.from.unwrap_or(&info.name).to_owned(),
                    to: lookup.to().to_owned(),
                    affinity: info.affinity,
                    collation: info.collation,
                })
            })
            .collect()
    }

    /// The columns of a table that have a unique lookup vindex with all entries, but for those that are being filled.
    pub(super) fn covered(vschema: &VSchema, shape: &Shape, filling: &BTreeSet<String>) -> Result<Vec<usize>, Error> {
        let definitions = Self::definitions(vschema, shape)?;
        let covers = |lookup: &&Definition| lookup.unique && !filling.contains(&lookup.table.to_ascii_lowercase());
        Ok(definitions.iter().filter(covers).filter_map(|lookup| shape.column(&lookup.column)).collect())
    }

    /// Where a lookup table is: where the VSchema has it, or by a hash of its values.
    ///
    /// # Errors
    /// What is wrong with the vindex for its column.
    pub(super) fn lookup_place(&self, definition: &Definition, vschema: &VSchema) -> Result<Place, Error> {
        let entry = match vschema.table(&definition.table) {
            Some(TableEntry::Sharded { vindex, .. }) => vschema.vindex(vindex).cloned(),
            _ => Some(VindexEntry::default()),
        };
        let entry = entry.ok_or_else(|| Error::internal("a lookup table without its vindex"))?;
        let column = KeyColumn { affinity: definition.affinity, collation: definition.collation };
        let vindex = Vindex::new(entry, column, &self.shard_list, &self.converter)?;
        Ok(Place { placement: Placement::Sharded(0), vindex: Some(Rc::new(vindex)) })
    }

    /// Gives tables their lookup vindexes.
    pub(super) fn attach(
        vschema: &VSchema,
        tables: &mut BTreeMap<String, Table>,
        filling: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        for (name, table) in tables.iter() {
            let Some(rows) = &table.vindex else { continue };
            let mut lookups = Vec::new();
            for definition in Self::definitions(vschema, &table.shape)? {
                let lower = definition.table.to_ascii_lowercase();
                let entries = tables.get(&lower).and_then(|table| table.vindex.clone()).ok_or_else(|| {
                    Error::internal(format!("the lookup table {} of {} is not there", definition.table, name))
                })?;
                let filled = !filling.contains(&lower);
                lookups.push(Rc::new(Lookup { definition, entries, rows: Rc::clone(rows), filled }));
            }
            if !lookups.is_empty() {
                found.push((name.clone(), lookups));
            }
        }
        for (name, lookups) in found {
            if let Some(table) = tables.get_mut(&name) {
                table.lookups = lookups;
            }
        }
        Ok(())
    }

    /// The lookup vindex whose table this is.
    pub(crate) fn lookup_of(&self, table: &str) -> Option<&Rc<Lookup>> {
        let mut lookups = self.tables.values().flat_map(|owner| &owner.lookups);
        lookups.find(|lookup| lookup.definition.table.eq_ignore_ascii_case(table))
    }

    /// Fails where clients may not change a table: a lookup table is the router's.
    pub(crate) fn check_own(&self, table: &str) -> Result<(), Error> {
        self.lookup_of(table).map_or(Ok(()), |lookup| {
            let Definition { table, name, owner, column, .. } = &lookup.definition;
            Err(unsupported(format!(
                "changing table {table} is not supported: writes of {owner}.{column} keep it, for vindex {name}"
            )))
        })
    }

    /// The lookup tables that do not have all entries, with how far they have come.
    pub(crate) fn unfilled(&self) -> Result<Vec<(Rc<Lookup>, Filled)>, Error> {
        let read = || -> rusqlite::Result<Vec<(String, i64, Vec<u8>)>> {
            self.storage
                .prepare("SELECT name, shard, last_row FROM _dosql_lookups")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        };
        let mut unfilled = Vec::new();
        for (name, shard, last_row) in read().map_err(sql_error)? {
            let Some(lookup) = self.lookup_of(&name) else { continue };
            let damaged = |error: prost::DecodeError| Error::internal(format!("how far {name} is filled: {error}"));
            let last_row = Row::decode(last_row.as_slice()).map_err(damaged)?;
            unfilled.push((Rc::clone(lookup), Filled { shard: usize::try_from(shard).unwrap_or_default(), last_row }));
        }
        Ok(unfilled)
    }

    /// Notes how far a lookup table is filled; `None`: it has all entries.
    pub(crate) fn note_filled(&mut self, table: &str, filled: Option<&Filled>) -> Result<(), Error> {
        let name = table.to_ascii_lowercase();
        let Some(filled) = filled else {
            self.storage.execute("DELETE FROM _dosql_lookups WHERE name = ?1", [&name]).map_err(sql_error)?;
            self.filling.remove(&name);
            return Self::attach(&self.version.vschema, &mut self.tables, &self.filling);
        };
        let sql = "UPDATE _dosql_lookups SET shard = ?2, last_row = ?3 WHERE name = ?1";
        let shard = i64::try_from(filled.shard).unwrap_or(i64::MAX);
        self.storage.execute(sql, (name, shard, filled.last_row.encode_to_vec())).map_err(sql_error)?;
        Ok(())
    }

    /// Fails where something is called like a lookup table that is to be made.
    pub(super) fn check_new(&self, definition: &Definition) -> Result<(), Error> {
        let sql = "SELECT 1 FROM sqlite_schema WHERE name IN (?1, ?2) COLLATE NOCASE";
        let taken = self
            .mirror
            .connection
            .prepare(sql)
            .and_then(|mut statement| statement.exists([&definition.table, &definition.index()]))
            .map_err(sql_error)?;
        if !taken {
            return Ok(());
        }
        let message =
            format!("the vindex {} makes the table {}, which exists already", definition.name, definition.table);
        Err(Error::new(ErrorCode::AlreadyExists, message))
    }
}

/// The lookup tables that are being filled.
pub(super) fn filling(storage: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    storage.prepare("SELECT name FROM _dosql_lookups")?.query_map([], |row| row.get(0))?.collect()
}

/// Notes which lookup tables are being filled, within the caller's transaction.
pub(super) fn save(storage: &Connection, before: &BTreeSet<String>, after: &BTreeSet<String>) -> rusqlite::Result<()> {
    for name in before.difference(after) {
        storage.execute("DELETE FROM _dosql_lookups WHERE name = ?1", [name])?;
    }
    for name in after.difference(before) {
        storage.execute("INSERT INTO _dosql_lookups (name) VALUES (?1)", [name])?;
    }
    Ok(())
}
