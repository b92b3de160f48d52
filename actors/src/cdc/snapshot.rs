//! Copying a shard's tables for a subscriber, part by part, between the changes.
//!
//! A part is read as of one LSN and sent right after the record of that LSN. Of the changes, the subscriber is sent those of
//! rows that it has; the others are in a part that is still to be read. So it has, at every position, a part of the table exactly
//! as it was there; nothing is stored and no writer waits.

mod copied;
mod shape;

use std::rc::Rc;
use std::time::Duration;

use dosql_proto::value::Kind;
use dosql_proto::{Error, ErrorCode, Operation, RowChange, ShardChanges, SnapshotCursor, SnapshotProgress, WalRecord};

use self::copied::{alters, remade};
pub(super) use self::copied::{check_schema, has, rowid_after};
pub(super) use self::shape::tables;
use self::shape::{Shape, query};
use super::choice::Choice;
use super::shards::Shards;

/// Most rows of one part.
const PART_ROWS: usize = 1024;

/// Most bytes of records between two parts that are sent together with the second.
const MAX_BETWEEN: usize = 8 << 20;

/// How often, and after what pause, the log is looked at when it does not yet show what a part was read after, in milliseconds.
const LOOKS: u32 = 40;
const LOOK_MS: u64 = 25;

/// What copying a part came to.
pub(super) struct Step {
    pub(super) changes: Vec<ShardChanges>,
    pub(super) lsn: u64,
    /// `None`: the shard is copied.
    pub(super) cursor: Option<SnapshotCursor>,
}

/// Where a shard stands whose copy is still to begin.
pub(super) fn beginning(shard: &str) -> SnapshotCursor {
    SnapshotCursor { shard: shard.to_owned(), ..SnapshotCursor::default() }
}

/// Goes on copying a shard: the records after `lsn`, and where they reach its end, the next part of its rows.
///
/// # Errors
/// Those of the shard; `CONFLICT` where its tables have changed so that the copy cannot go on.
pub(super) async fn step(
    shards: &Shards,
    choice: &Choice,
    cursor: &SnapshotCursor,
    lsn: u64,
    max_bytes: usize,
) -> Result<Step, Error> {
    let shard = cursor.shard.as_str();
    if cursor.table.is_empty() {
        let last = shards.retained(shard).await?.last_lsn;
        let next = next_table(&tables(shards, choice, shard, "").await?.0, cursor);
        return Ok(Step { changes: Vec::new(), lsn: last, cursor: next });
    }
    let mut changes = Vec::new();
    let take = |changes: &mut Vec<ShardChanges>, records: &[Rc<WalRecord>]| -> Result<(), Error> {
        let mut kept = Vec::new();
        for record in records {
            kept.extend(choice.changes(record, Some(cursor))?);
        }
        if !kept.is_empty() {
            changes.push(ShardChanges { shard: shard.to_owned(), records: kept, snapshot: None });
        }
        Ok(())
    };
    let stay = |changes, lsn| Ok(Step { changes, lsn, cursor: Some(cursor.clone()) });
    let mut at = lsn;
    if shards.last_lsn(shard) > at {
        let records = shards.recent(shard, at, max_bytes).await?;
        at = records.last().map_or(at, |record| record.lsn);
        take(&mut changes, &records)?;
        if shards.last_lsn(shard) > at {
            return stay(changes, at);
        }
    }
    let part = match Part::read(shards, choice, cursor, max_bytes).await? {
        Found::Part(part) => *part,
        Found::Gone { lsn } if lsn > at => {
            // Its end is still to come. What no replica has yet may not be seen yet.
            shards.refresh(shard).await?;
            return stay(changes, at);
        }
        Found::Gone { .. } => {
            let next = next_table(&tables(shards, choice, shard, &cursor.table).await?.0, cursor);
            changes.push(progress(shard, None, next.clone()));
            return Ok(Step { changes, lsn: at, cursor: next });
        }
    };
    let (mut bytes, mut looks) = (0, 0);
    while at < part.lsn {
        // What no replica has yet may not be seen yet.
        if let Err(error) = shards.refresh(shard).await
            && !error.retryable
        {
            return Err(error);
        }
        let records = if shards.last_lsn(shard) > at { shards.recent(shard, at, max_bytes).await? } else { Vec::new() };
        if records.is_empty() {
            looks += 1;
            if looks > LOOKS {
                return stay(changes, at);
            }
            shards.context.sleep(Duration::from_millis(LOOK_MS)).await;
            continue;
        }
        let up_to = records.iter().position(|record| record.lsn > part.lsn).unwrap_or(records.len());
        let records = &records[..up_to];
        at = records.last().map_or(at, |record| record.lsn);
        bytes += records.iter().map(|record| prost::Message::encoded_len(record.as_ref())).sum::<usize>();
        let outdated = records.iter().any(|record| record.lsn > part.shape_lsn && alters(record, &cursor.table));
        take(&mut changes, records)?;
        if outdated || bytes > MAX_BETWEEN {
            return stay(changes, at);
        }
    }
    if shards.epoch(shard) != part.epoch {
        // A promotion may have lost what was read.
        return stay(changes, at);
    }
    if at > part.lsn {
        return Err(Error::retryable(ErrorCode::Unavailable, format!("{shard} has answered from an earlier state"), 0));
    }
    let next = match part.next {
        Some(next) => Some(next),
        None => next_table(&tables(shards, choice, shard, &cursor.table).await?.0, cursor),
    };
    changes.push(progress(shard, choice.rows(&part.rows)?, next.clone()));
    Ok(Step { changes, lsn: at, cursor: next })
}

