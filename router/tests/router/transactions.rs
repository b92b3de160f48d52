//! Transactions over several shards, and sessions.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{
    BatchRequest, CloseSession, Consistency, Error, ErrorCode, ExecuteRequest, OpenSession, QueryOptions, Statement,
    Value, router_reply::Reply, router_request::Request,
};

use super::Database;

struct Session<'d> {
    database: &'d Database,
    token: String,
}

impl<'d> Session<'d> {
    async fn open(database: &'d Database) -> Self {
        let Ok(Reply::Session(opened)) = database.ask(Request::OpenSession(OpenSession {})).await else { panic!() };
        assert_eq!(opened.idle_timeout_ms, 60_000);
        Self { database, token: opened.session }
    }

    async fn with_id(&self, request_id: &str, sql: &str) -> Result<Vec<Vec<Value>>, Error> {
        let execute = ExecuteRequest {
            statement: Some(Statement { sql: sql.to_owned(), params: Vec::new() }),
            session: self.token.clone(),
            request_id: request_id.to_owned(),
            ..ExecuteRequest::default()
        };
        match self.database.ask(Request::Execute(execute)).await? {
            Reply::Execute(done) => Ok(done.result.unwrap().rows.into_iter().map(|row| row.values).collect()),
            other => panic!("{other:?}"),
        }
    }

    async fn run(&self, sql: &str) -> Vec<Vec<Value>> {
        self.with_id("", sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn fails(&self, sql: &str) -> Error {
        self.with_id("", sql).await.expect_err(sql)
    }

    async fn sum(&self) -> i64 {
        let rows = self.run("SELECT sum(v) FROM t").await;
        match rows[0][0].kind {
            Some(dosql_proto::value::Kind::Integer(sum)) => sum,
            ref other => panic!("{other:?}"),
        }
    }
}

async fn database(name: &str) -> Database {
    let database = Database::new(name, 4, "", AutoShard::PrimaryKey);
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v INT CHECK (v >= 0))", &[]).await.unwrap();
    database.execute("INSERT INTO t VALUES (1, 10), (2, 10), (3, 10), (4, 10), (5, 10), (6, 10)", &[]).await.unwrap();
    database
}

async fn sum(database: &Database) -> Value {
    database.execute("SELECT sum(v) FROM t", &[]).await.unwrap().rows[0].values[0].clone()
}

#[tokio::test]
async fn a_statement_over_several_shards_is_atomic() {
    let database = database("atomic").await;
    // One of the rows refuses.
    database.execute("UPDATE t SET v = 3 WHERE k = 4", &[]).await.unwrap();
    let error = database.execute("UPDATE t SET v = v - 5", &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Constraint);
    assert_eq!(sum(&database).await, Value::from(53));
    let error = database.execute("INSERT INTO t VALUES (11, 1), (12, 1), (13, 1), (14, -1)", &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Constraint);
    assert_eq!(sum(&database).await, Value::from(53));
    // A retry is answered from the log, whatever it is routed to.
    for (sql, request_id) in [
        ("UPDATE t SET v = v + 1", "a"),
        ("INSERT INTO t SELECT k + 100, v FROM t", "b"),
        ("UPDATE t SET v = v + 1 WHERE k = 1", "c"),
    ] {
        let request = Request::Execute(ExecuteRequest {
            statement: Some(Statement { sql: sql.to_owned(), params: Vec::new() }),
            request_id: request_id.to_owned(),
            ..ExecuteRequest::default()
        });
        let Reply::Execute(first) = database.ask(request.clone()).await.unwrap() else { panic!() };
        let Reply::Execute(again) = database.ask(request).await.unwrap() else { panic!() };
        assert_eq!(first.result, again.result, "{sql}");
    }
    assert_eq!(sum(&database).await, Value::from(2 * 59 + 1));
    let statements = ["UPDATE t SET v = 0", "INSERT INTO t VALUES (1, 1)"];
    let statements = statements.map(|sql| Statement { sql: sql.to_owned(), params: Vec::new() }).to_vec();
    let batch = Request::Batch(BatchRequest { statements, ..BatchRequest::default() });
    let error = database.ask(batch).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Constraint);
    assert!(error.message.starts_with("statement 2"), "{error}");
    assert_eq!(sum(&database).await, Value::from(119));
}

