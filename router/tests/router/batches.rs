//! Batches are one transaction, whatever their statements are and on however many shards.

use dosql_actors::runtime::AutoShard;
use dosql_actors::sql_value;
use dosql_proto::{
    BatchRequest, BatchResponse, Error, ErrorCode, Statement, router_reply::Reply, router_request::Request,
};

use super::Database;

const VSCHEMA: &str = r#"{
    "sequences": { "ids": { "cache": 10 } },
    "tables": {
        "t": {"type": "sharded", "column": "k"},
        "log": {"type": "sharded", "column": "id"},
        "n": {"type": "sharded", "column": "id", "autoIncrement": {"column": "id", "sequence": "ids"}},
        "codes": {"type": "reference"}
    }
}"#;

const SETUP: &[&str] = &[
    "CREATE TABLE t (k INTEGER PRIMARY KEY, v INT CHECK (v >= 0))",
    "CREATE TABLE log (id INTEGER, what TEXT)",
    "CREATE TABLE n (id INTEGER PRIMARY KEY, v)",
    "CREATE TABLE codes (code TEXT PRIMARY KEY, at)",
    "CREATE TRIGGER t_gone AFTER DELETE ON t BEGIN INSERT INTO log VALUES (old.k, 'gone'); END",
    "INSERT INTO t VALUES (1, 10), (2, 20), (3, 30), (4, 40), (5, 50)",
];

/// One of every form; each needs several shards.
const BATCH: &[&str] = &[
    "INSERT INTO t SELECT k + 100, v FROM t",
    "UPDATE t SET k = k + 1000 WHERE k > 103",
    "INSERT INTO t VALUES (7 * 3, 1), (2 + 20, abs(-2)), ((SELECT max(k) FROM t) + 1, 3)",
    "WITH big AS (SELECT k, v FROM t WHERE v > 20) INSERT INTO log SELECT k, 'big' FROM big",
    "DELETE FROM t WHERE v IN (SELECT min(v) FROM t)",
    "INSERT INTO codes SELECT 'c' || k, v FROM t WHERE k < 10",
    "INSERT INTO n (v) SELECT v FROM t ORDER BY k",
    "INSERT INTO n (v) VALUES ('a'), ('b'), ('c'), ('d')",
    "WITH two (x) AS (VALUES (1), (2)) INSERT INTO n (v) SELECT x FROM two ORDER BY x",
    "UPDATE t SET v = v + 1 FROM codes WHERE codes.at = t.v",
    "INSERT INTO t VALUES (1, 5), (2, 5), (3, 5) ON CONFLICT (k) DO UPDATE SET v = v + excluded.v",
    "SELECT count(*), sum(v), sum(k) FROM t",
];

const TABLES: &[&str] = &[
    "SELECT * FROM t ORDER BY k",
    "SELECT * FROM log ORDER BY id, what",
    "SELECT * FROM n ORDER BY id",
    "SELECT * FROM codes ORDER BY code",
];

async fn batch(database: &Database, texts: &[&str], request_id: &str) -> Result<BatchResponse, Error> {
    let statements = texts.iter().map(|sql| Statement { sql: (*sql).to_owned(), params: Vec::new() }).collect();
    let request = BatchRequest { statements, request_id: request_id.to_owned(), ..BatchRequest::default() };
    match database.ask(Request::Batch(request)).await? {
        Reply::Batch(done) => Ok(done),
        other => panic!("{other:?}"),
    }
}

async fn contents(database: &Database) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for sql in TABLES {
        all.push(database.run(sql).await);
    }
    all
}

#[tokio::test]
async fn every_form_of_write_is_part_of_one_transaction() {
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    let run = |sql: &str| {
        let mut statement = plain.prepare(sql).unwrap();
        let rows = sql_value::run(&mut statement, &[], 1 << 20).unwrap().rows;
        (rows, plain.changes())
    };
    SETUP.iter().for_each(|sql| drop(run(sql)));
    let expected: Vec<_> = BATCH.iter().map(|sql| run(sql)).collect();
    for shards in [1, 3, 4] {
        let database = Database::new("batch-forms", shards, VSCHEMA, AutoShard::Off);
        for sql in SETUP {
            database.run(sql).await;
        }
        let before = contents(&database).await;
        let mut failing = BATCH.to_vec();
        failing.push("INSERT INTO t VALUES (900, 1), (901, 1), (902, 1), (903, -1)");
        let error = batch(&database, &failing, "").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint, "{error}");
        assert!(error.message.starts_with(&format!("statement {}: CHECK", failing.len())), "{error}");
        assert_eq!(contents(&database).await, before, "{shards} shards");
        // The numbers that it took are gone.
        database.run("ALTER VSCHEMA ON n DROP AUTO_INCREMENT").await;
        database.run("ALTER VSCHEMA ADD SEQUENCE anew").await;
        database.run("ALTER VSCHEMA ON n ADD AUTO_INCREMENT id USING anew").await;
        let done = batch(&database, BATCH, "once").await.unwrap();
        let again = batch(&database, BATCH, "once").await.unwrap();
        assert_eq!(done.results, again.results, "{shards} shards");
        for ((sql, result), (rows, changes)) in BATCH.iter().zip(&done.results).zip(&expected) {
            assert_eq!(result.rows, *rows, "{shards} shards: {sql}");
            if !sql.starts_with("SELECT") {
                assert_eq!(result.rows_affected, *changes, "{shards} shards: {sql}");
            }
        }
        for sql in TABLES {
            let found = database.execute(sql, &[]).await.unwrap().rows;
            assert_eq!(found, run(sql).0, "{shards} shards: {sql}");
        }
    }
}

#[tokio::test]
async fn what_is_selected_may_be_larger_than_memory_should_be() {
    let database = Database::new("batch-large", 3, VSCHEMA, AutoShard::Off);
    database.run("CREATE TABLE t (k INTEGER PRIMARY KEY, v)").await;
    database.run("CREATE TABLE log (id INTEGER, what TEXT)").await;
    let sql = "WITH RECURSIVE c (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM c WHERE k < 40) \
        INSERT INTO t SELECT k, zeroblob(1000000) FROM c";
    assert_eq!(database.execute(sql, &[]).await.unwrap().rows_affected, 40);
    // 80 MB.
    let sql = "INSERT INTO log SELECT k + n, CAST(v AS TEXT) FROM t, (SELECT 100 AS n UNION ALL SELECT 200)";
    assert_eq!(database.execute(sql, &[]).await.unwrap().rows_affected, 80);
    assert_eq!(
        database.run("SELECT count(*), count(DISTINCT rowid), min(id), max(id) FROM log").await,
        ["80 | 80 | 101 | 240"]
    );
}
