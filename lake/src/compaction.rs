//! Compaction: a partition's small files become few large ones, without the rows that position deletes have removed.
//!
//! One step rewrites one group of files of one partition, at most about two target sizes of it, and commits; the actor takes
//! other messages between steps. In memory are one input file, one row group and one output file, all of them encoded. A step:
//! 1. names the snapshot and every object it may write, durably;
//! 2. writes the new files, and notes in the actor's database where each row of a mirror moves, after checking that the index
//!    has it where it was read;
//! 3. creates the next metadata version, which commits;
//! 4. has the index take over the new places.
//!
//! Interrupted, it is resolved as a flush is. Where another program has committed in between, step 3 fails, what was written is
//! deleted, and the next step begins with the table as it then is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::spec::DataFile;

use crate::LakeError;
use crate::columns::TableKind;
use crate::commit::{Commit, Replaced, SnapshotNames, put_file};
use crate::flush::{NOT_INDEXED, Writer, placement};
use crate::index::{KnownTable, Pending, Position};
use crate::key::KeyReader;
use crate::live_files::{LiveFile, LiveRows};
use crate::options::FileOptions;
use crate::parquet_file::{DataFileWriter, position_delete_file};
use crate::table::{LakeTable, kind_of};

const DAY_MS: u64 = 86_400_000;

/// What is worth compacting.
#[derive(Debug, Clone)]
pub(crate) struct CompactionPolicy {
    /// Small data files and delete files that a partition has at least.
    pub(crate) min_files: usize,
    /// Data files rewritten at a time.
    pub(crate) max_files: usize,
    /// Size in bytes at which a file is finished. Files of less than three quarters of it are small.
    pub(crate) target_bytes: u64,
    /// How long a partition's day has been over, in milliseconds.
    pub(crate) min_age_ms: u64,
    /// Only this partition, in days since the epoch.
    pub(crate) day: Option<i32>,
}

/// What one step has done.
#[derive(Debug)]
pub(crate) struct Compacted {
    pub(crate) day: i32,
    pub(crate) files_before: usize,
    pub(crate) files_after: usize,
    pub(crate) deletes_folded: u64,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
}

/// Files to be rewritten.
struct Group {
    day: i32,
    data: Vec<LiveFile>,
    /// The partition's delete files that delete rows of these data files.
    deletes: Vec<LiveFile>,
    /// By data file, the rows that those delete.
    deleted: HashMap<String, Vec<i64>>,
}

impl Writer {
    /// One step on a table, or `None` where nothing in it is worth compacting.
    pub(crate) async fn compact(
        &mut self,
        name: &str,
        policy: &CompactionPolicy,
    ) -> Result<Option<Compacted>, LakeError> {
        self.resolve_pending().await?;
        let Some(mut table) = self.open_existing(name).await? else { return Ok(None) };
        let target_bytes = self.configuration.of(table.source()).files.target_file_size;
        let policy = CompactionPolicy { target_bytes: target_bytes.unwrap_or(policy.target_bytes), ..policy.clone() };
        let group = self.group(&table, &policy).await?;
        let compacted = match group {
            Some(group) => {
                let outcome = self.rewrite(name, &mut table, group, &policy).await;
                if let Err(LakeError::IndexStale { .. }) = outcome {
                    self.resolve_pending().await?;
                    self.index.mark_stale(self.index.table(name)?.id)?;
                }
                Some(outcome?)
            }
            None => None,
        };
        self.tables.insert(name.to_owned(), table);
        Ok(compacted)
    }

