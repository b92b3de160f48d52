//! Records applied to another database must make the same tables there.

#![allow(clippy::disallowed_methods, reason = "the other database has no actor around it")]

use dosql_proto::{ErrorCode, WalRecord};
use rusqlite::Connection;
use rusqlite::types::Value;

use super::replay::{Random, TABLES, seed};
use super::{Bench, execute};
use crate::runtime::Settings;
use crate::shard::apply::{self, Quiet};
use crate::shard::schema::Schema;
use crate::test_world::run;

/// A database that follows a shard by its records.
struct Follower {
    connection: Connection,
    applied: u64,
}

impl Follower {
    fn new(tables: &[&str]) -> Self {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        for sql in tables {
            connection.execute_batch(sql).unwrap();
        }
        Self { connection, applied: tables.len() as u64 }
    }

    fn apply(&mut self, record: &WalRecord) -> Result<(), dosql_proto::Error> {
        assert_eq!(record.lsn, self.applied + 1);
        assert!(record.schema_changes.is_empty());
        self.applied = record.lsn;
        let schema = Schema::load(&self.connection).unwrap();
        let transaction = self.connection.unchecked_transaction().unwrap();
        {
            let _quiet = Quiet::begin(&self.connection, &schema)?;
            apply::changes(&self.connection, schema.shapes(), record, 0..record.changes.len())?;
            apply::set_sequences(&self.connection, &record.sequences)?;
        }
        transaction.commit().unwrap();
        Ok(())
    }

    async fn follow(&mut self, bench: &mut Bench) {
        loop {
            let records = bench.wal(self.applied, 0).await.unwrap().records;
            if records.is_empty() {
                return;
            }
            for record in &records {
                self.apply(record).unwrap_or_else(|error| panic!("{error}: {record:?}"));
            }
        }
    }

    /// The rows of a SELECT as text, with the types they are stored in.
    fn rows(&self, sql: &str) -> Vec<String> {
        let mut statement = self.connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement
            .query_map([], |row| (0..width).map(|at| row.get::<_, Value>(at)).collect::<rusqlite::Result<Vec<_>>>());
        rows.unwrap().map(|row| format!("{:?}", row.unwrap())).collect()
    }

    fn checked(&self) {
        assert_eq!(self.rows("PRAGMA integrity_check"), ["[Text(\"ok\")]"]);
        assert_eq!(self.rows("PRAGMA foreign_key_check"), [""; 0]);
    }
}

async fn compare(bench: &mut Bench, follower: &mut Follower, queries: &[&str]) {
    follower.follow(bench).await;
    follower.checked();
    for sql in queries {
        let batch = bench.query(sql, 4 << 20).await.unwrap();
        let shown: Vec<String> = batch
            .rows
            .iter()
            .map(|row| {
                let values: Vec<Value> =
                    row.values.iter().map(|value| crate::sql_value::as_value_ref(value).try_into().unwrap()).collect();
                format!("{values:?}")
            })
            .collect();
        assert_eq!(follower.rows(sql), shown, "{sql}");
    }
}

#[test]
fn random_writes_come_out_the_same() {
    let seed = seed();
    run(async {
        let mut random = Random(seed | 1 << 40);
        let mut bench = Bench::new(Settings::default()).await;
        for sql in TABLES {
            bench.run(sql).await;
        }
        let mut follower = Follower::new(&TABLES);
        for _ in 0..300 {
            let statements: Vec<String> = (0..=random.below(3)).map(|_| random.statement()).collect();
            let texts: Vec<&str> = statements.iter().map(String::as_str).collect();
            let _ = bench.handle(execute("", &texts)).await;
            if random.below(30) == 0 {
                bench.settle().await;
                follower.follow(&mut bench).await;
            }
        }
        bench.settle().await;
        let queries = [
            "SELECT rowid, *, typeof(c) FROM r ORDER BY rowid",
            "SELECT *, typeof(v) FROM w ORDER BY k2, k1",
            "SELECT rowid, *, typeof(x) FROM n ORDER BY rowid",
            "SELECT rowid, * FROM log ORDER BY rowid",
        ];
        compare(&mut bench, &mut follower, &queries).await;
    });
}

