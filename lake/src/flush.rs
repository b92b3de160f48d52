//! From the buffer to committed snapshots.
//!
//! For each lake table, in turn:
//! 1. plan: move the index, keep what it overwrites, and name the snapshot and every object it may write, in one transaction;
//! 2. write data files, position delete files, manifests and the manifest list;
//! 3. create `vN.metadata.json`, which commits, and point the version hint at it;
//! 4. confirm: drop the pending entry.
//!
//! When all tables have the buffer's records, the shards' durable LSNs move. Whatever is interrupted before that is delivered
//! again and skipped by the tables that have it. A commit interrupted between 1 and 4 is resolved before the next flush: if
//! the table's metadata has the snapshot, the index is right and the entry is dropped; otherwise the metadata version is taken
//! so that a late write cannot create it any more, the index goes back and the objects are deleted.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::ArrayRef;
use dosql_actors::{Context, ObjectStore};
use uuid::Uuid;

use crate::LakeError;
use crate::arrangement::Arrangement;
use crate::authority::Authority;
use crate::buffer::{Action, Buffer, Change, TableBuffer};
use crate::columns::TableKind;
use crate::commit::{Commit, Outbox, Replaced, SnapshotNames};
use crate::configure::Configuration;
use crate::images::{ImageId, Images};
use crate::index::{Index, KnownTable, Pending};
use crate::mirror::{Layout, MirrorPlan, PlannedFile, Planner};
use crate::misfits::Misfit;
use crate::options::{FileOptions, Misfits, TableOptions};
use crate::parquet_file::{DataFileWriter, FileForm, LakeFile, Placement, position_delete_file};
use crate::partition::Partition;
use crate::record_batch::record_batch;
use crate::reshape::Shapes;
use crate::rows::Rows;
use crate::table::{LakeTable, WATERMARK, table_name};

/// Rows that are written at a time.
const BATCH_ROWS: usize = 4_096;

/// How often in a row another program may be faster before a flush fails, to be tried again later.
const MOST_CONFLICTS: u32 = 3;

/// Writes the lake's tables.
pub(crate) struct Writer {
    pub(crate) context: Context,
    pub(crate) objects: Rc<dyn ObjectStore>,
    pub(crate) authority: Authority,
    pub(crate) index: Index,
    /// By name.
    pub(crate) tables: HashMap<String, LakeTable>,
    /// What was chosen for source tables.
    pub(crate) configuration: Configuration,
}

impl Writer {
    pub(crate) fn new(context: &Context, authority: Authority, index: Index) -> Result<Self, LakeError> {
        let configuration = Configuration::load(&index)?;
        let (context, objects, tables) = (context.clone(), context.objects(), HashMap::new());
        Ok(Self { context, objects, authority, index, tables, configuration })
    }

