//! Reading a row group without the rest of its file.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use bytes::{Buf, Bytes};
use dosql_actors::ObjectStore;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;

use super::predicate::{Bounds, Nulls};
use super::{Kept, Literal, ScanColumn, ScanFile, bytes_of};
use crate::LakeError;
use crate::columns::ColumnType;

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 1_024;

/// The field id of each column of a file.
fn ids(footer: &ParquetMetaData) -> impl Iterator<Item = Option<i32>> {
    footer.file_metadata().schema_descr().columns().iter().map(|column| {
        let info = column.self_type().get_basic_info();
        info.has_id().then(|| info.id())
    })
}

/// What statistics say of a row group's columns.
pub(super) struct GroupBounds<'a> {
    group: &'a RowGroupMetaData,
    columns: &'a [ScanColumn],
    /// By field id, the place in the file.
    places: HashMap<i32, usize>,
}

impl<'a> GroupBounds<'a> {
    pub(super) fn new(footer: &'a ParquetMetaData, group: usize, columns: &'a [ScanColumn]) -> Self {
        let places = (0..).zip(ids(footer)).filter_map(|(place, id)| Some((id?, place))).collect();
        Self { group: footer.row_group(group), columns, places }
    }

    fn statistics(&self, column: usize) -> Option<&Statistics> {
        self.group.column(*self.places.get(&self.columns[column].id)?).statistics()
    }

    fn bounds(&self, column: usize) -> (Option<Literal>, Option<Literal>) {
        match self.columns[column].column_type.zip(self.statistics(column)) {
            Some((column_type, statistics)) => bounds(column_type, statistics),
            None => (None, None),
        }
    }
}

impl Bounds for GroupBounds<'_> {
    fn lower(&self, column: usize) -> Option<Literal> {
        self.bounds(column).0
    }

    fn upper(&self, column: usize) -> Option<Literal> {
        self.bounds(column).1
    }

    fn nulls(&self, column: usize) -> Nulls {
        if !self.places.contains_key(&self.columns[column].id) {
            return Nulls::All;
        }
        let nulls = self.statistics(column).and_then(Statistics::null_count_opt);
        Nulls::of(nulls, u64::try_from(self.group.num_rows()).unwrap_or(0))
    }
}

/// The lower and the upper bound that a row group's statistics tell.
fn bounds(column_type: ColumnType, statistics: &Statistics) -> (Option<Literal>, Option<Literal>) {
    match (column_type, statistics) {
        (ColumnType::Long, Statistics::Int64(values)) => {
            (values.min_opt().copied().map(Literal::Long), values.max_opt().copied().map(Literal::Long))
        }
        (ColumnType::Double, Statistics::Double(values)) => {
            (values.min_opt().copied().map(Literal::Double), values.max_opt().copied().map(Literal::Double))
        }
        (ColumnType::String, Statistics::ByteArray(values)) => {
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| Literal::String(text.to_owned()));
            (values.min_bytes_opt().and_then(text), values.max_bytes_opt().and_then(text))
        }
        (ColumnType::Binary, Statistics::ByteArray(values)) => {
            let binary = |bytes: &[u8]| Literal::Binary(bytes.to_vec());
            (values.min_bytes_opt().map(binary), values.max_bytes_opt().map(binary))
        }
        _ => (None, None),
    }
}

/// A row group that is being read: batches of the wanted fields.
pub(super) struct GroupReader {
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
}

impl GroupReader {
    /// Fetches the row group's columns of these fields, and nothing else, and says how many bytes that are.
    pub(super) async fn open(
        objects: &dyn ObjectStore,
        file: &ScanFile,
        footer: &Arc<ParquetMetaData>,
        group: usize,
        fields: Vec<FieldRef>,
        kept: Kept,
    ) -> Result<(Self, u64), LakeError> {
        let wanted: Vec<i32> = fields.iter().filter_map(id_of).collect();
        let leaves: Vec<usize> = (0..)
            .zip(ids(footer))
            .filter(|(_, id)| id.is_some_and(|id| wanted.contains(&id)))
            .map(|(leaf, _)| leaf)
            .collect();
        let mut parts = Vec::with_capacity(leaves.len());
        let mut bytes_read = 0;
        for leaf in &leaves {
            let (start, length) = footer.row_group(group).column(*leaf).byte_range();
            let range: Range<u64> = start..start + length;
            parts.push((start, bytes_of(objects, &file.path, range).await?));
            bytes_read += length;
        }
        let metadata = ArrowReaderMetadata::try_new(Arc::clone(footer), ArrowReaderOptions::new())?;
        let projection = ProjectionMask::leaves(footer.file_metadata().schema_descr(), leaves);
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(Parts { length: file.bytes, parts }, metadata)
                .with_projection(projection)
                .with_row_groups(vec![group])
                .with_batch_size(BATCH_ROWS);
        if let Kept::Some(selection) = kept {
            builder = builder.with_row_selection(selection);
        }
        Ok((Self { reader: builder.build()?, schema: Arc::new(Schema::new(fields)) }, bytes_read))
    }
}

impl Iterator for GroupReader {
    type Item = Result<RecordBatch, LakeError>;

    /// The next rows, in the fields that are wanted: by field id; one that the file lacks is null.
    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.reader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let found = batch.schema();
        let arrays: Vec<ArrayRef> = self
            .schema
            .fields()
            .iter()
            .map(|field| match found.fields().iter().position(|found| id_of(found) == id_of(field)) {
                Some(place) => Arc::clone(batch.column(place)),
                None => new_null_array(field.data_type(), batch.num_rows()),
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(LakeError::from))
    }
}

fn id_of(field: &FieldRef) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

/// Parts of a file, by where they begin.
struct Parts {
    length: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Parts {
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let part = self.parts.iter().find(|(begin, bytes)| (*begin..begin + bytes.len() as u64).contains(&start));
        let missing = || ParquetError::General(format!("byte {start} was not fetched"));
        let (begin, bytes) = part.ok_or_else(missing)?;
        // It is less than the part's length.
        Ok(bytes.slice((start - begin) as usize..))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Parts {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        match bytes.len() >= length {
            true => Ok(bytes.slice(..length)),
            false => Err(ParquetError::EOF(format!("{length} bytes from {start} were not fetched"))),
        }
    }
}
