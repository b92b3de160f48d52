//! The walk through every actor under faults: client, router, shards, change stream, lake. Whatever was acknowledged is in the
//! shards, once in the change stream and once in the lake, and nothing is anywhere that nobody wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use dosql_actors::cdc::Cdc;
use dosql_actors::host::simulation::{FaultCounts, SimClient, Simulation, SimulationConfig};
use dosql_actors::shard::Shard;
use dosql_actors::{Call, Settings};
use dosql_lake::Lake;
use dosql_proto::value::Kind;
use dosql_proto::{
    CdcProtocol, CdcReply, CdcRequest, Error, ErrorCode, ExecuteRequest, FlushLake, LoadRequest, Operation,
    PollChanges, Row, RowChange, Statement, StatementResult, SubscribeRequest, Value, cdc_reply, cdc_request,
    router_reply, router_request,
};
use dosql_router::Router;
use dosql_tests::seeds::seeds;
use dosql_tests::storms::{Random, ask_router};

#[path = "../../lake/tests/support/reading.rs"]
mod reading;

/// What the reader of the lake's tables reads from.
mod support {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use futures_util::FutureExt;

    pub(crate) struct Objects {
        pub(crate) files: RefCell<BTreeMap<String, bytes::Bytes>>,
        pub(crate) base: String,
    }

    pub(crate) fn now<F: Future>(future: F) -> F::Output {
        future.now_or_never().expect("it waits for nothing")
    }
}

/// How long the router may take to answer, in milliseconds of the simulation.
const PATIENCE_MS: u64 = 8_000;
/// Writes in one walk, beside the schema changes.
const WRITES: u64 = 24;
/// How often a write is sent before the client gives up, not knowing whether it happened.
const ATTEMPTS: u32 = 4;

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

/// Why a walk did not end as it should.
#[derive(Debug)]
enum Failure {
    /// Something acknowledged is missing, or is there twice, or is something that nobody wrote.
    Wrong(String),
    /// It could not be walked to its end.
    Stopped(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(what) => write!(formatter, "wrong: {what}"),
            Self::Stopped(why) => write!(formatter, "stopped: {why}"),
        }
    }
}

fn stopped(what: &str) -> impl Fn(Error) -> Failure {
    move |error| Failure::Stopped(format!("{what}: {error}"))
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Insert(String),
    /// Text that was appended.
    Append(String),
    Delete,
}

/// What the client knows of one row.
#[derive(Debug, Default)]
struct History {
    acknowledged: Vec<Step>,
    /// What was never acknowledged and may have happened or not; nothing is written to the row after it.
    open: Option<Step>,
}

impl History {
    fn exists(&self) -> bool {
        !matches!(self.acknowledged.last(), None | Some(Step::Delete))
    }
}

type Histories = BTreeMap<i64, History>;

/// A write as the client sends it.
struct Write {
    request: Request,
    /// The rows it touches; all are on their way to the same fate on one shard, and to different ones on different shards.
    steps: Vec<(i64, Step)>,
}

enum Request {
    Execute(String, Vec<Value>),
    Load(Vec<Row>),
}

struct Client {
    simulation: SimClient,
    /// Draws what is written; not the faults.
    random: Random,
    histories: Histories,
}

impl Client {
    fn below(&self, end: u64) -> u64 {
        self.random.below(end)
    }

    async fn send(&self, request: &Request, id: &str) -> Result<u64, Error> {
        let request_id = id.to_owned();
        let request = match request {
            Request::Execute(sql, params) => router_request::Request::Execute(ExecuteRequest {
                statement: Some(Statement { sql: sql.clone(), params: params.clone() }),
                request_id,
                timeout_ms: 5_000,
                ..ExecuteRequest::default()
            }),
            Request::Load(rows) => router_request::Request::Load(LoadRequest {
                table: "t".to_owned(),
                columns: vec!["id".to_owned(), "v".to_owned()],
                rows: rows.clone(),
                request_id,
                ..LoadRequest::default()
            }),
        };
        match ask_router(&self.simulation, request, PATIENCE_MS).await? {
            router_reply::Reply::Execute(response) => Ok(response.result.unwrap_or_default().rows_affected),
            router_reply::Reply::Load(response) => Ok(response.rows_loaded),
            other => Err(Error::internal(format!("not the answer to a write: {other:?}"))),
        }
    }

