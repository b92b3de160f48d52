//! What of a shard a subscriber has whose copy stands at a cursor.

use std::cmp::Ordering;

use dosql_proto::{Error, ErrorCode, Row, RowChange, SnapshotCursor, WalRecord, WalTable};

use super::super::choice::{Choice, integer_key};
use super::shape::primary_key;
use crate::sql_order::compare;

/// Whether a subscriber at the cursor has the row, if there is one with its key.
pub(in crate::cdc) fn has(cursor: &SnapshotCursor, table: &WalTable, rowid: i64, row: &Row) -> bool {
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
    let order = key.values.iter().zip(&after.values).map(|(key, after)| compare(key, after, <[u8]>::cmp));
    order.into_iter().find(|order| order.is_ne()).is_none_or(Ordering::is_le)
}

/// The rowid of a changed row afterwards, as far as its columns show it.
pub(in crate::cdc) fn rowid_after(table: &WalTable, change: &RowChange) -> i64 {
    let key = |row: &Option<Row>| row.as_ref().and_then(|row| integer_key(table, row));
    match (key(&change.before), key(&change.after)) {
        (Some(before), Some(after)) if before == change.rowid => after,
        _ => change.rowid,
    }
}

/// Whether a record changes what a table of this name is.
pub(super) fn alters(record: &WalRecord, table: &str) -> bool {
    record
        .schema_changes
        .iter()
        .any(|change| change.dropped == table || change.table.as_ref().is_some_and(|made| made.name == table))
}

/// A copy cannot go on: its table is another one.
pub(super) fn remade(table: &str) -> Error {
    let message = format!("{table} was renamed or made anew while it was being copied; begin the snapshot again");
    Error::new(ErrorCode::Conflict, message)
}

/// Whether a copy that stands at the cursor can go on after a record.
///
/// # Errors
/// `CONFLICT` where a table that is not completely copied has another name now, or another one has the name of the one that is
/// being copied.
pub(in crate::cdc) fn check_schema(choice: &Choice, cursor: &SnapshotCursor, record: &WalRecord) -> Result<(), Error> {
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
