//! Driving the lake: every record of every shard, in order, until it is in a committed snapshot.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{
    Error, ErrorCode, LakeAppend, LakeFlush, LakeFlushed, LakePositions, LakePositionsRequest, LakeProtocol,
    LakeRequest, Position, WalRecord, lake_reply, lake_request,
};
use futures_util::future::select;

use super::shards::{Shards, not_replicated};
use crate::runtime::Call;

/// Bytes of records read from a shard at a time.
const READ_BYTES: usize = 1 << 20;

/// How long the lake may take to answer, in milliseconds: it may commit before it takes more.
const LAKE_TIMEOUT_MS: u64 = 60_000;

async fn ask_lake(shards: &Shards, request: lake_request::Request, call: &Call) -> Result<LakePositions, Error> {
    let call = call.within(shards.context.now_ms(), LAKE_TIMEOUT_MS);
    let request = LakeRequest { request: Some(request) };
    match shards.context.ask::<LakeProtocol>("default", request, &call).await?.reply {
        Some(lake_reply::Reply::Positions(positions)) => Ok(positions),
        _ => Err(Error::internal("the lake answered something else than its positions")),
    }
}

/// Finds out where the lake stands, and from then on delivers every shard to it.
pub(super) async fn run(shards: Rc<Shards>) {
    let mut failures = 0;
    while !shards.lake_known.get() {
        match ask_lake(&shards, lake_request::Request::Positions(LakePositionsRequest {}), &Call::system()).await {
            Ok(positions) => {
                for position in &positions.shards {
                    shards.set_delivered(&position.shard, position.buffered_lsn);
                }
                shards.lake_known.set(true);
                shards.durable(&positions);
            }
            Err(error) => {
                tracing::warn!(%error, "the lake does not say where it stands");
                rest(&shards, &mut failures).await;
            }
        }
    }
    for name in shards.names() {
        shards.context.spawn(deliver(Rc::clone(&shards), name));
    }
}

/// Delivers one shard, for ever.
async fn deliver(shards: Rc<Shards>, name: String) {
    let mut pending = VecDeque::new();
    let (mut failures, mut refusals) = (0, 0);
    loop {
        let news = shards.commits.next();
        let delivered = shards.delivered_lsn(&name);
        if pending.front().is_some_and(|record: &WalRecord| record.lsn != delivered + 1) {
            pending.clear();
        }
        if pending.is_empty() && shards.last_lsn(&name) <= delivered {
            news.await;
            continue;
        }
        match step(&shards, &name, delivered, &mut pending).await {
            Ok(()) => {
                (failures, refusals) = (0, 0);
                shards.set_trouble(&name, None);
            }
            Err(error) => {
                shards.set_trouble(&name, Some(error.clone()));
                if error.code() == ErrorCode::BufferFull {
                    // The lake works off what it has; that is no failure, unless it goes on for long.
                    refusals += 1;
                    if refusals > shards.context.settings().cdc_max_retry_count {
                        refusals = 0;
                        fall_back(&shards, &name).await;
                    }
                    let pause_ms = error.retry_after_ms.max(1);
                    shards.context.sleep(Duration::from_millis(pause_ms)).await;
                } else {
                    tracing::warn!(shard = name, %error, "records could not be delivered to the lake");
                    if failures == shards.context.settings().cdc_max_retry_count {
                        fall_back(&shards, &name).await;
                    }
                    rest(&shards, &mut failures).await;
                }
            }
        }
    }
}

/// Takes what the shard has committed and the lake has not into the fallback storage, as far as there is room.
async fn fall_back(shards: &Rc<Shards>, name: &str) {
    let outcome = async {
        loop {
            let kept = shards.kept_lsn(name);
            if shards.last_lsn(name) <= kept {
                return Ok(true);
            }
            let records = shards.read(name, kept, READ_BYTES).await?.records;
            if records.is_empty() {
                return Ok(true);
            }
            // Where the lake has moved meanwhile the records still follow what is kept, but need not begin there.
            if records.iter().any(|record| record.lsn == shards.kept_lsn(name) + 1)
                && !shards.fallback.borrow_mut().add(name, &records)?
            {
                return Ok(false);
            }
        }
    };
    let outcome: Result<bool, Error> = outcome.await;
    let (records, bytes) = shards.fallback.borrow().size(name);
    match outcome {
        Ok(true) => {
            tracing::warn!(shard = name, records, bytes, "the lake takes no records: they are in the fallback storage")
        }
        Ok(false) => {
            tracing::warn!(shard = name, records, bytes, "the fallback storage is full: the shard keeps the records")
        }
        Err(error) => tracing::warn!(shard = name, %error, "records could not be taken into the fallback storage"),
    }
    shards.acknowledge_due();
}

