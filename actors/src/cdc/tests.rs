//! What the change stream promises, with real shards and a lake that does what the test says.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{
    CdcProtocol, CdcRequest, CdcShardStatus, CdcStatusRequest, ChangeBatch, Error, ErrorCode, FlushLake, LakePosition,
    LakePositions, LakeProtocol, LakeReply, LakeRequest, PollChanges, ShardExecute, ShardProtocol, ShardRequest,
    ShardStatus, ShardStatusRequest, Statement, SubscribeRequest, WalRecord, cdc_reply, cdc_request, lake_reply,
    lake_request, shard_reply, shard_request,
};

use super::Cdc;
use crate::runtime::{Actor, Call, Context, Handled, Settings};
use crate::shard::Shard;
use crate::test_world::{World, run};

/// What the lake of this test (of this thread) has and does. Survives the actor, as object storage would.
#[derive(Default)]
struct Lake {
    durable: BTreeMap<String, Vec<WalRecord>>,
    /// Answers to the next appends; then they are taken.
    failures: VecDeque<Error>,
    /// Forget the buffer before the next message, as a restart would.
    lose_buffer: bool,
    /// Records in the longest append.
    longest: usize,
}

thread_local! {
    static LAKE: RefCell<Lake> = RefCell::default();
}

#[derive(Default)]
struct LakeActor {
    buffered: BTreeMap<String, Vec<WalRecord>>,
}

impl LakeActor {
    fn buffered_lsn(&self, shard: &str) -> u64 {
        let durable = LAKE.with_borrow(|lake| last(&lake.durable, shard));
        last(&self.buffered, shard).max(durable)
    }
}

fn last(records: &BTreeMap<String, Vec<WalRecord>>, shard: &str) -> u64 {
    records.get(shard).and_then(|records| records.last()).map_or(0, |record| record.lsn)
}

impl Actor for LakeActor {
    type Protocol = LakeProtocol;

    async fn start(_: Context) -> Result<Self, Error> {
        Ok(Self::default())
    }

    async fn handle(&mut self, request: LakeRequest, _: &Call) -> Handled<LakeReply> {
        if LAKE.with_borrow_mut(|lake| std::mem::take(&mut lake.lose_buffer)) {
            self.buffered.clear();
        }
        match request.request.unwrap() {
            lake_request::Request::Append(append) => {
                if let Some(error) = LAKE.with_borrow_mut(|lake| lake.failures.pop_front()) {
                    return Handled::Reply(Err(error));
                }
                let buffered = self.buffered_lsn(&append.shard);
                if append.after_lsn > buffered {
                    let mut error = Error::retryable(ErrorCode::OutOfOrder, "gap", 0);
                    error.expected_lsn = buffered + 1;
                    return Handled::Reply(Err(error));
                }
                LAKE.with_borrow_mut(|lake| lake.longest = lake.longest.max(append.records.len()));
                let new = append.records.into_iter().filter(|record| record.lsn > buffered);
                self.buffered.entry(append.shard).or_default().extend(new);
            }
            lake_request::Request::Flush(_) => LAKE.with_borrow_mut(|lake| {
                for (shard, records) in std::mem::take(&mut self.buffered) {
                    lake.durable.entry(shard).or_default().extend(records);
                }
            }),
            _ => {}
        }
        let shards = ["shard-0", "shard-1"]
            .map(|shard| LakePosition {
                shard: shard.to_owned(),
                buffered_lsn: self.buffered_lsn(shard),
                durable_lsn: LAKE.with_borrow(|lake| last(&lake.durable, shard)),
            })
            .to_vec();
        Handled::Reply(Ok(LakeReply { reply: Some(lake_reply::Reply::Positions(LakePositions { shards })) }))
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        shard_count: 2,
        cdc_batch_timeout_ms: 100,
        cdc_retry_delay_ms: 5,
        cdc_max_retry_count: 2,
        cdc_batch_size: 3,
        wal_segment_size: 4096,
        ..Settings::default()
    }
}

pub(super) fn start(settings: Settings) -> Rc<World> {
    let world = World::new(settings);
    for shard in world.settings.shard_names() {
        world.start::<Shard>(&shard);
    }
    world.start::<LakeActor>("default");
    world.start::<Cdc>("default");
    world
}

pub(super) async fn execute(world: &Rc<World>, shard: &str, sql: &str) {
    let statements = vec![Statement { sql: sql.to_owned(), params: Vec::new() }];
    let request = shard_request::Request::Execute(ShardExecute { statements, ..ShardExecute::default() });
    world
        .ask::<ShardProtocol>(shard, ShardRequest { request: Some(request), ..ShardRequest::default() })
        .await
        .unwrap();
}

