//! A subscriber that begins with a snapshot, under faults: while tables are copied they are written, and shards and the change
//! stream die. The subscriber dies too, and goes on from the position it had stored. Every row must come once, as a row of the
//! snapshot or as a change, every change must fit what the subscriber has, and in the end it has what the shards have.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use dosql_actors::cdc::Cdc;
use dosql_actors::host::simulation::{SimClient, Simulation, SimulationConfig};
use dosql_actors::shard::Shard;
use dosql_actors::{Call, Settings};
use dosql_proto::value::Kind;
use dosql_proto::{
    CdcProtocol, CdcRequest, ChangeBatch, Error, Operation, PollChanges, Row, RowChange, ShardExecute, ShardProtocol,
    ShardQuery, ShardRequest, Statement, SubscribeRequest, Value, WalTable, cdc_reply, cdc_request, shard_reply,
    shard_request,
};
use dosql_tests::seeds::{histories, seeds};
use dosql_tests::storms::Random;

const SHARDS: [&str; 2] = ["shard-0", "shard-1"];
const WRITES: u64 = 60;

/// Keyed by the rowid, by columns that have other ideas of order than their bytes, and by nothing.
const TABLES: [&str; 3] = [
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
    "CREATE TABLE k (a TEXT COLLATE NOCASE, b, v, PRIMARY KEY (b DESC, a)) WITHOUT ROWID",
    "CREATE TABLE n (v)",
];

fn settings() -> Settings {
    Settings {
        shard_count: 2,
        shard_timeout_ms: 2_000,
        cdc_batch_timeout_ms: 200,
        cdc_retry_delay_ms: 20,
        ..Settings::default()
    }
}

async fn ask_shard(
    client: &SimClient,
    shard: &str,
    request: shard_request::Request,
) -> Result<shard_reply::Reply, Error> {
    let call = Call::system().within(client.now_ms(), 3_000);
    let request = ShardRequest { request: Some(request), ..ShardRequest::default() };
    Ok(client.ask::<ShardProtocol>(shard, request, &call).await?.reply.expect("a reply"))
}

/// Writes until it is acknowledged, once.
async fn write(client: &SimClient, shard: &str, request_id: &str, sql: Vec<String>) {
    let statements = sql.into_iter().map(|sql| Statement { sql, params: Vec::new() }).collect();
    let execute = ShardExecute { statements, request_id: request_id.to_owned(), ..ShardExecute::default() };
    while let Err(error) = ask_shard(client, shard, shard_request::Request::Execute(execute.clone())).await {
        assert!(error.retryable, "{execute:?}: {error}");
        client.sleep(Duration::from_millis(20)).await;
    }
}

fn statement(random: &Random) -> String {
    let (id, v) = (random.below(90), random.below(1_000));
    let letter = char::from(b"aAbBcC"[usize::try_from(random.below(6)).unwrap()]);
    // Numbers of both kinds, text and blobs, in one key column.
    let b = ["1", "1.5", "2", "'x'", "'Y'", "x'00'"][usize::try_from(random.below(6)).unwrap()];
    match random.below(11) {
        0 | 1 => format!("INSERT OR REPLACE INTO t VALUES ({id}, 'new {v}')"),
        2 => format!("UPDATE t SET v = 'changed {v}' WHERE id % 7 = {}", id % 7),
        3 => format!("UPDATE OR IGNORE t SET id = {} WHERE id = {id}", random.below(90)),
        4 => format!("DELETE FROM t WHERE id = {id}"),
        5 | 6 => format!("INSERT OR REPLACE INTO k VALUES ('{letter}{}', {b}, {v})", id % 5),
        7 => format!("UPDATE OR IGNORE k SET a = upper(a), b = {b}, v = {v} WHERE a = '{letter}{}'", id % 5),
        8 => format!("DELETE FROM k WHERE b = {b} AND a < '{letter}'"),
        9 => format!("INSERT INTO n SELECT {v} UNION ALL SELECT 'two'"),
        _ => format!(
            "UPDATE OR IGNORE n SET v = {v}, rowid = rowid + 500 * (rowid % 3 = 0) WHERE rowid % 5 = {}",
            id % 5
        ),
    }
}

