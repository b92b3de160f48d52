//! What a flush changes in a mirror: which rows it writes, and which rows of earlier files it deletes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use dosql_proto::Row;

use crate::LakeError;
use crate::buffer::{Action, Change, TableBuffer};
use crate::index::{Index, Key, Keys, Position};
use crate::key::key;

/// A data file to be written, of rows committed on one day.
pub(crate) struct PlannedFile {
    pub(crate) id: i64,
    pub(crate) day: i32,
    pub(crate) url: String,
    /// Indexes of the changes whose after images it holds, in the order of its rows.
    pub(crate) rows: Vec<usize>,
}

/// The rows to write and to delete.
pub(crate) struct MirrorPlan {
    /// Files may be empty, when all their rows were overtaken within the flush.
    pub(crate) files: Vec<PlannedFile>,
    /// By day, rows of earlier files: their URL and position, in ascending order.
    pub(crate) deletes: BTreeMap<i32, Vec<(Arc<str>, i64)>>,
    pub(crate) first_file: i64,
}

/// Plans a flush by moving the index to what it will be afterwards. Runs within one transaction of the index's database.
pub(crate) struct Planner<'a> {
    index: &'a Index,
    buffer: &'a TableBuffer,
    table_id: i64,
    /// A URL for a new file of a day.
    new_url: &'a dyn Fn(i32) -> String,
    plan: MirrorPlan,
    shards: BTreeMap<Rc<str>, i64>,
    /// Earlier files that lose rows: their URL and day.
    earlier: HashMap<i64, (Arc<str>, i32)>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(
        index: &'a Index,
        buffer: &'a TableBuffer,
        table_id: i64,
        new_url: &'a dyn Fn(i32) -> String,
    ) -> Result<Self, LakeError> {
        let first_file = index.next_file()?;
        let plan = MirrorPlan { files: Vec::new(), deletes: BTreeMap::new(), first_file };
        Ok(Self { index, buffer, table_id, new_url, plan, shards: BTreeMap::new(), earlier: HashMap::new() })
    }

    /// Takes in the changes of these indexes, in order.
    pub(crate) fn plan(mut self, changes: impl Iterator<Item = usize>) -> Result<MirrorPlan, LakeError> {
        for number in changes {
            let change = &self.buffer.changes[number];
            let keys = self.keys(&change.shard)?;
            match &change.action {
                Action::Insert { after } => self.write(keys, &self.key(change, after), number)?,
                Action::Update { before, after } => {
                    let (old, new) = (self.key(change, before), self.key(change, after));
                    if old != new {
                        self.delete(keys, &old)?;
                    }
                    self.write(keys, &new, number)?;
                }
                Action::Delete { before } => self.delete(keys, &self.key(change, before))?,
                Action::Reshape => {}
                Action::Drop => loop {
                    let some = keys.some(1000)?;
                    if some.is_empty() {
                        break;
                    }
                    for key in &some {
                        self.delete(keys, key)?;
                    }
                },
            }
        }
        self.plan.deletes.values_mut().for_each(|rows| rows.sort_unstable());
        Ok(self.plan)
    }

    fn keys(&mut self, shard: &Rc<str>) -> Result<Keys<'a>, LakeError> {
        let shard_id = match self.shards.get(shard) {
            Some(id) => *id,
            None => {
                let id = self.index.shard_id(shard)?;
                self.shards.insert(Rc::clone(shard), id);
                id
            }
        };
        Ok(self.index.keys(self.table_id, shard_id))
    }

    fn key(&self, change: &Change, row: &Row) -> Key {
        key(&self.buffer.layouts[change.layout], change.rowid, row)
    }

    /// The key's row is now this change's after image.
    fn write(&mut self, keys: Keys<'_>, key: &Key, number: usize) -> Result<(), LakeError> {
        let place = self.file_of_day(self.buffer.changes[number].day())?;
        let file = &self.plan.files[place];
        let position = Position { file: file.id, row: file.rows.len() as i64 };
        if !keys.add(key, position)? {
            match keys.get(key)? {
                Some(old) if old.file == position.file => {
                    self.plan.files[place].rows[old.row as usize] = number;
                    return Ok(());
                }
                Some(old) => self.vacate(keys, key, old)?,
                None => {}
            }
            keys.set(key, position)?;
        }
        self.plan.files[place].rows.push(number);
        Ok(())
    }

    /// The key has no row any more.
    fn delete(&mut self, keys: Keys<'_>, key: &Key) -> Result<(), LakeError> {
        if let Some(old) = keys.get(key)? {
            keys.remove(key)?;
            self.vacate(keys, key, old)?;
        }
        Ok(())
    }

    /// The row at `old` is no longer the key's.
    fn vacate(&mut self, keys: Keys<'_>, key: &Key, old: Position) -> Result<(), LakeError> {
        if old.file < self.plan.first_file {
            keys.keep_for_undo(key, old)?;
            let (url, day) = match self.earlier.get(&old.file) {
                Some(file) => file.clone(),
                None => {
                    let file = self.index.file(old.file)?;
                    self.earlier.insert(old.file, file.clone());
                    file
                }
            };
            self.plan.deletes.entry(day).or_default().push((url, old.row));
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
            self.keys(&moved.shard)?.set(&key, old)?;
        }
        Ok(())
    }

    /// The place in the plan of the file for a day.
    fn file_of_day(&mut self, day: i32) -> Result<usize, LakeError> {
        if let Some(place) = self.plan.files.iter().position(|file| file.day == day) {
            return Ok(place);
        }
        let url = (self.new_url)(day);
        let id = self.index.add_file(self.table_id, &url, day)?;
        self.plan.files.push(PlannedFile { id, day, url, rows: Vec::new() });
        Ok(self.plan.files.len() - 1)
    }
}
