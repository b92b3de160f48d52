//! Statements whose outcome once differed from one SQLite's, as the fuzzer of statements found them.

use dosql_actors::runtime::AutoShard;
use dosql_actors::sql_value;
use dosql_proto::{Error, Row};

use super::Database;

type Outcome = Result<(Vec<Row>, u64), Error>;

fn plainly(plain: &rusqlite::Connection, sql: &str) -> Outcome {
    let before = plain.total_changes();
    let mut statement = plain.prepare(sql).map_err(sql_value::sql_error)?;
    let collected = sql_value::run(&mut statement, &[], 1 << 20)?;
    drop(statement);
    Ok((collected.rows, if plain.total_changes() == before { 0 } else { plain.changes() }))
}

/// Runs statements on three shards and on one SQLite, which knows no VSchema, and demands the same outcomes.
async fn same(name: &str, statements: &[&str]) {
    let database = Database::new(&format!("fuzzed-{name}"), 3, "", AutoShard::FirstColumn);
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    plain.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    for sql in statements {
        let got = database.execute(sql, &[]).await;
        if sql.starts_with("ALTER VSCHEMA") {
            got.unwrap_or_else(|error| panic!("{sql}: {error}"));
            continue;
        }
        let text = |outcome: Outcome| match outcome {
            Ok((rows, changed)) => {
                let mut rows: Vec<String> = rows.iter().map(|row| format!("{:?}", row.values)).collect();
                rows.sort();
                format!("{changed} changed, {rows:#?}")
            }
            Err(error) => format!("{:?}", error.code()),
        };
        let writes = !sql.starts_with("SELECT");
        let got = got.map(|result| (result.rows, if writes { result.rows_affected } else { 0 }));
        let expected = plainly(&plain, sql).map(|(rows, changed)| (rows, if writes { changed } else { 0 }));
        assert_eq!(text(got), text(expected), "{sql}");
    }
}

#[tokio::test]
async fn joins_that_name_their_columns_once() {
    same(
        "using",
        &[
            "CREATE TABLE a (c0, c1 TEXT, c2)",
            "CREATE TABLE b (c0, c1 TEXT, c3)",
            "INSERT INTO a VALUES (1, 'x', 1), (2, 'y', 2), (3, NULL, 3)",
            "INSERT INTO b VALUES (1, 'x', 4), (2, 'z', 5), (5, 'x', 6)",
            "SELECT count(*), count(a.c2) FROM a NATURAL JOIN b",
            "SELECT count(*), min(a.c0) FROM a FULL JOIN b USING (c0, c1)",
            "SELECT count(*) FROM a LEFT JOIN b USING (c1)",
            "CREATE VIEW v AS SELECT a.c2, b.c3 FROM a JOIN b USING (c0)",
            "SELECT * FROM v",
            "INSERT INTO a SELECT 9, 'n', count(*) FROM a AS x NATURAL JOIN b",
            "UPDATE b SET c3 = (SELECT count(*) FROM a JOIN b AS x USING (c1)) WHERE c0 = 1",
            "SELECT * FROM a",
            "SELECT * FROM b",
        ],
    )
    .await;
}

