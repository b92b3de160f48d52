//! What one SQLite says, and whether the shards say the same.

use dosql_actors::sql_value::{self, Param};
use dosql_proto::value::Kind;
use dosql_proto::{Error, ErrorCode, Row, StatementResult, Value};

use super::query::Query;
use super::random::Random;
use super::schema::Schema;

/// How many other orders of the rows are tried before an answer counts as wrong.
const ORDERS: u64 = 40;

pub(crate) struct Answer {
    columns: Vec<String>,
    rows: Vec<Row>,
    changed: u64,
}

pub(crate) type Outcome = Result<Answer, Error>;

/// How two outcomes compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Same,
    /// Both failed, with the same code.
    FailedAlike,
    Different,
}

/// What one SQLite answers.
pub(crate) fn run_plain(plain: &rusqlite::Connection, sql: &str) -> Outcome {
    let mut statement = plain.prepare(sql).map_err(sql_value::sql_error)?;
    let before = plain.total_changes();
    let collected = sql_value::run(&mut statement, &[], 4 << 20)?;
    drop(statement);
    let changed = if plain.total_changes() == before { 0 } else { plain.changes() };
    let columns = collected.columns.into_iter().map(|column| column.name).collect();
    Ok(Answer { columns, rows: collected.rows, changed })
}

/// What the shards answered.
pub(crate) fn answer_of(result: StatementResult) -> Answer {
    let columns = result.columns.into_iter().map(|column| column.name).collect();
    Answer { columns, rows: result.rows, changed: result.rows_affected }
}

pub(crate) fn compare(query: &Query, expected: &Outcome, got: &Outcome) -> Verdict {
    match (expected, got) {
        (Ok(one), Ok(other)) => {
            let counted = !query.writes || one.changed == other.changed;
            let named = one.columns == other.columns;
            if counted && named && same(query, &one.rows, &other.rows) { Verdict::Same } else { Verdict::Different }
        }
        (Err(one), Err(other)) if one.code() == other.code() => Verdict::FailedAlike,
        // The two sides need not agree on which result is just too large for one reply.
        (Err(error), _) | (_, Err(error)) if error.code() == ErrorCode::TooLarge && !query.writes => Verdict::Same,
        _ => Verdict::Different,
    }
}

/// Whether a query has no one right answer: one SQLite gives the shards' answer too when it has the same rows in another order
/// and no indexes.
pub(crate) fn also_right(schema: &Schema, plain: &rusqlite::Connection, query: &Query, got: &Outcome) -> bool {
    (0..ORDERS).any(|order| {
        let copy = shuffled(schema, plain, &mut Random::new(order));
        compare(query, &run_plain(&copy, &query.sql), got) != Verdict::Different
    })
}

fn shuffled(schema: &Schema, plain: &rusqlite::Connection, random: &mut Random) -> rusqlite::Connection {
    let copy = rusqlite::Connection::open_in_memory().unwrap();
    for table in schema.tables.iter().filter(|table| !table.is_view) {
        copy.execute_batch(&table.bare()).unwrap();
        let mut rows = run_plain(plain, &format!("SELECT * FROM {}", table.name)).unwrap().rows;
        let places = vec!["?"; table.columns.len()].join(", ");
        let mut insert = copy.prepare(&format!("INSERT INTO {} VALUES ({places})", table.name)).unwrap();
        while !rows.is_empty() {
            let row = rows.swap_remove(random.below(rows.len()));
            insert.execute(rusqlite::params_from_iter(row.values.iter().map(Param))).unwrap();
        }
    }
    for sql in schema.statements.iter().filter(|sql| sql.starts_with("CREATE VIEW")) {
        copy.execute_batch(sql).unwrap();
    }
    copy
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

/// Says how they differ.
pub(crate) fn tell(history: &[String], sql: &str, expected: &Outcome, got: &Outcome) -> String {
    let show = |outcome: &Outcome| match outcome {
        Ok(answer) => {
            let mut texts: Vec<String> = answer.rows.iter().take(40).map(|row| text_of(row, false)).collect();
            texts.sort();
            format!(
                "{:?}, {} rows, {} changed\n  {}",
                answer.columns,
                answer.rows.len(),
                answer.changed,
                texts.join("\n  ")
            )
        }
        Err(error) => error.to_string(),
    };
    format!("{sql}\none SQLite: {}\nsharded: {}\nafter:\n  {}", show(expected), show(got), history.join(";\n  "))
}
