//! What an actor stores, and what it finds again.

use dosql_proto::probe_request::Request;
use dosql_proto::value::Kind;
use dosql_proto::{Address, ErrorCode, ProbeDie, Value};

use super::{Report, Suite, Target, equal, refused};

pub(super) async fn run<T: Target>(suite: &Suite<'_, T>, report: &mut Report) {
    report.note("values are kept exactly", exact_values(suite).await);
    report.note("a blob of 1.9 MB", large_blob(suite).await);
    report.note("BEGIN, SAVEPOINT, ROLLBACK", transactions(suite).await);
    report.note("temporary tables, triggers, window functions", dialect(suite).await);
    report.note("1,000 result columns", many_columns(suite).await);
    report.note("a statement that fails half way", half_way(suite).await);
    report.note("errors have their codes", error_codes(suite).await);
    report.note("death in the middle of a transaction", death(suite).await);
    report.note("everything is there after a restart", restart(suite).await);
}

/// Each value, and what SQLite must say its type is.
fn values() -> Vec<(Value, &'static str)> {
    vec![
        (Value::from(i64::MAX), "integer"),
        (Value::from(i64::MIN), "integer"),
        (Value::from(9_007_199_254_740_993_i64), "integer"),
        (Value::from(1_i64), "integer"),
        (Value::from(1.0), "real"),
        (Value::from(-0.0), "real"),
        (Value::from(1e308), "real"),
        (Value::from(f64::INFINITY), "real"),
        (Value::from(5e-324), "real"),
        (Value::from("with a \0 within"), "text"),
        (Value::from(""), "text"),
        (Value::from("\u{1F980}é"), "text"),
        (Value { kind: Some(Kind::RawText(vec![b'a', 0xff, 0, 0xfe])) }, "text"),
        (Value::blob(vec![0, 0xff, 0]), "blob"),
        (Value::blob(Vec::new()), "blob"),
        (Value::NULL, "null"),
    ]
}

async fn exact_values<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("values");
    suite.batch(&name, &["CREATE TABLE v (id INTEGER PRIMARY KEY, value)"]).await?;
    for (value, _) in values() {
        let params = [value];
        let stored = suite.sql(&name, &[("INSERT INTO v (value) VALUES (?)", &params)]).await;
        equal("rows", &stored.map(|results| results[0].rows_affected), &Ok(1))?;
    }
    check_values(suite, &name).await?;
    suite.target.restart(&Address::new("probe", &name)).await;
    check_values(suite, &name).await?;
    let text = suite.column(&name, "SELECT CAST(x'61ff' AS TEXT)").await?;
    equal("text made invalid by SQL", &text, &vec![Value { kind: Some(Kind::RawText(vec![b'a', 0xff])) }])
}

async fn check_values<T: Target>(suite: &Suite<'_, T>, name: &str) -> Result<(), String> {
    let rows = suite.query(name, "SELECT value, typeof(value) FROM v ORDER BY id").await?;
    equal("rows", &rows.len(), &values().len())?;
    for (row, (value, kind)) in rows.iter().zip(values()) {
        // Debug text, since -0.0 == 0.0.
        equal("value", &format!("{:?}", row[0]), &format!("{value:?}"))?;
        equal("type", &row[1], &Value::from(kind))?;
    }
    Ok(())
}

async fn large_blob<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("blob");
    let bytes: Vec<u8> = (0..1_900_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let params = [Value::blob(bytes)];
    suite.batch(&name, &["CREATE TABLE b (value BLOB)"]).await?;
    suite.sql(&name, &[("INSERT INTO b VALUES (?)", &params)]).await.map_err(|error| error.to_string())?;
    suite.target.restart(&Address::new("probe", &name)).await;
    let found = suite.column(&name, "SELECT value FROM b").await?;
    if found == params { Ok(()) } else { Err("the blob came back changed".to_owned()) }
}

async fn transactions<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("transactions");
    suite.batch(&name, &["CREATE TABLE t (id INTEGER PRIMARY KEY)"]).await?;
    suite
        .batch(
            &name,
            &[
                "BEGIN",
                "INSERT INTO t VALUES (1)",
                "SAVEPOINT a",
                "INSERT INTO t VALUES (2)",
                "SAVEPOINT b",
                "INSERT INTO t VALUES (3)",
                "ROLLBACK TO a",
                "INSERT INTO t VALUES (4)",
                "RELEASE a",
                "COMMIT",
            ],
        )
        .await?;
    suite
        .batch(&name, &["BEGIN IMMEDIATE", "INSERT INTO t VALUES (5)", "DELETE FROM t WHERE id = 1", "ROLLBACK"])
        .await?;
    suite.batch(&name, &["SAVEPOINT outermost", "INSERT INTO t VALUES (6)", "RELEASE outermost"]).await?;
    let outcome = suite.sql(&name, &[("COMMIT", &[])]).await;
    refused("COMMIT without BEGIN", outcome, ErrorCode::SqlError)?;
    suite.target.restart(&Address::new("probe", &name)).await;
    let found = suite.column(&name, "SELECT id FROM t ORDER BY id").await?;
    equal("rows", &found, &[1_i64, 4, 6].map(Value::from).to_vec())
}

