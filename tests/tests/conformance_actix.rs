//! The conformance suite on the actix host, and what only that host has: shared arbiters, a lock, alarms over processes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dosql_actors::Call;
use dosql_actors::host::actix::{Client, DataDirError, Node, NodeConfig, NodeError};
use dosql_actors::probe::Probe;
use dosql_proto::probe_request::Request;
use dosql_proto::{
    Address, Error, ErrorCode, Packet, PacketReply, ProbeAdd, ProbeAlarm, ProbeProtocol, ProbeReply, ProbeRequest,
    ProbeSql, Statement,
};
use dosql_tests::conformance::{self, Target};
use futures_util::future::join_all;

/// A directory of the test's own, removed when it has passed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dosql-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn node(data_dir: &Path) -> Node {
    let node = Node::new(NodeConfig { data_dir: data_dir.to_owned(), ..NodeConfig::default() }).unwrap();
    node.register::<Probe>().unwrap();
    node.resume().unwrap();
    node
}

async fn ask(client: &Client, name: &str, request: Request) -> Result<ProbeReply, Error> {
    client.ask::<ProbeProtocol>(name, ProbeRequest { request: Some(request) }, &Call::system()).await
}

async fn add(client: &Client, name: &str, amount: i64) -> Result<i64, Error> {
    ask(client, name, Request::Add(ProbeAdd { amount })).await.map(|reply| reply.counter)
}

/// A node that ends and starts again, as a process would, whenever an actor is to restart.
struct Restarted {
    data_dir: PathBuf,
    node: RefCell<Option<Node>>,
}

impl Target for Restarted {
    async fn send(&self, packet: Packet) -> PacketReply {
        let client = self.node.borrow().as_ref().unwrap().client();
        client.send_packet(packet).await
    }

    async fn restart(&self, _: &Address) {
        drop(self.node.take());
        self.node.replace(Some(node(&self.data_dir)));
    }

    async fn pause(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[tokio::test]
async fn the_suite_passes() {
    let scratch = Scratch::new("conformance");
    let target = Restarted { data_dir: scratch.0.clone(), node: RefCell::new(Some(node(&scratch.0))) };
    let report = conformance::run(&target, "c").await;
    report.assert_passed();
    assert_eq!(report.passed.len(), 19);
}

#[tokio::test]
async fn a_thousand_actors_share_three_arbiters() {
    let scratch = Scratch::new("thousand");
    let node = Node::new(NodeConfig { data_dir: scratch.0.clone(), arbiters: 3, ..NodeConfig::default() }).unwrap();
    node.register::<Probe>().unwrap();
    let client = node.client();
    let names: Vec<String> = (0..1000).map(|index| format!("probe-{index}")).collect();
    let threads = threads();
    for round in 1..=2 {
        let counters = join_all(names.iter().map(|name| add(&client, name, 7))).await;
        assert!(counters.iter().all(|counter| *counter == Ok(7 * round)), "{counters:?}");
    }
    // Other tests run beside this one with a few arbiters each; a thread an actor would be far more.
    assert!(threads_since(threads) < 100, "{} threads were started", threads_since(threads));
    node.stop().await;
    // Every database was closed: no log is left beside it.
    let files = std::fs::read_dir(scratch.0.join("actors/probe")).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1000);
    assert!(files.iter().all(|file| file.extension().is_some_and(|suffix| suffix == "sqlite")), "{files:?}");
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn threads_since(before: usize) -> usize {
    threads().saturating_sub(before)
}

#[tokio::test]
async fn a_full_mailbox_refuses() {
    let scratch = Scratch::new("overloaded");
    let config = NodeConfig { data_dir: scratch.0.clone(), mailbox_capacity: 4, ..NodeConfig::default() };
    let node = Node::new(config).unwrap();
    node.register::<Probe>().unwrap();
    let client = node.client();
    let slow =
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000) SELECT count(*) FROM n";
    let asked = (0..100).map(|_| {
        let statements = vec![Statement { sql: slow.to_owned(), params: Vec::new() }];
        ask(&client, "busy", Request::Sql(ProbeSql { statements }))
    });
    let outcomes = join_all(asked).await;
    assert!(outcomes.iter().any(Result::is_ok));
    let refused: Vec<&Error> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|error| error.code() == ErrorCode::Overloaded && error.retryable), "{refused:?}");
    assert_eq!(add(&client, "busy", 1).await, Ok(1), "and it goes on");
    node.stop().await;
}

#[tokio::test]
async fn two_nodes_cannot_share_a_directory() {
    let scratch = Scratch::new("locked");
    let first = node(&scratch.0);
    let second = Node::new(NodeConfig { data_dir: scratch.0.clone(), ..NodeConfig::default() });
    match second.map(drop) {
        Err(NodeError::DataDir(error @ DataDirError::InUse { .. })) => {
            assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        }
        other => panic!("expected a refusal, found {other:?}"),
    }
    first.stop().await;
    node(&scratch.0).stop().await;
}

#[tokio::test]
async fn an_alarm_rings_in_the_next_process() {
    let scratch = Scratch::new("alarms");
    let first = node(&scratch.0);
    ask(&first.client(), "sleeper", Request::Alarm(ProbeAlarm { after_ms: 300 })).await.unwrap();
    first.stop().await;
    let second = node(&scratch.0);
    // Nobody asks meanwhile: it is the alarm that starts the actor.
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(add(&second.client(), "sleeper", 0).await, Ok(1000));
    second.stop().await;
}

#[tokio::test]
async fn an_address_cannot_leave_the_data_directory() {
    let scratch = Scratch::new("traversal");
    let node = node(&scratch.0);
    for name in ["../../escape", "..", "a/b", ""] {
        let error = add(&node.client(), name, 1).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRequest, "{name:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_before_a_stop_is_stored() {
    let scratch = Scratch::new("stop");
    let first = node(&scratch.0);
    let client = first.client();
    // Each message is handed over when its future is first polled, before the stop.
    let (answers, ()) = futures_util::join!(join_all((0..200).map(|_| add(&client, "last", 1))), first.stop());
    let acknowledged = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(acknowledged > 0);
    let second = node(&scratch.0);
    assert_eq!(add(&second.client(), "last", 0).await.map(usize::try_from), Ok(Ok(acknowledged)));
    let late = add(&client, "last", 1).await.unwrap_err();
    assert_eq!(late.code(), ErrorCode::Unavailable, "the first node has stopped");
    second.stop().await;
}
