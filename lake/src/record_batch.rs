//! Rows into columns.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use dosql_proto::value::Kind;
use dosql_proto::{Row, Value, WalTable};

use crate::LakeError;
use crate::buffer::Change;
use crate::columns::{ColumnType, LakeColumns, Meta, Source};
use crate::key::{is_told, key, stored, telling_columns};
use crate::reshape::Shape;

/// One row to be written: an image out of a change.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) change: &'a Change,
    pub(crate) row: &'a Row,
    /// The index of the row's [`Shape`].
    pub(crate) shape: usize,
    /// For the change log's `_operation`.
    pub(crate) operation: &'static str,
}

/// The images as columns, in order.
pub(crate) fn record_batch(
    columns: &LakeColumns,
    layouts: &[WalTable],
    shapes: &[Shape],
    images: &[Image<'_>],
) -> Result<RecordBatch, LakeError> {
    let mut misfits = vec![false; images.len()];
    let mut arrays: Vec<Option<ArrayRef>> = Vec::with_capacity(columns.columns.len());
    for (place, column) in columns.columns.iter().enumerate() {
        arrays.push(match column.source {
            Source::Column(column_type) => {
                let cells = images.iter().map(|image| {
                    let source = shapes[image.shape].sources[place]?;
                    image.row.values.get(source).and_then(|value| value.kind.as_ref())
                });
                Some(cells_array(column_type, cells, &mut misfits))
            }
            Source::Meta(Meta::Key) => Some(key_array(columns, layouts, shapes, images)),
            Source::Meta(meta) => meta_array(meta, images),
        });
    }
    let misfit = misfit_array(layouts, images, &misfits);
    let arrays = arrays.into_iter().map(|array| array.unwrap_or_else(|| Arc::clone(&misfit))).collect();
    Ok(RecordBatch::try_new(Arc::clone(&columns.arrow), arrays)?)
}

/// One source column's cells. Marks the rows whose value does not fit.
fn cells_array<'a>(
    column_type: ColumnType,
    cells: impl ExactSizeIterator<Item = Option<&'a Kind>>,
    misfits: &mut [bool],
) -> ArrayRef {
    let rows = cells.len();
    match column_type {
        ColumnType::Long => {
            let mut array = Int64Builder::with_capacity(rows);
            for (cell, misfit) in cells.zip(misfits) {
                match cell {
                    Some(Kind::Integer(integer)) => array.append_value(*integer),
                    cell => {
                        array.append_null();
                        *misfit |= cell.is_some();
                    }
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::Double => {
            let mut array = Float64Builder::with_capacity(rows);
            for (cell, misfit) in cells.zip(misfits) {
                match cell {
                    Some(Kind::Real(real)) => array.append_value(*real),
                    Some(Kind::Integer(integer)) if is_exact(*integer) => array.append_value(*integer as f64),
                    cell => {
                        array.append_null();
                        *misfit |= cell.is_some();
                    }
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::String => {
            let mut array = StringBuilder::with_capacity(rows, rows * 8);
            for (cell, misfit) in cells.zip(misfits) {
                match cell {
                    Some(Kind::Text(text)) => array.append_value(text),
                    Some(Kind::Integer(integer)) => array.append_value(integer.to_string()),
                    Some(Kind::Real(real)) => array.append_value(format!("{real:?}")),
                    cell => {
                        array.append_null();
                        *misfit |= cell.is_some();
                    }
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::Binary => {
            let mut array = BinaryBuilder::with_capacity(rows, rows * 8);
            for (cell, misfit) in cells.zip(misfits) {
                match cell {
                    Some(Kind::Blob(bytes)) => array.append_value(bytes),
                    cell => {
                        array.append_null();
                        *misfit |= cell.is_some();
                    }
                }
            }
            Arc::new(array.finish())
        }
    }
}

/// Whether a double holds this integer exactly.
fn is_exact(integer: i64) -> bool {
    const LIMIT: i64 = 1 << 53;
    (-LIMIT..=LIMIT).contains(&integer)
}

/// A column that every row has; `None` for those that are made of several others.
fn meta_array(meta: Meta, images: &[Image<'_>]) -> Option<ArrayRef> {
    let long = |value: fn(&Change) -> i64| -> ArrayRef {
        let mut array = Int64Builder::with_capacity(images.len());
        images.iter().for_each(|image| array.append_value(value(image.change)));
        Arc::new(array.finish())
    };
    let string = |value: for<'a> fn(&'a Image<'_>) -> &'a str| -> ArrayRef {
        let mut array = StringBuilder::with_capacity(images.len(), images.len() * 8);
        images.iter().for_each(|image| array.append_value(value(image)));
        Arc::new(array.finish())
    };
    Some(match meta {
        Meta::Misfit | Meta::Key => return None,
        Meta::Shard => string(|image| &image.change.shard),
        Meta::Operation => string(|image| image.operation),
        Meta::Lsn => long(|change| i64::try_from(change.lsn).unwrap_or(i64::MAX)),
        Meta::Ordinal => long(|change| i64::from(change.ordinal)),
        Meta::CommittedAt => {
            let mut array = TimestampMicrosecondBuilder::with_capacity(images.len());
            images.iter().for_each(|image| array.append_value(image.change.committed_ms.saturating_mul(1000)));
            Arc::new(array.finish().with_timezone("UTC"))
        }
    })
}

/// The keys that the other columns do not tell.
fn key_array(columns: &LakeColumns, layouts: &[WalTable], shapes: &[Shape], images: &[Image<'_>]) -> ArrayRef {
    let telling: Vec<_> =
        shapes.iter().map(|shape| telling_columns(columns, &shape.sources, &layouts[shape.layout])).collect();
    let mut array = BinaryBuilder::new();
    for Image { change, row, shape, .. } in images {
        let told = telling[*shape].as_ref().is_some_and(|columns| {
            columns.iter().all(|(source, column_type)| is_told(*column_type, row.values.get(*source)))
        });
        array.append_option((!told).then(|| stored(&key(&layouts[change.layout], change.rowid, row))));
    }
    Arc::new(array.finish())
}

fn misfit_array(layouts: &[WalTable], images: &[Image<'_>], misfits: &[bool]) -> ArrayRef {
    let mut array = StringBuilder::new();
    for (image, misfit) in images.iter().zip(misfits) {
        array.append_option(misfit.then(|| row_json(&layouts[image.change.layout], image.row)));
    }
    Arc::new(array.finish())
}

/// The whole row as a JSON object, without loss.
fn row_json(layout: &WalTable, row: &Row) -> String {
    let members = layout.columns.iter().zip(&row.values);
    let object: serde_json::Map<_, _> =
        members.map(|(column, value)| (column.name.clone(), value_json(value))).collect();
    serde_json::Value::Object(object).to_string()
}

fn value_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None => serde_json::Value::Null,
        Some(Kind::Integer(integer)) => (*integer).into(),
        Some(Kind::Real(real)) => match serde_json::Number::from_f64(*real) {
            Some(number) => number.into(),
            None => serde_json::json!({ "real": real.to_string() }),
        },
        Some(Kind::Text(text)) => text.as_str().into(),
        Some(Kind::Blob(bytes)) => serde_json::json!({ "blob": hex(bytes) }),
        Some(Kind::RawText(bytes)) => serde_json::json!({ "raw_text": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}
