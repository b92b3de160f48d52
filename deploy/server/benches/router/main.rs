//! What the router costs, as ratios of medians taken in one run: `cargo bench --bench router [-- NAME...]`.
//!
//! CPU time is that of the server's process and, where a client's is named, of this one. A goal that is missed makes the
//! program fail.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

mod flights;
#[path = "../../../../lake/benches/lake/measure.rs"]
#[allow(dead_code, reason = "each benchmark measures what it is about")]
mod measure;
#[allow(dead_code, reason = "each benchmark asks some of it")]
mod process;

use std::path::Path;

use dosql_proto::{QueryOptions, QueryStats, Value};
use futures_util::StreamExt as _;
use futures_util::stream;
use measure::{Report, is_wanted, median, own_cpu};
use process::Server;
use rusqlite::Connection;

/// Rounds of each comparison; both sides take turns.
const ROUNDS: usize = 9;
/// Calls in a round of point reads.
const CALLS: usize = 4_000;
/// Rows that point reads choose from.
const ROWS: i64 = 20_000;
/// The memory that a statement may have in the join's benchmark, in MiB.
const JOIN_MEMORY_MIB: u64 = 16;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut report = Report { met: true };
    runtime.block_on(async {
        let scratch = tempfile::tempdir().unwrap();
        if is_wanted("point") {
            point_read(scratch.path(), &mut report).await;
        }
        if is_wanted("plan") {
            planning(scratch.path(), &mut report).await;
        }
        if is_wanted("aggregate") {
            aggregate(scratch.path(), &mut report).await;
        }
        if is_wanted("join") {
            join(scratch.path(), &mut report).await;
        }
    });
    std::process::exit(i32::from(!report.met));
}

fn profiled() -> QueryOptions {
    QueryOptions { profile: true, ..QueryOptions::default() }
}

/// A point read through the router, beside an empty call and the same statement straight on SQLite.
async fn point_read(scratch: &Path, report: &mut Report) {
    let vschema = scratch.join("point.json");
    std::fs::write(&vschema, r#"{"tables": {"items": {"type": "sharded", "column": "id"}}}"#).unwrap();
    let server =
        Server::start(&scratch.join("point"), &["--shards", "4", "--vschema", vschema.to_str().unwrap()], &[]).await;
    let make = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL)";
    let fill = format!(
        "INSERT INTO items WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         SELECT i, 'item ' || i, i * 0.5 FROM n"
    );
    let direct = Connection::open(scratch.join("point.sqlite")).unwrap();
    direct.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    for sql in [make, &fill] {
        server.execute(sql, &[], QueryOptions::default()).await;
        direct.execute_batch(sql).unwrap();
    }
    server.idle().await;
    const READ: &str = "SELECT name, price FROM items WHERE id = ?";
    let mut prepared = direct.prepare(READ).unwrap();
    let key = |call: usize| (call as i64 * 7_919) % ROWS + 1;
    for in_flight in [1, 16, 64] {
        let (mut routed, mut empty, mut straight) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let cpu = || own_cpu() + server.cpu();
            let begin = cpu();
            stream::iter(0..CALLS)
                .for_each_concurrent(in_flight, |call| {
                    let server = &server;
                    async move {
                        let result = server.execute(READ, &[Value::from(key(call))], QueryOptions::default()).await;
                        assert_eq!(result.rows.len(), 1);
                    }
                })
                .await;
            let middle = cpu();
            stream::iter(0..CALLS).for_each_concurrent(in_flight, |_| server.empty_call()).await;
            let end = cpu();
            let begin_straight = own_cpu();
            // Often enough for a clock that ticks a hundred times a second.
            for call in 0..CALLS * 25 {
                let name: String = prepared.query_row([key(call)], |row| row.get(0)).unwrap();
                assert!(name.starts_with("item"));
            }
            let straight_cpu = own_cpu() - begin_straight;
            // The first round warms everything up.
            if round > 0 {
                routed.push((middle - begin) / CALLS as f64 * 1e6);
                empty.push((end - middle) / CALLS as f64 * 1e6);
                straight.push(straight_cpu / (CALLS * 25) as f64 * 1e6);
            }
        }
        let ratio = median((0..ROUNDS).map(|round| routed[round] / (empty[round] + straight[round])).collect());
        println!(
            "point read, {in_flight} in flight: routed {:.1} us, empty call {:.1} us, straight {:.2} us of CPU",
            median(routed),
            median(empty),
            median(straight)
        );
        report.at_most(&format!("routed point read / (straight + empty call), {in_flight} in flight"), ratio, 1.5, "x");
    }
}

