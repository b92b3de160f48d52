//! What a shard promises, one test a promise.

mod apply;
mod replay;
mod transactions;

use std::rc::Rc;

use dosql_proto::{
    AckWal, CloseRequest, Column, Error, ErrorCode, FetchRequest, ReadWal, Row, RowBatch, RowChange, ShardExecute,
    ShardExecuted, ShardLoad, ShardQuery, ShardReply, ShardRequest, ShardStatus, ShardStatusRequest, Statement, Value,
    WalBatch, WalRecord, shard_reply::Reply, shard_request::Request, value::Kind,
};

use super::Shard;
use crate::runtime::{Actor, Call, Handled, Settings};
use crate::test_world::{World, run};

/// A shard driven by hand: what is asked is settled only when the test says so.
struct Bench {
    world: Rc<World>,
    shard: Option<Shard>,
}

fn statement(sql: &str, params: Vec<Value>) -> Statement {
    Statement { sql: sql.to_owned(), params }
}

fn execute(request_id: &str, statements: &[&str]) -> Request {
    Request::Execute(ShardExecute {
        statements: statements.iter().map(|sql| statement(sql, Vec::new())).collect(),
        request_id: request_id.to_owned(),
        ..ShardExecute::default()
    })
}

fn row(values: Vec<Value>) -> Row {
    Row { values }
}

impl Bench {
    async fn new(settings: Settings) -> Self {
        let world = World::new(settings);
        let shard = Shard::start(world.context("shard", "shard-0")).await.unwrap();
        Self { world, shard: Some(shard) }
    }

    /// Ends the shard as a crash would, and starts it from storage.
    async fn restart(&mut self) {
        self.shard = None;
        self.shard = Some(Shard::start(self.world.context("shard", "shard-0")).await.unwrap());
    }

    fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().unwrap()
    }

    async fn handle(&mut self, request: Request) -> Result<Reply, Error> {
        let request = ShardRequest { request: Some(request), ..ShardRequest::default() };
        match self.shard().handle(request, &Call::system()).await {
            Handled::Reply(reply) => reply.map(|ShardReply { reply, .. }| reply.unwrap()),
            Handled::Crash(error) => panic!("the shard crashed: {error}"),
            Handled::Later(_) | Handled::WhileAsked(..) => panic!("a shard answers at once"),
        }
    }

    async fn settle(&mut self) {
        self.shard().settle().await.unwrap();
    }

    async fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        let reply = self.handle(request).await;
        self.settle().await;
        reply
    }

    async fn run(&mut self, sql: &str) -> ShardExecuted {
        self.batch(&[sql]).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn batch(&mut self, statements: &[&str]) -> Result<ShardExecuted, Error> {
        match self.ask(execute("", statements)).await? {
            Reply::Executed(executed) => Ok(executed),
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self, sql: &str) -> Error {
        self.batch(&[sql]).await.expect_err(sql)
    }

    async fn query(&mut self, sql: &str, max_batch_bytes: u32) -> Result<RowBatch, Error> {
        let query =
            ShardQuery { statement: Some(statement(sql, Vec::new())), max_batch_bytes, ..ShardQuery::default() };
        match self.ask(Request::Query(query)).await? {
            Reply::Rows(batch) => Ok(batch),
            other => panic!("{other:?}"),
        }
    }

    async fn fetch(&mut self, cursor: u64) -> Result<RowBatch, Error> {
        match self.ask(Request::Fetch(FetchRequest { cursor })).await? {
            Reply::Rows(batch) => Ok(batch),
            other => panic!("{other:?}"),
        }
    }

    async fn one(&mut self, sql: &str) -> Value {
        self.query(sql, 0).await.unwrap().rows[0].values[0].clone()
    }

    async fn wal(&mut self, after_lsn: u64, max_bytes: u32) -> Result<WalBatch, Error> {
        match self.ask(Request::ReadWal(ReadWal { after_lsn, max_bytes, ..ReadWal::default() })).await? {
            Reply::Wal(batch) => Ok(batch),
            other => panic!("{other:?}"),
        }
    }

    async fn ack(&mut self, consumer: &str, lsn: u64) -> Result<u64, Error> {
        match self.ask(Request::AckWal(AckWal { consumer: consumer.to_owned(), lsn })).await? {
            Reply::Acked(acked) => Ok(acked.lsn),
            other => panic!("{other:?}"),
        }
    }

    async fn status(&mut self) -> ShardStatus {
        match self.ask(Request::Status(ShardStatusRequest {})).await.unwrap() {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// The record that a statement leaves.
    async fn record(&mut self, sql: &str) -> WalRecord {
        let before = self.status().await.last_lsn;
        let executed = self.run(sql).await;
        assert_eq!(executed.lsn, before + 1, "{sql}");
        let mut records = self.wal(before, 0).await.unwrap().records;
        assert_eq!(records.len(), 1, "{sql}");
        let record = records.remove(0);
        assert_eq!(record.lsn, before + 1);
        record
    }

    /// The changes that a statement leaves, as text.
    async fn changes(&mut self, sql: &str) -> Vec<String> {
        let record = self.record(sql).await;
        record.changes.iter().map(|change| shown(&record, change)).collect()
    }
}

fn shown(record: &WalRecord, change: &RowChange) -> String {
    let table = &record.tables[change.table as usize];
    let value = |value: &Value| match &value.kind {
        None => "NULL".to_owned(),
        Some(Kind::Integer(integer)) => integer.to_string(),
        Some(Kind::Real(real)) => format!("{real:?}"),
        Some(Kind::Text(text)) => format!("'{text}'"),
        Some(Kind::Blob(bytes)) => format!("x{bytes:?}"),
        Some(Kind::RawText(bytes)) => format!("raw{bytes:?}"),
    };
    let image = |row: &Option<Row>| match row {
        None => "-".to_owned(),
        Some(row) => {
            assert_eq!(row.values.len(), table.columns.len());
            row.values.iter().map(value).collect::<Vec<_>>().join(" ")
        }
    };
    let (before, after) = (image(&change.before), image(&change.after));
    format!("{} {}@{}: {before} => {after}", change.operation().as_str_name(), table.name, change.rowid)
}

#[test]
fn a_group_is_atomic_per_request_and_durable_only_once_settled() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b UNIQUE)").await;
        bench.handle(execute("", &["INSERT INTO t VALUES (1, 'x')"])).await.unwrap();
        // Fails at its third row, after two were inserted.
        let error =
            bench.handle(execute("", &["INSERT INTO t VALUES (2, 'y'), (3, 'z'), (4, 'x')"])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint);
        // Keeps the rows before the failing one within the statement, and fails all the same.
        bench.handle(execute("", &["INSERT OR FAIL INTO t VALUES (2, 'y'), (4, 'x')"])).await.unwrap_err();
        // Fails at its second statement.
        let half = ["INSERT INTO t VALUES (5, 'v')", "INSERT INTO t VALUES (6, 'x')"];
        bench.handle(execute("", &half)).await.unwrap_err();
        bench.handle(execute("", &["INSERT INTO t VALUES (7, 'w')"])).await.unwrap();
        assert_eq!(bench.one("SELECT group_concat(a) FROM t").await, "1,7".into());
        let records = bench.wal(1, 0).await.unwrap().records;
        let counts: Vec<_> = records.iter().map(|record| (record.lsn, record.changes.len())).collect();
        assert_eq!(counts, [(2, 1), (3, 1)]);

        bench.handle(execute("", &["DELETE FROM t"])).await.unwrap();
        assert_eq!(bench.shard().store.log.last_lsn, 4);
        // Dies before the group is settled.
        bench.restart().await;
        assert_eq!(bench.one("SELECT group_concat(a) FROM t").await, "1,7".into());
        assert_eq!(bench.status().await.last_lsn, 3);
    });
}

#[test]
fn a_failure_that_rolls_back_everything_takes_nobody_elses_work() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY)").await;
        bench.handle(execute("", &["INSERT INTO t VALUES (1)"])).await.unwrap();
        let error = bench.handle(execute("", &["INSERT OR ROLLBACK INTO t VALUES (2), (1)"])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint);
        bench.handle(execute("", &["INSERT INTO t VALUES (3)"])).await.unwrap();
        bench.settle().await;
        bench.run("CREATE TRIGGER g BEFORE DELETE ON t BEGIN SELECT RAISE(ROLLBACK, 'kept'); END").await;
        bench.handle(execute("", &["INSERT INTO t VALUES (4)"])).await.unwrap();
        let error = bench.handle(execute("", &["INSERT INTO t VALUES (5)", "DELETE FROM t"])).await.unwrap_err();
        assert_eq!(error.message, "kept");
        bench.settle().await;
        bench.restart().await;
        assert_eq!(bench.one("SELECT group_concat(a) FROM t").await, "1,3,4".into());
        assert_eq!(bench.status().await.last_lsn, 5);
    });
}

