//! Lookup vindexes: random writes of every form leave lookup tables that say what the rows say, and reads that use them say what
//! one SQLite says; so do the errors of UNIQUE constraints over all shards.
//!
//! `DOSQL_SEED` replays one history; `DOSQL_LOOKUP_SEEDS` says how many there are.

use dosql_actors::runtime::AutoShard;
use dosql_actors::sql_value;
use dosql_proto::{
    BatchRequest, CloseSession, Error, ErrorCode, ExecuteRequest, ExplainRequest, LoadRequest, OpenSession, Row,
    Statement, StatementResult, Value, router_reply::Reply, router_request::Request,
};

use super::Database;

const VSCHEMA: &str = r#"{
  "vindexes": {
    "by_email": {"type": "lookup_unique", "table": "people_by_email", "from": "email", "to": "tenant", "owner": "people"}
  },
  "tables": {
    "people": {"type": "sharded", "column": "tenant", "lookups": [
      {"column": "email", "vindex": "by_email"},
      {"column": "city", "vindex": {"type": "lookup", "table": "people_by_city"}}]},
    "accounts": {"type": "sharded", "column": "region", "lookups": [
      {"column": "id", "vindex": {"type": "lookup_unique", "table": "accounts_by_id"}},
      {"column": "code", "vindex": {"type": "lookup_unique", "table": "accounts_by_code"}},
      {"column": "note", "vindex": {"type": "lookup", "table": "accounts_by_note"}}]},
    "accounts_by_note": {"type": "sharded", "column": "note", "vindex": {"type": "xxhash"}},
    "items": {"type": "sharded", "column": "shop", "lookups": [
      {"column": "sku", "vindex": {"type": "lookup_unique", "table": "items_by_sku"}},
      {"column": "tag", "vindex": {"type": "lookup", "table": "items_by_tag"}}]}
  }
}"#;

const TABLES: [&str; 3] = [
    "CREATE TABLE people (tenant INT, name TEXT, email TEXT COLLATE NOCASE UNIQUE, city, n INT CHECK (n IS NOT 13))",
    "CREATE TABLE accounts (id INTEGER PRIMARY KEY, region TEXT, code NUMERIC, note REAL)",
    "CREATE TABLE items (sku TEXT PRIMARY KEY, shop INT, tag TEXT COLLATE RTRIM, UNIQUE (shop, tag)) WITHOUT ROWID",
];

/// Each lookup table, its columns, and what it must hold.
const LOOKUPS: [(&str, &str); 7] = [
    ("SELECT email, tenant FROM people_by_email", "SELECT email, tenant FROM people WHERE email IS NOT NULL"),
    ("SELECT city, keyspace_id FROM people_by_city", "SELECT city, tenant FROM people WHERE city IS NOT NULL"),
    ("SELECT id, keyspace_id FROM accounts_by_id", "SELECT id, region FROM accounts"),
    ("SELECT code, keyspace_id FROM accounts_by_code", "SELECT code, region FROM accounts WHERE code IS NOT NULL"),
    ("SELECT note, keyspace_id FROM accounts_by_note", "SELECT note, region FROM accounts WHERE note IS NOT NULL"),
    ("SELECT sku, keyspace_id FROM items_by_sku", "SELECT sku, shop FROM items"),
    ("SELECT tag, keyspace_id FROM items_by_tag", "SELECT tag, shop FROM items WHERE tag IS NOT NULL"),
];

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const TENANTS: [&str; 6] = ["1", "2", "3", "4", "5", "NULL"];
const EMAILS: [&str; 9] = ["'a'", "'A'", "'b'", "'c'", "'d'", "'E'", "'e'", "NULL", "7"];
const CITIES: [&str; 8] = ["'x'", "'y'", "1", "1.0", "x'61'", "'z'", "NULL", "2"];
const REGIONS: [&str; 4] = ["'eu'", "'us'", "'ap'", "NULL"];
const CODES: [&str; 8] = ["1", "'1'", "1.0", "2", "2.5", "'q'", "NULL", "3"];
const NOTES: [&str; 6] = ["1", "1.5", "'1'", "NULL", "x'01'", "9007199254740993"];
const IDS: [&str; 9] = ["1", "2", "3", "4", "'5'", "NULL", "17", "6", "7"];
const SKUS: [&str; 8] = ["'s'", "'t'", "'u'", "'v'", "'w'", "5", "'5'", "'z'"];
const SHOPS: [&str; 4] = ["1", "2", "3", "4"];
const TAGS: [&str; 6] = ["'p'", "'p '", "'q'", "'r'", "NULL", "'s'"];

