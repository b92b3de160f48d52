//! What a flush changes in a mirror: which rows it writes, and which rows of earlier files it deletes.
//!
//! What the flush does to each key is found out in the order of the keys, shard by shard: so the index is read and written in its
//! own order.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use crate::LakeError;
use crate::block::{BLOCK_ENTRIES, Entry};
use crate::buffer::{Action, Change, TableBuffer};
use crate::entries::Entries;
use crate::images::ImageId;
use crate::index::{Index, Key, KnownTable, Position};
use crate::key::key;
use crate::moved::Finder;

/// A data file to be written, of one partition.
pub(crate) struct PlannedFile {
    pub(crate) id: i64,
    /// Index into [`Layout::partitions`].
    pub(crate) partition: usize,
    pub(crate) url: String,
    /// The images it holds, in the order of its rows.
    pub(crate) rows: Vec<ImageId>,
}

/// The rows to write and to delete.
pub(crate) struct MirrorPlan {
    pub(crate) files: Vec<PlannedFile>,
    /// By partition, as the index keeps it, rows of earlier files: their URL and position, in ascending order.
    pub(crate) deletes: BTreeMap<Arc<str>, Vec<(Arc<str>, i64)>>,
    pub(crate) first_file: i64,
}

/// Where the rows of a flush go.
pub(crate) struct Layout<'a> {
    /// By change, the partition of its after image, as an index into `partitions`.
    pub(crate) of: &'a [u32],
    /// As the index keeps them.
    pub(crate) partitions: &'a [String],
    /// A URL for a new file of a partition.
    pub(crate) new_url: &'a dyn Fn(usize) -> Result<String, LakeError>,
    /// Puts images into the order that their rows have in a file.
    pub(crate) sort: &'a dyn Fn(&mut Vec<ImageId>) -> Result<(), LakeError>,
}

/// What a shard's changes do.
struct ShardPlan {
    name: Rc<str>,
    /// The number that stands for it in the index.
    id: i64,
    /// Whether it has dropped the table before `touched`.
    is_dropped: bool,
    touched: Vec<Touched>,
}

/// A key that changes write or delete.
struct Touched {
    key: Key,
    /// The last change that does.
    change: u32,
    /// Whether that one writes the key's row.
    is_written: bool,
    /// Whether the first one takes the key to have no row. Then whether it has none is looked up for many keys at once.
    is_new: bool,
    /// Whether the index has an entry of it.
    is_known: bool,
}

/// Stands for a row that is not written.
const NO_ROW: u32 = u32::MAX;