#[test]
fn every_kind_of_table_is_written_exactly() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let tables = [
            "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE)",
            "CREATE TABLE shadowed (rowid TEXT, \"_rowid_\" TEXT, \"odd \"\"name\" REAL)",
            "CREATE TABLE gen (a INTEGER, b AS (a + 1), c AS (a * 2) STORED, d TEXT DEFAULT 'x')",
            "CREATE TABLE pair (a TEXT COLLATE NOCASE, b BLOB, c, PRIMARY KEY (b, a)) WITHOUT ROWID",
            "CREATE TABLE down (k INTEGER PRIMARY KEY DESC, v)",
            "CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT UNIQUE)",
            "CREATE TABLE child (p INTEGER REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, n INTEGER)",
            "CREATE TABLE audit (what)",
            "CREATE TRIGGER t AFTER DELETE ON child BEGIN INSERT INTO audit VALUES (old.n); END",
            "CREATE TABLE strict (i INTEGER, a ANY, r REAL) STRICT",
        ];
        for sql in tables {
            bench.run(sql).await;
        }
        let mut follower = Follower::new(&tables);
        let queries = [
            "SELECT * FROM auto ORDER BY id",
            "SELECT name, seq FROM sqlite_sequence",
            "SELECT oid, *, typeof(\"odd \"\"name\") FROM shadowed ORDER BY oid",
            "SELECT rowid, * FROM gen ORDER BY rowid",
            "SELECT * FROM pair ORDER BY b, a",
            "SELECT rowid, * FROM down ORDER BY rowid",
            "SELECT * FROM parent ORDER BY id",
            "SELECT rowid, * FROM child ORDER BY rowid",
            "SELECT rowid, * FROM audit ORDER BY rowid",
            "SELECT rowid, *, typeof(a), typeof(r) FROM strict ORDER BY rowid",
        ];
        for sql in [
            "INSERT INTO auto (u) VALUES ('a'), ('b'), ('c')",
            "DELETE FROM auto WHERE id = 3",
            // Takes a number for a row that is not inserted.
            "INSERT OR IGNORE INTO auto (u) VALUES ('a')",
            "INSERT INTO auto VALUES (100, 'd')",
            "UPDATE sqlite_sequence SET seq = 500 WHERE name = 'auto'",
            "REPLACE INTO auto VALUES (1, 'b')",
            "INSERT INTO shadowed VALUES ('a', 'b', 1), ('c', 'd', 2.5), (NULL, NULL, 'text')",
            "INSERT INTO shadowed (oid, rowid) VALUES (-7, 'negative')",
            "UPDATE shadowed SET oid = oid + 10 WHERE rowid = 'a'",
            "DELETE FROM shadowed WHERE \"odd \"\"name\" = 2.5",
            "INSERT INTO gen (a) VALUES (1), (2), (NULL)",
            "UPDATE gen SET a = a + 10, d = NULL WHERE b = 3",
            "INSERT INTO pair VALUES ('a', x'00', 1), ('b', x'00', 2), ('a', 'text', 3.0)",
            "UPDATE pair SET a = 'A' WHERE a = 'a' AND b = x'00'",
            "UPDATE pair SET b = x'ff', c = NULL WHERE a = 'b'",
            "DELETE FROM pair WHERE b = 'text'",
            "INSERT INTO down VALUES (5, 'five'), (3, 'three'), (4, 'four')",
            "UPDATE down SET k = 6 WHERE k = 5",
            "DELETE FROM down WHERE k = 3",
            "INSERT INTO parent VALUES (1, 'x'), (2, 'y'), (3, 'z')",
            "INSERT INTO child VALUES (1, 10), (1, 11), (2, 20), (NULL, 99)",
            "UPDATE parent SET id = id + 100",
            "DELETE FROM parent WHERE id = 101",
            "UPDATE child SET rowid = rowid + 1000",
            "INSERT INTO strict VALUES (1, '1', 1), (2, 2, 2.5), (NULL, x'01', 3)",
            "UPDATE strict SET a = i, r = i",
            "DELETE FROM auto",
            "DELETE FROM sqlite_sequence",
        ] {
            bench.run(sql).await;
            compare(&mut bench, &mut follower, &queries).await;
        }
    });
}

#[test]
fn a_record_that_does_not_fit_is_refused() {
    run(async {
        let mut bench = Bench::new(Settings::default()).await;
        let tables = ["CREATE TABLE t (a INTEGER PRIMARY KEY, b UNIQUE)"];
        bench.run(tables[0]).await;
        bench.run("INSERT INTO t VALUES (1, 'x'), (2, 'y')").await;
        let records = bench.wal(1, 0).await.unwrap().records;
        let spoiled = |sql: &str| {
            let follower = Follower::new(&tables);
            follower.connection.execute_batch(sql).unwrap();
            follower
        };
        let refused = |sql: &str, record: &WalRecord| {
            let error = spoiled(sql).apply(record).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Storage, "{error}");
            error.message
        };
        assert!(refused("INSERT INTO t VALUES (9, 'y')", &records[0]).contains("UNIQUE"));
        assert!(refused("DROP TABLE t", &records[0]).contains("no table t"));
        assert!(refused("ALTER TABLE t ADD COLUMN c", &records[0]).contains("columns"));
        bench.run("DELETE FROM t WHERE a = 2").await;
        let mut deletion = bench.wal(2, 0).await.unwrap().records.remove(0);
        deletion.lsn = 2;
        assert!(refused("SELECT 1", &deletion).contains("met 0 rows"));
    });
}
