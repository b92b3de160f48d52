//! Every statement gives what one SQLite gives, on any number of shards.

use dosql_actors::runtime::AutoShard;
use dosql_actors::sql_value;
use dosql_proto::Row;

use super::Database;

const VSCHEMA: &str = r#"{"tables": {
    "users": {"type": "sharded", "column": "id"},
    "orders": {"type": "sharded", "column": "user_id"},
    "names": {"type": "sharded", "column": "name"},
    "countries": {"type": "reference"}
}}"#;

const SETUP: &[&str] = &[
    "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, age INT, score REAL, country TEXT)",
    "CREATE TABLE orders (user_id INT, item TEXT, amount NUMERIC)",
    "CREATE TABLE names (name TEXT COLLATE NOCASE PRIMARY KEY, n)",
    "CREATE TABLE countries (code TEXT PRIMARY KEY, title TEXT)",
    "CREATE TABLE log (line TEXT)",
    "CREATE INDEX orders_item ON orders (item)",
    "CREATE VIEW spent AS SELECT user_id, sum(amount) AS total FROM orders GROUP BY user_id",
    "INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland'), ('de', 'Germany')",
    "INSERT INTO users VALUES (1,'Anna',30,1.5,'at'),(2,'bob',NULL,2.25,'ch'),(3,'Cleo',41,NULL,'de'),(4,'anna',30,-1.0,'at')",
    "INSERT INTO users (name, id, age) VALUES ('Dora', 2 + 3, '18'), ('eve', '6', 77.0), (NULL, -7, 18)",
    "INSERT INTO orders VALUES (1,'pen',2),(1,'ink',3.5),(2,'pen',2),(3,'cup',9),('4','pen','1.25'),(99,'ink',NULL)",
    "INSERT INTO orders SELECT id, 'gift', age FROM users WHERE age > 20",
    "INSERT INTO names VALUES ('Anna', 1), ('BOB', 'x'), ('zoe', NULL)",
    "INSERT INTO names VALUES ('anna', 2) ON CONFLICT (name) DO UPDATE SET n = excluded.n",
    "INSERT INTO log SELECT name FROM users ORDER BY id",
    "UPDATE users SET score = coalesce(score, 0) + 1 WHERE id = 3",
    "UPDATE orders SET amount = amount + 1 WHERE item = 'pen'",
    "DELETE FROM orders WHERE user_id IN (99, 100)",
    "ALTER TABLE users ADD COLUMN note TEXT DEFAULT 'none'",
    "INSERT INTO users (name) VALUES ('Flo'), ('Gus')",
    "UPDATE users SET id = id + 100 WHERE id > 5",
    "UPDATE users SET age = (SELECT count(*) FROM orders WHERE user_id = users.id) WHERE age IS NULL",
    "DELETE FROM orders WHERE amount > (SELECT avg(amount) FROM orders)",
    "WITH old AS (SELECT id FROM users WHERE age > 30) UPDATE users SET note = 'old' WHERE id IN (SELECT id FROM old)",
    "INSERT INTO orders SELECT * FROM orders WHERE user_id = 1",
    "INSERT INTO orders VALUES ((SELECT max(id) FROM users), 'top', 1 << 3)",
    "UPDATE orders SET user_id = user_id + 1 WHERE item = 'pen'",
    "CREATE TABLE audit (what TEXT, id INT)",
    "CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN INSERT INTO audit VALUES ('deleted', old.id); END",
    "DELETE FROM users WHERE name = 'Gus'",
    "CREATE VIEW named AS SELECT id, name FROM users",
    "CREATE TRIGGER named_new INSTEAD OF INSERT ON named BEGIN INSERT INTO users (id, name) VALUES (new.id, upper(new.name)); END",
    "INSERT INTO named VALUES (77, 'hal')",
    "CREATE TABLE copied AS SELECT id AS user, name FROM users WHERE id > 2",
    "INSERT OR REPLACE INTO names VALUES ('ZOE', 26), ('yan', 25)",
    "INSERT OR IGNORE INTO names VALUES ('Yan', 1), ('xi', 24)",
    "ANALYZE",
    "REINDEX orders_item",
    "PRAGMA user_version = 7",
    "PRAGMA foreign_keys = ON",
];

