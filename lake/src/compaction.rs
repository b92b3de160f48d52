//! Compaction: a partition's small files become few large ones, without the rows that position deletes have removed.
//!
//! One step rewrites one group of files of one partition, at most about two target sizes of it, and commits; the actor takes
//! other messages between steps. In memory are one input file, one row group and one output file, all of them encoded. A step:
//! 1. names the snapshot and every object it may write, durably;
//! 2. writes the new files, and notes in the actor's database where the rows of a mirror move, after checking that the index has
//!    rows where they were read;
//! 3. creates the next metadata version, which commits;
//! 4. has the index take over the new places of rows that were sorted. Others are found by the runs they moved in (`moved.rs`).
//!
//! Interrupted, it is resolved as a flush is. Where another program has committed in between, step 3 fails, what was written is
//! deleted, and the next step begins with the table as it then is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{concat_batches, take_record_batch};
use iceberg::spec::DataFile;

use crate::LakeError;
use crate::columns::TableKind;
use crate::commit::{Added, Commit, Outbox, Replaced, SnapshotNames};
use crate::entries::Entries;
use crate::flush::{NOT_INDEXED, Writer};
use crate::index::{Index, Key, KnownTable, Pending, Position};
use crate::key::KeyReader;
use crate::live_files::{LiveFile, LiveRows};
use crate::moved::{Finder, Run};
use crate::options::TableOptions;
use crate::parquet_file::{DataFileWriter, FileForm, Placement, position_delete_file};
use crate::partition::Partition;
use crate::sorting::{How, sorted, z_ordered};
use crate::table::{LakeTable, kind_of};

const DAY_MS: u64 = 86_400_000;
/// Sorted rows that are written at a time.
const SORTED_ROWS: usize = 8_192;

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
    /// Only this partition, by its path; a date stands for `dt=` of it.
    pub(crate) partition: Option<String>,
}

/// What one step has done.
#[derive(Debug)]
pub(crate) struct Compacted {
    pub(crate) partition: String,
    pub(crate) files_before: usize,
    pub(crate) files_after: usize,
    pub(crate) deletes_folded: u64,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
}

/// Files to be rewritten.
struct Group {
    partition: Partition,
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
        // From the oldest spec and the first path on.
        let mut partitions: BTreeMap<(i32, String), (Vec<LiveFile>, Vec<LiveFile>)> = BTreeMap::new();
        for file in live.data {
            let place = (file.partition.spec_id, table.partition_path(&file.partition)?);
            partitions.entry(place).or_default().0.push(file);
        }
        for file in live.deletes {
            let place = (file.partition.spec_id, table.partition_path(&file.partition)?);
            partitions.entry(place).or_default().1.push(file);
        }
        let is_small = |file: &LiveFile| file.file.file_size_in_bytes() < policy.target_bytes / 4 * 3;
        for ((_, path), (data, deletes)) in partitions {
            let Some(partition) = data.first().or(deletes.first()).map(|file| file.partition.clone()) else { continue };
            let count = data.iter().filter(|file| is_small(file)).count() + deletes.len();
            let excluded = match &policy.partition {
                Some(chosen) => !is_called(&path, chosen),
                None => policy.min_age_ms > 0 && !self.is_old(table, &partition, &data, policy.min_age_ms),
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
            return Ok(Some(Group { partition, data: chosen, deletes: touched, deleted }));
        }
        Ok(None)
    }