    /// The next files worth rewriting: of the oldest partition that has any.
    async fn group(&self, table: &LakeTable, policy: &CompactionPolicy) -> Result<Option<Group>, LakeError> {
        let live = table.live_files(&*self.objects).await?;
        let mut partitions: BTreeMap<i32, (Vec<LiveFile>, Vec<LiveFile>)> = BTreeMap::new();
        for file in live.data {
            if let Some(day) = file.day() {
                partitions.entry(day).or_default().0.push(file);
            }
        }
        for file in live.deletes {
            if let Some(day) = file.day() {
                partitions.entry(day).or_default().1.push(file);
            }
        }
        let is_small = |file: &LiveFile| file.file.file_size_in_bytes() < policy.target_bytes / 4 * 3;
        for (day, (data, deletes)) in partitions {
            let over_ms = u64::try_from(day).unwrap_or(0).saturating_add(1).saturating_mul(DAY_MS);
            let is_old = self.context.now_ms() >= over_ms.saturating_add(policy.min_age_ms);
            let count = data.iter().filter(|file| is_small(file)).count() + deletes.len();
            let excluded = match policy.day {
                Some(chosen) => chosen != day,
                None => policy.min_age_ms > 0 && !is_old,
            };
            if excluded || count < policy.min_files.max(2) {
                continue;
            }
            let mut deleted = table.deleted_rows(&*self.objects, deletes.iter()).await?;
            let (mut chosen, mut bytes) = (Vec::new(), 0);
            for file in data {
                let worthy = is_small(&file) || deleted.contains_key(file.file.file_path());
                if worthy && chosen.len() < policy.max_files.max(2) && (bytes < policy.target_bytes || chosen.len() < 2)
                {
                    bytes += file.file.file_size_in_bytes();
                    chosen.push(file);
                }
            }
            let urls: HashSet<&str> = chosen.iter().map(|file| file.file.file_path()).collect();
            deleted.retain(|url, _| urls.contains(url.as_str()));
            if chosen.is_empty() || chosen.len() < 2 && deleted.is_empty() {
                continue;
            }
            let mut touched = Vec::new();
            for delete in deletes {
                let rows = table.deleted_rows(&*self.objects, std::iter::once(&delete)).await?;
                if rows.keys().any(|url| urls.contains(url.as_str())) {
                    touched.push(delete);
                }
            }
            return Ok(Some(Group { day, data: chosen, deletes: touched, deleted }));
        }
        Ok(None)
    }

    async fn rewrite(
        &self,
        name: &str,
        table: &mut LakeTable,
        group: Group,
        policy: &CompactionPolicy,
    ) -> Result<Compacted, LakeError> {
        let known = self.index.table(name)?;
        let options = self.configuration.of(table.source());
        let is_mirror = kind_of(name) == TableKind::Mirror;
        let names = SnapshotNames { snapshot_id: self.new_snapshot_id(), uuid: self.new_uuid() };
        // Every file but the last has the target size, so there are no more than that.
        let urls: Vec<String> = group.data.iter().map(|_| self.new_url(table, group.day)).collect();
        let deletes_url = self.new_url(table, group.day);
        let mut paths = names.paths(&table.directory);
        for url in urls.iter().chain([&deletes_url]) {
            paths.push(table.path_of(url)?);
        }
        let pending = Pending {
            table_id: known.id,
            table: known.name.clone(),
            snapshot_id: names.snapshot_id,
            version: (table.version + 1).cast_signed(),
            first_file: if is_mirror { self.index.next_file()? } else { NOT_INDEXED },
            rows: 0,
            paths,
        };
        self.index.transaction(|| self.index.add_pending(&pending))?;

        let index = is_mirror.then_some(&known);
        let data = self.write_group(table, &group, index, &urls, &options.files, policy.target_bytes).await?;
        let mut deletes = Vec::new();
        let kept = self.kept_deletes(table, &group).await?;
        if !kept.is_empty() {
            let file = position_delete_file(&kept, &placement(table, &deletes_url, group.day), options.files.codec)?;
            deletes.push(put_file(&*self.objects, table, file).await?);
        }
        let size =
            |files: &mut dyn Iterator<Item = &DataFile>| -> u64 { files.map(DataFile::file_size_in_bytes).sum() };
        let compacted = Compacted {
            day: group.day,
            files_before: group.data.len() + group.deletes.len(),
            files_after: data.len() + deletes.len(),
            deletes_folded: group.deleted.values().map(|rows| rows.len() as u64).sum(),
            bytes_before: size(&mut group.data.iter().chain(&group.deletes).map(|file| &file.file)),
            bytes_after: size(&mut data.iter().chain(&deletes)),
        };
        let gone: Vec<LiveFile> = group.data.into_iter().chain(group.deletes).collect();
        let replaced = Replaced {
            manifests: gone.iter().map(|file| file.manifest.clone()).collect(),
            files: gone.into_iter().map(|file| file.file).collect(),
        };
        let (now_ms, watermarks) = (self.context.now_ms(), BTreeMap::new());
        table.commit(&*self.objects, Commit { names, now_ms, data, deletes, watermarks, replaced }).await?;
        self.index.confirm(&pending)?;
        Ok(compacted)
    }

