//! Row images written back to tables, exactly: the redo of a transaction that was set aside, and of one that was prepared.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, Operation, Row, RowChange, Sequence, WalRecord};
use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection};

use super::guard::own_sql;
use super::schema::{Schema, TableShape};
use crate::sql_name::quote;
use crate::sql_value::{Param, sql_error};

/// Applies the row changes of a record whose indexes are in `range`, in their order. The tables must be as the record describes
/// them (`shapes` says how they are), triggers and foreign keys must be off ([`Quiet`]), and the statements are the shard's own:
/// the guard must have been told.
///
/// # Errors
/// `STORAGE` where the rows are not those that the record was made of.
pub(super) fn changes(
    connection: &Connection,
    shapes: &BTreeMap<String, Rc<TableShape>>,
    record: &WalRecord,
    range: Range<usize>,
) -> Result<(), Error> {
    let mut tables: BTreeMap<u32, Statements> = BTreeMap::new();
    for change in &record.changes[range] {
        let statements = match tables.get(&change.table) {
            Some(known) => known,
            None => {
                let made = Statements::of(shapes, record, change.table)?;
                tables.entry(change.table).or_insert(made)
            }
        };
        statements.apply(connection, change)?;
    }
    Ok(())
}

/// Sets AUTOINCREMENT where a record says that it stands. Comes after the record's changes.
///
/// # Errors
/// SQLite's.
pub(super) fn set_sequences(connection: &Connection, sequences: &[Sequence]) -> Result<(), Error> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).map_err(sql_error)
    };
    for Sequence { table, value } in sequences {
        let Some(value) = value else {
            run(own_sql!("DELETE FROM sqlite_sequence WHERE name = ?1"), &[table])?;
            continue;
        };
        if run(own_sql!("UPDATE sqlite_sequence SET seq = ?2 WHERE name = ?1"), &[table, value])? == 0 {
            run(own_sql!("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)"), &[table, value])?;
        }
    }
    Ok(())
}

/// Where AUTOINCREMENT stands, by table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sequences(BTreeMap<String, i64>);

/// Reads where AUTOINCREMENT stands.
///
/// # Errors
/// SQLite's.
pub(super) fn sequences(connection: &Connection, schema: &Schema) -> Result<Sequences, Error> {
    if !schema.has_sequences {
        return Ok(Sequences::default());
    }
    let read = || -> rusqlite::Result<BTreeMap<String, i64>> {
        let mut statement = connection
            .prepare_cached(own_sql!("SELECT name, seq FROM sqlite_sequence WHERE typeof(seq) = 'integer'"))?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    read().map(Sequences).map_err(sql_error)
}

impl Sequences {
    /// What has moved between here and `after`.
    pub(super) fn moved_to(&self, after: &Self) -> Vec<Sequence> {
        let gone = self.0.keys().filter(|table| !after.0.contains_key(*table)).map(|table| (table, None));
        let moved = after.0.iter().filter(|(table, value)| self.0.get(*table) != Some(*value));
        let moved = moved.map(|(table, value)| (table, Some(*value)));
        gone.chain(moved).map(|(table, value)| Sequence { table: table.clone(), value }).collect()
    }
}

/// While it lives, a change of a row causes no others: their effects are in the log already.
pub(super) struct Quiet<'c>(Option<&'c Connection>);

const EFFECTS: [DbConfig; 2] = [DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY];

impl<'c> Quiet<'c> {
    /// Turns triggers and foreign keys off, where there are any.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn begin(connection: &'c Connection, schema: &Schema) -> Result<Self, Error> {
        if !schema.has_effects {
            return Ok(Self(None));
        }
        // Made first: what was turned off is turned on again, whatever happens.
        let quiet = Self(Some(connection));
        for effect in EFFECTS {
            connection.set_db_config(effect, false).map_err(sql_error)?;
        }
        Ok(quiet)
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.0 else { return };
        for effect in EFFECTS {
            if let Err(error) = connection.set_db_config(effect, true) {
                tracing::error!(%error, "triggers or foreign keys could not be turned on again");
            }
        }
    }
}

/// The statements that write the rows of one table.
struct Statements {
    name: String,
    insert: String,
    update: String,
    delete: String,
    /// The places, in a row's image, of the columns that can be set.
    settable: Vec<usize>,
    key: Key,
    /// Whether an INSERT names the rowid beside the columns.
    rowid_first: bool,
}

/// What tells a table's rows apart.
enum Key {
    Rowid,
    /// Places of the PRIMARY KEY's columns in a row's image.
    Columns(Vec<usize>),
}

