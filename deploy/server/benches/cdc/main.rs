//! What the change stream costs, and how soon the lake has what was committed:
//! `cargo bench -p dosql --bench cdc [-- NAME...]`.
//!
//! CPU time is that of the server's process. A goal that is missed makes the program fail.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

#[path = "../../../../lake/benches/lake/measure.rs"]
#[allow(dead_code, reason = "each benchmark measures what it is about")]
mod measure;
#[path = "../router/process.rs"]
#[allow(dead_code, reason = "each benchmark asks some of it")]
mod process;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dosql_proto::QueryOptions;
use futures_util::StreamExt as _;
use futures_util::stream;
use measure::{Report, is_wanted, median};
use process::Server;
use tokio_tungstenite::tungstenite::Message;

/// Rounds of each comparison; both sides take turns.
const ROUNDS: usize = 3;
/// Rows that are written in a round of the feed, each in a transaction of its own.
const EVENTS: usize = 2_000;
/// Statements under way at once.
const IN_FLIGHT: usize = 64;
/// Subscribers of the small and of the large audience.
const AUDIENCES: [usize; 2] = [10, 1_000];
/// Commits whose way into the lake is timed.
const COMMITS: usize = 9;
/// The lake's flush interval then, in milliseconds.
const INTERVAL_MS: u32 = 2_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut report = Report { met: true };
    runtime.block_on(async {
        let scratch = tempfile::tempdir().unwrap();
        if is_wanted("freshness") {
            freshness(scratch.path(), &mut report).await;
        }
        if is_wanted("feed") {
            feed(scratch.path(), &mut report).await;
        }
    });
    std::process::exit(i32::from(!report.met));
}

/// From the acknowledgement of a commit until a snapshot of the mirror has its row.
async fn freshness(scratch: &Path, report: &mut Report) {
    let data = scratch.join("freshness");
    let interval = INTERVAL_MS.to_string();
    let server = Server::start(&data, &["--shards", "4"], &[("DOLAKE_FLUSH_INTERVAL_MS", &interval)]).await;
    server.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)", &[], QueryOptions::default()).await;
    let hint = data.join("lake/warehouse/default/items/metadata/version-hint.text");
    let version = || fs::read_to_string(&hint).ok();
    let mut taken = Vec::new();
    for commit in 0..=COMMITS {
        server.idle().await;
        let before = version();
        let sql = format!("INSERT INTO items VALUES ({commit}, 'item {commit}')");
        server.execute(&sql, &[], QueryOptions::default()).await;
        let committed = Instant::now();
        while version() == before {
            assert!(committed.elapsed() < Duration::from_secs(60), "the lake has not got the row");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // The first one waits for the tables to be made.
        if commit > 0 {
            taken.push(committed.elapsed().as_secs_f64() * 1e3 / f64::from(INTERVAL_MS));
        }
    }
    let slowest = taken.iter().copied().fold(0.0, f64::max);
    println!("commit to the lake: {slowest:.3} flush intervals of {INTERVAL_MS} ms at the slowest of {COMMITS}");
    report.at_most("commit to visible in the lake / flush interval", median(taken), 1.1, "x");
}

/// A feed to many subscribers, beside the same feed to few. In CPU time of the server, the writes themselves included.
async fn feed(scratch: &Path, report: &mut Report) {
    let mut taken: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (place, audience) in AUDIENCES.into_iter().enumerate() {
            let data = scratch.join(format!("feed-{round}-{audience}"));
            // The lake has its turn after the figures are taken.
            let settings = [("DOLAKE_FLUSH_INTERVAL_MS", "3600000"), ("DOLAKE_EVENT_THRESHOLD", "1000000")];
            let server = Server::start(&data, &["--shards", "4", "--auto-shard", "first-column"], &settings).await;
            let make = "CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT, note TEXT, amount REAL)";
            server.execute(make, &[], QueryOptions::default()).await;
            let subscribers: Vec<_> = stream::iter(0..audience)
                .map(|_| tokio::spawn(receive(server.websocket("/cdc?tables=events&from=latest&heartbeat_ms=600000"))))
                .buffered(16)
                .map(Result::unwrap)
                .collect()
                .await;
            server.idle().await;
            let received: Vec<_> = subscribers.into_iter().map(|socket| tokio::spawn(count(socket))).collect();
            let begin = server.cpu();
            stream::iter(0..EVENTS)
                .for_each_concurrent(IN_FLIGHT, |event| {
                    let server = &server;
                    async move {
                        let sql =
                            format!("INSERT INTO events VALUES ({event}, 'kind {}', 'note {event}', 1.5)", event % 9);
                        server.execute(&sql, &[], QueryOptions::default()).await;
                    }
                })
                .await;
            for subscriber in received {
                subscriber.await.unwrap();
            }
            taken[place].push((server.cpu() - begin) / EVENTS as f64 * 1e6);
        }
    }
    let [few, many] = taken;
    let ratio = median(many.iter().zip(&few).map(|(many, few)| many / few).collect());
    let delivered = |cpu: &[f64], audience: usize| median(cpu.to_vec()) / audience as f64;
    let [per_few, per_many] = [delivered(&few, AUDIENCES[0]), delivered(&many, AUDIENCES[1])];
    println!(
        "feed, us of CPU an event: to 10 subscribers {:.0} ({per_few:.2} a delivery), to 1,000 {:.0} ({per_many:.2} a delivery)",
        median(few),
        median(many)
    );
    report.at_most("a feed to 1,000 subscribers / the same to 10", ratio, 3.0, "x");
    report.at_most("a delivery among 1,000 subscribers / among 10", per_many / per_few, 1.0, "x");
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn receive(url: String) -> Socket {
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

/// Takes frames until every event has come; a frame is a transaction.
async fn count(mut socket: Socket) {
    let mut seen = 0;
    while seen < EVENTS {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(_) => seen += 1,
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("not a change: {other:?}"),
        }
    }
}
