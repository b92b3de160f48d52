//! Committing a snapshot: manifests, manifest list, and the exclusive creation of the next metadata version.
//!
//! The crate `iceberg` commits appends only; this is the thin part it lacks, on its spec types. Manifests are encoded into its
//! in-memory storage and written through our own object store.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use dosql_actors::ObjectStore;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataContentType, DataFile, MAIN_BRANCH, ManifestContentType, ManifestFile, ManifestListWriter, ManifestWriter,
    ManifestWriterBuilder, Operation, PartitionSpec, SchemaRef, Snapshot, Summary, TableMetadata,
};
use uuid::Uuid;

use crate::LakeError;
use crate::authority::Authority;
use crate::parquet_file::LakeFile;
use crate::table::{LakeTable, WATERMARK, metadata_path};

/// Manifests of one content that are merged into one when there are this many.
const MERGE_MANIFESTS: usize = 100;
/// Manifests of at least this many bytes stay as they are.
const LARGE_MANIFEST: i64 = 8 << 20;

/// A snapshot's identity, from which the names of its metadata files follow: they are known before anything is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotNames {
    pub(crate) snapshot_id: i64,
    pub(crate) uuid: Uuid,
}

impl SnapshotNames {
    const DATA: usize = 0;
    const DELETES: usize = 1;
    const MERGED_DATA: usize = 2;
    const MERGED_DELETES: usize = 3;
    const KINDS: usize = 4;

    /// `which` of its kinds of manifests for each partition spec, by the spec's place among the table's.
    fn manifest(self, directory: &str, spec: usize, which: usize) -> String {
        let uuid = Uuid::from_u128(self.uuid.as_u128() ^ (spec * Self::KINDS + which) as u128);
        format!("{directory}/metadata/{uuid}-manifest.avro")
    }

    fn manifest_list(self, directory: &str) -> String {
        format!("{directory}/metadata/snap-{}-manifest-list.avro", self.snapshot_id)
    }

    /// Every metadata file that a commit under these names may write, but for the metadata version itself.
    pub(crate) fn paths(self, directory: &str, specs: usize) -> Vec<String> {
        (0..specs)
            .flat_map(|spec| (0..Self::KINDS).map(move |which| self.manifest(directory, spec, which)))
            .chain([self.manifest_list(directory)])
            .collect()
    }
}

/// What a snapshot adds to a table.
pub(crate) struct Commit {
    pub(crate) names: SnapshotNames,
    pub(crate) now_ms: u64,
    pub(crate) data: Vec<Added>,
    pub(crate) deletes: Vec<Added>,
    /// By shard, the last LSN taken in.
    pub(crate) watermarks: BTreeMap<String, u64>,
    pub(crate) replaced: Replaced,
    /// What of its files is not written yet.
    pub(crate) outbox: Outbox,
}

/// A file that a snapshot adds, and its partition spec.
pub(crate) struct Added {
    pub(crate) spec_id: i32,
    pub(crate) file: DataFile,
}

/// Files that a snapshot takes out of a table, since others stand for them.
#[derive(Default)]
pub(crate) struct Replaced {
    pub(crate) files: Vec<DataFile>,
    /// The manifests that list them.
    pub(crate) manifests: HashSet<String>,
}

/// Objects that are to be written before a commit, together as far as they are small.
#[derive(Default)]
pub(crate) struct Outbox {
    objects: Vec<(String, Bytes)>,
    bytes: usize,
}

impl Outbox {
    /// Bytes that it holds at most before they are written.
    const MOST_BYTES: usize = 1 << 20;

    async fn put(&mut self, objects: &dyn ObjectStore, path: String, bytes: Bytes) -> Result<(), LakeError> {
        self.bytes += bytes.len();
        self.objects.push((path, bytes));
        if self.bytes > Self::MOST_BYTES { self.send(objects).await } else { Ok(()) }
    }

    /// Takes a file for where its entry says it stands.
    pub(crate) async fn put_file(
        &mut self,
        objects: &dyn ObjectStore,
        table: &LakeTable,
        file: LakeFile,
    ) -> Result<Added, LakeError> {
        let LakeFile { bytes, entry, spec_id } = file;
        self.put(objects, table.path_of(entry.file_path())?, bytes).await?;
        Ok(Added { spec_id, file: entry })
    }

