//! Random INSERTs, UPDATEs and DELETEs.

use super::query::{Visible, Writer, unqualified, visible};
use super::random::Random;
use super::schema::{Column, Kind, Table, literal};

/// The highest rowid, above which SQLite chooses others at random.
const HIGHEST: &str = "9223372036854775807";

/// A value for a column.
fn value(random: &mut Random, table: &Table, column: &Column) -> String {
    let kind = if random.chance(8) { Kind::Any } else { column.kind };
    match literal(random, kind) {
        // A view's column may be the key of the table behind it.
        highest if highest == HIGHEST && (table.is_view || table.key.contains(&column.name)) => "77".to_owned(),
        value => value,
    }
}

/// An INSERT of some rows.
pub(crate) fn insert_rows(random: &mut Random, table: &Table, count: usize) -> String {
    let mut columns = table.given();
    if random.chance(15) {
        columns.remove(random.below(columns.len()));
    }
    let rows: Vec<String> = (0..count)
        .map(|_| {
            let values: Vec<String> = columns.iter().map(|column| value(random, table, column)).collect();
            format!("({})", values.join(", "))
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    format!("INSERT OR IGNORE INTO {} ({}) VALUES {}", table.name, names.join(", "), rows.join(", "))
}

impl Writer<'_> {
    pub(super) fn write(&mut self) -> String {
        let table = self.base_table();
        let columns = unqualified(&table.columns);
        let returning = match self.random.below(100) {
            0..=14 => " RETURNING *".to_owned(),
            15..=24 => format!(" RETURNING {}, {} AS x", self.column(&columns), self.expression(&columns, 0)),
            _ => String::new(),
        };
        match self.random.below(20) {
            0..=5 => self.insert(&table) + &returning,
            6..=7 => self.insert_selected(&table) + &returning,
            8 => self
                .insert_through_view()
                .unwrap_or_else(|| format!("INSERT INTO {} DEFAULT VALUES{returning}", table.name)),
            9..=15 => self.update(&table, &columns) + &returning,
            _ => self.delete(&table, &columns) + &returning,
        }
    }

    fn insert(&mut self, table: &Table) -> String {
        let rows = 1 + self.random.below(3);
        let sql = insert_rows(self.random, table, rows);
        match self.random.below(5) {
            0 => sql.replacen("OR IGNORE", "OR REPLACE", 1),
            1 => insert_rows(self.random, table, 1).replacen("OR IGNORE ", "", 1),
            2 => sql.replacen("INSERT OR IGNORE", "REPLACE", 1),
            3 if !table.key.is_empty() => sql.replacen("OR IGNORE ", "", 1) + &self.upsert(table),
            _ => sql,
        }
    }

    /// ON CONFLICT clauses.
    fn upsert(&mut self, table: &Table) -> String {
        let key = table.key.join(", ");
        let set: Vec<&Column> = table.given();
        let last = set.last().map_or("c0", |column| &column.name).to_owned();
        match self.random.below(7) {
            0 => format!(" ON CONFLICT ({key}) DO NOTHING"),
            1 => " ON CONFLICT DO NOTHING".to_owned(),
            2 => {
                format!(" ON CONFLICT ({key}) DO UPDATE SET {last} = excluded.{last} WHERE excluded.{last} IS NOT NULL")
            }
            3 => {
                format!(" ON CONFLICT ({key}) DO UPDATE SET {last} = coalesce({}.{last}, excluded.{last})", table.name)
            }
            4 => format!(" ON CONFLICT ({key}) DO NOTHING ON CONFLICT DO UPDATE SET {last} = 5"),
            5 => {
                let other = self.base_table().name;
                format!(" ON CONFLICT ({key}) DO UPDATE SET {last} = (SELECT count(*) FROM {other})")
            }
            _ => format!(" ON CONFLICT ({key}) DO UPDATE SET {last} = excluded.{last}"),
        }
    }

    fn insert_selected(&mut self, table: &Table) -> String {
        let given: Vec<Column> = table.given().into_iter().cloned().collect();
        let source = self.base_table();
        let from = visible(&source, "s");
        let list: Vec<String> = given
            .iter()
            .map(|column| {
                let selected = match self.random.below(10) {
                    0..=6 => self.column(&from),
                    7..=8 => "NULL".to_owned(),
                    _ => format!("({})", self.expression(&from, 0)),
                };
                match table.key.contains(&column.name) {
                    true => format!("nullif({selected}, {HIGHEST})"),
                    false => selected,
                }
            })
            .collect();
        let names: Vec<&str> = given.iter().map(|column| column.name.as_str()).collect();
        let order: Vec<String> = (1..=list.len()).map(|place| format!("{place} COLLATE BINARY")).collect();
        let filter = self.filter(&from, 0);
        let or = self.word(&["OR IGNORE ", "OR IGNORE ", "OR REPLACE ", ""]);
        let (filter, conflict) = match or.is_empty() && !table.key.is_empty() {
            true if filter.is_empty() => (" WHERE true".to_owned(), self.upsert(table)),
            true => (filter, self.upsert(table)),
            false => (filter, String::new()),
        };
        let with =
            if self.random.chance(10) { format!("WITH q AS (SELECT 1 FROM {}) ", source.name) } else { String::new() };
        format!(
            "{with}INSERT {or}INTO {} ({}) SELECT {} FROM {} AS s{filter} ORDER BY {}{conflict}",
            table.name,
            names.join(", "),
            list.join(", "),
            source.name,
            order.join(", ")
        )
    }

    /// INSTEAD OF a view, where one has such a trigger.
    fn insert_through_view(&mut self) -> Option<String> {
        let views: Vec<Table> =
            self.schema.tables.iter().filter(|table| table.is_view && table.insertable).cloned().collect();
        if views.is_empty() {
            return None;
        }
        let view = self.random.pick(&views).clone();
        let rows = 1 + self.random.below(2);
        Some(insert_rows(self.random, &view, rows).replacen("OR IGNORE ", "", 1))
    }

    fn update(&mut self, table: &Table, columns: &[Visible]) -> String {
        let given: Vec<Column> = table.given().into_iter().cloned().collect();
        let column = self.random.pick(&given).clone();
        let name = &column.name;
        let or = self.word(&["", "", "", "", "", "", "", "OR REPLACE ", "OR IGNORE "]);
        let filter = self.filter(columns, 1);
        let other = self.base_table().name;
        let literal = value(self.random, table, &column);
        match self.random.below(12) {
            0 => format!("UPDATE {or}{} SET {name} = {name} + 1{filter}", table.name),
            1 => format!("UPDATE {or}{} SET {name} = (SELECT count(*) FROM {other}){filter}", table.name),
            2 => {
                let second = &self.random.pick(&given).name;
                match second == name {
                    true => format!("UPDATE {or}{} SET {name} = {literal}{filter}", table.name),
                    false => format!("UPDATE {or}{} SET {name} = {literal}, {second} = {name}{filter}", table.name),
                }
            }
            3 => {
                let second = given.iter().map(|column| &column.name).find(|other| *other != name);
                let second = second.unwrap_or(name);
                format!(
                    "UPDATE {} SET ({name}, {second}) = (SELECT count(*), count(c1) FROM {other}){filter}",
                    table.name
                )
            }
            4 => {
                let from = format!("(SELECT count(*) AS n FROM {other}) AS f");
                let columns: Vec<Visible> = visible(table, &table.name);
                format!("UPDATE {} SET {name} = f.n FROM {from}{}", table.name, self.filter(&columns, 0))
            }
            5 if other != table.name => {
                let to = self.column(columns);
                format!("UPDATE {0} SET {name} = {literal} FROM {other} AS f WHERE f.c0 = {0}.{to}", table.name)
            }
            6 => format!(
                "UPDATE {or}{} SET {name} = {literal} WHERE {} IN (SELECT c0 FROM {other})",
                table.name,
                self.column(columns)
            ),
            7 => format!(
                "WITH w AS (SELECT c0 FROM {other}) UPDATE {} SET {name} = {literal} WHERE EXISTS (SELECT 1 FROM w WHERE w.c0 = {})",
                table.name,
                self.column(columns)
            ),
            _ => format!("UPDATE {or}{} SET {name} = {literal}{filter}", table.name),
        }
    }

    fn delete(&mut self, table: &Table, columns: &[Visible]) -> String {
        let other = self.base_table().name;
        match self.random.below(6) {
            0 => format!("DELETE FROM {} WHERE {} IN (SELECT c1 FROM {other})", table.name, self.column(columns)),
            1 => format!(
                "DELETE FROM {0} WHERE EXISTS (SELECT 1 FROM {other} AS o WHERE o.c0 = {0}.{1} AND o.c1 IS NOT NULL)",
                table.name,
                self.column(columns)
            ),
            _ => format!("DELETE FROM {} WHERE {}", table.name, self.condition(columns, 1)),
        }
    }
}
