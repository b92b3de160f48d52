//! Serving subscribers: from a position on, in order for each shard, waiting where there is nothing new.

use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{ChangeBatch, Error, PollChanges, ShardChanges, StreamPosition};
use futures_util::future::select;

use super::choice::Choice;
use super::shards::{Shards, not_replicated};
use super::{snapshot, start};
use crate::runtime::Call;

/// Bytes of records in one answer, where the poll does not say and where it may say.
const DEFAULT_BYTES: usize = 1 << 20;
const MAX_BYTES: usize = 16 << 20;

/// Answers a poll. One that waits for ever holds no timer while there is nothing new.
pub(super) async fn poll(shards: Rc<Shards>, poll: PollChanges, call: &Call) -> Result<ChangeBatch, Error> {
    let Some(subscription) = poll.subscription else {
        return Err(Error::invalid("a poll must say what it subscribes to"));
    };
    if !subscription.name.is_empty() {
        return Err(Error::invalid("a durable subscription must be opened, and polled as it was opened"));
    }
    let max_bytes = match poll.max_bytes as usize {
        0 => DEFAULT_BYTES,
        bytes => bytes.min(MAX_BYTES),
    };
    let choice = Choice::new(&shards, &subscription)?;
    let mut position = start::resolve(&shards, &choice, &subscription).await?;
    let previous = position.to_string();
    // Whoever asked has gone by the deadline.
    let until_ms = call.within(shards.context.now_ms(), poll.wait_ms).deadline_ms;
    let mut found: Vec<ShardChanges> = Vec::new();
    loop {
        let news = shards.commits.next();
        let is_behind =
            |name: &&String| shards.last_lsn(name) > position.lsns.lsn(name) || position.snapshot.contains_key(*name);
        let behind: Vec<&String> = choice.shards().iter().filter(is_behind).collect();
        let share = max_bytes / behind.len().max(1);
        let mut trouble = None;
        for name in &behind {
            match advance(&shards, &choice, name, &mut position, share).await {
                Ok(changes) => found.extend(changes),
                // One shard that is away must not hold up the others.
                Err(error) if error.retryable => trouble = Some(error),
                Err(error) => return Err(error),
            }
        }
        let anything = found.iter().any(|changes| !changes.records.is_empty());
        let left_ms = until_ms.saturating_sub(shards.context.now_ms());
        if anything || (left_ms == 0 && trouble.is_none()) {
            return Ok(ChangeBatch { shards: found, position: position.to_string(), previous });
        }
        let pause_ms = match trouble {
            None if behind.is_empty() && until_ms == u64::MAX => {
                news.await;
                continue;
            }
            None if behind.is_empty() => left_ms,
            // Everything read so far was of no interest.
            None => continue,
            Some(error) if left_ms == 0 => return Err(error),
            Some(_) => left_ms.min(shards.context.settings().cdc_retry_delay_ms),
        };
        select(Box::pin(news), Box::pin(shards.context.sleep(Duration::from_millis(pause_ms)))).await;
    }
}

/// The next of a shard for a subscriber, whose position moves.
async fn advance(
    shards: &Shards,
    choice: &Choice,
    name: &str,
    position: &mut StreamPosition,
    max_bytes: usize,
) -> Result<Vec<ShardChanges>, Error> {
    let lsn = position.lsns.lsn(name);
    if let Some(cursor) = position.snapshot.get(name) {
        let step = snapshot::step(shards, choice, cursor, lsn, max_bytes).await?;
        if step.changes.is_empty() && step.lsn == lsn && step.cursor.as_ref() == Some(cursor) {
            return Err(not_replicated(name));
        }
        position.lsns.advance(name, step.lsn);
        match step.cursor {
            Some(cursor) => position.snapshot.insert(name.to_owned(), cursor),
            None => position.snapshot.remove(name),
        };
        return Ok(step.changes);
    }
    let records = shards.recent(name, lsn, max_bytes).await?;
    let Some(last) = records.last() else { return Err(not_replicated(name)) };
    position.lsns.advance(name, last.lsn);
    let mut kept = Vec::new();
    for record in &records {
        kept.extend(choice.changes(record, None)?);
    }
    let changes = ShardChanges { shard: name.to_owned(), records: kept, snapshot: None };
    Ok(if changes.records.is_empty() { Vec::new() } else { vec![changes] })
}
