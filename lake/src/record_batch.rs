//! Rows into columns.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
    new_null_array,
};
use arrow::datatypes::DataType;
use dosql_proto::value::Kind;
use dosql_proto::{Row, Value, WalTable};

use crate::LakeError;
use crate::buffer::Change;
use crate::columns::{ColumnType, LakeColumns, Meta, Source};
use crate::images::Image;
use crate::key::{is_told, key, stored, telling_columns};
use crate::reshape::Shape;

/// Bytes that a text is expected to have.
const TEXT_BYTES: usize = 32;

/// The images as columns, in order.
pub(crate) fn record_batch(
    columns: &LakeColumns,
    layouts: &[WalTable],
    shapes: &[Shape],
    images: &[Image<'_>],
) -> Result<RecordBatch, LakeError> {
    let mut misfits: Vec<bool> = images.iter().map(|image| image.letter.is_some()).collect();
    let mut arrays: Vec<Option<ArrayRef>> = Vec::with_capacity(columns.columns.len());
    // Each column goes through the rows once more: what it needs of them lies close together. That a table was dropped has no row,
    // and so no shape.
    let rows: Vec<(&[Value], &[Option<usize>])> = images
        .iter()
        .map(|image| (&*image.row.values, shapes.get(image.shape).map_or(&[][..], |shape| &*shape.sources)))
        .collect();
    let cells = |place: usize| {
        rows.iter().map(move |(values, sources)| {
            let source = sources.get(place).copied().flatten()?;
            values.get(source).and_then(|value| value.kind.as_ref())
        })
    };
    for (place, column) in columns.columns.iter().enumerate() {
        arrays.push(match column.source {
            Source::Column(column_type) => {
                let variants: Vec<ColumnType> = columns.variants_of(column.id).collect();
                let stands_elsewhere =
                    |kind: &Kind| ColumnType::holding(kind).is_some_and(|holding| variants.contains(&holding));
                Some(cells_array(column_type, cells(place), &mut |row, kind| misfits[row] |= !stands_elsewhere(kind)))
            }
            Source::Variant { misfit, column_type, .. } => {
                let belongs = |kind: &&Kind| !misfit.fits(kind) && ColumnType::holding(kind) == Some(column_type);
                let cells = cells(place).map(|cell| cell.filter(belongs));
                Some(cells_array(column_type, cells, &mut |_, _| {}))
            }
            Source::Meta(Meta::Key) => Some(key_array(columns, layouts, shapes, images)),
            Source::Meta(meta @ (Meta::Column | Meta::Value)) => Some(letter_array(meta, layouts, images)),
            Source::Meta(meta) => meta_array(meta, images),
        });
    }
    let misfit = misfit_array(layouts, images, &misfits);
    let arrays = arrays.into_iter().map(|array| array.unwrap_or_else(|| Arc::clone(&misfit))).collect();
    Ok(RecordBatch::try_new(Arc::clone(&columns.arrow), arrays)?)
}

/// One source column's cells. A cell whose value does not fit is null, and told to `misfit`.
fn cells_array<'a>(
    column_type: ColumnType,
    cells: impl ExactSizeIterator<Item = Option<&'a Kind>>,
    misfit: &mut dyn FnMut(usize, &Kind),
) -> ArrayRef {
    let rows = cells.len();
    let cells = cells.enumerate().map(|(row, cell)| {
        cell.filter(|kind| {
            let fits = column_type.fits(kind);
            if !fits {
                misfit(row, kind);
            }
            fits
        })
    });
    match column_type {
        ColumnType::Long => {
            let mut array = Int64Builder::with_capacity(rows);
            for cell in cells {
                match cell {
                    Some(Kind::Integer(integer)) => array.append_value(*integer),
                    _ => array.append_null(),
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::Double => {
            let mut array = Float64Builder::with_capacity(rows);
            for cell in cells {
                match cell {
                    Some(Kind::Real(real)) => array.append_value(*real),
                    Some(Kind::Integer(integer)) => array.append_value(*integer as f64),
                    _ => array.append_null(),
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::String => {
            let mut array = StringBuilder::with_capacity(rows, rows * TEXT_BYTES);
            for cell in cells {
                match cell {
                    Some(Kind::Text(text)) => array.append_value(text),
                    Some(Kind::Integer(integer)) => array.append_value(integer.to_string()),
                    Some(Kind::Real(real)) => array.append_value(format!("{real:?}")),
                    _ => array.append_null(),
                }
            }
            Arc::new(array.finish())
        }
        ColumnType::Binary => {
            let mut array = BinaryBuilder::with_capacity(rows, rows * 8);
            for cell in cells {
                match cell {
                    Some(Kind::Blob(bytes)) => array.append_value(bytes),
                    _ => array.append_null(),
                }
            }
            Arc::new(array.finish())
        }
    }
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
        Meta::Misfit | Meta::Key | Meta::Column | Meta::Value => return None,
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
    let tells = |Image { row, shape, .. }: &Image<'_>| {
        telling[*shape].as_ref().is_some_and(|columns| {
            columns.iter().all(|(source, column_type)| is_told(*column_type, row.values.get(*source)))
        })
    };
    // As in most tables.
    if images.iter().all(tells) {
        return new_null_array(&DataType::Binary, images.len());
    }
    let mut array = BinaryBuilder::new();
    for image @ Image { change, row, .. } in images {
        array.append_option((!tells(image)).then(|| stored(&key(&layouts[change.layout], change.rowid, row))));
    }
    Arc::new(array.finish())
}

/// The column, or the value, that a dead letter is about.
fn letter_array(meta: Meta, layouts: &[WalTable], images: &[Image<'_>]) -> ArrayRef {
    let mut array = StringBuilder::new();
    for image in images {
        let value =
            image.letter.and_then(|place| image.row.values.get(place)).map(|value| value_json(value).to_string());
        let columns = &layouts[image.change.layout].columns;
        let name = image.letter.and_then(|place| columns.get(place)).map(|column| column.name.clone());
        array.append_option(if meta == Meta::Value { value } else { name });
    }
    Arc::new(array.finish())
}

fn misfit_array(layouts: &[WalTable], images: &[Image<'_>], misfits: &[bool]) -> ArrayRef {
    if !misfits.contains(&true) {
        return new_null_array(&DataType::Utf8, images.len());
    }
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
