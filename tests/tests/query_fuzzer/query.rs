//! Random statements.

use super::random::Random;
use super::schema::{Column, Kind, Schema, Table, literal};

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
struct Visible {
    name: String,
    kind: Kind,
}

struct Writer<'a> {
    random: &'a mut Random,
    schema: &'a Schema,
    aliases: usize,
    loose: bool,
}

/// A query.
pub(crate) fn query(random: &mut Random, schema: &Schema) -> Query {
    let mut writer = Writer { random, schema, aliases: 0, loose: false };
    let (sql, ordered) = writer.statement();
    Query { sql, ordered, loose: writer.loose, writes: false }
}

/// An INSERT, UPDATE or DELETE.
pub(crate) fn write(random: &mut Random, schema: &Schema) -> Query {
    let mut writer = Writer { random, schema, aliases: 0, loose: false };
    let sql = writer.write();
    Query { sql, ordered: false, loose: false, writes: true }
}

/// An INSERT of some rows.
pub(crate) fn insert_rows(random: &mut Random, table: &Table, count: usize) -> String {
    let columns = table.given();
    let rows: Vec<String> = (0..count)
        .map(|_| {
            let values: Vec<String> = columns
                .iter()
                .map(|column| match literal(random, column.kind) {
                    // Above the highest rowid SQLite chooses at random.
                    highest if highest == "9223372036854775807" && table.key.contains(&column.name) => "77".to_owned(),
                    value => value,
                })
                .collect();
            format!("({})", values.join(", "))
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    format!("INSERT OR IGNORE INTO {} ({}) VALUES {}", table.name, names.join(", "), rows.join(", "))
}

impl Writer<'_> {
    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("a{}", self.aliases)
    }

    fn statement(&mut self) -> (String, bool) {
        match self.random.below(20) {
            0..=1 => self.compound(),
            2 => {
                let inner = self.select(&[], 1, Some(2)).0;
                let outer = self.alias();
                let body = self.random.pick(&["SELECT count(*), count(x) FROM", "SELECT x, y FROM"]).to_string();
                (format!("WITH w(x, y) AS ({inner}) {body} w AS {outer}"), false)
            }
            3 => {
                let table = self.base_table();
                let limit = 1 + self.random.below(9);
                (
                    format!(
                        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {limit})
                         SELECT i, count(c0) FROM n LEFT JOIN {} ON c0 = i GROUP BY i ORDER BY i",
                        table.name
                    ),
                    true,
                )
            }
            4..=5 => self.windowed(),
            _ => {
                let (mut sql, width) = self.select(&[], 2, None);
                // Which of several equal texts stands for a group is open, and so is where it comes in binary order.
                let collated = self.schema.statements.iter().any(|sql| sql.contains("COLLATE"));
                let ordered = self.random.chance(50) && !(self.loose && collated);
                if ordered {
                    self.order_by(&mut sql, width);
                }
                (sql, ordered)
            }
        }
    }

    /// ORDER BY every column, and perhaps LIMIT.
    fn order_by(&mut self, sql: &mut String, width: usize) {
        let mut terms: Vec<String> = Vec::new();
        let first = self.random.below(width);
        for index in (first..width).chain(0..first) {
            let direction = self.random.pick(&["", "", " DESC", " ASC NULLS LAST", " DESC NULLS FIRST"]);
            terms.push(format!("{} COLLATE BINARY{direction}", index + 1));
        }
        sql.push_str(&format!(" ORDER BY {}", terms.join(", ")));
        if self.random.chance(50) {
            self.loose = true;
            sql.push_str(&format!(" LIMIT {}", self.random.below(8)));
            if self.random.chance(40) {
                sql.push_str(&format!(" OFFSET {}", self.random.below(5)));
            }
        }
    }

    fn compound(&mut self) -> (String, bool) {
        let width = 1 + self.random.below(3);
        let mut sql = self.select(&[], 1, Some(width)).0;
        for _ in 0..1 + self.random.below(2) {
            let operator = *self.random.pick(&["UNION ALL", "UNION", "EXCEPT", "INTERSECT"]);
            self.loose |= operator != "UNION ALL";
            sql.push_str(&format!(" {operator} {}", self.select(&[], 1, Some(width)).0));
        }
        (sql, false)
    }

    fn windowed(&mut self) -> (String, bool) {
        let table = self.any_table();
        let alias = self.alias();
        let columns = visible(&table, &alias);
        // A window over everything in one order: ties would leave it open.
        let order: Vec<String> = columns.iter().map(|column| format!("{} COLLATE BINARY", column.name)).collect();
        let partition = if self.random.chance(50) {
            format!("PARTITION BY {} ", self.random.pick(&columns).name)
        } else {
            String::new()
        };
        let numeric = self.random.pick(&columns).name.clone();
        let function = match self.random.below(6) {
            0 => "row_number()".to_owned(),
            1 => "rank()".to_owned(),
            2 => "dense_rank()".to_owned(),
            3 => format!("count({numeric})"),
            4 => format!("lag({numeric}) "),
            _ => format!("max({numeric})"),
        };
        let list: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        self.loose = true;
        let filter = self.filter(&columns, 1);
        (
            format!(
                "SELECT {}, {function} OVER ({partition}ORDER BY {}) FROM {} AS {alias}{filter}",
                list.join(", "),
                order.join(", "),
                table.name
            ),
            false,
        )
    }

    fn any_table(&mut self) -> Table {
        self.random.pick(&self.schema.tables).clone()
    }

    fn base_table(&mut self) -> Table {
        loop {
            let table = self.any_table();
            if !table.is_view {
                return table;
            }
        }
    }

    fn filter(&mut self, columns: &[Visible], depth: usize) -> String {
        if self.random.chance(30) { String::new() } else { format!(" WHERE {}", self.condition(columns, depth)) }
    }

    /// A SELECT, and how many columns it has.
    fn select(&mut self, outer: &[Visible], depth: usize, width: Option<usize>) -> (String, usize) {
        let mut from = String::new();
        let mut columns: Vec<Visible> = Vec::new();
        let tables = if depth == 0 { 1 } else { 1 + self.random.below(3) };
        for number in 0..tables {
            let alias = self.alias();
            let (item, new) = if depth > 0 && self.random.chance(10) {
                let (inner, count) = self.select(&[], 0, None);
                let names: Vec<String> = (0..count).map(|index| format!("x{index}")).collect();
                let columns =
                    names.iter().map(|name| Visible { name: format!("{alias}.{name}"), kind: Kind::Any }).collect();
                let inner = inner.replacen("SELECT ", "SELECT /* inner */ ", 1);
                let with = self.alias();
                (format!("(WITH {with}({}) AS ({inner}) SELECT * FROM {with}) AS {alias}", names.join(", ")), columns)
            } else {
                let table = self.any_table();
                let columns = visible(&table, &alias);
                (format!("{} AS {alias}", table.name), columns)
            };
            if number == 0 {
                from.push_str(&item);
                columns = new;
                continue;
            }
            let join = *self.random.pick(&[", ", " JOIN ", " JOIN ", " LEFT JOIN ", " LEFT JOIN ", " CROSS JOIN "]);
            from.push_str(join);
            from.push_str(&item);
            let on = match (self.random.pick(&columns).clone(), self.random.pick(&new).clone()) {
                (left, right) if self.random.chance(80) => format!("{} = {}", left.name, right.name),
                (left, right) => format!("{} < {}", left.name, right.name),
            };
            columns.extend(new);
            match join {
                ", " | " CROSS JOIN " => {}
                _ => {
                    let more = if self.random.chance(20) {
                        format!(" AND {}", self.condition(&columns, 0))
                    } else {
                        String::new()
                    };
                    from.push_str(&format!(" ON {on}{more}"));
                }
            }
        }
        let mut known = columns.clone();
        known.extend_from_slice(outer);
        let filter = self.filter(&known, depth);
        let count = width.unwrap_or_else(|| 1 + self.random.below(4));
        if depth > 0 && self.random.chance(35) {
            return (self.grouped(&from, &filter, &columns, count), count);
        }
        let distinct = if self.random.chance(20) { "DISTINCT " } else { "" };
        self.loose |= !distinct.is_empty();
        let list: Vec<String> = (0..count)
            .map(|_| {
                if self.random.chance(70) {
                    self.random.pick(&columns).name.clone()
                } else {
                    self.expression(&known, depth)
                }
            })
            .collect();
        (format!("SELECT {distinct}{} FROM {from}{filter}", list.join(", ")), count)
    }

    fn grouped(&mut self, from: &str, filter: &str, columns: &[Visible], count: usize) -> String {
        self.loose = true;
        let grouping = self.random.below(3).min(count);
        let groups: Vec<String> = (0..grouping)
            .map(|_| {
                if self.random.chance(75) {
                    self.random.pick(columns).name.clone()
                } else {
                    self.expression(columns, 0)
                }
            })
            .collect();
        let mut list = groups.clone();
        while list.len() < count {
            list.push(self.aggregate(columns));
        }
        let mut sql = format!("SELECT {} FROM {from}{filter}", list.join(", "));
        if !groups.is_empty() {
            sql.push_str(&format!(" GROUP BY {}", groups.join(", ")));
        }
        if self.random.chance(25) && !groups.is_empty() {
            sql.push_str(&format!(" HAVING {} > {}", self.aggregate(columns), self.random.below(4)));
        }
        sql
    }

    fn aggregate(&mut self, columns: &[Visible]) -> String {
        let column = self.random.pick(columns).clone();
        let exact = matches!(column.kind, Kind::Integer | Kind::Real);
        match self.random.below(9) {
            0 => "count(*)".to_owned(),
            1 => format!("count({})", column.name),
            2 => format!("count(DISTINCT {})", column.name),
            3 if exact => format!("sum({})", column.name),
            4 if exact => format!("avg({})", column.name),
            5 if exact => format!("total({})", column.name),
            6 => format!("min({})", column.name),
            7 => format!("max({})", column.name),
            8 if exact => format!("sum({} % 5) FILTER (WHERE {})", column.name, self.condition(columns, 0)),
            _ => format!("count({}) + 1", column.name),
        }
    }

    fn condition(&mut self, columns: &[Visible], depth: usize) -> String {
        match self.random.below(14) {
            0 if depth > 0 => {
                format!("({} OR {})", self.condition(columns, depth - 1), self.condition(columns, depth - 1))
            }
            1..=2 if depth > 0 => {
                format!("{} AND {}", self.condition(columns, depth - 1), self.condition(columns, depth - 1))
            }
            3 if depth > 0 => format!("NOT ({})", self.condition(columns, depth - 1)),
            4 => format!("{} IS {}NULL", self.random.pick(columns).name, self.random.pick(&["", "NOT "])),
            5 => {
                let column = self.random.pick(columns).clone();
                let list: Vec<String> = (0..self.random.below(4)).map(|_| literal(self.random, column.kind)).collect();
                format!("{} {}IN ({})", column.name, self.random.pick(&["", "NOT "]), list.join(", "))
            }
            6 => {
                let column = self.random.pick(columns).clone();
                let (low, high) = (literal(self.random, column.kind), literal(self.random, column.kind));
                format!("{} BETWEEN {low} AND {high}", column.name)
            }
            7 => format!(
                "{} LIKE '{}'",
                self.random.pick(columns).name,
                self.random.pick(&["a%", "%b%", "_", "%", "1%"])
            ),
            8 if depth > 0 => {
                let inner = self.select(columns, 0, Some(1)).0;
                format!("{} {}IN ({inner})", self.random.pick(columns).name, self.random.pick(&["", "NOT "]))
            }
            9 if depth > 0 => {
                format!("{}EXISTS ({})", self.random.pick(&["", "NOT "]), self.select(columns, 0, Some(1)).0)
            }
            10 => {
                let operator = *self.random.pick(&["=", "<", "IS", "<>"]);
                format!("{} {operator} {}", self.random.pick(columns).name, self.random.pick(columns).name)
            }
            _ => {
                let column = self.random.pick(columns).clone();
                let operator = *self.random.pick(&["=", "=", "=", "<", ">=", "<>", "IS", "IS NOT"]);
                format!("{} {operator} {}", column.name, literal(self.random, column.kind))
            }
        }
    }

    fn expression(&mut self, columns: &[Visible], depth: usize) -> String {
        let column = self.random.pick(columns).clone();
        match self.random.below(14) {
            0 => literal(self.random, Kind::Any),
            1 => format!("{} + {}", column.name, literal(self.random, Kind::Integer)),
            2 => format!("{} * 2", column.name),
            3 => format!("- - {}", column.name),
            4 => format!("coalesce({}, {})", column.name, literal(self.random, column.kind)),
            5 => format!("CASE WHEN {} THEN {} ELSE 'else' END", self.condition(columns, 0), column.name),
            6 => format!("CAST({} AS {})", column.name, self.random.pick(&["TEXT", "INTEGER", "REAL", "NUMERIC"])),
            7 => format!("upper({}) || '-'", column.name),
            8 => format!("({})", self.condition(columns, 0)),
            9 => format!("{} % 3", column.name),
            10 if depth > 0 => {
                let (inner, _) = self.select(columns, 0, Some(1));
                // The first row depends on the order.
                format!("(SELECT count(*) FROM ({inner}))")
            }
            11 => format!("ifnull({}, 0) = 1", column.name),
            12 => format!("{} & 3", column.name),
            _ => format!("substr({}, 1, 2)", column.name),
        }
    }

    fn write(&mut self) -> String {
        let table = self.base_table();
        let given: Vec<Column> = table.given().into_iter().cloned().collect();
        let columns: Vec<Visible> =
            table.columns.iter().map(|column| Visible { name: column.name.clone(), kind: column.kind }).collect();
        let returning = if self.random.chance(20) { " RETURNING *" } else { "" };
        match self.random.below(12) {
            0..=3 => {
                let rows = 1 + self.random.below(3);
                let mut sql = insert_rows(self.random, &table, rows);
                match self.random.below(4) {
                    0 => sql = sql.replacen("OR IGNORE", "OR REPLACE", 1),
                    1 => sql = insert_rows(self.random, &table, 1).replacen("OR IGNORE ", "", 1),
                    2 if !table.key.is_empty() => {
                        let last = given.last().map_or("c0", |column| &column.name).to_owned();
                        sql = sql.replacen("OR IGNORE ", "", 1);
                        let action = match self.random.chance(30) {
                            true => "NOTHING".to_owned(),
                            false => format!("UPDATE SET {last} = excluded.{last}"),
                        };
                        sql.push_str(&format!(" ON CONFLICT ({}) DO {action}", table.key.join(", ")));
                    }
                    _ => {}
                }
                sql + returning
            }
            4 => {
                let source = self.base_table();
                let from = visible(&source, "s");
                let list: Vec<String> =
                    given
                        .iter()
                        .map(|_| {
                            if self.random.chance(70) {
                                self.random.pick(&from).name.clone()
                            } else {
                                "NULL".to_owned()
                            }
                        })
                        .collect();
                let names: Vec<&str> = given.iter().map(|column| column.name.as_str()).collect();
                let order: Vec<String> = (1..=list.len()).map(|place| format!("{place} COLLATE BINARY")).collect();
                let filter = self.filter(&from, 0);
                format!(
                    "INSERT OR IGNORE INTO {} ({}) SELECT {} FROM {} AS s{filter} ORDER BY {}",
                    table.name,
                    names.join(", "),
                    list.join(", "),
                    source.name,
                    order.join(", ")
                )
            }
            5..=8 => {
                let column = self.random.pick(&given).clone();
                let value = match self.random.below(4) {
                    0 => format!("{} + 1", column.name),
                    1 => {
                        let other = self.any_table();
                        format!("(SELECT count(*) FROM {})", other.name)
                    }
                    _ => literal(self.random, column.kind),
                };
                let or = if self.random.chance(10) { "OR REPLACE " } else { "" };
                format!(
                    "UPDATE {or}{} SET {} = {value}{}{returning}",
                    table.name,
                    column.name,
                    self.filter(&columns, 1)
                )
            }
            _ => {
                let condition = self.condition(&columns, 1);
                format!("DELETE FROM {} WHERE {condition}{returning}", table.name)
            }
        }
    }
}

fn visible(table: &Table, alias: &str) -> Vec<Visible> {
    table.columns.iter().map(|column| Visible { name: format!("{alias}.{}", column.name), kind: column.kind }).collect()
}