/// The rows of a shard's tables, by table and key.
type Rows = BTreeMap<(String, String, String), Row>;

fn key(table: &WalTable, rowid: i64, row: &Row) -> String {
    match table.primary_key.as_slice() {
        [] => rowid.to_string(),
        key => key.iter().map(|at| format!("{:?};", row.values[*at as usize])).collect(),
    }
}

/// A subscriber: what it has, and from where it goes on.
#[derive(Clone)]
struct Subscriber {
    subscription: SubscribeRequest,
    rows: Rows,
}

impl Subscriber {
    /// Takes a batch. Says how many rows of the snapshot, and how many changes, were in it.
    fn take(&mut self, batch: &ChangeBatch) -> (u64, u64) {
        let (mut copied, mut changed) = (0, 0);
        for shard in &batch.shards {
            for record in &shard.records {
                for change in &record.changes {
                    self.apply(&shard.shard, &record.tables[change.table as usize], change);
                    *(if shard.snapshot.is_some() { &mut copied } else { &mut changed }) += 1;
                }
            }
        }
        self.subscription.from.clone_from(&batch.position);
        (copied, changed)
    }

    fn apply(&mut self, shard: &str, table: &WalTable, change: &RowChange) {
        let rows = &mut self.rows;
        let place = |rowid: i64, row: &Row| (shard.to_owned(), table.name.clone(), key(table, rowid, row));
        if let Some(before) = &change.before {
            let had = rows.remove(&place(change.rowid, before));
            assert_eq!(had.as_ref(), Some(before), "a change of a row that the subscriber does not have: {change:?}");
        }
        if let Some(after) = &change.after {
            let had = rows.insert(place(change.rowid, after), after.clone());
            assert_eq!(had, None, "a row that the subscriber has already: {change:?}");
        }
        let shape = (change.before.is_some(), change.after.is_some());
        assert_eq!(
            shape,
            match change.operation() {
                Operation::Insert => (false, true),
                Operation::Update => (true, true),
                _ => (true, false),
            }
        );
    }
}

async fn ask_cdc(client: &SimClient, request: cdc_request::Request) -> Result<cdc_reply::Reply, Error> {
    let call = Call::system().within(client.now_ms(), 5_000);
    let request = CdcRequest { request: Some(request) };
    Ok(client.ask::<CdcProtocol>("default", request, &call).await?.reply.expect("a reply"))
}

async fn open(client: &SimClient) -> Subscriber {
    let subscription = SubscribeRequest { snapshot: true, ..SubscribeRequest::default() };
    loop {
        match ask_cdc(client, cdc_request::Request::Open(subscription.clone())).await {
            Ok(cdc_reply::Reply::Opened(subscription)) => return Subscriber { subscription, rows: Rows::new() },
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(error.retryable, "{error}"),
        }
    }
}

async fn poll(client: &SimClient, subscription: &SubscribeRequest, max_bytes: u32) -> Result<ChangeBatch, Error> {
    let poll = PollChanges { subscription: Some(subscription.clone()), wait_ms: 100, max_bytes };
    match ask_cdc(client, cdc_request::Request::Poll(poll)).await? {
        cdc_reply::Reply::Changes(batch) => Ok(batch),
        other => panic!("{other:?}"),
    }
}

async fn stored(client: &SimClient) -> Rows {
    let mut rows = Rows::new();
    for shard in SHARDS {
        for (table, sql, primary_key) in [
            ("t", "SELECT rowid, * FROM t", vec![0]),
            ("k", "SELECT 0, * FROM k", vec![1, 0]),
            ("n", "SELECT rowid, * FROM n", vec![]),
        ] {
            let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
            let query = ShardQuery { statement, max_batch_bytes: 4 << 20, ..ShardQuery::default() };
            let reply = ask_shard(client, shard, shard_request::Request::Query(query)).await.unwrap();
            let shard_reply::Reply::Rows(batch) = reply else { panic!("{reply:?}") };
            let table = WalTable { name: table.to_owned(), columns: Vec::new(), primary_key };
            for mut row in batch.rows {
                let Value { kind: Some(Kind::Integer(rowid)) } = row.values.remove(0) else { panic!("{row:?}") };
                let place = (shard.to_owned(), table.name.clone(), key(&table, rowid, &row));
                assert!(rows.insert(place, row).is_none());
            }
        }
    }
    rows
}

