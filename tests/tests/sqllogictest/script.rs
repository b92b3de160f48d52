//! Scripts in SQLite's dialect of the format, which differs from the crate's in three things: a condition may have a comment
//! behind it, `halt` obeys conditions, and a result has one value a line whatever its width.

use std::path::Path;
use std::sync::{Arc, Mutex};

use sqllogictest::{
    AsyncDB, DefaultColumnType, MakeConnection, Normalizer, QueryExpect, Record, RecordOutput, Runner,
    default_column_validator, update_record_with_output,
};

use super::database::Letters;

pub(crate) type Script = Vec<Record<DefaultColumnType>>;

/// Reads a script.
pub(crate) fn read(path: &Path) -> Script {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut kept = String::with_capacity(text.len());
    // Whether the conditions before a line keep SQLite from it.
    let mut excluded = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        match words.as_slice() {
            [condition @ ("skipif" | "onlyif"), engine] => {
                excluded |= (*condition == "skipif") == (*engine == "sqlite");
                kept.push_str(&format!("{condition} {engine}"));
            }
            ["halt"] if excluded => {
                // Its conditions must not reach the next record.
                while let Some(last) = kept.trim_end().rsplit('\n').next().filter(|line| line.starts_with("onlyif")) {
                    kept.truncate(kept.trim_end().len() - last.len());
                }
                excluded = false;
            }
            ["halt"] => break,
            _ => {
                excluded = false;
                kept.push_str(line);
            }
        }
        kept.push('\n');
    }
    sqllogictest::parse_with_name(&kept, path.display().to_string())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One value a line.
fn value_wise(_: Normalizer, actual: &[Vec<String>], expected: &[String]) -> bool {
    actual.iter().flatten().eq(expected)
}

#[allow(clippy::ptr_arg, reason = "the runner asks for this type")]
fn as_it_is(text: &String) -> String {
    text.clone()
}

/// What came of a script.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) records: usize,
    pub(crate) failures: Vec<String>,
}

/// Runs the records that `wanted` takes (by their place) on a database.
pub(crate) async fn run<D, M>(
    script: Script,
    make: M,
    letters: &Letters,
    hash_threshold: usize,
    wanted: impl Fn(usize, &Record<DefaultColumnType>) -> bool,
) -> Outcome
where
    D: AsyncDB<ColumnType = DefaultColumnType>,
    M: MakeConnection<Conn = D>,
{
    let mut runner = Runner::new(make);
    runner.with_validator(value_wise);
    runner.with_normalizer(as_it_is);
    runner.with_hash_threshold(hash_threshold);
    let mut outcome = Outcome::default();
    for (place, record) in script.into_iter().enumerate() {
        if !wanted(place, &record) {
            continue;
        }
        note_letters(&record, letters);
        match runner.run_async(record).await {
            Ok(RecordOutput::Query { .. } | RecordOutput::Statement { .. }) => outcome.records += 1,
            Ok(_) => {}
            Err(error) => {
                outcome.records += 1;
                outcome.failures.push(error.display(false).to_string());
            }
        }
    }
    outcome
}

fn note_letters(record: &Record<DefaultColumnType>, letters: &Letters) {
    if let Record::Query { expected: QueryExpect::Results { types, .. }, .. } = record {
        letters.lock().unwrap().clone_from(types);
    }
}

/// The script with the results that a database gives.
pub(crate) async fn updated<D, M>(script: Script, make: M, letters: &Letters) -> String
where
    D: AsyncDB<ColumnType = DefaultColumnType>,
    M: MakeConnection<Conn = D>,
{
    let mut runner = Runner::new(make);
    let mut text = Vec::new();
    for record in script {
        note_letters(&record, letters);
        let output = runner.apply_record(record.clone()).await;
        let new = update_record_with_output(&record, &output, "\n", value_wise, as_it_is, default_column_validator);
        new.unwrap_or(record).unparse(&mut text).unwrap();
        text.push(b'\n');
    }
    String::from_utf8(text).unwrap()
}

/// Letters for a database to share with its runner.
pub(crate) fn letters() -> Letters {
    Arc::new(Mutex::new(Vec::new()))
}