/// Delivers the next records of a shard.
async fn step(shards: &Rc<Shards>, name: &str, delivered: u64, pending: &mut VecDeque<WalRecord>) -> Result<(), Error> {
    if pending.is_empty() {
        let fallen_back = shards.fallback.borrow().read(name, delivered, READ_BYTES)?;
        *pending = match fallen_back {
            Some(records) => records,
            None => shards.read(name, delivered, READ_BYTES).await?.records.into(),
        };
    }
    let batch_size = usize::try_from(shards.context.settings().cdc_batch_size).unwrap_or(usize::MAX);
    let records: Vec<WalRecord> = pending.drain(..batch_size.min(pending.len())).collect();
    let Some(last) = records.last().map(|record| record.lsn) else { return Err(not_replicated(name)) };
    let append = LakeAppend { shard: name.to_owned(), after_lsn: delivered, records };
    match ask_lake(shards, lake_request::Request::Append(append), &Call::system()).await {
        Ok(positions) => {
            shards.set_delivered(name, last);
            shards.durable(&positions);
            Ok(())
        }
        Err(error) if error.code() == ErrorCode::OutOfOrder && error.expected_lsn != 0 => {
            tracing::info!(shard = name, expected = error.expected_lsn, "the lake asks for records again");
            pending.clear();
            shards.set_delivered(name, error.expected_lsn - 1);
            Ok(())
        }
        Err(error) => {
            pending.clear();
            Err(error)
        }
    }
}

/// Pauses after a failure: longer after each in a row, and after too many until the next tick.
async fn rest(shards: &Shards, failures: &mut u32) {
    let settings = shards.context.settings();
    *failures += 1;
    if *failures > settings.cdc_max_retry_count {
        *failures = 0;
        shards.ticks.next().await;
        return;
    }
    let doublings = (*failures - 1).min(16);
    let pause_ms = settings.cdc_retry_delay_ms.saturating_mul(1 << doublings);
    // Up to half as long again, so that those who failed together do not come back together.
    let jitter_ms = shards.context.random_u64() % (pause_ms / 2 + 1);
    shards.context.sleep(Duration::from_millis(pause_ms + jitter_ms)).await;
}

/// Looks for what was not told: new records, what the lake has committed by itself, a lake that has lost its buffer.
pub(super) async fn tick(shards: &Rc<Shards>) {
    if let Err(error) = shards.refresh_all().await {
        tracing::debug!(%error, "a shard does not say where it stands");
    }
    if shards.lake_known.get() {
        let stood: Vec<(String, u64)> =
            shards.names().into_iter().map(|name| (name.clone(), shards.delivered_lsn(&name))).collect();
        match ask_lake(shards, lake_request::Request::Positions(LakePositionsRequest {}), &Call::system()).await {
            Ok(positions) => {
                rewind(shards, &positions, &stood);
                shards.durable(&positions);
            }
            Err(error) => tracing::debug!(%error, "the lake does not say where it stands"),
        }
    }
    shards.ticks.announce();
    shards.commits.announce();
}

/// Goes back to where the lake stands, for shards that have not moved since they `stood` so.
fn rewind(shards: &Shards, positions: &LakePositions, stood: &[(String, u64)]) {
    for (name, delivered) in stood {
        let position = positions.shards.iter().find(|position| position.shard == *name);
        let buffered = position.map_or(0, |position| position.buffered_lsn.max(position.durable_lsn));
        if buffered < *delivered && shards.delivered_lsn(name) == *delivered {
            tracing::info!(shard = name, delivered, buffered, "the lake has lost its buffer; delivering again");
            shards.set_delivered(name, buffered);
        }
    }
}

/// Delivers all that the shards have committed by now, and has the lake commit it.
pub(super) async fn flush(shards: Rc<Shards>, call: Call) -> Result<LakeFlushed, Error> {
    let call = call.within(shards.context.now_ms(), LAKE_TIMEOUT_MS);
    shards.refresh_all().await?;
    let targets: Vec<(String, u64)> =
        shards.names().into_iter().map(|name| (name.clone(), shards.last_lsn(&name))).collect();
    shards.ticks.announce();
    shards.commits.announce();
    loop {
        let progress = shards.progress.next();
        let late = targets.iter().find(|(name, lsn)| shards.delivered_lsn(name) < *lsn);
        let trouble = match late {
            Some((name, lsn)) => {
                let delivered = shards.delivered_lsn(name);
                let reason = shards.trouble(name).map_or(String::new(), |error| format!(": {error}"));
                format!("{name} is delivered to LSN {delivered} of {lsn}{reason}")
            }
            None if !shards.lake_known.get() => "the lake does not say where it stands".to_owned(),
            None => match ask_lake(&shards, lake_request::Request::Flush(LakeFlush {}), &call).await {
                Ok(positions) => {
                    shards.durable(&positions);
                    if targets.iter().all(|(name, lsn)| shards.durable_lsn(name) >= *lsn) {
                        let mut position = Position::default();
                        for (name, _) in &targets {
                            position.advance(name, shards.durable_lsn(name));
                        }
                        return Ok(LakeFlushed { position: position.to_string() });
                    }
                    let stood: Vec<_> =
                        targets.iter().map(|(name, _)| (name.clone(), shards.delivered_lsn(name))).collect();
                    rewind(&shards, &positions, &stood);
                    shards.commits.announce();
                    "the lake has restarted".to_owned()
                }
                Err(error) if error.retryable => error.to_string(),
                Err(error) => return Err(error),
            },
        };
        let left_ms = call.deadline_ms.saturating_sub(shards.context.now_ms());
        if left_ms == 0 {
            let message = format!("the lake could not be flushed in time: {trouble}");
            return Err(Error::retryable(ErrorCode::DeadlineExceeded, message, 0));
        }
        let pause_ms = left_ms.min(shards.context.settings().cdc_retry_delay_ms);
        select(Box::pin(progress), Box::pin(shards.context.sleep(Duration::from_millis(pause_ms)))).await;
    }
}
