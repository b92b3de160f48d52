//! The VSchema's life: documents, statements, restarts.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{ErrorCode, Row, Value};

use super::Database;

const TENANTS_JSON: &str = include_str!("../data/tenants.json");
const TENANTS_TOML: &str = include_str!("../data/tenants.toml");

/// Rows as one text a row.
pub(crate) fn texts(rows: &[Row]) -> Vec<String> {
    let text = |value: &Value| match &value.kind {
        None => "-".to_owned(),
        Some(dosql_proto::value::Kind::Text(text)) => text.clone(),
        Some(dosql_proto::value::Kind::Integer(integer)) => integer.to_string(),
        other => format!("{other:?}"),
    };
    rows.iter().map(|row| row.values.iter().map(text).collect::<Vec<_>>().join(" | ")).collect()
}

impl Database {
    pub(crate) async fn run(&self, sql: &str) -> Vec<String> {
        texts(&self.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}")).rows)
    }

    pub(crate) async fn refused(&self, sql: &str, code: ErrorCode, part: &str) {
        let error = self.execute(sql, &[]).await.expect_err(sql);
        assert_eq!(error.code(), code, "{sql}: {error}");
        assert!(error.message.contains(part), "{sql}: {error}");
    }
}

#[test]
fn the_published_json_schema_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vschema.schema.json");
    let now = dosql_router::json_schema();
    if std::env::var_os("DOSQL_UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), now, "DOSQL_UPDATE_SCHEMA=1 writes it anew");
}

