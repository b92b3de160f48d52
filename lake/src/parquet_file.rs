//! Parquet files and what Iceberg records of them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema as ArrowSchema, SchemaRef};
use bytes::Bytes;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;

use crate::LakeError;
use crate::columns::{ColumnType, LakeColumns, Meta, Source, arrow_field};
use crate::dictionary::mostly_differs;
use crate::options::Codec;
use crate::partition::Partition;

/// Field ids that Iceberg reserves for the columns of a position delete file.
const DELETED_FILE_ID: i32 = 2_147_483_546;
const DELETED_POSITION_ID: i32 = 2_147_483_545;
/// Rows of a position delete file's row group.
const DELETES_IN_A_ROW_GROUP: usize = 1 << 20;

/// A file's bytes, and how a manifest lists it.
pub(crate) struct LakeFile {
    pub(crate) bytes: Bytes,
    pub(crate) entry: DataFile,
    pub(crate) spec_id: i32,
}

/// Where a file will stand.
pub(crate) struct Placement<'a> {
    pub(crate) url: &'a str,
    pub(crate) partition: &'a Partition,
    /// The id of the order that its rows have; `None` where they have none.
    pub(crate) sort_order_id: Option<i32>,
}

/// How a data file is written.
#[derive(Debug, Clone)]
pub(crate) struct FileForm {
    pub(crate) codec: Codec,
    pub(crate) row_group_rows: usize,
    /// Lake columns with a Bloom filter.
    pub(crate) bloom_filters: Vec<String>,
    /// How many values a row group has at most.
    pub(crate) values: u64,
    pub(crate) page_index: bool,
    pub(crate) statistics: bool,
}

/// Encoded bytes of a row group at which it ends, however few rows it has.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Writes a data file, one row group in memory at a time beside what is encoded.
pub(crate) struct DataFileWriter {
    form: FileForm,
    schema: SchemaRef,
    /// `None` before the first rows, which tell how it is to write them.
    writer: Option<ArrowWriter<Vec<u8>>>,
}

impl DataFileWriter {
    pub(crate) fn new(columns: &LakeColumns, form: FileForm) -> Self {
        Self { form, schema: Arc::clone(&columns.arrow), writer: None }
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let rows = usize::try_from(self.form.values).unwrap_or(usize::MAX);
                let columns = self.schema.fields().iter().zip(batch.columns());
                let differing = columns.filter(|(_, array)| mostly_differs(array, rows));
                let plain: Vec<&str> = differing.map(|(field, _)| field.name().as_str()).collect();
                self.writer.insert(writer(&self.schema, &self.form, &plain)?)
            }
        };
        writer.write(batch)?;
        if writer.in_progress_size() >= ROW_GROUP_BYTES {
            writer.flush()?;
        }
        Ok(())
    }

    /// Bytes of the row groups that have ended.
    pub(crate) fn bytes_written(&self) -> usize {
        self.writer.as_ref().map_or(0, ArrowWriter::bytes_written)
    }

    pub(crate) fn finish(self, columns: &LakeColumns, placement: &Placement<'_>) -> Result<LakeFile, LakeError> {
        let mut writer = match self.writer {
            Some(writer) => writer,
            None => writer(&self.schema, &self.form, &[])?,
        };
        let metadata = writer.finish()?;
        let bytes = std::mem::take(writer.inner_mut());
        let metrics = Metrics::of(&metadata, columns);
        let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        let mut entry = entry(DataContentType::Data, placement, rows, bytes.len());
        entry
            .column_sizes(metrics.sizes)
            .value_counts(metrics.values)
            .null_value_counts(metrics.nulls)
            .lower_bounds(metrics.lower)
            .upper_bounds(metrics.upper)
            .split_offsets(Some(
                metadata.row_groups().iter().filter_map(|group| group.columns().first()).map(offset).collect(),
            ));
        let spec_id = placement.partition.spec_id;
        Ok(LakeFile { bytes: bytes.into(), entry: entry.build().map_err(incomplete)?, spec_id })
    }
}

/// A position delete file: rows of data files, by URL and position, in ascending order.
pub(crate) fn position_delete_file(
    deletes: &[(Arc<str>, i64)],
    placement: &Placement<'_>,
    codec: Codec,
) -> Result<LakeFile, LakeError> {
    let schema = Arc::new(ArrowSchema::new(vec![
        arrow_field("file_path", DataType::Utf8, DELETED_FILE_ID, false),
        arrow_field("pos", DataType::Int64, DELETED_POSITION_ID, false),
    ]));
    let files: StringArray = deletes.iter().map(|(file, _)| Some(&**file)).collect();
    let positions: Int64Array = deletes.iter().map(|(_, position)| Some(*position)).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(files), Arc::new(positions)])?;
    let form = FileForm {
        codec,
        row_group_rows: DELETES_IN_A_ROW_GROUP,
        bloom_filters: Vec::new(),
        values: 0,
        page_index: false,
        statistics: true,
    };
    let mut writer = writer(&schema, &form, &[])?;
    writer.write(&batch)?;
    let bytes: Bytes = writer.into_inner()?.into();
    let mut entry = entry(DataContentType::PositionDeletes, placement, deletes.len() as u64, bytes.len());
    if let (Some((first, _)), Some((last, _))) = (deletes.first(), deletes.last()) {
        entry.lower_bounds(HashMap::from([(DELETED_FILE_ID, Datum::string(first))]));
        entry.upper_bounds(HashMap::from([(DELETED_FILE_ID, Datum::string(last))]));
        entry.referenced_data_file((first == last).then(|| first.to_string()));
    }
    Ok(LakeFile { bytes, entry: entry.build().map_err(incomplete)?, spec_id: placement.partition.spec_id })
}

