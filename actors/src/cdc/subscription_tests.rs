//! What subscribers choose, where they start, and durable subscriptions.

use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{
    AcknowledgeChanges, CdcProtocol, CdcRequest, ChangeBatch, DropSubscriptionRequest, DurableSubscription, Error,
    ErrorCode, ListSubscriptionsRequest, Operation, PollChanges, SubscribeRequest, Value, cdc_reply, cdc_request,
};

use super::Cdc;
use super::tests::{cdc, execute, fill, flush, lsns, settings, shard_status, start};
use crate::runtime::{Call, Settings};
use crate::test_world::{World, run};

async fn open(world: &Rc<World>, request: SubscribeRequest) -> Result<SubscribeRequest, Error> {
    match cdc(world, cdc_request::Request::Open(request)).await? {
        cdc_reply::Reply::Opened(opened) => Ok(opened),
        other => panic!("{other:?}"),
    }
}

async fn poll(world: &Rc<World>, subscription: SubscribeRequest) -> Result<ChangeBatch, Error> {
    let poll = PollChanges { subscription: Some(subscription), wait_ms: 0, max_bytes: 0 };
    match cdc(world, cdc_request::Request::Poll(poll)).await? {
        cdc_reply::Reply::Changes(batch) => Ok(batch),
        other => panic!("{other:?}"),
    }
}

async fn acknowledge(world: &Rc<World>, name: &str, position: &str) -> Result<DurableSubscription, Error> {
    let request = AcknowledgeChanges { name: name.to_owned(), position: position.to_owned() };
    match cdc(world, cdc_request::Request::Acknowledge(request)).await? {
        cdc_reply::Reply::Subscription(noted) => Ok(noted.subscription.unwrap()),
        other => panic!("{other:?}"),
    }
}

async fn list(world: &Rc<World>) -> Vec<DurableSubscription> {
    match cdc(world, cdc_request::Request::List(ListSubscriptionsRequest {})).await.unwrap() {
        cdc_reply::Reply::Subscriptions(list) => list.subscriptions,
        other => panic!("{other:?}"),
    }
}

fn of(table: &str) -> SubscribeRequest {
    SubscribeRequest { tables: vec![table.to_owned()], from: "earliest".to_owned(), ..SubscribeRequest::default() }
}

/// Operation, before and after of each change.
type Seen = (Operation, Option<Vec<Value>>, Option<Vec<Value>>);

async fn seen(world: &Rc<World>, request: SubscribeRequest) -> Vec<Seen> {
    let opened = open(world, request).await.unwrap();
    let batch = poll(world, opened).await.unwrap();
    let records = batch.shards.into_iter().flat_map(|shard| shard.records);
    let changes = records.flat_map(|record| record.changes);
    let values = |row: Option<dosql_proto::Row>| row.map(|row| row.values);
    changes.map(|change| (change.operation(), values(change.before), values(change.after))).collect()
}

fn row(values: &[i64]) -> Option<Vec<Value>> {
    Some(values.iter().map(|value| Value::from(*value)).collect())
}

#[test]
fn subscribers_choose_rows_columns_and_operations() {
    run(async {
        let world = start(settings());
        for sql in [
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER, b INTEGER)",
            "INSERT INTO t VALUES (1, 10, 0), (2, 20, 0)",
            "UPDATE t SET a = 30 WHERE id = 1",
            "UPDATE t SET b = 1",
            "UPDATE t SET a = 5 WHERE id = 2",
            "DELETE FROM t",
        ] {
            execute(&world, "shard-0", sql).await;
        }
        use Operation::{Delete, Insert, Update};
        let filter = "a > 15".to_owned();
        assert_eq!(
            seen(&world, SubscribeRequest { filter: filter.clone(), ..of("t") }).await,
            [
                (Insert, None, row(&[2, 20, 0])),
                // It comes into sight.
                (Insert, None, row(&[1, 30, 0])),
                (Update, row(&[1, 30, 0]), row(&[1, 30, 1])),
                (Update, row(&[2, 20, 0]), row(&[2, 20, 1])),
                // It goes out of sight.
                (Delete, row(&[2, 20, 1]), None),
                (Delete, row(&[1, 30, 1]), None),
            ]
        );
        let narrow = SubscribeRequest { columns: vec!["A".to_owned()], filter, ..of("t") };
        let narrowed = seen(&world, narrow).await;
        assert_eq!(narrowed[1], (Insert, None, row(&[1, 30])));
        // What changed is of no interest.
        assert!(narrowed.iter().all(|(operation, ..)| *operation != Update), "{narrowed:?}");
        let deletes = SubscribeRequest { operations: vec![Delete.into()], ..of("t") };
        assert_eq!(seen(&world, deletes).await.len(), 2);
        let elsewhere = SubscribeRequest { shards: vec!["shard-1".to_owned()], ..of("t") };
        assert!(seen(&world, elsewhere.clone()).await.is_empty());
        assert_eq!(open(&world, elsewhere).await.unwrap().from, "shard-1:0");
    });
}

