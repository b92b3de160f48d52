//! Frames of the change stream.

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct, Serializer};

use super::JsonValue;
use crate::StreamPosition;
use crate::v1::{ChangeBatch, Error, Operation, Row, RowChange, SchemaChange, ShardChanges, WalRecord, WalTable};

/// A frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The JSON text.
    pub text: String,
    /// Where the stream goes on after it; `None` within what can only be resumed as a whole.
    pub position: Option<String>,
}

/// The JSON frames of a batch, one for each committed transaction and each part of a snapshot, in order. Resuming from a frame's
/// `position` continues with the frame after it.
///
/// # Errors
/// `INTERNAL` where the batch contradicts itself (a change of a table it does not describe, a position that is none).
pub fn change_frames(batch: &ChangeBatch) -> Result<Vec<Frame>, Error> {
    let mut frames = Vec::with_capacity(batch.shards.iter().map(|shard| shard.records.len()).sum());
    each_record(batch, |placed| {
        let Placed { changes, record, after, .. } = placed;
        let body = Body { shard: &changes.shard, record, rows: changes.snapshot.is_some(), position: after };
        frames.push(Frame { text: serde_json::to_string(&body)?, position: Some((*after).to_owned()) });
        Ok(())
    })?;
    Ok(frames)
}

/// The JSON frame that tells a subscriber, for whom there is nothing, that it has not been forgotten, and where it stands.
#[must_use]
pub fn heartbeat_frame(position: &str, now_ms: u64) -> String {
    serde_json::json!({"heartbeat": true, "ts_ms": now_ms, "position": position}).to_string()
}

/// A record in its place in a batch.
pub(super) struct Placed<'a> {
    pub(super) changes: &'a ShardChanges,
    pub(super) record: &'a WalRecord,
    /// The positions before and after it.
    pub(super) before: &'a str,
    pub(super) after: &'a str,
}

/// Goes through a batch's records with their positions.
///
/// # Errors
/// `INTERNAL` where the batch's positions are none or a record cannot be shown.
pub(super) fn each_record(
    batch: &ChangeBatch,
    mut show: impl FnMut(&Placed<'_>) -> serde_json::Result<()>,
) -> Result<(), Error> {
    let read = |text: &str| -> Result<StreamPosition, Error> {
        text.parse().map_err(|error| Error::internal(format!("change batch with a bad position: {error}")))
    };
    let (mut position, end) = (read(&batch.previous)?, read(&batch.position)?);
    let mut before = batch.previous.clone();
    for (index, changes) in batch.shards.iter().enumerate() {
        let shard = &changes.shard;
        let more_later = batch.shards[index + 1..].iter().any(|later| later.shard == *shard);
        for (record_index, record) in changes.records.iter().enumerate() {
            // What follows a shard's last record was of no interest to the subscriber.
            let last = record_index + 1 == changes.records.len();
            let lsn = if last && !more_later { end.lsns.lsn(shard) } else { record.lsn };
            position.lsns.advance(shard, lsn);
            if last {
                advance_snapshot(&mut position, changes);
            }
            let after = position.to_string();
            show(&Placed { changes, record, before: &before, after: &after })
                .map_err(|error| Error::internal(format!("LSN {} of {shard}: {error}", record.lsn)))?;
            before = after;
        }
        if changes.records.is_empty() {
            advance_snapshot(&mut position, changes);
        }
    }
    Ok(())
}

fn advance_snapshot(position: &mut StreamPosition, changes: &ShardChanges) {
    if let Some(progress) = &changes.snapshot {
        match &progress.cursor {
            Some(cursor) => position.snapshot.insert(changes.shard.clone(), cursor.clone()),
            None => position.snapshot.remove(&changes.shard),
        };
    }
}

struct Body<'a> {
    shard: &'a str,
    record: &'a WalRecord,
    /// Whether these are rows of a snapshot.
    rows: bool,
    position: &'a str,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frame = serializer.serialize_struct("Frame", if self.rows { 7 } else { 6 })?;
        frame.serialize_field("shard", self.shard)?;
        frame.serialize_field("lsn", &self.record.lsn)?;
        frame.serialize_field("ts_ms", &(self.record.hlc >> 16))?;
        if self.rows {
            frame.serialize_field("snapshot", &true)?;
        } else {
            frame.skip_field("snapshot")?;
        }
        frame.serialize_field("changes", &Changes { record: self.record, rows: self.rows })?;
        frame.serialize_field("schema_changes", &SchemaChanges(&self.record.schema_changes))?;
        frame.serialize_field("position", self.position)?;
        frame.end()
    }
}