fn progress(shard: &str, rows: Option<WalRecord>, cursor: Option<SnapshotCursor>) -> ShardChanges {
    ShardChanges {
        shard: shard.to_owned(),
        records: rows.into_iter().collect(),
        snapshot: Some(SnapshotProgress { cursor }),
    }
}

/// The beginning of the first table after the cursor's.
fn next_table(shapes: &[Shape], cursor: &SnapshotCursor) -> Option<SnapshotCursor> {
    let next = shapes.iter().filter(|shape| shape.table.name > cursor.table).min_by_key(|shape| &shape.table.name)?;
    Some(SnapshotCursor {
        shard: cursor.shard.clone(),
        table: next.table.name.clone(),
        after: None,
        has_rowid: next.has_rowid,
        rowid_is_key: next.rowid_is_key,
    })
}

/// The rows after a cursor, up to a bound.
struct Part {
    rows: WalRecord,
    /// As of which they are.
    lsn: u64,
    /// The shard's epoch when they were read.
    epoch: u64,
    /// As of which the table's columns were read.
    shape_lsn: u64,
    /// The cursor after them; `None` where they are the table's last.
    next: Option<SnapshotCursor>,
}

/// What there is of the table that a cursor is in.
enum Found {
    Part(Box<Part>),
    /// There is no such table, as of an LSN.
    Gone {
        lsn: u64,
    },
}

impl Part {
    async fn read(shards: &Shards, choice: &Choice, cursor: &SnapshotCursor, max_bytes: usize) -> Result<Found, Error> {
        let shard = &cursor.shard;
        let epoch = shards.epoch(shard);
        let (shapes, shape_lsn) = tables(shards, choice, shard, &cursor.table).await?;
        let Some(shape) = shapes.into_iter().find(|shape| shape.table.name == cursor.table) else {
            return Ok(Found::Gone { lsn: shape_lsn });
        };
        if (shape.has_rowid, shape.rowid_is_key) != (cursor.has_rowid, cursor.rowid_is_key) {
            return Err(remade(&cursor.table));
        }
        let (sql, params) = shape.statement(cursor)?;
        let batch = match query(shards, shard, sql, params, max_bytes).await {
            Ok(batch) => batch,
            // It, or a column, was dropped meanwhile: another look will show what there is.
            Err(error) if matches!(error.code(), ErrorCode::UnknownTable | ErrorCode::UnknownColumn) => {
                return Err(Error { retryable: true, ..error });
            }
            Err(error) => return Err(error),
        };
        let complete = batch.cursor == 0 && batch.rows.len() < PART_ROWS;
        let hlc = shards.context.now_ms() << 16;
        let mut changes = Vec::with_capacity(batch.rows.len());
        let mut last_key = None;
        for mut row in batch.rows {
            if row.values.len() != shape.table.columns.len() + 1 {
                return Err(Error::internal(format!("{shard} answered rows of other columns than were asked for")));
            }
            let rowid = row.values.remove(0);
            last_key = Some(shape.key(&rowid, &row));
            let rowid = match rowid.kind {
                Some(Kind::Integer(rowid)) => rowid,
                _ => 0,
            };
            changes.push(RowChange {
                table: 0,
                operation: Operation::Insert.into(),
                rowid,
                before: None,
                after: Some(row),
            });
        }
        let next =
            (!complete).then(|| SnapshotCursor { after: last_key.or_else(|| cursor.after.clone()), ..cursor.clone() });
        let rows = WalRecord { lsn: batch.lsn, hlc, tables: vec![shape.table], changes, ..WalRecord::default() };
        Ok(Found::Part(Box::new(Self { rows, lsn: batch.lsn, epoch, shape_lsn, next })))
    }
}
