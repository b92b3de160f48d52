//! Frames of the change stream as Debezium's connectors shape their events, without their schemas: one for each row, and around
//! the rows of a transaction one for its beginning and one for its end.

use std::collections::BTreeMap;

use serde::Serialize;

use super::changes::{Frame, Key, NamedRow, Placed, each_record, table_of};
use crate::v1::{ChangeBatch, Column, Error, Operation, RowChange, SchemaChange, WalTable};

/// The connector, the logical server and the database that every event names.
const CONNECTOR: &str = "dosql";
const SERVER: &str = "dosql";
const DATABASE: &str = "default";

/// The Debezium frames of a batch. `now_ms` is when they are made, in milliseconds since the epoch.
///
/// A transaction can only be resumed as a whole: its events carry the position before it, its end carries the one after it.
///
/// # Errors
/// `INTERNAL` where the batch contradicts itself.
pub fn debezium_frames(batch: &ChangeBatch, now_ms: u64) -> Result<Vec<Frame>, Error> {
    let mut frames = Vec::new();
    each_record(batch, |placed| match placed.changes.snapshot {
        Some(_) => rows(placed, now_ms, &mut frames),
        None => transaction(placed, now_ms, &mut frames),
    })?;
    Ok(frames)
}

/// The heartbeat of a stream of Debezium frames.
#[must_use]
pub fn debezium_heartbeat(position: &str, now_ms: u64) -> String {
    serde_json::json!({"ts_ms": now_ms, "position": position}).to_string()
}

#[derive(Serialize)]
struct Source<'a> {
    version: &'static str,
    connector: &'static str,
    name: &'static str,
    ts_ms: u64,
    snapshot: &'static str,
    db: &'static str,
    sequence: Option<String>,
    table: Option<&'a str>,
    #[serde(rename = "txId")]
    transaction: Option<u64>,
    lsn: u64,
    shard: &'a str,
    position: &'a str,
}

#[derive(Serialize)]
struct Event<'a> {
    key: serde_json::Value,
    before: Option<NamedRow<'a>>,
    after: Option<NamedRow<'a>>,
    source: Source<'a>,
    op: &'static str,
    ts_ms: u64,
    transaction: Option<TransactionBlock<'a>>,
}

#[derive(Serialize)]
struct TransactionBlock<'a> {
    id: &'a str,
    total_order: u64,
    data_collection_order: u64,
}

#[derive(Serialize)]
struct Boundary<'a> {
    status: &'static str,
    id: &'a str,
    event_count: Option<u64>,
    data_collections: Option<Vec<Collection>>,
    ts_ms: u64,
    position: &'a str,
}

#[derive(Serialize)]
struct Collection {
    data_collection: String,
    event_count: u64,
}

fn source<'a>(placed: &Placed<'a>, table: Option<&'a str>, position: &'a str) -> Source<'a> {
    let rows = placed.changes.snapshot.is_some();
    let lsn = placed.record.lsn;
    Source {
        version: env!("CARGO_PKG_VERSION"),
        connector: CONNECTOR,
        name: SERVER,
        ts_ms: placed.record.hlc >> 16,
        snapshot: if rows { "incremental" } else { "false" },
        db: DATABASE,
        sequence: (!rows).then(|| format!("[\"{}\",\"{lsn}\"]", lsn.saturating_sub(1))),
        table,
        transaction: (!rows).then_some(lsn),
        lsn,
        shard: &placed.changes.shard,
        position,
    }
}

fn event<'a>(
    placed: &Placed<'a>,
    change: &'a RowChange,
    position: &'a str,
    now_ms: u64,
    transaction: Option<TransactionBlock<'a>>,
) -> serde_json::Result<Event<'a>> {
    use serde::ser::Error as _;
    let table = table_of(placed.record, change).map_err(serde_json::Error::custom)?;
    let op = match change.operation() {
        _ if placed.changes.snapshot.is_some() => "r",
        Operation::Insert => "c",
        Operation::Update => "u",
        Operation::Delete => "d",
        Operation::Unspecified => return Err(serde_json::Error::custom("a change without an operation")),
    };
    let key = match change.after.as_ref().or(change.before.as_ref()) {
        Some(row) if !table.primary_key.is_empty() => serde_json::to_value(Key { table, row })?,
        _ => serde_json::json!({"rowid": change.rowid}),
    };
    let named = |row: &'a Option<crate::v1::Row>| row.as_ref().map(|row| NamedRow { table, row });
    Ok(Event {
        key,
        before: named(&change.before),
        after: named(&change.after),
        source: source(placed, Some(&table.name), position),
        op,
        ts_ms: now_ms,
        transaction,
    })
}