struct Changes<'a> {
    record: &'a WalRecord,
    rows: bool,
}

impl Serialize for Changes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut changes = serializer.serialize_seq(Some(self.record.changes.len()))?;
        for change in &self.record.changes {
            let table = table_of(self.record, change).map_err(serde::ser::Error::custom)?;
            changes.serialize_element(&Change { table, change, row: self.rows })?;
        }
        changes.end()
    }
}

/// The table that a change of a record is of.
pub(super) fn table_of<'a>(record: &'a WalRecord, change: &RowChange) -> Result<&'a WalTable, String> {
    record
        .tables
        .get(change.table as usize)
        .ok_or_else(|| format!("a change refers to table {}, which is missing", change.table))
}

struct Change<'a> {
    table: &'a WalTable,
    change: &'a RowChange,
    /// Whether it is a row of a snapshot.
    row: bool,
}

impl Serialize for Change<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { table, change, row } = *self;
        let op = match change.operation() {
            _ if row => "read",
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Unspecified => return Err(serde::ser::Error::custom("a change without an operation")),
        };
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry("table", &table.name)?;
        fields.serialize_entry("op", op)?;
        if table.primary_key.is_empty() {
            fields.serialize_entry("rowid", &change.rowid)?;
        } else if let Some(row) = change.before.as_ref().or(change.after.as_ref()) {
            fields.serialize_entry("key", &Key { table, row })?;
        }
        fields.serialize_entry("before", &change.before.as_ref().map(|row| NamedRow { table, row }))?;
        fields.serialize_entry("after", &change.after.as_ref().map(|row| NamedRow { table, row }))?;
        fields.end()
    }
}

/// The primary key's columns, in key order.
pub(super) struct Key<'a> {
    pub(super) table: &'a WalTable,
    pub(super) row: &'a Row,
}

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut key = serializer.serialize_map(Some(self.table.primary_key.len()))?;
        for index in &self.table.primary_key {
            let index = *index as usize;
            let (Some(column), Some(value)) = (self.table.columns.get(index), self.row.values.get(index)) else {
                return Err(serde::ser::Error::custom(format!("table {} lacks its key column", self.table.name)));
            };
            key.serialize_entry(&column.name, &JsonValue(value))?;
        }
        key.end()
    }
}

pub(super) struct NamedRow<'a> {
    pub(super) table: &'a WalTable,
    pub(super) row: &'a Row,
}

impl Serialize for NamedRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.table.columns.len() != self.row.values.len() {
            return Err(serde::ser::Error::custom(format!(
                "a row of {} has {} values for {} columns",
                self.table.name,
                self.row.values.len(),
                self.table.columns.len()
            )));
        }
        let mut fields = serializer.serialize_map(Some(self.row.values.len()))?;
        for (column, value) in self.table.columns.iter().zip(&self.row.values) {
            fields.serialize_entry(&column.name, &JsonValue(value))?;
        }
        fields.end()
    }
}

struct SchemaChanges<'a>(&'a [SchemaChange]);

impl Serialize for SchemaChanges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(SchemaChangeJson))
    }
}

struct SchemaChangeJson<'a>(&'a SchemaChange);

impl Serialize for SchemaChangeJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry("sql", &self.0.sql)?;
        if let Some(table) = &self.0.table {
            fields.serialize_entry("table", &TableJson(table))?;
        }
        if !self.0.dropped.is_empty() {
            fields.serialize_entry("dropped", &self.0.dropped)?;
        }
        fields.serialize_entry("after_changes", &self.0.after_changes)?;
        fields.end()
    }
}

struct TableJson<'a>(&'a WalTable);