const QUERIES: &[&str] = &[
    "SELECT * FROM users",
    "SELECT * FROM users WHERE id = 3",
    "SELECT name FROM users WHERE id = '3' AND age > 1",
    "SELECT name FROM users WHERE id IN (1, 2, 6)",
    "SELECT name, age FROM users ORDER BY name, age DESC, id LIMIT 3",
    "SELECT name AS who, age FROM users ORDER BY who, 2, id LIMIT 2 OFFSET 1",
    "SELECT id FROM users ORDER BY age IS NULL, age * -1, id LIMIT 4",
    "SELECT name FROM users ORDER BY age NULLS LAST, id",
    "SELECT count(*), count(age), sum(age), total(age), min(country), max(score), avg(age) FROM users",
    "SELECT count(*), sum(age), avg(score) FROM users WHERE id > 1000",
    "SELECT lower(name), count(*), max(id) FROM users GROUP BY name ORDER BY count(*) DESC, name",
    "SELECT country AS c, avg(age), sum(score) FROM users GROUP BY c HAVING count(*) > 1 ORDER BY c",
    "SELECT age % 2, count(*) AS n FROM users GROUP BY 1 ORDER BY n, 1",
    "SELECT DISTINCT age FROM users ORDER BY age DESC LIMIT 3",
    "SELECT DISTINCT item FROM orders",
    "SELECT count(DISTINCT item) FROM orders",
    "SELECT group_concat(item, ',') FROM (SELECT DISTINCT item FROM orders ORDER BY item)",
    "SELECT typeof(amount), amount FROM orders ORDER BY amount, item, user_id",
    "SELECT u.name, o.item FROM users u JOIN orders o ON o.user_id = u.id WHERE o.amount > 2 ORDER BY u.id, o.item",
    "SELECT u.name, o.item FROM users u JOIN orders o ON o.user_id = u.id WHERE u.id = 1 ORDER BY o.item",
    "SELECT u.name, c.title FROM users u LEFT JOIN countries c ON c.code = u.country ORDER BY u.id",
    "SELECT u.id, o.item FROM users u LEFT JOIN orders o ON o.user_id = u.id AND o.item = 'pen' WHERE o.item IS NULL ORDER BY 1",
    "SELECT name FROM users WHERE id IN (SELECT user_id FROM orders WHERE item = 'pen') ORDER BY id",
    "SELECT name, (SELECT count(*) FROM orders o WHERE o.user_id = users.id) FROM users ORDER BY id",
    "WITH rich AS (SELECT user_id, sum(amount) s FROM orders GROUP BY 1) SELECT name, s FROM rich JOIN users ON id = user_id ORDER BY id",
    "SELECT id, row_number() OVER (ORDER BY age, id), sum(age) OVER (ORDER BY id) FROM users ORDER BY id",
    "SELECT age FROM users UNION SELECT amount FROM orders ORDER BY 1",
    "SELECT * FROM spent ORDER BY user_id",
    "SELECT * FROM names WHERE name = 'ANNA'",
    "SELECT n, typeof(n) FROM names ORDER BY name",
    "SELECT title FROM countries WHERE code = 'ch'",
    "SELECT * FROM log ORDER BY rowid",
    "SELECT line, title FROM log, countries ORDER BY 1, 2 LIMIT 5",
    "SELECT 1 + 1, 'x', NULL",
    "VALUES (1, 2), (3, 4)",
    "SELECT min(age), max(age) FROM users WHERE country = 'at' ORDER BY 1",
    "SELECT sum(amount) FROM orders HAVING sum(amount) > 1",
    "SELECT 1 FROM users LIMIT 3",
    "SELECT note, count(*) FROM users GROUP BY note",
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name",
    "PRAGMA table_info(users)",
    "SELECT max(id), name FROM users",
    "SELECT 0x10, id FROM users WHERE id = 0x01",
    "SELECT id, count(*) FROM users WHERE 1 = 0",
    "SELECT id FROM users WHERE NULL AND id = 1",
    "SELECT name FROM users WHERE 1 IN (2, 3) GROUP BY name",
    "SELECT id, name FROM users ORDER BY name DESC, id LIMIT 2 OFFSET 1",
    "SELECT id FROM users ORDER BY score NULLS LAST, id LIMIT 3",
    "SELECT * FROM users ORDER BY -id",
    "SELECT name FROM users WHERE id >= 2 AND id < 3",
    "SELECT count(*), max(age) FROM users WHERE 3 > id",
    "SELECT name FROM users WHERE id BETWEEN '2' AND 4.5 ORDER BY id DESC LIMIT 2",
    "SELECT count(*) FROM users WHERE id > 1000",
    "SELECT count(*) FROM users WHERE id <= NULL",
    "SELECT u.name, o.item FROM users u JOIN orders o ON o.user_id = u.id WHERE u.id < 3 ORDER BY 1, 2",
    "SELECT rowid, item FROM orders ORDER BY rowid",
    "SELECT group_concat(item) FROM orders",
    "SELECT id - - 1, - - id FROM users ORDER BY 1",
    "SELECT * FROM audit",
    "SELECT * FROM copied ORDER BY user",
    "SELECT * FROM named ORDER BY id",
    "SELECT * FROM names ORDER BY name",
    "PRAGMA user_version",
    "PRAGMA integrity_check",
    "PRAGMA quick_check(users)",
    "PRAGMA foreign_key_check",
    "SELECT item FROM orders INDEXED BY orders_item WHERE item > 'a' ORDER BY 1, rowid",
];