/// The rows of a part of a snapshot. Only after the last one has the subscriber the whole part.
fn rows(placed: &Placed<'_>, now_ms: u64, frames: &mut Vec<Frame>) -> serde_json::Result<()> {
    for (index, change) in placed.record.changes.iter().enumerate() {
        let last = index + 1 == placed.record.changes.len();
        let position = if last { placed.after } else { placed.before };
        let text = serde_json::to_string(&event(placed, change, position, now_ms, None)?)?;
        frames.push(Frame { text, position: last.then(|| placed.after.to_owned()) });
    }
    Ok(())
}

fn transaction(placed: &Placed<'_>, now_ms: u64, frames: &mut Vec<Frame>) -> serde_json::Result<()> {
    let record = placed.record;
    let id = format!("{}:{}", placed.changes.shard, record.lsn);
    let ts_ms = record.hlc >> 16;
    let begin = Boundary {
        status: "BEGIN",
        id: &id,
        event_count: None,
        data_collections: None,
        ts_ms,
        position: placed.before,
    };
    let mut within = |text: String| frames.push(Frame { text, position: None });
    within(serde_json::to_string(&begin)?);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut total_order = 0;
    let mut schema_changes = record.schema_changes.iter().peekable();
    for (index, change) in record.changes.iter().enumerate() {
        while let Some(made) = schema_changes.next_if(|made| made.after_changes as usize <= index) {
            within(schema_change(placed, made, now_ms).to_string());
        }
        total_order += 1;
        let name = record.tables.get(change.table as usize).map_or("", |table| table.name.as_str());
        let count = counts.entry(name).or_default();
        *count += 1;
        let block = TransactionBlock { id: &id, total_order, data_collection_order: *count };
        within(serde_json::to_string(&event(placed, change, placed.before, now_ms, Some(block))?)?);
    }
    for made in schema_changes {
        within(schema_change(placed, made, now_ms).to_string());
    }
    let collections = counts
        .iter()
        .map(|(table, count)| Collection { data_collection: format!("{DATABASE}.{table}"), event_count: *count });
    let end = Boundary {
        status: "END",
        id: &id,
        event_count: Some(total_order),
        data_collections: Some(collections.collect()),
        ts_ms,
        position: placed.after,
    };
    frames.push(Frame { text: serde_json::to_string(&end)?, position: Some(placed.after.to_owned()) });
    Ok(())
}

fn schema_change(placed: &Placed<'_>, made: &SchemaChange, now_ms: u64) -> serde_json::Value {
    let id = |name: &str| format!("\"{DATABASE}\".\"{name}\"");
    let changes = match (&made.table, made.dropped.as_str()) {
        (None, "") => Vec::new(),
        (None, dropped) => vec![serde_json::json!({"type": "DROP", "id": id(dropped), "table": null})],
        (Some(table), dropped) => {
            let creates = made.sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("CREATE"));
            let kind = if creates && dropped.is_empty() { "CREATE" } else { "ALTER" };
            let mut change = serde_json::json!({"type": kind, "id": id(&table.name), "table": structure(table)});
            if !dropped.is_empty() {
                change["previousId"] = id(dropped).into();
            }
            vec![change]
        }
    };
    let name = made.table.as_ref().map(|table| table.name.as_str()).or(Some(made.dropped.as_str()));
    serde_json::json!({
        "source": source(placed, name.filter(|name| !name.is_empty()), placed.before),
        "ts_ms": now_ms,
        "databaseName": DATABASE,
        "schemaName": null,
        "ddl": made.sql,
        "tableChanges": changes,
    })
}

fn structure(table: &WalTable) -> serde_json::Value {
    let is_key = |index: usize| table.primary_key.iter().any(|key| *key as usize == index);
    let column = |(index, column): (usize, &Column)| {
        serde_json::json!({
            "name": column.name,
            "jdbcType": jdbc_type(&column.declared_type),
            "nativeType": null,
            "typeName": column.declared_type,
            "typeExpression": column.declared_type,
            "charsetName": null,
            "length": null,
            "scale": null,
            "position": index + 1,
            "optional": !is_key(index),
            "autoIncremented": false,
            "generated": false,
        })
    };
    let keys = table.primary_key.iter().filter_map(|index| table.columns.get(*index as usize));
    serde_json::json!({
        "defaultCharsetName": null,
        "primaryKeyColumnNames": keys.map(|column| column.name.as_str()).collect::<Vec<_>>(),
        "columns": table.columns.iter().enumerate().map(column).collect::<Vec<_>>(),
    })
}

