//! The memory of a lake writer whose table has ten million rows.
//!
//! It is measured in a process of its own, which does nothing else: what it holds at its peak is what the lake takes.

use std::path::Path;
use std::process::Command;

use dosql_actors::Settings;
use dosql_proto::{Row, Value};

use crate::measure::{Report, memory};
use crate::rows::{Changed, Deliveries, scattered, table};
use crate::writer::LakeWriter;

const ROWS: u64 = 10_000_000;
/// Updates of rows all over the table.
const UPDATES: u64 = 200_000;
/// Names the directory that such a process works in.
const CHILD: &str = "DOSQL_BENCH_MEMORY_IN";

fn settings() -> Settings {
    Settings { lake_event_threshold: u64::MAX, ..Settings::default() }
}

fn row(id: u64, version: u64) -> Row {
    let chance = scattered(id ^ version << 48);
    let values: [Value; 3] =
        [id.cast_signed().into(), (chance >> 1).cast_signed().into(), format!("row {id} of many").into()];
    values.into_iter().collect()
}

/// Does the work of the measured process, if this is it.
pub(crate) fn is_child() -> bool {
    let Some(directory) = std::env::var_os(CHILD) else { return false };
    let lake = LakeWriter::start(Path::new(&directory), settings());
    let mut deliveries = Deliveries::new(table("many", &[("id", "INTEGER"), ("n", "INTEGER"), ("t", "TEXT")]));
    let mut deliver = |rows: &mut dyn Iterator<Item = Changed>| {
        while let Some(append) = deliveries.next(rows) {
            lake.append(append);
        }
    };
    let started = memory("self", "VmHWM:");
    deliver(&mut (0..ROWS).map(|id| (id, None, row(id, 0))));
    lake.flush();
    let filled = memory("self", "VmHWM:");
    let ids = (0..UPDATES).map(|number| number * (ROWS / UPDATES) + number % 7);
    deliver(&mut ids.map(|id| (id, Some(row(id, 0)), row(id, 1))));
    lake.flush();
    println!("{started} {filled} {}", memory("self", "VmHWM:"));
    true
}

/// Fills a table, updates it and looks at the peak of the resident memory.
pub(crate) fn measure(scratch: &Path, report: &mut Report) {
    let program = std::env::current_exe().unwrap();
    let done = Command::new(program).env(CHILD, scratch.join("memory")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8(done.stdout).unwrap();
    let peaks: Vec<f64> = said.split_whitespace().map(|bytes| bytes.parse::<f64>().unwrap()).collect();
    let buffer = settings().lake_max_buffer_size as f64;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "memory at its peak: {:.1} MiB before the first row, {:.1} MiB with {ROWS} rows, {:.1} MiB after {UPDATES} updates",
        mib(peaks[0]),
        mib(peaks[1]),
        mib(peaks[2])
    );
    report.at_most("memory of a table of 10 million rows / DOLAKE_MAX_BUFFER_SIZE", peaks[2] / buffer, 2.0, "x");
}
