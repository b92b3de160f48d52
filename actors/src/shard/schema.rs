//! A shard's tables as its log describes them, and what a statement changed about them.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{Column, Error, ErrorCode, SchemaChange, TableStatus, WalTable};
use rusqlite::Connection;

use super::guard::{OWN_PREFIX, may_roll_back, own_name, own_sql};
use crate::sql_value::sql_error;

/// A table whose rows are recorded.
#[derive(Debug, PartialEq)]
pub(super) struct TableShape {
    /// As the log describes it: the columns that are stored. A VIRTUAL generated column has no place in the row.
    pub(super) table: WalTable,
    /// SQLite's index of each of those columns.
    pub(super) stored: Vec<i32>,
    /// Whether each of them has REAL affinity: SQLite keeps 1.0 there as the integer 1.
    pub(super) real: Vec<bool>,
    /// Whether each of them is a generated column (STORED), which no statement can set.
    pub(super) generated: Vec<bool>,
    /// Whether rows have a rowid.
    pub(super) has_rowid: bool,
    /// Whether the primary key is the rowid itself (`INTEGER PRIMARY KEY`).
    pub(super) rowid_is_key: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Object {
    kind: String,
    sql: String,
}

/// Everything that users have defined.
#[derive(Debug, Default)]
pub(super) struct Schema {
    objects: BTreeMap<String, Object>,
    shapes: BTreeMap<String, Rc<TableShape>>,
    /// Whether some table or trigger may roll back the whole transaction.
    pub(super) may_roll_back: bool,
    /// Whether some table numbers its rows by AUTOINCREMENT.
    pub(super) has_sequences: bool,
    /// Whether a change of a row may cause others: there are triggers or foreign keys.
    pub(super) has_effects: bool,
}

/// What a statement did to the schema.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    pub(super) change: SchemaChange,
    pub(super) rows: UnseenRows,
}

/// Rows that a schema statement makes or changes, which the pre-update hook does not see. They are recorded, so that a consumer
/// that goes by the names of tables and columns has them.
#[derive(Debug, PartialEq)]
pub(super) enum UnseenRows {
    None,
    /// All rows of a table that was made by AS SELECT or renamed.
    Inserted(Rc<TableShape>),
    /// The rows that have values in columns which were added, by their positions.
    Updated(Rc<TableShape>, Vec<usize>),
    /// The rows that have values in a column which was renamed, by its position.
    Renamed(Rc<TableShape>, usize),
}

impl Schema {
    /// Reads the schema. The connection's guard must be told that this is the shard's own doing.
    pub(super) fn load(connection: &Connection) -> Result<Self, Error> {
        Self::read(connection).map_err(sql_error)
    }

    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut schema = Self::default();
        let mut statement = connection.prepare_cached(own_sql!(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            if name.starts_with(OWN_PREFIX) {
                continue;
            }
            let object = Object { kind: row.get(0)?, sql: row.get(2)? };
            schema.may_roll_back |= may_roll_back(&object.sql);
            schema.has_sequences |= mentions(&object.sql, "autoincrement");
            schema.has_effects |= object.kind == "trigger" || mentions(&object.sql, "references");
            schema.objects.insert(name, object);
        }
        let mut statement = connection.prepare_cached(own_sql!(
            "SELECT l.name, l.wr, x.cid, x.name, x.type, x.pk, x.hidden, \
             EXISTS (SELECT 1 FROM pragma_index_list(l.name) WHERE origin = 'pk') \
             FROM pragma_table_list l JOIN pragma_table_xinfo(l.name) x \
             WHERE l.schema = 'main' AND l.type = 'table' \
             AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND l.name NOT LIKE '\\_dosql\\_%' ESCAPE '\\' \
             ORDER BY l.name, x.cid"
        ))?;
        let mut rows = statement.query([])?;
        let mut building: Option<Building> = None;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            if building.as_ref().is_none_or(|current| current.shape.table.name != name) {
                schema.finish(building.take());
                building = Some(Building::new(name, row.get::<_, i64>(1)? == 0, row.get(7)?));
            }
            if let Some(current) = &mut building {
                current.column(row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?);
            }
        }
        schema.finish(building);
        Ok(schema)
    }

    fn finish(&mut self, building: Option<Building>) {
        if let Some(building) = building {
            let shape = building.finish();
            self.shapes.insert(shape.table.name.clone(), Rc::new(shape));
        }
    }

    /// Every recorded table by name.
    pub(super) fn shapes(&self) -> &BTreeMap<String, Rc<TableShape>> {
        &self.shapes
    }

    /// The tables and the statements that make them.
    pub(super) fn tables(&self) -> Vec<TableStatus> {
        self.objects
            .iter()
            .filter(|(_, object)| object.kind == "table")
            .map(|(name, object)| TableStatus { name: name.clone(), sql: object.sql.clone() })
            .collect()
    }

    /// Everything defined, by its kind, in an order in which it can be made.
    pub(super) fn definitions(&self) -> Vec<(&str, TableStatus)> {
        let of = |kind: &'static str| {
            let objects = self.objects.iter().filter(move |(_, object)| object.kind == kind);
            objects.map(move |(name, object)| (kind, TableStatus { name: name.clone(), sql: object.sql.clone() }))
        };
        ["table", "index", "view", "trigger"].into_iter().flat_map(of).collect()
    }

    /// What the statement `sql` made of the schema `self` when it became `after`.
    pub(super) fn difference(&self, after: &Self, sql: &str) -> Option<Difference> {
        if self.objects == after.objects {
            return None;
        }
        let table =
            |schema: &Self, name: &str| schema.objects.get(name).filter(|object| object.kind == "table").cloned();
        let appeared = after.shapes.iter().find(|(name, _)| table(self, name).is_none());
        let vanished = self.shapes.keys().find(|name| table(after, name).is_none());
        let altered = || {
            let shape_differs = after.shapes.iter().find(|(name, shape)| self.shapes.get(*name) != Some(*shape));
            shape_differs.or_else(|| after.shapes.iter().find(|(name, _)| table(self, name) != table(after, name)))
        };
        let changed = |shape: &TableShape, sql: String| SchemaChange {
            sql,
            table: Some(shape.table.clone()),
            dropped: vanished.cloned().unwrap_or_default(),
            ..SchemaChange::default()
        };
        let difference = if let Some((name, shape)) = appeared {
            // As SQLite keeps it: a table made by AS SELECT is described by its columns.
            let made = table(after, name).filter(|_| vanished.is_none()).map(|object| object.sql);
            let change = changed(shape, made.unwrap_or_else(|| sql.to_owned()));
            Difference { change, rows: UnseenRows::Inserted(Rc::clone(shape)) }
        } else if let Some((name, shape)) = altered().filter(|_| vanished.is_none()) {
            let (before, columns) = (&self.shapes[name].table.columns, &shape.table.columns);
            let had = |column: &Column| before.iter().any(|known| known.name == column.name);
            let added: Vec<usize> = (0..columns.len()).filter(|at| !had(&columns[*at])).collect();
            let rows = match added.as_slice() {
                [] => UnseenRows::None,
                [renamed] if before.len() == columns.len() => UnseenRows::Renamed(Rc::clone(shape), *renamed),
                _ => UnseenRows::Updated(Rc::clone(shape), added),
            };
            Difference { change: changed(shape, sql.to_owned()), rows }
        } else {
            let dropped = vanished.cloned().unwrap_or_default();
            let change = SchemaChange { sql: sql.to_owned(), dropped, ..SchemaChange::default() };
            Difference { change, rows: UnseenRows::None }
        };
        Some(difference)
    }
}

