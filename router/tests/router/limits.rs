//! Limits, early ends, plans and numbers that come with answers.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{
    ErrorCode, ExecuteRequest, FetchRequest, QueryOptions, QueryRequest, Row, RowBatch, ShardProtocol, ShardRequest,
    ShardStatusRequest, Statement, StatementResult, Value, router_reply::Reply, router_request::Request, shard_request,
};

use dosql_proto::value::Kind;

use super::Database;

const VSCHEMA: &str = r#"{"tables": {"items": {"type": "sharded", "column": "id"}}}"#;

/// 3000 rows over 4 shards.
async fn items(name: &str) -> Database {
    let database = Database::new(name, 4, VSCHEMA, AutoShard::Off);
    database
        .execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, size REAL)", &[])
        .await
        .unwrap();
    let fill = "INSERT INTO items WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                SELECT i, substr('abcABC', i % 6 + 1, 1) || (i % 50), CASE i % 7 WHEN 0 THEN NULL ELSE i / 8.0 END FROM n";
    database.execute(fill, &[]).await.unwrap();
    database
}

async fn run(database: &Database, sql: &str, options: QueryOptions) -> Result<StatementResult, dosql_proto::Error> {
    let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
    let request = ExecuteRequest { statement, options: Some(options), ..ExecuteRequest::default() };
    match database.ask(Request::Execute(request)).await? {
        Reply::Execute(response) => Ok(response.result.unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The first batch, and the options' answer in the last one.
async fn batches(database: &Database, sql: &str, max_batch_bytes: u32, options: QueryOptions) -> Vec<RowBatch> {
    let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
    let request = QueryRequest { statement, max_batch_bytes, options: Some(options), ..QueryRequest::default() };
    let mut request = Request::Query(request);
    let mut batches = Vec::new();
    loop {
        let Reply::Rows(batch) = database.ask(request).await.unwrap() else { panic!("no rows") };
        let cursor = batch.cursor;
        batches.push(batch);
        if cursor == 0 {
            return batches;
        }
        request = Request::Fetch(FetchRequest { cursor });
    }
}

fn text_of(row: &Row) -> String {
    match &row.values[0].kind {
        Some(Kind::Text(text)) => text.clone(),
        other => panic!("{other:?}"),
    }
}

fn profiled() -> QueryOptions {
    QueryOptions { profile: true, explain: true, ..QueryOptions::default() }
}

#[tokio::test]
async fn a_limit_reads_no_more_than_it_needs() {
    let database = items("early").await;
    let result = run(&database, "SELECT id FROM items LIMIT 5", profiled()).await.unwrap();
    assert_eq!(result.rows.len(), 5);
    let stats = result.stats.unwrap();
    let read: u64 = stats.steps.iter().map(|step| step.rows).sum();
    assert_eq!((read, stats.steps.len()), (5, 1), "one shard had enough: {stats:?}");
    let sorted =
        run(&database, "SELECT id FROM items ORDER BY size DESC, id LIMIT 5 OFFSET 3", profiled()).await.unwrap();
    let read: u64 = sorted.stats.unwrap().steps.iter().map(|step| step.rows).sum();
    assert_eq!(read, 4 * 8, "each shard sends its first 8 rows");
    assert!(sorted.query_plan.unwrap().plan.starts_with("merge the sorted rows"));
    let limited = QueryOptions { max_rows: 10, profile: true, ..QueryOptions::default() };
    let error = run(&database, "SELECT id FROM items", limited.clone()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooLarge);
    assert!(error.message.contains("more than 10 rows"), "{error}");
    for sql in [
        "SELECT id FROM items LIMIT 10",
        "SELECT id FROM items ORDER BY name LIMIT 10",
        "SELECT name, count(*) FROM items GROUP BY name COLLATE NOCASE LIMIT 10",
    ] {
        assert_eq!(run(&database, sql, limited.clone()).await.unwrap().rows.len(), 10, "{sql}");
    }
    let error = run(&database, "SELECT a.id FROM items a JOIN items b ON a.name = b.name", limited).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooLarge);
    let few_bytes = QueryOptions { max_bytes: 100, ..QueryOptions::default() };
    let error = run(&database, "SELECT * FROM items", few_bytes).await.unwrap_err();
    assert!(error.message.contains("more than 100 bytes"), "{error}");
}

#[tokio::test]
async fn sorted_rows_of_shards_are_merged_as_one_sqlite_sorts_them() {
    let database = items("merge").await;
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    plain.execute_batch("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, size REAL)").unwrap();
    for row in database.stream("SELECT * FROM items", &[]).await.unwrap() {
        let params: Vec<_> = row.values.iter().map(dosql_actors::sql_value::Param).collect();
        plain.execute("INSERT INTO items VALUES (?, ?, ?)", rusqlite::params_from_iter(params)).unwrap();
    }
    for sql in [
        "SELECT id, name FROM items ORDER BY name, id",
        "SELECT id, name AS n FROM items ORDER BY n DESC, size, 1 LIMIT 700 OFFSET 20",
        "SELECT * FROM items ORDER BY size NULLS LAST, id",
        "SELECT id FROM items ORDER BY size DESC NULLS FIRST, id DESC LIMIT 900",
        "SELECT id FROM items WHERE id % 3 = 1 ORDER BY name COLLATE BINARY, id LIMIT -1 OFFSET 5",
        "SELECT size FROM items ORDER BY -size, id * -1",
        "SELECT name FROM items ORDER BY CAST(name AS TEXT), id LIMIT 11",
        "SELECT id FROM items ORDER BY length(name) DESC, lower(name), id LIMIT 100, 50",
        "SELECT id FROM items ORDER BY id LIMIT '7'",
        "SELECT id FROM items ORDER BY id LIMIT 0",
    ] {
        let mut statement = plain.prepare(sql).unwrap();
        let expected = dosql_actors::sql_value::run(&mut statement, &[], 1 << 20).unwrap();
        let got = run(&database, sql, QueryOptions::default()).await.unwrap();
        assert_eq!(got.columns, expected.columns, "{sql}");
        assert_eq!(got.rows, expected.rows, "{sql}");
        assert_eq!(database.stream(sql, &[]).await.unwrap(), expected.rows, "{sql}");
    }
}

#[tokio::test]
async fn plans_and_numbers_come_with_the_last_batch() {
    let database = items("profile").await;
    let all = batches(&database, "SELECT * FROM items ORDER BY id", 4 << 10, profiled()).await;
    assert!(all.len() > 5);
    let (last, others) = all.split_last().unwrap();
    assert!(others.iter().all(|batch| batch.stats.is_none() && batch.query_plan.is_none()));
    let stats = last.stats.clone().unwrap();
    assert_eq!(stats.rows, 3000);
    assert_eq!(stats.steps.iter().map(|step| step.rows).sum::<u64>(), 3000);
    assert_eq!(last.query_plan.as_ref().unwrap().shards.len(), 4);
    let plain = batches(&database, "SELECT * FROM items", 0, QueryOptions::default()).await;
    assert!(plain.iter().all(|batch| batch.stats.is_none() && batch.query_plan.is_none()));

    let joined =
        run(&database, "SELECT count(*) FROM items a JOIN items b ON a.size = b.size", profiled()).await.unwrap();
    let stats = joined.stats.unwrap();
    assert_eq!(stats.gathered_rows, 3000);
    assert!(stats.scratch_memory_bytes > 0);

    let lines =
        run(&database, "EXPLAIN ANALYZE SELECT name FROM items WHERE id = 7", QueryOptions::default()).await.unwrap();
    let text: Vec<String> = lines.rows.iter().map(text_of).collect();
    assert_eq!(text[0], "equal-unique: the statement runs on one shard");
    assert!(text.iter().any(|line| line.starts_with("took ") && line.contains(": 1 row, ")), "{text:?}");
    assert!(text.iter().any(|line| line.starts_with("  read shard-") && line.contains("1 row, ")), "{text:?}");
    let written =
        run(&database, "EXPLAIN ANALYZE DELETE FROM items WHERE id <= 10", QueryOptions::default()).await.unwrap();
    assert!(written.rows.iter().any(|row| text_of(row).starts_with("  write: 10 rows")), "{written:?}");
    assert_eq!(database.execute("SELECT count(*) FROM items", &[]).await.unwrap().rows[0].values[0], Value::from(2990));
}

/// How many results each shard holds open: a shard allows 64, so opening more than that in turn shows whether earlier ones are
/// closed.
#[tokio::test]
async fn results_given_up_are_closed_on_the_shards() {
    let database = items("closing").await;
    for _ in 0..80 {
        let statement = Some(Statement { sql: "SELECT * FROM items ORDER BY name".to_owned(), params: Vec::new() });
        let request = QueryRequest { statement, max_batch_bytes: 1 << 10, ..QueryRequest::default() };
        let Reply::Rows(batch) = database.ask(Request::Query(request)).await.unwrap() else { panic!("no rows") };
        assert_ne!(batch.cursor, 0);
        database.ask(Request::Close(dosql_proto::CloseRequest { cursor: batch.cursor })).await.unwrap();
    }
    // What is told goes the way of what is asked, and is handled in turn.
    let status = shard_request::Request::Status(ShardStatusRequest {});
    let status = ShardRequest { request: Some(status), ..ShardRequest::default() };
    database.client.ask::<ShardProtocol>("shard-0", status, &dosql_actors::Call::system()).await.unwrap();
    assert_eq!(database.stream("SELECT * FROM items ORDER BY name", &[]).await.unwrap().len(), 3000);
}

#[tokio::test]
async fn a_deadline_ends_the_work_on_every_shard() {
    let database = items("deadline").await;
    let endless = "SELECT count(*) FROM items a, items b, items c, items d WHERE a.size + b.size + c.size > d.size * 4";
    for sql in [
        endless,
        "SELECT (WITH RECURSIVE n(i) AS (SELECT items.id UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n) FROM items",
    ] {
        let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
        let request = ExecuteRequest { statement, timeout_ms: 300, ..ExecuteRequest::default() };
        let began = std::time::Instant::now();
        let error = database.ask(Request::Execute(request)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeadlineExceeded, "{sql}: {error}");
        assert!(began.elapsed().as_secs() < 5, "{sql}: {:?}", began.elapsed());
        // No shard is still at it.
        let count = database.execute("SELECT count(*) FROM items", &[]).await.unwrap();
        assert_eq!(count.rows[0].values[0], Value::from(3000));
        assert!(began.elapsed().as_secs() < 5, "{sql}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_shard_does_not_hold_up_a_router_that_has_a_thread_of_its_own() {
    let database = Database::new_on(4, "apart", 4, VSCHEMA, AutoShard::Off);
    database.execute("CREATE TABLE log (line INT)", &[]).await.unwrap();
    let fill =
        "INSERT INTO log WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) SELECT i FROM n";
    database.execute(fill, &[]).await.unwrap();
    // On the default shard, whose thread would be the router's as well.
    let statement = Some(Statement {
        sql: "SELECT count(*) FROM log a, log b, log c WHERE a.line + b.line > c.line * 4".to_owned(),
        params: Vec::new(),
    });
    let long = ExecuteRequest { statement, timeout_ms: 15_000, ..ExecuteRequest::default() };
    let mut long = std::pin::pin!(database.ask(Request::Execute(long)));
    let others = async {
        for _ in 0..20 {
            assert_eq!(database.execute("SHOW VSCHEMA TABLES", &[]).await.unwrap().rows.len(), 2);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        outcome = &mut long => panic!("a shard held the router until {outcome:?}"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_statement_that_takes_long_in_the_router_holds_up_no_other() {
    let database = items("beside").await;
    let statement = Some(Statement {
        sql: "SELECT count(*) FROM items a, items b, items c WHERE a.size + b.size > c.size * 4".to_owned(),
        params: Vec::new(),
    });
    let long = ExecuteRequest { statement, timeout_ms: 20_000, ..ExecuteRequest::default() };
    let mut long = std::pin::pin!(database.ask(Request::Execute(long)));
    let others = async {
        for id in 1..500 {
            let found = database.execute("SELECT id FROM items WHERE id = ?", &[Value::from(id)]).await.unwrap();
            assert_eq!(found.rows[0].values[0], Value::from(id));
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        outcome = &mut long => panic!("it held the router until {outcome:?}"),
        () = others => {}
    }
    // Where all rows were not found at once, they come in pages as well.
    let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
               SELECT i FROM n JOIN items ON id = 1 + i % 3000 ORDER BY i";
    let rows: Vec<i64> = batches(&database, sql, 10_000, QueryOptions::default())
        .await
        .iter()
        .flat_map(|batch| &batch.rows)
        .map(|row| match row.values[0].kind {
            Some(Kind::Integer(integer)) => integer,
            _ => panic!("{row:?}"),
        })
        .collect();
    assert_eq!(rows, (1..=200_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn statements_that_differ_in_literals_share_a_plan_and_not_an_answer() {
    let database = items("cached").await;
    let cached = async |sql: &str| {
        let result = run(&database, sql, profiled()).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        (result.stats.unwrap().plan_cached, result.rows, result.columns, result.query_plan.unwrap())
    };
    for (id, hit) in [(5, false), (6, true), (7, true)] {
        let (was_cached, rows, _, plan) = cached(&format!("SELECT id FROM items WHERE id = {id}")).await;
        assert_eq!((was_cached, rows[0].values[0].clone()), (hit, Value::from(id)));
        assert!(plan.plan.contains(&format!("of {id}\n")), "{}", plan.plan);
    }
    // Names, ordinals and the class of a literal are part of the statement.
    for sql in ["SELECT id + 1 FROM items WHERE id = 1", "SELECT id + 2 FROM items WHERE id = 1"] {
        let (was_cached, _, columns, _) = cached(sql).await;
        assert!(!was_cached, "{sql}");
        assert_eq!(format!("SELECT {} FROM items WHERE id = 1", columns[0].name), sql);
    }
    for (literal, rows) in [("1", 1), ("'1'", 1), ("1.0", 1), ("-1", 0), ("x'31'", 0), ("'x'", 0), ("NULL", 0)] {
        assert_eq!(cached(&format!("SELECT * FROM items WHERE id = {literal}")).await.1.len(), rows, "{literal}");
    }
    for limit in [3, 1, 4, 0] {
        let (_, rows, ..) = cached(&format!("SELECT id, name FROM items ORDER BY 1 DESC LIMIT {limit} OFFSET 1")).await;
        assert_eq!(rows.len(), limit);
        assert!(rows.first().is_none_or(|row| row.values[0] == Value::from(2999)));
    }
    for (sql, affected) in [
        ("INSERT INTO items VALUES (9001, 'x', 1.5), (9002, 'it''s', 2)", 2),
        ("INSERT INTO items VALUES (9003, 'y', 2.5), (9004, 'x', 3)", 2),
        ("UPDATE items SET name = 'z' WHERE id IN (9001, 9004)", 2),
        ("UPDATE items SET name = 'w' WHERE id IN (9002, 9005)", 1),
        ("DELETE FROM items WHERE id BETWEEN 9001 AND 9003", 3),
        ("DELETE FROM items WHERE id BETWEEN 9002 AND 9004", 1),
    ] {
        assert_eq!(database.execute(sql, &[]).await.unwrap().rows_affected, affected, "{sql}");
    }
    let error = database.execute("SELECT id FROM items WHERE id = 5 AND name = ?", &[]).await.unwrap_err();
    assert_eq!(error.message, "the statement has 1 parameter, but 0 were given");
    // A new schema means new plans.
    database.execute("ALTER TABLE items ADD COLUMN extra DEFAULT 4", &[]).await.unwrap();
    let (was_cached, rows, ..) = cached("SELECT * FROM items WHERE id = 8").await;
    assert_eq!((was_cached, rows[0].values.len()), (false, 4));
    // With a partial index, statements keep their literals.
    database.execute("CREATE INDEX named ON items (size) WHERE name = 'a1'", &[]).await.unwrap();
    cached("SELECT id FROM items WHERE name = 'a1' AND size = 2").await;
    assert!(!cached("SELECT id FROM items WHERE name = 'a2' AND size = 2").await.0);
}
