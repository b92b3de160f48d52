//! The walk through every actor under faults: client, router, shards, change stream, lake. Whatever was acknowledged is in the
//! shards, once in the change stream and once in the lake, and nothing is anywhere that nobody wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod walk;

use std::collections::BTreeMap;
use std::time::Duration;

use dosql_actors::Settings;
use dosql_actors::host::simulation::{FaultCounts, Simulation, SimulationConfig};
use dosql_tests::seeds::{histories, seeds};
use walk::client::Client;
use walk::{Failure, checks, support, system};

/// Writes in one walk, beside the schema changes.
const WRITES: u64 = 24;

fn settings() -> Settings {
    Settings {
        shard_count: 3,
        shard_timeout_ms: 5_000,
        lake_flush_interval_ms: 400,
        lake_event_threshold: 10,
        cdc_batch_size: 5,
        cdc_batch_timeout_ms: 300,
        cdc_retry_delay_ms: 50,
        cdc_max_retry_count: 1,
        auto_shard: dosql_actors::runtime::AutoShard::PrimaryKey,
        ..Settings::default()
    }
}

fn walk(seed: u64, config: SimulationConfig) -> Result<Simulation, Failure> {
    let simulation = system(seed, config)?;
    let mut client = Client::new(simulation.client(), seed, WRITES);
    let written = simulation.block_on(client.write());
    simulation.quiesce(Duration::from_secs(30));
    checks::check(&simulation, &client.histories, written)?;
    Ok(simulation)
}

fn stormy() -> SimulationConfig {
    SimulationConfig::stormy(settings())
}

/// What struck in all walks together.
#[derive(Default)]
struct Struck {
    faults: FaultCounts,
    deaths: BTreeMap<String, u64>,
}

impl Struck {
    fn in_one(simulation: &Simulation) -> Self {
        Self { faults: simulation.faults(), deaths: simulation.deaths() }
    }

    fn add(&mut self, one: Self) {
        let (faults, all) = (one.faults, &mut self.faults);
        all.lost += faults.lost;
        all.duplicated += faults.duplicated;
        all.crashes += faults.crashes;
        all.power_failures += faults.power_failures;
        all.io_errors += faults.io_errors;
        all.object_errors += faults.object_errors;
        for (kind, deaths) in one.deaths {
            *self.deaths.entry(kind).or_default() += deaths;
        }
    }
}

/// Walks the histories of these seeds; every kind of fault must have struck in them.
fn walk_all(seeds: &[u64]) {
    let mut struck = Struck::default();
    for walked in histories(seeds, |seed| walk(seed, stormy()).map(|simulation| Struck::in_one(&simulation))) {
        struck.add(walked);
    }
    if seeds.len() < 100 {
        return;
    }
    let walks = seeds.len() as u64;
    let Struck { faults, deaths } = struck;
    let of = |kind: &str| deaths.get(kind).copied().unwrap_or(0);
    println!("{walks} walks: {faults:?} {deaths:?}");
    let expected = [
        ("messages lost", faults.lost, 2 * walks),
        ("messages doubled", faults.duplicated, 2 * walks),
        ("power failures", faults.power_failures, walks),
        ("deaths without a power failure", faults.crashes - faults.power_failures, walks / 4),
        ("failed file operations", faults.io_errors, walks / 4),
        ("failed object operations", faults.object_errors, walks),
        ("deaths of shards", of("shard"), walks / 4),
        ("deaths of the router", of("router"), walks / 4),
        ("deaths of the change stream", of("cdc"), walks / 4),
        ("deaths of the lake", of("lake"), walks / 4),
    ];
    for (what, count, least) in expected {
        assert!(count >= least, "{walks} walks saw {count} {what}, fewer than {least}: they prove too little");
    }
}

/// One half of the seeds; two tests, so that they run beside each other.
fn half(rest: u64) -> Vec<u64> {
    seeds(1000).into_iter().filter(|seed| seed % 2 == rest).collect()
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_on_even_seeds() {
    walk_all(&half(0));
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_on_odd_seeds() {
    walk_all(&half(1));
}

/// The walk can fail: where syncs lie, it finds acknowledged writes missing.
#[test]
fn a_lying_sync_is_noticed() {
    let lying = SimulationConfig { lying_sync: true, ..stormy() };
    let outcomes: Vec<_> = (0..40).map(|seed| walk(seed, lying.clone()).map(|_| ())).collect();
    let losses = outcomes.iter().filter(|outcome| matches!(outcome, Err(Failure::Wrong(_)))).count();
    assert!(losses >= 20, "only {losses} of 40 histories showed that syncs did nothing: {outcomes:?}");
}