/// Refuses a schema in which a statement has given a table a name of the shard's own (`ALTER TABLE ... RENAME TO`).
pub(super) fn check_names(connection: &Connection, own_tables: usize) -> Result<(), Error> {
    let count: i64 = connection
        .prepare_cached(own_sql!("SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_dosql\\_%' ESCAPE '\\'"))
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(sql_error)?;
    if usize::try_from(count) == Ok(own_tables) {
        return Ok(());
    }
    let what = own_name(OWN_PREFIX).unwrap_or_default();
    Err(Error::new(ErrorCode::Unsupported, what))
}

struct Building {
    shape: TableShape,
    /// (rank in the primary key, position among the stored columns)
    key: Vec<(i64, u32)>,
    /// Whether the primary key has an index of its own.
    key_index: bool,
}

impl Building {
    fn new(name: String, has_rowid: bool, key_index: bool) -> Self {
        let table = WalTable { name, ..WalTable::default() };
        Self {
            shape: TableShape {
                table,
                stored: Vec::new(),
                real: Vec::new(),
                generated: Vec::new(),
                has_rowid,
                rowid_is_key: false,
            },
            key: Vec::new(),
            key_index,
        }
    }

    fn column(&mut self, index: i32, name: String, declared_type: String, key_rank: i64, hidden: i64) {
        /// What PRAGMA table_xinfo calls a VIRTUAL generated column.
        const VIRTUAL: i64 = 2;
        /// And a STORED one.
        const STORED: i64 = 3;
        if hidden == VIRTUAL {
            return;
        }
        if key_rank > 0 {
            let position = u32::try_from(self.shape.stored.len()).unwrap_or(u32::MAX);
            self.key.push((key_rank, position));
        }
        self.shape.stored.push(index);
        self.shape.real.push(has_real_affinity(&declared_type));
        self.shape.generated.push(hidden == STORED);
        self.shape.table.columns.push(Column { name, declared_type });
    }

    fn finish(mut self) -> TableShape {
        self.key.sort_unstable();
        self.shape.table.primary_key = self.key.into_iter().map(|(_, position)| position).collect();
        self.shape.rowid_is_key = match self.shape.table.primary_key.as_slice() {
            [position] => {
                self.shape.has_rowid
                    // INTEGER PRIMARY KEY DESC is, for history's sake, not the rowid.
                    && !self.key_index
                    && self.shape.table.columns[*position as usize].declared_type.eq_ignore_ascii_case("INTEGER")
            }
            _ => false,
        };
        self.shape
    }
}

/// SQLite's rules for the affinity of a declared type, as far as REAL goes.
fn has_real_affinity(declared_type: &str) -> bool {
    let upper = declared_type.to_ascii_uppercase();
    let has = |part: &str| upper.contains(part);
    !["INT", "CHAR", "CLOB", "TEXT", "BLOB"].into_iter().any(has) && ["REAL", "FLOA", "DOUB"].into_iter().any(has)
}

/// Whether a statement's text contains a word, which is in lower case.
fn mentions(sql: &str, word: &str) -> bool {
    sql.as_bytes().windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}
