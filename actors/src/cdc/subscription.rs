//! Serving subscribers: from a position on, in order for each shard, waiting where there is nothing new.

use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{ChangeBatch, Error, ErrorCode, PollChanges, Position, RowChange, ShardChanges, WalRecord, WalTable};
use futures_util::future::select;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::shards::Shards;
use crate::runtime::Call;

/// Bytes of records in one answer, where the poll does not say and where it may say.
const DEFAULT_BYTES: usize = 1 << 20;
const MAX_BYTES: usize = 16 << 20;

/// Shards asked at a time for where they stand.
const PARALLEL: usize = 32;

/// Answers a poll.
pub(super) async fn poll(shards: Rc<Shards>, poll: PollChanges, call: &Call) -> Result<ChangeBatch, Error> {
    let Some(subscription) = poll.subscription else {
        return Err(Error::invalid("a poll must say what it subscribes to"));
    };
    let max_bytes = match poll.max_bytes as usize {
        0 => DEFAULT_BYTES,
        bytes => bytes.min(MAX_BYTES),
    };
    let mut position = resolve(&shards, &subscription.from).await?;
    // Whoever asked has gone by the deadline.
    let until_ms = call.within(shards.context.now_ms(), poll.wait_ms).deadline_ms;
    loop {
        let news = shards.commits.next();
        let names = shards.names();
        let behind: Vec<&String> = names.iter().filter(|name| shards.last_lsn(name) > position.lsn(name)).collect();
        let share = max_bytes / behind.len().max(1);
        let mut found = Vec::new();
        let mut trouble = None;
        for name in &behind {
            let records = match shards.recent(name, position.lsn(name), share).await {
                Ok(records) => records,
                // One shard that is away must not hold up the others.
                Err(error) if error.retryable => {
                    trouble = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(last) = records.last() {
                position.advance(name, last.lsn);
            }
            let records: Vec<WalRecord> =
                records.iter().filter_map(|record| select_tables(record, &subscription.tables)).collect();
            if !records.is_empty() {
                found.push(ShardChanges { shard: (*name).clone(), records });
            }
        }
        let left_ms = until_ms.saturating_sub(shards.context.now_ms());
        if !found.is_empty() || (left_ms == 0 && trouble.is_none()) {
            return Ok(ChangeBatch { shards: found, position: position.to_string() });
        }
        let pause_ms = match trouble {
            None if behind.is_empty() => left_ms,
            // Everything read so far was for other tables.
            None => continue,
            Some(error) if left_ms == 0 => return Err(error),
            Some(_) => left_ms.min(shards.context.settings().cdc_retry_delay_ms),
        };
        select(Box::pin(news), Box::pin(shards.context.sleep(Duration::from_millis(pause_ms)))).await;
    }
}

/// The position a subscription starts from, with every shard named.
async fn resolve(shards: &Shards, from: &str) -> Result<Position, Error> {
    let names = shards.names();
    let mut position = Position::default();
    if matches!(from, "earliest" | "latest" | "") {
        let retained: Vec<(&String, (u64, u64))> = stream::iter(&names)
            .map(|name| async move { shards.retained(name).await.map(|retained| (name, retained)) })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        for (name, (oldest, last)) in retained {
            position.advance(name, if from == "earliest" { oldest.saturating_sub(1) } else { last });
        }
        return Ok(position);
    }
    let unknown = |message: String| Error::new(ErrorCode::UnknownPosition, message);
    let asked: Position = from
        .parse()
        .map_err(|error: dosql_proto::ParsePositionError| unknown(format!("{error}; or \"earliest\" or \"latest\"")))?;
    if let Some(name) = asked.0.keys().find(|name| !shards.is_shard(name)) {
        return Err(unknown(format!(
            "{name} in the position {from:?} is no shard; the shards are {}",
            names.join(", ")
        )));
    }
    for name in &names {
        shards.make_known(name).await?;
        let lsn = asked.lsn(name);
        if lsn > shards.last_lsn(name) {
            let (oldest, last) = shards.retained(name).await?;
            if lsn > last {
                let message = format!("LSN {lsn} of {name} is in the future; retained are LSN {oldest} to {last}");
                return Err(unknown(message));
            }
        }
        position.advance(name, lsn);
    }
    Ok(position)
}

/// What a record has for a subscriber of these tables; all tables where none is named.
fn select_tables(record: &WalRecord, wanted: &[String]) -> Option<WalRecord> {
    if wanted.is_empty() {
        return Some(record.clone());
    }
    let is_wanted = |name: &str| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let mut tables: Vec<WalTable> = Vec::new();
    let places: Vec<Option<u32>> = record
        .tables
        .iter()
        .map(|table| {
            is_wanted(&table.name).then(|| {
                let place = u32::try_from(tables.len()).unwrap_or(u32::MAX);
                tables.push(table.clone());
                place
            })
        })
        .collect();
    let mut changes: Vec<RowChange> = Vec::new();
    // How many of the first n changes remain, to say after which of them the schema changed.
    let mut remaining = Vec::with_capacity(record.changes.len() + 1);
    remaining.push(0);
    for change in &record.changes {
        if let Some(table) = places.get(change.table as usize).copied().flatten() {
            changes.push(RowChange { table, ..change.clone() });
        }
        remaining.push(u32::try_from(changes.len()).unwrap_or(u32::MAX));
    }
    let schema_changes: Vec<_> = record
        .schema_changes
        .iter()
        .filter(|change| {
            is_wanted(&change.dropped) || change.table.as_ref().is_some_and(|table| is_wanted(&table.name))
        })
        .map(|change| {
            let after_changes = remaining.get(change.after_changes as usize).copied().unwrap_or(change.after_changes);
            dosql_proto::SchemaChange { after_changes, ..change.clone() }
        })
        .collect();
    let anything = !changes.is_empty() || !schema_changes.is_empty();
    anything.then_some(WalRecord {
        lsn: record.lsn,
        hlc: record.hlc,
        tables,
        changes,
        schema_changes,
        ..WalRecord::default()
    })
}
