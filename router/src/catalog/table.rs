//! Tables as the router knows them, read from the mirror.

use std::collections::BTreeMap;
use std::rc::Rc;

use rusqlite::Connection;

use super::lookup::Lookup;
use crate::affinity::{Affinity, Collation};
use crate::sql_text::quote;
use crate::vindex::{KeyColumn, Vindex};

/// Where a table's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// All on one shard, by its index.
    Unsharded(usize),
    /// All on every shard.
    Reference,
    /// Each on the shard that the table's vindex says of this column (by its index).
    Sharded(usize),
}

/// A column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ColumnInfo {
    pub(crate) name: String,
    pub(crate) declared_type: String,
    pub(crate) affinity: Affinity,
    pub(crate) collation: Collation,
    /// Computed from others; never inserted.
    pub(crate) generated: bool,
    /// Its place in the PRIMARY KEY, from 1; 0: not part of it.
    pub(crate) key_place: usize,
    /// The text of its DEFAULT.
    pub(crate) default: Option<String>,
    /// Whether it is NOT NULL.
    pub(crate) required: bool,
}

/// A table's shape, without where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) columns: Vec<ColumnInfo>,
    /// The column that is the rowid (INTEGER PRIMARY KEY).
    pub(crate) rowid_alias: Option<usize>,
    /// Whether rows are kept by their primary key alone (WITHOUT ROWID).
    pub(crate) without_rowid: bool,
    /// The columns of each UNIQUE and PRIMARY KEY constraint or index; `None` stands for an expression, and for a column whose
    /// values count as equal there though they differ by the column's own collation.
    pub(crate) unique: Vec<Vec<Option<usize>>>,
    /// Tables its foreign keys refer to, with the (child, parent) columns; a parent without name means its primary key.
    pub(crate) foreign_keys: Vec<ForeignKey>,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignKey {
    pub(crate) parent: String,
    /// Child column, and the parent's where it is named.
    pub(crate) columns: Vec<(String, Option<String>)>,
    /// What becomes of children whose parent's columns change, in capital letters as SQLite names it: `NO ACTION`, `RESTRICT`,
    /// `CASCADE`, `SET NULL` or `SET DEFAULT`.
    pub(crate) on_update: String,
    /// The same for parents that are deleted.
    pub(crate) on_delete: String,
}

impl ForeignKey {
    /// Whether what happens to a parent may change or delete children.
    pub(crate) fn acts(&self) -> bool {
        [&self.on_update, &self.on_delete].iter().any(|action| !matches!(action.as_str(), "NO ACTION" | "RESTRICT"))
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) shape: Shape,
    pub(crate) placement: Placement,
    /// How the sharding column's values map to shards; sharded tables alone have one.
    pub(crate) vindex: Option<Rc<Vindex>>,
    /// Its lookup vindexes.
    pub(crate) lookups: Vec<Rc<Lookup>>,
}

impl Table {
    /// Whether rows of both with equal values in their sharding columns are on the same shard.
    pub(crate) fn is_colocated(&self, other: &Self) -> bool {
        self.vindex.is_some() && self.vindex == other.vindex
    }
}

impl ColumnInfo {
    /// The column as a vindex sees it.
    pub(crate) fn as_key(&self) -> KeyColumn {
        KeyColumn { affinity: self.affinity, collation: self.collation }
    }
}

impl Shape {
    /// A column's index; names compare without case.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// What the rowid is called where no column shows it; `None` where one does, or rows have none.
    pub(crate) fn hidden_rowid(&self) -> Option<&'static str> {
        if self.without_rowid || self.rowid_alias.is_some() {
            return None;
        }
        ["rowid", "_rowid_", "oid"].into_iter().find(|name| self.column(name).is_none())
    }

    /// The columns of the primary key, in its order.
    pub(crate) fn primary_key(&self) -> Vec<usize> {
        let mut key: Vec<usize> = (0..self.columns.len()).filter(|index| self.columns[*index].key_place > 0).collect();
        key.sort_by_key(|index| self.columns[*index].key_place);
        key
    }

    /// The columns that are given values, in order.
    pub(crate) fn given(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|index| !self.columns[*index].generated).collect()
    }

    /// The first constraint that rows on other shards could break if the table were sharded by `column`. No two rows have
    /// the same value in one of the columns `covered`.
    pub(crate) fn unenforceable(&self, column: usize, covered: &[usize]) -> Option<String> {
        if let Some(alias) = self.rowid_alias.filter(|alias| *alias != column && !covered.contains(alias)) {
            return Some(format!("{} INTEGER PRIMARY KEY", self.columns[alias].name));
        }
        let kept = |place: &Option<usize>| place.is_some_and(|index| index == column || covered.contains(&index));
        let broken = self.unique.iter().find(|columns| !columns.iter().any(kept))?;
        let names: Vec<_> = broken
            .iter()
            .map(|column| column.map_or("(expression)", |index| self.columns[index].name.as_str()))
            .collect();
        Some(format!("UNIQUE ({})", names.join(", ")))
    }
}

