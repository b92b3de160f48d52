//! What a shard promises of transactions over several messages.

use dosql_proto::{
    Ending, Error, ErrorCode, FinishTransaction, ImagesOf, RollbackTo, Row, ShardExecute, ShardExecuted, ShardQuery,
    ShardTransaction, ValidateReads, Value, WalRecord, shard_reply::Reply, shard_request::Request,
};

use super::{Bench, shown, statement};
use crate::runtime::Settings;
use crate::test_world::run;

/// A transaction as its coordinator sees it.
#[derive(Clone)]
struct Tx {
    message: ShardTransaction,
}

impl Tx {
    fn new(id: &str) -> Self {
        let message = ShardTransaction { id: id.into(), coordinator: "default".into(), ..ShardTransaction::default() };
        Self { message }
    }

    fn next(&mut self, sql: &[&str]) -> Request {
        self.message.number += 1;
        self.again(sql)
    }

    fn again(&self, sql: &[&str]) -> Request {
        Request::Execute(ShardExecute {
            statements: sql.iter().map(|sql| statement(sql, Vec::new())).collect(),
            transaction: Some(self.message.clone()),
            ..ShardExecute::default()
        })
    }

    fn prepare(&mut self, sql: &[&str]) -> Request {
        self.message.prepare = true;
        self.next(sql)
    }

    fn query(&self, sql: &str) -> Request {
        Request::Query(ShardQuery {
            statement: Some(statement(sql, Vec::new())),
            transaction: Some(ShardTransaction { prepare: false, ..self.message.clone() }),
            ..ShardQuery::default()
        })
    }

    fn finish(&self, ending: Ending) -> Request {
        Request::Finish(FinishTransaction {
            transaction: self.message.id.clone(),
            ending: ending.into(),
            number: self.message.number,
        })
    }

    fn roll_back_to(&mut self, savepoint: u64) -> Request {
        self.message.number += 1;
        Request::RollbackTo(RollbackTo { transaction: Some(self.message.clone()), savepoint })
    }
}

impl Bench {
    async fn done(&mut self, request: Request) -> ShardExecuted {
        match self.ask(request).await {
            Ok(Reply::Executed(executed)) => executed,
            other => panic!("{other:?}"),
        }
    }

    async fn noted(&mut self, request: Request) -> u64 {
        match self.ask(request).await {
            Ok(Reply::Transaction(noted)) => noted.lsn,
            other => panic!("{other:?}"),
        }
    }

