//! Frames of the change stream.

use std::collections::HashSet;

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct, Serializer};

use super::JsonValue;
use crate::Position;
use crate::v1::{ChangeBatch, Error, Operation, Row, RowChange, SchemaChange, WalRecord, WalTable};

/// The JSON frames of a batch, one for each committed transaction, in order. Resuming from a frame's `position` continues
/// with the frame after it.
///
/// # Errors
/// `INTERNAL` where the batch contradicts itself (a change of a table it does not describe, a position that is none).
pub fn change_frames(batch: &ChangeBatch) -> Result<Vec<String>, Error> {
    let end: Position = batch
        .position
        .parse()
        .map_err(|error| Error::internal(format!("change batch with a bad position: {error}")))?;
    // Before a shard's first record of this batch a subscriber stands right before it; after its last one at the batch's end.
    let mut position = end.clone();
    let mut seen = HashSet::new();
    for shard in &batch.shards {
        if let Some(first) = shard.records.first()
            && seen.insert(shard.shard.as_str())
        {
            position.0.insert(shard.shard.clone(), first.lsn.saturating_sub(1));
        }
    }
    let mut frames = Vec::with_capacity(batch.shards.iter().map(|shard| shard.records.len()).sum());
    for (index, shard) in batch.shards.iter().enumerate() {
        let more_later = batch.shards[index + 1..].iter().any(|later| later.shard == shard.shard);
        for (record_index, record) in shard.records.iter().enumerate() {
            let last = record_index + 1 == shard.records.len() && !more_later;
            position.advance(&shard.shard, if last { end.lsn(&shard.shard) } else { record.lsn });
            let frame = Frame { shard: &shard.shard, record, position: &position.to_string() };
            frames.push(
                serde_json::to_string(&frame)
                    .map_err(|error| Error::internal(format!("LSN {} of {}: {error}", record.lsn, shard.shard)))?,
            );
        }
    }
    Ok(frames)
}

struct Frame<'a> {
    shard: &'a str,
    record: &'a WalRecord,
    position: &'a str,
}

impl Serialize for Frame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frame = serializer.serialize_struct("Frame", 6)?;
        frame.serialize_field("shard", self.shard)?;
        frame.serialize_field("lsn", &self.record.lsn)?;
        frame.serialize_field("ts_ms", &(self.record.hlc >> 16))?;
        frame.serialize_field("changes", &Changes(self.record))?;
        frame.serialize_field("schema_changes", &SchemaChanges(&self.record.schema_changes))?;
        frame.serialize_field("position", self.position)?;
        frame.end()
    }
}

struct Changes<'a>(&'a WalRecord);

impl Serialize for Changes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut changes = serializer.serialize_seq(Some(self.0.changes.len()))?;
        for change in &self.0.changes {
            let table = self.0.tables.get(change.table as usize).ok_or_else(|| {
                serde::ser::Error::custom(format!("a change refers to table {}, which is missing", change.table))
            })?;
            changes.serialize_element(&Change { table, change })?;
        }
        changes.end()
    }
}

struct Change<'a> {
    table: &'a WalTable,
    change: &'a RowChange,
}

impl Serialize for Change<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { table, change } = *self;
        let op = match change.operation() {
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
struct Key<'a> {
    table: &'a WalTable,
    row: &'a Row,
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

struct NamedRow<'a> {
    table: &'a WalTable,
    row: &'a Row,
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
    use crate::v1::{Column, ShardChanges, Value};

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
        ShardChanges { shard: name.into(), records }
    }

    #[test]
    fn each_frame_can_be_resumed_from() {
        let batch = ChangeBatch {
            shards: vec![shard("a", vec![insert(5, 1), insert(7, 2)]), shard("b", vec![insert(1, 3)])],
            position: "a:9,b:1,c:4".into(),
        };
        let frames: Vec<serde_json::Value> =
            change_frames(&batch).unwrap().iter().map(|frame| serde_json::from_str(frame).unwrap()).collect();
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

    #[test]
    fn schema_changes_show_the_table() {
        let change = SchemaChange { sql: "CREATE TABLE t(id)".into(), table: Some(table()), ..SchemaChange::default() };
        let record = WalRecord { lsn: 1, schema_changes: vec![change], ..WalRecord::default() };
        let batch = ChangeBatch { shards: vec![shard("a", vec![record])], position: "a:1".into() };
        let frame: serde_json::Value = serde_json::from_str(&change_frames(&batch).unwrap()[0]).unwrap();
        assert_eq!(frame["schema_changes"][0]["table"]["primary_key"], serde_json::json!(["id"]));
        assert_eq!(frame["changes"], serde_json::json!([]));
    }

    #[test]
    fn a_batch_that_contradicts_itself_is_an_error() {
        let mut record = insert(1, 1);
        record.tables.clear();
        let batch = ChangeBatch { shards: vec![shard("a", vec![record])], position: "a:1".into() };
        assert!(change_frames(&batch).unwrap_err().message.contains("LSN 1 of a"));
    }
}