/// Plans a flush by moving the index to what it will be afterwards. Runs within one transaction of the index's database.
pub(crate) struct Planner<'a> {
    index: &'a Index,
    table_id: i64,
    entries: Entries<'a>,
    buffer: &'a TableBuffer,
    layout: &'a Layout<'a>,
    plan: MirrorPlan,
    /// Earlier files that lose rows: their URL and partition.
    earlier: HashMap<i64, (Arc<str>, Arc<str>)>,
    finder: Finder<'a>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(
        index: &'a Index,
        buffer: &'a TableBuffer,
        known: &'a KnownTable,
        layout: &'a Layout<'a>,
    ) -> Result<Self, LakeError> {
        let first_file = index.next_file()?;
        let plan = MirrorPlan { files: Vec::new(), deletes: BTreeMap::new(), first_file };
        Ok(Self {
            index,
            table_id: known.id,
            entries: index.entries(known.id)?,
            buffer,
            layout,
            plan,
            earlier: HashMap::new(),
            finder: Finder::new(index, &known.name),
        })
    }

    /// Takes in the changes of these indexes, in order.
    pub(crate) fn plan(mut self, changes: &[usize]) -> Result<MirrorPlan, LakeError> {
        let mut shards = self.shards(changes)?;
        for shard in &mut shards {
            // The last of what happens to a key counts, and the first tells what was before.
            shard.touched.sort_by(|one, other| one.key.cmp(&other.key));
            shard.touched.dedup_by(|later, first| {
                let is_same = later.key == first.key;
                if is_same {
                    (first.change, first.is_written) = (later.change, later.is_written);
                }
                is_same
            });
            self.vacate(shard)?;
        }
        let rows = self.rows(&shards)?;
        for shard in shards {
            self.move_index(shard, &rows)?;
        }
        self.plan.deletes.values_mut().for_each(|rows| rows.sort_unstable());
        self.entries.finish()?;
        Ok(self.plan)
    }

    /// What the changes do to which keys, in their order.
    fn shards(&self, changes: &[usize]) -> Result<Vec<ShardPlan>, LakeError> {
        let mut shards: Vec<ShardPlan> = Vec::new();
        let mut place = 0;
        for number in changes {
            let change = &self.buffer.changes[*number];
            if shards.get(place).is_none_or(|shard| !Rc::ptr_eq(&shard.name, &change.shard)) {
                place = match shards.iter().position(|shard| Rc::ptr_eq(&shard.name, &change.shard)) {
                    Some(place) => place,
                    None => {
                        let (name, id) = (Rc::clone(&change.shard), self.index.shard_id(&change.shard)?);
                        shards.push(ShardPlan { name, id, is_dropped: false, touched: Vec::new() });
                        shards.len() - 1
                    }
                };
            }
            let shard = &mut shards[place];
            let mut touch = |key: Key, is_written: bool, is_new: bool| {
                let change = *number as u32;
                shard.touched.push(Touched { key, change, is_written, is_new, is_known: false });
            };
            match change.action {
                Action::Insert { after } => touch(self.key(change, after), true, true),
                Action::Update { before, after } => {
                    let (old, new) = (self.key(change, before), self.key(change, after));
                    let is_new = old != new;
                    if is_new {
                        touch(old, false, false);
                    }
                    touch(new, true, is_new);
                }
                Action::Delete { before } => touch(self.key(change, before), false, false),
                Action::Reshape => {}
                Action::Drop => {
                    shard.is_dropped = true;
                    shard.touched.clear();
                }
            }
        }
        Ok(shards)
    }

    fn key(&self, change: &Change, image: u32) -> Key {
        key(&self.buffer.layouts[change.layout], change.rowid, self.buffer.row(change, image))
    }

    /// Deletes the rows that the keys had.
    fn vacate(&mut self, shard: &mut ShardPlan) -> Result<(), LakeError> {
        if shard.is_dropped {
            loop {
                let taken = self.entries.take_some(shard.id, 1000)?;
                if taken.is_empty() {
                    return Ok(());
                }
                for (key, position) in &taken {
                    self.delete(shard.id, key, *position)?;
                }
            }
        }
        let new: Vec<u32> = (0..).zip(&shard.touched).filter(|(_, key)| key.is_new).map(|(place, _)| place).collect();
        let mut looked_up: Vec<u32> = Vec::new();
        for places in new.chunks(BLOCK_ENTRIES) {
            let key = |place: &u32| &shard.touched[*place as usize].key;
            if let (Some(first), Some(last)) = (places.first(), places.last())
                && !self.entries.is_free(shard.id, key(first), key(last))?
            {
                looked_up.extend_from_slice(places);
            }
        }
        let mut looked_up = looked_up.into_iter().peekable();
        for (place, touched) in (0..).zip(&mut shard.touched) {
            if touched.is_new && looked_up.next_if_eq(&place).is_none() {
                continue;
            }
            if let Some(position) = self.entries.get(shard.id, &touched.key)? {
                touched.is_known = true;
                self.delete(shard.id, &touched.key, position)?;
            }
        }
        Ok(())
    }

    /// The committed row at `position` is no longer the key's.
    fn delete(&mut self, shard: i64, key: &Key, position: Position) -> Result<(), LakeError> {
        self.entries.keep_for_undo(shard, key, position)?;
        let position = self.finder.find(position)?;
        let (url, partition) = match self.earlier.get(&position.file) {
            Some(file) => file.clone(),
            None => {
                let file = self.index.file(position.file)?;
                self.earlier.insert(position.file, file.clone());
                file
            }
        };
        self.plan.deletes.entry(partition).or_default().push((url, position.row));
        Ok(())
    }

    /// Plans the files; returns each written change's row in the file of its partition.
    fn rows(&mut self, shards: &[ShardPlan]) -> Result<Vec<u32>, LakeError> {
        let mut rows = vec![NO_ROW; self.buffer.changes.len()];
        let touched = shards.iter().flat_map(|shard| &shard.touched);
        touched.filter(|touched| touched.is_written).for_each(|touched| rows[touched.change as usize] = 0);
        for (change, partition) in (0_u32..).zip(self.layout.of).filter(|(change, _)| rows[*change as usize] != NO_ROW)
        {
            let place = self.file_of(*partition as usize)?;
            self.plan.files[place].rows.push(ImageId::after(change));
        }
        for file in &mut self.plan.files {
            (self.layout.sort)(&mut file.rows)?;
            (0..).zip(&file.rows).for_each(|(row, image)| rows[image.change as usize] = row);
        }
        Ok(rows)
    }

    /// The place in the plan of the file for a partition.
    fn file_of(&mut self, partition: usize) -> Result<usize, LakeError> {
        if let Some(place) = self.plan.files.iter().position(|file| file.partition == partition) {
            return Ok(place);
        }
        let url = (self.layout.new_url)(partition)?;
        let id = self.index.add_file(self.table_id, &url, &self.layout.partitions[partition])?;
        self.plan.files.push(PlannedFile { id, partition, url, rows: Vec::new() });
        Ok(self.plan.files.len() - 1)
    }

    /// Has the index say where the keys' rows are now.
    fn move_index(&mut self, shard: ShardPlan, rows: &[u32]) -> Result<(), LakeError> {
        let mut files: Vec<i64> = vec![0; self.layout.partitions.len()];
        self.plan.files.iter().for_each(|file| files[file.partition] = file.id);
        let mut added: Vec<Entry> = Vec::with_capacity(BLOCK_ENTRIES);
        for Touched { key, change, is_written, is_known, .. } in shard.touched {
            let change = change as usize;
            match (is_written, is_known) {
                (true, known) => {
                    let position =
                        Position { file: files[self.layout.of[change] as usize], row: i64::from(rows[change]) };
                    if known {
                        self.entries.set(shard.id, &key, position)?;
                        continue;
                    }
                    added.push((key, position));
                    if added.len() == BLOCK_ENTRIES {
                        self.entries.add(shard.id, &added)?;
                        added.clear();
                    }
                }
                (false, true) => self.entries.remove(shard.id, &key)?,
                (false, false) => {}
            }
        }
        self.entries.add(shard.id, &added)
    }
}