/// What planning takes, as the router itself measures it.
async fn planning(scratch: &Path, report: &mut Report) {
    let server = Server::start(&scratch.join("plan"), &["--shards", "4", "--auto-shard", "first-column"], &[]).await;
    for table in 0..10 {
        let sql = format!("CREATE TABLE t{table} (id INTEGER PRIMARY KEY, parent INT, value TEXT)");
        server.execute(&sql, &[], QueryOptions::default()).await;
    }
    let stats = async |sql: &str| -> QueryStats { server.execute(sql, &[], profiled()).await.stats.unwrap() };
    let mut cached = Vec::new();
    for call in 0..1_000 {
        let one = stats(&format!("SELECT value FROM t0 WHERE id = {call} AND parent > {}", 10_000 + call % 7)).await;
        if call > 0 {
            assert!(one.plan_cached, "the plan of a statement that differs in its literals alone was not at hand");
            cached.push(one.planning_ns as f64 / 1e3);
        }
    }
    report.at_most("planning a cached query", median(cached), 5.0, "us");
    let mut uncached = Vec::new();
    for call in 0..200 {
        let tables: Vec<String> = (0..10).map(|table| format!("t{table} AS a{call}_{table}")).collect();
        let joined: Vec<String> =
            (1..10).map(|table| format!("a{call}_{table}.parent = a{call}_{}.id", table - 1)).collect();
        let one = stats(&format!("SELECT count(*) FROM {} WHERE {}", tables.join(", "), joined.join(" AND "))).await;
        assert!(!one.plan_cached);
        uncached.push(one.planning_ns as f64 / 1e6);
    }
    report.at_most("planning an uncached join of 10 tables", median(uncached), 1.0, "ms");
}

/// Aggregates over 16 shards, beside one SQLite.
async fn aggregate(scratch: &Path, report: &mut Report) {
    let server = Server::start(&scratch.join("aggregate"), &["--shards", "16"], &[]).await;
    flights::import(&server, &flights::file(scratch));
    server.idle().await;
    let one = flights::one_sqlite(&server, &scratch.join("aggregate.sqlite")).await;
    for (name, sql) in [
        (
            "aggregate by carrier",
            "SELECT carrier, count(*), avg(dep_delay), sum(distance), min(arr_delay), max(air_time) FROM flights GROUP BY carrier ORDER BY carrier",
        ),
        (
            "aggregate by route",
            "SELECT origin, dest, count(*), avg(distance) FROM flights WHERE month BETWEEN 3 AND 9 GROUP BY origin, dest ORDER BY 3 DESC LIMIT 20",
        ),
        ("aggregate of all", "SELECT count(*), sum(distance), avg(air_time) FROM flights"),
    ] {
        let mut prepared = one.prepare(sql).unwrap();
        let (mut sharded, mut single) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            const TIMES: usize = 5;
            let begin = server.cpu();
            let mut rows = 0;
            for _ in 0..TIMES {
                rows = server.execute(sql, &[], QueryOptions::default()).await.rows.len();
            }
            let end = server.cpu();
            let begin_single = own_cpu();
            for _ in 0..TIMES {
                let mut expected = 0;
                let mut found = prepared.query([]).unwrap();
                while found.next().unwrap().is_some() {
                    expected += 1;
                }
                assert_eq!(rows, expected);
            }
            let single_cpu = own_cpu() - begin_single;
            if round > 0 {
                sharded.push((end - begin) / TIMES as f64 * 1e3);
                single.push(single_cpu / TIMES as f64 * 1e3);
            }
        }
        let ratio = median((0..ROUNDS).map(|round| sharded[round] / single[round]).collect());
        println!("{name}: 16 shards {:.1} ms, one SQLite {:.1} ms of CPU", median(sharded), median(single));
        report.at_most(&format!("{name}, 16 shards / one SQLite"), ratio, 1.3, "x");
    }
}

/// The memory of a join over shards that gathers more than it may hold.
async fn join(scratch: &Path, report: &mut Report) {
    let memory = (JOIN_MEMORY_MIB << 20).to_string();
    let data = scratch.join("join");
    let loading = Server::start(&data, &["--shards", "16"], &[]).await;
    flights::import(&loading, &flights::file(scratch));
    loading.idle().await;
    drop(loading);
    // A new process, since one that has loaded holds memory that it has let go of.
    let server = Server::start(&data, &[], &[("DOSQL_QUERY_MEMORY", memory.as_str())]).await;
    let sql = "SELECT count(*), max(length(a.time_hour || b.dest || a.origin || b.carrier)), sum(a.air_time + b.distance + b.dep_delay) \
               FROM flights a JOIN flights b ON b.tailnum = a.tailnum AND b.time_hour = a.time_hour";
    // The shards' own caches fill up first.
    for column in ["time_hour", "dest", "air_time", "tailnum", "origin", "carrier", "distance", "dep_delay"] {
        server
            .execute(
                &format!("SELECT count({column}), max(length({column})) FROM flights"),
                &[],
                QueryOptions::default(),
            )
            .await;
    }
    server.idle().await;
    let before = server.resident();
    server.forget_peak();
    let result = server.execute(sql, &[], profiled()).await;
    let stats = result.stats.unwrap();
    let grown = server.peak().saturating_sub(before) as f64 / (1 << 20) as f64;
    println!(
        "join: {} rows and {:.1} MiB gathered, scratch {:.1} MiB in memory and {:.1} MiB on disk, resident memory {:.1} MiB before, {grown:.1} MiB more at its peak",
        stats.gathered_rows,
        stats.gathered_bytes as f64 / (1 << 20) as f64,
        stats.scratch_memory_bytes as f64 / (1 << 20) as f64,
        stats.scratch_disk_bytes as f64 / (1 << 20) as f64,
        before as f64 / (1 << 20) as f64,
    );
    report.at_most("memory of a cross-shard join", grown, JOIN_MEMORY_MIB as f64, "MiB");
}