fn entry(content: DataContentType, placement: &Placement<'_>, rows: u64, bytes: usize) -> DataFileBuilder {
    let mut entry = DataFileBuilder::default();
    entry
        .content(content)
        .file_path(placement.url.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(placement.partition.values.clone())
        .partition_spec_id(placement.partition.spec_id)
        .record_count(rows)
        .file_size_in_bytes(bytes as u64);
    if let Some(order) = placement.sort_order_id {
        entry.sort_order_id(order);
    }
    entry
}

fn incomplete(error: iceberg::spec::DataFileBuilderError) -> LakeError {
    LakeError::Iceberg(Box::new(iceberg::Error::new(iceberg::ErrorKind::DataInvalid, error.to_string())))
}

/// `plain` are the columns that are written without a dictionary.
fn writer(schema: &SchemaRef, form: &FileForm, plain: &[&str]) -> Result<ArrowWriter<Vec<u8>>, LakeError> {
    let mut properties = WriterProperties::builder()
        .set_created_by("DoLake".to_owned())
        .set_compression(match form.codec {
            Codec::Zstd => Compression::ZSTD(ZstdLevel::try_new(1)?),
            Codec::Snappy => Compression::SNAPPY,
        })
        .set_max_row_group_row_count(Some(form.row_group_rows))
        // Bounds are kept for a row group; bounds for each page cost time on every value, and are for those who ask for them.
        .set_statistics_enabled(match (form.statistics, form.page_index) {
            (false, _) => EnabledStatistics::None,
            (true, false) => EnabledStatistics::Chunk,
            (true, true) => EnabledStatistics::Page,
        });
    for column in plain {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), false);
    }
    for column in &form.bloom_filters {
        let path = ColumnPath::from(column.as_str());
        properties = properties
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_ndv(path, form.values.max(1));
    }
    // The Arrow schema itself is left out: readers go by field ids.
    let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
    Ok(ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(schema), options)?)
}

fn offset(column: &parquet::file::metadata::ColumnChunkMetaData) -> i64 {
    column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset())
}

/// What a manifest says of a file's columns, by field id.
#[derive(Default)]
struct Metrics {
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    upper: HashMap<i32, Datum>,
}

impl Metrics {
    fn of(metadata: &ParquetMetaData, columns: &LakeColumns) -> Self {
        let mut metrics = Self::default();
        for group in metadata.row_groups() {
            for (chunk, column) in group.columns().iter().zip(&columns.columns) {
                let count = |number: i64| u64::try_from(number).unwrap_or(0);
                *metrics.sizes.entry(column.id).or_default() += count(chunk.compressed_size());
                *metrics.values.entry(column.id).or_default() += count(chunk.num_values());
                let Some(statistics) = chunk.statistics() else { continue };
                *metrics.nulls.entry(column.id).or_default() += statistics.null_count_opt().unwrap_or(0);
                let (lower, upper) = bounds(&column.source, statistics);
                keep(&mut metrics.lower, column.id, lower, std::cmp::Ordering::Less);
                keep(&mut metrics.upper, column.id, upper, std::cmp::Ordering::Greater);
            }
        }
        metrics
    }
}

/// Keeps the more extreme of the bounds.
fn keep(bounds: &mut HashMap<i32, Datum>, id: i32, bound: Option<Datum>, extreme: std::cmp::Ordering) {
    let Some(bound) = bound else { return };
    match bounds.get_mut(&id) {
        Some(kept) => {
            if bound.partial_cmp(kept) == Some(extreme) {
                *kept = bound;
            }
        }
        None => {
            bounds.insert(id, bound);
        }
    }
}

fn bounds(source: &Source, statistics: &Statistics) -> (Option<Datum>, Option<Datum>) {
    match statistics {
        Statistics::Int64(values) => {
            let datum = |value: &i64| match source {
                Source::Meta(Meta::CommittedAt) => Datum::timestamptz_micros(*value),
                _ => Datum::long(*value),
            };
            (values.min_opt().map(datum), values.max_opt().map(datum))
        }
        Statistics::Double(values) => {
            let datum = |value: &f64| Datum::double(*value);
            (values.min_opt().map(datum), values.max_opt().map(datum))
        }
        Statistics::ByteArray(values) => {
            let datum = |bytes: &[u8]| match source {
                Source::Column(ColumnType::Binary)
                | Source::Variant { column_type: ColumnType::Binary, .. }
                | Source::Meta(Meta::Key) => Some(Datum::binary(bytes.iter().copied())),
                _ => std::str::from_utf8(bytes).ok().map(Datum::string),
            };
            (values.min_bytes_opt().and_then(datum), values.max_bytes_opt().and_then(datum))
        }
        _ => (None, None),
    }
}
