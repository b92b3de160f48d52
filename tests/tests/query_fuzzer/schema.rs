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
    /// Its declared type and collation.
    pub(crate) declared: &'static str,
    pub(crate) kind: Kind,
    pub(crate) generated: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    /// Columns that a conflict clause may name.
    pub(crate) key: Vec<String>,
    pub(crate) is_view: bool,
    /// Whether rows can be inserted into it.
    pub(crate) insertable: bool,
}

pub(crate) struct Schema {
    pub(crate) tables: Vec<Table>,
    /// For the shards alone: where tables are, and lookup vindexes of some columns.
    pub(crate) vschema: Vec<String>,
    pub(crate) statements: Vec<String>,
}

/// Where a table's rows are.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// By its first column, as AUTO_SHARD does.
    First,
    /// By another column and this vindex.
    Vindex(&'static str),
    Reference,
    Unsharded,
}

const TYPES: [(&str, Kind); 10] = [
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
];

impl Table {
    pub(crate) fn given(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !column.generated).collect()
    }

    /// The table without constraints, indexes and generated columns.
    pub(crate) fn bare(&self) -> String {
        let columns: Vec<String> =
            self.columns.iter().map(|column| format!("{} {}", column.name, column.declared)).collect();
        format!("CREATE TABLE {} ({})", self.name, columns.join(", "))
    }
}