fn key(row: &Row) -> String {
    format!("{row:?}")
}

async fn compare(shards: u32, auto_shard: AutoShard, vschema: &str, name: &str) {
    let database = Database::new(name, shards, vschema, auto_shard);
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    for sql in SETUP {
        let mut statement = plain.prepare(sql).unwrap();
        sql_value::run(&mut statement, &[], 1 << 20).unwrap_or_else(|error| panic!("{sql}: {error}"));
        drop(statement);
        let expected = plain.changes();
        let result = database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{shards} shards: {sql}: {error}"));
        if ["INSERT", "UPDATE", "DELETE", "WITH"].iter().any(|word| sql.starts_with(word)) && !sql.contains("named") {
            assert_eq!(result.rows_affected, expected, "{shards} shards: {sql}");
        }
    }
    for sql in QUERIES {
        let mut statement = plain.prepare(sql).unwrap();
        let mut expected = sql_value::run(&mut statement, &[], 1 << 20).unwrap();
        let mut got =
            database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{shards} shards: {sql}: {error}"));
        let mut streamed =
            database.stream(sql, &[]).await.unwrap_or_else(|error| panic!("{shards} shards: {sql}: {error}"));
        if !sql.contains("ORDER BY") {
            expected.rows.sort_by_key(key);
            got.rows.sort_by_key(key);
            streamed.sort_by_key(key);
        }
        assert_eq!(got.columns, expected.columns, "{shards} shards: {sql}");
        assert_eq!(got.rows, expected.rows, "{shards} shards: {sql}");
        assert_eq!(streamed, expected.rows, "{shards} shards, streamed: {sql}");
    }
    for (sql, params) in [
        ("SELECT name FROM users WHERE id = ? AND age > ?", vec![1.into(), 3.into()]),
        (
            "SELECT name FROM users WHERE age > :a ORDER BY id LIMIT ?5 OFFSET :b",
            vec![1.into(), dosql_proto::Value::NULL, 0.into(), 0.into(), 3.into(), 1.into()],
        ),
        ("SELECT count(*) + ?2 FROM orders WHERE item = ?1", vec!["pen".into(), 5.into()]),
    ] {
        let mut statement = plain.prepare(sql).unwrap();
        let expected = sql_value::run(&mut statement, &params, 1 << 20).unwrap();
        let got =
            database.execute(sql, &params).await.unwrap_or_else(|error| panic!("{shards} shards: {sql}: {error}"));
        assert_eq!(got.rows, expected.rows, "{shards} shards: {sql}");
    }
}

#[tokio::test]
async fn one_two_and_four_shards_answer_as_sqlite() {
    for shards in [1, 2, 4] {
        compare(shards, AutoShard::Off, VSCHEMA, "oracle").await;
    }
}

#[tokio::test]
async fn every_vindex_answers_as_sqlite() {
    const VSCHEMA: &str = r#"{"tables": {
        "users": {"type": "sharded", "column": "id", "vindex": {"type": "range", "ranges": [
            {"shard": "many", "min": 3}, {"shard": "few", "max": 1}, {"shard": "shard-0", "min": 1, "max": 3}]}},
        "orders": {"type": "sharded", "column": "user_id", "vindex": {"type": "xxhash"}},
        "names": {"type": "sharded", "column": "name", "vindex": {"type": "consistent_hash", "virtualNodes": 20}},
        "countries": {"type": "reference"}
    }}"#;
    for shards in [2, 3] {
        compare(shards, AutoShard::Off, VSCHEMA, "vindexes").await;
    }
}

#[tokio::test]
async fn tables_sharded_by_their_first_column_answer_as_sqlite() {
    for shards in [2, 3] {
        compare(shards, AutoShard::PrimaryKey, "", "auto").await;
    }
}
