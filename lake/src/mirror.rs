//! What a flush changes in a mirror: which rows it writes, and which rows of earlier files it deletes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use dosql_proto::Row;

use crate::LakeError;
use crate::buffer::{Action, Change, TableBuffer};
use crate::index::{Index, Key, Keys, KnownTable, Position};
use crate::key::key;
use crate::moved::Finder;

/// A data file to be written, of one partition.
pub(crate) struct PlannedFile {
    pub(crate) id: i64,
    /// Index into [`Layout::partitions`].
    pub(crate) partition: usize,
    pub(crate) url: String,
    /// Indexes of the changes whose after images it holds, in the order of its rows.
    pub(crate) rows: Vec<usize>,
}

/// The rows to write and to delete.
pub(crate) struct MirrorPlan {
    /// Files may be empty, when all their rows were overtaken within the flush.
    pub(crate) files: Vec<PlannedFile>,
    /// By partition, as the index keeps it, rows of earlier files: their URL and position, in ascending order.
    pub(crate) deletes: BTreeMap<Arc<str>, Vec<(Arc<str>, i64)>>,
    pub(crate) first_file: i64,
}

/// Where the rows of a flush go.
pub(crate) struct Layout<'a> {
    /// By change, the partition of its after image, as an index into `partitions`.
    pub(crate) of: &'a [usize],
    /// As the index keeps them.
    pub(crate) partitions: &'a [String],
    /// A URL for a new file of a partition.
    pub(crate) new_url: &'a dyn Fn(usize) -> Result<String, LakeError>,
    /// Puts changes into the order that their rows have in a file.
    pub(crate) sort: &'a dyn Fn(&mut Vec<usize>) -> Result<(), LakeError>,
}

/// Plans a flush by moving the index to what it will be afterwards. Runs within one transaction of the index's database.
pub(crate) struct Planner<'a> {
    index: &'a Index,
    table_id: i64,
    keys: Keys<'a>,
    buffer: &'a TableBuffer,
    layout: &'a Layout<'a>,
    plan: MirrorPlan,
    shards: BTreeMap<Rc<str>, i64>,
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
            keys: index.keys(known.id)?,
            buffer,
            layout,
            plan,
            shards: BTreeMap::new(),
            earlier: HashMap::new(),
            finder: Finder::new(index, &known.name),
        })
    }

    /// Takes in the changes of these indexes, in order.
    pub(crate) fn plan(mut self, changes: impl Iterator<Item = usize>) -> Result<MirrorPlan, LakeError> {
        for number in changes {
            let change = &self.buffer.changes[number];
            let shard = self.shard(&change.shard)?;
            match &change.action {
                Action::Insert { after } => self.write(shard, &self.key(change, after), number, true)?,
                Action::Update { before, after } => {
                    let (old, new) = (self.key(change, before), self.key(change, after));
                    if old != new {
                        self.delete(shard, &old)?;
                    }
                    self.write(shard, &new, number, old != new)?;
                }
                Action::Delete { before } => self.delete(shard, &self.key(change, before))?,
                Action::Reshape => {}
                Action::Drop => loop {
                    let some = self.keys.some(shard, 1000)?;
                    if some.is_empty() {
                        break;
                    }
                    for key in &some {
                        self.delete(shard, key)?;
                    }
                },
            }
        }
        self.plan.deletes.values_mut().for_each(|rows| rows.sort_unstable());
        self.sort()?;
        Ok(self.plan)
    }

    /// Puts the files' rows into their order, and tells the index.
    fn sort(&mut self) -> Result<(), LakeError> {
        for place in 0..self.plan.files.len() {
            let file = &mut self.plan.files[place];
            let (id, before) = (file.id, file.rows.clone());
            (self.layout.sort)(&mut file.rows)?;
            let after = file.rows.clone();
            for (row, number) in (0_i64..).zip(&after).filter(|(row, number)| before[*row as usize] != **number) {
                let change = &self.buffer.changes[*number];
                if let Action::Insert { after } | Action::Update { after, .. } = &change.action {
                    let key = self.key(change, after);
                    let shard = self.shard(&change.shard)?;
                    self.keys.set(shard, &key, Position { file: id, row })?;
                }
            }
        }
        Ok(())
    }

    /// The number that stands for a shard in the index.
    fn shard(&mut self, shard: &Rc<str>) -> Result<i64, LakeError> {
        if let Some(id) = self.shards.get(shard) {
            return Ok(*id);
        }
        let id = self.index.shard_id(shard)?;
        self.shards.insert(Rc::clone(shard), id);
        Ok(id)
    }

    fn key(&self, change: &Change, row: &Row) -> Key {
        key(&self.buffer.layouts[change.layout], change.rowid, row)
    }

    /// The key's row is now this change's after image. `is_new` says that the key has had no row, most likely.
    fn write(&mut self, shard: i64, key: &Key, number: usize, is_new: bool) -> Result<(), LakeError> {
        let place = self.file_of(self.layout.of[number])?;
        let file = &self.plan.files[place];
        let position = Position { file: file.id, row: file.rows.len() as i64 };
        if !(is_new && self.keys.add(shard, key, position)?) {
            match self.keys.get(shard, key)? {
                Some(old) if old.file == position.file => {
                    self.plan.files[place].rows[old.row as usize] = number;
                    return Ok(());
                }
                Some(old) => {
                    self.vacate(shard, key, old)?;
                    self.keys.set(shard, key, position)?;
                }
                None => {
                    self.keys.add(shard, key, position)?;
                }
            }
        }
        self.plan.files[place].rows.push(number);
        Ok(())
    }

    /// The key has no row any more.
    fn delete(&mut self, shard: i64, key: &Key) -> Result<(), LakeError> {
        if let Some(old) = self.keys.get(shard, key)? {
            self.keys.remove(shard, key)?;
            self.vacate(shard, key, old)?;
        }
        Ok(())
    }

    /// The row at `old` is no longer the key's.
    fn vacate(&mut self, shard: i64, key: &Key, old: Position) -> Result<(), LakeError> {
        if old.file < self.plan.first_file {
            self.keys.keep_for_undo(shard, key, old)?;
            let old = self.finder.find(old)?;
            let (url, partition) = match self.earlier.get(&old.file) {
                Some(file) => file.clone(),
                None => {
                    let file = self.index.file(old.file)?;
                    self.earlier.insert(old.file, file.clone());
                    file
                }
            };
            self.plan.deletes.entry(partition).or_default().push((url, old.row));
            return Ok(());
        }
        // A row of this flush: the file's last row takes its place.
        let Some(file) = self.plan.files.iter_mut().find(|file| file.id == old.file) else { return Ok(()) };
        let Some(last) = file.rows.pop() else { return Ok(()) };
        let row = old.row as usize;
        if row == file.rows.len() {
            return Ok(());
        }
        file.rows[row] = last;
        let moved = &self.buffer.changes[last];
        if let Action::Insert { after } | Action::Update { after, .. } = &moved.action {
            let key = self.key(moved, after);
            let shard = self.shard(&moved.shard)?;
            self.keys.set(shard, &key, old)?;
        }
        Ok(())
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
}
