//! PRAGMAs that check what is on the shards.

use dosql_actors::runtime::AutoShard;
use dosql_proto::ErrorCode;
use rusqlite::Connection;

use super::Database;
use super::vschema::texts;

const VSCHEMA: &str =
    r#"{"tables": {"parents": {"type": "sharded", "column": "id"}, "children": {"type": "sharded", "column": "id"}}}"#;

async fn answer(database: &Database, sql: &str) -> Vec<String> {
    let rows = database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}")).rows;
    assert_eq!(database.stream(sql, &[]).await.unwrap(), rows, "{sql}");
    texts(&rows)
}

#[tokio::test]
async fn damage_is_found_on_whatever_shard_it_is() {
    let mut database = Database::new("checks", 3, VSCHEMA, AutoShard::Off);
    for sql in [
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE children (id INTEGER PRIMARY KEY REFERENCES parents (id), age INT CHECK (age > 0))",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60) INSERT INTO parents SELECT i FROM n",
        "INSERT INTO children SELECT id, id FROM parents",
    ] {
        database.execute(sql, &[]).await.unwrap();
    }
    for check in ["integrity_check", "quick_check", "integrity_check(children)", "quick_check(5)"] {
        assert_eq!(answer(&database, &format!("PRAGMA {check}")).await, ["ok"], "{check}");
    }
    assert!(answer(&database, "PRAGMA foreign_key_check").await.is_empty());
    let error = database.execute("PRAGMA integrity_check(nowhere)", &[]).await.unwrap_err();
    assert!(error.message.contains("no such table: nowhere"), "{error}");
    let error = database.execute("SELECT * FROM pragma_integrity_check", &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");

    let Database { node, client, data_dir, settings } = database;
    drop(client);
    node.stop().await;
    let damaged: Vec<usize> = [0, 2]
        .map(|shard| {
            let path = data_dir.join(format!("actors/shard/shard-{shard}.sqlite"));
            let plain = Connection::open(path).unwrap();
            plain.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
            plain.execute("UPDATE children SET age = -1", []).unwrap();
            plain.execute("DELETE FROM parents", []).unwrap()
        })
        .into();
    database = Database::start(data_dir, settings);

    let found = ["shard-0: CHECK constraint failed in children", "shard-2: CHECK constraint failed in children"];
    for check in ["integrity_check", "quick_check", "integrity_check(children)"] {
        let mut faults = answer(&database, &format!("PRAGMA {check}")).await;
        faults.sort();
        faults.dedup();
        assert_eq!(faults, found, "{check}");
    }
    assert_eq!(answer(&database, "PRAGMA integrity_check(1)").await.len(), 1);
    assert_eq!(answer(&database, "PRAGMA integrity_check(parents)").await, ["ok"]);
    let orphans = answer(&database, "PRAGMA foreign_key_check(children)").await;
    assert_eq!(orphans.len(), damaged.iter().sum::<usize>());
    assert!(orphans.iter().all(|orphan| orphan.starts_with("children | ")));
    assert_eq!(answer(&database, "PRAGMA foreign_key_check").await.len(), orphans.len());
}