    /// Changes the schema, however often that takes, or is told why not.
    async fn change_schema(&self, sql: &str) -> Result<Result<(), Error>, Failure> {
        let request = Request::Execute(sql.to_owned(), Vec::new());
        let mut last = None;
        for _ in 0..200 {
            match self.send(&request, sql).await {
                Err(error) if error.retryable => {
                    last = Some(error);
                    self.simulation.sleep(Duration::from_millis(200)).await;
                }
                definite => return Ok(definite.map(|_| ())),
            }
        }
        Err(Failure::Stopped(format!("{sql}: 200 attempts failed, the last with {last:?}")))
    }

    /// Changes the schema in a way that shards without rows allow and those with rows refuse. What some have done is to be
    /// undone: later writes fail where it is not.
    async fn change_schema_in_vain(&self) -> Result<(), Failure> {
        let sql = "ALTER TABLE t ADD COLUMN x INTEGER NOT NULL";
        match self.change_schema(sql).await? {
            Err(error) if error.message.contains("NOT NULL") => Ok(()),
            other => Err(Failure::Wrong(format!("{sql}, where there are rows: {other:?}"))),
        }
    }

    /// Rows that exist and whose fate is known.
    fn settled(&mut self, most: u64) -> Vec<i64> {
        let known = self.histories.iter().filter(|(_, history)| history.open.is_none() && history.exists());
        let mut ids: Vec<i64> = known.map(|(id, _)| *id).collect();
        let wanted = 1 + self.below(most);
        while ids.len() as u64 > wanted {
            let out = self.below(ids.len() as u64);
            ids.remove(usize::try_from(out).unwrap_or(0));
        }
        ids
    }

    fn next_write(&mut self, number: u64) -> Write {
        let next_id = self.histories.len() as i64 + 1;
        let list = |ids: &[i64]| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        match self.below(8) {
            0 | 1 => {
                let most = 5;
                let ids = self.settled(most);
                if !ids.is_empty() {
                    let text = format!("+{number}");
                    let sql = format!("UPDATE t SET v = v || ? WHERE id IN ({})", list(&ids));
                    return Write {
                        request: Request::Execute(sql, vec![Value::from(text.clone())]),
                        steps: ids.into_iter().map(|id| (id, Step::Append(text.clone()))).collect(),
                    };
                }
            }
            2 => {
                let ids = self.settled(3);
                if !ids.is_empty() {
                    let sql = format!("DELETE FROM t WHERE id IN ({})", list(&ids));
                    let steps = ids.into_iter().map(|id| (id, Step::Delete)).collect();
                    return Write { request: Request::Execute(sql, Vec::new()), steps };
                }
            }
            3 => {
                let count = 2 + self.below(6) as i64;
                let steps: Vec<(i64, Step)> =
                    (next_id..next_id + count).map(|id| (id, Step::Insert(format!("load {number}")))).collect();
                let rows = steps
                    .iter()
                    .map(|(id, _)| Row { values: vec![Value::from(*id), Value::from(format!("load {number}"))] });
                return Write { request: Request::Load(rows.collect()), steps };
            }
            4 => {
                // A row that was deleted comes back.
                let gone =
                    |history: &History| history.open.is_none() && history.acknowledged.last() == Some(&Step::Delete);
                let id = self.histories.iter().find(|(_, history)| gone(history)).map(|(id, _)| *id);
                if let Some(id) = id {
                    return insert(id, number);
                }
            }
            _ => {}
        }
        insert(next_id, number)
    }

    /// Writes through a storm.
    async fn write(&mut self) -> Result<(), Failure> {
        // Plain, so that one that was carried out and sent again is refused unless it is recognised.
        let create = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)";
        self.change_schema(create).await?.map_err(stopped(create))?;
        let mut in_vain = false;
        for number in 0..WRITES {
            if !in_vain && !self.settled(1).is_empty() {
                in_vain = true;
                self.change_schema_in_vain().await?;
            }
            if number == WRITES / 2 {
                let alter = "ALTER TABLE t ADD COLUMN w INTEGER";
                self.change_schema(alter).await?.map_err(stopped(alter))?;
            }
            let write = self.next_write(number);
            let mut acknowledged = false;
            for _ in 0..ATTEMPTS {
                match self.send(&write.request, &format!("write-{number}")).await {
                    Ok(rows) if rows == write.steps.len() as u64 => {
                        acknowledged = true;
                        break;
                    }
                    Ok(rows) => {
                        return Err(Failure::Wrong(format!("{rows} rows were affected by {:?}", write.steps)));
                    }
                    Err(error) if !error.retryable => return Err(stopped(&format!("write {number}"))(error)),
                    Err(_) => self.simulation.sleep(Duration::from_millis(100)).await,
                }
            }
            for (id, step) in write.steps {
                let history = self.histories.entry(id).or_default();
                match acknowledged {
                    true => history.acknowledged.push(step),
                    false => history.open = Some(step),
                }
            }
        }
        Ok(())
    }
}