#[test]
fn deferred_constraints_fail_their_own_request_alone() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE p (a INTEGER PRIMARY KEY)").await;
        bench.run("CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED)").await;
        bench.handle(execute("", &["INSERT INTO p VALUES (1)"])).await.unwrap();
        let error = bench.handle(execute("", &["INSERT INTO c VALUES (2)"])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint);
        bench.handle(execute("", &["INSERT INTO c VALUES (3)", "INSERT INTO p VALUES (3)"])).await.unwrap();
        bench.settle().await;
        assert_eq!(bench.one("SELECT group_concat(a) FROM p").await, "1,3".into());
        assert_eq!(bench.one("SELECT group_concat(p) FROM c").await, "3".into());
    });
}

#[test]
fn a_repeated_request_takes_effect_once() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY)").await;
        let insert = || execute("id-1", &["INSERT INTO t DEFAULT VALUES RETURNING a"]);
        // Within one group, and after a restart.
        let first = bench.handle(insert()).await.unwrap();
        let again = bench.handle(insert()).await.unwrap();
        bench.settle().await;
        bench.restart().await;
        let later = bench.ask(insert()).await.unwrap();
        let Reply::Executed(first) = first else { panic!("{first:?}") };
        assert!(!first.duplicate);
        assert_eq!(first.lsn, 2);
        assert_eq!(first.results[0].rows, [row(vec![1.into()])]);
        for reply in [again, later] {
            assert_eq!(reply, Reply::Executed(ShardExecuted { duplicate: true, ..first.clone() }));
        }
        assert_eq!(bench.one("SELECT count(*) FROM t").await, 1.into());
        // One that failed may be tried again.
        bench.ask(execute("id-2", &["INSERT INTO t VALUES (1)"])).await.unwrap_err();
        bench.run("DELETE FROM t").await;
        bench.ask(execute("id-2", &["INSERT INTO t VALUES (1)"])).await.unwrap();
        // Old ones are forgotten, but for the last one.
        bench.world.skew_ms.set(700_000);
        bench.ask(execute("id-3", &["INSERT INTO t VALUES (10)"])).await.unwrap();
        let reply = bench.ask(execute("id-2", &["INSERT INTO t VALUES (11)"])).await.unwrap();
        let Reply::Executed(forgotten) = reply else { panic!("{reply:?}") };
        assert!(!forgotten.duplicate);
    });
}

