//! The conformance suite in the simulator, and what only the simulator can show: crashes that lose what was not synced, and
//! histories that replay.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dosql_actors::host::simulation::{SimClient, Simulation, SimulationConfig};
use dosql_actors::probe::Probe;
use dosql_actors::{Actor, Call, Context, Handled, Settings};
use dosql_proto::probe_request::Request;
use dosql_proto::value::Kind;
use dosql_proto::{
    Address, Error, Packet, PacketReply, ProbeAdd, ProbeProtocol, ProbeRelay, ProbeReply, ProbeRequest, ProbeSql,
    Statement, Value,
};
use dosql_tests::conformance::{self, Target};
use dosql_tests::seeds::seeds;
use rusqlite::Connection;

fn simulation(seed: u64, config: SimulationConfig) -> Simulation {
    let simulation = Simulation::new(seed, config).unwrap();
    simulation.register::<Probe>();
    simulation
}

fn calm() -> SimulationConfig {
    SimulationConfig::calm(Settings::default())
}

fn stormy() -> SimulationConfig {
    SimulationConfig::stormy(Settings::default())
}

struct Simulated<'a> {
    simulation: &'a Simulation,
    client: SimClient,
}

impl Target for Simulated<'_> {
    async fn send(&self, packet: Packet) -> PacketReply {
        self.client.send_packet(packet).await
    }

    async fn restart(&self, address: &Address) {
        self.simulation.crash(address);
    }

    async fn pause(&self, duration: Duration) {
        self.client.sleep(duration).await;
    }
}

/// Every restart of the suite is a crash here, with or without power failure, so what was acknowledged must have been synced.
#[test]
fn the_suite_passes() {
    for seed in seeds(20) {
        let simulation = simulation(seed, calm());
        let target = Simulated { simulation: &simulation, client: simulation.client() };
        let report = simulation.block_on(conformance::run(&target, "c"));
        report.assert_passed();
        assert_eq!(report.passed.len(), 19);
    }
}

async fn ask(client: &SimClient, name: &str, request: Request) -> Result<ProbeReply, Error> {
    let call = Call::system().within(client.now_ms(), 10_000);
    client.ask::<ProbeProtocol>(name, ProbeRequest { request: Some(request) }, &call).await
}

async fn sql(client: &SimClient, name: &str, sql: &str) -> Result<ProbeReply, Error> {
    let statements = vec![Statement { sql: sql.to_owned(), params: Vec::new() }];
    ask(client, name, Request::Sql(ProbeSql { statements })).await
}

/// Does something until it succeeds.
async fn insist<F: Future<Output = Result<ProbeReply, Error>>>(
    client: &SimClient,
    attempt: impl Fn() -> F,
) -> ProbeReply {
    loop {
        match attempt().await {
            Ok(reply) => return reply,
            Err(error) => assert!(error.retryable, "{error}"),
        }
        client.sleep(Duration::from_millis(100)).await;
    }
}

/// Writes rows of several pages each to a few actors through a storm, and checks what became of them: every acknowledged row is
/// there as it was written, no row in part, and no row that nobody wrote.
fn walk(seed: u64, config: SimulationConfig) -> Result<Simulation, String> {
    let simulation = simulation(seed, config);
    let client = simulation.client();
    let found = simulation.block_on(async {
        let mut acknowledged = BTreeSet::new();
        for round in 1..=40_i64 {
            let name = format!("store-{}", round % 2);
            let create = "CREATE TABLE IF NOT EXISTS s (id INTEGER PRIMARY KEY, a BLOB, b TEXT)";
            insist(&client, || sql(&client, &name, create)).await;
            // The id makes a repetition harmless.
            let write = format!(
                "INSERT OR REPLACE INTO s VALUES ({round}, zeroblob({}), printf('%.*c', {}, 'x'))",
                round * 300,
                round * 200
            );
            if sql(&client, &name, &write).await.is_ok() {
                acknowledged.insert(round);
            }
            if round % 10 == 0 {
                simulation.crash(&Address::new("probe", &name));
            }
        }
        acknowledged
    });
    simulation.quiesce(Duration::from_secs(30));
    simulation.block_on(async {
        let mut stored = BTreeSet::new();
        for name in ["store-0", "store-1"] {
            let checked = ask_all(&client, name, "PRAGMA integrity_check").await?;
            if checked != [vec![Value::from("ok")]] {
                return Err(format!("{name} is corrupt: {checked:?}"));
            }
            for row in ask_all(&client, name, "SELECT id, length(a), length(b) FROM s").await? {
                match (&row[0].kind, &row[1].kind, &row[2].kind) {
                    (Some(Kind::Integer(id)), Some(Kind::Integer(a)), Some(Kind::Integer(b)))
                        if *a == id * 300 && *b == id * 200 =>
                    {
                        stored.insert(*id);
                    }
                    _ => return Err(format!("{name} has a row that nobody wrote: {row:?}")),
                }
            }
        }
        match found.difference(&stored).next() {
            Some(lost) => Err(format!("row {lost} was acknowledged and is lost")),
            None => Ok(()),
        }
    })?;
    Ok(simulation)
}

async fn ask_all(client: &SimClient, name: &str, query: &str) -> Result<Vec<Vec<Value>>, String> {
    let reply = sql(client, name, query).await.map_err(|error| format!("{name}: {error}"))?;
    Ok(reply.results.into_iter().flat_map(|result| result.rows).map(|row| row.values).collect())
}

