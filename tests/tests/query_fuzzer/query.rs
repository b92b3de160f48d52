//! Random statements.

use super::random::Random;
use super::schema::{Column, Kind, Schema, Table};

/// A statement, and how its outcome is to be compared.
pub(crate) struct Query {
    pub(crate) sql: String,
    /// Whether rows come in one order only.
    pub(crate) ordered: bool,
    /// Whether values that compare equal may stand for one another (DISTINCT, GROUP BY, min, LIMIT, ...).
    pub(crate) loose: bool,
    pub(crate) writes: bool,
}

/// A column that an expression may name.
#[derive(Clone)]
pub(super) struct Visible {
    pub(super) name: String,
    pub(super) kind: Kind,
}

pub(super) struct Writer<'a> {
    pub(super) random: &'a mut Random,
    pub(super) schema: &'a Schema,
    pub(super) aliases: usize,
    pub(super) loose: bool,
    /// Whether subqueries may only yield what does not depend on which of several equal values is kept.
    pub(super) exact: bool,
}

/// A query.
pub(crate) fn query(random: &mut Random, schema: &Schema) -> Query {
    let mut writer = Writer { random, schema, aliases: 0, loose: false, exact: false };
    let (sql, ordered) = writer.statement();
    Query { sql, ordered, loose: writer.loose, writes: false }
}

/// An INSERT, UPDATE or DELETE.
pub(crate) fn write(random: &mut Random, schema: &Schema) -> Query {
    let mut writer = Writer { random, schema, aliases: 0, loose: false, exact: true };
    let sql = writer.write();
    Query { sql, ordered: false, loose: false, writes: true }
}

impl Writer<'_> {
    pub(super) fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("a{}", self.aliases)
    }

    /// A table or a view; no view where all must be exact, since it may group.
    pub(super) fn any_table(&mut self) -> Table {
        if self.exact { self.base_table() } else { self.random.pick(&self.schema.tables).clone() }
    }

    pub(super) fn base_table(&mut self) -> Table {
        loop {
            let table = self.random.pick(&self.schema.tables);
            if !table.is_view {
                return table.clone();
            }
        }
    }

    /// One of some words.
    pub(super) fn word(&mut self, words: &[&'static str]) -> &'static str {
        self.random.pick::<&str>(words)
    }

    /// A column by its name.
    pub(super) fn column(&mut self, columns: &[Visible]) -> String {
        self.random.pick(columns).name.clone()
    }
}

pub(super) fn visible(table: &Table, alias: &str) -> Vec<Visible> {
    table.columns.iter().map(|column| Visible { name: format!("{alias}.{}", column.name), kind: column.kind }).collect()
}

/// The columns of a table as its own statement names them.
pub(super) fn unqualified(columns: &[Column]) -> Vec<Visible> {
    columns.iter().map(|column| Visible { name: column.name.clone(), kind: column.kind }).collect()
}

/// ORDER BY terms that leave no choice.
pub(super) fn total_order(columns: &[Visible]) -> String {
    let terms: Vec<String> = columns.iter().map(|column| format!("{} COLLATE BINARY", column.name)).collect();
    terms.join(", ")
}
