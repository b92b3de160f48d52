//! Columns that sequences fill.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{
    ErrorCode, ExecuteRequest, LoadRequest, Row, Statement, Value, router_reply::Reply, router_request::Request,
};

use super::Database;

const VSCHEMA: &str = r#"{
    "sequences": { "ids": { "cache": 10 } },
    "tables": {
        "t": { "type": "sharded", "column": "id", "autoIncrement": { "column": "id", "sequence": "ids" } },
        "orders": { "type": "sharded", "column": "user", "autoIncrement": { "column": "number", "sequence": "ids" } }
    }
}"#;

#[tokio::test]
async fn keys_that_are_left_out_come_from_the_sequence() {
    let database = Database::new("sequences", 4, VSCHEMA, AutoShard::Off);
    database.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)").await;
    let last = |sql: &'static str, params: Vec<Value>| {
        let database = &database;
        async move {
            let done = database.execute(sql, &params).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            done.last_insert_rowid
        }
    };
    assert_eq!(last("INSERT INTO t (v) VALUES ('a')", vec![]).await, 1);
    assert_eq!(last("INSERT INTO t (v) VALUES ('b'), ('c'), (?)", vec!["d".into()]).await, 4);
    assert_eq!(last("INSERT INTO t VALUES (NULL, 'e'), (?2, ?1)", vec!["f".into(), Value::NULL]).await, 6);
    // What is given counts on from there.
    assert_eq!(last("INSERT INTO t VALUES (100, 'g'), (3 + 4, 'h'), (?, 'i')", vec![200.into()]).await, 200);
    assert_eq!(last("INSERT INTO t (v, id) VALUES ('j', NULL) RETURNING id", vec![]).await, 201);
    assert_eq!(last("INSERT INTO t DEFAULT VALUES", vec![]).await, 202);
    assert_eq!(
        database.run("SELECT id, v FROM t ORDER BY id").await,
        ["1 | a", "2 | b", "3 | c", "4 | d", "5 | e", "6 | f", "7 | h", "100 | g", "200 | i", "201 | j", "202 | -"]
    );
    database.run("INSERT INTO t SELECT id + 1000, v FROM t WHERE id < 3").await;
    assert_eq!(last("INSERT INTO t (v) VALUES ('k')", vec![]).await, 1003);
    database.run("INSERT INTO t (v) SELECT 'new ' || v FROM t WHERE id < 3 ORDER BY id").await;
    database.run("WITH x (id, v) AS (VALUES (NULL, 'y'), ('2000', 'z')) INSERT INTO t SELECT * FROM x").await;
    assert_eq!(last("INSERT INTO t (v) VALUES ('l')", vec![]).await, 2002);
    assert_eq!(
        database.run("SELECT id, v FROM t WHERE id > 1003 ORDER BY id").await,
        ["1004 | new a", "1005 | new b", "2000 | z", "2001 | y", "2002 | l"]
    );
    let route = database.route("INSERT INTO t (v) VALUES ('x')").await;
    assert_eq!(route.0, "equal-unique");
}

#[tokio::test]
async fn a_request_that_comes_again_gets_the_same_keys() {
    let database = Database::new("sequences-again", 4, VSCHEMA, AutoShard::Off);
    database.run("CREATE TABLE orders (user INT, number INT, PRIMARY KEY (user, number))").await;
    for _ in 0..3 {
        let statement =
            Some(Statement { sql: "INSERT INTO orders (user) VALUES (1), (2), (3)".to_owned(), params: Vec::new() });
        let request = ExecuteRequest { statement, request_id: "again".to_owned(), ..ExecuteRequest::default() };
        database.ask(Request::Execute(request)).await.unwrap();
        let rows: Vec<Row> = (10..15).map(|user| Row { values: vec![user.into()] }).collect();
        let load = LoadRequest {
            table: "orders".to_owned(),
            columns: vec!["user".to_owned()],
            rows,
            request_id: "load".to_owned(),
            ..LoadRequest::default()
        };
        let Reply::Load(_) = database.ask(Request::Load(load)).await.unwrap() else { panic!() };
    }
    assert_eq!(
        database.run("SELECT user, number FROM orders ORDER BY user").await,
        ["1 | 1", "2 | 2", "3 | 3", "10 | 4", "11 | 5", "12 | 6", "13 | 7", "14 | 8"]
    );
}

#[tokio::test]
async fn numbers_never_come_again_after_a_restart() {
    let mut database = Database::new("sequences-restart", 2, "", AutoShard::Off);
    database.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)").await;
    database.run("ALTER VSCHEMA ON t ADD VINDEX hash(id)").await;
    database.run("INSERT INTO t VALUES (40, 'before')").await;
    database.run("ALTER VSCHEMA ADD SEQUENCE ids WITH cache=5").await;
    database.run("ALTER VSCHEMA ON t ADD AUTO_INCREMENT id USING ids").await;
    for round in 0..3 {
        for _ in 0..7 {
            database.run(&format!("INSERT INTO t (v) VALUES ({round})")).await;
        }
        database = database.restart("").await;
    }
    assert_eq!(database.run("SELECT count(*), min(id) FROM t").await, ["22 | 40"]);
    database.refused("ALTER VSCHEMA DROP SEQUENCE ids", ErrorCode::Conflict, "table t").await;
    database.run("ALTER VSCHEMA ON t DROP AUTO_INCREMENT").await;
    database.run("ALTER VSCHEMA DROP SEQUENCE ids").await;
    // A sequence of the same name goes on where the other one ended.
    database.run("ALTER VSCHEMA ADD SEQUENCE ids").await;
    database.run("ALTER VSCHEMA ON t ADD AUTO_INCREMENT id USING ids").await;
    database.run("INSERT INTO t (v) VALUES ('last')").await;
    assert_eq!(database.run("SELECT v FROM t ORDER BY id DESC LIMIT 1").await, ["last"]);
    assert_eq!(database.run("SELECT count(*) FROM t").await, ["23"]);
    database.refused("ALTER VSCHEMA ON t ADD AUTO_INCREMENT nix USING ids", ErrorCode::Conflict, "id").await;
}