    /// Writes what it still holds.
    async fn send(&mut self, objects: &dyn ObjectStore) -> Result<(), LakeError> {
        self.bytes = 0;
        Ok(objects.put_all(std::mem::take(&mut self.objects)).await?)
    }
}

impl LakeTable {
    /// Commits. On an error the table's state is unknown: it must be loaded anew.
    pub(crate) async fn commit(&mut self, authority: &Authority, commit: Commit) -> Result<(), LakeError> {
        let Commit { names, now_ms, data, deletes, watermarks, replaced, outbox } = commit;
        let added = data.iter().chain(&deletes).map(|added| &added.file);
        let mut summary = summary(self, added, &replaced.files);
        for (shard, lsn) in &watermarks {
            summary.additional_properties.insert(format!("{WATERMARK}{shard}"), lsn.to_string());
        }
        let objects = authority.objects();
        let metadata = self.next();
        let mut builder = self.begin_version()?;
        if authority.is_shared() {
            // Whoever looks after the catalog may expire the snapshots that say so.
            let marks = summary.additional_properties.iter().filter(|(name, _)| name.starts_with(WATERMARK));
            builder = builder.set_properties(marks.map(|(name, lsn)| (name.clone(), lsn.clone())).collect())?;
        }
        let schema_id = self.schema().schema_id();
        let mut writing = Writing { objects, table: self, names, outbox };
        let manifests = writing.manifests(data, deletes, &replaced).await?;
        let sequence_number = metadata.next_sequence_number();
        let manifest_list = writing.manifest_list(&manifests, sequence_number).await?;
        writing.outbox.send(objects).await?;
        let parent = metadata.current_snapshot_id();
        let timestamp_ms = i64::try_from(now_ms).unwrap_or(i64::MAX).max(metadata.last_updated_ms());
        builder = builder.set_branch_snapshot(
            Snapshot::builder()
                .with_snapshot_id(names.snapshot_id)
                .with_parent_snapshot_id(parent)
                .with_sequence_number(sequence_number)
                .with_timestamp_ms(timestamp_ms)
                .with_manifest_list(manifest_list)
                .with_summary(summary)
                .with_schema_id(schema_id)
                .build(),
            MAIN_BRANCH,
        )?;
        let metadata = builder.build()?.metadata;
        authority.commit(self, metadata).await?;
        self.staged = None;
        self.reshaped = false;
        self.manifests = Some(manifests);
        Ok(())
    }

    /// Makes this the table's next numbered version. On an error the table's state is unknown: it must be loaded anew.
    pub(crate) async fn commit_version(
        &mut self,
        objects: &dyn ObjectStore,
        metadata: TableMetadata,
    ) -> Result<(), LakeError> {
        let version = self.version + 1;
        self.create_version(objects, version, &metadata).await?;
        self.metadata = metadata;
        self.version = version;
        Ok(())
    }

    /// The atomic step. A creation that failed may have taken effect: then the version is what we wrote, byte for byte.
    async fn create_version(
        &self,
        objects: &dyn ObjectStore,
        version: u64,
        metadata: &TableMetadata,
    ) -> Result<(), LakeError> {
        let path = metadata_path(&self.directory, version);
        let malformed =
            |error: serde_json::Error| LakeError::Malformed { path: path.clone(), reason: error.to_string() };
        let bytes: Bytes = serde_json::to_vec(metadata).map_err(malformed)?.into();
        let Err(error) = objects.create(&path, bytes.clone()).await else { return Ok(()) };
        let Some(found) = objects.get(&path).await? else { return Err(error.into()) };
        if found == bytes {
            return Ok(());
        }
        let reason = format!("version {version} is taken");
        Err(LakeError::Conflict { table: self.directory.clone(), reason })
    }
}

/// What one commit writes beside data.
struct Writing<'a> {
    objects: &'a dyn ObjectStore,
    table: &'a LakeTable,
    names: SnapshotNames,
    outbox: Outbox,
}

/// A partition spec, its place among the table's, and a schema that has its columns.
struct Spec<'a> {
    place: usize,
    spec: &'a PartitionSpec,
    schema: SchemaRef,
}

