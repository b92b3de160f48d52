//! Reads the lake's tables as a reader of Iceberg does: metadata, manifests, files, less deleted positions.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use bytes::Bytes;
use iceberg::io::FileIO;
use iceberg::spec::{DataContentType, DataFile, FormatVersion, ManifestList, Schema, Snapshot, TableMetadata};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{Objects, now};

/// A row: the text of each cell, by column; NULLs left out.
pub(crate) type TextRow = BTreeMap<String, String>;

/// The newest metadata of a table.
pub(crate) fn metadata(objects: &Objects, table: &str) -> Option<TableMetadata> {
    let files = objects.files.borrow();
    let versions = files.iter().filter_map(|(path, bytes)| {
        let version = path.strip_prefix(&format!("warehouse/default/{table}/metadata/v"))?;
        Some((version.strip_suffix(".metadata.json")?.parse::<u64>().unwrap(), bytes))
    });
    let (_, bytes) = versions.max_by_key(|(version, _)| *version)?;
    Some(serde_json::from_slice(bytes).unwrap())
}

/// How many manifests a table's current snapshot lists.
pub(crate) fn manifests(objects: &Objects, table: &str) -> usize {
    let metadata = metadata(objects, table).unwrap();
    let path = metadata.current_snapshot().unwrap().manifest_list().strip_prefix(&objects.base).unwrap();
    let list = ManifestList::parse_with_version(&objects.files.borrow()[path], FormatVersion::V2).unwrap();
    list.entries().len()
}

/// How many data files and delete files a table's current snapshot has.
pub(crate) fn files(objects: &Objects, table: &str) -> (usize, usize) {
    let metadata = metadata(objects, table).unwrap();
    let (data, deletes) = listed(objects, metadata.current_snapshot().unwrap());
    (data.len(), deletes.len())
}

/// The URLs of the data files of a table's current snapshot.
pub(crate) fn data_files(objects: &Objects, table: &str) -> Vec<String> {
    let metadata = metadata(objects, table).unwrap();
    let (data, _) = listed(objects, metadata.current_snapshot().unwrap());
    data.into_iter().map(|(file, _)| file.file_path().to_owned()).collect()
}

/// The text of a column's cells in a file, in the order of its rows.
pub(crate) fn file_column(objects: &Objects, url: &str, name: &str) -> Vec<String> {
    let cells = |batch: &RecordBatch| {
        let column = batch.column_by_name(name).unwrap().clone();
        (0..column.len()).map(|row| array_value_to_string(&column, row).unwrap()).collect::<Vec<_>>()
    };
    batches(get(objects, url)).iter().flat_map(cells).collect()
}

/// Reads every snapshot of a table.
pub(crate) fn every_snapshot(objects: &Objects, table: &str) {
    let metadata = metadata(objects, table).unwrap();
    metadata.snapshots().for_each(|snapshot| drop(snapshot_rows(objects, &metadata, snapshot)));
}

/// The paths of everything that a table's snapshots consist of.
pub(crate) fn every_object(objects: &Objects, table: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut add = |url: &str| paths.insert(url.strip_prefix(&objects.base).unwrap().to_owned());
    let Some(metadata) = metadata(objects, table) else { return paths };
    for snapshot in metadata.snapshots() {
        add(snapshot.manifest_list());
        let list = get(objects, snapshot.manifest_list());
        for manifest in ManifestList::parse_with_version(&list, FormatVersion::V2).unwrap().entries() {
            add(&manifest.manifest_path);
        }
        let (data, deletes) = listed(objects, snapshot);
        data.iter().chain(&deletes).for_each(|(file, _)| {
            add(file.file_path());
        });
    }
    paths
}

/// The rows of a table's current snapshot. Checks what the manifests say against the files on the way.
pub(crate) fn rows(objects: &Objects, table: &str) -> Vec<TextRow> {
    let Some(metadata) = metadata(objects, table) else { return Vec::new() };
    let Some(snapshot) = metadata.current_snapshot() else { return Vec::new() };
    snapshot_rows(objects, &metadata, snapshot)
}

fn get(objects: &Objects, url: &str) -> Bytes {
    let path = url.strip_prefix(&objects.base).unwrap();
    objects.files.borrow().get(path).unwrap_or_else(|| panic!("{path} is missing")).clone()
}

type Listed = Vec<(DataFile, i64)>;

