//! Copying a shard's tables for a subscriber, part by part, between the changes.
//!
//! A part is read as of one LSN and sent right after the record of that LSN. Of the changes, the subscriber is sent those of
//! rows that it has; the others are in a part that is still to be read. So it has, at every position, a part of the table exactly
//! as it was there; nothing is stored and no writer waits.

use std::cmp::Ordering;
use std::rc::Rc;
use std::time::Duration;

use dosql_proto::value::Kind;
use dosql_proto::{
    CloseRequest, Column, Error, ErrorCode, Operation, Row, RowBatch, RowChange, ShardChanges, ShardQuery,
    SnapshotCursor, SnapshotProgress, Statement, Value, WalRecord, WalTable, shard_reply, shard_request,
};

use super::choice::{Choice, integer_key};
use super::shards::Shards;

/// Most rows of one part.
const PART_ROWS: usize = 1024;

/// Most bytes of records between two parts that are sent together with the second.
const MAX_BETWEEN: usize = 8 << 20;

/// How often, and after what pause, the log is looked at when it does not yet show what a part was read after, in milliseconds.
const LOOKS: u32 = 40;
const LOOK_MS: u64 = 25;

/// A table and how its rows are found.
pub(super) struct Shape {
    pub(super) table: WalTable,
    has_rowid: bool,
    rowid_is_key: bool,
}

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

impl Shape {
    /// The statement that reads the rows after a cursor, by key: the rowid (0 where there is none), then the columns.
    fn statement(&self, cursor: &SnapshotCursor) -> Result<(String, Vec<Value>), Error> {
        let Self { table, .. } = self;
        let columns: Vec<String> = table.columns.iter().map(|column| quote(&column.name)).collect();
        let rowid = if self.has_rowid {
            let taken = |name: &str| table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            let name = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name));
            name.ok_or_else(|| {
                let message =
                    format!("the rows of {} cannot be told apart: columns have all names of the rowid", table.name);
                Error::new(ErrorCode::Unsupported, message)
            })?
        } else {
            "0"
        };
        let key: Vec<String> = if self.has_rowid {
            vec![rowid.to_owned()]
        } else {
            let names = table.primary_key.iter().filter_map(|at| columns.get(*at as usize));
            // The order of the bytes, whatever the column's own collation: it is compared here, too.
            names.map(|name| format!("{name} COLLATE BINARY")).collect()
        };
        let after = cursor.after.as_ref().map(|row| row.values.clone()).unwrap_or_default();
        let filter = if after.is_empty() {
            String::new()
        } else if after.len() == key.len() {
            format!("WHERE {} ", beyond(&key))
        } else {
            return Err(remade(&table.name));
        };
        let sql = format!(
            "SELECT {rowid}, {} FROM {} {filter}ORDER BY {} LIMIT {PART_ROWS}",
            columns.join(", "),
            quote(&table.name),
            key.join(", ")
        );
        Ok((sql, after))
    }

    fn key(&self, rowid: &Value, row: &Row) -> Row {
        if self.has_rowid { Row { values: vec![rowid.clone()] } } else { primary_key(&self.table, row) }
    }
}

/// The condition that a key of these parts is greater than ?1, ?2, ... The first part stands alone as well, for the index.
fn beyond(key: &[String]) -> String {
    let [first, ..] = key else { return "1".to_owned() };
    let alternatives = (0..key.len()).map(|at| {
        let equal = (0..at).map(|before| format!("{} = ?{}", key[before], before + 1));
        equal.chain([format!("{} > ?{}", key[at], at + 1)]).collect::<Vec<_>>().join(" AND ")
    });
    match key.len() {
        1 => format!("{first} > ?1"),
        _ => format!("{first} >= ?1 AND ({})", alternatives.collect::<Vec<_>>().join(" OR ")),
    }
}

fn primary_key(table: &WalTable, row: &Row) -> Row {
    table.primary_key.iter().filter_map(|at| row.values.get(*at as usize).cloned()).collect()
}

/// Whether a subscriber at the cursor has the row, if there is one with its key.
pub(super) fn has(cursor: &SnapshotCursor, table: &WalTable, rowid: i64, row: &Row) -> bool {
    match table.name.as_str().cmp(&cursor.table) {
        Ordering::Less => return true,
        Ordering::Greater => return false,
        Ordering::Equal => {}
    }
    let Some(after) = &cursor.after else { return false };
    let key = if !cursor.has_rowid {
        primary_key(table, row)
    } else if cursor.rowid_is_key {
        Row { values: vec![integer_key(table, row).unwrap_or(rowid).into()] }
    } else {
        Row { values: vec![rowid.into()] }
    };
    let order = key.values.iter().zip(&after.values).map(|(key, after)| compare(key, after));
    order.into_iter().find(|order| order.is_ne()).is_none_or(Ordering::is_le)
}

