//! Records as shards write them.

use dosql_proto::{Column, Operation, Row, RowChange, Value, WalRecord, WalTable};

/// Noon of 2026-01-01.
pub(crate) const NOON_MS: u64 = 1_767_268_800_000;

pub(crate) fn table(name: &str, columns: &[(&str, &str)], primary_key: &[u32]) -> WalTable {
    let column = |(name, declared): &(&str, &str)| Column { name: (*name).into(), declared_type: (*declared).into() };
    WalTable { name: name.into(), columns: columns.iter().map(column).collect(), primary_key: primary_key.to_vec() }
}

pub(crate) fn inserts(lsn: u64, table: &WalTable, rows: Vec<Vec<Value>>) -> WalRecord {
    let change = |(rowid, values)| row_change(lsn.cast_signed() * 1000 + rowid, None, Some(values));
    let changes = (1..).zip(rows).map(change).collect();
    WalRecord { lsn, hlc: NOON_MS << 16, tables: vec![table.clone()], changes, ..WalRecord::default() }
}

/// A change of a row of the record's first table.
pub(crate) fn row_change(rowid: i64, before: Option<Vec<Value>>, after: Option<Vec<Value>>) -> RowChange {
    let row = |values: Vec<Value>| values.into_iter().collect::<Row>();
    let operation = match (&before, &after) {
        (None, _) => Operation::Insert,
        (Some(_), Some(_)) => Operation::Update,
        (Some(_), None) => Operation::Delete,
    };
    RowChange { table: 0, operation: operation.into(), rowid, before: before.map(row), after: after.map(row) }
}
