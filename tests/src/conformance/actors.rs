//! Messages, alarms and objects.

use std::time::Duration;

use dosql_proto::probe_request::Request;
use dosql_proto::{Address, ErrorCode, ProbeAlarm, ProbeEcho, ProbeObjects, ProbeRelay, ProbeReply, ProbeRequest};
use futures_util::future::join_all;
use prost::Message;

use super::{Report, Suite, Target, envelope, equal, refused};

pub(super) async fn run<T: Target>(suite: &Suite<'_, T>, report: &mut Report) {
    report.note("echo with trace and caller", echo(suite).await);
    report.note("a counter for each actor", counters(suite).await);
    report.note("answers to messages at once", concurrent(suite).await);
    report.note("a relay between actors", relay(suite).await);
    report.note("an alarm", alarm(suite).await);
    report.note("an alarm over a restart", alarm_over_restart(suite).await);
    report.note("object storage", objects(suite).await);
    report.note("an unknown kind of actor", unknown_kind(suite).await);
    report.note("malformed messages", malformed(suite).await);
    report.note("a deadline that has passed", late(suite).await);
}

async fn echo<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let text = "ähm \0 \u{1F980} ".repeat(1000);
    let reply = suite.ask(&suite.name("echo"), Request::Echo(ProbeEcho { text: text.clone() })).await;
    let expected =
        ProbeReply { text, trace_id: "trace-1".to_owned(), caller: "conformance".to_owned(), ..ProbeReply::default() };
    equal("the reply", &reply, &Ok(expected))
}

async fn counters<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let (one, other) = (suite.name("counter-1"), suite.name("counter-2"));
    equal("one + 5", &suite.add(&one, 5).await?, &5)?;
    equal("other + 7", &suite.add(&other, 7).await?, &7)?;
    equal("one - 2", &suite.add(&one, -2).await?, &3)?;
    equal("other + 0", &suite.add(&other, 0).await?, &7)
}

async fn concurrent<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("concurrent");
    let outcomes = join_all((0..50).map(|_| suite.add(&name, 1))).await;
    let mut counters = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    counters.sort_unstable();
    equal("the counters", &counters, &(1..=50).collect())
}

async fn relay<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let to = suite.name("relayed");
    for expected in [40, 80] {
        let request = Request::Relay(ProbeRelay { to: to.clone(), amount: 40 });
        let reply = suite.ask(&suite.name("relay"), request).await.map_err(|error| error.to_string())?;
        equal("the relayed counter", &reply.counter, &expected)?;
    }
    equal("the counter itself", &suite.add(&to, 0).await?, &80)?;
    equal("the relay's own", &suite.add(&suite.name("relay"), 0).await?, &0)
}

async fn alarm<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("alarm");
    set_alarm(suite, &name, 3_600_000).await?;
    set_alarm(suite, &name, 200).await?;
    equal("before it fires", &suite.add(&name, 1).await?, &1)?;
    fires(suite, &name, 1001).await
}

async fn alarm_over_restart<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("alarm-restart");
    equal("before", &suite.add(&name, 2).await?, &2)?;
    set_alarm(suite, &name, 500).await?;
    suite.target.restart(&Address::new("probe", &name)).await;
    fires(suite, &name, 1002).await
}

async fn set_alarm<T: Target>(suite: &Suite<'_, T>, name: &str, after_ms: u64) -> Result<(), String> {
    let reply = suite.ask_until_up(name, Request::Alarm(ProbeAlarm { after_ms })).await;
    reply.map(drop).map_err(|error| error.to_string())
}

/// Waits until the alarm has added to the counter. It may fire more than once.
async fn fires<T: Target>(suite: &Suite<'_, T>, name: &str, expected: i64) -> Result<(), String> {
    for _ in 0..100 {
        suite.target.pause(Duration::from_millis(100)).await;
        let counter = suite.add(name, 0).await?;
        if counter >= expected && (counter - expected) % 1000 == 0 {
            return Ok(());
        }
    }
    Err("it did not fire within 10 s".to_owned())
}

async fn objects<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let request = Request::Objects(ProbeObjects { prefix: format!("probe/{}", suite.run) });
    let reply = suite.ask(&suite.name("objects"), request).await.map_err(|error| error.to_string())?;
    let expected = "\
get one: none
put one, get one: 1
put one again, get one: first
get 1 to 3 of one: ir
get 3 to 99 of one: st
get 5 to 9 of one: refused
get nothing of one: refused
get 0 to 9 of two: none
create two: created
create two again: exists already
get two: second
list: /deep/er/one 5, /two 6
list half a name: /two 6
list nothing: 
delete one twice, get one: none
list: /two 6
delete two, create two: created
list: /two 0
put one and two at once, get one: one of several
get two: another of them
put nothing at once, list: /deep/er/one 14, /two 15
";
    equal("the transcript", &reply.text, &expected.to_owned())
}

async fn unknown_kind<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let mut envelope = envelope("x");
    envelope.to = Some(Address::new("no-such-kind", "x"));
    refused("the message", suite.packet(envelope, Vec::new()).await, ErrorCode::NotFound)
}

async fn malformed<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("malformed");
    let garbage = suite.packet(envelope(&name), vec![0xff; 40]).await;
    refused("garbage", garbage, ErrorCode::InvalidRequest)?;
    let empty = suite.packet(envelope(&name), ProbeRequest::default().encode_to_vec()).await;
    refused("an empty request", empty, ErrorCode::InvalidRequest)?;
    equal("and it goes on", &suite.add(&name, 1).await?, &1)
}

async fn late<T: Target>(suite: &Suite<'_, T>) -> Result<(), String> {
    let name = suite.name("late");
    let mut envelope = envelope(&name);
    envelope.deadline_ms = 1;
    let body = ProbeRequest { request: Some(Request::Add(dosql_proto::ProbeAdd { amount: 1 })) }.encode_to_vec();
    refused("a message of 1970", suite.packet(envelope, body).await, ErrorCode::DeadlineExceeded)?;
    equal("it had no effect", &suite.add(&name, 0).await?, &0)
}