/// The shapes of all tables of a database, by name in lower case.
pub(crate) fn shapes(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Shape>> {
    let names: Vec<(String, bool, bool)> = connection
        .prepare("SELECT name, strict, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    names
        .into_iter()
        .map(|(name, strict, without_rowid)| {
            Ok((name.to_ascii_lowercase(), shape(connection, name, strict, without_rowid)?))
        })
        .collect()
}

fn shape(connection: &Connection, name: String, strict: bool, without_rowid: bool) -> rusqlite::Result<Shape> {
    let mut columns: Vec<ColumnInfo> = connection
        .prepare("SELECT name, type, dflt_value, pk, hidden, \"notnull\" FROM pragma_table_xinfo(?1) ORDER BY cid")?
        .query_map([&name], |row| {
            let declared_type: String = row.get(1)?;
            Ok(ColumnInfo {
                name: row.get(0)?,
                affinity: Affinity::of(&declared_type, strict),
                declared_type,
                collation: Collation::Binary,
                default: row.get(2)?,
                key_place: row.get::<_, u32>(3)? as usize,
                generated: row.get::<_, i64>(4)? > 1,
                required: row.get(5)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    collations(connection, &name, &mut columns)?;

    let indexes: Vec<(String, bool, String)> = connection
        .prepare("SELECT name, \"unique\", origin FROM pragma_index_list(?1)")?
        .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let unique = indexes
        .iter()
        .filter(|(_, unique, _)| *unique)
        .map(|(index, ..)| {
            connection
                .prepare("SELECT cid, coll FROM pragma_index_xinfo(?1) WHERE key ORDER BY seqno")?
                .query_map([index], |row| {
                    let collation = Collation::of(&row.get::<_, String>(1)?);
                    let column = usize::try_from(row.get::<_, i64>(0)?).ok();
                    let own = |column: &usize| {
                        collation == Collation::Binary
                            || columns.get(*column).is_some_and(|column| column.collation == collation)
                    };
                    Ok(column.filter(own))
                })?
                .collect::<Result<_, _>>()
        })
        .collect::<rusqlite::Result<_>>()?;
    let mut keys = columns.iter().enumerate().filter(|(_, column)| column.key_place > 0);
    let rowid_alias = match (keys.next(), keys.next()) {
        (Some((index, column)), None)
            if column.declared_type.eq_ignore_ascii_case("INTEGER")
                && !without_rowid
                && !indexes.iter().any(|(_, _, origin)| origin == "pk") =>
        {
            Some(index)
        }
        _ => None,
    };
    let mut foreign_keys: BTreeMap<i64, ForeignKey> = BTreeMap::new();
    let mut statement = connection
        .prepare("SELECT id, \"table\", \"from\", \"to\", on_update, on_delete FROM pragma_foreign_key_list(?1) ORDER BY id, seq")?;
    let mut rows = statement.query([&name])?;
    while let Some(row) = rows.next()? {
        let new =
            ForeignKey { parent: row.get(1)?, columns: Vec::new(), on_update: row.get(4)?, on_delete: row.get(5)? };
        foreign_keys.entry(row.get(0)?).or_insert(new).columns.push((row.get(2)?, row.get(3)?));
    }
    Ok(Shape { name, columns, rowid_alias, without_rowid, unique, foreign_keys: foreign_keys.into_values().collect() })
}

/// No pragma tells a column's collation, but an index takes it over.
fn collations(connection: &Connection, table: &str, columns: &mut [ColumnInfo]) -> rusqlite::Result<()> {
    let list: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
    connection.execute_batch(&format!(
        "SAVEPOINT _dosql_collations; CREATE INDEX _dosql_collations ON {} ({})",
        quote(table),
        list.join(", ")
    ))?;
    let read = || -> rusqlite::Result<Vec<String>> {
        connection
            .prepare("SELECT coll FROM pragma_index_xinfo('_dosql_collations') WHERE key ORDER BY seqno")?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    let names = read();
    connection.execute_batch("ROLLBACK TO _dosql_collations; RELEASE _dosql_collations")?;
    for (column, name) in columns.iter_mut().zip(names?) {
        column.collation = Collation::of(&name);
    }
    Ok(())
}