impl<'a> Writing<'a> {
    /// The table's specs, in the order of their ids.
    fn specs(&self) -> Vec<Spec<'a>> {
        let (table, next) = (self.table, self.table.next());
        let mut specs: Vec<&PartitionSpec> = next.partition_specs_iter().map(AsRef::as_ref).collect();
        specs.sort_by_key(|spec| spec.spec_id());
        let schema = |spec: &PartitionSpec| {
            let mut schemas = [table.schema()].into_iter().chain(next.schemas_iter());
            schemas.find(|schema| spec.partition_type(schema).is_ok()).unwrap_or(table.schema()).clone()
        };
        (0..).zip(specs).map(|(place, spec)| Spec { place, spec, schema: schema(spec) }).collect()
    }

    /// The manifests of the new snapshot: the ones before, merged where they are many, and ours.
    async fn manifests(
        &mut self,
        data: Vec<Added>,
        deletes: Vec<Added>,
        replaced: &Replaced,
    ) -> Result<Vec<ManifestFile>, LakeError> {
        let gone: HashSet<&str> = replaced.files.iter().map(DataFile::file_path).collect();
        let mut manifests = self.previous().await?;
        let specs = self.specs();
        for spec in &specs {
            for (content, which) in [
                (ManifestContentType::Data, SnapshotNames::MERGED_DATA),
                (ManifestContentType::Deletes, SnapshotNames::MERGED_DELETES),
            ] {
                let ours = |manifest: &ManifestFile| {
                    manifest.content == content && manifest.partition_spec_id == spec.spec.spec_id()
                };
                let small = |manifest: &ManifestFile| ours(manifest) && manifest.manifest_length < LARGE_MANIFEST;
                let many = manifests.iter().filter(|manifest| small(manifest)).count() >= MERGE_MANIFESTS;
                let loses_files =
                    |manifest: &ManifestFile| ours(manifest) && replaced.manifests.contains(&manifest.manifest_path);
                let (merged, kept): (Vec<_>, Vec<_>) =
                    manifests.into_iter().partition(|manifest| loses_files(manifest) || many && small(manifest));
                manifests = kept;
                if !merged.is_empty() {
                    manifests.push(self.merge(merged, content, spec, which, &gone).await?);
                }
            }
        }
        for (files, content, which) in [
            (data, ManifestContentType::Data, SnapshotNames::DATA),
            (deletes, ManifestContentType::Deletes, SnapshotNames::DELETES),
        ] {
            let mut files = files;
            for spec in &specs {
                let (of_spec, others): (Vec<_>, Vec<_>) =
                    files.into_iter().partition(|added| added.spec_id == spec.spec.spec_id());
                files = others;
                if of_spec.is_empty() {
                    continue;
                }
                let io = FileIO::new_with_memory();
                let mut writer = self.manifest_writer(&io, content, spec, which)?;
                for Added { file, .. } in of_spec {
                    // No sequence number: the entry takes its snapshot's.
                    writer.add_file(file, -1)?;
                }
                manifests.push(self.put_manifest(&io, writer).await?);
            }
        }
        Ok(manifests)
    }

    async fn previous(&self) -> Result<Vec<ManifestFile>, LakeError> {
        if let Some(manifests) = &self.table.manifests {
            return Ok(manifests.clone());
        }
        match self.table.metadata.current_snapshot() {
            Some(snapshot) => self.table.manifests_of(self.objects, snapshot).await,
            None => Ok(Vec::new()),
        }
    }

    /// One manifest in place of these, which says of the files that are `gone` that this snapshot has taken them out.
    async fn merge(
        &mut self,
        manifests: Vec<ManifestFile>,
        content: ManifestContentType,
        spec: &Spec<'_>,
        which: usize,
        gone: &HashSet<&str>,
    ) -> Result<ManifestFile, LakeError> {
        let io = FileIO::new_with_memory();
        let mut writer = self.manifest_writer(&io, content, spec, which)?;
        for manifest in manifests {
            for entry in self.table.entries_of(self.objects, &manifest).await? {
                let incomplete = || LakeError::Malformed {
                    path: manifest.manifest_path.clone(),
                    reason: format!("the entry of {} lacks its snapshot", entry.file_path()),
                };
                let file = entry.data_file.clone();
                let sequence_number = entry.sequence_number.ok_or_else(incomplete)?;
                if gone.contains(entry.file_path()) {
                    writer.add_delete_file(file, sequence_number, entry.file_sequence_number)?;
                } else {
                    let snapshot_id = entry.snapshot_id.ok_or_else(incomplete)?;
                    writer.add_existing_file(file, snapshot_id, sequence_number, entry.file_sequence_number)?;
                }
            }
        }
        self.put_manifest(&io, writer).await
    }

    fn manifest_writer(
        &self,
        io: &FileIO,
        content: ManifestContentType,
        spec: &Spec<'_>,
        which: usize,
    ) -> Result<ManifestWriter, LakeError> {
        let url = self.table.url_of(&self.names.manifest(&self.table.directory, spec.place, which));
        let builder = ManifestWriterBuilder::new(
            io.new_output(url)?,
            Some(self.names.snapshot_id),
            spec.schema.clone(),
            spec.spec.clone(),
        );
        Ok(match content {
            ManifestContentType::Data => builder.build_v2_data(),
            ManifestContentType::Deletes => builder.build_v2_deletes(),
        })
    }

    async fn put_manifest(&mut self, io: &FileIO, writer: ManifestWriter) -> Result<ManifestFile, LakeError> {
        let mut manifest = writer.write_manifest_file().await?;
        let bytes = io.new_input(&manifest.manifest_path)?.read().await?;
        self.outbox.put(self.objects, self.table.path_of(&manifest.manifest_path)?, bytes).await?;
        // The manifest list writer fills these in on its own copy; ours is carried into the next snapshot's list.
        let sequence_number = self.table.metadata.next_sequence_number();
        manifest.sequence_number = sequence_number;
        if manifest.min_sequence_number < 0 {
            manifest.min_sequence_number = sequence_number;
        }
        Ok(manifest)
    }

    /// Writes the manifest list; returns its URL.
    async fn manifest_list(&mut self, manifests: &[ManifestFile], sequence_number: i64) -> Result<String, LakeError> {
        let path = self.names.manifest_list(&self.table.directory);
        let url = self.table.url_of(&path);
        let io = FileIO::new_with_memory();
        let output = io.new_output(&url)?.writer().await?;
        let parent = self.table.metadata.current_snapshot_id();
        let mut writer = ManifestListWriter::v2(output, self.names.snapshot_id, parent, sequence_number);
        writer.add_manifests(manifests.iter().cloned())?;
        writer.close().await?;
        self.outbox.put(self.objects, path, io.new_input(&url)?.read().await?).await?;
        Ok(url)
    }
}

