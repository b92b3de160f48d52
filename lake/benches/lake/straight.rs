//! The same rows written by arrow-rs alone: deliveries become columns, and those go to one Parquet file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema};
use dosql_proto::value::Kind;
use dosql_proto::{LakeAppend, Value};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use crate::rows::COLUMNS;

/// Rows that are written at a time, at least.
const BATCH_ROWS: usize = 8_192;
/// Rows that there is memory for, and bytes of their texts: with another delivery the columns need not grow.
const CAPACITY: usize = BATCH_ROWS + 1_000;
const TEXT_CAPACITY: usize = CAPACITY * 32;

/// Writes rows with the lake's compression and statistics.
pub(crate) struct Straight {
    columns: Vec<Column>,
    rows: usize,
    schema: Arc<Schema>,
    writer: ArrowWriter<File>,
}

impl Straight {
    pub(crate) fn create(path: &Path) -> Self {
        let columns = Column::all();
        let field = |((name, _), column): (&(&str, &str), &Column)| Field::new(*name, column.data_type(), true);
        let schema = Arc::new(Schema::new(COLUMNS.iter().zip(&columns).map(field).collect::<Vec<_>>()));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
            .set_max_row_group_row_count(Some(100_000))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .build();
        let file = File::create(path).unwrap();
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
        Self { columns, rows: 0, schema, writer }
    }

    /// Takes in the rows that changes leave.
    pub(crate) fn append(&mut self, append: LakeAppend) {
        let rows =
            || append.records.iter().flat_map(|record| &record.changes).filter_map(|change| change.after.as_ref());
        for (place, column) in self.columns.iter_mut().enumerate() {
            column.extend(rows().map(|row| &row.values[place]));
        }
        self.rows += rows().count();
        if self.rows >= BATCH_ROWS {
            self.write();
        }
    }

    fn write(&mut self) {
        self.rows = 0;
        let arrays = std::mem::replace(&mut self.columns, Column::all()).into_iter().map(Column::finish).collect();
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), arrays).unwrap()).unwrap();
    }

    /// The file is complete then, and on the disk.
    pub(crate) fn finish(&mut self) {
        self.write();
        self.writer.finish().unwrap();
        self.writer.inner().sync_all().unwrap();
    }
}

enum Column {
    Long(Int64Builder),
    Double(Float64Builder),
    String(StringBuilder),
}

impl Column {
    fn all() -> Vec<Self> {
        COLUMNS.iter().map(|(_, declared)| Self::of(declared)).collect()
    }

    fn of(declared: &str) -> Self {
        match declared {
            "INTEGER" => Self::Long(Int64Builder::with_capacity(CAPACITY)),
            "REAL" => Self::Double(Float64Builder::with_capacity(CAPACITY)),
            _ => Self::String(StringBuilder::with_capacity(CAPACITY, TEXT_CAPACITY)),
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Self::Long(_) => DataType::Int64,
            Self::Double(_) => DataType::Float64,
            Self::String(_) => DataType::Utf8,
        }
    }

    fn extend<'a>(&mut self, values: impl Iterator<Item = &'a Value>) {
        let kinds = values.map(|value| value.kind.as_ref());
        match self {
            Self::Long(array) => array.extend(kinds.map(|kind| match kind {
                Some(Kind::Integer(integer)) => Some(*integer),
                _ => None,
            })),
            Self::Double(array) => array.extend(kinds.map(|kind| match kind {
                Some(Kind::Real(real)) => Some(*real),
                _ => None,
            })),
            Self::String(array) => array.extend(kinds.map(|kind| match kind {
                Some(Kind::Text(text)) => Some(text),
                _ => None,
            })),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Long(mut array) => Arc::new(array.finish()),
            Self::Double(mut array) => Arc::new(array.finish()),
            Self::String(mut array) => Arc::new(array.finish()),
        }
    }
}
