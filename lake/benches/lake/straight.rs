//! The same rows written by arrow-rs alone: columns are built from the rows, and go to one Parquet file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema};
use dosql_proto::Row;
use dosql_proto::value::Kind;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use crate::rows::COLUMNS;

/// Rows that are turned into columns at a time.
const BATCH_ROWS: usize = 32_768;

/// Writes the rows with the lake's compression and statistics.
pub(crate) fn write(rows: &[Row], path: &Path) {
    let field = |(name, declared): &(&str, &str)| Field::new(*name, data_type(declared), true);
    let schema = Arc::new(Schema::new(COLUMNS.iter().map(field).collect::<Vec<_>>()));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_max_row_group_row_count(Some(100_000))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
    for rows in rows.chunks(BATCH_ROWS) {
        let columns = (0..COLUMNS.len()).map(|column| array(rows, column)).collect();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    }
    writer.into_inner().unwrap().sync_all().unwrap();
}

fn data_type(declared: &str) -> DataType {
    match declared {
        "INTEGER" => DataType::Int64,
        "REAL" => DataType::Float64,
        _ => DataType::Utf8,
    }
}

fn array(rows: &[Row], column: usize) -> ArrayRef {
    let cells = rows.iter().map(|row| row.values[column].kind.as_ref());
    match data_type(COLUMNS[column].1) {
        DataType::Int64 => {
            let mut array = Int64Builder::with_capacity(rows.len());
            for cell in cells {
                array.append_option(match cell {
                    Some(Kind::Integer(integer)) => Some(*integer),
                    _ => None,
                });
            }
            Arc::new(array.finish())
        }
        DataType::Float64 => {
            let mut array = Float64Builder::with_capacity(rows.len());
            for cell in cells {
                array.append_option(match cell {
                    Some(Kind::Real(real)) => Some(*real),
                    _ => None,
                });
            }
            Arc::new(array.finish())
        }
        _ => {
            let mut array = StringBuilder::with_capacity(rows.len(), rows.len() * 8);
            for cell in cells {
                array.append_option(match cell {
                    Some(Kind::Text(text)) => Some(text),
                    _ => None,
                });
            }
            Arc::new(array.finish())
        }
    }
}