#[tokio::test]
async fn sessions_have_transactions_with_savepoints() {
    let database = database("session").await;
    let session = Session::open(&database).await;
    assert_eq!(session.fails("COMMIT").await.message, "cannot commit - no transaction is active");
    assert_eq!(session.fails("ROLLBACK TO x").await.message, "no such savepoint: x");
    session.run("BEGIN").await;
    assert!(session.fails("BEGIN").await.message.contains("within a transaction"));
    session.run("UPDATE t SET v = v + 1").await;
    assert_eq!((session.sum().await, sum(&database).await), (66, Value::from(60)));
    session.run("SAVEPOINT one").await;
    session.run("DELETE FROM t WHERE k < 4").await;
    session.run("SAVEPOINT two").await;
    session.run("INSERT INTO t VALUES (21, 1), (22, 1), (23, 1), (24, 1)").await;
    assert_eq!(session.sum().await, 37);
    session.run("ROLLBACK TO two").await;
    assert_eq!(session.sum().await, 33);
    session.run("RELEASE two").await;
    assert_eq!(session.fails("RELEASE two").await.message, "no such savepoint: two");
    session.run("ROLLBACK TO SAVEPOINT ONE").await;
    assert_eq!(session.sum().await, 66);
    // Fails on one shard, and leaves nothing on the others; the transaction goes on.
    assert_eq!(session.fails("UPDATE t SET v = v - k * 4").await.code(), ErrorCode::Constraint);
    assert_eq!(session.sum().await, 66);
    assert_eq!(session.fails("CREATE TABLE u (a)").await.code(), ErrorCode::Unsupported);
    session.run("INSERT INTO t SELECT k + 50, 1 FROM t").await;
    session.run("COMMIT").await;
    assert_eq!(sum(&database).await, Value::from(72));
    session.run("SAVEPOINT outer").await;
    session.run("DELETE FROM t").await;
    session.run("ROLLBACK").await;
    assert_eq!(sum(&database).await, Value::from(72));
    session.run("SAVEPOINT outer").await;
    session.run("DELETE FROM t WHERE k > 50").await;
    session.run("RELEASE outer").await;
    assert_eq!(sum(&database).await, Value::from(66));
    // A request that comes twice runs once.
    session.run("BEGIN").await;
    for _ in 0..2 {
        session.with_id("r", "UPDATE t SET v = v + 1 WHERE k = 1").await.unwrap();
    }
    session.with_id("c", "COMMIT").await.unwrap();
    session.with_id("c", "COMMIT").await.unwrap();
    assert_eq!(sum(&database).await, Value::from(67));
    session.run("BEGIN").await;
    session.run("DELETE FROM t").await;
    database.ask(Request::CloseSession(CloseSession { session: session.token.clone() })).await.unwrap();
    assert_eq!(session.fails("SELECT 1").await.code(), ErrorCode::UnknownSession);
    database.execute("UPDATE t SET v = v", &[]).await.unwrap();
    assert_eq!(sum(&database).await, Value::from(67));
}

#[tokio::test]
async fn transactions_keep_out_of_each_others_way() {
    let database = database("conflict").await;
    let (one, two) = (Session::open(&database).await, Session::open(&database).await);
    // What one has read changes: it cannot go on.
    one.run("BEGIN").await;
    one.sum().await;
    two.run("UPDATE t SET v = v + 1").await;
    let error = one.fails("UPDATE t SET v = v + 1 WHERE k = 1").await;
    assert_eq!((error.code(), error.retryable), (ErrorCode::TransactionAborted, true));
    assert_eq!(one.fails("SELECT 1").await.code(), ErrorCode::TransactionAborted);
    assert_eq!(one.fails("COMMIT").await.code(), ErrorCode::TransactionAborted);
    // Write skew: both read everything, each changes something else.
    for session in [&one, &two] {
        session.run("BEGIN").await;
        assert_eq!(session.sum().await, 66);
    }
    one.run("UPDATE t SET v = v - 1 WHERE k = 1").await;
    let second = two.with_id("", "UPDATE t SET v = v - 1 WHERE k = 2").await;
    let first = one.with_id("", "COMMIT").await;
    let second = match second {
        Ok(_) => two.with_id("", "COMMIT").await,
        Err(error) => {
            two.run("ROLLBACK").await;
            Err(error)
        }
    };
    assert!(first.is_ok() && second.is_err(), "{first:?} {second:?}");
    // Strict reads wait for nobody who is not about to commit.
    one.run("BEGIN IMMEDIATE").await;
    one.run("UPDATE t SET v = v + 1").await;
    let options = QueryOptions { consistency: Consistency::Strict.into(), ..QueryOptions::default() };
    let strict = Request::Execute(ExecuteRequest {
        statement: Some(Statement { sql: "SELECT sum(v) FROM t".to_owned(), params: Vec::new() }),
        options: Some(options),
        ..ExecuteRequest::default()
    });
    let Reply::Execute(read) = database.ask(strict).await.unwrap() else { panic!() };
    assert_eq!(read.result.unwrap().rows[0].values[0], Value::from(65));
    let error = two.fails("UPDATE t SET v = v + 1 WHERE k = 1").await;
    assert_eq!((error.code(), error.retryable), (ErrorCode::LockTimeout, true));
    one.run("END").await;
    two.run("SET transaction_mode = single").await;
    two.run("BEGIN").await;
    two.run("UPDATE t SET v = v WHERE k = 1").await;
    assert!(two.fails("UPDATE t SET v = v").await.message.contains("single"));
    two.run("ROLLBACK").await;
    assert_eq!(sum(&database).await, Value::from(71));
}