/// A literal.
pub(crate) fn literal(random: &mut Random, kind: Kind) -> String {
    const TEXTS: [&str; 17] = [
        "''",
        "'a'",
        "'A'",
        "'b'",
        "'B '",
        "'abc'",
        "'Abc'",
        "'12'",
        "'-3.5'",
        "' 7'",
        "'x''y'",
        "'é'",
        "'%'",
        "'1e2'",
        "'a '",
        "'2024-02-29'",
        "'12:30:15'",
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
    /// `places` chooses where tables are and which columns have lookup vindexes.
    pub(crate) fn new(random: &mut Random, places: &mut Random) -> Self {
        let mut schema = Self { tables: Vec::new(), vschema: Vec::new(), statements: Vec::new() };
        for number in 0..2 + random.below(3) {
            match places.chance(40) {
                true => schema.looked_up_table(random, places, number),
                false => schema.placed_table(random, places, number),
            }
        }
        if random.chance(35) {
            schema.family(random, places);
        }
        for number in 0..random.below(4) {
            schema.index(random, number);
        }
        let base = schema.tables.clone();
        for number in 0..random.below(3) {
            schema.view(random, &base, number);
        }
        if random.chance(30) {
            schema.trigger(random, &base);
        }
        schema
    }

    fn looked_up_table(&mut self, random: &mut Random, lookups: &mut Random, number: usize) {
        let name = format!("t{number}");
        let mut columns = Vec::new();
        let mut definitions = Vec::new();
        let count = 2 + random.below(4);
        let mut key = Vec::new();
        let mut without_rowid = false;
        self.vschema.push(format!("ALTER VSCHEMA ON t{number} ADD VINDEX hash(c0)"));
        for index in 0..count {
            let (declared, kind) = *random.pick(&TYPES);
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
            if index > 0 && lookups.chance(60) {
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
            columns.push(Column { name, declared, kind, generated: false });
        }
        extras(random, count, &mut columns, &mut definitions);
        let tail = if without_rowid { " WITHOUT ROWID" } else { "" };
        self.statements.push(format!("CREATE TABLE {name} ({}){tail}", definitions.join(", ")));
        self.tables.push(Table { name, columns, key, is_view: false, insertable: true });
    }

    /// A table of any place, its key of one column or two.
    fn placed_table(&mut self, random: &mut Random, places: &mut Random, number: usize) {
        let name = format!("t{number}");
        let count = 2 + random.below(4);
        let place = *places.pick(&[
            Place::First,
            Place::First,
            Place::First,
            Place::Vindex("xxhash"),
            Place::Vindex("consistent_hash"),
            Place::Vindex("range"),
            Place::Reference,
            Place::Unsharded,
        ]);
        let sharding = if let Place::Vindex(_) = place { places.below(count) } else { 0 };
        let strict = random.chance(8);
        let mut columns = Vec::new();
        let mut definitions = Vec::new();
        let mut key = Vec::new();
        let mut without_rowid = false;
        let keyed = random.below(100);
        for index in 0..count {
            // Others could fail after some of a statement's rows are written, which one SQLite leaves in a transaction.
            let (declared, kind) = if strict { ("", Kind::Any) } else { *random.pick(&TYPES) };
            let name = format!("c{index}");
            let mut definition = format!("{name} {}", if strict { "ANY" } else { declared });
            // NULL is in no range.
            let ranged = place == Place::Vindex("range") && index == sharding;
            if index == sharding && keyed < 40 {
                key.push(name.clone());
                if declared == "INTEGER" || random.chance(60) {
                    definition.push_str(" PRIMARY KEY");
                    without_rowid = random.chance(25);
                    if without_rowid {
                        definition.push_str(" NOT NULL");
                    }
                } else {
                    definition.push_str(" UNIQUE");
                }
                if random.chance(15) {
                    definition.push_str(random.pick::<&str>(&[" ON CONFLICT REPLACE", " ON CONFLICT IGNORE"]));
                }
            } else if !ranged && random.chance(6) {
                definition.push_str(" NOT NULL");
            }
            if ranged && !without_rowid {
                definition.push_str(" NOT NULL");
            }
            if (index != sharding || key.is_empty()) && random.chance(10) {
                definition.push_str(&format!(" DEFAULT {}", literal(random, kind)));
            }
            if index == sharding {
                match place {
                    Place::First => {}
                    Place::Reference => self.vschema.push(format!("ALTER VSCHEMA ADD TABLE t{number} USING reference")),
                    Place::Unsharded => self.vschema.push(format!(
                        "ALTER VSCHEMA ADD TABLE t{number} USING unsharded WITH shard=shard-{}",
                        number % 3
                    )),
                    Place::Vindex(vindex) => {
                        let with = match vindex {
                            "range" if kind == Kind::Text => {
                                " WITH ranges='[{\"shard\": \"shard-2\", \"max\": \"B\"}, {\"shard\": \"shard-0\", \"min\": \"B\", \"max\": \"x\"}, {\"shard\": \"shard-1\", \"min\": \"x\"}]'"
                            }
                            "range" => {
                                " WITH ranges='[{\"shard\": \"shard-1\", \"max\": 1}, {\"shard\": \"shard-2\", \"min\": 1, \"max\": 6}, {\"shard\": \"shard-0\", \"min\": 6}]'"
                            }
                            "consistent_hash" => " WITH virtual_nodes=10",
                            _ => "",
                        };
                        self.vschema.push(format!(
                            "ALTER VSCHEMA ON t{number} ADD VINDEX v{number}({name}) USING {vindex}{with}"
                        ));
                    }
                }
            }
            definitions.push(definition);
            columns.push(Column { name, declared, kind, generated: false });
        }
        if !strict {
            extras(random, count, &mut columns, &mut definitions);
        }
        if key.is_empty() && keyed < 60 {
            let other = (sharding + 1 + random.below(count - 1)) % count;
            key = vec![format!("c{other}"), format!("c{sharding}")];
            let constraint = random.pick(&["UNIQUE", "PRIMARY KEY"]);
            without_rowid = *constraint == "PRIMARY KEY" && random.chance(40);
            definitions.push(format!("{constraint} ({})", key.join(", ")));
        }
        let mut tail: Vec<&str> = Vec::new();
        if without_rowid {
            tail.push("WITHOUT ROWID");
        }
        if strict {
            tail.push("STRICT");
        }
        self.statements.push(format!("CREATE TABLE {name} ({}) {}", definitions.join(", "), tail.join(", ")));
        self.tables.push(Table { name, columns, key, is_view: false, insertable: true });
    }

    /// A parent and its child, tied by a foreign key.
    fn family(&mut self, random: &mut Random, places: &mut Random) {
        let (declared, kind) = *random.pick(&TYPES);
        let (other, other_kind) = *random.pick(&TYPES);
        let column = |name: &str, declared, kind| Column { name: name.to_owned(), declared, kind, generated: false };
        let actions =
            ["", " ON DELETE CASCADE", " ON DELETE SET NULL", " ON DELETE RESTRICT", " ON DELETE SET DEFAULT"];
        let updates = ["", " ON UPDATE CASCADE", " ON UPDATE SET NULL", " ON UPDATE RESTRICT"];
        let references = format!("REFERENCES p0 (c0){}{}", random.pick(&actions), random.pick(&updates));
        // Which of the child's columns refers.
        let tied = match places.below(3) {
            0 => {
                self.vschema.push("ALTER VSCHEMA ADD TABLE p0 USING reference".to_owned());
                if places.chance(60) {
                    self.vschema.push("ALTER VSCHEMA ON k0 ADD VINDEX hash(c0)".to_owned());
                }
                places.below(2)
            }
            1 => {
                self.vschema.push("ALTER VSCHEMA ON p0 ADD VINDEX hash(c0)".to_owned());
                self.vschema.push("ALTER VSCHEMA ON k0 ADD VINDEX hash(c0)".to_owned());
                0
            }
            _ => {
                self.vschema.push("ALTER VSCHEMA ADD TABLE p0".to_owned());
                self.vschema.push("ALTER VSCHEMA ADD TABLE k0".to_owned());
                places.below(2)
            }
        };
        let unique = if random.chance(70) { "PRIMARY KEY" } else { "UNIQUE" };
        self.statements.push(format!("CREATE TABLE p0 (c0 {declared} {unique}, c1 {other})"));
        let first = if tied == 0 { format!("c0 {declared} {references}") } else { format!("c0 {other}") };
        let second = if tied == 1 { format!("c1 {declared} {references}") } else { format!("c1 {other}") };
        self.statements.push(format!("CREATE TABLE k0 ({first}, {second}, c2 INT)"));
        self.tables.push(Table {
            name: "p0".to_owned(),
            columns: vec![column("c0", declared, kind), column("c1", other, other_kind)],
            key: vec!["c0".to_owned()],
            is_view: false,
            insertable: true,
        });
        let mut columns = vec![column("c0", other, other_kind), column("c1", other, other_kind)];
        columns[tied] = column(["c0", "c1"][tied], declared, kind);
        columns.push(column("c2", "INT", Kind::Integer));
        self.tables.push(Table { name: "k0".to_owned(), columns, key: Vec::new(), is_view: false, insertable: true });
    }

    fn index(&mut self, random: &mut Random, number: usize) {
        let table = random.pick(&self.tables);
        let column = random.pick(&table.columns);
        let filter =
            if random.chance(30) { format!(" WHERE {} IS NOT NULL", table.columns[0].name) } else { String::new() };
        let key = match random.below(5) {
            0 => format!("lower({})", column.name),
            1 => format!("{} COLLATE NOCASE DESC, {}", column.name, table.columns[0].name),
            _ => column.name.clone(),
        };
        self.statements.push(format!("CREATE INDEX i{number} ON {} ({key}){filter}", table.name));
    }

    fn view(&mut self, random: &mut Random, base: &[Table], number: usize) {
        let name = format!("v{number}");
        let table = random.pick(base).clone();
        let plain = |from: &Table| from.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        let (select, columns) = match random.below(4) {
            0 => {
                let other = random.pick(base);
                let select = format!(
                    "SELECT a.c0 AS c0, b.c1 AS c1 FROM {} AS a JOIN {} AS b ON a.c1 = b.c0",
                    table.name, other.name
                );
                (select, vec![table.columns[0].clone(), other.columns[1].clone()])
            }
            1 => {
                let second = Column { name: "c1".to_owned(), declared: "", kind: Kind::Integer, generated: false };
                let select = format!("SELECT c0, count(*) AS c1 FROM {} GROUP BY c0", table.name);
                (select, vec![table.columns[0].clone(), second])
            }
            _ => {
                let select = format!("SELECT {} FROM {} WHERE c0 IS NOT NULL", plain(&table).join(", "), table.name);
                (select, table.columns.clone())
            }
        };
        self.statements.push(format!("CREATE VIEW {name} AS {select}"));
        let insertable = !columns.iter().any(|column| column.generated)
            && columns.len() == table.columns.len()
            && random.chance(40)
            && select.contains("IS NOT NULL");
        if insertable {
            let new: Vec<String> = plain(&table).iter().map(|name| format!("new.{name}")).collect();
            self.statements.push(format!(
                "CREATE TRIGGER {name}_new INSTEAD OF INSERT ON {name} BEGIN INSERT OR IGNORE INTO {} VALUES ({}); END",
                table.name,
                new.join(", ")
            ));
        }
        self.tables.push(Table { name, columns, key: Vec::new(), is_view: true, insertable });
    }

    /// A trigger, and a table that it writes down what happened in.
    fn trigger(&mut self, random: &mut Random, base: &[Table]) {
        let table = random.pick(base);
        let (event, row) =
            *random.pick(&[("INSERT", "new"), ("DELETE", "old"), ("UPDATE", "new"), ("UPDATE OF c1", "old")]);
        let when = if random.chance(30) { format!(" WHEN {row}.c1 IS NOT NULL") } else { String::new() };
        let columns = ["c0", "c1", "c2"].map(|name| Column {
            name: name.to_owned(),
            declared: "",
            kind: Kind::Any,
            generated: false,
        });
        self.statements.push("CREATE TABLE l0 (c0, c1, c2)".to_owned());
        self.statements.push(format!(
            "CREATE TRIGGER g0 AFTER {event} ON {}{when} BEGIN INSERT INTO l0 VALUES ('{event}', {row}.c0, {row}.c1); END",
            table.name
        ));
        self.tables.push(Table {
            name: "l0".to_owned(),
            columns: columns.to_vec(),
            key: Vec::new(),
            is_view: false,
            insertable: true,
        });
    }
}

/// A generated column, and a CHECK.
fn extras(random: &mut Random, count: usize, columns: &mut Vec<Column>, definitions: &mut Vec<String>) {
    if random.chance(20) {
        let stored = random.pick(&["STORED", "VIRTUAL"]);
        let expression =
            random.pick(&["coalesce(c1, c0)", "c0 || '-' || c1", "CASE WHEN c0 > c1 THEN c0 END", "length(c1)"]);
        definitions.push(format!("g0 AS ({expression}) {stored}"));
        columns.push(Column { name: "g0".to_owned(), declared: "", kind: Kind::Any, generated: true });
    }
    if random.chance(10) {
        definitions.push(format!("CHECK (c{} IS NOT 13)", count - 1));
    }
}