fn row(random: &mut Random, table: usize) -> String {
    let mut pick = |from: &[&str]| random.pick(from).to_owned();
    match table {
        0 => {
            let n = pick(&["0", "1", "2", "13", "NULL"]);
            format!("({}, 'n', {}, {}, {n})", pick(&TENANTS), pick(&EMAILS), pick(&CITIES))
        }
        1 => format!("({}, {}, {}, {})", pick(&IDS), pick(&REGIONS), pick(&CODES), pick(&NOTES)),
        _ => format!("({}, {}, {})", pick(&SKUS), pick(&SHOPS), pick(&TAGS)),
    }
}

fn condition(random: &mut Random, table: usize) -> String {
    let columns: &[(&str, &[&str])] = match table {
        0 => &[("tenant", &TENANTS), ("email", &EMAILS), ("city", &CITIES)],
        1 => &[("id", &IDS), ("region", &REGIONS), ("code", &CODES), ("note", &NOTES)],
        _ => &[("sku", &SKUS), ("shop", &SHOPS), ("tag", &TAGS)],
    };
    let (column, values) = columns[random.below(columns.len())];
    match random.below(6) {
        0 => format!("{column} IN ({}, {})", random.pick(values), random.pick(values)),
        1 => format!("{} = {column}", random.pick(values)),
        2 => format!("{column} > {}", random.pick(values)),
        3 => format!("{column} IS NULL"),
        _ => format!("{column} = {}", random.pick(values)),
    }
}

fn write(random: &mut Random) -> String {
    let table = random.below(3);
    let name = ["people", "accounts", "items"][table];
    let rows = |random: &mut Random| {
        let rows: Vec<String> = (0..1 + random.below(3)).map(|_| row(random, table)).collect();
        rows.join(", ")
    };
    let sets: &[&str] = match table {
        0 => &["email", "city", "tenant", "n", "name"],
        1 => &["id", "region", "code", "note"],
        _ => &["sku", "shop", "tag"],
    };
    let values: [&[&str]; 5] = match table {
        0 => [&EMAILS, &CITIES, &TENANTS, &["0", "13"], &["'m'"]],
        1 => [&IDS, &REGIONS, &CODES, &NOTES, &[]],
        _ => [&SKUS, &SHOPS, &TAGS, &[], &[]],
    };
    match random.below(14) {
        0..=3 => format!("INSERT INTO {name} VALUES {}", rows(random)),
        4 => format!("INSERT OR IGNORE INTO {name} VALUES {}", rows(random)),
        5 => format!("INSERT OR REPLACE INTO {name} VALUES {}", rows(random)),
        6 => {
            let (key, set) = [
                ("email", "n = excluded.n, city = excluded.city"),
                ("id", "code = excluded.code"),
                ("sku", "tag = excluded.tag"),
            ][table];
            let key = if table == 1 && random.below(2) == 0 { "id" } else { key };
            format!("INSERT INTO {name} VALUES {} ON CONFLICT ({key}) DO UPDATE SET {set}", rows(random))
        }
        7 => format!("INSERT INTO {name} VALUES {} ON CONFLICT DO NOTHING", rows(random)),
        8 | 9 => {
            let at = random.below(sets.len());
            let or = random.pick(&["", "", "", "OR IGNORE ", "OR REPLACE "]);
            format!(
                "UPDATE {or}{name} SET {} = {} WHERE {}",
                sets[at],
                random.pick(values[at]),
                condition(random, table)
            )
        }
        10 | 11 => format!("DELETE FROM {name} WHERE {}", condition(random, table)),
        12 => match table {
            0 => format!(
                "INSERT INTO people SELECT tenant + 1, name, email || 'x', city, n FROM people WHERE {}",
                condition(random, 0)
            ),
            1 => format!(
                "INSERT INTO accounts SELECT id + 1, region, code + 1, note FROM accounts WHERE {}",
                condition(random, 1)
            ),
            _ => format!(
                "INSERT INTO items SELECT sku || 'y', shop, tag || 'y' FROM items WHERE {}",
                condition(random, 2)
            ),
        },
        _ => match table {
            0 => "UPDATE people SET email = 'e' || email WHERE n = 1".to_owned(),
            1 => "UPDATE accounts SET code = code + 1, id = id + 1".to_owned(),
            _ => "INSERT INTO items (shop, sku) VALUES (3, 'n') RETURNING sku, tag".to_owned(),
        },
    }
}

