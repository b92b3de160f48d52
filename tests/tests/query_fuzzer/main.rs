//! Random schemas, rows and statements on three shards and on one SQLite: both must say the same.
//!
//! `DOSQL_FUZZ_QUERIES`: how many statements, 2,000 unless set. `DOSQL_SEED` replays one database; `DOSQL_FIRST_SEED` begins
//! elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod compare;
mod expression;
mod query;
mod random;
mod schema;
mod select;
mod write;

use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use dosql_actors::host::actix::Client;
use dosql_tests::sharded::{Sharded, execute_in, open_session};

use compare::{Outcome, Verdict, also_right, answer_of, compare, run_plain, tell};
use query::Query;
use random::Random;
use schema::Schema;

const SHARDS: u32 = 3;
/// Statements on one database.
const STATEMENTS: usize = 200;
/// After how many failures no new database is begun.
const MAX_FAILURES: usize = 12;

/// What came of some statements.
#[derive(Default)]
struct Counts {
    compared: usize,
    /// Errors on both sides.
    failed_alike: usize,
    /// Reads that have no one right answer.
    open: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.compared += other.compared;
        self.failed_alike += other.failed_alike;
        self.open += other.open;
    }
}

#[test]
fn three_shards_answer_as_one_sqlite() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let wanted = variable("DOSQL_FUZZ_QUERIES").unwrap_or(2_000) as usize;
    let only = variable("DOSQL_SEED");
    let first = only.or(variable("DOSQL_FIRST_SEED")).unwrap_or(0);
    let seeds = if only.is_some() { 1 } else { wanted.div_ceil(STATEMENTS) as u64 };
    println!("databases of seeds {first} to {}", first + seeds - 1);
    let next = AtomicU64::new(first);
    let counts: Mutex<Counts> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failures.lock().unwrap().len() >= MAX_FAILURES {
                        break;
                    }
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    match runtime.block_on(database(seed)) {
                        Ok(counted) => *counts.lock().unwrap() += counted,
                        Err(failure) => failures.lock().unwrap().push(format!("DOSQL_SEED={seed}: {failure}")),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let Counts { compared, failed_alike, open } = counts.into_inner().unwrap();
    println!(
        "{compared} statements compared, {failed_alike} of them errors on both sides, {open} without one right answer"
    );
    assert!(failures.is_empty(), "{} databases differ:\n{}", failures.len(), failures.join("\n\n"));
    // A generator of nothing but errors, or of statements that may be answered anyhow, would prove nothing.
    assert!(compared > 0 && failed_alike * 4 < compared, "most statements fail");
    assert!(open * 100 <= compared.max(200), "too many statements have no one right answer");
}

/// Both sides of one database.
struct Pair {
    plain: rusqlite::Connection,
    client: Client,
    /// The session's token while a transaction is open.
    session: String,
    savepoints: usize,
    history: Vec<String>,
}

impl Pair {
    async fn both(&self, sql: &str) -> (Outcome, Outcome) {
        (run_plain(&self.plain, sql), execute_in(&self.client, &self.session, sql).await.map(answer_of))
    }

    /// Compares a statement.
    async fn run(&mut self, schema: &Schema, query: &Query, counts: &mut Counts) -> Result<(), String> {
        let (expected, got) = self.both(&query.sql).await;
        if query.writes {
            self.history.push(query.sql.clone());
        }
        counts.compared += 1;
        match compare(query, &expected, &got) {
            Verdict::Same => {}
            Verdict::FailedAlike => counts.failed_alike += 1,
            Verdict::Different if !query.writes && also_right(schema, &self.plain, query, &got) => counts.open += 1,
            Verdict::Different => return Err(tell(&self.history, &query.sql, &expected, &got)),
        }
        Ok(())
    }

    /// Compares all tables.
    async fn check_tables(&self, schema: &Schema, after: &str) -> Result<(), String> {
        for table in schema.tables.iter().filter(|table| !table.is_view) {
            let sql = format!("SELECT * FROM {}", table.name);
            let (expected, got) = self.both(&sql).await;
            let all = Query { sql: sql.clone(), ordered: false, loose: false, writes: false };
            if compare(&all, &expected, &got) != Verdict::Same {
                return Err(format!("after {after}\n{}", tell(&self.history, &sql, &expected, &got)));
            }
        }
        Ok(())
    }

    /// Perhaps begins, ends or marks a transaction; whether it did.
    async fn control(&mut self, random: &mut Random) -> Result<bool, String> {
        let marked = random.below(self.savepoints.max(1));
        let sql = match (self.session.is_empty(), random.below(100)) {
            (true, 0..=3) => {
                self.session = open_session(&self.client).await.map_err(|error| error.to_string())?;
                random.pick(&["BEGIN", "BEGIN IMMEDIATE"]).to_string()
            }
            (true, _) => return Ok(false),
            (false, 0..=7) => "COMMIT".to_owned(),
            (false, 8..=11) => "ROLLBACK".to_owned(),
            (false, 12..=23) => {
                self.savepoints += 1;
                format!("SAVEPOINT s{}", self.savepoints - 1)
            }
            (false, 24..=31) if self.savepoints > 0 => {
                self.savepoints = marked + 1;
                format!("ROLLBACK TO s{marked}")
            }
            (false, 32..=37) if self.savepoints > 0 => {
                self.savepoints = marked;
                format!("RELEASE s{marked}")
            }
            (false, _) => return Ok(false),
        };
        self.history.push(sql.clone());
        let (expected, got) = self.both(&sql).await;
        if matches!(sql.as_str(), "COMMIT" | "ROLLBACK") {
            self.session.clear();
            self.savepoints = 0;
        }
        let query = Query { sql, ordered: false, loose: false, writes: false };
        match compare(&query, &expected, &got) {
            Verdict::Same => Ok(true),
            _ => Err(tell(&self.history, &query.sql, &expected, &got)),
        }
    }
}

/// Goes through one database.
async fn database(seed: u64) -> Result<Counts, String> {
    let mut random = Random::new(seed);
    let schema = Schema::new(&mut random, &mut Random::new(!seed));
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    plain.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    let sharded = Sharded::new(SHARDS).unwrap();
    let client = sharded.client();
    let mut pair = Pair { plain, client, session: String::new(), savepoints: 0, history: Vec::new() };
    for sql in &schema.vschema {
        execute_in(&pair.client, "", sql).await.map_err(|error| format!("{sql}: {error}"))?;
        pair.history.push(sql.clone());
    }
    let mut setup: Vec<String> = schema.statements.clone();
    for table in schema.tables.iter().filter(|table| !table.is_view) {
        for _ in 0..1 + random.below(4) {
            let rows = 1 + random.below(8);
            setup.push(write::insert_rows(&mut random, table, rows));
        }
    }
    let mut counts = Counts::default();
    for sql in setup {
        let query = Query { sql, ordered: false, loose: false, writes: true };
        pair.run(&schema, &query, &mut Counts::default()).await?;
    }
    for number in 0..STATEMENTS {
        let query = match random.chance(25) {
            true => query::write(&mut random, &schema),
            false => query::query(&mut random, &schema),
        };
        pair.run(&schema, &query, &mut counts).await?;
        let controlled = pair.control(&mut random).await?;
        if query.writes || controlled || number + 1 == STATEMENTS {
            let after = pair.history.last().cloned().unwrap_or_default();
            pair.check_tables(&schema, &after).await?;
        }
    }
    Ok(counts)
}