/// The number in `java.sql.Types` of the type that a declared type comes to by SQLite's rules.
fn jdbc_type(declared: &str) -> i32 {
    const BIGINT: i32 = -5;
    const VARCHAR: i32 = 12;
    const BLOB: i32 = 2004;
    const DOUBLE: i32 = 8;
    const NUMERIC: i32 = 2;
    let declared = declared.to_ascii_uppercase();
    let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
    if has(&["INT"]) {
        BIGINT
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        VARCHAR
    } else if declared.is_empty() || has(&["BLOB"]) {
        BLOB
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        DOUBLE
    } else {
        NUMERIC
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ShardChanges, SnapshotProgress, Value, WalRecord};
    use serde_json::{Value as Json, json};

    fn table() -> WalTable {
        let column = |name: &str, kind: &str| Column { name: name.into(), declared_type: kind.into() };
        WalTable { name: "t".into(), columns: vec![column("id", "INTEGER"), column("v", "TEXT")], primary_key: vec![0] }
    }

    fn change(operation: Operation, before: Option<&str>, after: Option<&str>) -> RowChange {
        let row = |text: &str| [Value::from(7), Value::from(text)].into_iter().collect();
        RowChange { table: 0, operation: operation.into(), rowid: 7, before: before.map(row), after: after.map(row) }
    }

    fn record(changes: Vec<RowChange>, schema_changes: Vec<SchemaChange>) -> WalRecord {
        WalRecord {
            lsn: 5,
            hlc: 1_700_000_000_123 << 16,
            tables: vec![table()],
            changes,
            schema_changes,
            ..WalRecord::default()
        }
    }

    fn frames(record: WalRecord, snapshot: Option<SnapshotProgress>) -> Vec<Json> {
        let shards = vec![ShardChanges { shard: "a".into(), records: vec![record], snapshot }];
        let batch = ChangeBatch { shards, position: "a:6".into(), previous: "a:4".into() };
        debezium_frames(&batch, 9).unwrap().iter().map(|frame| serde_json::from_str(&frame.text).unwrap()).collect()
    }

    #[test]
    fn a_transaction_is_a_series_of_events() {
        let made = SchemaChange {
            sql: "ALTER TABLE t ADD COLUMN v TEXT".into(),
            table: Some(table()),
            after_changes: 1,
            ..SchemaChange::default()
        };
        let changes = vec![
            change(Operation::Insert, None, Some("x")),
            change(Operation::Update, Some("x"), Some("y")),
            change(Operation::Delete, Some("y"), None),
        ];
        let frames = frames(record(changes, vec![made]), None);
        assert_eq!(
            frames[0],
            json!({"status": "BEGIN", "id": "a:5", "event_count": null, "data_collections": null,
                   "ts_ms": 1_700_000_000_123_u64, "position": "a:4"})
        );
        let ops: Vec<_> = [1, 3, 4].map(|at: usize| frames[at]["op"].as_str().unwrap()).into();
        assert_eq!(ops, ["c", "u", "d"]);
        assert_eq!(
            frames[3],
            json!({
                "key": {"id": 7},
                "before": {"id": 7, "v": "x"}, "after": {"id": 7, "v": "y"},
                "source": {
                    "version": env!("CARGO_PKG_VERSION"), "connector": "dosql", "name": "dosql",
                    "ts_ms": 1_700_000_000_123_u64, "snapshot": "false", "db": "default", "sequence": "[\"4\",\"5\"]",
                    "table": "t", "txId": 5, "lsn": 5, "shard": "a", "position": "a:4",
                },
                "op": "u", "ts_ms": 9,
                "transaction": {"id": "a:5", "total_order": 2, "data_collection_order": 2},
            })
        );
        assert_eq!(frames[2]["ddl"], "ALTER TABLE t ADD COLUMN v TEXT");
        assert_eq!(frames[2]["tableChanges"][0]["type"], "ALTER");
        assert_eq!(frames[2]["tableChanges"][0]["table"]["primaryKeyColumnNames"], json!(["id"]));
        assert_eq!(frames[5]["data_collections"], json!([{"data_collection": "default.t", "event_count": 3}]));
        assert_eq!((&frames[5]["status"], &frames[5]["position"]), (&json!("END"), &json!("a:6")));
        assert_eq!(frames.len(), 6);
    }

    #[test]
    fn rows_of_a_snapshot_are_reads() {
        let rows = vec![change(Operation::Insert, None, Some("x")), change(Operation::Insert, None, Some("y"))];
        let frames = frames(record(rows, Vec::new()), Some(SnapshotProgress { cursor: None }));
        let told =
            |frame: &Json| (frame["op"].clone(), frame["source"]["snapshot"].clone(), frame["transaction"].clone());
        assert_eq!(told(&frames[0]), (json!("r"), json!("incremental"), Json::Null));
        assert_eq!(
            (&frames[0]["source"]["position"], &frames[1]["source"]["position"]),
            (&json!("a:4"), &json!("a:6"))
        );
    }
}