#[test]
fn every_way_to_change_a_row_leaves_its_images() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE, c REAL)").await;
        bench.run("CREATE TABLE log (what)").await;
        bench.run("CREATE TABLE w (k TEXT PRIMARY KEY, n INTEGER, r REAL) WITHOUT ROWID").await;
        bench.run("CREATE TABLE p (id INTEGER PRIMARY KEY)").await;
        bench.run("CREATE TABLE c (x TEXT PRIMARY KEY, p REFERENCES p ON DELETE CASCADE ON UPDATE SET NULL)").await;
        bench.run("CREATE TABLE h (v)").await;
        bench.run("CREATE TABLE g (a, v AS (a + 1), s AS (a * 2) STORED, z REAL)").await;
        let trigger = "CREATE TRIGGER tt AFTER DELETE ON t BEGIN INSERT INTO log VALUES (old.b); END";
        let cases: &[(&str, &[&str])] = &[
            (
                "INSERT INTO t VALUES (9223372036854775807, 'x', 1)",
                &["INSERT t@9223372036854775807: - => 9223372036854775807 'x' 1.0"],
            ),
            (
                "INSERT OR REPLACE INTO t VALUES (1, 'x', 2.5)",
                &["DELETE t@9223372036854775807: 9223372036854775807 'x' 1.0 => -", "INSERT t@1: - => 1 'x' 2.5"],
            ),
            ("REPLACE INTO t VALUES (1, 'x', 3)", &["DELETE t@1: 1 'x' 2.5 => -", "INSERT t@1: - => 1 'x' 3.0"]),
            (
                "INSERT INTO t VALUES (1, 'q', 0) ON CONFLICT DO UPDATE SET c = c + 1, b = 'y'",
                &["UPDATE t@1: 1 'x' 3.0 => 1 'y' 4.0"],
            ),
            ("UPDATE t SET c = 7", &["UPDATE t@1: 1 'y' 4.0 => 1 'y' 7.0"]),
            ("UPDATE t SET a = 2, b = 5", &["UPDATE t@1: 1 'y' 7.0 => 2 '5' 7.0"]),
            (trigger, &[]),
            ("DELETE FROM t", &["DELETE t@2: 2 '5' 7.0 => -", "INSERT log@1: - => '5'"]),
            ("DELETE FROM log", &["DELETE log@1: '5' => -"]),
            (
                "INSERT INTO w VALUES ('k', '12', 3), ('l', NULL, NULL)",
                &["INSERT w@0: - => 'k' 12 3.0", "INSERT w@0: - => 'l' NULL NULL"],
            ),
            ("UPDATE w SET n = '34', r = 5 WHERE k = 'k'", &["UPDATE w@0: 'k' 12 3.0 => 'k' 34 5.0"]),
            ("UPDATE w SET k = 6, r = '7' WHERE k = 'k'", &["UPDATE w@0: 'k' 34 5.0 => '6' 34 7.0"]),
            ("REPLACE INTO w VALUES ('l', 1, 1)", &["DELETE w@0: 'l' NULL NULL => -", "INSERT w@0: - => 'l' 1 1.0"]),
            ("DELETE FROM w", &["DELETE w@0: '6' 34 7.0 => -", "DELETE w@0: 'l' 1 1.0 => -"]),
            ("INSERT INTO p VALUES (1), (2)", &["INSERT p@1: - => 1", "INSERT p@2: - => 2"]),
            ("INSERT INTO c VALUES ('a', 1), ('b', 2)", &["INSERT c@1: - => 'a' 1", "INSERT c@2: - => 'b' 2"]),
            ("DELETE FROM p WHERE id = 1", &["DELETE p@1: 1 => -", "DELETE c@1: 'a' 1 => -"]),
            ("UPDATE p SET id = 3", &["UPDATE p@2: 2 => 3", "UPDATE c@2: 'b' 2 => 'b' NULL"]),
            (
                "INSERT INTO h VALUES (x'00ff'), (CAST(x'61ff' AS TEXT))",
                &["INSERT h@1: - => x[0, 255]", "INSERT h@2: - => raw[97, 255]"],
            ),
            (
                "UPDATE h SET v = 1.0, rowid = 9 WHERE rowid = 1",
                &["DELETE h@1: x[0, 255] => -", "INSERT h@9: - => 1.0"],
            ),
            ("INSERT INTO c VALUES (NULL, NULL)", &["INSERT c@3: - => NULL NULL"]),
            ("UPDATE c SET rowid = 8 WHERE x IS NULL", &["DELETE c@3: NULL NULL => -", "INSERT c@8: - => NULL NULL"]),
            ("INSERT INTO g (a, z) VALUES (4, 1)", &["INSERT g@1: - => 4 8 1.0"]),
            ("UPDATE g SET a = 5, z = 2", &["UPDATE g@1: 4 8 1.0 => 5 10 2.0"]),
        ];
        for (sql, expected) in cases {
            assert_eq!(bench.changes(sql).await, *expected, "{sql}");
        }
        let record = bench.record("DELETE FROM g").await;
        let names: Vec<_> = record.tables[0].columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["a", "s", "z"]);
    });
}

#[test]
fn what_was_rolled_back_or_changed_nothing_leaves_no_image() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY)").await;
        bench.refused("INSERT INTO t VALUES (1), (1)").await;
        for sql in ["UPDATE t SET a = 1", "DELETE FROM t", "CREATE TABLE IF NOT EXISTS t (x)", "SELECT 1", "ANALYZE"] {
            assert_eq!(bench.run(sql).await.lsn, 1, "{sql}");
        }
        assert_eq!(bench.changes("INSERT INTO t VALUES (2)").await, ["INSERT t@2: - => 2"]);
    });
}