    async fn value(&mut self, request: Request) -> Value {
        match self.ask(request).await {
            Ok(Reply::Rows(batch)) => batch.rows[0].values[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn fails(&mut self, request: Request, code: ErrorCode) -> Error {
        let error = self.ask(request).await.expect_err("it should fail");
        assert_eq!(error.code(), code, "{error}");
        error
    }

    async fn last(&mut self) -> WalRecord {
        let lsn = self.status().await.last_lsn;
        self.wal(lsn - 1, 0).await.unwrap().records.remove(0)
    }
}

fn texts(record: &WalRecord) -> Vec<String> {
    record.changes.iter().map(|change| shown(record, change)).collect()
}

async fn bench() -> Bench {
    let mut bench = Bench::new(Settings::default()).await;
    bench.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").await;
    bench.run("INSERT INTO t VALUES (1, 'x')").await;
    bench
}

const COUNT: &str = "SELECT count(*) FROM t";

#[test]
fn others_see_what_is_committed_while_a_transaction_goes_on() {
    run(async {
        let mut bench = bench().await;
        let mut tx = Tx::new("a");
        bench.done(tx.next(&["INSERT INTO t VALUES (2, 'y')"])).await;
        for _ in 0..3 {
            assert_eq!(bench.value(tx.query(COUNT)).await, Value::from(2));
            assert_eq!(bench.one(COUNT).await, Value::from(1));
        }
        bench.done(tx.next(&["UPDATE t SET b = a", "DELETE FROM t WHERE a = 1"])).await;
        assert_eq!(bench.one("SELECT b FROM t").await, Value::from("x"));
        let error = bench.refused("UPDATE t SET b = 'other'").await;
        assert_eq!((error.code(), error.retryable), (ErrorCode::LockTimeout, true));
        bench.fails(Tx::new("b").next(&[]), ErrorCode::LockTimeout).await;
        assert_eq!(bench.status().await.transaction, "a");
        assert_eq!(bench.noted(tx.finish(Ending::CommitHere)).await, 3);
        assert_eq!(
            texts(&bench.last().await),
            ["INSERT t@2: - => 2 'y'", "UPDATE t@1: 1 'x' => 1 1", "UPDATE t@2: 2 'y' => 2 2", "DELETE t@1: 1 1 => -"]
        );
        // The answer was lost.
        assert_eq!(bench.noted(tx.finish(Ending::CommitHere)).await, 3);
        // A late copy of a message takes no lock.
        tx.message.number = 1;
        assert!(bench.done(tx.again(&["INSERT INTO t VALUES (2, 'y')"])).await.duplicate);
        bench.run("UPDATE t SET b = 'other'").await;
        bench.restart().await;
        assert_eq!(bench.one("SELECT a || b FROM t").await, Value::from("2other"));
    });
}

#[test]
fn what_is_prepared_survives_and_waits_for_its_coordinator() {
    run(async {
        for committed in [true, false] {
            let mut bench = bench().await;
            let mut tx = Tx::new("a");
            let request = tx.prepare(&["INSERT INTO t VALUES (2, 'y') RETURNING a"]);
            let first = bench.done(request.clone()).await;
            assert_eq!(bench.done(request.clone()).await, first);
            bench.restart().await;
            assert_eq!(bench.done(request.clone()).await, first);
            assert!(bench.status().await.prepared);
            assert_eq!(bench.one(COUNT).await, Value::from(1));
            assert_eq!(bench.refused("DELETE FROM t").await.code(), ErrorCode::LockTimeout);
            let mut strict = Tx::new("reader").query(COUNT);
            if let Request::Query(query) = &mut strict {
                query.strict = true;
            }
            bench.fails(strict.clone(), ErrorCode::LockTimeout).await;
            bench.fails(tx.finish(Ending::CommitHere), ErrorCode::InvalidRequest).await;
            let ending = if committed { Ending::CommitPrepared } else { Ending::Rollback };
            for _ in 0..2 {
                assert_eq!(bench.noted(tx.finish(ending)).await, if committed { 3 } else { 2 });
            }
            bench.restart().await;
            assert_eq!(bench.noted(tx.finish(ending)).await, if committed { 3 } else { 2 });
            assert_eq!(bench.value(strict).await, Value::from(if committed { 2 } else { 1 }));
            if committed {
                assert_eq!(texts(&bench.last().await), ["INSERT t@2: - => 2 'y'"]);
                assert!(bench.done(request).await.duplicate);
            }
            bench.run("DELETE FROM t").await;
        }
    });
}

#[test]
fn a_message_tells_the_rows_that_it_has_changed() {
    run(async {
        let mut bench = bench().await;
        let mut tx = Tx::new("a");
        let of = |columns: &[&str]| {
            let columns = columns.iter().map(|name| (*name).to_owned()).collect();
            vec![ImagesOf { table: "T".to_owned(), columns }]
        };
        let asking = |request: Request, images_of: Vec<ImagesOf>| match request {
            Request::Execute(execute) => Request::Execute(ShardExecute { images_of, ..execute }),
            other => other,
        };
        let row = |value: Value| Some(Row { values: vec![value] });
        bench.done(tx.next(&["INSERT INTO t VALUES (2, 'y')"])).await;
        let request = asking(
            tx.next(&["UPDATE t SET b = 'z' WHERE a = 1", "INSERT OR REPLACE INTO t VALUES (2, 'w')"]),
            of(&["b"]),
        );
        let told = bench.done(request.clone()).await;
        let images: Vec<_> = told.images.iter().map(|image| (image.rowid, &image.before, &image.after)).collect();
        let (x, y, z, w) = (row("x".into()), row("y".into()), row("z".into()), row("w".into()));
        assert_eq!(images, [(1, &x, &z), (2, &y, &None), (2, &None, &w)]);
        assert_eq!(bench.done(request).await, told);
        assert!(bench.done(asking(tx.next(&[]), of(&["a", "b"]))).await.images.is_empty());
        let error = bench.ask(asking(tx.next(&["DELETE FROM t"]), of(&["c"]))).await.unwrap_err();
        assert_eq!((error.code(), error.message.as_str()), (ErrorCode::UnknownColumn, "no such column: t.c"));
        assert_eq!(bench.value(tx.query(COUNT)).await, Value::from(2));
        let alone = ShardExecute {
            images_of: of(&["b"]),
            statements: vec![statement(COUNT, Vec::new())],
            ..ShardExecute::default()
        };
        bench.fails(Request::Execute(alone), ErrorCode::InvalidRequest).await;
    });
}

#[test]
fn a_restart_rolls_back_what_was_not_prepared() {
    run(async {
        let mut bench = bench().await;
        let mut tx = Tx::new("a");
        bench.done(tx.next(&["DELETE FROM t"])).await;
        bench.restart().await;
        assert_eq!(bench.one(COUNT).await, Value::from(1));
        bench.fails(tx.query(COUNT), ErrorCode::TransactionAborted).await;
        bench.fails(tx.finish(Ending::CommitHere), ErrorCode::TransactionAborted).await;
        bench.fails(tx.next(&["DELETE FROM t"]), ErrorCode::TransactionAborted).await;
        bench.fails(tx.prepare(&[]), ErrorCode::TransactionAborted).await;
        bench.run("DELETE FROM t").await;
    });
}

#[test]
fn what_was_read_must_still_hold() {
    run(async {
        let mut bench = bench().await;
        let mut tx = Tx::new("a");
        let Ok(Reply::Rows(batch)) = bench.ask(tx.query(COUNT)).await else { panic!() };
        tx.message.read_lsn = Some(batch.lsn);
        bench.value(tx.query(COUNT)).await;
        let validate = |lsn, writes| Request::Validate(ValidateReads { transaction: "a".into(), lsn, writes });
        bench.noted(validate(batch.lsn, true)).await;
        let mut other = Tx::new("b");
        bench.done(other.next(&[])).await;
        // A lock is no change, unless it may become one that the reader's own writes depend on.
        bench.noted(validate(batch.lsn, false)).await;
        bench.fails(validate(batch.lsn, true), ErrorCode::LockTimeout).await;
        bench.done(other.prepare(&[])).await;
        bench.fails(validate(batch.lsn, false), ErrorCode::LockTimeout).await;
        bench.noted(other.finish(Ending::Rollback)).await;
        bench.run("INSERT INTO t VALUES (5, 5)").await;
        bench.fails(validate(batch.lsn, false), ErrorCode::TransactionAborted).await;
        bench.fails(tx.query(COUNT), ErrorCode::TransactionAborted).await;
        bench.fails(tx.next(&["DELETE FROM t"]), ErrorCode::TransactionAborted).await;
        bench.run("DELETE FROM t").await;
    });
}

#[test]
fn statements_and_savepoints_are_undone_by_themselves() {
    run(async {
        let mut bench = bench().await;
        bench.run("CREATE TABLE s (id INTEGER PRIMARY KEY AUTOINCREMENT, v UNIQUE)").await;
        let mut tx = Tx::new("a");
        bench.done(tx.next(&["INSERT INTO s (v) VALUES ('kept')"])).await;
        let failing = ["INSERT INTO s (v) VALUES ('gone')", "INSERT OR FAIL INTO s (v) VALUES ('gone too'), ('kept')"];
        let request = tx.next(&failing);
        bench.fails(request.clone(), ErrorCode::Constraint).await;
        bench.fails(request, ErrorCode::Constraint).await;
        bench.fails(tx.next(&["CREATE TABLE u (a)"]), ErrorCode::Unsupported).await;
        tx.message.savepoints = vec![1];
        bench.done(tx.next(&["INSERT INTO s (v) VALUES ('undone')"])).await;
        bench.one(COUNT).await;
        tx.message.savepoints = vec![1, 2];
        bench.done(tx.next(&["DELETE FROM t"])).await;
        bench.noted(tx.roll_back_to(2)).await;
        assert_eq!(bench.value(tx.query("SELECT count(*) FROM t, s")).await, Value::from(2));
        bench.noted(tx.roll_back_to(1)).await;
        // Released, and another one set.
        tx.message.savepoints = vec![3];
        bench.done(tx.next(&["INSERT INTO s (v) VALUES ('last')"])).await;
        bench.noted(tx.roll_back_to(3)).await;
        bench.done(tx.next(&["INSERT INTO s (v) VALUES ('really last')"])).await;
        bench.noted(tx.finish(Ending::CommitHere)).await;
        let record = bench.last().await;
        assert_eq!(texts(&record), ["INSERT s@1: - => 1 'kept'", "INSERT s@2: - => 2 'really last'"]);
        assert_eq!(record.sequences[0].value, Some(2));
        assert_eq!(bench.one("SELECT max(seq) FROM sqlite_sequence").await, Value::from(2));
    });
}

#[test]
fn foreign_keys_and_triggers_take_effect_once() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        for sql in [
            "CREATE TABLE p (id INTEGER PRIMARY KEY)",
            "CREATE TABLE c (p REFERENCES p ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TABLE seen (what)",
            "CREATE TRIGGER g AFTER DELETE ON c BEGIN INSERT INTO seen VALUES (old.p); END",
            "INSERT INTO p VALUES (1), (2)",
            "INSERT INTO c VALUES (1), (1), (2)",
        ] {
            bench.run(sql).await;
        }
        let mut tx = Tx::new("a");
        bench.done(tx.next(&["DELETE FROM p WHERE id = 1"])).await;
        for _ in 0..2 {
            assert_eq!(bench.one("SELECT count(*) FROM seen").await, Value::from(0));
            assert_eq!(bench.value(tx.query("SELECT count(*) FROM seen")).await, Value::from(2));
        }
        bench.done(tx.next(&["INSERT INTO c VALUES (9)"])).await;
        // SQLite forgets what it counted when the changes are set aside.
        bench.one("SELECT 1").await;
        bench.fails(tx.finish(Ending::CommitHere), ErrorCode::Constraint).await;
        bench.done(tx.next(&["INSERT INTO p VALUES (9)"])).await;
        bench.noted(tx.finish(Ending::CommitHere)).await;
        assert_eq!(bench.one("SELECT group_concat(p) FROM c").await, Value::from("2,9"));
        assert_eq!(bench.one("SELECT count(*) FROM seen").await, Value::from(2));
        let mut tx = Tx::new("b");
        bench.fails(tx.prepare(&["INSERT INTO c VALUES (77)"]), ErrorCode::Constraint).await;
        assert_eq!(bench.status().await.transaction, "");
        assert_eq!(bench.refused("INSERT INTO c VALUES (78)").await.code(), ErrorCode::Constraint);
    });
}

#[test]
fn or_rollback_ends_the_transaction() {
    run(async {
        let mut bench = bench().await;
        let mut tx = Tx::new("a");
        bench.done(tx.next(&["INSERT INTO t VALUES (2, 'y')"])).await;
        bench.fails(tx.next(&["INSERT OR ROLLBACK INTO t VALUES (1, 'z')"]), ErrorCode::Constraint).await;
        bench.fails(tx.next(&["INSERT INTO t VALUES (3, 'z')"]), ErrorCode::TransactionAborted).await;
        assert_eq!(bench.one(COUNT).await, Value::from(1));
        bench.run("INSERT INTO t VALUES (2, 'free')").await;
    });
}