    /// Whether a partition is over for that long: its day, or, where it is none, the commit of its newest file.
    fn is_old(&self, table: &LakeTable, partition: &Partition, data: &[LiveFile], min_age_ms: u64) -> bool {
        let over_ms = match table.day_of(partition) {
            Some(day) => u64::try_from(day).unwrap_or(0).saturating_add(1).saturating_mul(DAY_MS),
            None => {
                // A snapshot that has expired is older than those that there are.
                let committed = |file: &LiveFile| table.metadata.snapshot_by_id(file.snapshot_id?);
                let newest = data.iter().filter_map(committed).map(|snapshot| snapshot.timestamp_ms()).max();
                u64::try_from(newest.unwrap_or(0)).unwrap_or(0)
            }
        };
        self.context.now_ms() >= over_ms.saturating_add(min_age_ms)
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
        let new_url = || self.new_url(table, &group.partition);
        let urls: Vec<String> = group.data.iter().map(|_| new_url()).collect::<Result<_, _>>()?;
        let deletes_url = new_url()?;
        let mut paths = names.paths(&table.directory, table.next().partition_specs_iter().len());
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
        let (data, mut outbox) = self.write_group(table, &group, index, &urls, &options, policy.target_bytes).await?;
        let mut deletes = Vec::new();
        let kept = self.kept_deletes(table, &group).await?;
        if !kept.is_empty() {
            let placement = Placement { url: &deletes_url, partition: &group.partition, sort_order_id: None };
            let file = position_delete_file(&kept, &placement, options.files.codec)?;
            deletes.push(outbox.put_file(&*self.objects, table, file).await?);
        }
        let size =
            |files: &mut dyn Iterator<Item = &DataFile>| -> u64 { files.map(DataFile::file_size_in_bytes).sum() };
        let compacted = Compacted {
            partition: table.partition_label(&group.partition)?,
            files_before: group.data.len() + group.deletes.len(),
            files_after: data.len() + deletes.len(),
            deletes_folded: group.deleted.values().map(|rows| rows.len() as u64).sum(),
            bytes_before: size(&mut group.data.iter().chain(&group.deletes).map(|file| &file.file)),
            bytes_after: size(&mut data.iter().chain(&deletes).map(|added| &added.file)),
        };
        let gone: Vec<LiveFile> = group.data.into_iter().chain(group.deletes).collect();
        let replaced = Replaced {
            manifests: gone.iter().map(|file| file.manifest.clone()).collect(),
            files: gone.into_iter().map(|file| file.file).collect(),
        };
        let (now_ms, watermarks) = (self.context.now_ms(), BTreeMap::new());
        table.commit(&self.authority, Commit { names, now_ms, data, deletes, watermarks, replaced, outbox }).await?;
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
        options: &TableOptions,
        target_bytes: u64,
    ) -> Result<(Vec<Added>, Outbox), LakeError> {
        let rows: u64 = group.data.iter().map(|file| file.file.record_count()).sum();
        let form = self.file_form(table, &options.files, usize::try_from(rows).unwrap_or(usize::MAX));
        let mut target = Target {
            writer: self,
            table,
            partition: &group.partition,
            index,
            form,
            bytes: target_bytes,
            sort_order_id: if options.z_order { None } else { table.sort_order_id() },
            urls: urls.iter().peekable(),
            current: None,
            last_run: None,
            written: Vec::new(),
            outbox: Outbox::default(),
        };
        let sort = table.sort_columns();
        // Rows that are to be sorted are all in memory: as many as one step rewrites.
        let (mut held, mut origins) = (Vec::new(), Vec::new());
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
                if sort.is_empty() {
                    let Some(first) = positions.first().copied() else { continue };
                    target.write(&batch, &From::Run { first: Position { file: from, row: first }, deleted }).await?;
                } else {
                    held.push(batch);
                    origins.extend(positions.into_iter().map(|row| Position { file: from, row }));
                }
            }
        }
        if !held.is_empty() {
            let all = concat_batches(&table.columns.arrow, &held)?;
            drop(held);
            let places: Vec<usize> = sort.iter().map(|(place, ..)| *place).collect();
            let how: Vec<How> = sort.iter().map(|(_, direction, nulls)| (*direction, *nulls)).collect();
            let keys = all.project(&places)?;
            let order = if options.z_order { z_ordered(&keys, &how)? } else { sorted(&keys, &how)? };
            for start in (0..order.len()).step_by(SORTED_ROWS) {
                let rows = order.slice(start, SORTED_ROWS.min(order.len() - start));
                let from: Vec<Position> = rows.values().iter().map(|row| origins[*row as usize]).collect();
                target.write(&take_record_batch(&all, &rows)?, &From::Places(&from)).await?;
            }
        }
        target.finish().await
    }

    /// Notes the new places of a batch's rows.
    fn note_moves(
        &self,
        known: &KnownTable,
        table: &LakeTable,
        batch: &RecordBatch,
        from: &[Position],
        to: Position,
    ) -> Result<(), LakeError> {
        let mut rows = Rows::new(self, known, table, batch)?;
        self.index.transaction(|| {
            for (row, read) in from.iter().enumerate() {
                if let Some((shard_id, key)) = rows.checked(row, *read)? {
                    rows.entries.move_to(shard_id, &key, Position { file: to.file, row: to.row + row as i64 })?;
                }
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

/// The rows of a batch, and what the index has of them.
struct Rows<'a> {
    index: &'a Index,
    known: &'a KnownTable,
    entries: Entries<'a>,
    keys: KeyReader<'a>,
    finder: Finder<'a>,
    shards: HashMap<&'a str, i64>,
}

impl<'a> Rows<'a> {
    fn new(
        writer: &'a Writer,
        known: &'a KnownTable,
        table: &LakeTable,
        batch: &'a RecordBatch,
    ) -> Result<Self, LakeError> {
        let index = &writer.index;
        let (entries, keys) = (index.entries(known.id)?, KeyReader::new(&table.columns, batch)?);
        Ok(Self { index, known, entries, keys, finder: Finder::new(index, &known.name), shards: HashMap::new() })
    }

    /// A row's shard and key, which the index must have where the row was read; `None` where another program added the row.
    fn checked(&mut self, row: usize, read: Position) -> Result<Option<(i64, Key)>, LakeError> {
        let Some((shard, key)) = self.keys.read(row)? else { return Ok(None) };
        let shard_id = match self.shards.get(shard) {
            Some(id) => *id,
            None => *self.shards.entry(shard).or_insert(self.index.shard_id(shard)?),
        };
        let found = self.entries.get(shard_id, &key)?.map(|entry| self.finder.find(entry)).transpose()?;
        if found == Some(read) {
            return Ok(Some((shard_id, key)));
        }
        let reason = format!("a row of {shard} was read at {read:?}, the index has {found:?}");
        Err(LakeError::IndexStale { table: self.known.name.clone(), reason })
    }
}

/// Where rows were read.
enum From<'a> {
    /// In one file, beginning with this row, without those that are deleted.
    Run { first: Position, deleted: &'a [i64] },
    /// Each at its place.
    Places(&'a [Position]),
}

/// Where compaction writes to.
struct Target<'a> {
    writer: &'a Writer,
    table: &'a LakeTable,
    partition: &'a Partition,
    index: Option<&'a KnownTable>,
    form: FileForm,
    /// Bytes at which a file is finished.
    bytes: u64,
    sort_order_id: Option<i32>,
    urls: Peekable<std::slice::Iter<'a, String>>,
    current: Option<Output<'a>>,
    /// The files, by their numbers, that the last run was moved from and to.
    last_run: Option<(i64, i64)>,
    written: Vec<Added>,
    outbox: Outbox,
}

/// A file being written.
struct Output<'a> {
    url: &'a str,
    /// Its number in the index.
    id: i64,
    rows: i64,
    writer: DataFileWriter,
}

impl Target<'_> {
    /// Writes rows that were read at these places.
    async fn write(&mut self, batch: &RecordBatch, from: &From<'_>) -> Result<(), LakeError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => {
                let Some(url) = self.urls.next() else {
                    return Err(LakeError::Malformed {
                        path: self.table.directory.clone(),
                        reason: "its files grow when they are compacted".to_owned(),
                    });
                };
                let id = match self.index {
                    Some(known) => {
                        let partition = self.table.partition_text(self.partition)?;
                        self.writer.index.add_file(known.id, url, &partition)?
                    }
                    None => NOT_INDEXED,
                };
                let writer = DataFileWriter::new(&self.table.columns, self.form.clone());
                Output { url, id, rows: 0, writer }
            }
        };
        if let Some(known) = self.index {
            let to = Position { file: current.id, row: current.rows };
            match from {
                From::Places(from) => self.writer.note_moves(known, self.table, batch, from, to)?,
                From::Run { first, deleted } => {
                    // One row of each batch is checked: an index of another state of the table would hardly have them all there.
                    let begins = self.last_run != Some((first.file, to.file));
                    let expected = if begins { *first } else { to };
                    Rows::new(self.writer, known, self.table, batch)?.checked(0, expected)?;
                    if begins {
                        self.last_run = Some((first.file, to.file));
                        let gone = deleted[deleted.partition_point(|row| *row < first.row)..].to_vec();
                        self.writer.index.add_run(known.id, first.file, &Run { first: first.row, to, gone })?;
                    }
                }
            }
        }
        current.rows += batch.num_rows() as i64;
        current.writer.write(batch)?;
        let is_full = current.writer.bytes_written() as u64 >= self.bytes && self.urls.peek().is_some();
        self.current = Some(current);
        if is_full { self.end_file().await } else { Ok(()) }
    }

    async fn end_file(&mut self) -> Result<(), LakeError> {
        let Some(Output { url, writer, .. }) = self.current.take() else { return Ok(()) };
        let placement = Placement { url, partition: self.partition, sort_order_id: self.sort_order_id };
        let file = writer.finish(&self.table.columns, &placement)?;
        self.written.push(self.outbox.put_file(&*self.writer.objects, self.table, file).await?);
        Ok(())
    }

    async fn finish(mut self) -> Result<(Vec<Added>, Outbox), LakeError> {
        self.end_file().await?;
        Ok((self.written, self.outbox))
    }
}

/// Whether a partition of this path is meant: by its whole path, or by the date that is its `dt`.
fn is_called(path: &str, chosen: &str) -> bool {
    path == chosen || path.split('/').any(|part| part.trim_start_matches('_').strip_prefix("dt=") == Some(chosen))
}