#[test]
fn changes_of_the_schema_are_records() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let record = bench.record("CREATE TABLE IF NOT EXISTS t (a INT, b TEXT, PRIMARY KEY (b, a)) ").await;
        let table = record.schema_changes[0].table.clone().unwrap();
        assert_eq!(record.schema_changes[0].sql, "CREATE TABLE t (a INT, b TEXT, PRIMARY KEY (b, a))");
        assert_eq!(table.primary_key, [1, 0]);
        let column =
            |name: &str, declared_type: &str| Column { name: name.into(), declared_type: declared_type.into() };
        assert_eq!(table.columns, [column("a", "INT"), column("b", "TEXT")]);

        let record = bench.record("CREATE TABLE s AS SELECT 1 AS one, 'x' AS rowid UNION ALL SELECT 2, 'y'").await;
        assert!(record.schema_changes[0].sql.starts_with("CREATE TABLE s(one"), "{:?}", record.schema_changes);
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["INSERT s@1: - => 1 'x'", "INSERT s@2: - => 2 'y'"]);

        // A new column's default is a value that nobody wrote.
        let record = bench.record("ALTER TABLE s ADD COLUMN d DEFAULT 5").await;
        assert_eq!(record.schema_changes[0].table.as_ref().unwrap().columns.len(), 3);
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["UPDATE s@1: 1 'x' NULL => 1 'x' 5", "UPDATE s@2: 2 'y' NULL => 2 'y' 5"]);
        // A cached statement knows of it.
        assert_eq!(bench.query("SELECT * FROM s", 0).await.unwrap().rows[0].values.len(), 3);

        let record = bench.record("ALTER TABLE s RENAME TO r").await;
        assert_eq!(record.schema_changes[0].dropped, "s");
        assert_eq!(record.schema_changes[0].table.as_ref().unwrap().name, "r");
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["INSERT r@1: - => 1 'x' 5", "INSERT r@2: - => 2 'y' 5"]);
        let record = bench.record("ALTER TABLE r RENAME COLUMN one TO uno").await;
        assert_eq!(record.schema_changes[0].table.as_ref().unwrap().columns[0].name, "uno");
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["UPDATE r@1: NULL 'x' 5 => 1 'x' 5", "UPDATE r@2: NULL 'y' 5 => 2 'y' 5"]);
        let record = bench.record("ALTER TABLE r DROP COLUMN d").await;
        assert_eq!(record.schema_changes[0].table.as_ref().unwrap().columns.len(), 2);
        let record = bench.record("CREATE INDEX i ON r (uno)").await;
        assert_eq!(record.schema_changes[0].sql, "CREATE INDEX i ON r (uno)");
        assert_eq!(record.schema_changes[0].table, None);
        let record = bench.record("DROP TABLE r").await;
        assert_eq!(record.schema_changes[0].dropped, "r");
        assert_eq!(record.schema_changes[0].table, None);

        // In one transaction with rows, under the shapes of their moments.
        let before = bench.status().await.last_lsn;
        let batch = ["INSERT INTO t VALUES (1, 'p')", "ALTER TABLE t ADD COLUMN c", "INSERT INTO t VALUES (2, 'q', 3)"];
        bench.batch(&batch).await.unwrap();
        let record = bench.wal(before, 0).await.unwrap().records.remove(0);
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["INSERT t@1: - => 1 'p'", "INSERT t@2: - => 2 'q' 3"]);
        assert_eq!(record.schema_changes[0].after_changes, 1);

        // Rolled back, the old shape is the shape again.
        bench.batch(&["ALTER TABLE t ADD COLUMN d", "SELECT * FROM nix"]).await.unwrap_err();
        assert_eq!(bench.changes("INSERT INTO t VALUES (3, 'r', 4)").await, ["INSERT t@3: - => 3 'r' 4"]);
        let tables: Vec<_> = bench.status().await.tables.into_iter().map(|table| table.name).collect();
        assert_eq!(tables, ["t"]);
    });
}

#[test]
fn a_failed_schema_statement_is_recorded_when_it_succeeds_later() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a)").await;
        bench.run("INSERT INTO t VALUES (1), (1)").await;
        assert_eq!(bench.refused("CREATE UNIQUE INDEX u ON t (a)").await.code(), ErrorCode::Constraint);
        bench.run("DELETE FROM t WHERE rowid = 2").await;
        let record = bench.record("CREATE UNIQUE INDEX u ON t (a)").await;
        assert_eq!(record.schema_changes.len(), 1);
    });
}

#[test]
fn the_clock_never_goes_back() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let first = bench.record("CREATE TABLE t (a)").await.hlc;
        let now_ms = bench.world.context("test", "test").now_ms();
        assert!((first >> 16).abs_diff(now_ms) < 60_000);
        bench.world.skew_ms.set(-3_600_000);
        bench.restart().await;
        let second = bench.record("INSERT INTO t VALUES (1)").await.hlc;
        assert_eq!(second, first + 1);
        bench.world.skew_ms.set(0);
        assert!(bench.record("INSERT INTO t VALUES (1)").await.hlc > second);
    });
}