#[tokio::test]
async fn a_system_of_tenants_and_years_serves() {
    assert_eq!(dosql_router::VSchema::parse(TENANTS_JSON), dosql_router::VSchema::parse(TENANTS_TOML));
    let database = Database::new("tenants", 3, TENANTS_TOML, AutoShard::Off);
    for sql in [
        "CREATE TABLE users (tenant_id INT, id INT, name TEXT, PRIMARY KEY (tenant_id, id))",
        "CREATE TABLE currencies (code TEXT PRIMARY KEY)",
        "CREATE TABLE orders (tenant_id INT, id INT, user_id INT, amount REAL, currency TEXT REFERENCES currencies(code), PRIMARY KEY (tenant_id, id), FOREIGN KEY (tenant_id, user_id) REFERENCES users(tenant_id, id))",
        "CREATE TABLE sessions (tenant_id INT, token TEXT)",
        "CREATE TABLE events (event_date TEXT NOT NULL, tenant_id INT, what TEXT)",
        "CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT)",
        "CREATE TABLE system_config (key TEXT PRIMARY KEY, value)",
        "INSERT INTO currencies VALUES ('EUR'), ('USD')",
        "INSERT INTO users SELECT value, 1, 'user of ' || value FROM json_each('[1,2,3,4,5,6,7,8,9,10,11,12]')",
        "INSERT INTO orders SELECT tenant_id, 7, 1, tenant_id * 1.5, 'EUR' FROM users",
        "INSERT INTO sessions VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
        "INSERT INTO events VALUES ('2025-06-01', 1, 'login'), ('2026-01-01', 1, 'logout'), ('2026-02-01', 2, 'login')",
        "INSERT INTO system_config VALUES ('limit', 5)",
    ] {
        database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    assert_eq!(
        database.run("SELECT count(*), sum(amount) > 0, group_concat(DISTINCT currency) FROM orders JOIN users ON users.tenant_id = orders.tenant_id").await,
        ["12 | 1 | EUR"]
    );
    assert_eq!(
        database
            .run(
                "SELECT name, what FROM users JOIN events ON events.tenant_id = users.tenant_id WHERE event_date >= '2026-01-01' ORDER BY 1"
            )
            .await,
        ["user of 1 | logout", "user of 2 | login"]
    );
    assert_eq!(
        database.run("SHOW VSCHEMA TABLES").await,
        [
            "countries | reference | - | - | shard-0, shard-1, shard-2, shard-3, shard-4, shard-5, shard-6, shard-7, events-2025, events-2026",
            "currencies | reference | - | - | shard-0, shard-1, shard-2, shard-3, shard-4, shard-5, shard-6, shard-7, events-2025, events-2026",
            "events | sharded | event_date | range | events-2025, events-2026",
            "orders | sharded | tenant_id | hash | shard-0, shard-1, shard-2, shard-3, shard-4, shard-5, shard-6, shard-7",
            "sessions | sharded | tenant_id | consistent_hash | shard-0, shard-1, shard-2, shard-3, shard-4, shard-5, shard-6, shard-7",
            "system_config | unsharded | - | - | shard-0",
            "users | sharded | tenant_id | hash | shard-0, shard-1, shard-2, shard-3, shard-4, shard-5, shard-6, shard-7",
        ]
    );
    let shards = database.run("SHOW SHARDS").await;
    assert_eq!(shards.len(), 10);
    assert_eq!(shards[0], "shard-0 | us-west | 1 | 1 | serving | shard-0 | 0 | 1 | 0");
    assert_eq!(shards[9], "events-2026 | - | 1 | 0 | serving | events-2026 | 0 | 1 | 0");
    assert_eq!(database.run("SHOW VSCHEMA KEYSPACES").await[1], "shard-1 | 2000000000000000 | 4000000000000000");
}

#[tokio::test]
async fn tables_change_their_place_while_they_are_empty() {
    let database = Database::new("alter", 3, "", AutoShard::Off);
    database.run("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)").await;
    database.run("CREATE INDEX t_v ON t (v)").await;
    database.run("ALTER VSCHEMA CREATE VINDEX by_ring USING consistent_hash WITH virtual_nodes=32").await;
    database.run("ALTER VSCHEMA ON t ADD VINDEX by_ring(k)").await;
    assert_eq!(database.run("SHOW VSCHEMA TABLES").await, ["t | sharded | k | by_ring | shard-0, shard-1, shard-2"]);
    assert_eq!(database.run("SHOW VSCHEMA VINDEXES").await, ["by_ring | consistent_hash | {\"virtualNodes\":32}"]);
    assert_eq!(
        database.run("SHOW VSCHEMA VINDEXES ON t").await,
        ["k | by_ring | consistent_hash | {\"virtualNodes\":32}"]
    );
    // Through another type of vindex and back to one shard.
    database.run("ALTER VSCHEMA ON t DROP VINDEX by_ring").await;
    assert_eq!(database.run("SHOW VSCHEMA TABLES").await, ["t | unsharded | - | - | shard-0"]);
    database.run("ALTER VSCHEMA ON t ADD VINDEX hash(k) USING hash").await;
    for key in 0..40 {
        database.run(&format!("INSERT INTO t VALUES ({key}, 'v{key}')")).await;
    }
    assert_eq!(database.run("SELECT count(*), max(v) FROM t").await, ["40 | v9"]);
    assert_eq!(database.route("SELECT v FROM t WHERE k = 3").await.0, "equal-unique");
    // The same again changes nothing; anything else would move rows.
    database.run("ALTER VSCHEMA ON t ADD VINDEX hash(k) USING hash").await;
    database.refused("ALTER VSCHEMA ON t DROP VINDEX hash", ErrorCode::Unsupported, "table t").await;
    database.refused("ALTER VSCHEMA ON t ADD VINDEX by_ring(k)", ErrorCode::Conflict, "another vindex").await;
    database.refused("ALTER VSCHEMA DROP VINDEX hash", ErrorCode::Conflict, "table t").await;
    database.refused("ALTER VSCHEMA ON t ADD VINDEX v(k) USING nix", ErrorCode::InvalidRequest, "nix").await;
    database.run("DELETE FROM t").await;
    database.run("ALTER VSCHEMA ON t DROP VINDEX hash").await;
    database.run("DROP TABLE t").await;
    database.run("CREATE TABLE t (k, v)").await;
    assert_eq!(database.run("SELECT count(*) FROM t").await, ["0"]);
    // Before a table is made.
    database.run("ALTER VSCHEMA ADD TABLE codes USING reference").await;
    database.run("ALTER VSCHEMA ADD TABLE one USING unsharded WITH shard=shard-2").await;
    database.run("CREATE TABLE codes (code TEXT PRIMARY KEY)").await;
    database.run("CREATE TABLE one (a)").await;
    assert_eq!(
        database.run("SHOW VSCHEMA TABLES").await,
        [
            "codes | reference | - | - | shard-0, shard-1, shard-2",
            "one | unsharded | - | - | shard-2",
            "t | unsharded | - | - | shard-0"
        ]
    );
    database
        .refused(
            "ALTER VSCHEMA ADD TABLE x USING unsharded WITH shard=nix",
            ErrorCode::InvalidRequest,
            "tables.x.shard",
        )
        .await;
    database
        .refused(
            "ALTER VSCHEMA ON x ADD VINDEX r(k) USING range WITH ranges='[{\"shard\": \"new\"}]'",
            ErrorCode::InvalidRequest,
            "\"new\"",
        )
        .await;
    database.run("CREATE VIEW seen AS SELECT * FROM t").await;
    database.refused("ALTER VSCHEMA ON t ADD VINDEX hash(k)", ErrorCode::Unsupported, "view seen").await;
    let route = database.route("ALTER VSCHEMA ON t ADD VINDEX hash(k)").await;
    assert_eq!(route.0, "vschema");
}

#[tokio::test]
async fn writes_go_on_while_the_vschema_changes() {
    let database = Database::new("swap", 4, "", AutoShard::Off);
    database.run("CREATE TABLE busy (k INTEGER PRIMARY KEY)").await;
    database.run("CREATE TABLE fresh (k INT, v INT)").await;
    let write = async {
        for key in 0..200 {
            database.run(&format!("INSERT INTO busy VALUES ({key})")).await;
            assert_eq!(database.run("SELECT count(*) FROM busy").await, [(key + 1).to_string()]);
        }
    };
    let change = async {
        for _ in 0..5 {
            database.run("ALTER VSCHEMA ON fresh ADD VINDEX xxhash(k)").await;
            database.run("ALTER VSCHEMA ON fresh DROP VINDEX xxhash").await;
        }
        database.run("ALTER VSCHEMA ON fresh ADD VINDEX xxhash(k)").await;
        database.run("INSERT INTO fresh VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)").await;
    };
    tokio::join!(write, change);
    assert_eq!(database.run("SELECT count(*), sum(v) FROM fresh").await, ["5 | 15"]);
}

#[tokio::test]
async fn a_document_that_changed_is_followed_or_refused() {
    let years = |ranges: &str| {
        format!(
            r#"{{"tables": {{"countries": {{"type": "reference"}}, "events": {{"type": "sharded", "column": "at",
                "vindex": {{"type": "range", "ranges": [{ranges}]}}}}}}}}"#
        )
    };
    let first = years(r#"{"shard": "y25", "min": "2025", "max": "2026"}"#);
    let mut database = Database::new("document", 2, &first, AutoShard::Off);
    database.run("CREATE TABLE events (at TEXT, what TEXT)").await;
    database.run("CREATE TABLE countries (code TEXT PRIMARY KEY)").await;
    database.run("CREATE TABLE log (line)").await;
    database.run("CREATE VIEW logins AS SELECT * FROM events WHERE what = 'login'").await;
    database.run("INSERT INTO events VALUES ('2025-05-05', 'login')").await;
    database.run("INSERT INTO countries VALUES ('at'), ('de')").await;
    database.run("ALTER VSCHEMA ON by_sql ADD VINDEX hash(k)").await;
    // A year more: a new shard joins, with the tables and the reference rows.
    let second = years(r#"{"shard": "y25", "min": "2025", "max": "2026"}, {"shard": "y26", "min": "2026"}"#);
    database = database.restart(&second).await;
    database.run("INSERT INTO events VALUES ('2026-05-05', 'login')").await;
    assert_eq!(database.run("SELECT at FROM logins ORDER BY at").await, ["2025-05-05", "2026-05-05"]);
    assert_eq!(
        database.run("SELECT what, code FROM events, countries WHERE at >= '2026' ORDER BY code").await,
        ["login | at", "login | de"]
    );
    assert_eq!(database.run("SHOW VSCHEMA TABLES").await[0], "by_sql | sharded | k | hash | -");
    // No document: what was in force stays, if the server has its shards.
    let none = database.restart("").await;
    none.refused("SELECT 1", ErrorCode::InvalidRequest, "\"y25\"").await;
    // What would move rows.
    let third = years(r#"{"shard": "y26", "min": "2025", "max": "2026"}, {"shard": "y25", "min": "2026"}"#);
    let moved = none.restart(&third).await;
    moved.refused("SELECT 1", ErrorCode::Unsupported, "table events").await;
    let back = moved.restart(&second).await;
    assert_eq!(back.run("SELECT count(*) FROM events").await, ["2"]);
}