/// What happened in a history.
#[derive(Debug, Default)]
struct Told {
    copied: u64,
    parts: u64,
    /// Changes that came while rows were still being copied.
    between: u64,
    restarts: u64,
    crashes: u64,
}

fn history(seed: u64) -> Told {
    let config = SimulationConfig {
        crash_interval: Some(Duration::from_millis(700)),
        longest_restart: Duration::from_millis(200),
        loss_noticed_after: Duration::from_millis(300),
        ..SimulationConfig::stormy(settings())
    };
    let simulation = Simulation::new(seed, config).unwrap();
    simulation.register::<Shard>();
    simulation.register::<Cdc>();
    let client = simulation.client();
    let random = Random::new(seed);
    let written = Cell::new(0_u64);
    let told = RefCell::new(Told::default());
    let subscriber = simulation.block_on(async {
        for shard in SHARDS {
            let mut first: Vec<String> = TABLES.map(str::to_owned).into();
            first.extend((0..60).map(|_| statement(&random)));
            write(&client, shard, "first", first).await;
        }
        let writer = async {
            for number in 0..WRITES {
                let shard = SHARDS[usize::try_from(random.below(2)).unwrap()];
                let several = (0..=random.below(3)).map(|_| statement(&random)).collect();
                write(&client, shard, &format!("write {number}"), several).await;
                client.sleep(Duration::from_millis(random.below(30))).await;
                written.set(number + 1);
            }
        };
        let reader = async {
            let mut subscriber = open(&client).await;
            let mut saved = subscriber.clone();
            loop {
                let done = written.get() == WRITES;
                let copying = subscriber.subscription.from.contains("snapshot");
                match poll(&client, &subscriber.subscription, 400).await {
                    Ok(batch) if done && !copying && batch.shards.is_empty() => return subscriber,
                    Ok(batch) => {
                        let (copied, changed) = subscriber.take(&batch);
                        let mut told = told.borrow_mut();
                        told.copied += copied;
                        told.parts += u64::from(copied > 0);
                        told.between += if copying { changed } else { 0 };
                    }
                    Err(error) => assert!(error.retryable, "{error}"),
                }
                match random.below(8) {
                    0 => saved = subscriber.clone(),
                    1 => {
                        subscriber = saved.clone();
                        told.borrow_mut().restarts += 1;
                    }
                    _ => {}
                }
            }
        };
        futures_util::future::join(writer, reader).await.1
    });
    simulation.quiesce(Duration::from_secs(5));
    let (rows, subscriber) = simulation.block_on(async {
        let mut subscriber = subscriber;
        loop {
            let batch = poll(&client, &subscriber.subscription, 0).await.unwrap();
            subscriber.take(&batch);
            if batch.shards.is_empty() {
                return (stored(&client).await, subscriber);
            }
        }
    });
    assert_eq!(subscriber.rows, rows);
    Told { crashes: simulation.faults().crashes, ..told.into_inner() }
}

#[test]
fn a_snapshot_and_the_changes_are_the_table() {
    let mut sum = Told::default();
    let seeds = seeds(30);
    for told in histories(&seeds, |seed| Ok::<_, String>(history(seed))) {
        sum.copied += told.copied;
        sum.parts += told.parts;
        sum.between += told.between;
        sum.restarts += told.restarts;
        sum.crashes += told.crashes;
    }
    println!("{} histories: {sum:?}", seeds.len());
    if seeds.len() >= 10 {
        let number = u64::try_from(seeds.len()).unwrap();
        assert!(sum.parts > 5 * number && sum.between > 5 * number, "{sum:?}");
        assert!(sum.restarts > number && sum.crashes > number, "{sum:?}");
    }
}