#[test]
fn loads_are_one_record_and_say_which_row_was_refused() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE \"odd \"\"name\" (a INTEGER PRIMARY KEY, \"b c\" TEXT, d)").await;
        let load = |request_id: &str, rows: Vec<Row>| {
            Request::Load(ShardLoad {
                table: "odd \"name".into(),
                columns: vec!["b c".into(), "a".into()],
                rows,
                request_id: request_id.into(),
                ..ShardLoad::default()
            })
        };
        let rows = vec![row(vec!["x".into(), 1.into()]), row(vec![Value::NULL, 2.into()])];
        let reply = bench.ask(load("l", rows.clone())).await.unwrap();
        let Reply::Executed(executed) = reply else { panic!("{reply:?}") };
        assert_eq!((executed.lsn, executed.results[0].rows_affected), (2, 2));
        let record = bench.wal(1, 0).await.unwrap().records.remove(0);
        let changes: Vec<_> = record.changes.iter().map(|change| shown(&record, change)).collect();
        assert_eq!(changes, ["INSERT odd \"name@1: - => 1 'x' NULL", "INSERT odd \"name@2: - => 2 NULL NULL"]);
        let reply = bench.ask(load("l", rows.clone())).await.unwrap();
        assert_eq!(reply, Reply::Executed(ShardExecuted { duplicate: true, ..executed }));

        let error = bench.ask(load("m", vec![row(vec!["y".into(), 3.into()]), rows[0].clone()])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint);
        assert!(error.message.starts_with("row 2 of 2: UNIQUE constraint failed"), "{error}");
        let error = bench.ask(load("m", vec![row(vec!["y".into()])])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ParameterCount);
        assert_eq!(bench.one("SELECT count(*) FROM \"odd \"\"name\"").await, 2.into());
        assert_eq!(bench.status().await.last_lsn, 2);
    });
}

#[test]
fn large_results_come_in_bounded_batches() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
                       SELECT i, 'text ' || i AS t, i / 2.0 FROM n";
        let mut batch = bench.query(numbers, 4096).await.unwrap();
        assert_eq!(batch.rows[0].values.len(), 3);
        let mut rows = std::mem::take(&mut batch.rows);
        let mut batches = 1;
        while batch.cursor != 0 {
            batch = bench.fetch(batch.cursor).await.unwrap();
            assert!(batch.rows.len() < 300, "{}", batch.rows.len());
            rows.append(&mut batch.rows);
            batches += 1;
        }
        assert!(batches > 20, "{batches}");
        assert_eq!(rows.len(), 5000);
        for (index, found) in rows.iter().enumerate() {
            let i = i64::try_from(index).unwrap() + 1;
            let half = f64::from(u16::try_from(i).unwrap()) / 2.0;
            assert_eq!(found.values, [i.into(), format!("text {i}").into(), half.into()]);
        }

        // A result stays what it was; closed, ended and forgotten ones are unknown.
        bench.run("CREATE TABLE t AS SELECT 1 AS a UNION ALL SELECT 2 UNION ALL SELECT 3").await;
        let open = bench.query("SELECT a FROM t", 1).await.unwrap();
        bench.run("DELETE FROM t").await;
        let second = bench.fetch(open.cursor).await.unwrap();
        assert_eq!((second.cursor, &second.rows), (open.cursor, &vec![row(vec![2.into()])]));
        let last = bench.fetch(open.cursor).await.unwrap();
        assert_eq!((last.cursor, last.rows), (0, vec![row(vec![3.into()])]));
        assert_eq!(bench.fetch(open.cursor).await.unwrap_err().code(), ErrorCode::UnknownCursor);
        let open = bench.query(numbers, 4096).await.unwrap();
        bench.ask(Request::Close(CloseRequest { cursor: open.cursor })).await.unwrap();
        assert_eq!(bench.fetch(open.cursor).await.unwrap_err().code(), ErrorCode::UnknownCursor);
        let open = bench.query(numbers, 4096).await.unwrap();
        bench.world.skew_ms.set(61_000);
        assert_eq!(bench.fetch(open.cursor).await.unwrap_err().code(), ErrorCode::UnknownCursor);

        for _ in 0..64 {
            bench.query(numbers, 4096).await.unwrap();
        }
        assert_eq!(bench.query(numbers, 4096).await.unwrap_err().code(), ErrorCode::Overloaded);
        assert_eq!(bench.one("SELECT 1").await, 1.into());
        bench.world.skew_ms.set(122_000);
        bench.query(numbers, 4096).await.unwrap();
    });
}