    /// Writes the group's rows into new files. `index` is the table where rows are to be found again.
    async fn write_group(
        &self,
        table: &LakeTable,
        group: &Group,
        index: Option<&KnownTable>,
        urls: &[String],
        options: &FileOptions,
        target_bytes: u64,
    ) -> Result<Vec<DataFile>, LakeError> {
        let mut urls = urls.iter().peekable();
        let mut written = Vec::new();
        let mut output: Option<Output<'_>> = None;
        let rows: u64 = group.data.iter().map(|file| file.file.record_count()).sum();
        let form = self.file_form(table, options, usize::try_from(rows).unwrap_or(usize::MAX));
        for file in &group.data {
            let url = file.file.file_path();
            let deleted = group.deleted.get(url).map_or(&[][..], Vec::as_slice);
            let from = match index {
                Some(known) => {
                    let stale =
                        || LakeError::IndexStale { table: known.name.clone(), reason: format!("{url} is not in it") };
                    let id = self.index.file_id(known.id, url)?.ok_or_else(stale)?;
                    self.index.add_replaced(known.id, id)?;
                    id
                }
                None => NOT_INDEXED,
            };
            for batch in LiveRows::new(&table.columns, table.read(&*self.objects, url).await?, deleted)? {
                let (batch, positions) = batch?;
                if batch.num_rows() == 0 {
                    continue;
                }
                let mut current = match output.take() {
                    Some(current) => current,
                    None => {
                        let Some(url) = urls.next() else {
                            return Err(LakeError::Malformed {
                                path: table.directory.clone(),
                                reason: "its files grow when they are compacted".to_owned(),
                            });
                        };
                        let id = match index {
                            Some(known) => self.index.add_file(known.id, url, group.day)?,
                            None => NOT_INDEXED,
                        };
                        let writer = DataFileWriter::new(&table.columns, &form)?;
                        Output { url, id, rows: 0, writer }
                    }
                };
                if let Some(known) = index {
                    self.note_moves(known, table, &batch, (from, &positions), (current.id, current.rows))?;
                }
                current.rows += batch.num_rows() as i64;
                current.writer.write(&batch)?;
                if current.writer.bytes_written() as u64 >= target_bytes && urls.peek().is_some() {
                    written.push(self.finish(table, group.day, current).await?);
                } else {
                    output = Some(current);
                }
            }
        }
        if let Some(current) = output {
            written.push(self.finish(table, group.day, current).await?);
        }
        Ok(written)
    }

    async fn finish(&self, table: &LakeTable, day: i32, output: Output<'_>) -> Result<DataFile, LakeError> {
        let file = output.writer.finish(&table.columns, &placement(table, output.url, day))?;
        put_file(&*self.objects, table, file).await
    }

    /// Notes the new places of a batch's rows, which the index must have where they were read.
    fn note_moves(
        &self,
        known: &KnownTable,
        table: &LakeTable,
        batch: &RecordBatch,
        (from, positions): (i64, &[i64]),
        (to, first_row): (i64, i64),
    ) -> Result<(), LakeError> {
        let keys = KeyReader::new(&table.columns, batch)?;
        self.index.transaction(|| {
            let mut shards: HashMap<&str, i64> = HashMap::new();
            for (row, position) in positions.iter().enumerate() {
                let (shard, key) = keys.read(row)?;
                let shard_id = match shards.get(shard) {
                    Some(id) => *id,
                    None => *shards.entry(shard).or_insert(self.index.shard_id(shard)?),
                };
                let keys = self.index.keys(known.id, shard_id);
                let read = Position { file: from, row: *position };
                let found = keys.get(&key)?;
                if found != Some(read) {
                    return Err(LakeError::IndexStale {
                        table: known.name.clone(),
                        reason: format!("a row of {shard} was read at {read:?}, the index has {found:?}"),
                    });
                }
                keys.move_to(&key, Position { file: to, row: first_row + row as i64 })?;
            }
            Ok(())
        })
    }

    /// The rows that the group's delete files delete in other data files, in ascending order.
    async fn kept_deletes(&self, table: &LakeTable, group: &Group) -> Result<Vec<(Arc<str>, i64)>, LakeError> {
        let rewritten: HashSet<&str> = group.data.iter().map(|file| file.file.file_path()).collect();
        let mut kept: Vec<(Arc<str>, i64)> = Vec::new();
        for (url, rows) in table.deleted_rows(&*self.objects, group.deletes.iter()).await? {
            if !rewritten.contains(url.as_str()) {
                let url: Arc<str> = url.into();
                kept.extend(rows.into_iter().map(|row| (Arc::clone(&url), row)));
            }
        }
        kept.sort_unstable();
        Ok(kept)
    }
}

/// A file being written.
struct Output<'a> {
    url: &'a str,
    /// Its number in the index.
    id: i64,
    rows: i64,
    writer: DataFileWriter,
}
