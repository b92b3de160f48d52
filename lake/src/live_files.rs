//! What a table consists of: the files of a snapshot, and their rows less the deleted ones.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use dosql_actors::ObjectStore;
use iceberg::io::FileIO;
use iceberg::spec::{DataContentType, DataFile, FormatVersion, ManifestEntryRef, ManifestFile, ManifestList, Snapshot};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::LakeError;
use crate::columns::{LakeColumns, Meta, Source};
use crate::key::with_told;
use crate::partition::Partition;
use crate::table::LakeTable;

/// Rows that are read at a time.
const BATCH_ROWS: usize = 8_192;

/// A file of the current snapshot.
pub(crate) struct LiveFile {
    pub(crate) file: DataFile,
    /// The manifest that lists it.
    pub(crate) manifest: String,
    pub(crate) partition: Partition,
    /// The snapshot that has added it.
    pub(crate) snapshot_id: Option<i64>,
    pub(crate) sequence: i64,
}

/// The files of the current snapshot.
#[derive(Default)]
pub(crate) struct LiveFiles {
    /// From the oldest to the newest.
    pub(crate) data: Vec<LiveFile>,
    /// Position delete files.
    pub(crate) deletes: Vec<LiveFile>,
}

impl LakeTable {
    /// An object of the table that must be there.
    pub(crate) async fn read(&self, objects: &dyn ObjectStore, url: &str) -> Result<Bytes, LakeError> {
        let path = self.path_of(url)?;
        let missing = || LakeError::Malformed { path: path.clone(), reason: "it is missing".to_owned() };
        objects.get(&path).await?.ok_or_else(missing)
    }

    /// The manifests that a snapshot consists of.
    pub(crate) async fn manifests_of(
        &self,
        objects: &dyn ObjectStore,
        snapshot: &Snapshot,
    ) -> Result<Vec<ManifestFile>, LakeError> {
        let bytes = self.read(objects, snapshot.manifest_list()).await?;
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2)?;
        Ok(list.consume_entries().into_iter().collect())
    }

    /// The files that a manifest lists, but for those it lists as deleted.
    pub(crate) async fn entries_of(
        &self,
        objects: &dyn ObjectStore,
        manifest: &ManifestFile,
    ) -> Result<Vec<ManifestEntryRef>, LakeError> {
        let io = FileIO::new_with_memory();
        let bytes = self.read(objects, &manifest.manifest_path).await?;
        io.new_output(&manifest.manifest_path)?.write(bytes).await?;
        let (entries, _) = manifest.load_manifest(&io).await?.into_parts();
        Ok(entries.into_iter().filter(|entry| entry.is_alive()).collect())
    }

    /// The files of the current snapshot.
    pub(crate) async fn live_files(&self, objects: &dyn ObjectStore) -> Result<LiveFiles, LakeError> {
        let mut live = LiveFiles::default();
        let Some(snapshot) = self.metadata.current_snapshot() else { return Ok(live) };
        for manifest in self.manifests_of(objects, snapshot).await? {
            for entry in self.entries_of(objects, &manifest).await? {
                let file = LiveFile {
                    file: entry.data_file.clone(),
                    manifest: manifest.manifest_path.clone(),
                    partition: Partition {
                        spec_id: manifest.partition_spec_id,
                        values: entry.data_file.partition().clone(),
                    },
                    snapshot_id: entry.snapshot_id,
                    sequence: entry.sequence_number().unwrap_or(0),
                };
                match entry.content_type() {
                    DataContentType::Data => live.data.push(file),
                    DataContentType::PositionDeletes => live.deletes.push(file),
                    DataContentType::EqualityDeletes => {
                        return Err(LakeError::Malformed {
                            path: entry.file_path().to_owned(),
                            reason: "equality deletes, which DoLake does not write, cannot be read".to_owned(),
                        });
                    }
                }
            }
        }
        live.data
            .sort_by(|one, other| (one.sequence, one.file.file_path()).cmp(&(other.sequence, other.file.file_path())));
        Ok(live)
    }

    /// By data file, the rows that these delete files delete, in ascending order.
    pub(crate) async fn deleted_rows(
        &self,
        objects: &dyn ObjectStore,
        deletes: impl Iterator<Item = &LiveFile>,
    ) -> Result<HashMap<String, Vec<i64>>, LakeError> {
        let mut deleted: HashMap<String, Vec<i64>> = HashMap::new();
        for delete in deletes {
            let url = delete.file.file_path();
            let bytes = self.read(objects, url).await?;
            let malformed =
                || LakeError::Malformed { path: url.to_owned(), reason: "not a position delete file".to_owned() };
            for batch in reader(bytes)? {
                let batch = batch?;
                let paths = batch.column_by_name("file_path").and_then(|column| column.as_string_opt::<i32>());
                let rows = batch.column_by_name("pos").and_then(|column| column.as_primitive_opt::<Int64Type>());
                let (paths, rows) = paths.zip(rows).ok_or_else(malformed)?;
                for row in 0..batch.num_rows() {
                    let (path, position) = (paths.value(row), rows.value(row));
                    match deleted.get_mut(path) {
                        Some(positions) => positions.push(position),
                        None => {
                            deleted.insert(path.to_owned(), vec![position]);
                        }
                    }
                }
            }
        }
        for positions in deleted.values_mut() {
            positions.sort_unstable();
            positions.dedup();
        }
        Ok(deleted)
    }
}

