//! Rows into columns.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder, UInt32Array,
    new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::DataType;
use dosql_proto::WalTable;

use crate::LakeError;
use crate::buffer::{Change, TableBuffer};
use crate::cell_column::CellColumnBuilder;
use crate::cells::Cell;
use crate::columns::{ColumnType, LakeColumns, Meta, Source};
use crate::images::{Image, ImageId, Images};
use crate::key::{is_told, key, stored, telling_columns};
use crate::reshape::Shape;
use crate::rows::RowRef;

/// Bytes that a text is expected to have.
const TEXT_BYTES: usize = 32;

/// Images as columns, in order. `shapes` say how they fill these columns.
pub(crate) fn record_batch(
    columns: &LakeColumns,
    of: &Images<'_>,
    shapes: &[Shape],
    ids: &[ImageId],
) -> Result<RecordBatch, LakeError> {
    let images = &of.get(ids);
    let mut misfits: Vec<bool> = images.iter().map(|image| image.letter.is_some()).collect();
    let picked = Picked::of(of, shapes, images);
    let cells = |place: usize| {
        // That a table was dropped has no row, and so no shape.
        images.iter().map(move |image| image.row?.cell(shapes.get(image.shape)?.sources[place]?))
    };
    let mut arrays: Vec<Option<ArrayRef>> = Vec::with_capacity(columns.columns.len());
    for (place, column) in columns.columns.iter().enumerate() {
        arrays.push(match column.source {
            Source::Column(column_type) => {
                let picked = picked.as_ref().and_then(|picked| picked.column(place, column_type)).transpose()?;
                let may_misfit = picked.is_none() || !of.buffered.misfits.is_empty();
                let array = picked.unwrap_or_else(|| cells_array(column_type, cells(place)));
                if may_misfit {
                    let variants: Vec<ColumnType> = columns.variants_of(column.id).collect();
                    let stands = |cell| {
                        column_type.fits(cell)
                            || ColumnType::holding(cell).is_some_and(|holding| variants.contains(&holding))
                    };
                    let odd = misfits.iter_mut().zip(cells(place));
                    odd.for_each(|(misfit, cell)| *misfit |= cell.is_some_and(|cell| !stands(cell)));
                }
                Some(array)
            }
            Source::Variant { misfit, column_type, .. } => {
                let belongs = |cell: &Cell<'_>| !misfit.fits(*cell) && ColumnType::holding(*cell) == Some(column_type);
                Some(cells_array(column_type, cells(place).map(|cell| cell.filter(belongs))))
            }
            Source::Meta(Meta::Key) => Some(key_array(columns, of.buffered, shapes, images)),
            Source::Meta(meta @ (Meta::Column | Meta::Value)) => Some(letter_array(meta, of.buffered, images)),
            Source::Meta(meta) => meta_array(meta, images),
        });
    }
    let misfit = misfit_array(of.buffered, images, &misfits);
    let arrays = arrays.into_iter().map(|array| array.unwrap_or_else(|| Arc::clone(&misfit))).collect();
    Ok(RecordBatch::try_new(Arc::clone(&columns.arrow), arrays)?)
}

/// Rows that lie in the same columns: theirs are parts of these.
struct Picked<'a> {
    buffered: &'a TableBuffer,
    arrays: &'a [Vec<ArrayRef>],
    shape: &'a Shape,
    which: Which,
}

enum Which {
    /// One after the other.
    Run {
        first: usize,
        rows: usize,
    },
    These(UInt32Array),
}