#[test]
fn bad_choices_are_refused_when_they_are_made() {
    run(async {
        let world = start(settings());
        execute(&world, "shard-0", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)").await;
        let filter = |text: &str| SubscribeRequest { filter: text.to_owned(), ..of("t") };
        let all = SubscribeRequest { filter: "1".to_owned(), ..SubscribeRequest::default() };
        for (request, code, part) in [
            (filter("a >"), ErrorCode::SyntaxError, "a >"),
            (filter("nix = 1"), ErrorCode::UnknownColumn, "nix"),
            (filter("a = ?"), ErrorCode::ParameterCount, "parameters"),
            (filter("a IN (SELECT name FROM sqlite_schema)"), ErrorCode::Unsupported, "prohibited"),
            (SubscribeRequest { columns: vec!["t.nix".to_owned()], ..of("t") }, ErrorCode::UnknownColumn, "nix"),
            (SubscribeRequest { shards: vec!["shard-9".to_owned()], ..of("t") }, ErrorCode::InvalidRequest, "shard-9"),
            (SubscribeRequest { operations: vec![9], ..of("t") }, ErrorCode::InvalidRequest, "9"),
            (all, ErrorCode::InvalidRequest, "tables"),
            (SubscribeRequest { from: "timestamp:soon".into(), ..of("t") }, ErrorCode::UnknownPosition, "soon"),
        ] {
            let error = open(&world, request).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message.contains(part), "{error}");
        }
        // The table may still be made.
        open(&world, SubscribeRequest { filter: "later > 1".to_owned(), ..of("later") }).await.unwrap();
    });
}

#[test]
fn who_waits_for_ever_needs_no_timer() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 1).await;
        let opened = open(&world, SubscribeRequest { from: "latest".to_owned(), ..of("t") }).await.unwrap();
        let waiting = |wait_ms: u64| {
            let (context, subscription) = (world.context("test", "test"), Some(opened.clone()));
            let poll = cdc_request::Request::Poll(PollChanges { subscription, wait_ms, max_bytes: 0 });
            tokio::task::spawn_local(async move {
                let request = CdcRequest { request: Some(poll) };
                context.ask::<CdcProtocol>("default", request, &Call::system()).await.unwrap().reply
            })
        };
        let timed = waiting(60_000);
        while world.timers("cdc") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timed.abort();
        let endless = waiting(u64::MAX);
        // It sees to what the other left, too: nobody waits for that any more.
        for _ in 0..400 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if world.timers("cdc") == 0 {
                break;
            }
        }
        assert_eq!((world.timers("cdc"), endless.is_finished()), (0, false));
        fill(&world, "shard-1", 1).await;
        let Some(cdc_reply::Reply::Changes(batch)) = endless.await.unwrap() else { panic!("no changes") };
        assert_eq!(batch.shards[0].shard, "shard-1");
    });
}

#[test]
fn a_time_is_a_place_to_start() {
    run(async {
        let world = start(settings());
        let clock = world.context("test", "test");
        let now_ms = clock.now_ms();
        fill(&world, "shard-0", 2).await;
        for minutes in 1..=4 {
            world.skew_ms.set(minutes * 60_000);
            fill(&world, "shard-0", 1).await;
        }
        let at = |minutes: u64| now_ms + minutes * 60_000;
        let from = async |from: String| open(&world, SubscribeRequest { from, ..of("t") }).await.unwrap().from;
        assert_eq!(from(format!("timestamp:{}", at(2))).await, "shard-0:4,shard-1:0");
        assert_eq!(from(format!("timestamp:{}", at(4))).await, "shard-0:6,shard-1:0");
        assert_eq!(from(format!("timestamp:{}", at(9))).await, "shard-0:7,shard-1:0");
        assert_eq!(from("timestamp:2001-01-01T00:00:00Z".to_owned()).await, "shard-0:0,shard-1:0");
        assert_eq!(from("timestamp:2999-01-01 00:00".to_owned()).await, "shard-0:7,shard-1:0");
        // What is from before may have been forgotten.
        fill(&world, "shard-0", 200).await;
        flush(&world).await.unwrap();
        while shard_status(&world, "shard-0").await.oldest_lsn == 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let early = SubscribeRequest { from: format!("timestamp:{}", at(1)), ..of("t") };
        assert_eq!(open(&world, early).await.unwrap_err().code(), ErrorCode::UnknownPosition);
    });
}

