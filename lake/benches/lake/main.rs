//! What the lake's writer costs, as ratios of medians taken in one run: `cargo bench -p dosql-lake --bench lake [-- NAME...]`.
//!
//! Figures are CPU time, since what the writer shares its machine with is none of its doing. A goal that is missed makes the
//! program fail. `DOSQL_PYTHON` names the Python of the peers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark is no actor")]

mod measure;
mod memory;
mod peers;
mod rows;
mod straight;
mod writer;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use dosql_actors::Settings;
use dosql_proto::LakeAppend;
use measure::{Report, is_wanted, median, own_cpu, thread_cpu};
use rows::{COLUMNS, Changed, Deliveries, order, table};
use straight::Straight;
use writer::LakeWriter;

/// The server's, for both sides of each comparison but the peers in Python.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of each comparison; both sides take turns.
const ROUNDS: u64 = 5;
/// Rows of a round.
const ROWS: u64 = 200_000;
/// Rows that PyIceberg takes; it is given as many at a time as the lake takes into a flush.
const PEER_ROWS: u64 = 100_000;
/// Rows that both update.
const UPDATES: u64 = 20_000;
/// Rows of a small flush, and rows that are taken in by such flushes.
const SMALL_FLUSH: u64 = 1_000;
const SMALL_ROWS: u64 = 20_000;

fn main() {
    if memory::is_child() {
        return;
    }
    let mut report = Report { met: true };
    let scratch = tempfile::tempdir().unwrap();
    if is_wanted("ingest") {
        ingest(scratch.path(), &mut report);
    }
    if is_wanted("compact") {
        compact(scratch.path(), &mut report);
    }
    if is_wanted("memory") {
        memory::measure(scratch.path(), &mut report);
    }
    std::process::exit(i32::from(!report.met));
}

/// CPU seconds of some work.
fn cpu_of(work: impl FnOnce()) -> f64 {
    let begin = own_cpu();
    work();
    own_cpu() - begin
}

/// CPU seconds that it takes `take` to take in these rows and `finish` to be done with them: of all threads, but for making the
/// deliveries, each of which is made right before it is taken in, as it arrives in a server.
fn cpu_of_rows(
    deliveries: &mut Deliveries,
    rows: &mut dyn Iterator<Item = Changed>,
    take: &mut dyn FnMut(LakeAppend),
    finish: impl FnOnce(),
) -> f64 {
    let mut making = 0.0;
    let begin = own_cpu();
    loop {
        let begin = thread_cpu();
        let append = deliveries.next(rows);
        making += thread_cpu() - begin;
        match append {
            Some(append) => take(append),
            None => break,
        }
    }
    finish();
    own_cpu() - begin - making
}

fn inserts(ids: Range<u64>) -> impl Iterator<Item = Changed> {
    ids.map(|id| (id, None, order(id, 0)))
}

fn updates(ids: impl Iterator<Item = u64>) -> impl Iterator<Item = Changed> {
    ids.map(|id| (id, Some(order(id, 0)), order(id, 1)))
}

fn new_deliveries() -> Deliveries {
    Deliveries::new(table("orders", &COLUMNS))
}

/// CPU seconds of arrow-rs alone.
fn write_straight(rows: &mut dyn Iterator<Item = Changed>, path: &Path) -> f64 {
    let straight = RefCell::new(Straight::create(path));
    let mut take = |append| straight.borrow_mut().append(append);
    cpu_of_rows(&mut new_deliveries(), rows, &mut take, || straight.borrow_mut().finish())
}