pub(super) async fn shard_status(world: &Rc<World>, shard: &str) -> ShardStatus {
    let request = shard_request::Request::Status(ShardStatusRequest {});
    match world
        .ask::<ShardProtocol>(shard, ShardRequest { request: Some(request), ..ShardRequest::default() })
        .await
        .unwrap()
        .reply
        .unwrap()
    {
        shard_reply::Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn cdc(world: &Rc<World>, request: cdc_request::Request) -> Result<cdc_reply::Reply, Error> {
    Ok(world.ask::<CdcProtocol>("default", CdcRequest { request: Some(request) }).await?.reply.unwrap())
}

pub(super) async fn poll(world: &Rc<World>, tables: &[&str], from: &str, wait_ms: u64) -> Result<ChangeBatch, Error> {
    let tables = tables.iter().map(|table| (*table).to_owned()).collect();
    let subscription = Some(SubscribeRequest { tables, from: from.to_owned(), ..SubscribeRequest::default() });
    let poll = PollChanges { subscription, wait_ms, max_bytes: 0 };
    match cdc(world, cdc_request::Request::Poll(poll)).await? {
        cdc_reply::Reply::Changes(batch) => Ok(batch),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn flush(world: &Rc<World>) -> Result<String, Error> {
    match cdc(world, cdc_request::Request::FlushLake(FlushLake {})).await? {
        cdc_reply::Reply::Flushed(flushed) => Ok(flushed.position),
        other => panic!("{other:?}"),
    }
}

/// Where the stream stands with a shard.
pub(super) async fn stands(world: &Rc<World>, shard: &str) -> CdcShardStatus {
    match cdc(world, cdc_request::Request::Status(CdcStatusRequest {})).await.unwrap() {
        cdc_reply::Reply::Status(status) => status.shards.into_iter().find(|told| told.shard == shard).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn lsns(batch: &ChangeBatch) -> Vec<(String, Vec<u64>)> {
    let records = |records: &[WalRecord]| records.iter().map(|record| record.lsn).collect();
    batch.shards.iter().map(|shard| (shard.shard.clone(), records(&shard.records))).collect()
}

fn in_lake(shard: &str) -> Vec<u64> {
    LAKE.with_borrow(|lake| lake.durable.get(shard).into_iter().flatten().map(|record| record.lsn).collect())
}

pub(super) async fn fill(world: &Rc<World>, shard: &str, rows: u64) {
    execute(world, shard, "CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b)").await;
    for _ in 0..rows {
        execute(world, shard, "INSERT INTO t (b) VALUES ('some text')").await;
    }
}

#[test]
fn subscribers_resume_anywhere_in_order() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 3).await;
        fill(&world, "shard-1", 1).await;
        let all = poll(&world, &[], "earliest", 0).await.unwrap();
        assert_eq!(lsns(&all), [("shard-0".into(), vec![1, 2, 3, 4]), ("shard-1".into(), vec![1, 2])]);
        assert_eq!(all.position, "shard-0:4,shard-1:2");
        assert_eq!(all.shards[0].records[1].changes.len(), 1);
        let rest = poll(&world, &[], "shard-0:2", 0).await.unwrap();
        assert_eq!(lsns(&rest), [("shard-0".into(), vec![3, 4]), ("shard-1".into(), vec![1, 2])]);
        let none = poll(&world, &[], "latest", 0).await.unwrap();
        assert_eq!((lsns(&none), none.position), (vec![], "shard-0:4,shard-1:2".to_owned()));
        // A stream that has just restarted knows as much.
        world.start::<Cdc>("default");
        let rest = poll(&world, &[], "shard-0:3,shard-1:2", 0).await.unwrap();
        assert_eq!(lsns(&rest), [("shard-0".into(), vec![4])]);
    });
}

#[test]
fn a_waiting_subscriber_is_woken_by_a_commit() {
    run(async {
        let world = start(Settings { cdc_batch_timeout_ms: 60_000, ..settings() });
        fill(&world, "shard-0", 1).await;
        let waiting = tokio::task::spawn_local({
            let world = Rc::clone(&world);
            async move { poll(&world, &[], "latest", 9_000).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        execute(&world, "shard-1", "CREATE TABLE t (a)").await;
        let woken = tokio::time::timeout(Duration::from_secs(4), waiting).await;
        let batch = woken.expect("woken before its time is up").unwrap().unwrap();
        assert_eq!(lsns(&batch), [("shard-1".into(), vec![1])]);
        assert_eq!(batch.position, "shard-0:2,shard-1:1");
    });
}

#[test]
fn a_commit_that_was_not_told_is_found() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 1).await;
        let position = poll(&world, &[], "latest", 0).await.unwrap().position;
        let waiting = tokio::task::spawn_local({
            let world = Rc::clone(&world);
            async move { poll(&world, &[], &position, 9_000).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        // The shard cannot reach the stream.
        *world.unreachable.borrow_mut() = Some("cdc");
        execute(&world, "shard-0", "INSERT INTO t DEFAULT VALUES").await;
        let found = tokio::time::timeout(Duration::from_secs(4), waiting).await;
        let batch = found.expect("found before its time is up").unwrap().unwrap();
        assert_eq!(lsns(&batch), [("shard-0".into(), vec![3])]);
    });
}

#[test]
fn a_subscriber_gets_its_tables_and_moves_past_the_others() {
    run(async {
        let world = start(settings());
        execute(&world, "shard-0", "CREATE TABLE a (x)").await;
        execute(&world, "shard-0", "CREATE TABLE b (x)").await;
        execute(&world, "shard-0", "CREATE TRIGGER g AFTER INSERT ON a BEGIN INSERT INTO b VALUES (new.x); END").await;
        execute(&world, "shard-0", "INSERT INTO a VALUES (1)").await;
        execute(&world, "shard-0", "INSERT INTO a VALUES (2)").await;
        execute(&world, "shard-0", "DROP TABLE b").await;
        let batch = poll(&world, &["B", "nix"], "earliest", 0).await.unwrap();
        assert_eq!(lsns(&batch), [("shard-0".into(), vec![2, 4, 5, 6])]);
        let record = &batch.shards[0].records[1];
        assert_eq!(record.changes.len(), 1);
        assert_eq!(record.tables[record.changes[0].table as usize].name, "b");
        let batch = poll(&world, &["nix"], "earliest", 0).await.unwrap();
        assert_eq!((lsns(&batch), batch.position), (vec![], "shard-0:6,shard-1:0".to_owned()));
    });
}

#[test]
fn positions_that_mean_nothing_are_refused() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 1).await;
        for (from, part) in [
            ("yesterday", "\"yesterday\" is not a position"),
            ("shard-0:x", "\"shard-0:x\" is not a position"),
            ("shard-7:1", "shard-7 in the position"),
            ("shard-0:3", "LSN 3 of shard-0 is in the future; retained are LSN 1 to 2"),
        ] {
            let error = poll(&world, &[], from, 0).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::UnknownPosition, "{from}: {error}");
            assert!(error.message.contains(part), "{from}: {error}");
        }
        fill(&world, "shard-0", 200).await;
        flush(&world).await.unwrap();
        let mut status = shard_status(&world, "shard-0").await;
        for _ in 0..100 {
            if status.oldest_lsn > 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            status = shard_status(&world, "shard-0").await;
        }
        let error = poll(&world, &[], "shard-0:1", 0).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::UnknownPosition);
        assert!(error.message.contains(&format!("retained are LSN {} to 202", status.oldest_lsn)), "{error}");
        let batch = poll(&world, &[], "earliest", 0).await.unwrap();
        assert_eq!(batch.shards[0].records[0].lsn, status.oldest_lsn);
    });
}