#[test]
fn a_durable_subscription_goes_on_where_it_was_acknowledged() {
    run(async {
        let world = start(settings());
        fill(&world, "shard-0", 3).await;
        let named = || SubscribeRequest { name: "n".to_owned(), ..of("t") };
        assert_eq!(open(&world, named()).await.unwrap().from, "shard-0:0,shard-1:0");
        acknowledge(&world, "n", "shard-0:2,shard-1:0").await.unwrap();
        // One that comes late changes nothing.
        assert_eq!(acknowledge(&world, "n", "shard-0:1").await.unwrap().position, "shard-0:2,shard-1:0");
        world.start::<Cdc>("default");
        let by_name = SubscribeRequest { name: "n".to_owned(), ..SubscribeRequest::default() };
        let opened = open(&world, by_name.clone()).await.unwrap();
        assert_eq!((opened.from.as_str(), &opened.tables[0]), ("shard-0:2,shard-1:0", &"t".to_owned()));
        assert_eq!(lsns(&poll(&world, opened).await.unwrap()), [("shard-0".to_owned(), vec![3, 4])]);
        let other = SubscribeRequest { filter: "1".to_owned(), ..named() };
        assert_eq!(open(&world, other).await.unwrap_err().code(), ErrorCode::AlreadyExists);
        let future = acknowledge(&world, "n", "shard-0:99").await.unwrap_err();
        assert_eq!(future.code(), ErrorCode::UnknownPosition);
        assert_eq!(acknowledge(&world, "x", "").await.unwrap_err().code(), ErrorCode::NotFound);

        let listed = list(&world).await;
        assert_eq!((listed[0].name.as_str(), listed[0].behind, listed[0].overrun), ("n", 2, false));
        let drop = || cdc_request::Request::Drop(DropSubscriptionRequest { name: "n".to_owned() });
        cdc(&world, drop()).await.unwrap();
        assert!(list(&world).await.is_empty());
        assert_eq!(cdc(&world, drop()).await.unwrap_err().code(), ErrorCode::NotFound);
    });
}

#[test]
fn records_are_kept_for_durable_subscriptions_up_to_a_bound() {
    run(async {
        let world = start(Settings { cdc_subscription_max_records: 300, ..settings() });
        fill(&world, "shard-0", 5).await;
        let named = |name: &str| SubscribeRequest { name: name.to_owned(), ..of("t") };
        open(&world, named("slow")).await.unwrap();
        acknowledge(&world, "slow", "shard-0:4,shard-1:0").await.unwrap();
        fill(&world, "shard-0", 250).await;
        flush(&world).await.unwrap();
        // The stream restarts, and still tells nobody to forget them.
        world.start::<Cdc>("default");
        flush(&world).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let oldest = shard_status(&world, "shard-0").await.oldest_lsn;
        assert!(oldest <= 5, "{oldest}");
        let opened = open(&world, named("slow")).await.unwrap();
        assert_eq!(poll(&world, opened.clone()).await.unwrap().shards[0].records[0].lsn, 5);

        let until_pruned = async |beyond: u64| {
            for _ in 0..200 {
                if shard_status(&world, "shard-0").await.oldest_lsn > beyond {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("nothing is pruned");
        };
        // It falls too far behind: the bound holds, and it hears of it.
        fill(&world, "shard-0", 300).await;
        flush(&world).await.unwrap();
        until_pruned(5).await;
        assert!(list(&world).await[0].overrun);
        // Without the records that the stream has in memory.
        world.start::<Cdc>("default");
        assert_eq!(poll(&world, opened).await.unwrap_err().code(), ErrorCode::UnknownPosition);

        // Nobody comes for it.
        let oldest = shard_status(&world, "shard-0").await.oldest_lsn;
        world.skew_ms.set(8 * 24 * 3_600_000);
        until_pruned(oldest).await;
        assert!(list(&world).await.is_empty());
    });
}
