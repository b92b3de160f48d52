//! Random expressions, conditions, aggregates and windows.

use super::query::{Visible, Writer, total_order};
use super::schema::{Kind, literal};

impl Writer<'_> {
    pub(super) fn condition(&mut self, columns: &[Visible], depth: usize) -> String {
        let column = self.random.pick(columns).clone();
        let (name, kind) = (column.name, column.kind);
        let not = self.word(&["", "NOT "]);
        match self.random.below(28) {
            0 if depth > 0 => {
                format!("({} OR {})", self.condition(columns, depth - 1), self.condition(columns, depth - 1))
            }
            1..=2 if depth > 0 => {
                format!("{} AND {}", self.condition(columns, depth - 1), self.condition(columns, depth - 1))
            }
            3 if depth > 0 => format!("NOT ({})", self.condition(columns, depth - 1)),
            4 => format!("{name} IS {not}NULL"),
            5 => {
                let list: Vec<String> = (0..self.random.below(4)).map(|_| literal(self.random, kind)).collect();
                format!("{name} {not}IN ({})", list.join(", "))
            }
            6 => {
                let (low, high) = (literal(self.random, kind), literal(self.random, kind));
                format!("{name} {not}BETWEEN {low} AND {high}")
            }
            7 => format!("{name} {not}LIKE '{}'", self.word(&["a%", "%b%", "_", "%", "1%"])),
            8 if depth > 0 => {
                let inner = self.select(columns, 0, Some(1)).0;
                format!("{name} {not}IN ({inner})")
            }
            9 if depth > 0 => format!("{not}EXISTS ({})", self.select(columns, 0, Some(1)).0),
            10 => {
                let operator = self.word(&["=", "<", "IS", "<>"]);
                format!("{name} {operator} {}", self.column(columns))
            }
            11 => self.row_value(columns, depth),
            12 => self.word_condition(&name),
            13 if depth > 0 => {
                let other = self.any_table().name;
                let inner = self.word(&["count(*)", "count(c0)", "count(DISTINCT c1)", "total(c1) > 2"]);
                format!("(SELECT {inner} FROM {other} WHERE c0 = {name}) {} 1", self.word(&[">", "=", "<="]))
            }
            14 if depth > 0 && !self.exact => {
                let (one, other) = (self.any_table().name, self.any_table().name);
                let operator = self.word(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]);
                format!("{name} {not}IN (SELECT c0 FROM {one} {operator} SELECT c1 FROM {other})")
            }
            15 => {
                format!("{name} = {} COLLATE {}", literal(self.random, kind), self.word(&["NOCASE", "BINARY", "RTRIM"]))
            }
            16 => format!("({name} {} {})", self.word(&["=", ">"]), self.expression(columns, 0)),
            _ => {
                let operator = self.word(&["=", "=", "=", "<", ">=", "<>", "IS", "IS NOT"]);
                format!("{name} {operator} {}", literal(self.random, kind))
            }
        }
    }

    fn row_value(&mut self, columns: &[Visible], depth: usize) -> String {
        let (one, other) = (self.random.pick(columns).clone(), self.random.pick(columns).clone());
        let pair = format!("({}, {})", one.name, other.name);
        let (first, second) = (literal(self.random, one.kind), literal(self.random, other.kind));
        match self.random.below(4) {
            0 if depth > 0 => format!("{pair} IN (SELECT c0, c1 FROM {})", self.any_table().name),
            1 => format!("{pair} IN (VALUES ({first}, {second}), (1, 2))"),
            2 => format!("{pair} = ({first}, {second})"),
            _ => format!("{pair} {} ({first}, {second})", self.word(&["<", ">=", "IS", "IS NOT"])),
        }
    }

    /// Conditions that are mostly words.
    fn word_condition(&mut self, name: &str) -> String {
        match self.random.below(8) {
            0 => format!("{name} GLOB '{}'", self.word(&["a*", "[A-C]*", "?", "*1*"])),
            1 => format!("{name} LIKE 'x!%%' ESCAPE '!'"),
            2 => format!("{name} NOTNULL"),
            3 => format!("{name} IS TRUE"),
            4 => format!("{name} IS NOT DISTINCT FROM {}", literal(self.random, Kind::Any)),
            5 => format!("typeof({name}) = '{}'", self.word(&["text", "integer", "real", "null", "blob"])),
            6 => format!("CASE {name} WHEN 1 THEN 1 WHEN 'a' THEN 1 ELSE {name} IS NULL END"),
            _ => format!("date({name}) > '2024-01-01'"),
        }
    }

    pub(super) fn expression(&mut self, columns: &[Visible], depth: usize) -> String {
        let column = self.random.pick(columns).clone();
        let (name, kind) = (column.name, column.kind);
        match self.random.below(34) {
            0 => literal(self.random, Kind::Any),
            1 => format!("{name} + {}", literal(self.random, Kind::Integer)),
            2 => format!("{name} * 2"),
            3 => format!("- - {name}"),
            4 => format!("coalesce({name}, {})", literal(self.random, kind)),
            5 => format!("CASE WHEN {} THEN {name} ELSE 'else' END", self.condition(columns, 0)),
            6 => format!("CAST({name} AS {})", self.word(&["TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB"])),
            7 => format!("upper({name}) || '-'"),
            8 => format!("({})", self.condition(columns, 0)),
            9 => format!("{name} % 3"),
            10..=11 if depth > 0 => {
                let (inner, _) = self.select(columns, 0, Some(1));
                // The first row depends on the order.
                format!("(SELECT count(*) FROM ({inner}))")
            }
            12 => format!("ifnull({name}, 0) = 1"),
            13 => format!("{name} & 3"),
            14 => format!("typeof({name})"),
            15 => format!("quote({name})"),
            16 => format!("hex({name})"),
            17 => format!("length({name})"),
            18 => format!("nullif({name}, {})", literal(self.random, kind)),
            19 => format!("iif({}, {name}, 0)", self.condition(columns, 0)),
            20 => format!("{}({name}, {})", self.word(&["min", "max"]), literal(self.random, kind)),
            21 => format!("round({name}, 1)"),
            22 => format!("printf('%s|%5.2f|%d', {name}, {name}, {name})"),
            23 => format!("replace({name}, 'a', 'bb')"),
            24 => format!("instr({name}, 'b')"),
            25 => format!("{}({name})", self.word(&["date", "time", "datetime", "julianday", "unixepoch"])),
            26 => format!("strftime('%Y-%m', {name}, '+1 month')"),
            27 => format!("json_array({name} IS NULL, quote({name}))"),
            28 => format!("json_extract(json_object('k', quote({name})), '$.k')"),
            29 => format!("json_array(1, quote({name})) ->> 1"),
            30 => format!("{name} COLLATE {}", self.word(&["NOCASE", "BINARY", "RTRIM"])),
            31 if depth > 0 => {
                let table = self.any_table();
                let aggregate = self.word(&["max", "min", "count"]);
                self.loose = true;
                format!("(SELECT {aggregate}(s.c1) FROM {} AS s WHERE s.c0 = {name})", table.name)
            }
            32 => format!("trim({name}, ' a')"),
            _ => format!("substr({name}, 1, 2)"),
        }
    }

    pub(super) fn aggregate(&mut self, columns: &[Visible]) -> String {
        let column = self.random.pick(columns).clone();
        let exact = matches!(column.kind, Kind::Integer | Kind::Real);
        let name = column.name;
        match self.random.below(13) {
            0 => "count(*)".to_owned(),
            1 => format!("count({name})"),
            2 => format!("count(DISTINCT {name})"),
            3 if exact => format!("sum({name})"),
            4 if exact => format!("avg({name})"),
            5 if exact => format!("total({name})"),
            6 => format!("min({name})"),
            7 => format!("max({name})"),
            8 if exact => format!("sum({name} % 5) FILTER (WHERE {})", self.condition(columns, 0)),
            9 => format!("count(*) FILTER (WHERE {})", self.condition(columns, 0)),
            10 => format!("max(length({name}))"),
            11 if exact => format!("sum(DISTINCT {name} % 7)"),
            _ => format!("count({name}) + 1"),
        }
    }

    /// A window over everything in one order (ties would leave it open), and whether it has a frame.
    pub(super) fn window(&mut self, columns: &[Visible]) -> (String, bool) {
        let mut sql = String::new();
        if self.random.chance(50) {
            sql = format!("PARTITION BY {} ", self.column(columns));
        }
        sql.push_str("ORDER BY ");
        let framed = self.random.chance(45);
        if framed && self.random.chance(20) {
            // Peers of one another are in the same frames.
            sql.push_str(&format!("{} RANGE BETWEEN 1 PRECEDING AND 2 FOLLOWING", self.column(columns)));
            return (sql, true);
        }
        let order = total_order(columns);
        let reversed = self.word(&["", " DESC", " NULLS LAST"]);
        sql.push_str(&order.replacen(" COLLATE BINARY", &format!(" COLLATE BINARY{reversed}"), 1));
        if framed {
            let unit = self.word(&["ROWS", "GROUPS", "RANGE"]);
            let near = unit != "RANGE";
            let start = match self.random.below(3) {
                0 if near => "2 PRECEDING",
                1 => "CURRENT ROW",
                _ => "UNBOUNDED PRECEDING",
            };
            let end = match self.random.below(3) {
                0 if near => "1 FOLLOWING",
                1 => "CURRENT ROW",
                _ => "UNBOUNDED FOLLOWING",
            };
            let exclude = self.word(&["", "", " EXCLUDE CURRENT ROW", " EXCLUDE GROUP", " EXCLUDE TIES"]);
            sql.push_str(&format!(" {unit} BETWEEN {start} AND {end}{exclude}"));
        }
        (sql, framed)
    }

    /// A function for such a window.
    pub(super) fn window_function(&mut self, columns: &[Visible], framed: bool) -> String {
        let column = self.random.pick(columns).clone();
        let name = column.name;
        // In frames of peers the first is any of them.
        let aggregates = 6;
        match self.random.below(if framed { aggregates } else { 15 }) {
            0 => format!("count({name})"),
            1 => format!("max({name})"),
            2 => format!("min({name})"),
            3 => format!("count(*) FILTER (WHERE {})", self.condition(columns, 0)),
            4 if column.kind == Kind::Real => format!("sum({name})"),
            4..=5 => "count(*)".to_owned(),
            6 => "row_number()".to_owned(),
            7 => "rank()".to_owned(),
            8 => "dense_rank()".to_owned(),
            9 => format!("lag({name}, {})", 1 + self.random.below(2)),
            10 => format!("lead({name}, 1, 'none')"),
            11 => format!("ntile({})", 1 + self.random.below(3)),
            12 => format!("nth_value({name}, 2)"),
            13 => format!("{}({name})", self.word(&["first_value", "last_value"])),
            _ => format!("{}()", self.word(&["percent_rank", "cume_dist"])),
        }
    }
}