/// The rowid of a changed row afterwards, as far as its columns show it.
pub(super) fn rowid_after(table: &WalTable, change: &RowChange) -> i64 {
    let key = |row: &Option<Row>| row.as_ref().and_then(|row| integer_key(table, row));
    match (key(&change.before), key(&change.after)) {
        (Some(before), Some(after)) if before == change.rowid => after,
        _ => change.rowid,
    }
}

/// SQLite's order of values, text by its bytes.
fn compare(left: &Value, right: &Value) -> Ordering {
    fn class(value: &Value) -> u8 {
        match value.kind {
            None => 0,
            Some(Kind::Integer(_) | Kind::Real(_)) => 1,
            Some(Kind::Text(_) | Kind::RawText(_)) => 2,
            Some(Kind::Blob(_)) => 3,
        }
    }
    fn bytes(value: &Value) -> &[u8] {
        match &value.kind {
            Some(Kind::Text(text)) => text.as_bytes(),
            Some(Kind::RawText(bytes) | Kind::Blob(bytes)) => bytes,
            _ => &[],
        }
    }
    match (&left.kind, &right.kind) {
        (Some(Kind::Integer(left)), Some(Kind::Integer(right))) => left.cmp(right),
        (Some(Kind::Real(left)), Some(Kind::Real(right))) => left.partial_cmp(right).unwrap_or(Ordering::Equal),
        (Some(Kind::Integer(left)), Some(Kind::Real(right))) => compare_numbers(*left, *right),
        (Some(Kind::Real(left)), Some(Kind::Integer(right))) => compare_numbers(*right, *left).reverse(),
        _ => class(left).cmp(&class(right)).then_with(|| bytes(left).cmp(bytes(right))),
    }
}

fn compare_numbers(integer: i64, real: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if real >= BEYOND {
        return Ordering::Less;
    }
    if real < -BEYOND {
        return Ordering::Greater;
    }
    let whole = real.trunc() as i64;
    integer.cmp(&whole).then_with(|| 0.0_f64.partial_cmp(&real.fract()).unwrap_or(Ordering::Equal))
}

fn alters(record: &WalRecord, table: &str) -> bool {
    record
        .schema_changes
        .iter()
        .any(|change| change.dropped == table || change.table.as_ref().is_some_and(|made| made.name == table))
}

fn remade(table: &str) -> Error {
    let message = format!("{table} was renamed or made anew while it was being copied; begin the snapshot again");
    Error::new(ErrorCode::Conflict, message)
}

/// Whether a copy that stands at the cursor can go on after a record.
///
/// # Errors
/// `CONFLICT` where a table that is not completely copied has another name now, or another one has the name of the one that is
/// being copied.
pub(super) fn check_schema(choice: &Choice, cursor: &SnapshotCursor, record: &WalRecord) -> Result<(), Error> {
    for change in &record.schema_changes {
        let Some(table) = &change.table else { continue };
        let old = change.dropped.as_str();
        let creates = change.sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("CREATE"));
        if !old.is_empty() && choice.wants(old) && old >= cursor.table.as_str() {
            return Err(remade(old));
        }
        if table.name == cursor.table && cursor.after.is_some() && (creates || !old.is_empty()) {
            return Err(remade(&table.name));
        }
    }
    Ok(())
}

