//! Values of one column: as they are taken in, and as an Arrow array.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, Float64Array, Float64Builder, Int64Array, Int64Builder, StringArray,
    StringBuilder,
};

use crate::cells::Cell;
use crate::columns::ColumnType;

/// Memory of a value beside its text.
const VALUE_BYTES: usize = 8;

/// Takes values in. A value that does not fit the column's type becomes null.
#[derive(Debug)]
pub(crate) enum CellColumnBuilder {
    Long(Int64Builder),
    Double(Float64Builder),
    String(StringBuilder),
    Binary(BinaryBuilder),
}

/// The values.
#[derive(Debug)]
pub(crate) enum CellColumn {
    Long(Int64Array),
    Double(Float64Array),
    String(StringArray),
    Binary(BinaryArray),
}

impl CellColumnBuilder {
    /// With memory for so many values, and so many bytes of their texts or blobs together.
    pub(crate) fn with_capacity(column_type: ColumnType, values: usize, bytes: usize) -> Self {
        match column_type {
            ColumnType::Long => Self::Long(Int64Builder::with_capacity(values)),
            ColumnType::Double => Self::Double(Float64Builder::with_capacity(values)),
            ColumnType::String => Self::String(StringBuilder::with_capacity(values, bytes)),
            ColumnType::Binary => Self::Binary(BinaryBuilder::with_capacity(values, bytes)),
        }
    }

    /// The values so far; it is empty then.
    pub(crate) fn finish(&mut self) -> CellColumn {
        match self {
            Self::Long(builder) => CellColumn::Long(builder.finish()),
            Self::Double(builder) => CellColumn::Double(builder.finish()),
            Self::String(builder) => CellColumn::String(builder.finish()),
            Self::Binary(builder) => CellColumn::Binary(builder.finish()),
        }
    }

    /// Returns the memory it takes.
    pub(crate) fn append_null(&mut self) -> usize {
        match self {
            Self::Long(builder) => builder.append_null(),
            Self::Double(builder) => builder.append_null(),
            Self::String(builder) => builder.append_null(),
            Self::Binary(builder) => builder.append_null(),
        }
        VALUE_BYTES
    }

    /// Takes in a value as the lake shows it, null where it does not fit. Returns the memory it takes, and whether the value can be
    /// told from that.
    pub(crate) fn append(&mut self, cell: Cell<'_>) -> (usize, bool) {
        match (&mut *self, cell) {
            (Self::Long(builder), Cell::Integer(integer)) => builder.append_value(integer),
            (Self::Double(builder), Cell::Real(real)) => builder.append_value(real),
            (Self::String(builder), Cell::Text(text)) => {
                builder.append_value(text);
                return (VALUE_BYTES + text.len(), true);
            }
            (Self::Binary(builder), Cell::Blob(bytes)) => {
                builder.append_value(bytes);
                return (VALUE_BYTES + bytes.len(), true);
            }
            _ => return (self.append_odd(cell), false),
        }
        (VALUE_BYTES, true)
    }

    /// Takes in a value of another type than the column's. Returns the memory it takes.
    fn append_odd(&mut self, cell: Cell<'_>) -> usize {
        match (&mut *self, cell) {
            (Self::Double(builder), Cell::Integer(integer)) if ColumnType::Double.fits(cell) => {
                builder.append_value(integer as f64);
            }
            (Self::String(builder), cell) if ColumnType::String.fits(cell) => {
                builder.append_value(cell.in_sql());
            }
            _ => {
                self.append_null();
            }
        }
        VALUE_BYTES
    }
}

impl CellColumn {
    /// Bytes of its texts or blobs.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::String(array) => array.values().len(),
            Self::Binary(array) => array.values().len(),
            Self::Long(_) | Self::Double(_) => 0,
        }
    }

    /// The value at a place; `None` for null.
    pub(crate) fn get(&self, place: usize) -> Option<Cell<'_>> {
        match self {
            Self::Long(array) => array.is_valid(place).then(|| Cell::Integer(array.value(place))),
            Self::Double(array) => array.is_valid(place).then(|| Cell::Real(array.value(place))),
            Self::String(array) => array.is_valid(place).then(|| Cell::Text(array.value(place))),
            Self::Binary(array) => array.is_valid(place).then(|| Cell::Blob(array.value(place))),
        }
    }

    pub(crate) fn array(&self) -> ArrayRef {
        match self {
            Self::Long(array) => Arc::new(array.clone()),
            Self::Double(array) => Arc::new(array.clone()),
            Self::String(array) => Arc::new(array.clone()),
            Self::Binary(array) => Arc::new(array.clone()),
        }
    }
}