async fn dialect<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("dialect");
    let results = suite
        .batch(
            &name,
            &[
                "CREATE TEMP TABLE scratch (x)",
                "CREATE TABLE log (x)",
                "CREATE TEMP TRIGGER noted AFTER INSERT ON scratch BEGIN INSERT INTO log VALUES (new.x * 2); END",
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500) INSERT INTO scratch SELECT x FROM n",
                "SELECT sum(x), count(*) FROM log",
                "SELECT x, lag(x, 499) OVER (ORDER BY x) FROM scratch ORDER BY x DESC LIMIT 1",
                "PRAGMA integrity_check",
            ],
        )
        .await?;
    equal("rows inserted", &results[3].rows_affected, &1000)?;
    equal("the trigger's", &results[4].rows[0].values, &vec![Value::from(250_500_i64), Value::from(500_i64)])?;
    equal("the window's", &results[5].rows[0].values, &vec![Value::from(500_i64), Value::from(1_i64)])?;
    equal("the check", &results[6].rows[0].values, &vec![Value::from("ok")])
}

async fn many_columns<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("columns");
    let columns: Vec<String> = (1..=1000).map(|index| format!("c{index} INTEGER")).collect();
    let numbers: Vec<String> = (1..=1000).map(|index| index.to_string()).collect();
    let create = format!("CREATE TABLE wide ({})", columns.join(", "));
    let insert = format!("INSERT INTO wide VALUES ({})", numbers.join(", "));
    let results = suite.batch(&name, &[&create, &insert, "SELECT * FROM wide"]).await?;
    let result = &results[2];
    equal("columns", &result.columns.len(), &1000)?;
    equal("the last column", &result.columns[999].name, &"c1000".to_owned())?;
    equal("its type", &result.columns[999].declared_type, &"INTEGER".to_owned())?;
    equal("the row", &result.rows[0].values, &(1..=1000_i64).map(Value::from).collect())
}

async fn half_way<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("half-way");
    suite.batch(&name, &["CREATE TABLE h (id INTEGER PRIMARY KEY)", "INSERT INTO h VALUES (10)"]).await?;
    let statements: [(&str, &[Value]); 3] = [
        ("INSERT INTO h VALUES (1)", &[]),
        ("INSERT INTO h VALUES (8), (9), (10), (11)", &[]),
        ("INSERT INTO h VALUES (2)", &[]),
    ];
    refused("the second statement", suite.sql(&name, &statements).await, ErrorCode::Constraint)?;
    let found = suite.column(&name, "SELECT id FROM h ORDER BY id").await?;
    equal("rows: the first statement's, nothing of the second's", &found, &[1_i64, 10].map(Value::from).to_vec())
}

async fn error_codes<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("errors");
    suite.batch(&name, &["CREATE TABLE e (id INTEGER PRIMARY KEY, n INTEGER NOT NULL) STRICT"]).await?;
    let cases = [
        ("SELEC 1", ErrorCode::SyntaxError),
        ("SELECT * FROM missing", ErrorCode::UnknownTable),
        ("SELECT missing FROM e", ErrorCode::UnknownColumn),
        ("SELECT ?", ErrorCode::ParameterCount),
        ("INSERT INTO e VALUES (1, 'x')", ErrorCode::TypeMismatch),
        ("INSERT INTO e VALUES (1, NULL)", ErrorCode::Constraint),
        ("CREATE TABLE e (x)", ErrorCode::AlreadyExists),
    ];
    for (sql, code) in cases {
        refused(sql, suite.sql(&name, &[(sql, &[])]).await, code)?;
    }
    Ok(())
}

async fn death<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("death");
    suite.batch(&name, &["CREATE TABLE d (id INTEGER PRIMARY KEY)", "INSERT INTO d VALUES (1)"]).await?;
    equal("the counter before", &suite.add(&name, 3).await?, &3)?;
    for _ in 0..3 {
        let last_words =
            Request::Die(ProbeDie { sql: "INSERT INTO d SELECT id + 1 FROM d; DELETE FROM d WHERE id = 1".to_owned() });
        refused("the message that kills", suite.ask(&name, last_words).await.map(drop), ErrorCode::Unavailable)?;
    }
    let found = suite.column(&name, "SELECT id FROM d").await?;
    equal("rows", &found, &vec![Value::from(1_i64)])?;
    equal("the counter after", &suite.add(&name, 0).await?, &3)
}

async fn restart<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("restart");
    let address = Address::new("probe", &name);
    suite.batch(&name, &["CREATE TABLE r (id INTEGER PRIMARY KEY, text TEXT)", "CREATE INDEX i ON r (text)"]).await?;
    for round in 1..=5_i64 {
        let fill = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200)
                    INSERT INTO r (text) SELECT printf('%d %.100c', x, 'x') FROM n";
        suite.batch(&name, &[fill]).await?;
        equal("the counter", &suite.add(&name, 1).await?, &round)?;
        suite.target.restart(&address).await;
        let found = suite.query(&name, "SELECT count(*), sum(length(text)) FROM r").await?;
        equal("count and length", &found, &vec![vec![Value::from(200 * round), Value::from(20_692 * round)]])?;
        equal("the counter", &suite.add(&name, 0).await?, &round)?;
    }
    let checked = suite.column(&name, "PRAGMA integrity_check").await?;
    equal("the check", &checked, &vec![Value::from("ok")])
}