/// From delivered changes to committed rows, beside arrow-rs alone and PyIceberg. In microseconds of CPU time a row.
fn ingest(scratch: &Path, report: &mut Report) {
    let (mut mirror, mut both, mut update, mut straight) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The first round warms everything up.
    for round in 0..=ROUNDS {
        let alone = write_straight(&mut inserts(0..ROWS), &scratch.join("straight.parquet")) / ROWS as f64 * 1e6;
        let [(mirrored, updated), (logged, _)] = [false, true].map(|has_log| {
            let lake = LakeWriter::start(&scratch.join(format!("ingest-{round}-{has_log}")), Settings::default());
            if !has_log {
                lake.mirror_only("orders");
            }
            let mut deliveries = new_deliveries();
            let mut taken = |rows: &mut dyn Iterator<Item = Changed>, number: u64| {
                cpu_of_rows(&mut deliveries, rows, &mut |append| lake.append(append), || lake.flush()) / number as f64
                    * 1e6
            };
            let inserted = taken(&mut inserts(0..ROWS), ROWS);
            let ids = (0..UPDATES).map(|number| number * (ROWS / UPDATES));
            (inserted, taken(&mut updates(ids), UPDATES))
        });
        if round > 0 {
            straight.push(alone);
            mirror.push(mirrored);
            both.push(logged);
            update.push(updated);
        }
    }
    let ratio = |ours: &[f64]| median(straight.iter().zip(ours).map(|(alone, ours)| alone / ours).collect());
    let (to_mirror, to_both) = (ratio(&mirror), ratio(&both));
    let (mirror, both, update) = (median(mirror), median(both), median(update));
    println!(
        "ingest, us of CPU a row: arrow-rs alone {:.2}, mirror {mirror:.2}, mirror and change log {both:.2} ({to_both:.2}x), updates {update:.2}",
        median(straight)
    );
    report.at_least("rows to the mirror / the same rows by arrow-rs alone", to_mirror, 0.5, "x");

    let (appended, changed) = (scratch.join("rows.parquet"), scratch.join("updates.parquet"));
    write_straight(&mut inserts(0..PEER_ROWS), &appended);
    write_straight(&mut updates((0..UPDATES).map(|number| number * (PEER_ROWS / UPDATES))), &changed);
    let flush = Settings::default().lake_event_threshold;
    let flush_text = flush.to_string();
    let arguments: [&OsStr; 5] =
        ["pyiceberg".as_ref(), scratch.as_ref(), appended.as_ref(), changed.as_ref(), flush_text.as_ref()];
    let taken = peers::run(&arguments);
    let peer = |what: &str| median(taken[what].clone()) / flush as f64 * 1e6;
    let (convert, append, upsert) = (peer("convert"), peer("append"), peer("upsert"));
    println!(
        "PyIceberg, us of CPU a row: append {append:.2} and {convert:.2} to make columns of rows, upsert {upsert:.2}"
    );
    report.at_least("rows to the mirror / PyIceberg's append, columns given", append / mirror, 5.0, "x");
    report.at_least("updates to the mirror / PyIceberg's upsert, columns given", upsert / update, 20.0, "x");
    let (ours, theirs) = small_flushes(scratch);
    println!(
        "mirror / PyIceberg's append, both making columns of rows: {:.2}x at {flush} rows a flush; at {SMALL_FLUSH} {:.2}x ({theirs:.2} us of CPU a row over {ours:.2})",
        (append + convert) / mirror,
        theirs / ours
    );
}

/// Rows to the mirror in small flushes, and PyIceberg's appends of as many, columns made of rows. In microseconds of CPU time a row.
fn small_flushes(scratch: &Path) -> (f64, f64) {
    let settings = Settings { lake_event_threshold: SMALL_FLUSH, ..Settings::default() };
    let lake = LakeWriter::start(&scratch.join("ingest-small"), settings);
    lake.mirror_only("orders");
    let rows = &mut inserts(0..SMALL_ROWS);
    let ours = cpu_of_rows(&mut new_deliveries(), rows, &mut |append| lake.append(append), || lake.flush());
    let (directory, file) = (scratch.join("small"), scratch.join("small.parquet"));
    write_straight(&mut inserts(0..SMALL_ROWS), &file);
    let flush = SMALL_FLUSH.to_string();
    let taken = peers::run(&["pyiceberg".as_ref(), directory.as_ref(), file.as_ref(), "-".as_ref(), flush.as_ref()]);
    let peer = |what: &str| median(taken[what].clone()) / SMALL_FLUSH as f64;
    (ours / SMALL_ROWS as f64 * 1e6, (peer("append") + peer("convert")) * 1e6)
}

/// One step of compaction, beside DuckDB reading the same files and writing one. In microseconds of CPU time a row.
fn compact(scratch: &Path, report: &mut Report) {
    let mut taken: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut peer: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let lake = LakeWriter::start(&scratch.join(format!("compact-{round}")), Settings::default());
        let (mut deliveries, mut rows) = (new_deliveries(), inserts(0..ROWS));
        while let Some(append) = deliveries.next(&mut rows) {
            lake.append(append);
        }
        lake.flush();
        for (place, name) in ["orders", "orders__changes"].into_iter().enumerate() {
            let files = lake.data_files(name);
            let output = scratch.join("duckdb.parquet");
            let mut arguments: Vec<&OsStr> = vec!["duckdb".as_ref(), output.as_ref(), "3".as_ref()];
            arguments.extend(files.iter().map(|file| file.as_os_str()));
            peer[place].push(median(peers::run(&arguments)["rewrite"].clone()) / ROWS as f64 * 1e6);
            taken[place].push(
                cpu_of(|| {
                    let compaction = lake.compact(name).unwrap();
                    assert_eq!((compaction.files_before, compaction.files_after), (files.len() as u64, 1));
                }) / ROWS as f64
                    * 1e6,
            );
        }
    }
    for ((name, ours), peers) in ["the mirror", "the change log"].into_iter().zip(taken).zip(peer) {
        let ratio = median(peers.iter().zip(&ours).map(|(peer, ours)| peer / ours).collect());
        println!("compaction of {name}, us of CPU a row: {:.2}, DuckDB {:.2}", median(ours), median(peers));
        report.at_least(&format!("compaction of {name} / DuckDB rewriting the same files"), ratio, 1.0, "x");
    }
}
