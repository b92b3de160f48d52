//! Holds what is stored, streamed and in the lake against what the client knows.

use std::collections::{BTreeMap, BTreeSet};

use dosql_actors::Call;
use dosql_actors::host::simulation::{SimClient, Simulation};
use dosql_proto::value::Kind;
use dosql_proto::{
    CdcProtocol, CdcReply, CdcRequest, Error, ErrorCode, ExecuteRequest, FlushLake, Operation, PollChanges, Row,
    RowChange, Statement, StatementResult, SubscribeRequest, cdc_reply, cdc_request, router_reply, router_request,
};
use dosql_tests::storms::ask_router;

use super::{Failure, Histories, PATIENCE_MS, Step, reading, stopped, support};

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
    let objects = support::Objects::of(simulation);
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

/// Holds everything against everything, when all is quiet. `written`: how the writing ended.
pub(crate) fn check(
    simulation: &Simulation,
    histories: &Histories,
    written: Result<(), Failure>,
) -> Result<(), Failure> {
    let client = simulation.client();
    let stored = simulation.block_on(async {
        // Where the writing stopped, what had been acknowledged by then must be there all the same.
        let stored = match (stored(&client, histories).await, &written) {
            (Err(Failure::Stopped(_)), Err(Failure::Stopped(why))) => return Err(Failure::Stopped(why.clone())),
            (stored, _) => stored?,
        };
        check_stored(histories, &stored)?;
        Ok::<_, Failure>(stored)
    })?;
    written?;
    let streamed = simulation.block_on(async {
        let flushed = ask_cdc(&client, cdc_request::Request::FlushLake(FlushLake {})).await;
        flushed.map_err(stopped("FlushLake"))?;
        streamed(&client).await
    })?;
    check_streamed(histories, &stored, &streamed)?;
    check_lake(simulation, &stored, &streamed)
}