impl<'a> Picked<'a> {
    /// `None` where the images are not all of one shape, or some of no row.
    fn of(of: &Images<'a>, shapes: &'a [Shape], images: &[Image<'_>]) -> Option<Self> {
        let first = images.first()?;
        let shape = shapes.get(first.shape)?;
        let number = |image: &Image<'_>| image.row.filter(|_| image.shape == first.shape).map(|row| row.number);
        let numbers: Vec<u32> = images.iter().map(number).collect::<Option<_>>()?;
        let is_run = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let which = match numbers.first() {
            Some(first) if is_run => Which::Run { first: *first as usize, rows: numbers.len() },
            _ => Which::These(numbers.into()),
        };
        Some(Self { buffered: of.buffered, arrays: of.arrays, shape, which })
    }

    /// A column of the lake's; `None` where it is of another type than what was made of the rows.
    fn column(&self, place: usize, column_type: ColumnType) -> Option<Result<ArrayRef, LakeError>> {
        let source = self.shape.sources[place]?;
        if self.buffered.rows[self.shape.layout].column_type(source) != Some(column_type) {
            return None;
        }
        let array = &self.arrays[self.shape.layout][source];
        Some(match &self.which {
            Which::Run { first, rows } => Ok(array.slice(*first, *rows)),
            Which::These(rows) => take(array, rows, None).map_err(LakeError::from),
        })
    }
}

/// One source column's cells. A cell whose value does not fit is null.
fn cells_array<'a>(column_type: ColumnType, cells: impl ExactSizeIterator<Item = Option<Cell<'a>>>) -> ArrayRef {
    let mut column = CellColumnBuilder::with_capacity(column_type, cells.len(), cells.len() * TEXT_BYTES);
    for cell in cells {
        match cell {
            Some(cell) => _ = column.append(cell),
            None => _ = column.append_null(),
        }
    }
    column.finish().array()
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
fn key_array(columns: &LakeColumns, buffered: &TableBuffer, shapes: &[Shape], images: &[Image<'_>]) -> ArrayRef {
    let layouts = &buffered.layouts;
    let telling: Vec<_> =
        shapes.iter().map(|shape| telling_columns(columns, &shape.sources, &layouts[shape.layout])).collect();
    let tells = |image: &Image<'_>| {
        telling.get(image.shape).and_then(Option::as_ref).zip(image.row).is_some_and(|(columns, row)| {
            columns.iter().all(|(source, column_type)| is_told(*column_type, row.cell(*source)))
        })
    };
    // As in most tables.
    if images.iter().all(tells) {
        return new_null_array(&DataType::Binary, images.len());
    }
    let mut array = BinaryBuilder::new();
    for image @ Image { change, row, .. } in images {
        let untold = row.filter(|_| !tells(image));
        array.append_option(untold.map(|row| stored(&key(&layouts[change.layout], change.rowid, row))));
    }
    Arc::new(array.finish())
}

/// The column, or the value, that a dead letter is about.
fn letter_array(meta: Meta, buffered: &TableBuffer, images: &[Image<'_>]) -> ArrayRef {
    let mut array = StringBuilder::new();
    for image in images {
        let value = image.row.zip(image.letter).map(|(row, place)| value_json(row.cell(place)).to_string());
        let columns = &buffered.layouts[image.change.layout].columns;
        let name = image.letter.and_then(|place| columns.get(place)).map(|column| column.name.clone());
        array.append_option(if meta == Meta::Value { value } else { name });
    }
    Arc::new(array.finish())
}

fn misfit_array(buffered: &TableBuffer, images: &[Image<'_>], misfits: &[bool]) -> ArrayRef {
    if !misfits.contains(&true) {
        return new_null_array(&DataType::Utf8, images.len());
    }
    let mut array = StringBuilder::new();
    for (image, misfit) in images.iter().zip(misfits) {
        let row = image.row.filter(|_| *misfit);
        array.append_option(row.map(|row| row_json(&buffered.layouts[image.change.layout], row)));
    }
    Arc::new(array.finish())
}

/// The whole row as a JSON object, without loss.
fn row_json(layout: &WalTable, row: RowRef<'_>) -> String {
    let members = layout.columns.iter().zip(row.cells());
    let object: serde_json::Map<_, _> = members.map(|(column, cell)| (column.name.clone(), value_json(cell))).collect();
    serde_json::Value::Object(object).to_string()
}

fn value_json(cell: Option<Cell<'_>>) -> serde_json::Value {
    match cell {
        None => serde_json::Value::Null,
        Some(Cell::Integer(integer)) => integer.into(),
        Some(Cell::Real(real)) => match serde_json::Number::from_f64(real) {
            Some(number) => number.into(),
            None => serde_json::json!({ "real": real.to_string() }),
        },
        Some(Cell::Text(text)) => text.into(),
        Some(Cell::Blob(bytes)) => serde_json::json!({ "blob": hex(bytes) }),
        Some(Cell::RawText(bytes)) => serde_json::json!({ "raw_text": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}