/// The data files and the delete files of a snapshot, with their sequence numbers.
fn listed(objects: &Objects, snapshot: &Snapshot) -> (Listed, Listed) {
    let get = |url: &str| get(objects, url);
    let list = ManifestList::parse_with_version(&get(snapshot.manifest_list()), FormatVersion::V2).unwrap();
    let (mut data, mut deletes) = (Vec::new(), Vec::new());
    let mut listed = BTreeSet::new();
    for manifest in list.entries() {
        let io = FileIO::new_with_memory();
        now(io.new_output(&manifest.manifest_path).unwrap().write(get(&manifest.manifest_path))).unwrap();
        for entry in now(manifest.load_manifest(&io)).unwrap().entries().iter().filter(|entry| entry.is_alive()) {
            assert!(listed.insert(entry.file_path().to_owned()), "{} is listed twice", entry.file_path());
            let sequence = entry.sequence_number.unwrap();
            match entry.content_type() {
                DataContentType::Data => data.push((entry.data_file.clone(), sequence)),
                _ => deletes.push((entry.data_file.clone(), sequence)),
            }
        }
    }
    (data, deletes)
}

fn snapshot_rows(objects: &Objects, metadata: &TableMetadata, snapshot: &Snapshot) -> Vec<TextRow> {
    let get = |url: &str| get(objects, url);
    let (data, deletes) = listed(objects, snapshot);
    let mut deleted: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for (file, sequence) in &deletes {
        for batch in batches(get(file.file_path())) {
            let (paths, positions) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
            for row in 0..batch.num_rows() {
                let path = paths.value(row).to_owned();
                let target = data.iter().find(|(data, _)| data.file_path() == path).expect("a delete hits no file");
                assert_eq!(target.0.partition(), file.partition(), "a delete file of another partition");
                let again = deleted.insert((path, positions.value(row)), *sequence);
                assert_eq!(again, None, "a row was deleted twice");
            }
        }
    }
    let mut rows = Vec::new();
    for (file, sequence) in &data {
        let (bytes, url) = (get(file.file_path()), file.file_path());
        assert_eq!(bytes.len() as u64, file.file_size_in_bytes());
        let mut position = 0;
        for batch in batches(bytes) {
            check_bounds(metadata, file, &batch);
            for row in 0..batch.num_rows() {
                if deleted.get(&(url.to_owned(), position)).is_none_or(|deleted| deleted < sequence) {
                    rows.push(text_row(metadata.current_schema(), &batch, row));
                }
                position += 1;
            }
        }
        assert_eq!(position.cast_unsigned(), file.record_count());
    }
    rows
}

fn batches(bytes: Bytes) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

/// A manifest's bounds and null counts must be true of the file, or readers prune rows that match.
fn check_bounds(metadata: &TableMetadata, file: &DataFile, batch: &RecordBatch) {
    for (column, field) in batch.columns().iter().zip(batch.schema().fields()) {
        let id: i32 = field.metadata()["PARQUET:field_id"].parse().unwrap();
        let mut schemas = metadata.schemas_iter().filter_map(|schema| schema.field_by_id(id));
        assert!(schemas.any(|known| known.name == *field.name()), "no schema has {field}");
        assert_eq!(file.null_value_counts()[&id], column.null_count() as u64, "{field}");
        let (lower, upper) = (file.lower_bounds().get(&id), file.upper_bounds().get(&id));
        let Some((lower, upper)) = lower.zip(upper) else {
            assert_eq!(column.null_count(), column.len(), "{field} has no bounds");
            continue;
        };
        use iceberg::spec::Datum;
        for row in (0..batch.num_rows()).filter(|row| column.is_valid(*row)) {
            let datum = match column.data_type() {
                arrow::datatypes::DataType::Int64 => Datum::long(column.as_primitive::<Int64Type>().value(row)),
                arrow::datatypes::DataType::Float64 => Datum::double(column.as_primitive::<Float64Type>().value(row)),
                arrow::datatypes::DataType::Utf8 => Datum::string(column.as_string::<i32>().value(row)),
                _ => continue,
            };
            assert!(*lower <= datum && datum <= *upper, "{field}: {lower} <= {datum} <= {upper}");
        }
    }
}

/// A row under the names of the current schema, by field ids.
fn text_row(schema: &Schema, batch: &RecordBatch, row: usize) -> TextRow {
    let cell = |(column, field): (&arrow::array::ArrayRef, &arrow::datatypes::FieldRef)| {
        let text = || match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(times) => times.value(row).to_string(),
            None => array_value_to_string(column, row).unwrap(),
        };
        let known = schema.field_by_id(field.metadata()["PARQUET:field_id"].parse().unwrap())?;
        column.is_valid(row).then(|| (known.name.clone(), text()))
    };
    batch.columns().iter().zip(batch.schema().fields()).filter_map(cell).collect()
}
