//! Random schemas, rows and statements on three shards and on one SQLite: both must say the same.
//!
//! `DOSQL_FUZZ_QUERIES`: how many statements, 2,000 unless set. `DOSQL_SEED` replays one database; `DOSQL_FIRST_SEED` begins
//! elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod query;
mod random;
mod schema;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dosql_actors::sql_value;
use dosql_proto::value::Kind;
use dosql_proto::{Error, ErrorCode, Row, Value};
use dosql_tests::sharded::{Sharded, execute};

use query::Query;
use random::Random;
use schema::Schema;

const SHARDS: u32 = 3;
/// Statements on one database.
const STATEMENTS: usize = 200;
/// After how many failures no new database is begun.
const MAX_FAILURES: usize = 12;

#[test]
fn three_shards_answer_as_one_sqlite() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let wanted = variable("DOSQL_FUZZ_QUERIES").unwrap_or(2_000) as usize;
    let only = variable("DOSQL_SEED");
    let first = only.or(variable("DOSQL_FIRST_SEED")).unwrap_or(0);
    let seeds = if only.is_some() { 1 } else { wanted.div_ceil(STATEMENTS) as u64 };
    println!("databases of seeds {first} to {}", first + seeds - 1);
    let next = AtomicU64::new(first);
    let compared = AtomicUsize::new(0);
    let failed_alike = AtomicUsize::new(0);
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
                        Ok((agreed, errors)) => {
                            compared.fetch_add(agreed, Ordering::Relaxed);
                            failed_alike.fetch_add(errors, Ordering::Relaxed);
                        }
                        Err(failure) => failures.lock().unwrap().push(format!("DOSQL_SEED={seed}: {failure}")),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!(
        "{} statements compared, {} of them errors on both sides",
        compared.load(Ordering::Relaxed),
        failed_alike.load(Ordering::Relaxed)
    );
    assert!(failures.is_empty(), "{} databases differ:\n{}", failures.len(), failures.join("\n\n"));
    // A generator of nothing but errors would prove nothing.
    let compared = compared.into_inner();
    assert!(compared > 0 && failed_alike.into_inner() * 4 < compared, "most statements fail");
}

/// Goes through one database. How many statements were compared, and how many failed on both sides alike.
async fn database(seed: u64) -> Result<(usize, usize), String> {
    let mut random = Random::new(seed);
    let schema = Schema::new(&mut random, &mut Random::new(!seed));
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    plain.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    let sharded = Sharded::new(SHARDS).unwrap();
    let client = sharded.client();
    let mut history = Vec::new();
    for sql in &schema.vschema {
        execute(&client, sql).await.map_err(|error| format!("{sql}: {error}"))?;
        history.push(sql.clone());
    }
    let mut errors = 0;
    let mut setup: Vec<String> = schema.statements.clone();
    for table in schema.tables.iter().filter(|table| !table.is_view) {
        for _ in 0..1 + random.below(4) {
            let rows = 1 + random.below(8);
            setup.push(query::insert_rows(&mut random, table, rows));
        }
    }
    for sql in setup {
        let expected = run_plain(&plain, &sql);
        let got = execute(&client, &sql).await.map(|result| (result.rows, result.rows_affected));
        history.push(sql.clone());
        match (expected, got) {
            (Ok(_), Ok(_)) => {}
            (Err(expected), Err(got)) if expected.code() == got.code() => {}
            (expected, got) => return Err(tell(&history, &sql, &expected, &got)),
        }
    }
    for number in 0..STATEMENTS {
        let query = match random.chance(25) {
            true => query::write(&mut random, &schema),
            false => query::query(&mut random, &schema),
        };
        let expected = run_plain(&plain, &query.sql);
        let got = execute(&client, &query.sql).await.map(|result| (result.rows, result.rows_affected));
        if query.writes {
            history.push(query.sql.clone());
        }
        match (&expected, &got) {
            (Ok((expected_rows, changed)), Ok((rows, changed_too))) => {
                let counted = !query.writes || changed == changed_too;
                if !counted || !same(&query, expected_rows, rows) {
                    return Err(tell(&history, &query.sql, &expected, &got));
                }
            }
            (Err(one), Err(other)) if one.code() == other.code() => errors += 1,
            // The two sides need not agree on which result is just too large for one reply.
            (Err(error), _) | (_, Err(error)) if error.code() == ErrorCode::TooLarge && !query.writes => {}
            _ => return Err(tell(&history, &query.sql, &expected, &got)),
        }
        if query.writes || number + 1 == STATEMENTS {
            for table in schema.tables.iter().filter(|table| !table.is_view) {
                let sql = format!("SELECT * FROM {}", table.name);
                let all = Query { sql: sql.clone(), ordered: false, loose: false, writes: false };
                let expected = run_plain(&plain, &sql);
                let got = execute(&client, &sql).await.map(|result| (result.rows, 0));
                match (&expected, &got) {
                    (Ok((one, _)), Ok((other, _))) if same(&all, one, other) => {}
                    _ => return Err(format!("after {}\n{}", query.sql, tell(&history, &sql, &expected, &got))),
                }
            }
        }
    }
    Ok((STATEMENTS, errors))
}

type Outcome = Result<(Vec<Row>, u64), Error>;

fn run_plain(plain: &rusqlite::Connection, sql: &str) -> Outcome {
    let mut statement = plain.prepare(sql).map_err(sql_value::sql_error)?;
    let collected = sql_value::run(&mut statement, &[], 4 << 20)?;
    drop(statement);
    Ok((collected.rows, plain.changes()))
}

fn same(query: &Query, one: &[Row], other: &[Row]) -> bool {
    if query.ordered {
        // Values that compare equal are in no order among themselves.
        let keys = |rows: &[Row]| -> Vec<String> { rows.iter().map(|row| text_of(row, true)).collect() };
        if keys(one) != keys(other) {
            return false;
        }
    }
    let sorted = |rows: &[Row]| {
        let mut texts: Vec<String> = rows.iter().map(|row| text_of(row, query.loose)).collect();
        texts.sort();
        texts
    };
    sorted(one) == sorted(other)
}

/// A row as text; where `loose`, values that may compare equal look alike.
fn text_of(row: &Row, loose: bool) -> String {
    let values: Vec<String> = row.values.iter().map(|value| value_text(value, loose)).collect();
    values.join("|")
}

fn value_text(value: &Value, loose: bool) -> String {
    match &value.kind {
        Some(Kind::Integer(integer)) if loose => format!("{:?}", *integer as f64),
        Some(Kind::Real(real)) if loose => format!("{real:?}"),
        Some(Kind::Text(text)) if loose => format!("'{}'", text.trim_end().to_ascii_lowercase()),
        kind => format!("{kind:?}"),
    }
}

fn tell(history: &[String], sql: &str, expected: &Outcome, got: &Outcome) -> String {
    let show = |outcome: &Outcome| match outcome {
        Ok((rows, changed)) => {
            let mut texts: Vec<String> = rows.iter().take(40).map(|row| text_of(row, false)).collect();
            texts.sort();
            format!("{} rows, {changed} changed\n  {}", rows.len(), texts.join("\n  "))
        }
        Err(error) => error.to_string(),
    };
    format!("{sql}\none SQLite: {}\nsharded: {}\nafter:\n  {}", show(expected), show(got), history.join(";\n  "))
}
