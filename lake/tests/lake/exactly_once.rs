//! A history of changes, delivered while every operation on an object fails once, in every way: the mirror holds the shards'
//! rows and the change log every change once.

use std::cell::Cell;
use std::collections::BTreeMap;

use dosql_actors::Settings;
use dosql_proto::{Column, Operation, Row, RowChange, SchemaChange, Value, WalRecord, WalTable};

use crate::reading;
use crate::support::{Fault, World, next_random};

const SHARDS: [&str; 2] = ["shard-0", "shard-1"];
const DAY_MS: u64 = 86_400_000;

fn seed() -> u64 {
    let seed = std::env::var("DOSQL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_121);
    println!("DOSQL_SEED={seed}");
    seed
}

fn table(name: &str, columns: &[(&str, &str)], primary_key: &[u32]) -> WalTable {
    let column = |(name, declared): &(&str, &str)| Column { name: (*name).into(), declared_type: (*declared).into() };
    WalTable { name: name.into(), columns: columns.iter().map(column).collect(), primary_key: primary_key.to_vec() }
}

/// The rows a shard holds, by table and rowid; and its log.
#[derive(Default)]
struct Shard {
    tables: BTreeMap<&'static str, BTreeMap<i64, Row>>,
    log: Vec<WalRecord>,
}

/// Histories of three tables: keyed by an integer, by two columns, by rowid.
struct History {
    random: Cell<u64>,
    layouts: BTreeMap<&'static str, WalTable>,
    shards: Vec<Shard>,
    next_rowid: i64,
}

impl History {
    fn new(seed: u64) -> Self {
        let layouts = [
            table("orders", &[("id", "INTEGER"), ("name", "TEXT"), ("amount", "REAL")], &[0]),
            table("pairs", &[("a", "TEXT"), ("b", "INT"), ("_lsn", "INTEGER"), ("dt", "DATE")], &[0, 1]),
            table("heap", &[("x", ""), ("y", "BLOB")], &[]),
        ];
        let names = ["orders", "pairs", "heap"];
        Self {
            random: Cell::new(seed),
            layouts: names.into_iter().zip(layouts).collect(),
            shards: SHARDS.iter().map(|_| Shard::default()).collect(),
            next_rowid: 1,
        }
    }

    fn below(&self, limit: u64) -> u64 {
        next_random(&self.random) % limit
    }

    fn row(&self, table: &str, rowid: i64) -> Row {
        let text = format!("text {}", self.below(1000));
        let optional = |value: Value| if self.below(5) == 0 { Value::NULL } else { value };
        match table {
            "orders" => [rowid.into(), optional(text.into()), optional((self.below(100) as f64 / 4.0).into())]
                .into_iter()
                .collect(),
            // Two columns that only together are unique.
            "pairs" => [
                format!("a{}", rowid % 7).into(),
                (rowid / 7).into(),
                optional((self.below(9) as i64).into()),
                optional(text.into()),
            ]
            .into_iter()
            .collect(),
            _ => [optional(text.into()), optional(Value::blob(vec![1, 2, 0]))].into_iter().collect(),
        }
    }

    /// One transaction on one shard.
    fn transaction(&mut self, shard: usize, hlc_ms: u64) {
        let names: Vec<_> = self.layouts.keys().copied().collect();
        let mut record = WalRecord {
            lsn: self.shards[shard].log.len() as u64 + 1,
            hlc: hlc_ms << 16,
            tables: names.iter().map(|name| self.layouts[name].clone()).collect(),
            ..WalRecord::default()
        };
        for _ in 0..=self.below(4) {
            let place = self.below(names.len() as u64) as usize;
            let (name, index) = (names[place], place as u32);
            let rowids: Vec<_> = self.shards[shard].tables.entry(name).or_default().keys().copied().collect();
            let chosen = rowids.get(self.below(rowids.len() as u64 + 1) as usize).copied();
            let change = match (self.below(4), chosen) {
                (0, Some(rowid)) => {
                    let before = self.rows(shard, name).remove(&rowid);
                    RowChange { table: index, operation: Operation::Delete.into(), rowid, before, after: None }
                }
                (1, Some(rowid)) => {
                    // Of keyed tables the key changes too, half the time.
                    let moved = name != "heap" && self.below(2) == 0;
                    let new_rowid = if moved { self.new_rowid() } else { rowid };
                    let after = self.row(name, new_rowid);
                    let before = self.rows(shard, name).remove(&rowid);
                    self.rows(shard, name).insert(new_rowid, after.clone());
                    let after = Some(after);
                    RowChange { table: index, operation: Operation::Update.into(), rowid, before, after }
                }
                _ => {
                    let rowid = self.new_rowid();
                    let after = self.row(name, rowid);
                    self.rows(shard, name).insert(rowid, after.clone());
                    let after = Some(after);
                    RowChange { table: index, operation: Operation::Insert.into(), rowid, before: None, after }
                }
            };
            record.changes.push(change);
        }
        self.shards[shard].log.push(record);
    }

    /// A table is dropped, or gets a column that new rows fill.
    fn schema_change(&mut self, shard: usize, hlc_ms: u64, change: SchemaChange) {
        let lsn = self.shards[shard].log.len() as u64 + 1;
        let record = WalRecord { lsn, hlc: hlc_ms << 16, schema_changes: vec![change], ..WalRecord::default() };
        self.shards[shard].log.push(record);
    }

    fn rows(&mut self, shard: usize, table: &'static str) -> &mut BTreeMap<i64, Row> {
        self.shards[shard].tables.entry(table).or_default()
    }

    fn new_rowid(&mut self) -> i64 {
        self.next_rowid += 1;
        self.next_rowid
    }

    fn generate(seed: u64, transactions: u64) -> Self {
        let mut history = Self::new(seed);
        for number in 0..transactions {
            let shard = history.below(2) as usize;
            // Crosses midnight half way.
            let hlc_ms = 20_454 * DAY_MS - (transactions / 2) * 1000 + number * 1000;
            history.transaction(shard, hlc_ms);
            if number == transactions / 3 {
                history.rows(0, "heap").clear();
                history.schema_change(0, hlc_ms, SchemaChange { dropped: "heap".into(), ..SchemaChange::default() });
            }
        }
        history
    }
}

/// How a history is delivered.
#[derive(Clone, Copy)]
struct Delivery {
    flush_every: usize,
    /// Compacts and cleans up after every flush.
    maintain: bool,
}

/// Delivers as the change stream does: from where the lake stands, again after every error.
fn deliver(world: &mut World, history: &History, delivery: Delivery) {
    for round in 0.. {
        assert!(round < 300, "the lake makes no progress");
        world.now_ms.set(world.now_ms.get() + 1000);
        let Ok(complete) = deliver_some(world, history) else {
            world.lake = None;
            continue;
        };
        if complete || round % delivery.flush_every == delivery.flush_every - 1 {
            let mut outcome = world.flush().map(drop);
            if outcome.is_ok() && delivery.maintain {
                outcome = world.maintain();
            }
            if outcome.is_err() && world.objects.down.get() {
                world.lake = None;
            }
            if complete && outcome.is_ok() {
                return;
            }
        }
    }
}

/// Delivers some records of each shard; says whether there were none any more.
fn deliver_some(world: &mut World, history: &History) -> Result<bool, dosql_proto::Error> {
    let positions = world.positions()?;
    let mut complete = true;
    for (name, shard) in SHARDS.iter().zip(&history.shards) {
        let position = positions.iter().find(|position| position.shard == *name);
        let after = position.map_or(0, |position| position.buffered_lsn);
        let rest = &shard.log[after as usize..];
        if rest.is_empty() {
            continue;
        }
        complete = false;
        let batch = &rest[..rest.len().min(3)];
        if world.append(name, after, batch).is_err() && world.objects.down.get() {
            world.lake = None;
        }
    }
    Ok(complete)
}

/// The rows the mirror should hold: shard and cells as text, sorted.
fn expected_rows(history: &History, table: &'static str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (name, shard) in SHARDS.iter().zip(&history.shards) {
        for row in shard.tables.get(table).into_iter().flat_map(BTreeMap::values) {
            let mut cells = vec![(*name).to_owned()];
            cells.extend(row.values.iter().map(text));
            rows.push(cells);
        }
    }
    rows.sort();
    rows
}