type Outcome = Result<(Vec<Row>, u64), Error>;

fn plainly(plain: &rusqlite::Connection, sql: &str) -> Outcome {
    let mut statement = plain.prepare(sql).map_err(sql_value::sql_error)?;
    let before = plain.total_changes();
    let collected = sql_value::run(&mut statement, &[], 4 << 20)?;
    drop(statement);
    Ok((collected.rows, if plain.total_changes() == before { 0 } else { plain.changes() }))
}

fn sorted(mut rows: Vec<Row>) -> Vec<String> {
    let mut texts: Vec<String> = rows.drain(..).map(|row| format!("{:?}", row.values)).collect();
    texts.sort();
    texts
}

impl Database {
    async fn rows(&self, sql: &str) -> Vec<String> {
        sorted(self.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}")).rows)
    }

    async fn check_lookups(&self, context: &str) {
        for (entries, rows) in LOOKUPS {
            assert_eq!(self.rows(entries).await, self.rows(rows).await, "{entries} after {context}");
        }
    }

    async fn session(&self) -> String {
        match self.ask(Request::OpenSession(OpenSession {})).await.unwrap() {
            Reply::Session(opened) => opened.session,
            other => panic!("{other:?}"),
        }
    }

    async fn within(&self, session: &str, sql: &str) -> Result<StatementResult, Error> {
        let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
        let request = ExecuteRequest { statement, session: session.to_owned(), ..ExecuteRequest::default() };
        match self.ask(Request::Execute(request)).await? {
            Reply::Execute(response) => Ok(response.result.unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

fn agree(seed: u64, sql: &str, expected: &Outcome, got: &Outcome, history: &[String]) {
    let tell = || format!("DOSQL_SEED={seed}: {sql}\n{expected:?}\n{got:?}\nafter\n{}", history.join(";\n"));
    match (expected, got) {
        (Ok((rows, changed)), Ok((other, changed_too))) => {
            assert_eq!(changed, changed_too, "{}", tell());
            assert_eq!(sorted(rows.clone()), sorted(other.clone()), "{}", tell());
        }
        (Err(one), Err(other)) => {
            assert_eq!(one.code(), other.code(), "{}", tell());
            // Of several constraints that a statement violates, either may be named.
            let constraint = one.code() == ErrorCode::Constraint;
            assert!(!constraint || other.message.contains("constraint failed"), "{}", tell());
        }
        _ => panic!("{}", tell()),
    }
}

async fn history(seed: u64, shards: u32) {
    let database = Database::new(&format!("lookups-{seed}"), shards, VSCHEMA, AutoShard::Off);
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    for sql in TABLES {
        plainly(&plain, sql).unwrap();
        database.execute(sql, &[]).await.unwrap();
    }
    plain.execute_batch("CREATE UNIQUE INDEX code ON accounts (code)").unwrap();
    database.execute("CREATE UNIQUE INDEX code ON accounts (code)", &[]).await.unwrap();
    let mut random = Random(seed);
    let mut history = Vec::new();
    for step in 0..60 {
        match random.below(10) {
            // A session's transaction, rolled back or committed, with reads of its own writes.
            0 => {
                let session = database.session().await;
                plain.execute_batch("BEGIN").unwrap();
                database.within(&session, "BEGIN").await.unwrap();
                for _ in 0..3 {
                    let sql = write(&mut random);
                    let expected = plainly(&plain, &sql);
                    let got = database.within(&session, &sql).await.map(|done| (done.rows, done.rows_affected));
                    history.push(sql.clone());
                    agree(seed, &sql, &expected, &got, &history);
                    let table = random.below(3);
                    let read = format!(
                        "SELECT * FROM {} WHERE {}",
                        ["people", "accounts", "items"][table],
                        condition(&mut random, table)
                    );
                    let expected = plainly(&plain, &read);
                    let got = database.within(&session, &read).await.map(|done| (done.rows, 0));
                    agree(seed, &read, &expected.map(|(rows, _)| (rows, 0)), &got, &history);
                }
                let end = random.pick(&["COMMIT", "ROLLBACK"]);
                history.push(end.to_owned());
                plain.execute_batch(end).unwrap();
                database.within(&session, end).await.unwrap();
                database.ask(Request::CloseSession(CloseSession { session })).await.unwrap();
            }
            // A batch: all of it or nothing.
            1 => {
                let texts: Vec<String> = (0..2).map(|_| write(&mut random)).collect();
                plain.execute_batch("SAVEPOINT batch").unwrap();
                let expected = texts.iter().try_for_each(|sql| plainly(&plain, sql).map(drop));
                plain
                    .execute_batch(if expected.is_ok() { "RELEASE batch" } else { "ROLLBACK TO batch; RELEASE batch" })
                    .unwrap();
                let statements = texts.iter().map(|sql| Statement { sql: sql.clone(), params: Vec::new() }).collect();
                let got = database.ask(Request::Batch(BatchRequest { statements, ..BatchRequest::default() })).await;
                history.push(format!("batch of {}", texts.join("; ")));
                assert_eq!(
                    expected.is_ok(),
                    got.is_ok(),
                    "DOSQL_SEED={seed}: {expected:?} {got:?} {}",
                    history.join(";\n")
                );
            }
            2 => {
                let rows: Vec<[Value; 3]> = (0..3)
                    .map(|_| {
                        [format!("l{}", random.below(12)).into(), (1 + random.below(4) as i64).into(), "tag".into()]
                    })
                    .collect();
                let list: Vec<Row> = rows.iter().map(|row| Row { values: row.to_vec() }).collect();
                let load = LoadRequest { table: "items".to_owned(), rows: list, ..LoadRequest::default() };
                let got = database.ask(Request::Load(load)).await;
                plain.execute_batch("SAVEPOINT load").unwrap();
                let expected = rows.iter().try_for_each(|row| {
                    let mut insert =
                        plain.prepare("INSERT INTO items VALUES (?, ?, ?)").map_err(sql_value::sql_error)?;
                    sql_value::run(&mut insert, row, 1 << 20).map(drop)
                });
                plain
                    .execute_batch(if expected.is_ok() { "RELEASE load" } else { "ROLLBACK TO load; RELEASE load" })
                    .unwrap();
                history.push(format!("load of {rows:?}"));
                assert_eq!(
                    expected.is_ok(),
                    got.is_ok(),
                    "DOSQL_SEED={seed}: {expected:?} {got:?} {}",
                    history.join(";\n")
                );
            }
            _ => {
                let sql = write(&mut random);
                let expected = plainly(&plain, &sql);
                let got = database.execute(&sql, &[]).await.map(|done| (done.rows, done.rows_affected));
                history.push(sql.clone());
                agree(seed, &sql, &expected, &got, &history);
            }
        }
        let table = random.below(3);
        let from = format!("FROM {} WHERE {}", ["people", "accounts", "items"][table], condition(&mut random, table));
        let aggregates = ["count(*), max(n), min(email)", "count(*), sum(id), max(code)", "count(*), min(sku)"][table];
        for read in [format!("SELECT * {from}"), format!("SELECT {aggregates} {from}")] {
            let expected = plainly(&plain, &read).map(|(rows, _)| (rows, 0));
            let got = database.execute(&read, &[]).await.map(|done| (done.rows, 0));
            agree(seed, &read, &expected, &got, &history);
        }
        if step % 5 == 4 {
            for table in ["people", "accounts", "items"] {
                let sql = format!("SELECT * FROM {table}");
                let (rows, _) = plainly(&plain, &sql).unwrap();
                let tell = format!("DOSQL_SEED={seed}: {table} after {}", history.join(";\n"));
                assert_eq!(database.rows(&sql).await, sorted(rows), "{tell}");
            }
            database.check_lookups(&format!("DOSQL_SEED={seed}: {}", history.join(";\n"))).await;
        }
    }
}

#[tokio::test]
async fn entries_say_what_rows_say_and_reads_what_sqlite_says() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let only = number("DOSQL_SEED");
    let seeds = number("DOSQL_LOOKUP_SEEDS").unwrap_or(8);
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        println!("DOSQL_SEED={seed}");
        history(seed, if seed % 4 == 3 { 1 } else { 3 }).await;
    }
}

#[tokio::test]
async fn values_are_unique_over_all_shards() {
    let database = Database::new("unique", 3, VSCHEMA, AutoShard::Off);
    for sql in TABLES {
        database.execute(sql, &[]).await.unwrap();
    }
    for sql in [
        "INSERT INTO people VALUES (1, 'a', 'x@y', 'here', 1), (2, 'b', NULL, 'here', 1), (3, 'c', NULL, 'there', 1)",
        "INSERT INTO accounts VALUES (NULL, 'eu', 1, 1), (NULL, 'us', 2, 2), (7, 'ap', 3, 3)",
        "INSERT INTO accounts (region, code) VALUES ('eu', 4)",
    ] {
        database.execute(sql, &[]).await.unwrap();
    }
    for sql in [
        "INSERT INTO people VALUES (2, 'd', 'X@Y', 'here', 1)",
        "INSERT INTO people VALUES (4, 'd', 'q', 'here', 1), (5, 'e', 'Q', 'here', 1)",
        "UPDATE people SET email = 'x@Y' WHERE tenant = 2",
        "INSERT INTO people SELECT 9, name, email, city, n FROM people WHERE email = 'x@y'",
    ] {
        database.refused(sql, ErrorCode::Constraint, "UNIQUE constraint failed: people.email").await;
    }
    database
        .refused(
            "INSERT INTO accounts VALUES (2, 'ap', 9, 9)",
            ErrorCode::Constraint,
            "UNIQUE constraint failed: accounts.id",
        )
        .await;
    assert_eq!(
        database.run("SELECT id, region FROM accounts ORDER BY id").await,
        ["1 | eu", "2 | us", "7 | ap", "8 | eu"]
    );
    assert_eq!(database.run("SELECT name FROM people WHERE email = 'X@y'").await, ["a"]);
    // The one row's value may be the other's before.
    database.execute("INSERT INTO people VALUES (2, 'z', 'other', 'here', 1)", &[]).await.unwrap();
    database.execute("INSERT OR REPLACE INTO people VALUES (3, 'r', 'OTHER', 'here', 1)", &[]).await.unwrap();
    assert_eq!(database.run("SELECT tenant, name FROM people WHERE email = 'other'").await, ["3 | r"]);
    // What nothing enforces is refused when it is declared.
    for sql in [
        "CREATE UNIQUE INDEX u ON people (city)",
        "CREATE UNIQUE INDEX u ON people (name, n)",
        "CREATE UNIQUE INDEX u ON accounts (code COLLATE NOCASE)",
    ] {
        database.refused(sql, ErrorCode::Unsupported, "cannot be enforced across shards").await;
    }
    database.execute("CREATE UNIQUE INDEX u ON people (email, n)", &[]).await.unwrap();
    database.refused("ALTER VSCHEMA ON people DROP VINDEX by_email", ErrorCode::Unsupported, "UNIQUE (email").await;
}

#[tokio::test]
async fn vindexes_come_and_go_with_rows_there() {
    let database = Database::new("lookup-ddl", 3, "", AutoShard::Off);
    for sql in [
        "ALTER VSCHEMA ON t ADD VINDEX hash(k)",
        "CREATE TABLE t (k INT, a TEXT, b INT)",
        "INSERT INTO t SELECT value, 'a' || value, value % 7 FROM json_each('[' || substr(replace(hex(zeroblob(700)), '00', ',' || 1), 2) || ']')",
        "UPDATE t SET k = rowid, a = 'a' || rowid, b = rowid % 7",
        "INSERT INTO t VALUES (NULL, NULL, NULL), (5000, 'a1', 1)",
        "ALTER VSCHEMA ON t ADD VINDEX by_b(b) USING lookup WITH table=t_by_b, from=b, to=k, owner=t",
    ] {
        database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let entries = "SELECT b, k FROM t_by_b";
    let rows = "SELECT b, k FROM t WHERE b IS NOT NULL";
    assert_eq!(database.rows(entries).await, database.rows(rows).await);
    assert_eq!(database.run("SELECT count(*) FROM t WHERE b = 3").await, ["100"]);
    // Two rows have the same value: nothing stays of the vindex.
    let refused = "ALTER VSCHEMA ON t ADD VINDEX by_a(a) USING lookup_unique WITH table=t_by_a";
    database.refused(refused, ErrorCode::Constraint, "UNIQUE constraint failed: t.a").await;
    database.refused("SELECT * FROM t_by_a", ErrorCode::UnknownTable, "t_by_a").await;
    database.refused("CREATE UNIQUE INDEX u ON t (a)", ErrorCode::Unsupported, "UNIQUE (a)").await;
    database.execute("DELETE FROM t WHERE k = 5000", &[]).await.unwrap();
    database.execute(refused, &[]).await.unwrap();
    database.execute("CREATE UNIQUE INDEX u ON t (a)", &[]).await.unwrap();
    assert_eq!(
        database.rows("SELECT a, keyspace_id FROM t_by_a").await,
        database.rows("SELECT a, k FROM t WHERE a IS NOT NULL").await
    );
    for (sql, code, part) in [
        ("INSERT INTO t_by_b VALUES (1, 2, 3)", ErrorCode::Unsupported, "vindex by_b"),
        ("DELETE FROM t_by_b", ErrorCode::Unsupported, "vindex by_b"),
        ("DROP TABLE t_by_b", ErrorCode::Unsupported, "vindex by_b"),
        ("ALTER TABLE t DROP COLUMN b", ErrorCode::Unsupported, "lookup vindex"),
        ("CREATE TABLE x (a)", ErrorCode::AlreadyExists, "x"),
    ] {
        if sql.starts_with("CREATE") {
            database.execute(sql, &[]).await.unwrap();
            database
                .refused(
                    "ALTER VSCHEMA ON t ADD VINDEX by_k(c) USING lookup WITH table=x",
                    ErrorCode::UnknownColumn,
                    "t.c",
                )
                .await;
            let sql = "ALTER VSCHEMA ON u ADD VINDEX hash(k)";
            database.execute(sql, &[]).await.unwrap();
            database.execute("ALTER VSCHEMA ON u ADD VINDEX by_x(c) USING lookup WITH table=x", &[]).await.unwrap();
            database.refused("CREATE TABLE u (k, c)", code, part).await;
            continue;
        }
        database.refused(sql, code, part).await;
    }
    database.execute("ALTER TABLE t ADD COLUMN more", &[]).await.unwrap();
    assert_eq!(
        database.run("SHOW VSCHEMA VINDEXES ON t").await,
        [
            "k | hash | hash | -",
            r#"b | by_b | lookup | {"from":"b","owner":"t","table":"t_by_b","to":"k"}"#,
            r#"a | by_a | lookup_unique | {"table":"t_by_a"}"#
        ]
    );
    let tables = database.run("SHOW VSCHEMA TABLES").await;
    assert!(tables.contains(&"t_by_b | sharded | b | hash | shard-0, shard-1, shard-2".to_owned()), "{tables:?}");
    // After a restart everything is as before.
    let database = database.restart("").await;
    database.execute("INSERT INTO t VALUES (6000, 'new', 3, 1)", &[]).await.unwrap();
    database.refused("INSERT INTO t VALUES (6001, 'new', 3, 1)", ErrorCode::Constraint, "t.a").await;
    assert_eq!(database.rows(entries).await, database.rows(rows).await);
    database.execute("ALTER VSCHEMA ON t DROP VINDEX by_b", &[]).await.unwrap();
    database.refused(entries, ErrorCode::UnknownTable, "t_by_b").await;
    database.execute("DROP TABLE t", &[]).await.unwrap();
    database.refused("SELECT * FROM t_by_a", ErrorCode::UnknownTable, "t_by_a").await;
    database.execute("CREATE TABLE t (k INT, a TEXT UNIQUE)", &[]).await.unwrap();
    database.execute("INSERT INTO t VALUES (1, 'x'), (2, 'y')", &[]).await.unwrap();
    assert_eq!(database.run("SELECT a, keyspace_id FROM t_by_a ORDER BY 1").await, ["x | 1", "y | 2"]);
}

/// Rows come, change and go while a vindex is added: in the end it has the entries of all of them.
#[tokio::test]
async fn writes_during_filling_are_not_lost() {
    let database = Database::new("filling", 3, "", AutoShard::Off);
    database.execute("ALTER VSCHEMA ON t ADD VINDEX hash(k)", &[]).await.unwrap();
    database.execute("CREATE TABLE t (id INTEGER, k INT, a TEXT)", &[]).await.unwrap();
    for chunk in 0..4 {
        let rows: Vec<String> =
            (0..500).map(|row| format!("({row}, {}, 'a{}')", chunk * 500 + row, row % 50)).collect();
        database.execute(&format!("INSERT INTO t VALUES {}", rows.join(", ")), &[]).await.unwrap();
    }
    let writes = async {
        for number in 0..40 {
            for sql in [
                format!("INSERT INTO t VALUES (-1, {number}, 'new')"),
                format!("UPDATE t SET a = 'changed' WHERE k = {}", number * 37),
                format!("DELETE FROM t WHERE k = {}", 1999 - number * 41),
                format!("UPDATE t SET k = k + 10000 WHERE k = {}", number * 29 + 3),
            ] {
                database.execute(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
        }
    };
    let add = async {
        let sql = "ALTER VSCHEMA ON t ADD VINDEX by_a(a) USING lookup WITH table=t_by_a";
        database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    futures_util::future::join(writes, add).await;
    assert_eq!(database.rows("SELECT a, keyspace_id FROM t_by_a").await, database.rows("SELECT a, k FROM t").await);
    for value in ["new", "changed", "a7"] {
        assert_eq!(
            database.run(&format!("SELECT count(*) FROM t WHERE a = '{value}'")).await,
            database.run(&format!("SELECT count(*) FROM t WHERE a || '' = '{value}'")).await
        );
    }
}

#[tokio::test]
async fn equal_values_ask_the_shards_that_have_them() {
    let database = Database::new("lookup-routes", 4, VSCHEMA, AutoShard::Off);
    for sql in TABLES {
        database.execute(sql, &[]).await.unwrap();
    }
    database
        .execute("INSERT INTO people VALUES (1, 'a', 'x', 'here', 1), (2, 'b', 'y', 'here', 2)", &[])
        .await
        .unwrap();
    for (sql, route) in [
        ("SELECT * FROM people WHERE email = 'x'", "equal-unique"),
        ("SELECT * FROM people WHERE email IN ('x', 'y')", "in"),
        ("SELECT count(*) FROM people WHERE city = 'here'", "equal"),
        ("SELECT * FROM people WHERE city = 'here' AND tenant = 1", "equal-unique"),
        ("UPDATE people SET n = 3 WHERE email = 'y'", "equal-unique"),
        ("SELECT * FROM people WHERE email > 'x'", "scatter"),
    ] {
        let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
        match database.ask(Request::Explain(ExplainRequest { statement })).await.unwrap() {
            Reply::Explain(explained) => assert_eq!(explained.route, route, "{sql}\n{}", explained.plan),
            other => panic!("{other:?}"),
        }
    }
    let report = database.run("EXPLAIN ANALYZE SELECT n FROM people WHERE email = 'x'").await.join("\n");
    assert!(report.contains("look up"), "{report}");
    assert_eq!(database.run("SELECT sum(n) FROM people WHERE email = 'X'").await, ["1"]);
    assert_eq!(database.run("SELECT sum(n), max(name) FROM people WHERE email IN ('X', 'Y')").await, ["3 | b"]);
}