#[test]
fn everything_reaches_the_lake_once_whatever_fails() {
    run(async {
        let world = start(settings());
        LAKE.with_borrow_mut(|lake| {
            lake.failures = [
                Error::retryable(ErrorCode::BufferFull, "full", 5),
                Error::retryable(ErrorCode::Unavailable, "away", 0),
                Error::internal("broken"),
                Error::internal("broken"),
                Error::internal("broken"),
                Error::internal("broken"),
            ]
            .into();
        });
        fill(&world, "shard-0", 19).await;
        fill(&world, "shard-1", 5).await;
        assert_eq!(flush(&world).await.unwrap(), "shard-0:20,shard-1:6");
        assert_eq!(in_lake("shard-0"), (1..=20).collect::<Vec<_>>());
        assert_eq!(in_lake("shard-1"), (1..=6).collect::<Vec<_>>());
        assert!(LAKE.with_borrow(|lake| lake.longest) <= 3);

        // The lake restarts with records in its buffer: nobody commits anything, and they come again.
        fill(&world, "shard-0", 4).await;
        while stands(&world, "shard-0").await.delivered_lsn < 24 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        LAKE.with_borrow_mut(|lake| lake.lose_buffer = true);
        assert_eq!(flush(&world).await.unwrap(), "shard-0:24,shard-1:6");
        assert_eq!(in_lake("shard-0"), (1..=24).collect::<Vec<_>>());

        // The stream restarts: it asks the lake where it stands.
        world.start::<Cdc>("default");
        fill(&world, "shard-1", 3).await;
        assert_eq!(flush(&world).await.unwrap(), "shard-0:24,shard-1:9");
        assert_eq!(in_lake("shard-1"), (1..=9).collect::<Vec<_>>());
        let told = stands(&world, "shard-1").await;
        assert_eq!((told.last_lsn, told.delivered_lsn, told.durable_lsn), (9, 9, 9));
    });
}