/// The tables of a shard that a subscriber wants, from a name on, and the LSN as of which they are so.
pub(super) async fn tables(
    shards: &Shards,
    choice: &Choice,
    shard: &str,
    from: &str,
) -> Result<(Vec<Shape>, u64), Error> {
    let mut params = vec![Value::from(from)];
    let named = if choice.tables().is_empty() {
        String::new()
    } else {
        params.extend(choice.tables().iter().map(|name| Value::from(name.to_ascii_lowercase().as_str())));
        let marks: Vec<String> = (2..=params.len()).map(|at| format!("?{at}")).collect();
        format!(" AND lower(l.name) IN ({})", marks.join(", "))
    };
    let sql = format!(
        "SELECT l.name, l.wr, x.name, x.type, x.pk, x.hidden, \
         EXISTS (SELECT 1 FROM pragma_index_list(l.name) WHERE origin = 'pk') \
         FROM pragma_table_list l JOIN pragma_table_xinfo(l.name) x \
         WHERE l.schema = 'main' AND l.type = 'table' AND l.name >= ?1{named} \
         AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND l.name NOT LIKE '\\_dosql\\_%' ESCAPE '\\' \
         ORDER BY l.name, x.cid"
    );
    let mut batch = query(shards, shard, sql, params, usize::MAX).await?;
    let lsn = batch.lsn;
    let mut rows = std::mem::take(&mut batch.rows);
    while batch.cursor != 0 {
        let fetch = dosql_proto::FetchRequest { cursor: batch.cursor };
        batch = rows_of(shards.ask(shard, shard_request::Request::Fetch(fetch)).await?)?;
        rows.append(&mut batch.rows);
    }
    let mut shapes: Vec<Shape> = Vec::new();
    let mut keys: Vec<(i64, u32)> = Vec::new();
    for row in &rows {
        let [name, without_rowid, column, declared, rank, hidden, key_index] = row.values.as_slice() else {
            return Err(Error::internal(format!("{shard} described its tables otherwise than asked")));
        };
        let text = |value: &Value| match &value.kind {
            Some(Kind::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let number = |value: &Value| match value.kind {
            Some(Kind::Integer(number)) => number,
            _ => 0,
        };
        let name = text(name);
        if shapes.last().is_none_or(|shape| shape.table.name != name) {
            finish(&mut shapes, &mut keys);
            shapes.push(Shape {
                table: WalTable { name, ..WalTable::default() },
                has_rowid: number(without_rowid) == 0,
                rowid_is_key: number(without_rowid) == 0 && number(key_index) == 0,
            });
        }
        // 2: a VIRTUAL generated column, which rows do not store.
        if number(hidden) != 2
            && let Some(shape) = shapes.last_mut()
        {
            if number(rank) > 0 {
                keys.push((number(rank), u32::try_from(shape.table.columns.len()).unwrap_or(u32::MAX)));
            }
            shape.table.columns.push(Column { name: text(column), declared_type: text(declared) });
        }
    }
    finish(&mut shapes, &mut keys);
    Ok((shapes, lsn))
}

/// Notes the primary key of the last table.
fn finish(shapes: &mut [Shape], keys: &mut Vec<(i64, u32)>) {
    keys.sort_unstable();
    if let Some(shape) = shapes.last_mut() {
        shape.table.primary_key = keys.iter().map(|(_, at)| *at).collect();
        shape.rowid_is_key &= !keys.is_empty();
    }
    keys.clear();
}

/// Runs a reading statement on a shard; of the result beyond `max_bytes`, nothing is wanted unless all is.
async fn query(
    shards: &Shards,
    shard: &str,
    sql: String,
    params: Vec<Value>,
    max_bytes: usize,
) -> Result<RowBatch, Error> {
    let request = ShardQuery {
        statement: Some(Statement { sql, params }),
        max_batch_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
        ..ShardQuery::default()
    };
    let batch = rows_of(shards.ask(shard, shard_request::Request::Query(request)).await?)?;
    if batch.cursor != 0 && max_bytes != usize::MAX {
        // It expires where this does not arrive.
        let close = shard_request::Request::Close(CloseRequest { cursor: batch.cursor });
        if let Err(error) = shards.ask(shard, close).await {
            tracing::debug!(shard, %error, "a result was not closed");
        }
    }
    Ok(batch)
}

fn rows_of(reply: shard_reply::Reply) -> Result<RowBatch, Error> {
    match reply {
        shard_reply::Reply::Rows(batch) => Ok(batch),
        _ => Err(Error::internal("a shard answered something else than rows")),
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_ordered_as_sqlite_orders_them() {
        let raw = Value { kind: Some(Kind::RawText(vec![0xff])) };
        let ascending = [
            Value::NULL,
            f64::NEG_INFINITY.into(),
            i64::MIN.into(),
            Value::from(-2),
            Value::from(-1.5),
            Value::from(-1),
            Value::from(0),
            Value::from(0.5),
            Value::from(1),
            Value::from(9_007_199_254_740_992.0),
            Value::from(9_007_199_254_740_993_i64),
            i64::MAX.into(),
            Value::from(9.3e18),
            "".into(),
            "A".into(),
            "a".into(),
            "ab".into(),
            raw,
            Value::blob([]),
            Value::blob([0]),
        ];
        for (left_at, left) in ascending.iter().enumerate() {
            for (right_at, right) in ascending.iter().enumerate() {
                assert_eq!(compare(left, right), left_at.cmp(&right_at), "{left:?} {right:?}");
            }
        }
        assert_eq!(compare(&Value::from(1), &Value::from(1.0)), Ordering::Equal);
    }

    #[test]
    fn keys_of_several_parts_are_compared_part_by_part() {
        let key = ["a".to_owned(), "b".to_owned()];
        assert_eq!(beyond(&key), "a >= ?1 AND (a > ?1 OR a = ?1 AND b > ?2)");
        assert_eq!(beyond(&key[..1]), "a > ?1");
    }
}