impl Serialize for TableJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct ColumnJson<'a> {
            name: &'a str,
            #[serde(rename = "type")]
            declared_type: &'a str,
        }
        let table = self.0;
        let columns: Vec<_> = table
            .columns
            .iter()
            .map(|column| ColumnJson { name: &column.name, declared_type: &column.declared_type })
            .collect();
        let primary_key: Vec<&str> = table
            .primary_key
            .iter()
            .filter_map(|index| table.columns.get(*index as usize))
            .map(|column| column.name.as_str())
            .collect();
        let mut fields = serializer.serialize_struct("Table", 3)?;
        fields.serialize_field("name", &table.name)?;
        fields.serialize_field("columns", &columns)?;
        fields.serialize_field("primary_key", &primary_key)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Column, SnapshotCursor, SnapshotProgress, Value};

    fn table() -> WalTable {
        let column = |name: &str| Column { name: name.into(), declared_type: "INTEGER".into() };
        WalTable { name: "t".into(), columns: vec![column("id"), column("v")], primary_key: vec![0] }
    }

    fn insert(lsn: u64, id: i64) -> WalRecord {
        WalRecord {
            lsn,
            hlc: (1_700_000_000_123 << 16) | 5,
            tables: vec![table()],
            changes: vec![RowChange {
                table: 0,
                operation: Operation::Insert.into(),
                rowid: id,
                before: None,
                after: Some([Value::from(id), Value::NULL].into_iter().collect()),
            }],
            ..WalRecord::default()
        }
    }

    fn shard(name: &str, records: Vec<WalRecord>) -> ShardChanges {
        ShardChanges { shard: name.into(), records, snapshot: None }
    }

    #[test]
    fn each_frame_can_be_resumed_from() {
        let batch = ChangeBatch {
            shards: vec![shard("a", vec![insert(5, 1), insert(7, 2)]), shard("b", vec![insert(1, 3)])],
            position: "a:9,b:1,c:4".into(),
            previous: "a:4,b:0,c:4".into(),
        };
        let frames: Vec<serde_json::Value> =
            change_frames(&batch).unwrap().iter().map(|frame| serde_json::from_str(&frame.text).unwrap()).collect();
        let positions: Vec<_> = frames.iter().map(|frame| frame["position"].as_str().unwrap()).collect();
        assert_eq!(positions, ["a:5,b:0,c:4", "a:9,b:0,c:4", "a:9,b:1,c:4"]);
        assert_eq!(frames[0]["ts_ms"], 1_700_000_000_123_u64);
        assert_eq!(
            frames[0]["changes"],
            serde_json::json!([{
                "table": "t", "op": "insert", "key": {"id": 1}, "before": null, "after": {"id": 1, "v": null}
            }])
        );
    }

    fn at_one() -> ChangeBatch {
        ChangeBatch { position: "a:1".into(), previous: "a:0".into(), ..ChangeBatch::default() }
    }

    #[test]
    fn positions_within_a_snapshot_keep_where_it_stands() {
        let cursor =
            |table: &str| SnapshotCursor { shard: "a".into(), table: table.into(), ..SnapshotCursor::default() };
        let at = |cursor: SnapshotCursor, lsn: u64| {
            let mut position = StreamPosition::default();
            position.lsns.advance("a", lsn);
            position.snapshot.insert("a".into(), cursor);
            position.to_string()
        };
        let rows = |lsn, cursor| ShardChanges {
            snapshot: Some(SnapshotProgress { cursor }),
            ..shard("a", vec![insert(lsn, 1)])
        };
        let batch = ChangeBatch {
            shards: vec![shard("a", vec![insert(2, 1)]), rows(3, Some(cursor("t"))), rows(3, None)],
            position: "a:3".into(),
            previous: at(cursor("s"), 1),
        };
        let frames: Vec<serde_json::Value> =
            change_frames(&batch).unwrap().iter().map(|frame| serde_json::from_str(&frame.text).unwrap()).collect();
        let positions: Vec<_> = frames.iter().map(|frame| frame["position"].as_str().unwrap().to_owned()).collect();
        assert_eq!(positions, [at(cursor("s"), 2), at(cursor("t"), 3), "a:3".to_owned()]);
        assert_eq!((&frames[0]["snapshot"], &frames[1]["snapshot"]), (&serde_json::Value::Null, &true.into()));
        assert_eq!(frames[1]["changes"][0]["op"], "read");
    }

    #[test]
    fn schema_changes_show_the_table() {
        let change = SchemaChange { sql: "CREATE TABLE t(id)".into(), table: Some(table()), ..SchemaChange::default() };
        let record = WalRecord { lsn: 1, schema_changes: vec![change], ..WalRecord::default() };
        let batch = ChangeBatch { shards: vec![shard("a", vec![record])], ..at_one() };
        let frame: serde_json::Value = serde_json::from_str(&change_frames(&batch).unwrap()[0].text).unwrap();
        assert_eq!(frame["schema_changes"][0]["table"]["primary_key"], serde_json::json!(["id"]));
        assert_eq!(frame["changes"], serde_json::json!([]));
    }

    #[test]
    fn a_batch_that_contradicts_itself_is_an_error() {
        let mut record = insert(1, 1);
        record.tables.clear();
        let batch = ChangeBatch { shards: vec![shard("a", vec![record])], ..at_one() };
        assert!(change_frames(&batch).unwrap_err().message.contains("LSN 1 of a"));
    }
}