#[test]
fn what_must_not_run_is_refused_by_name() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a)").await;
        for (sql, part) in [
            ("BEGIN", "BEGIN"),
            ("COMMIT", "COMMIT"),
            ("/*_dosql_*/ COMMIT", "/*_dosql_*/"),
            ("ROLLBACK", "ROLLBACK"),
            ("SAVEPOINT x", "SAVEPOINT"),
            ("RELEASE _dosql_unit", "RELEASE"),
            ("ROLLBACK TO _dosql_unit", "ROLLBACK TO"),
            ("ATTACH ':memory:' AS x", "ATTACH"),
            ("DETACH main", "DETACH"),
            ("VACUUM INTO 'x'", "VACUUM"),
            ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys"),
            ("PRAGMA writable_schema = ON", "PRAGMA writable_schema"),
            ("PRAGMA journal_mode", "PRAGMA journal_mode"),
            ("CREATE TEMP TABLE x (a)", "temporary"),
            ("CREATE VIRTUAL TABLE f USING fts5(a)", "CREATE VIRTUAL TABLE"),
            ("SELECT load_extension('x')", "load_extension"),
            ("SELECT * FROM _dosql_wal", "_dosql_wal"),
            ("SELECT count(*) FROM _DOSQL_wal", "_dosql_"),
            ("DELETE FROM _dosql_requests", "_dosql_requests"),
            ("DROP TABLE _dosql_consumers", "_dosql_consumers"),
            ("CREATE TABLE _dosql_mine (a)", "_dosql_mine"),
            ("CREATE INDEX _dosql_i ON t (a)", "_dosql_i"),
            ("ALTER TABLE t RENAME TO _dosql_t", "_dosql_"),
            ("CREATE TRIGGER g AFTER INSERT ON _dosql_wal BEGIN SELECT 1; END", "_dosql_wal"),
        ] {
            let error = bench.refused(sql).await;
            assert_eq!(error.code(), ErrorCode::Unsupported, "{sql}: {error}");
            assert!(error.message.contains(part), "{sql}: {error}");
        }
        bench.run("CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM _dosql_wal; END").await;
        let error = bench.refused("INSERT INTO t VALUES (1)").await;
        assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");
        bench.run("DROP TRIGGER g").await;
        assert_eq!(bench.changes("INSERT INTO t VALUES (1)").await, ["INSERT t@1: - => 1"]);
        assert_eq!(bench.one("PRAGMA foreign_keys").await, 1.into());
        assert_eq!(bench.run("PRAGMA table_info(t)").await.results[0].rows.len(), 1);

        assert_eq!(bench.query("DELETE FROM t", 0).await.unwrap_err().code(), ErrorCode::InvalidRequest);
        assert_eq!(
            bench.query("INSERT INTO t VALUES (1) RETURNING a", 0).await.unwrap_err().code(),
            ErrorCode::InvalidRequest
        );
        assert_eq!(bench.refused("SELECT 1; DELETE FROM t").await.code(), ErrorCode::InvalidRequest);
        assert_eq!(bench.refused("").await.code(), ErrorCode::SyntaxError);
        let long = format!("SELECT '{}'", "x".repeat(1 << 20));
        assert_eq!(bench.refused(&long).await.code(), ErrorCode::TooLarge);
        let error = bench.refused("INSERT INTO t VALUES (zeroblob(17000000))").await;
        assert_eq!(error.code(), ErrorCode::TooLarge, "{error}");
        let error = bench
            .refused(
                "INSERT INTO t SELECT zeroblob(1000000) FROM (VALUES(1),(2),(3),(4),(5),(6),(7),(8),(9)) RETURNING a",
            )
            .await;
        assert_eq!(error.code(), ErrorCode::TooLarge, "{error}");
        assert_eq!(bench.one("SELECT count(*) FROM t").await, 1.into());
    });
}

#[test]
fn a_statement_ends_at_its_deadline() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let call = Call::system().within(bench.world.context("test", "test").now_ms(), 50);
        let query = ShardQuery { statement: Some(statement(endless, Vec::new())), ..ShardQuery::default() };
        let handled = bench
            .shard()
            .handle(ShardRequest { request: Some(Request::Query(query)), ..ShardRequest::default() }, &call)
            .await;
        let Handled::Reply(Err(error)) = handled else { panic!("it cannot end otherwise") };
        assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
        assert_eq!(bench.one("SELECT 1").await, 1.into());
    });
}

