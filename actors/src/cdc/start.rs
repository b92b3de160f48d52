//! Where a subscription starts.

use dosql_proto::{Error, ErrorCode, ParsePositionError, StreamPosition, SubscribeRequest};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::choice::Choice;
use super::shards::{Retained, Shards};
use super::snapshot;
use crate::sql_value::sql_error;

/// Shards asked at a time for where they stand.
const PARALLEL: usize = 32;

const TIMESTAMP: &str = "timestamp:";

fn unknown(message: String) -> Error {
    Error::new(ErrorCode::UnknownPosition, message)
}

/// The position a subscription starts from, with every shard named that it is for.
///
/// # Errors
/// `UNKNOWN_POSITION`; those of the shards.
pub(super) async fn resolve(
    shards: &Shards,
    choice: &Choice,
    request: &SubscribeRequest,
) -> Result<StreamPosition, Error> {
    let names = choice.shards();
    let from = request.from.as_str();
    let mut position = StreamPosition::default();
    if request.snapshot {
        for name in names {
            position.lsns.advance(name, 0);
            position.snapshot.insert(name.clone(), snapshot::beginning(name));
        }
        return Ok(position);
    }
    let timestamp = from.strip_prefix(TIMESTAMP).map(|text| milliseconds(shards, text)).transpose()?;
    if timestamp.is_some() || matches!(from, "earliest" | "latest" | "") {
        let starts: Vec<(&String, u64)> = stream::iter(names)
            .map(|name| async move {
                let Retained { oldest_lsn: oldest, last_lsn: last, .. } = shards.retained(name).await?;
                let lsn = match timestamp {
                    Some(at_ms) => before(shards, name, at_ms, oldest, last).await?,
                    None if from == "earliest" => oldest.saturating_sub(1),
                    None => last,
                };
                Ok::<_, Error>((name, lsn))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        for (name, lsn) in starts {
            position.lsns.advance(name, lsn);
        }
        return Ok(position);
    }
    let asked: StreamPosition = from.parse().map_err(|error: ParsePositionError| {
        unknown(format!("{error}; or \"earliest\", \"latest\" or \"timestamp:...\""))
    })?;
    if let Some(name) = asked.lsns.0.keys().chain(asked.snapshot.keys()).find(|name| !shards.is_shard(name)) {
        let all = shards.names().join(", ");
        return Err(unknown(format!("{name} in the position {from:?} is no shard; the shards are {all}")));
    }
    for name in names {
        let cursor = asked.snapshot.get(name);
        position.snapshot.extend(cursor.map(|cursor| (name.clone(), cursor.clone())));
        let lsn = asked.lsns.lsn(name);
        position.lsns.advance(name, lsn);
        if cursor.is_some_and(|cursor| cursor.table.is_empty()) {
            continue;
        }
        shards.make_known(name).await?;
        if lsn > shards.last_lsn(name) {
            shards.retained(name).await?.check(name, lsn)?;
        }
    }
    Ok(position)
}

/// A time as milliseconds since the epoch.
fn milliseconds(shards: &Shards, text: &str) -> Result<u64, Error> {
    if let Ok(milliseconds) = text.parse() {
        return Ok(milliseconds);
    }
    let seconds: Option<f64> = shards
        .context
        .open_scratch()?
        .query_row("SELECT unixepoch(?1, 'subsec')", [text], |row| row.get(0))
        .map_err(sql_error)?;
    // What is before the epoch is before every record.
    seconds.map(|seconds| (seconds * 1_000.0).round().max(0.0) as u64).ok_or_else(|| {
        unknown(format!("{text:?} is no time: expected milliseconds since the epoch or 2026-01-31T12:00:00Z"))
    })
}

/// The LSN right before the first record of `at_ms` or later.
async fn before(shards: &Shards, name: &str, at_ms: u64, oldest: u64, last: u64) -> Result<u64, Error> {
    let is_early = |after: u64| async move {
        let batch = shards.read(name, after, 1).await?;
        Ok::<_, Error>(batch.records.first().is_some_and(|record| record.hlc >> 16 < at_ms))
    };
    if last == 0 {
        return Ok(0);
    }
    // Records up to `low` are earlier, those after `high` are not.
    let (mut low, mut high) = (oldest.saturating_sub(1), last);
    if low > 0 && !is_early(low).await? {
        let message = format!(
            "the changes of {name} from that time on are no longer all retained; retained are LSN {oldest} to {last}"
        );
        return Err(unknown(message));
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if is_early(middle).await? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