fn text(value: &Value) -> String {
    use dosql_proto::value::Kind;
    match &value.kind {
        None => "NULL".into(),
        Some(Kind::Integer(integer)) => integer.to_string(),
        Some(Kind::Real(real)) => format!("{real:?}"),
        Some(Kind::Text(text)) => text.clone(),
        Some(Kind::Blob(bytes) | Kind::RawText(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

const COLUMNS: [(&str, &[&str]); 3] =
    [("heap", &["x", "y"]), ("orders", &["id", "name", "amount"]), ("pairs", &["a", "b", "user__lsn", "dt"])];

fn check(world: &World, history: &History, what: &str) {
    for (table, columns) in COLUMNS {
        let mut rows: Vec<Vec<String>> = reading::rows(&world.objects, table)
            .into_iter()
            .map(|row| {
                let cell = |name: &&str| row.get(*name).cloned().unwrap_or_else(|| "NULL".into());
                ["_shard"].iter().chain(columns).map(cell).collect()
            })
            .collect();
        rows.sort();
        assert_eq!(rows, expected_rows(history, table), "{what}: the mirror of {table}");

        let logged = reading::rows(&world.objects, &format!("{table}__changes"));
        let mut logged: Vec<_> = logged
            .iter()
            .map(|row| {
                let number = |name: &str| row[name].parse::<u64>().unwrap();
                (row["_shard"].clone(), number("_lsn"), number("_ordinal"), row["_operation"].clone())
            })
            .collect();
        logged.sort();
        assert_eq!(logged, expected_changes(history, table), "{what}: the change log of {table}");
    }
}

fn expected_changes(history: &History, table: &str) -> Vec<(String, u64, u64, String)> {
    let mut changes = Vec::new();
    for (name, shard) in SHARDS.iter().zip(&history.shards) {
        for record in &shard.log {
            let mut push = |ordinal: usize, operation: &str| {
                changes.push(((*name).to_owned(), record.lsn, ordinal as u64, operation.to_owned()));
            };
            for (ordinal, change) in record.changes.iter().enumerate() {
                if record.tables[change.table as usize].name == table {
                    match change.operation() {
                        Operation::Insert => push(ordinal, "insert"),
                        Operation::Delete => push(ordinal, "delete"),
                        _ => {
                            push(ordinal, "update_after");
                            push(ordinal, "update_before");
                        }
                    }
                }
            }
            if record.schema_changes.iter().any(|change| change.dropped == table) {
                push(0, "drop_table");
            }
        }
    }
    changes.sort();
    changes
}

#[test]
fn the_lake_holds_what_the_shards_hold() {
    let seed = seed();
    for seed in seed..seed + 10 {
        let history = History::generate(seed, 120);
        let mut world =
            World::new(seed, "memory://lake/", Settings { lake_event_threshold: 40, ..Settings::default() });
        deliver(&mut world, &history, Delivery { flush_every: 7, maintain: seed % 2 == 1 });
        check(&world, &history, &format!("seed {seed}"));
        let rows: usize = COLUMNS.iter().map(|(table, _)| expected_rows(&history, table).len()).sum();
        let mirrored: u64 = world
            .status()
            .tables
            .iter()
            .filter(|table| !table.name.ends_with("__changes"))
            .map(|table| table.rows)
            .sum();
        assert_eq!(mirrored, rows as u64, "seed {seed}: the rows that the status counts");
    }
}

/// Small enough that compaction has something to do, and nothing kept that need not be.
fn busy() -> Settings {
    Settings {
        lake_event_threshold: 40,
        lake_target_file_size: 6_000,
        lake_parquet_row_group_size: 16,
        lake_snapshot_retention_ms: 0,
        lake_keep_snapshots: 1,
        lake_keep_metadata: 1,
        lake_orphan_age_ms: 0,
        ..Settings::default()
    }
}

/// The operations, of so many, at which something is to happen: every `step`th, from one that the seed chooses; every one where
/// `DOSQL_EVERY_FAULT` is set.
fn fault_points(operations: u64, step: u64) -> impl Iterator<Item = u64> {
    let step = if std::env::var_os("DOSQL_EVERY_FAULT").is_some() { 1 } else { step };
    (1..=operations).skip((seed() % step) as usize).step_by(step as usize)
}

/// Lets operations of a delivery fail in every way.
fn fail(history: &History, settings: &Settings, delivery: Delivery, step: u64) {
    let seed = seed();
    let world = |fault| {
        let world = World::new(seed, "memory://lake/", settings.clone());
        world.objects.fault.set(fault);
        world
    };
    let mut calm = world(None);
    deliver(&mut calm, history, delivery);
    check(&calm, history, "without faults");
    let operations = calm.objects.operations.get();
    println!("{operations} operations");
    assert!(operations > 100, "only {operations} operations");
    for number in fault_points(operations, step) {
        for fault in [Fault::Before, Fault::After, Fault::CrashBefore, Fault::CrashAfter] {
            let mut world = world(Some((number, fault)));
            deliver(&mut world, history, delivery);
            check(&world, history, &format!("{fault:?} at operation {number}, seed {seed}"));
        }
    }
}

#[test]
fn any_operation_of_a_flush_may_fail() {
    let history = History::generate(seed(), 24);
    fail(&history, &Settings::default(), Delivery { flush_every: 2, maintain: false }, 2);
}

#[test]
fn any_operation_of_compaction_and_clean_up_may_fail() {
    let history = History::generate(seed(), 16);
    fail(&history, &busy(), Delivery { flush_every: 2, maintain: true }, 17);
}

#[test]
fn the_index_comes_back_from_the_lake() {
    let seed = seed();
    for seed in seed..seed + 3 {
        let history = History::generate(seed, 60);
        let mut world = World::new(seed, "memory://lake/", busy());
        for round in 0..200_u64 {
            world.now_ms.set(world.now_ms.get() + 1000);
            let complete = deliver_some(&mut world, &history).unwrap();
            world.flush().unwrap();
            if round % 3 == 2 || complete {
                let durable = |world: &mut World| -> BTreeMap<String, u64> {
                    let positions = world.positions().unwrap().into_iter();
                    positions.map(|position| (position.shard, position.durable_lsn)).collect()
                };
                let before = durable(&mut world);
                world = world.without_database(seed + round);
                // The shards have forgotten what was durable.
                assert_eq!(durable(&mut world), before, "seed {seed}, round {round}");
                if round % 2 == 0 {
                    world.maintain().unwrap();
                }
            }
            if complete {
                break;
            }
        }
        check(&world, &history, &format!("seed {seed}"));
        let rows: usize = COLUMNS.iter().map(|(table, _)| expected_rows(&history, table).len()).sum();
        world.maintain().unwrap();
        let tables = world.status().tables;
        let mirrored: u64 =
            tables.iter().filter(|table| !table.name.ends_with("__changes")).map(|table| table.rows).sum();
        assert_eq!(mirrored, rows as u64, "seed {seed}");
    }
}

/// Another writer of the same tables, with a database of its own, commits at any moment of a flush, a compaction or a clean-up:
/// one wins, the other goes on from what it finds.
#[test]
fn two_writers_do_not_harm_each_other() {
    let seed = seed();
    let history = History::generate(seed, 16);
    let delivery = Delivery { flush_every: 1, maintain: true };
    // Both have begun, and one is ahead.
    let prepared = || {
        // What is under way is younger than what clean-up may delete.
        let settings = Settings { lake_snapshot_retention_ms: 5_000, lake_orphan_age_ms: 5_000, ..busy() };
        let mut one = World::new(seed, "memory://lake/", settings);
        for _ in 0..2 {
            one.now_ms.set(one.now_ms.get() + 1000);
            deliver_some(&mut one, &history).unwrap();
            one.flush().unwrap();
        }
        let mut other = one.without_database(seed + 1);
        deliver_some(&mut other, &history).unwrap();
        other.flush().unwrap();
        one.objects.operations.set(0);
        (one, other)
    };
    // Until it has committed, which at first it may fail to.
    fn step(world: &mut World, history: &History) {
        for attempt in 0.. {
            let outcome = deliver_some(world, history).and_then(|_| world.flush()).and_then(|_| world.maintain());
            match outcome {
                Ok(()) => return,
                Err(error) => assert!(error.retryable && attempt < 30, "{error}"),
            }
        }
    }
    let (mut one, _) = prepared();
    step(&mut one, &history);
    let operations = one.objects.operations.get();
    println!("{operations} operations");
    assert!(operations > 100, "only {operations} operations");
    for number in fault_points(operations, 23) {
        let (mut one, other) = prepared();
        let other = std::rc::Rc::new(std::cell::RefCell::new(other));
        let (history, meanwhile) = (&history, std::rc::Rc::clone(&other));
        let log: Vec<Vec<WalRecord>> = history.shards.iter().map(|shard| shard.log.clone()).collect();
        let meanwhile = Box::new(move || {
            let shards = log.into_iter().map(|log| Shard { log, ..Shard::default() }).collect();
            let history = History { shards, ..History::new(0) };
            step(&mut meanwhile.borrow_mut(), &history);
        });
        *one.objects.meanwhile.borrow_mut() = Some((number, meanwhile));
        step(&mut one, history);
        let what = format!("the other commits before operation {number}, seed {seed}");
        deliver(&mut one, history, delivery);
        check(&one, history, &what);
        deliver(&mut other.borrow_mut(), history, delivery);
        check(&one, history, &format!("{what}, and goes on"));
    }
}