#[tokio::test]
async fn sums_of_all_kinds_of_values() {
    same(
        "sums",
        &[
            "CREATE TABLE a (c0, c1 INT, c2 REAL, c3 TEXT, c4)",
            "SELECT avg(c1), avg(c2), avg(c3), avg(c4) FROM a",
            "INSERT INTO a VALUES (1, 5, 0.5, '12', 1), (2, NULL, 2, 'x', 2.5), (3, '7', -1, '3e2z', '4'), (4, 8.25, NULL, NULL, x'35')",
            "SELECT avg(c1), avg(c2), avg(c3), avg(c4), sum(c1), count(c2) FROM a",
            "SELECT c0 > 2, avg(c1), avg(c2) FILTER (WHERE c1 > 5) FROM a GROUP BY 1 HAVING avg(c2) < 2 OR avg(c1) > 5",
            "INSERT INTO a (c0, c1) VALUES (10, 9223372036854775807), (11, 9223372036854775807), (12, 9223372036854775806), (13, 9223372036854775807)",
            "SELECT avg(c1) FROM a",
            "SELECT avg(c1), sum(c2) FROM a WHERE c0 > 9",
            "INSERT INTO a (c0, c1) VALUES (20, 'none'), (21, x'3131')",
            "SELECT avg(c1) FROM a WHERE c0 >= 20 OR c0 < 4",
            "SELECT sum(c1), total(c1), sum(c3), total(c4), avg(c1 + c2) FROM a WHERE c0 < 10 OR c0 >= 20",
            // Integers alone overflow, and what the shards round must not be lost beside a real.
            "SELECT sum(c1) FROM a WHERE c0 BETWEEN 10 AND 13",
            "SELECT total(c1) FROM a WHERE c0 BETWEEN 10 AND 13",
            "INSERT INTO a (c0, c1) VALUES (30, 9223372036854775807), (31, 6), (32, 3.75), (33, -9223372036854775807), (34, 5)",
            "SELECT sum(c1), total(c1), avg(c1) FROM a WHERE c0 >= 30",
            "SELECT sum(c1) FROM a WHERE c0 > 30",
            "SELECT c0 % 2, sum(c1) FROM a WHERE c0 IN (10, 12, 31, 34) GROUP BY 1",
        ],
    )
    .await;
}

#[tokio::test]
async fn keys_that_must_not_be_null() {
    same(
        "required",
        &[
            r#"ALTER VSCHEMA ON t ADD VINDEX r(k) USING range WITH ranges='[{"shard": "shard-1", "max": 5}, {"shard": "shard-2", "min": 5}]'"#,
            "CREATE TABLE t (v, k INT NOT NULL)",
            "INSERT OR IGNORE INTO t VALUES (1, NULL), (2, 2), (3, 9)",
            "INSERT OR IGNORE INTO t SELECT v, NULL FROM t",
            "INSERT INTO t VALUES (1, NULL)",
            "SELECT * FROM t",
            "CREATE TABLE d (k INT NOT NULL DEFAULT 7, v)",
            "INSERT OR REPLACE INTO d VALUES (NULL, 1), (2, 2)",
            "REPLACE INTO d SELECT NULL, v + 10 FROM d",
            "SELECT * FROM d WHERE k = 7",
            "SELECT * FROM d",
        ],
    )
    .await;
}

#[tokio::test]
async fn conflicts_that_a_table_resolves() {
    same(
        "declared",
        &[
            "CREATE TABLE t (k TEXT UNIQUE ON CONFLICT IGNORE, v INT)",
            "INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4)",
            "UPDATE t SET k = 'b' WHERE v < 2",
            "SELECT * FROM t",
            "CREATE TABLE r (k TEXT UNIQUE ON CONFLICT REPLACE, v INT)",
            "INSERT INTO r SELECT k, v FROM t",
            "UPDATE r SET k = 'b' WHERE v = 4",
            "SELECT * FROM r",
        ],
    )
    .await;
}

#[tokio::test]
async fn subqueries_of_conflict_clauses() {
    same(
        "upsert",
        &[
            "CREATE TABLE t (k TEXT UNIQUE, v INT)",
            "INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4)",
            "INSERT INTO t SELECT k, v + 1 FROM t WHERE v > 2 ON CONFLICT (k) DO UPDATE SET v = (SELECT 100 * count(*) FROM t)",
            "INSERT INTO t SELECT 'e', 5 WHERE true ON CONFLICT (k) DO NOTHING RETURNING (SELECT sum(v) FROM t AS x)",
            "SELECT * FROM t",
        ],
    )
    .await;
}