#[test]
fn results_tell_what_each_statement_did() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let done = bench
            .batch(&[
                "CREATE TABLE t (a INTEGER PRIMARY KEY, b DECIMAL(5,2))",
                "INSERT INTO t (b) VALUES (1), (2) RETURNING b",
                "SELECT a, b FROM t",
                "UPDATE t SET b = 3",
                "DELETE FROM t WHERE a = 2",
            ])
            .await
            .unwrap();
        let told: Vec<_> = done
            .results
            .iter()
            .map(|r| (r.columns.len(), r.rows.len(), r.rows_affected, r.last_insert_rowid))
            .collect();
        assert_eq!(told, [(0, 0, 0, 0), (1, 2, 2, 2), (2, 2, 0, 0), (0, 0, 2, 0), (0, 0, 1, 0)]);
        assert_eq!(done.results[2].columns[1].declared_type, "DECIMAL(5,2)");
        assert_eq!(done.lsn, 1);
        // All of one transaction is one record.
        assert_eq!(bench.wal(0, 0).await.unwrap().records.len(), 1);
    });
}

#[test]
fn records_are_kept_until_every_consumer_has_them() {
    run(async {
        let settings = Settings { wal_segment_size: 10_000, ..Settings::default() };
        let mut bench = Bench::new(settings).await;
        bench.run("CREATE TABLE t (a)").await;
        for _ in 0..50 {
            bench.run("INSERT INTO t VALUES (zeroblob(1000))").await;
        }
        assert_eq!(bench.status().await.oldest_lsn, 1);
        let batch = bench.wal(0, 5_000).await.unwrap();
        assert!((4..=5).contains(&batch.records.len()), "{}", batch.records.len());
        assert_eq!((batch.last_lsn, batch.oldest_lsn), (51, 1));
        assert_eq!(bench.wal(10, 1).await.unwrap().records.len(), 1);
        assert_eq!(bench.wal(51, 0).await.unwrap().records.len(), 0);

        assert_eq!(bench.ack("slow", 0).await.unwrap(), 0);
        assert_eq!(bench.ack("lake", 40).await.unwrap(), 40);
        assert_eq!(bench.ack("lake", 30).await.unwrap(), 40);
        assert_eq!(bench.status().await.oldest_lsn, 1);
        bench.restart().await;
        assert_eq!(bench.ack("slow", 30).await.unwrap(), 30);
        let oldest = bench.status().await.oldest_lsn;
        // Some nine of a thousand and a few bytes fit the ten thousand that stay.
        assert!((21..=23).contains(&oldest), "{oldest}");
        let error = bench.wal(oldest - 2, 0).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::UnknownPosition);
        assert!(error.message.contains(&format!("retained are LSN {oldest} to 51")), "{error}");
        assert_eq!(bench.wal(oldest - 1, 1).await.unwrap().records[0].lsn, oldest);
        assert_eq!(bench.wal(52, 0).await.unwrap_err().code(), ErrorCode::UnknownPosition);
        assert_eq!(bench.ack("lake", 52).await.unwrap_err().code(), ErrorCode::InvalidRequest);

        // The last record stays, whoever has it: numbers go on after a restart.
        bench.run("INSERT INTO t VALUES (zeroblob(20000))").await;
        bench.ack("lake", 52).await.unwrap();
        bench.ack("slow", 52).await.unwrap();
        bench.restart().await;
        let status = bench.status().await;
        assert_eq!((status.oldest_lsn, status.last_lsn), (52, 52));
        assert_eq!(bench.run("INSERT INTO t VALUES (1)").await.lsn, 53);
    });
}

#[test]
fn parameters_reach_the_row_as_they_are() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        bench.run("CREATE TABLE t (a, b, c, d, e)").await;
        let values = vec![
            i64::MAX.into(),
            1.0.into(),
            "a\0b".into(),
            Value { kind: Some(Kind::RawText(vec![0xff, b'x'])) },
            Value::blob(vec![7; 1_900_000]),
        ];
        let insert = ShardExecute {
            statements: vec![statement("INSERT INTO t VALUES (?, ?, ?, ?, ?)", values.clone())],
            request_id: "r".into(),
            ..ShardExecute::default()
        };
        bench.ask(Request::Execute(insert)).await.unwrap();
        assert_eq!(bench.query("SELECT * FROM t", 0).await.unwrap().rows[0].values, values);
        let record = bench.wal(1, 0).await.unwrap().records.remove(0);
        assert_eq!(record.changes[0].after, Some(row(values)));
        let short = ShardExecute {
            statements: vec![statement("INSERT INTO t (a) VALUES (?)", Vec::new())],
            ..ShardExecute::default()
        };
        assert_eq!(bench.ask(Request::Execute(short)).await.unwrap_err().code(), ErrorCode::ParameterCount);
    });
}
