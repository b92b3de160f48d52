//! sqllogictest scripts on 1, 2, 4 and 16 shards, tables sharded by their first column: the project's own (`tests/slt`), and
//! SQLite's corpus where there is one. See docs/testing.md for the variables.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod database;
mod script;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use database::{Connection, Plain, Refused};
use dosql_tests::sharded::Sharded;
use script::{Outcome, Script};
use sqllogictest::{DefaultColumnType, Record};

/// Results of more values are hashed unless a file says otherwise.
const HASH_THRESHOLD: usize = 8;

const SHARD_COUNTS: [u32; 4] = [1, 2, 4, 16];

fn own_files() -> Vec<PathBuf> {
    files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/slt")), "slt")
}

/// The files below a directory, in order.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|known| known == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Where SQLite's corpus is: the directory that `DOSQL_SLT_DIR` names, or the archive unpacked.
fn corpus() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("DOSQL_SLT_DIR") {
        return Some(directory.into());
    }
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/sqllogictest-sample.tar.xz");
    if !archive.exists() {
        println!("SKIPPED: {} is missing and DOSQL_SLT_DIR is not set", archive.display());
        return None;
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sqllogictest-corpus");
    if !directory.exists() {
        let unpacking = directory.with_extension("unpacking");
        let _ = std::fs::remove_dir_all(&unpacking);
        std::fs::create_dir_all(&unpacking).unwrap();
        let status =
            std::process::Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&unpacking).status().unwrap();
        assert!(status.success(), "tar -xJf {}: {status}", archive.display());
        std::fs::rename(&unpacking, &directory).unwrap();
    }
    Some(directory)
}

/// Runs a script on a fresh node.
fn on_shards(
    script: Script,
    count: u32,
    refused: &Refused,
    hash_threshold: usize,
    wanted: impl Fn(usize, &Record<DefaultColumnType>) -> bool,
) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shards = Sharded::new(count).unwrap();
    let letters = script::letters();
    let make = || {
        let connection = Connection {
            client: shards.client(),
            letters: Arc::clone(&letters),
            refused: Arc::clone(refused),
            as_sqlites_runner: hash_threshold == HASH_THRESHOLD,
        };
        async move { Ok(connection) }
    };
    runtime.block_on(script::run(script, make, &letters, hash_threshold, wanted))
}

#[tokio::test]
async fn own_scripts_say_what_sqlite_says() {
    let update = std::env::var_os("DOSQL_UPDATE_SLT").is_some();
    for path in own_files() {
        let letters = script::letters();
        let plain = Arc::new(Mutex::new(Some(rusqlite::Connection::open_in_memory().unwrap())));
        let make = || {
            let connection = plain.lock().unwrap().take().unwrap();
            connection.execute_batch("PRAGMA foreign_keys = ON").unwrap();
            let letters = Arc::clone(&letters);
            async move { Ok(Plain { connection: Mutex::new(connection), letters }) }
        };
        let read = script::read(&path);
        if update {
            std::fs::write(&path, script::updated(read, make, &letters).await).unwrap();
            continue;
        }
        let outcome = script::run(read, make, &letters, 0, |_, _| true).await;
        assert!(outcome.failures.is_empty(), "{}:\n{}", path.display(), outcome.failures.join("\n"));
        assert!(outcome.records > 0, "{} holds no record", path.display());
    }
}

#[test]
fn own_scripts_on_any_number_of_shards() {
    let mut failures = Vec::new();
    let refused = Refused::default();
    for path in own_files() {
        for count in SHARD_COUNTS {
            let outcome = on_shards(script::read(&path), count, &refused, 0, |_, _| true);
            failures.extend(outcome.failures.iter().map(|failure| format!("{count} shards: {failure}")));
        }
    }
    tell_refused(&refused);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(refused.lock().unwrap().is_empty(), "statements were refused");
}

/// `DOSQL_SLT_QUERIES`: every how many-th query of a file is run; 1: all.
#[test]
fn the_corpus_on_any_number_of_shards() {
    let Some(directory) = corpus() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<usize>().unwrap());
    let every = number("DOSQL_SLT_QUERIES").unwrap_or(16);
    let counts = match std::env::var("DOSQL_SLT_SHARDS") {
        Ok(text) => text.split(',').map(|count| count.parse().unwrap()).collect(),
        Err(_) => SHARD_COUNTS.to_vec(),
    };
    let filter = std::env::var("DOSQL_SLT_FILES").unwrap_or_default();
    let paths: Vec<PathBuf> =
        files(&directory, "test").into_iter().filter(|path| path.display().to_string().contains(&filter)).collect();
    let began = Instant::now();
    let refused = Refused::default();
    // One run is one file on one number of shards. A share takes each file once, on the counts by turns.
    let runs: Vec<(usize, u32)> = match every {
        1 => paths.iter().enumerate().flat_map(|(file, _)| counts.iter().map(move |count| (file, *count))).collect(),
        _ => (0..paths.len()).map(|file| (file, counts[file % counts.len()])).collect(),
    };
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<u32, Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((file, count)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = &paths[*file];
                    let began = Instant::now();
                    let wanted = |place: usize, record: &Record<DefaultColumnType>| {
                        !matches!(record, Record::Query { .. }) || (place / 2) % every == file % every
                    };
                    let outcome = on_shards(script::read(path), *count, &refused, HASH_THRESHOLD, wanted);
                    if every == 1 {
                        let name = path.strip_prefix(&directory).unwrap_or(path).display();
                        println!(
                            "{name} on {count}: {} records, {} failures, {} ms",
                            outcome.records,
                            outcome.failures.len(),
                            began.elapsed().as_millis()
                        );
                    }
                    let mut done = done.lock().unwrap();
                    let sum = done.entry(*count).or_default();
                    sum.records += outcome.records;
                    sum.failures.extend(outcome.failures);
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    let mut failed = 0;
    for (count, outcome) in &done {
        println!("{count} shards: {} records, {} failures", outcome.records, outcome.failures.len());
        failed += outcome.failures.len();
        for failure in outcome.failures.iter().take(200) {
            println!("{failure}");
        }
    }
    tell_refused(&refused);
    println!("{} ms", began.elapsed().as_millis());
    assert!(!done.is_empty(), "{} holds no file that matches {filter:?}", directory.display());
    assert_eq!(failed, 0, "results differ from SQLite's");
    assert!(refused.lock().unwrap().is_empty(), "statements were refused");
}

/// Prints why statements were refused, how often, and an example of each.
fn tell_refused(refused: &Refused) {
    let mut reasons: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (sql, reason) in refused.lock().unwrap().iter() {
        reasons.entry(reason.clone()).or_insert((0, sql.clone())).0 += 1;
    }
    for (reason, (times, example)) in reasons {
        println!("refused {times} times: {reason}: {example}");
    }
}