#[tokio::test]
async fn triggers_that_foreign_keys_fire() {
    same(
        "fired",
        &[
            "ALTER VSCHEMA ADD TABLE p",
            "ALTER VSCHEMA ADD TABLE k",
            "CREATE TABLE p (id INT PRIMARY KEY)",
            "CREATE TABLE k (p INT REFERENCES p (id) ON DELETE CASCADE ON UPDATE SET NULL, v)",
            "CREATE TABLE log (what, v)",
            "CREATE TRIGGER gone AFTER DELETE ON k BEGIN INSERT INTO log VALUES ('gone', old.v); END",
            "CREATE TRIGGER changed AFTER UPDATE ON k BEGIN INSERT INTO log VALUES ('changed', new.v); END",
            "INSERT INTO p VALUES (1), (2), (3)",
            "INSERT INTO k VALUES (1, 'a'), (1, 'b'), (2, 'c')",
            "DELETE FROM p WHERE id = 1",
            "WITH w AS (SELECT 2 AS id) UPDATE p SET id = 5 WHERE id IN (SELECT id FROM w)",
            "SELECT * FROM log",
            "SELECT * FROM k",
        ],
    )
    .await;
}

#[tokio::test]
async fn keys_that_are_equal_and_of_another_type() {
    same(
        "equal-keys",
        &[
            "CREATE TABLE t (k PRIMARY KEY, v)",
            "CREATE TABLE o (k PRIMARY KEY, v UNIQUE)",
            "INSERT INTO t VALUES (2, 'a'), (9007199254740993, 'b'), (9223372036854775807, 'c')",
            "INSERT INTO o VALUES (2, 1), (3, 2)",
            "REPLACE INTO t VALUES (2.0, (SELECT count(*) FROM o)), (9007199254740992.0, 5), (9223372036854775808.0, 6)",
            "SELECT k, typeof(k), v FROM t",
            "REPLACE INTO o SELECT k + 0.0, v + 1 FROM o WHERE k = 2",
            "INSERT INTO o VALUES (3.0, 9) ON CONFLICT (k) DO UPDATE SET k = 3.0, v = (SELECT max(v) + 1 FROM o)",
            "SELECT k, typeof(k), v FROM o",
        ],
    )
    .await;
}

#[tokio::test]
async fn foreign_keys_that_move_rows() {
    same(
        "moving-keys",
        &[
            "ALTER VSCHEMA ADD TABLE r USING reference",
            "ALTER VSCHEMA ON p ADD VINDEX hash(k)",
            "ALTER VSCHEMA ON c ADD VINDEX hash(k)",
            "ALTER VSCHEMA ON d ADD VINDEX hash(k)",
            "CREATE TABLE r (k INTEGER PRIMARY KEY)",
            "CREATE TABLE p (k TEXT UNIQUE, v)",
            "CREATE TABLE c (k TEXT DEFAULT 'none' REFERENCES p (k) ON DELETE SET NULL, v)",
            "CREATE TABLE d (k INTEGER REFERENCES r ON UPDATE CASCADE ON DELETE SET DEFAULT, v)",
            "INSERT INTO p VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4), ('e', 5)",
            "INSERT INTO c VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4), ('e', 5)",
            "DELETE FROM p WHERE v > 3",
            "DELETE FROM p WHERE k = 'a'",
            "INSERT OR REPLACE INTO p VALUES ('b', 6)",
            "SELECT count(*) FROM c WHERE k IS NULL",
            "UPDATE c SET v = v + 10 WHERE k IS NULL",
            "DELETE FROM c WHERE (SELECT count(*) FROM c) > 1 AND k IS NULL RETURNING v",
            "SELECT * FROM c",
            "INSERT INTO r VALUES (1), (2), (3), (4)",
            "INSERT INTO d VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
            "CREATE TABLE e (k INTEGER PRIMARY KEY REFERENCES r ON UPDATE CASCADE)",
            "INSERT INTO e VALUES (4)",
            "INSERT OR REPLACE INTO r VALUES (4), (5)",
            "SELECT * FROM e",
            "UPDATE r SET k = k + 10",
            "SELECT * FROM e",
            "SELECT v FROM d WHERE k = 11",
            "UPDATE d SET v = 'x' WHERE k = 13",
            "DELETE FROM r WHERE k = 12",
            "SELECT v FROM d WHERE k IS NULL",
            "SELECT * FROM d",
        ],
    )
    .await;
}