fn insert(id: i64, number: u64) -> Write {
    let text = format!("row {number}");
    Write {
        request: Request::Execute(
            "INSERT INTO t (id, v) VALUES (?, ?)".to_owned(),
            vec![Value::from(id), Value::from(text.clone())],
        ),
        steps: vec![(id, Step::Insert(text))],
    }
}

async fn select(client: &SimClient, sql: &str) -> Result<StatementResult, Error> {
    let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
    let execute = ExecuteRequest { statement, timeout_ms: 5_000, ..ExecuteRequest::default() };
    match ask_router(client, router_request::Request::Execute(execute), PATIENCE_MS).await? {
        router_reply::Reply::Execute(response) => Ok(response.result.unwrap_or_default()),
        other => Err(Error::internal(format!("not the answer to SELECT: {other:?}"))),
    }
}

async fn ask_cdc(client: &SimClient, request: cdc_request::Request) -> Result<CdcReply, Error> {
    let call = Call::system().within(client.now_ms(), 20_000);
    client.ask::<CdcProtocol>("default", CdcRequest { request: Some(request) }, &call).await
}

/// A row's id and its text.
fn id_and_text(row: &Row) -> Result<(i64, String), Failure> {
    let kinds: Vec<Option<&Kind>> = row.values.iter().map(|value| value.kind.as_ref()).collect();
    match kinds.as_slice() {
        [Some(Kind::Integer(id)), Some(Kind::Text(text))] | [Some(Kind::Integer(id)), Some(Kind::Text(text)), None] => {
            Ok((*id, text.clone()))
        }
        other => Err(Failure::Wrong(format!("nobody wrote the row {other:?}"))),
    }
}

/// The rows that SELECT finds.
async fn stored(client: &SimClient, histories: &Histories) -> Result<BTreeMap<i64, String>, Failure> {
    let found = select(client, "SELECT id, v FROM t").await.map_err(|error| {
        let acknowledged = histories.values().filter(|history| history.exists()).count();
        match error.code() {
            ErrorCode::UnknownTable if acknowledged > 0 => {
                Failure::Wrong(format!("{acknowledged} acknowledged rows are gone with their table: {error}"))
            }
            _ => stopped("SELECT")(error),
        }
    })?;
    let mut rows = BTreeMap::new();
    for row in &found.rows {
        let (id, text) = id_and_text(row)?;
        if rows.insert(id, text).is_some() {
            return Err(Failure::Wrong(format!("row {id} is on two shards")));
        }
    }
    Ok(rows)
}

