//! Random writes against a shard, and the log alone must rebuild its tables.

#![allow(clippy::disallowed_methods, reason = "the seed comes from outside")]

use std::collections::BTreeMap;

use dosql_proto::{Operation, Row, Value, WalRecord, shard_reply::Reply};
use prost::Message;

use super::{Bench, execute};
use crate::runtime::Settings;
use crate::test_world::run;

/// The tables that [`Random::statement`] writes to.
pub(super) const TABLES: [&str; 5] = [
    "CREATE TABLE r (a INTEGER PRIMARY KEY, b TEXT UNIQUE, c REAL)",
    "CREATE TABLE w (k1 TEXT, k2 INTEGER, v REAL, d AS (k2 + 1), e AS (k2 * 2) STORED, PRIMARY KEY (k2, k1)) WITHOUT ROWID",
    "CREATE TABLE n (x NUMERIC, y REFERENCES r ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE log (what)",
    "CREATE TRIGGER g AFTER UPDATE OF v ON w BEGIN INSERT INTO log VALUES (new.v); DELETE FROM log WHERE rowid < old.k2; END",
];

/// The seed that DOSQL_SEED names, or another one each time.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("DOSQL_SEED").map_or_else(|_| std::process::id().into(), |seed| seed.parse().unwrap());
    println!("DOSQL_SEED={seed}");
    seed
}

/// A generator good enough for tests (xorshift64*).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn value(&mut self) -> String {
        match self.below(6) {
            0 => "NULL".into(),
            1 => format!("{}.5", self.below(9)),
            2 => format!("'{}'", self.below(9)),
            3 => format!("'t{}'", self.below(9)),
            4 => format!("x'0{}'", self.below(9)),
            _ => self.below(9).to_string(),
        }
    }

    pub(super) fn statement(&mut self) -> String {
        let (a, b, k) = (self.value(), self.value(), self.below(12));
        let insert = self.pick(&["INSERT", "INSERT OR IGNORE", "REPLACE", "INSERT OR FAIL"]);
        let update = self.pick(&["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]);
        match self.below(14) {
            0 => format!("{insert} INTO r VALUES ({k}, {a}, {b})"),
            1 => format!("{insert} INTO r (b, c) VALUES ({a}, {b}), ({b}, {a})"),
            2 => {
                format!("INSERT INTO r VALUES ({k}, {a}, {b}) ON CONFLICT (a) DO UPDATE SET b = excluded.b, c = c + 1")
            }
            3 => format!("{update} r SET a = a + 1, b = {a} WHERE a % 3 = {}", k % 3),
            4 => format!("{update} r SET b = {a}, c = {b} WHERE a > {k}"),
            5 => format!("DELETE FROM r WHERE a = {k}"),
            6 => format!("{insert} INTO w VALUES ({a}, {k}, {b})"),
            7 => format!("{update} w SET k2 = k2 + 1, v = {a} WHERE k2 < {k}"),
            8 => format!("{update} w SET k1 = {a} WHERE k2 = {k}"),
            9 => format!("{insert} INTO n VALUES ({a}, (SELECT a FROM r LIMIT 1))"),
            10 => format!("{update} n SET rowid = rowid + 1, x = {a} WHERE rowid % 4 = {}", k % 4),
            11 => format!("{update} n SET y = NULL WHERE rowid = {k}"),
            12 if k == 0 => "DELETE FROM w".into(),
            12 => format!("DELETE FROM w WHERE k2 = {k}"),
            _ => format!("DELETE FROM n WHERE rowid > {}", k + 3),
        }
    }
}

/// Tables rebuilt from the log: rows by rowid, or by primary key where there is none.
#[derive(Default)]
struct Rebuilt(BTreeMap<String, BTreeMap<Vec<u8>, Row>>);

impl Rebuilt {
    fn apply(&mut self, record: &WalRecord) {
        for change in &record.changes {
            let table = &record.tables[change.table as usize];
            let key = |row: &Row, rowid: i64| -> Vec<u8> {
                if table.name == "w" {
                    let values = table.primary_key.iter().map(|at| row.values[*at as usize].clone());
                    Row { values: values.collect() }.encode_to_vec()
                } else {
                    rowid.to_be_bytes().to_vec()
                }
            };
            let rows = self.0.entry(table.name.clone()).or_default();
            if let Some(before) = &change.before {
                let found = rows.remove(&key(before, change.rowid));
                assert_eq!(found.as_ref(), Some(before), "before image of {change:?} in {table:?}");
            }
            if let Some(after) = &change.after {
                // A row of `r` moves with its INTEGER PRIMARY KEY.
                let rowid = match (change.operation(), table.name.as_str()) {
                    (Operation::Update, "r") => match after.values[0].kind {
                        Some(dosql_proto::value::Kind::Integer(rowid)) => rowid,
                        _ => panic!("{after:?}"),
                    },
                    _ => change.rowid,
                };
                let there = rows.insert(key(after, rowid), after.clone());
                assert_eq!(there, None, "after image of {change:?} in {table:?}");
            }
        }
    }
}

#[test]
fn the_log_rebuilds_the_tables() {
    let seed = seed();
    run(async {
        let mut random = Random(seed | 1 << 40);
        let mut bench = Bench::new(Settings::default()).await;
        for sql in TABLES {
            bench.run(sql).await;
        }
        let (mut done, mut failed) = (0, 0);
        for _ in 0..400 {
            let statements: Vec<String> = (0..=random.below(3)).map(|_| random.statement()).collect();
            let texts: Vec<&str> = statements.iter().map(String::as_str).collect();
            match bench.handle(execute("", &texts)).await {
                Ok(_) => done += 1,
                Err(error) => {
                    assert_eq!(error.code(), dosql_proto::ErrorCode::Constraint, "{texts:?}: {error}");
                    failed += 1;
                }
            }
            match random.below(20) {
                0 => {
                    bench.settle().await;
                    bench.restart().await;
                }
                1..5 => bench.settle().await,
                _ => {}
            }
        }
        assert!(done > 50 && failed > 20, "{done} requests done, {failed} failed");
        bench.settle().await;
        let mut rebuilt = Rebuilt::default();
        let mut after = 0;
        loop {
            let batch = bench.wal(after, 4096).await.unwrap();
            let Some(last) = batch.records.last() else { break };
            for record in &batch.records {
                assert_eq!(record.lsn, after + 1);
                after = record.lsn;
                rebuilt.apply(record);
            }
            assert_eq!(last.lsn, after);
        }
        for (table, columns) in [("r", "a, b, c"), ("w", "k1, k2, v, e"), ("n", "x, y"), ("log", "what")] {
            let batch = bench.query(&format!("SELECT {columns} FROM {table}"), 4 << 20).await.unwrap();
            let encoded = |rows: &mut dyn Iterator<Item = &Row>| {
                let mut rows: Vec<Vec<u8>> = rows.map(Message::encode_to_vec).collect();
                rows.sort();
                rows
            };
            let kept = rebuilt.0.remove(table).unwrap_or_default();
            assert_eq!(encoded(&mut kept.values()), encoded(&mut batch.rows.iter()), "{table}");
        }
        // Settled or not, what is there is what the log says: nothing else was kept.
        let reply = bench.ask(execute("", &["SELECT 1"])).await.unwrap();
        let Reply::Executed(executed) = reply else { panic!("{reply:?}") };
        assert_eq!((executed.lsn, &executed.results[0].rows[0].values[0]), (after, &Value::from(1)));
    });
}