/// The summary of a snapshot that adds and takes out these files. It keeps the watermarks.
fn summary<'a>(table: &LakeTable, added: impl Iterator<Item = &'a DataFile>, removed: &[DataFile]) -> Summary {
    let none = HashMap::new();
    let previous =
        table.metadata.current_snapshot().map_or(&none, |snapshot| &snapshot.summary().additional_properties);
    let mut properties = table.watermarks();
    let (added, removed) = (Tally::of(added), Tally::of(removed.iter()));
    for ((what, added), (_, removed)) in added.counts().into_iter().zip(removed.counts()) {
        let total = format!("total-{what}");
        let before: u64 = previous.get(&total).and_then(|text| text.parse().ok()).unwrap_or(0);
        properties.insert(total, (before + added).saturating_sub(removed).to_string());
        if added > 0 {
            properties.insert(format!("added-{what}"), added.to_string());
        }
        if removed > 0 {
            let how = if matches!(what, "data-files" | "records") { "deleted" } else { "removed" };
            properties.insert(format!("{how}-{what}"), removed.to_string());
        }
    }
    let operation = match (added.data_files, added.delete_files, removed.data_files + removed.delete_files) {
        (_, _, 1..) => Operation::Replace,
        (_, 0, 0) => Operation::Append,
        (0, _, 0) => Operation::Delete,
        _ => Operation::Overwrite,
    };
    Summary { operation, additional_properties: properties }
}

/// Counts for a snapshot's summary.
#[derive(Default)]
struct Tally {
    data_files: u64,
    records: u64,
    delete_files: u64,
    position_deletes: u64,
    bytes: u64,
}

impl Tally {
    fn of<'a>(files: impl Iterator<Item = &'a DataFile>) -> Self {
        let mut tally = Self::default();
        for file in files {
            tally.bytes += file.file_size_in_bytes();
            if file.content_type() == DataContentType::Data {
                tally.data_files += 1;
                tally.records += file.record_count();
            } else {
                tally.delete_files += 1;
                tally.position_deletes += file.record_count();
            }
        }
        tally
    }

    fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("data-files", self.data_files),
            ("records", self.records),
            ("delete-files", self.delete_files),
            ("position-deletes", self.position_deletes),
            ("files-size", self.bytes),
            ("equality-deletes", 0),
        ]
    }
}
