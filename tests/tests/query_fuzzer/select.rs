//! Random SELECTs.

use super::query::{Visible, Writer, total_order, visible};
use super::schema::{Kind, literal};

impl Writer<'_> {
    /// A query, and whether its rows come in one order only.
    pub(super) fn statement(&mut self) -> (String, bool) {
        match self.random.below(30) {
            0..=2 => self.compound(),
            3..=4 => (self.with(), false),
            5 => self.counted(),
            6 => (self.walked(), false),
            7..=9 => (self.windowed(), false),
            10 => (self.joined_by_name(), false),
            11 => (self.concatenated(), false),
            12 => (self.listed(), false),
            _ => {
                let (mut sql, width) = self.select(&[], 2, None);
                // Which of several equal texts stands for a group is open, and so is where it comes in binary order.
                let ordered = self.random.chance(50) && !(self.loose && self.collated());
                if ordered {
                    self.order_by(&mut sql, width);
                }
                (sql, ordered)
            }
        }
    }

    fn collated(&self) -> bool {
        self.schema.statements.iter().any(|sql| sql.contains("COLLATE"))
    }

    /// ORDER BY every column, and perhaps LIMIT.
    fn order_by(&mut self, sql: &mut String, width: usize) {
        let mut terms: Vec<String> = Vec::new();
        let first = self.random.below(width);
        if self.random.chance(15) {
            terms.push(format!("{} COLLATE NOCASE{}", first + 1, self.word(&["", " DESC"])));
        }
        for index in (first..width).chain(0..first) {
            let direction = self.word(&["", "", " DESC", " ASC NULLS LAST", " DESC NULLS FIRST"]);
            terms.push(format!("{} COLLATE BINARY{direction}", index + 1));
        }
        sql.push_str(&format!(" ORDER BY {}", terms.join(", ")));
        if self.random.chance(50) {
            self.loose = true;
            let (limit, offset) = (self.random.below(8), self.random.below(5));
            sql.push_str(&match self.random.below(8) {
                0..=3 => format!(" LIMIT {limit}"),
                4 => format!(" LIMIT {offset}, {limit}"),
                5 => format!(" LIMIT -1 OFFSET {offset}"),
                6 => format!(" LIMIT (SELECT count(*) FROM {}) OFFSET {offset}", self.any_table().name),
                _ => format!(" LIMIT {limit} + 1 OFFSET {offset}"),
            });
        }
    }

    fn compound(&mut self) -> (String, bool) {
        let width = 1 + self.random.below(3);
        let mut sql = self.compound_of(&[], 1, width);
        let ordered = self.random.chance(40) && !(self.loose && self.collated());
        if ordered {
            self.order_by(&mut sql, width);
        }
        (sql, ordered)
    }

    fn compound_of(&mut self, outer: &[Visible], depth: usize, width: usize) -> String {
        let mut sql = self.select(outer, depth, Some(width)).0;
        for _ in 0..1 + self.random.below(2) {
            let operator = self.word(&["UNION ALL", "UNION", "EXCEPT", "INTERSECT"]);
            self.loose |= operator != "UNION ALL";
            sql.push_str(&format!(" {operator} {}", self.select(outer, depth, Some(width)).0));
        }
        sql
    }

    fn with(&mut self) -> String {
        let inner = match self.random.chance(30) {
            true => self.compound_of(&[], 1, 2),
            false => self.select(&[], 1, Some(2)).0,
        };
        let hint = self.word(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
        let one = format!("WITH w(x, y) AS {hint}({inner})");
        match self.random.below(5) {
            0 => format!("{one} SELECT count(*), count(x) FROM w"),
            1 => format!("{one} SELECT x, y FROM w AS a"),
            2 => {
                self.loose = true;
                format!(
                    "{one}, u AS (SELECT x, count(*) AS n FROM w GROUP BY x) SELECT w.y, u.n FROM w JOIN u ON w.x = u.x"
                )
            }
            3 => format!("{one} SELECT a.x, b.y FROM w AS a LEFT JOIN w AS b ON a.y = b.x"),
            _ => {
                let table = self.any_table();
                format!("{one} SELECT t.c0, x FROM {} AS t JOIN w ON t.c1 = w.y WHERE x IS NOT NULL", table.name)
            }
        }
    }

    fn counted(&mut self) -> (String, bool) {
        let table = self.base_table();
        let limit = 1 + self.random.below(9);
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {limit})
             SELECT i, count(c0) FROM n LEFT JOIN {} ON c0 = i GROUP BY i ORDER BY i",
            table.name
        );
        (sql, true)
    }

    /// A walk from row to row.
    fn walked(&mut self) -> String {
        self.loose = true;
        let table = self.any_table().name;
        let start = literal(self.random, Kind::Integer);
        let rest = match self.random.below(3) {
            0 => "SELECT x, min(d), count(*) FROM r GROUP BY x".to_owned(),
            1 => "SELECT count(*), max(d) FROM r".to_owned(),
            _ => format!("SELECT c0, count(*) FROM {table} WHERE c1 IN (SELECT x FROM r) GROUP BY c0"),
        };
        format!(
            "WITH RECURSIVE r(x, d) AS (SELECT c0, 0 FROM {table} WHERE c0 >= {start} UNION \
             SELECT t.c1, d + 1 FROM r JOIN {table} AS t ON t.c0 = r.x WHERE d < 3) {rest}"
        )
    }

    fn windowed(&mut self) -> String {
        let table = self.any_table();
        let alias = self.alias();
        let columns = visible(&table, &alias);
        self.loose = true;
        if self.random.chance(15) {
            let column = self.column(&columns);
            let filter = self.filter(&columns, 0);
            return format!(
                "SELECT {column}, count(*), rank() OVER (ORDER BY count(*)) FROM {} AS {alias}{filter} GROUP BY {column}",
                table.name
            );
        }
        let (window, framed) = self.window(&columns);
        let function = self.window_function(&columns, framed);
        let list: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let filter = self.filter(&columns, 1);
        let (over, named) = match self.random.chance(30) {
            true => ("w, count(*) OVER w".to_owned(), format!(" WINDOW w AS ({window})")),
            false => (format!("({window})"), String::new()),
        };
        format!("SELECT {}, {function} OVER {over} FROM {} AS {alias}{filter}{named}", list.join(", "), table.name)
    }

    /// SELECTs whose joins name their columns once.
    fn joined_by_name(&mut self) -> String {
        let (one, other) = (self.any_table().name, self.any_table().name);
        let join = self.word(&["JOIN", "LEFT JOIN", "FULL JOIN", "RIGHT JOIN"]);
        match self.random.below(3) {
            0 => format!("SELECT count(*), count(a.c1), count(b.c1) FROM {one} AS a NATURAL {join} {other} AS b"),
            1 => format!("SELECT c0, a.c1, b.c1 FROM {one} AS a {join} {other} AS b USING (c0)"),
            _ => format!("SELECT count(*), min(a.c0) IS NULL FROM {one} AS a {join} {other} AS b USING (c0, c1)"),
        }
    }

    /// Aggregates over rows in a given order.
    fn concatenated(&mut self) -> String {
        let table = self.any_table();
        let alias = self.alias();
        let columns = visible(&table, &alias);
        let order = total_order(&columns);
        let column = self.column(&columns);
        let filter = self.filter(&columns, 1);
        let call = match self.random.below(4) {
            0 => format!("group_concat({column} ORDER BY {order})"),
            1 => format!("json_group_array(quote({column}) ORDER BY {order})"),
            2 => format!("group_concat(coalesce({column}, '-'), '/' ORDER BY {order})"),
            _ => format!("json_group_object(quote({column}), length({column}) ORDER BY {order})"),
        };
        let group = self.column(&columns);
        self.loose = true;
        match self.random.chance(40) {
            true => format!("SELECT count({group}), {call} FROM {} AS {alias}{filter} GROUP BY {group}", table.name),
            false => format!("SELECT {call} FROM {} AS {alias}{filter}", table.name),
        }
    }

    /// Table-valued functions and VALUES.
    fn listed(&mut self) -> String {
        let table = self.any_table();
        let columns = visible(&table, "t");
        let (one, other) = (self.column(&columns), self.column(&columns));
        let filter = self.filter(&columns, 0);
        match self.random.below(5) {
            0 => format!(
                "SELECT j.key, j.value, j.type FROM {} AS t, json_each(json_array(quote({one}), length({other}))) AS j{filter}",
                table.name
            ),
            1 => format!(
                "SELECT t.c0, j.atom, j.path FROM {} AS t JOIN json_tree(json_object('a', quote({one}), 'b', json_array(1, 2))) AS j{filter}",
                table.name
            ),
            2 => {
                let rows: Vec<String> = (0..1 + self.random.below(4))
                    .map(|_| format!("({}, {})", literal(self.random, Kind::Any), literal(self.random, Kind::Integer)))
                    .collect();
                format!("VALUES {}", rows.join(", "))
            }
            3 => format!(
                "SELECT t.c0, n.column1 FROM {} AS t JOIN (VALUES (1, 'a'), (2, 'b'), (0, 'c')) AS n ON n.column1 = {one}",
                table.name
            ),
            _ => format!("SELECT * FROM {} AS t{filter}", table.name),
        }
    }

    pub(super) fn filter(&mut self, columns: &[Visible], depth: usize) -> String {
        if self.random.chance(30) { String::new() } else { format!(" WHERE {}", self.condition(columns, depth)) }
    }

    /// What a FROM clause may read, and its columns.
    fn item(&mut self, depth: usize) -> (String, Vec<Visible>) {
        let alias = self.alias();
        let kind = if depth > 0 && !self.exact { self.random.below(100) } else { 100 };
        let any = |names: &[String]| -> Vec<Visible> {
            names.iter().map(|name| Visible { name: format!("{alias}.{name}"), kind: Kind::Any }).collect()
        };
        match kind {
            0..=7 => {
                let (inner, count) = self.select(&[], 0, None);
                let names: Vec<String> = (0..count).map(|index| format!("x{index}")).collect();
                let with = self.alias();
                let columns = any(&names);
                (format!("(WITH {with}({}) AS ({inner}) SELECT * FROM {with}) AS {alias}", names.join(", ")), columns)
            }
            8..=12 => {
                let inner = self.compound_of(&[], 0, 2);
                let with = self.alias();
                let columns = any(&["x".to_owned(), "y".to_owned()]);
                (format!("(WITH {with}(x, y) AS ({inner}) SELECT x, y FROM {with}) AS {alias}"), columns)
            }
            13..=17 => {
                let table = self.any_table();
                let columns = visible(&table, &alias);
                self.loose = true;
                let order: Vec<String> = (1..=columns.len()).map(|place| format!("{place} COLLATE BINARY")).collect();
                let limit = 1 + self.random.below(6);
                (
                    format!("(SELECT * FROM {} ORDER BY {} LIMIT {limit}) AS {alias}", table.name, order.join(", ")),
                    columns,
                )
            }
            18..=20 => {
                let columns = any(&["column1".to_owned(), "column2".to_owned()]);
                let values = format!(
                    "(VALUES ({}, 'a'), ({}, 'B'), (NULL, 3)) AS {alias}",
                    literal(self.random, Kind::Integer),
                    literal(self.random, Kind::Text)
                );
                (values, columns)
            }
            _ => {
                let table = self.any_table();
                let columns = visible(&table, &alias);
                (format!("{} AS {alias}", table.name), columns)
            }
        }
    }

    /// A SELECT, and how many columns it has.
    pub(super) fn select(&mut self, outer: &[Visible], depth: usize, width: Option<usize>) -> (String, usize) {
        let mut from = String::new();
        let mut columns: Vec<Visible> = Vec::new();
        let tables = if depth == 0 { 1 } else { 1 + self.random.below(3) };
        for number in 0..tables {
            let (item, new) = self.item(depth);
            if number == 0 {
                from.push_str(&item);
                columns = new;
                continue;
            }
            let join = self.word(&[
                ", ",
                " JOIN ",
                " JOIN ",
                " JOIN ",
                " LEFT JOIN ",
                " LEFT JOIN ",
                " CROSS JOIN ",
                " RIGHT JOIN ",
                " FULL JOIN ",
            ]);
            from.push_str(join);
            from.push_str(&item);
            let on = match (self.column(&columns), self.column(&new)) {
                (left, right) if self.random.chance(80) => format!("{left} = {right}"),
                (left, right) => format!("{left} < {right}"),
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
        if depth > 0 && !self.exact && self.random.chance(35) {
            return (self.grouped(&from, &filter, &columns, count), count);
        }
        let distinct = if !self.exact && self.random.chance(20) { "DISTINCT " } else { "" };
        self.loose |= !distinct.is_empty();
        let list: Vec<String> = (0..count)
            .map(|_| if self.random.chance(70) { self.column(&columns) } else { self.expression(&known, depth) })
            .collect();
        (format!("SELECT {distinct}{} FROM {from}{filter}", list.join(", ")), count)
    }

    fn grouped(&mut self, from: &str, filter: &str, columns: &[Visible], count: usize) -> String {
        self.loose = true;
        let grouping = self.random.below(3).min(count);
        let groups: Vec<String> = (0..grouping)
            .map(|_| if self.random.chance(75) { self.column(columns) } else { self.expression(columns, 0) })
            .collect();
        let mut list = groups.clone();
        while list.len() < count {
            list.push(self.aggregate(columns));
        }
        let mut sql = format!("SELECT {} FROM {from}{filter}", list.join(", "));
        if !groups.is_empty() {
            let terms: Vec<String> = match self.random.chance(20) {
                true => (1..=groups.len()).map(|place| place.to_string()).collect(),
                false => groups,
            };
            sql.push_str(&format!(" GROUP BY {}", terms.join(", ")));
        }
        if self.random.chance(25) && grouping > 0 {
            sql.push_str(&format!(" HAVING {} > {}", self.aggregate(columns), self.random.below(4)));
        }
        sql
    }
}
