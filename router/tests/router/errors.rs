//! What cannot be done is refused by name, and the router goes on.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{BatchRequest, ErrorCode, LoadRequest, Row, Statement, router_reply::Reply, router_request::Request};

use super::Database;

const VSCHEMA: &str =
    r#"{"tables": {"t": {"type": "sharded", "column": "k"}, "u": {"type": "sharded", "column": "k"}}}"#;

#[tokio::test]
async fn bad_statements_get_their_codes() {
    let database = Database::new("errors", 3, VSCHEMA, AutoShard::Off);
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v INT CHECK (v > 0))", &[]).await.unwrap();
    let long = format!("SELECT '{}'", "x".repeat(1 << 20));
    for (sql, code, part) in [
        ("SELEC 1", ErrorCode::SyntaxError, "near \"SELEC\": syntax error"),
        ("SELECT * FROM nix", ErrorCode::UnknownTable, "no such table: nix"),
        ("SELECT nix FROM t", ErrorCode::UnknownColumn, "no such column: nix"),
        ("SELECT ?", ErrorCode::ParameterCount, "1 parameter"),
        ("SELECT 1; SELECT 2", ErrorCode::InvalidRequest, "more than one"),
        ("", ErrorCode::SyntaxError, "no statement"),
        ("BEGIN", ErrorCode::Unsupported, "BEGIN"),
        ("SAVEPOINT x", ErrorCode::Unsupported, "SAVEPOINT"),
        ("VACUUM", ErrorCode::Unsupported, "VACUUM"),
        ("REINDEX nix", ErrorCode::SqlError, "unable to identify the object to be reindexed"),
        ("INSERT INTO t VALUES (1, -1)", ErrorCode::Constraint, "CHECK"),
        ("INSERT INTO t VALUES ('x', 1)", ErrorCode::TypeMismatch, "datatype mismatch"),
        ("CREATE TABLE u (k, id INTEGER PRIMARY KEY)", ErrorCode::Unsupported, "id INTEGER PRIMARY KEY"),
        ("CREATE UNIQUE INDEX i ON t (v)", ErrorCode::Unsupported, "UNIQUE (v)"),
        ("CREATE TABLE t (a)", ErrorCode::AlreadyExists, "already exists"),
        ("CREATE TABLE _dosql_x (a)", ErrorCode::InvalidRequest, "_dosql_"),
        ("PRAGMA journal_mode", ErrorCode::Unsupported, "journal_mode"),
        (long.as_str(), ErrorCode::TooLarge, "limit"),
    ] {
        let error = database.execute(sql, &[]).await.unwrap_err();
        let shown = &sql[..sql.len().min(60)];
        assert_eq!(error.code(), code, "{shown}: {error}");
        assert!(error.message.contains(part), "{shown}: {error}");
    }
    database.execute("INSERT INTO t VALUES (1, 1)", &[]).await.unwrap();
}

#[tokio::test]
async fn the_first_row_that_fails_is_told_of() {
    let database = Database::new("first-row", 3, VSCHEMA, AutoShard::Off);
    database.execute("CREATE TABLE t (k INT NOT NULL, v INT NOT NULL, w INT CHECK (w > 0))", &[]).await.unwrap();
    database.execute("CREATE TABLE u (k INT, name TEXT UNIQUE, w INT CHECK (w > 0))", &[]).await.unwrap_err();
    let of_u = "ALTER VSCHEMA ON u ADD VINDEX u_by_name(name) USING lookup_unique WITH table=u_by_name";
    database.execute(of_u, &[]).await.unwrap();
    database.execute("CREATE TABLE u (k INT, name TEXT UNIQUE, w INT CHECK (w > 0))", &[]).await.unwrap();
    database.execute("INSERT INTO u VALUES (1, 'taken', 1)", &[]).await.unwrap();
    for (table, one, other) in [
        ("t", ("({k}, NULL, 1)", "t.v"), ("({k}, 1, -1)", "w > 0")),
        ("u", ("({k}, 'taken', 1)", "u.name"), ("({k}, 'new {k}', -1)", "w > 0")),
    ] {
        for first in 0..6 {
            let row = |number: i32| {
                let (form, _) = if number % 2 == 0 { one } else { other };
                form.replace("{k}", &number.to_string())
            };
            let rows: Vec<String> = (first..first + 6).map(row).collect();
            let (_, expected) = if first % 2 == 0 { one } else { other };
            let sql = format!("INSERT INTO {table} VALUES {}", rows.join(", "));
            let error = database.execute(&sql, &[]).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Constraint, "{sql}: {error}");
            assert!(error.message.contains(expected), "{sql}: {error}");
        }
    }
}

#[tokio::test]
async fn batches_are_atomic_on_one_shard_and_on_several() {
    let database = Database::new("batch", 4, VSCHEMA, AutoShard::Off);
    database.execute("CREATE TABLE t (k INT, v INT CHECK (v > 0))", &[]).await.unwrap();
    let batch = |texts: &[&str]| {
        let statements = texts.iter().map(|sql| Statement { sql: (*sql).to_owned(), params: Vec::new() }).collect();
        Request::Batch(BatchRequest { statements, ..BatchRequest::default() })
    };
    let Reply::Batch(done) =
        database.ask(batch(&["INSERT INTO t VALUES (7, 1)", "UPDATE t SET v = 2 WHERE k = 7"])).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(done.results.len(), 2);
    let failed = batch(&["INSERT INTO t VALUES (7, 3)", "INSERT INTO t VALUES (7, -3)"]);
    assert_eq!(database.ask(failed).await.unwrap_err().code(), ErrorCode::Constraint);
    let across = batch(&["INSERT INTO t VALUES (1, 1)", "INSERT INTO t VALUES (4, -1)"]);
    assert_eq!(database.ask(across).await.unwrap_err().code(), ErrorCode::Constraint);
    let nothing = database.stream("SELECT k FROM t WHERE k IN (1, 4)", &[]).await.unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");
    let rows = database.stream("SELECT k, v FROM t", &[]).await.unwrap();
    assert_eq!(rows, [Row { values: vec![7.into(), 2.into()] }]);
}

#[tokio::test]
async fn a_repeated_load_takes_effect_once() {
    let database = Database::new("load", 4, VSCHEMA, AutoShard::Off);
    database.execute("CREATE TABLE t (k TEXT, v)", &[]).await.unwrap();
    let rows: Vec<Row> = (0..1000).map(|key| Row { values: vec![key.into(), "v".into()] }).collect();
    for _ in 0..2 {
        let load = LoadRequest {
            table: "t".to_owned(),
            columns: vec!["k".to_owned(), "v".to_owned()],
            rows: rows.clone(),
            request_id: "once".to_owned(),
            ..LoadRequest::default()
        };
        let Reply::Load(done) = database.ask(Request::Load(load)).await.unwrap() else { panic!() };
        assert_eq!(done.rows_loaded, 1000);
    }
    let counted = database.execute("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(counted.rows[0].values, [1000.into()]);
    let found = database.execute("SELECT v FROM t WHERE k = 77", &[]).await.unwrap();
    assert_eq!(found.rows.len(), 1);
}