#[test]
fn a_lake_that_is_away_is_named() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 1).await;
        *world.unreachable.borrow_mut() = Some("lake");
        let context = world.context("test", "test");
        let call = Call::system().within(context.now_ms(), 300);
        let request = CdcRequest { request: Some(cdc_request::Request::FlushLake(FlushLake {})) };
        let error = context.ask::<CdcProtocol>("default", request, &call).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
        *world.unreachable.borrow_mut() = None;
        assert_eq!(flush(&world).await.unwrap(), "shard-0:2,shard-1:0");
    });
}

#[test]
fn an_idle_stream_is_quiet() {
    run(async {
        let world = start(Settings { cdc_batch_timeout_ms: 200, ..settings() });
        fill(&world, "shard-0", 5).await;
        flush(&world).await.unwrap();
        let before = (world.delivered("shard"), world.delivered("lake"));
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let (shard, lake) = (world.delivered("shard") - before.0, world.delivered("lake") - before.1);
        // Two shards and the lake, five or six times, and what was still to be acknowledged.
        assert!((6..=16).contains(&shard), "{shard} messages to idle shards");
        assert!((3..=7).contains(&lake), "{lake} messages to an idle lake");
    });
}

#[test]
fn what_the_lake_does_not_take_falls_back_and_is_delivered_once() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 5).await;
        flush(&world).await.unwrap();
        let failure = || Error::retryable(ErrorCode::ObjectStore, "no bucket", 1);
        let set =
            |failures: usize| LAKE.with_borrow_mut(|lake| lake.failures = (0..failures).map(|_| failure()).collect());
        set(10_000);
        fill(&world, "shard-0", 100).await;
        let all_fell_back = async |least: u64| {
            let told = stands(&world, "shard-0").await;
            told.last_lsn >= least && told.fallback_records == told.last_lsn - 6
        };
        wait_until(async || all_fell_back(106).await).await;
        // The shard need not keep them, but for a segment.
        wait_until(async || shard_status(&world, "shard-0").await.oldest_lsn > 20).await;
        // Neither a restart nor more of the same changes anything.
        world.start::<Cdc>("default");
        fill(&world, "shard-0", 9).await;
        wait_until(async || all_fell_back(115).await).await;
        assert!(in_lake("shard-0").len() == 6);
        set(3);
        fill(&world, "shard-1", 2).await;
        flush(&world).await.unwrap();
        let last = stands(&world, "shard-0").await.last_lsn;
        assert_eq!(in_lake("shard-0"), (1..=last).collect::<Vec<_>>());
        assert_eq!(in_lake("shard-1"), [1, 2, 3]);
        wait_until(async || stands(&world, "shard-0").await.fallback_bytes == 0).await;
    });
}

#[test]
fn a_full_fallback_leaves_the_rest_to_the_shards() {
    run(async {
        let world = start(Settings { cdc_fallback_size: 1_000, ..settings() });
        fill(&world, "shard-0", 1).await;
        flush(&world).await.unwrap();
        LAKE.with_borrow_mut(|lake| {
            lake.failures = (0..60).map(|_| Error::retryable(ErrorCode::BufferFull, "buffer_full", 1)).collect();
        });
        fill(&world, "shard-0", 100).await;
        flush(&world).await.unwrap();
        assert!(stands(&world, "shard-0").await.fallback_bytes <= 1_000);
        let last = stands(&world, "shard-0").await.last_lsn;
        assert_eq!(in_lake("shard-0"), (1..=last).collect::<Vec<_>>());
    });
}

/// Waits, for a while, until it is so.
async fn wait_until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not come to that within 10 s");
}