#[test]
fn acknowledged_rows_survive_every_storm() {
    let (mut crashes, mut io_errors, mut lost, mut duplicated) = (0, 0, 0, 0);
    for seed in seeds(150) {
        let simulation = walk(seed, stormy()).unwrap_or_else(|error| panic!("DOSQL_SEED={seed}: {error}"));
        let faults = simulation.faults();
        crashes += faults.crashes;
        io_errors += faults.io_errors;
        lost += faults.lost;
        duplicated += faults.duplicated;
    }
    // A storm in which nothing happened would prove nothing.
    if seeds(150).len() > 1 {
        assert!(
            crashes > 0 && io_errors > 0 && lost > 0 && duplicated > 0,
            "{crashes} {io_errors} {lost} {duplicated}"
        );
    }
}

/// The check above can fail: where syncs lie, it finds lost or corrupt rows.
#[test]
fn a_lying_sync_is_noticed() {
    let caught = (0..30).filter(|seed| walk(*seed, SimulationConfig { lying_sync: true, ..stormy() }).is_err()).count();
    assert!(caught >= 25, "only {caught} of 30 histories showed that syncs did nothing");
}

#[test]
fn a_seed_replays_bit_for_bit() {
    let history = |seed| {
        let simulation = walk(seed, stormy()).unwrap_or_else(|error| panic!("DOSQL_SEED={seed}: {error}"));
        (simulation.trace(), simulation.now_ms(), simulation.faults())
    };
    let mut traces = BTreeSet::new();
    for seed in seeds(10) {
        let first = history(seed);
        assert_eq!(first, history(seed), "DOSQL_SEED={seed}");
        traces.insert(first.0);
    }
    assert_eq!(traces.len(), seeds(10).len(), "different seeds give different histories");
}

/// A message that is delivered twice counts twice, and a lost answer leaves the outcome open: the counter ends between what was
/// acknowledged and what was ever sent. Relays make actors ask actors.
#[test]
fn counters_stay_between_what_was_acknowledged_and_what_was_sent() {
    for seed in seeds(50) {
        let simulation = simulation(seed, SimulationConfig { message_duplication: 0.0, ..stormy() });
        let client = simulation.client();
        let (acknowledged, sent) = simulation.block_on(async {
            let (mut acknowledged, mut sent) = (0, 0);
            for _ in 0..50 {
                let request = Request::Relay(ProbeRelay { to: "counted".to_owned(), amount: 1 });
                sent += 1;
                acknowledged += i64::from(ask(&client, "relay", request).await.is_ok());
            }
            (acknowledged, sent)
        });
        simulation.quiesce(Duration::from_secs(30));
        let reply = simulation.block_on(ask(&client, "counted", Request::Add(ProbeAdd { amount: 0 })));
        let counter = reply.unwrap().counter;
        assert!((acknowledged..=sent).contains(&counter), "DOSQL_SEED={seed}: {acknowledged} <= {counter} <= {sent}");
    }
}

#[test]
fn an_isolated_actor_is_reached_again() {
    let simulation = simulation(1, calm());
    let client = simulation.client();
    let add = || ask(&client, "island", Request::Add(ProbeAdd { amount: 1 }));
    simulation.block_on(async {
        assert_eq!(add().await.unwrap().counter, 1);
        simulation.isolate(&Address::new("probe", "island"));
        assert!(add().await.unwrap_err().retryable);
        simulation.heal();
        assert_eq!(add().await.unwrap().counter, 2);
    });
}

/// An actor whose first incarnations leave a task with its storage behind, and fail.
struct Stumbling {
    _storage: Rc<Connection>,
}

thread_local! {
    /// Storage that is open, and how often the actor was started.
    static STARTS: RefCell<(Weak<Connection>, u32)> = RefCell::default();
}

impl Actor for Stumbling {
    type Protocol = ProbeProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let starts = STARTS.with_borrow_mut(|(open, starts)| {
            assert!(open.upgrade().is_none(), "the last incarnation's storage is still open");
            *starts += 1;
            *starts
        });
        let storage = Rc::new(context.open_storage()?);
        STARTS.with_borrow_mut(|(open, _)| *open = Rc::downgrade(&storage));
        let held = Rc::clone(&storage);
        context.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        match starts {
            1 => Err(Error::internal("it stumbles")),
            2 => panic!("it falls"),
            _ => Ok(Self { _storage: storage }),
        }
    }

    async fn handle(&mut self, _: ProbeRequest, _: &Call) -> Handled<ProbeReply> {
        Handled::Reply(Ok(ProbeReply::default()))
    }
}

/// Two connections to one actor's database would take each other's log away.
#[test]
fn what_failed_to_start_leaves_nothing_running() {
    let simulation = Simulation::new(1, calm()).unwrap();
    simulation.register::<Stumbling>();
    let client = simulation.client();
    simulation.block_on(async {
        while ask(&client, "s", Request::Add(ProbeAdd { amount: 1 })).await.is_err() {
            client.sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(STARTS.with_borrow(|(_, starts)| *starts), 3);
}

/// Two simulations beside each other, as tests that run in parallel are, share nothing.
#[test]
fn simulations_run_beside_each_other() {
    let traces: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| walk(7, stormy()).unwrap().trace())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(traces.iter().all(|trace| *trace == traces[0]), "{traces:?}");
}