    /// Commits everything in the buffer. After an error some tables have it and others not; the next call goes on.
    pub(crate) async fn flush(&mut self, buffer: &Buffer) -> Result<(), LakeError> {
        self.resolve_pending().await?;
        // Of a table that is to stop; the others go on.
        let mut stopped = None;
        for (source, buffered) in buffer.tables.iter().filter(|(_, buffered)| !buffered.changes.is_empty()) {
            match self.flush_source(source, buffered).await {
                Err(error @ LakeError::Misfit { .. }) => stopped = stopped.or(Some(error)),
                outcome => outcome?,
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    /// Commits what is buffered of one source table.
    async fn flush_source(&mut self, source: &str, buffered: &TableBuffer) -> Result<(), LakeError> {
        let options = self.configuration.of(source);
        if let Some(misfit) = buffered.misfits.iter().find(|misfit| options.misfits == Misfits::Stop && !misfit.before)
        {
            return Err(buffered.refusal(source, *misfit));
        }
        let has_rows = buffered.changes.iter().any(|change| !matches!(change.action, Action::Reshape));
        if !options.mirror && has_rows {
            self.mirror_lacks_changes(source).await?;
        }
        let arrays: Vec<Vec<ArrayRef>> = buffered.rows.iter().map(Rows::arrays).collect();
        let batch = SourceBatch { source, buffered, arrays: &arrays, options: &options };
        for kind in [TableKind::Mirror, TableKind::Changes, TableKind::DeadLetters] {
            let name = table_name(source, kind);
            let mut conflicts = 0;
            while let Err(error) = self.flush_into(&name, kind, &batch).await {
                conflicts += 1;
                if conflicts > MOST_CONFLICTS || !matches!(error, LakeError::Conflict { .. }) {
                    return Err(error);
                }
                // Another program was faster. What was planned on top of an older snapshot is given up, and planned anew.
                tracing::info!(%error, "committing again");
                self.resolve_pending().await?;
            }
        }
        Ok(())
    }

    async fn flush_into(&mut self, name: &str, kind: TableKind, batch: &SourceBatch<'_>) -> Result<(), LakeError> {
        let is_on = match kind {
            TableKind::Mirror => batch.options.mirror,
            TableKind::Changes => batch.options.changes,
            TableKind::DeadLetters => batch.letters().next().is_some(),
        };
        // Dead letters keep no schema of the source's; a table that is off follows it.
        if !is_on && (kind == TableKind::DeadLetters || !batch.changes_schema()) {
            return Ok(());
        }
        // A table is cached only while its state is certain.
        let mut table = match self.open_existing(name).await? {
            Some(table) => table,
            None if is_on => self.create(name, kind, batch).await?,
            None => return Ok(()),
        };
        if is_on {
            self.flush_table(name, kind, &mut table, batch).await?;
        } else {
            self.flush_shape(name, &mut table, batch).await?;
        }
        self.tables.insert(name.to_owned(), table);
        Ok(())
    }

    async fn create(&self, name: &str, kind: TableKind, batch: &SourceBatch<'_>) -> Result<LakeTable, LakeError> {
        let (uuid, now_ms) = (self.new_uuid(), self.context.now_ms());
        let (location, layouts) = (self.authority.new_location(name), &batch.buffered.layouts);
        let metadata = LakeTable::new_metadata(&location, batch.source, kind, layouts, uuid, now_ms)?;
        let table = self.authority.create(name, metadata).await?;
        self.checked(name, table).await
    }

    /// Takes the schema changes into a table that is off, so that it is right when it is on again.
    async fn flush_shape(&self, name: &str, table: &mut LakeTable, batch: &SourceBatch<'_>) -> Result<(), LakeError> {
        let (mut changes, _) = news(table, &batch.buffered.changes);
        changes.retain(|number| batch.buffered.changes[*number].action.changes_schema());
        table.follow(batch.buffered, &changes, &[], batch.options)?;
        self.commit_shape(name, table).await
    }

    async fn commit_shape(&self, name: &str, table: &mut LakeTable) -> Result<(), LakeError> {
        if !table.reshaped && table.staged.is_none() {
            return Ok(());
        }
        let now_ms = self.context.now_ms();
        if !self.authority.is_shared() {
            return table.commit_shape(&self.authority, now_ms).await;
        }
        // A snapshot without files: a catalog can be told to refuse what does not follow a certain snapshot, but not what does not
        // follow certain properties, and such a commit that is late would bring old ones back.
        let known = self.index.table(name)?;
        let names = SnapshotNames { snapshot_id: self.new_snapshot_id(), uuid: self.new_uuid() };
        let prepare = || self.prepare(&known, table, names, NOT_INDEXED, Vec::new(), Vec::new());
        let Prepared { pending, .. } = self.index.transaction(prepare)?;
        let (data, deletes, watermarks, replaced) = (Vec::new(), Vec::new(), BTreeMap::new(), Replaced::default());
        let outbox = Outbox::default();
        table.commit(&self.authority, Commit { names, now_ms, data, deletes, watermarks, replaced, outbox }).await?;
        self.index.confirm(&pending)
    }

    async fn flush_table(
        &self,
        name: &str,
        kind: TableKind,
        table: &mut LakeTable,
        batch: &SourceBatch<'_>,
    ) -> Result<(), LakeError> {
        let buffered = batch.buffered;
        let (changes, watermarks) = news(table, &buffered.changes);
        if changes.is_empty() {
            return Ok(());
        }
        let shapes = match kind {
            TableKind::DeadLetters => Shapes::default(),
            TableKind::Mirror | TableKind::Changes => {
                let widen = if batch.options.misfits == Misfits::Widen { &buffered.misfits[..] } else { &[] };
                table.follow(buffered, &changes, widen, batch.options)?
            }
        };
        let is_row = |number: &usize| !matches!(buffered.changes[*number].action, Action::Reshape);
        if !changes.iter().any(is_row) {
            return self.commit_shape(name, table).await;
        }
        let known = self.index.table(name)?;
        let names = SnapshotNames { snapshot_id: self.new_snapshot_id(), uuid: self.new_uuid() };
        let images = Images { buffered, shapes: &shapes, arrays: batch.arrays };
        let arrangement = Arrangement { table, images: &images };
        let prepared = match kind {
            TableKind::Mirror => self.prepare_mirror(&known, &arrangement, names, &changes)?,
            TableKind::Changes => {
                let logged: Vec<ImageId> = changes.iter().flat_map(|number| images.of_change(*number)).collect();
                self.prepare_appends(&known, &arrangement, names, &logged)?
            }
            TableKind::DeadLetters => {
                let letters = batch.letters().filter(|letter| changes.binary_search(&letter.change).is_ok());
                let letters: Vec<ImageId> = letters.map(ImageId::letter).collect();
                let prepared = self.prepare_appends(&known, &arrangement, names, &letters)?;
                if prepared.data.is_empty() {
                    return self.index.take_back(&prepared.pending);
                }
                prepared
            }
        };
        let mut outbox = Outbox::default();
        let mut data = Vec::with_capacity(prepared.data.len());
        for file in &prepared.data {
            let file = self.data_file(table, batch.options, &images, file)?;
            data.push(outbox.put_file(&*self.objects, table, file).await?);
        }
        let mut deletes = Vec::with_capacity(prepared.deletes.len());
        for DeletesToWrite { partition, url, rows } in &prepared.deletes {
            let placement = Placement { url, partition, sort_order_id: None };
            let file = position_delete_file(rows, &placement, batch.options.files.codec)?;
            deletes.push(outbox.put_file(&*self.objects, table, file).await?);
        }
        let now_ms = self.context.now_ms();
        let commit = Commit { names, now_ms, data, deletes, watermarks, replaced: Replaced::default(), outbox };
        table.commit(&self.authority, commit).await?;
        self.index.confirm(&prepared.pending)
    }

    /// Plans what a flush does to a mirror, and makes the plan durable.
    fn prepare_mirror(
        &self,
        known: &KnownTable,
        arrangement: &Arrangement<'_>,
        names: SnapshotNames,
        changes: &[usize],
    ) -> Result<Prepared, LakeError> {
        let Arrangement { table, images } = *arrangement;
        let written: Vec<ImageId> = changes.iter().filter_map(|number| images.after(*number)).collect();
        let (partitions, found) = arrangement.partitions(&written)?;
        let mut of = vec![0; images.buffered.changes.len()];
        written.into_iter().zip(found).for_each(|(image, partition)| of[image.change as usize] = partition);
        let texts: Vec<String> =
            partitions.iter().map(|partition| table.partition_text(partition)).collect::<Result<_, _>>()?;
        self.index.transaction(|| {
            let layout = Layout {
                of: &of,
                partitions: &texts,
                new_url: &|partition| self.new_url(table, &partitions[partition]),
                sort: &|rows| arrangement.sort(rows),
            };
            let MirrorPlan { files, deletes, first_file } =
                Planner::new(&self.index, images.buffered, known, &layout)?.plan(changes)?;
            let data = files
                .into_iter()
                .map(|PlannedFile { partition, rows, url, .. }| {
                    let partition = partitions[partition].clone();
                    DataToWrite { partition, rows, url }
                })
                .collect();
            let deletes = deletes
                .into_iter()
                .map(|(text, rows)| {
                    let partition = table.partition_of_text(&text)?;
                    Ok(DeletesToWrite { url: self.new_url(table, &partition)?, partition, rows })
                })
                .collect::<Result<_, LakeError>>()?;
            self.prepare(known, table, names, first_file, data, deletes)
        })
    }

    /// Names what a flush adds to a table that only grows, durably.
    fn prepare_appends(
        &self,
        known: &KnownTable,
        arrangement: &Arrangement<'_>,
        names: SnapshotNames,
        images: &[ImageId],
    ) -> Result<Prepared, LakeError> {
        let table = arrangement.table;
        let (partitions, found) = arrangement.partitions(images)?;
        let mut data = Vec::with_capacity(partitions.len());
        for partition in partitions {
            data.push(DataToWrite { url: self.new_url(table, &partition)?, partition, rows: Vec::new() });
        }
        for (image, partition) in images.iter().zip(found) {
            data[partition as usize].rows.push(*image);
        }
        for file in &mut data {
            arrangement.sort(&mut file.rows)?;
        }
        self.index.transaction(|| self.prepare(known, table, names, NOT_INDEXED, data, Vec::new()))
    }

    fn prepare(
        &self,
        known: &KnownTable,
        table: &LakeTable,
        names: SnapshotNames,
        first_file: i64,
        data: Vec<DataToWrite>,
        deletes: Vec<DeletesToWrite>,
    ) -> Result<Prepared, LakeError> {
        let mut paths = names.paths(&table.directory, table.next().partition_specs_iter().len());
        for url in data.iter().map(|file| &file.url).chain(deletes.iter().map(|file| &file.url)) {
            paths.push(table.path_of(url)?);
        }
        let written: usize = data.iter().map(|file| file.rows.len()).sum();
        let deleted: usize = deletes.iter().map(|file| file.rows.len()).sum();
        let pending = Pending {
            table_id: known.id,
            table: known.name.clone(),
            snapshot_id: names.snapshot_id,
            version: (table.version + 1).cast_signed(),
            first_file,
            rows: written as i64 - deleted as i64,
            paths,
        };
        self.index.add_pending(&pending)?;
        Ok(Prepared { pending, data, deletes })
    }

    fn data_file(
        &self,
        table: &LakeTable,
        options: &TableOptions,
        images: &Images<'_>,
        file: &DataToWrite,
    ) -> Result<LakeFile, LakeError> {
        let form = self.file_form(table, &options.files, file.rows.len());
        let mut writer = DataFileWriter::new(&table.columns, form);
        for rows in file.rows.chunks(BATCH_ROWS) {
            writer.write(&record_batch(&table.columns, images, &images.shapes.shapes, rows)?)?;
        }
        let (url, partition) = (&file.url, &file.partition);
        writer.finish(&table.columns, &Placement { url, partition, sort_order_id: table.sort_order_id() })
    }

    /// How a data file of a table is written.
    pub(crate) fn file_form(&self, table: &LakeTable, options: &FileOptions, rows: usize) -> FileForm {
        let setting = self.context.settings().lake_parquet_row_group_size;
        let row_group_rows = usize::try_from(options.row_group_size.unwrap_or(setting)).unwrap_or(usize::MAX);
        let filtered = options.bloom_filters.iter().filter_map(|source| table.column_named(source));
        FileForm {
            codec: options.codec,
            row_group_rows,
            bloom_filters: filtered.map(|column| column.name.clone()).collect(),
            values: rows.min(row_group_rows) as u64,
            page_index: options.page_index,
            statistics: options.statistics,
        }
    }

    /// A URL for a new file of a partition.
    pub(crate) fn new_url(&self, table: &LakeTable, partition: &Partition) -> Result<String, LakeError> {
        let mut path = format!("{}/data/", table.directory);
        let within = table.partition_path(partition)?;
        if !within.is_empty() {
            path.push_str(&within);
            path.push('/');
        }
        Ok(table.url_of(&format!("{path}{}.parquet", self.new_uuid())))
    }

    pub(crate) fn new_uuid(&self) -> Uuid {
        let random = u128::from(self.context.random_u64()) << 64 | u128::from(self.context.random_u64());
        uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid()
    }

    /// Snapshot ids are positive.
    pub(crate) fn new_snapshot_id(&self) -> i64 {
        ((self.context.random_u64() >> 1).cast_signed()).max(1)
    }
}

/// What one flush has for one source table.
struct SourceBatch<'a> {
    source: &'a str,
    buffered: &'a TableBuffer,
    /// By layout, the columns of its rows.
    arrays: &'a [Vec<ArrayRef>],
    options: &'a TableOptions,
}

impl SourceBatch<'_> {
    fn changes_schema(&self) -> bool {
        self.buffered.changes.iter().any(|change| change.action.changes_schema())
    }

    /// The misfits that are to become dead letters: each once, when it is written.
    fn letters(&self) -> impl Iterator<Item = Misfit> {
        let are_wanted = self.options.misfits == Misfits::Null && (self.options.mirror || self.options.changes);
        self.buffered.misfits.iter().copied().filter(move |misfit| are_wanted && !misfit.before)
    }
}

/// Stands for the first data file of a table without an index.
pub(crate) const NOT_INDEXED: i64 = i64::MAX;

/// A commit that is durably planned.
struct Prepared {
    pending: Pending,
    data: Vec<DataToWrite>,
    deletes: Vec<DeletesToWrite>,
}

struct DataToWrite {
    partition: Partition,
    url: String,
    rows: Vec<ImageId>,
}

struct DeletesToWrite {
    partition: Partition,
    url: String,
    rows: Vec<(Arc<str>, i64)>,
}

/// The changes that the table has not taken in, by index, and the watermarks it will have with them.
fn news(table: &LakeTable, changes: &[Change]) -> (Vec<usize>, BTreeMap<String, u64>) {
    let known = table.watermarks();
    let mut shards: Vec<(&Rc<str>, u64, u64)> = Vec::new();
    let mut numbers = Vec::with_capacity(changes.len());
    for (number, change) in changes.iter().enumerate() {
        let place = shards.iter().position(|(shard, ..)| Rc::ptr_eq(shard, &change.shard)).unwrap_or_else(|| {
            let watermark = known.get(&format!("{WATERMARK}{}", change.shard));
            let watermark = watermark.and_then(|text| text.parse().ok()).unwrap_or(0);
            shards.push((&change.shard, watermark, watermark));
            shards.len() - 1
        });
        let (_, watermark, last) = &mut shards[place];
        let is_known = change.action.changes_schema() && table.forms.has(&change.shard, change.lsn);
        if change.lsn > *watermark && !is_known {
            *last = change.lsn.max(*last);
            numbers.push(number);
        }
    }
    (numbers, shards.into_iter().map(|(shard, _, last)| (shard.to_string(), last)).collect())
}
