//! The key of a mirror's row: made from a row image, and read back from the mirror's own files.
//!
//! A row whose primary key the columns tell exactly needs nothing beside them. Of any other (a table without a primary key,
//! text in an INTEGER key, a number in a column without a type, ...) the key stands in the column `_key`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int64Type};
use dosql_proto::WalTable;

use crate::LakeError;
use crate::cells::Cell;
use crate::columns::{ColumnType, LakeColumns, Meta, Source};
use crate::index::Key;
use crate::rows::RowRef;

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const ROWID: u8 = 5;
/// In the column `_key`, before the one integer that is the whole key.
const WHOLE: u8 = 6;

/// A row's key: its primary key's values, or its rowid where it has none. A primary key with a NULL, of which SQLite allows
/// several, counts the rowid in.
pub(crate) fn key(layout: &WalTable, rowid: i64, row: RowRef<'_>) -> Key {
    let value = |column: &u32| row.cell(*column as usize);
    match layout.primary_key.as_slice() {
        [] => return Key::Integer(rowid),
        [column] => {
            if let Some(Cell::Integer(integer)) = value(column) {
                return Key::Integer(integer);
            }
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    let mut has_null = false;
    for column in &layout.primary_key {
        match value(column) {
            None => {
                bytes.push(NULL);
                has_null = true;
            }
            Some(Cell::Integer(integer)) => encode(&mut bytes, INTEGER, &integer.to_be_bytes()),
            Some(Cell::Real(real)) => encode(&mut bytes, REAL, &real.to_be_bytes()),
            Some(Cell::Text(text)) => encode(&mut bytes, TEXT, text.as_bytes()),
            Some(Cell::RawText(text)) => encode(&mut bytes, TEXT, text),
            Some(Cell::Blob(blob)) => encode(&mut bytes, BLOB, blob),
        }
    }
    if has_null {
        encode(&mut bytes, ROWID, &rowid.to_be_bytes());
    }
    Key::Encoded(bytes)
}

fn encode(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.push(kind);
    bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
    bytes.extend_from_slice(value);
}

/// As the column `_key` holds it.
pub(crate) fn stored(key: &Key) -> Vec<u8> {
    match key {
        Key::Integer(integer) => [&[WHOLE][..], &integer.to_be_bytes()].concat(),
        Key::Encoded(bytes) => bytes.clone(),
    }
}

fn from_stored(bytes: &[u8]) -> Option<Key> {
    match bytes.split_first()? {
        (&WHOLE, rest) => Some(Key::Integer(i64::from_be_bytes(rest.try_into().ok()?))),
        _ => Some(Key::Encoded(bytes.to_vec())),
    }
}

/// The columns of a layout's rows that tell the key, with their types in the lake; `None` where they cannot, since the table's
/// key was another when it was made.
pub(crate) fn telling_columns(
    columns: &LakeColumns,
    sources: &[Option<usize>],
    layout: &WalTable,
) -> Option<Vec<(usize, ColumnType)>> {
    if columns.key.is_empty() || columns.key.len() != layout.primary_key.len() {
        return None;
    }
    let telling = |(id, position): (&i32, &u32)| {
        let place = columns.columns.iter().position(|column| column.id == *id)?;
        let source = sources[place].filter(|source| *source == *position as usize)?;
        match columns.columns[place].source {
            Source::Column(column_type) => Some((source, column_type)),
            Source::Meta(_) | Source::Variant { .. } => None,
        }
    };
    columns.key.iter().zip(&layout.primary_key).map(telling).collect()
}

/// Whether a column of this type gives the value back as it was.
pub(crate) fn is_told(column_type: ColumnType, value: Option<Cell<'_>>) -> bool {
    matches!(
        (column_type, value),
        (ColumnType::Long, Some(Cell::Integer(_)))
            | (ColumnType::Double, Some(Cell::Real(_)))
            | (ColumnType::String, Some(Cell::Text(_)))
            | (ColumnType::Binary, Some(Cell::Blob(_)))
    )
}

/// Reads the keys of a mirror's rows.
pub(crate) struct KeyReader<'a> {
    shards: &'a StringArray,
    stored: Option<&'a BinaryArray>,
    columns: Vec<&'a ArrayRef>,
}

impl<'a> KeyReader<'a> {
    /// Of a batch that has these columns.
    pub(crate) fn new(columns: &LakeColumns, batch: &'a RecordBatch) -> Result<Self, LakeError> {
        let meta = |meta: Meta| {
            let place = columns.columns.iter().position(|column| column.source == Source::Meta(meta))?;
            Some(batch.column(place))
        };
        let shards = meta(Meta::Shard).and_then(|column| column.as_string_opt()).ok_or_else(unreadable)?;
        let stored = meta(Meta::Key).and_then(|column| column.as_binary_opt());
        let column = |id: &i32| {
            let place = columns.columns.iter().position(|column| column.id == *id)?;
            Some(batch.column(place))
        };
        // Where the table has lost one of them, every row's key is stored.
        let columns = columns.key.iter().map(column).collect::<Option<_>>().unwrap_or_default();
        Ok(Self { shards, stored, columns })
    }

    /// The shard that a row is of, and its key there; `None` where it is of none, since another program added it.
    pub(crate) fn read(&self, row: usize) -> Result<Option<(&'a str, Key)>, LakeError> {
        if self.shards.is_null(row) {
            return Ok(None);
        }
        self.key(row).map(|key| Some((self.shards.value(row), key)))
    }

    fn key(&self, row: usize) -> Result<Key, LakeError> {
        if let Some(stored) = self.stored.filter(|stored| stored.is_valid(row)) {
            return from_stored(stored.value(row)).ok_or_else(unreadable);
        }
        told(&self.columns, row)?.ok_or_else(unreadable)
    }
}

/// The key that these columns tell of a row.
fn told(columns: &[&ArrayRef], row: usize) -> Result<Option<Key>, LakeError> {
    if columns.is_empty() || columns.iter().any(|column| column.is_null(row)) {
        return Ok(None);
    }
    if let [column] = columns
        && let Some(integers) = column.as_primitive_opt::<Int64Type>()
    {
        return Ok(Some(Key::Integer(integers.value(row))));
    }
    let mut bytes = Vec::new();
    for column in columns {
        if let Some(integers) = column.as_primitive_opt::<Int64Type>() {
            encode(&mut bytes, INTEGER, &integers.value(row).to_be_bytes());
        } else if let Some(reals) = column.as_primitive_opt::<Float64Type>() {
            encode(&mut bytes, REAL, &reals.value(row).to_be_bytes());
        } else if let Some(texts) = column.as_string_opt::<i32>() {
            encode(&mut bytes, TEXT, texts.value(row).as_bytes());
        } else if let Some(blobs) = column.as_binary_opt::<i32>() {
            encode(&mut bytes, BLOB, blobs.value(row));
        } else {
            return Err(unreadable());
        }
    }
    Ok(Some(Key::Encoded(bytes)))
}

/// The column `_key` with the keys that a file's columns tell, of which the table has lost some. `telling` are those columns.
pub(crate) fn with_told(
    telling: &[&ArrayRef],
    known: Option<&BinaryArray>,
    rows: usize,
) -> Result<ArrayRef, LakeError> {
    let mut array = BinaryBuilder::new();
    for row in 0..rows {
        match known.filter(|known| known.is_valid(row)) {
            Some(known) => array.append_value(known.value(row)),
            None => array.append_option(told(telling, row)?.map(|key| stored(&key))),
        }
    }
    Ok(Arc::new(array.finish()))
}

fn unreadable() -> LakeError {
    LakeError::Malformed {
        path: "_key".to_owned(),
        reason: "a row of a mirror does not tell its key; only mirrors that DoLake made can be read back".to_owned(),
    }
}
