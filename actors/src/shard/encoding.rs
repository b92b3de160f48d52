//! Row images as protobuf, written straight from SQLite's values: no message is built for a row that only goes into the log or
//! into a spilled result.

use dosql_proto::Operation;
use prost::encoding::{encode_varint, encoded_len_varint};
use rusqlite::types::ValueRef;

/// Tags of `Row`, `Value`, `RowChange`, `WalRecord` and `RowBatch` (`field << 3 | wire type`), from the `.proto` files.
mod tag {
    pub(super) const ROW_VALUE: u8 = 1 << 3 | 2;
    pub(super) const INTEGER: u8 = 1 << 3;
    pub(super) const REAL: u8 = 2 << 3 | 1;
    pub(super) const TEXT: u8 = 3 << 3 | 2;
    pub(super) const BLOB: u8 = 4 << 3 | 2;
    pub(super) const RAW_TEXT: u8 = 5 << 3 | 2;
    pub(super) const CHANGE_TABLE: u8 = 1 << 3;
    pub(super) const CHANGE_OPERATION: u8 = 2 << 3;
    pub(super) const CHANGE_ROWID: u8 = 3 << 3;
    pub(super) const CHANGE_BEFORE: u8 = 4 << 3 | 2;
    pub(super) const CHANGE_AFTER: u8 = 5 << 3 | 2;
    pub(super) const RECORD_CHANGE: u8 = 4 << 3 | 2;
    pub(super) const BATCH_ROW: u8 = 2 << 3 | 2;
}

fn zigzag(integer: i64) -> u64 {
    ((integer << 1) ^ (integer >> 63)).cast_unsigned()
}

fn length(bytes: usize) -> u64 {
    bytes as u64
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    encode_varint(length(bytes.len()), out);
    out.extend_from_slice(bytes);
}

/// Appends one value of a `Row`.
pub(super) fn put_value(out: &mut Vec<u8>, value: ValueRef<'_>) {
    out.push(tag::ROW_VALUE);
    match value {
        ValueRef::Null => out.push(0),
        ValueRef::Integer(integer) => {
            let bits = zigzag(integer);
            encode_varint(length(1 + encoded_len_varint(bits)), out);
            out.push(tag::INTEGER);
            encode_varint(bits, out);
        }
        ValueRef::Real(real) => {
            out.push(9);
            out.push(tag::REAL);
            out.extend_from_slice(&real.to_le_bytes());
        }
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            let tag = match value {
                ValueRef::Blob(_) => tag::BLOB,
                _ if std::str::from_utf8(bytes).is_ok() => tag::TEXT,
                _ => tag::RAW_TEXT,
            };
            encode_varint(length(1 + encoded_len_varint(length(bytes.len())) + bytes.len()), out);
            put_bytes(out, tag, bytes);
        }
    }
}

/// Appends one row of a `RowBatch`.
pub(super) fn put_batch_row(out: &mut Vec<u8>, row: &[u8]) {
    put_bytes(out, tag::BATCH_ROW, row);
}

/// A `RowChange` whose rows are encoded.
pub(super) struct Change<'a> {
    pub(super) table: u32,
    pub(super) operation: Operation,
    pub(super) rowid: i64,
    pub(super) before: Option<&'a [u8]>,
    pub(super) after: Option<&'a [u8]>,
}

/// Appends one change of a `WalRecord`.
pub(super) fn put_change(out: &mut Vec<u8>, change: &Change<'_>) {
    let table = u64::from(change.table);
    let rowid = zigzag(change.rowid);
    let row_length = |row: Option<&[u8]>| row.map_or(0, |row| 1 + encoded_len_varint(length(row.len())) + row.len());
    let bytes = 1
        + encoded_len_varint(table)
        + 2
        + 1
        + encoded_len_varint(rowid)
        + row_length(change.before)
        + row_length(change.after);
    out.push(tag::RECORD_CHANGE);
    encode_varint(length(bytes), out);
    out.push(tag::CHANGE_TABLE);
    encode_varint(table, out);
    out.push(tag::CHANGE_OPERATION);
    out.push(change.operation as u8);
    out.push(tag::CHANGE_ROWID);
    encode_varint(rowid, out);
    if let Some(row) = change.before {
        put_bytes(out, tag::CHANGE_BEFORE, row);
    }
    if let Some(row) = change.after {
        put_bytes(out, tag::CHANGE_AFTER, row);
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::{Row, RowBatch, RowChange, Value, WalRecord};
    use prost::Message;

    use super::*;
    use crate::sql_value::to_value;

    #[test]
    fn what_is_written_decodes_to_the_same_message() {
        let long = vec![b'x'; 300];
        let values = [
            ValueRef::Null,
            ValueRef::Integer(0),
            ValueRef::Integer(i64::MIN),
            ValueRef::Integer(i64::MAX),
            ValueRef::Integer(-1),
            ValueRef::Real(0.0),
            ValueRef::Real(-1.5),
            ValueRef::Text(b""),
            ValueRef::Text(&long),
            ValueRef::Text(b"\xff\0"),
            ValueRef::Blob(b""),
            ValueRef::Blob(&long),
        ];
        let mut row = Vec::new();
        for value in values {
            put_value(&mut row, value);
        }
        let expected: Row = values.into_iter().map(to_value).collect::<Vec<Value>>().into_iter().collect();
        assert_eq!(Row::decode(row.as_slice()).unwrap(), expected);

        let mut batch = Vec::new();
        put_batch_row(&mut batch, &row);
        put_batch_row(&mut batch, &[]);
        let decoded = RowBatch::decode(batch.as_slice()).unwrap();
        assert_eq!(decoded.rows, [expected.clone(), Row::default()]);

        let mut record = Vec::new();
        for (table, rowid) in [(0, 0), (300, -5), (1, i64::MAX)] {
            let change = Change {
                table,
                operation: Operation::Update,
                rowid,
                before: Some(&row),
                after: (table == 0).then_some(&row),
            };
            put_change(&mut record, &change);
        }
        let changes = WalRecord::decode(record.as_slice()).unwrap().changes;
        assert_eq!(
            changes[1],
            RowChange {
                table: 300,
                operation: Operation::Update.into(),
                rowid: -5,
                before: Some(expected.clone()),
                after: None
            }
        );
        assert_eq!(changes[0].after, Some(expected));
        assert_eq!(changes[2].rowid, i64::MAX);
    }
}
