//! Tables by vindexes of every kind: where rows go, what is pruned and what is refused.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{ErrorCode, ExplainRequest, Statement, router_reply::Reply, router_request::Request};

use super::Database;

const VSCHEMA: &str = r#"{"tables": {
    "events": {"type": "sharded", "column": "event_date", "vindex": {"type": "range", "ranges": [
        {"shard": "events-2025", "min": "2025-01-01", "max": "2026-01-01"},
        {"shard": "events-2026", "min": "2026-01-01", "max": "2027-01-01"}]}},
    "levels": {"type": "sharded", "column": "level", "vindex": {"type": "range", "ranges": [
        {"shard": "shard-0", "max": 9}, {"shard": "shard-1", "min": 9, "max": 10}, {"shard": "shard-2", "min": 10}]}},
    "words": {"type": "sharded", "column": "word", "vindex": {"type": "range", "ranges": [
        {"shard": "shard-0", "max": "M"}, {"shard": "shard-1", "min": "M"}]}}
}}"#;

impl Database {
    /// The route of a statement and the shards it touches.
    pub(crate) async fn route(&self, sql: &str) -> (String, String) {
        let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
        match self.ask(Request::Explain(ExplainRequest { statement })).await.unwrap() {
            Reply::Explain(explained) => (explained.route, explained.shards.join(" ")),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn ranges_prune_shards_and_refuse_what_none_holds() {
    let database = Database::new("ranges", 3, VSCHEMA, AutoShard::Off);
    for sql in [
        "CREATE TABLE events (event_date DATE NOT NULL, what TEXT)",
        "CREATE TABLE words (word TEXT COLLATE NOCASE, n)",
        "INSERT INTO events VALUES ('2025-03-01', 'a'), ('2025-12-31', 'b'), ('2026-01-01', 'c')",
        "INSERT INTO words VALUES ('apple', 1), ('Melon', 2), ('zebra', 3), ('mango', 4)",
    ] {
        database.execute(sql, &[]).await.unwrap();
    }
    for (sql, route, shards) in [
        ("SELECT * FROM events WHERE event_date = '2025-03-01'", "equal-unique", "events-2025"),
        ("SELECT * FROM events WHERE event_date IN ('2025-03-01', '2026-03-01')", "in", "events-2025 events-2026"),
        ("SELECT * FROM events WHERE event_date < '2026-01-01'", "range", "events-2025"),
        ("SELECT * FROM events WHERE '2026-01-01' <= event_date AND what = 'c'", "range", "events-2026"),
        ("SELECT * FROM events WHERE event_date BETWEEN '2025-06-01' AND '2025-07-01'", "range", "events-2025"),
        (
            "SELECT * FROM events WHERE event_date > '2025-06-01' AND event_date <= '2026-01-01'",
            "range",
            "events-2025 events-2026",
        ),
        ("SELECT * FROM events WHERE event_date >= '2030-01-01'", "range", "events-2025"),
        ("SELECT * FROM events", "scatter", "events-2025 events-2026"),
        ("DELETE FROM events WHERE event_date >= '2026-06-01'", "range", "events-2026"),
        ("SELECT * FROM words WHERE word < 'apricot'", "range", "shard-0"),
        ("SELECT * FROM words WHERE word >= 'm'", "range", "shard-1"),
    ] {
        assert_eq!(database.route(sql).await, (route.to_owned(), shards.to_owned()), "{sql}");
    }
    let count = |sql: &'static str| async { database.execute(sql, &[]).await.unwrap().rows[0].values[0].clone() };
    assert_eq!(count("SELECT count(*) FROM events WHERE event_date >= '2025-12-31'").await, 2.into());
    assert_eq!(count("SELECT count(*) FROM events WHERE event_date = '2031-01-01'").await, 0.into());
    assert_eq!(count("SELECT count(*) FROM events WHERE event_date = 5").await, 0.into());
    assert_eq!(count("SELECT count(*) FROM words WHERE word >= 'MANGO'").await, 3.into());
    for (sql, value) in [
        ("INSERT INTO events VALUES ('2027-01-01', 'd')", "'2027-01-01'"),
        ("INSERT INTO events VALUES ('2025-05-05', 'd'), (20250101, 'e')", "20250101"),
    ] {
        let error = database.execute(sql, &[]).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Constraint, "{sql}: {error}");
        let expected = format!("events.event_date = {value} is in none of the ranges");
        assert!(error.message.contains(&expected) && error.message.contains("from '2025-01-01'"), "{sql}: {error}");
    }
    let error = database.execute("INSERT INTO events (what) VALUES ('d')", &[]).await.unwrap_err();
    assert_eq!(error.message, "NOT NULL constraint failed: events.event_date");
    assert_eq!(count("SELECT count(*) FROM events").await, 3.into());
}

#[tokio::test]
async fn bounds_are_what_the_column_makes_of_them() {
    let database = Database::new("bounds", 3, VSCHEMA, AutoShard::Off);
    // From '9' to '10' there is no text.
    let error = database.execute("CREATE TABLE levels (level TEXT, n)", &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest, "{error}");
    assert!(error.message.contains("levels, column level") && error.message.contains("ranges[1] is empty"), "{error}");
    database.execute("CREATE TABLE levels (level INTEGER, n)", &[]).await.unwrap();
    for (sql, shards) in [
        ("SELECT * FROM levels WHERE level = 8", "shard-0"),
        ("SELECT * FROM levels WHERE level = '9.5'", "shard-1"),
        ("SELECT * FROM levels WHERE level > 9.0 AND level < '10'", "shard-1"),
        ("SELECT * FROM levels WHERE level = 10", "shard-2"),
    ] {
        assert_eq!(database.route(sql).await.1, shards, "{sql}");
    }
}
