//! Random schemas and their rows.

use super::random::Random;

/// What kind of values a column mostly holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Integer,
    Real,
    Text,
    Any,
}

#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) generated: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    /// Columns that a conflict clause may name.
    pub(crate) key: Vec<String>,
    /// Whether rows can be inserted into it.
    pub(crate) is_view: bool,
}

pub(crate) struct Schema {
    pub(crate) tables: Vec<Table>,
    /// For the shards alone: lookup vindexes of some columns.
    pub(crate) vschema: Vec<String>,
    pub(crate) statements: Vec<String>,
}

impl Table {
    pub(crate) fn given(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !column.generated).collect()
    }
}

/// A literal.
pub(crate) fn literal(random: &mut Random, kind: Kind) -> String {
    const TEXTS: [&str; 14] = [
        "''", "'a'", "'A'", "'b'", "'B '", "'abc'", "'Abc'", "'12'", "'-3.5'", "' 7'", "'x''y'", "'é'", "'%'", "'1e2'",
    ];
    if random.chance(12) {
        return "NULL".to_owned();
    }
    match kind {
        Kind::Integer if random.chance(3) => {
            (*random.pick(&["9223372036854775807", "-9223372036854775807", "4294967296"])).to_owned()
        }
        Kind::Integer => (random.below(20) as i64 - 6).to_string(),
        // Multiples of a quarter: sums are exact in any order.
        Kind::Real => format!("{:?}", (random.below(80) as f64 - 30.0) / 4.0),
        Kind::Text => (*random.pick(&TEXTS)).to_owned(),
        Kind::Any => match random.below(4) {
            0 => literal(random, Kind::Integer),
            1 => literal(random, Kind::Real),
            2 => literal(random, Kind::Text),
            _ => (*random.pick(&["x'00ff'", "x''", "x'61'", "0", "1"])).to_owned(),
        },
    }
}

impl Schema {
    /// `lookups` chooses which columns have lookup vindexes.
    pub(crate) fn new(random: &mut Random, lookups: &mut Random) -> Self {
        let mut schema = Self { tables: Vec::new(), vschema: Vec::new(), statements: Vec::new() };
        for number in 0..2 + random.below(3) {
            schema.table(random, lookups, number);
        }
        for number in 0..random.below(4) {
            schema.index(random, number);
        }
        if random.chance(50) {
            let table = random.pick(&schema.tables).clone();
            let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            schema.statements.push(format!(
                "CREATE VIEW v0 AS SELECT {} FROM {} WHERE c0 IS NOT NULL",
                columns.join(", "),
                table.name
            ));
            schema.tables.push(Table { name: "v0".to_owned(), is_view: true, key: Vec::new(), ..table });
        }
        schema
    }

    fn table(&mut self, random: &mut Random, lookups: &mut Random, number: usize) {
        let name = format!("t{number}");
        let mut columns = Vec::new();
        let mut definitions = Vec::new();
        let count = 2 + random.below(4);
        let mut key = Vec::new();
        let mut without_rowid = false;
        let looked_up = lookups.chance(40);
        if looked_up {
            self.vschema.push(format!("ALTER VSCHEMA ON t{number} ADD VINDEX hash(c0)"));
        }
        for index in 0..count {
            let (declared, kind) = *random.pick(&[
                ("INTEGER", Kind::Integer),
                ("INT", Kind::Integer),
                ("REAL", Kind::Real),
                ("NUMERIC", Kind::Any),
                ("TEXT", Kind::Text),
                ("VARCHAR(10)", Kind::Text),
                ("TEXT COLLATE NOCASE", Kind::Text),
                ("TEXT COLLATE RTRIM", Kind::Text),
                ("BLOB", Kind::Any),
                ("", Kind::Any),
            ]);
            let name = format!("c{index}");
            let mut definition = format!("{name} {declared}");
            if index == 0 && random.chance(45) {
                key.push(name.clone());
                if declared == "INTEGER" || declared == "INT" || random.chance(60) {
                    definition.push_str(" PRIMARY KEY");
                    if random.chance(25) {
                        definition.push_str(" NOT NULL");
                        without_rowid = true;
                    }
                } else {
                    definition.push_str(" UNIQUE");
                }
            } else if random.chance(10) {
                definition.push_str(&format!(" DEFAULT {}", literal(random, kind)));
            }
            if looked_up && index > 0 && lookups.chance(60) {
                let unique = lookups.chance(50);
                if unique {
                    definition.push_str(" UNIQUE");
                    if key.is_empty() || !without_rowid && lookups.chance(50) {
                        key = vec![name.clone()];
                    }
                }
                let kind = if unique { "lookup_unique" } else { "lookup" };
                let table = format!("t{number}_by_{name}");
                self.vschema.push(format!(
                    "ALTER VSCHEMA ON t{number} ADD VINDEX {table}({name}) USING {kind} WITH table={table}"
                ));
            }
            definitions.push(definition);
            columns.push(Column { name, kind, generated: false });
        }
        if random.chance(20) {
            let stored = random.pick(&["STORED", "VIRTUAL"]);
            definitions.push(format!("g0 AS (coalesce(c1, c0)) {stored}"));
            columns.push(Column { name: "g0".to_owned(), kind: Kind::Any, generated: true });
        }
        if random.chance(10) {
            definitions.push(format!("CHECK (c{} IS NOT 13)", count - 1));
        }
        let tail = if without_rowid { " WITHOUT ROWID" } else { "" };
        self.statements.push(format!("CREATE TABLE {name} ({}){tail}", definitions.join(", ")));
        self.tables.push(Table { name, columns, key, is_view: false });
    }

    fn index(&mut self, random: &mut Random, number: usize) {
        let table = random.pick(&self.tables);
        let column = random.pick(&table.columns);
        let filter =
            if random.chance(20) { format!(" WHERE {} IS NOT NULL", table.columns[0].name) } else { String::new() };
        self.statements.push(format!("CREATE INDEX i{number} ON {} ({}){filter}", table.name, column.name));
    }
}