/// The batches of a file, in the types that Parquet names: a program that wrote it may have preferred others in Arrow.
fn reader(bytes: Bytes) -> Result<ParquetRecordBatchReader, LakeError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    Ok(ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)?.with_batch_size(BATCH_ROWS).build()?)
}

/// The rows of a data file that are not deleted, batch by batch, in the table's present columns.
pub(crate) struct LiveRows<'a> {
    columns: &'a LakeColumns,
    reader: ParquetRecordBatchReader,
    /// In ascending order.
    deleted: &'a [i64],
    next_row: i64,
}

impl<'a> LiveRows<'a> {
    pub(crate) fn new(columns: &'a LakeColumns, bytes: Bytes, deleted: &'a [i64]) -> Result<Self, LakeError> {
        Ok(Self { columns, reader: reader(bytes)?, deleted, next_row: 0 })
    }

    fn live(&mut self, batch: &RecordBatch) -> Result<(RecordBatch, Vec<i64>), LakeError> {
        let first = self.next_row;
        self.next_row += batch.num_rows() as i64;
        let (gone, later) = self.deleted.split_at(self.deleted.partition_point(|row| *row < self.next_row));
        self.deleted = later;
        let mut gone = gone.iter().peekable();
        let kept: BooleanArray = (first..self.next_row).map(|row| Some(gone.next_if_eq(&&row).is_none())).collect();
        let positions = (first..self.next_row).zip(kept.values().iter()).filter(|(_, kept)| *kept).map(|(row, _)| row);
        let positions = positions.collect();
        let batch = if kept.true_count() == kept.len() { batch.clone() } else { filter_record_batch(batch, &kept)? };
        Ok((in_columns(self.columns, &batch)?, positions))
    }
}

/// The rows, and each one's place in the file.
impl Iterator for LiveRows<'_> {
    type Item = Result<(RecordBatch, Vec<i64>), LakeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        Some(batch.map_err(LakeError::from).and_then(|batch| self.live(&batch)))
    }
}

/// A file's columns as the table has them now: by field id; a column that the file lacks is null.
fn in_columns(columns: &LakeColumns, batch: &RecordBatch) -> Result<RecordBatch, LakeError> {
    let schema = batch.schema();
    let ids: HashMap<i32, usize> = (0..)
        .zip(schema.fields())
        .filter_map(|(place, field)| Some((field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()?, place)))
        .collect();
    let found = |id: i32| ids.get(&id).map(|place| batch.column(*place));
    // A table that was made anew may have lost columns that tell the keys of rows that are there still.
    let is_lost = |id: &i32| columns.columns.iter().all(|column| column.id != *id);
    let telling: Option<Vec<&ArrayRef>> = columns.key.iter().map(|id| found(*id)).collect();
    let telling = telling.filter(|_| columns.key.iter().any(is_lost));
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.columns.len());
    for (column, field) in columns.columns.iter().zip(columns.arrow.fields()) {
        let array = found(column.id);
        arrays.push(match (&telling, array) {
            (Some(telling), array) if column.source == Source::Meta(Meta::Key) => {
                with_told(telling, array.and_then(|array| array.as_binary_opt()), batch.num_rows())?
            }
            (_, Some(array)) => Arc::clone(array),
            (_, None) => new_null_array(field.data_type(), batch.num_rows()),
        });
    }
    Ok(RecordBatch::try_new(columns.arrow.clone(), arrays)?)
}