impl Statements {
    fn of(shapes: &BTreeMap<String, Rc<TableShape>>, record: &WalRecord, table: u32) -> Result<Self, Error> {
        let Some(recorded) = record.tables.get(table as usize) else {
            return Err(misfit(format!("the record of LSN {} does not describe its table {table}", record.lsn)));
        };
        let name = &recorded.name;
        let shape = shapes.get(name).ok_or_else(|| misfit(format!("there is no table {name}")))?;
        let names = |columns: &[dosql_proto::Column]| columns.iter().map(|column| column.name.clone()).collect();
        let (here, there): (Vec<String>, Vec<String>) = (names(&shape.table.columns), names(&recorded.columns));
        if here != there {
            return Err(misfit(format!("table {name} has the columns {here:?}, the record {there:?}")));
        }
        let quoted: Vec<String> = here.iter().map(|name| quote(name)).collect();
        let settable: Vec<usize> = (0..here.len()).filter(|at| !shape.generated[*at]).collect();
        let key_columns: Vec<usize> = shape.table.primary_key.iter().map(|at| *at as usize).collect();
        let (key, key_names, rowid_first) = if !shape.has_rowid {
            let names = key_columns.iter().map(|at| quoted[*at].clone()).collect();
            (Key::Columns(key_columns), names, false)
        } else if shape.rowid_is_key {
            (Key::Rowid, vec![quoted[key_columns[0]].clone()], false)
        } else {
            let taken = |name: &str| here.iter().any(|column| column.eq_ignore_ascii_case(name));
            let Some(rowid) = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name)) else {
                let message = format!(
                    "table {name} is not supported here: its columns take all names of the rowid, which alone tells its rows apart"
                );
                return Err(Error::new(ErrorCode::Unsupported, message));
            };
            (Key::Rowid, vec![rowid.to_owned()], true)
        };
        let own = "/*_dosql_*/";
        let table = quote(name);
        let condition = |first: usize| -> String {
            let places = (first..).zip(&key_names).map(|(number, name)| format!("{name} = ?{number}"));
            places.collect::<Vec<_>>().join(" AND ")
        };
        let mut columns: Vec<&str> = settable.iter().map(|at| quoted[*at].as_str()).collect();
        let set: Vec<String> = (1..).zip(&columns).map(|(number, name)| format!("{name} = ?{number}")).collect();
        let update = format!("{own} UPDATE {table} SET {} WHERE {}", set.join(", "), condition(columns.len() + 1));
        if rowid_first {
            columns.insert(0, &key_names[0]);
        }
        let marks: Vec<String> = (1..=columns.len()).map(|number| format!("?{number}")).collect();
        let insert = format!("{own} INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), marks.join(", "));
        let delete = format!("{own} DELETE FROM {table} WHERE {}", condition(1));
        Ok(Self { name: name.clone(), insert, update, delete, settable, key, rowid_first })
    }

    fn apply(&self, connection: &Connection, change: &RowChange) -> Result<(), Error> {
        let sql = match change.operation() {
            Operation::Insert => &self.insert,
            Operation::Update => &self.update,
            Operation::Delete => &self.delete,
            Operation::Unspecified => return Err(misfit("a change without an operation".to_owned())),
        };
        let mut statement = connection.prepare_cached(sql).map_err(sql_error)?;
        let mut place = 0;
        match (change.operation(), &change.before, &change.after) {
            (Operation::Insert, _, Some(after)) => {
                if self.rowid_first {
                    bind_rowid(&mut statement, &mut place, change.rowid)?;
                }
                self.bind_row(&mut statement, &mut place, after)?;
            }
            (Operation::Update, Some(before), Some(after)) => {
                self.bind_row(&mut statement, &mut place, after)?;
                self.bind_key(&mut statement, &mut place, change.rowid, before)?;
            }
            (Operation::Delete, Some(before), _) => {
                self.bind_key(&mut statement, &mut place, change.rowid, before)?;
            }
            _ => return Err(misfit(format!("a change of table {} lacks an image", self.name))),
        }
        let rows = statement.raw_execute().map_err(|error| {
            let error = sql_error(error);
            match error.code() {
                ErrorCode::Storage => error,
                _ => misfit(format!("a row of table {} does not fit: {}", self.name, error.message)),
            }
        })?;
        match rows {
            1 => Ok(()),
            _ => Err(misfit(format!("a change of one row of table {} met {rows} rows", self.name))),
        }
    }

    fn bind_row(&self, statement: &mut CachedStatement<'_>, place: &mut usize, row: &Row) -> Result<(), Error> {
        self.settable.iter().try_for_each(|at| self.bind(statement, place, row, *at))
    }

    fn bind_key(
        &self,
        statement: &mut CachedStatement<'_>,
        place: &mut usize,
        rowid: i64,
        before: &Row,
    ) -> Result<(), Error> {
        match &self.key {
            Key::Rowid => bind_rowid(statement, place, rowid),
            Key::Columns(columns) => columns.iter().try_for_each(|at| self.bind(statement, place, before, *at)),
        }
    }

    fn bind(&self, statement: &mut CachedStatement<'_>, place: &mut usize, row: &Row, at: usize) -> Result<(), Error> {
        let value =
            row.values.get(at).ok_or_else(|| misfit(format!("an image of table {} is too short", self.name)))?;
        *place += 1;
        statement.raw_bind_parameter(*place, Param(value)).map_err(sql_error)
    }
}

fn bind_rowid(statement: &mut CachedStatement<'_>, place: &mut usize, rowid: i64) -> Result<(), Error> {
    *place += 1;
    statement.raw_bind_parameter(*place, rowid).map_err(sql_error)
}

fn misfit(message: String) -> Error {
    Error::new(ErrorCode::Storage, format!("a log record cannot be applied: {message}"))
}