/// One image in the change log: the operation, the row's id and its text.
type Image = (&'static str, i64, String);

/// What the stream says of each row, from the earliest record on: images in the order of the changes.
async fn streamed(client: &SimClient) -> Result<BTreeMap<i64, Vec<Image>>, Failure> {
    let mut from = "earliest".to_owned();
    let mut images: BTreeMap<i64, Vec<Image>> = BTreeMap::new();
    let mut shards = BTreeSet::new();
    loop {
        let subscription =
            SubscribeRequest { tables: vec!["t".to_owned()], from: from.clone(), ..SubscribeRequest::default() };
        let poll = PollChanges { subscription: Some(subscription), wait_ms: 2_000, max_bytes: 0 };
        let reply = ask_cdc(client, cdc_request::Request::Poll(poll)).await.map_err(stopped("poll"))?;
        let Some(cdc_reply::Reply::Changes(batch)) = reply.reply else {
            return Err(Failure::Stopped("poll: not changes".to_owned()));
        };
        if batch.shards.is_empty() {
            break;
        }
        for shard in batch.shards {
            for change in shard.records.iter().flat_map(|record| &record.changes) {
                shards.insert(shard.shard.clone());
                let (id, found) = images_of(change)?;
                images.entry(id).or_default().extend(found);
            }
        }
        from = batch.position;
    }
    if images.len() >= 12 && shards.len() < 2 {
        return Err(Failure::Wrong(format!("{} rows are all on {shards:?}", images.len())));
    }
    Ok(images)
}

fn images_of(change: &RowChange) -> Result<(i64, Vec<Image>), Failure> {
    let image = |row: &Option<Row>, operation| -> Result<Image, Failure> {
        let row = row.as_ref().ok_or_else(|| Failure::Wrong(format!("{change:?} lacks an image")))?;
        let (id, text) = id_and_text(row)?;
        Ok((operation, id, text))
    };
    let images = match change.operation() {
        Operation::Insert => vec![image(&change.after, "insert")?],
        Operation::Update => vec![image(&change.before, "update_before")?, image(&change.after, "update_after")?],
        Operation::Delete => vec![image(&change.before, "delete")?],
        Operation::Unspecified => Vec::new(),
    };
    let id = images.first().map_or(0, |(_, id, _)| *id);
    Ok((id, images))
}

/// What a row's steps come to: its images, and its text where it still exists.
fn outcome(id: i64, steps: &[Step]) -> (Vec<Image>, Option<String>) {
    let mut images = Vec::new();
    let mut text: Option<String> = None;
    for step in steps {
        match (step, text.take()) {
            (Step::Insert(new), _) => {
                images.push(("insert", id, new.clone()));
                text = Some(new.clone());
            }
            (Step::Append(more), Some(old)) => {
                let new = format!("{old}{more}");
                images.extend([("update_before", id, old), ("update_after", id, new.clone())]);
                text = Some(new);
            }
            (Step::Delete, Some(old)) => images.push(("delete", id, old)),
            (Step::Append(_) | Step::Delete, None) => {}
        }
    }
    (images, text)
}

/// Holds what is stored against what the client knows. An acknowledged step must be there, one that is open may be.
fn check_stored(histories: &Histories, stored: &BTreeMap<i64, String>) -> Result<(), Failure> {
    for (id, history) in histories {
        let mut steps = history.acknowledged.clone();
        let (_, without) = outcome(*id, &steps);
        steps.extend(history.open.clone());
        let (_, with) = outcome(*id, &steps);
        let found = stored.get(id);
        if found != without.as_ref() && found != with.as_ref() {
            return Err(Failure::Wrong(format!("row {id} is {found:?} on the shards after {history:?}")));
        }
    }
    match stored.keys().find(|id| !histories.contains_key(id)) {
        Some(id) => Err(Failure::Wrong(format!("row {id} was never written"))),
        None => Ok(()),
    }
}

/// Holds the stream's history of each row against what the client knows and what is stored.
fn check_streamed(
    histories: &Histories,
    stored: &BTreeMap<i64, String>,
    streamed: &BTreeMap<i64, Vec<Image>>,
) -> Result<(), Failure> {
    for (id, history) in histories {
        let found = streamed.get(id).cloned().unwrap_or_default();
        let mut steps = history.acknowledged.clone();
        let without = outcome(*id, &steps);
        steps.extend(history.open.clone());
        let with = outcome(*id, &steps);
        let end = stored.get(id).cloned();
        if (found.clone(), end.clone()) != without && (found.clone(), end.clone()) != with {
            return Err(Failure::Wrong(format!(
                "the change stream has {found:?}, the shards {end:?}, after {history:?}"
            )));
        }
    }
    match streamed.keys().find(|id| !histories.contains_key(id)) {
        Some(id) => Err(Failure::Wrong(format!("the change stream has row {id}, which was never written"))),
        None => Ok(()),
    }
}

/// Holds the lake's two tables against the shards and the stream.
fn check_lake(
    simulation: &Simulation,
    stored: &BTreeMap<i64, String>,
    streamed: &BTreeMap<i64, Vec<Image>>,
) -> Result<(), Failure> {
    let files: BTreeMap<_, _> = simulation.objects().into_iter().collect();
    let objects = support::Objects { files: RefCell::new(files), base: "memory:///".to_owned() };
    let cell = |row: &reading::TextRow, name: &str| row.get(name).cloned().unwrap_or_default();
    let mut mirror: Vec<(String, String)> =
        reading::rows(&objects, "t").iter().map(|row| (cell(row, "id"), cell(row, "v"))).collect();
    mirror.sort();
    let mut expected: Vec<(String, String)> = stored.iter().map(|(id, text)| (id.to_string(), text.clone())).collect();
    expected.sort();
    if mirror != expected {
        return Err(Failure::Wrong(format!("the lake's mirror has {mirror:?}, the shards {expected:?}")));
    }
    let number = |row: &reading::TextRow, name: &str| cell(row, name).parse::<u64>().unwrap_or(u64::MAX);
    let mut log = reading::rows(&objects, "t__changes");
    // Of an update's two images the one before comes first.
    log.sort_by_key(|row| (number(row, "_lsn"), number(row, "_ordinal"), cell(row, "_operation") == "update_after"));
    let mut logged: BTreeMap<i64, Vec<(String, i64, String)>> = BTreeMap::new();
    for row in &log {
        let id = cell(row, "id").parse().unwrap_or(0);
        logged.entry(id).or_default().push((cell(row, "_operation"), id, cell(row, "v")));
    }
    let text = |images: &Vec<Image>| -> Vec<(String, i64, String)> {
        images.iter().map(|(operation, id, text)| ((*operation).to_owned(), *id, text.clone())).collect()
    };
    let expected: BTreeMap<i64, Vec<_>> = streamed.iter().map(|(id, images)| (*id, text(images))).collect();
    if logged != expected {
        return Err(Failure::Wrong(format!("the lake's change log has {logged:?}, the change stream {expected:?}")));
    }
    Ok(())
}

fn walk(seed: u64, config: SimulationConfig) -> Result<Simulation, Failure> {
    let simulation = Simulation::new(seed, config).map_err(stopped("the simulation"))?;
    simulation.register::<Shard>();
    simulation.register::<Router>();
    simulation.register::<Cdc>();
    simulation.register::<Lake>();
    let mut client = Client { simulation: simulation.client(), random: Random::new(seed), histories: Histories::new() };
    let written = simulation.block_on(client.write());
    simulation.quiesce(Duration::from_secs(30));
    let Client { simulation: client, histories, .. } = client;
    let stored = simulation.block_on(async {
        // Where the writing stopped, what had been acknowledged by then must be there all the same.
        let stored = match (stored(&client, &histories).await, &written) {
            (Err(Failure::Stopped(_)), Err(Failure::Stopped(why))) => return Err(Failure::Stopped(why.clone())),
            (stored, _) => stored?,
        };
        check_stored(&histories, &stored)?;
        Ok::<_, Failure>(stored)
    })?;
    written?;
    let streamed = simulation.block_on(async {
        let flushed = ask_cdc(&client, cdc_request::Request::FlushLake(FlushLake {})).await;
        flushed.map_err(stopped("FlushLake"))?;
        streamed(&client).await
    })?;
    check_streamed(&histories, &stored, &streamed)?;
    check_lake(&simulation, &stored, &streamed)?;
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
    fn add(&mut self, simulation: &Simulation) {
        let faults = simulation.faults();
        let all = &mut self.faults;
        all.lost += faults.lost;
        all.duplicated += faults.duplicated;
        all.crashes += faults.crashes;
        all.power_failures += faults.power_failures;
        all.io_errors += faults.io_errors;
        all.object_errors += faults.object_errors;
        for (kind, deaths) in simulation.deaths() {
            *self.deaths.entry(kind).or_default() += deaths;
        }
    }
}

/// Walks the histories of these seeds; every kind of fault must have struck in them.
fn walk_all(seeds: &[u64]) {
    if let [_] = seeds {
        // A replay may be watched: RUST_LOG=debug.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let mut struck = Struck::default();
    let mut failures = Vec::new();
    for seed in seeds {
        match walk(*seed, stormy()) {
            Ok(simulation) => struck.add(&simulation),
            Err(failure) => failures.push(format!("DOSQL_SEED={seed}: {failure}")),
        }
    }
    assert!(failures.is_empty(), "{} of {} walks failed:\n{}", failures.len(), seeds.len(), failures.join("\n"));
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
