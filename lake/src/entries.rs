//! The index from keys to rows, of one table.
//!
//! New entries whose keys are neighbours are packed into blocks (`block.rs`), as those of keys that ascend are; all others are
//! rows of SQLite. No two blocks of a shard overlap, and an entry stands in one place only: when its row moves, it leaves its
//! block and becomes a row of SQLite. So a lookup reads one row and one block at most. The entries of a block were all added by
//! one commit.

use std::collections::HashSet;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use crate::LakeError;
use crate::block::{BLOCK_ENTRIES, Entry, decoded, encoded};
use crate::index::{Key, Position};

/// What is packed at least.
const FEWEST_ENTRIES: usize = 2;

/// The entries of one table. Its statements are used for every row, so they are prepared once.
///
/// Cheap where keys are asked for in ascending order, shard by shard. What it has changed is complete after
/// [`finish`](Self::finish) only.
pub(crate) struct Entries<'a> {
    table_id: i64,
    /// Where keys were last looked for among the blocks.
    window: Option<Window>,
    add: CachedStatement<'a>,
    set: CachedStatement<'a>,
    get: CachedStatement<'a>,
    remove: CachedStatement<'a>,
    any: CachedStatement<'a>,
    some: CachedStatement<'a>,
    block: CachedStatement<'a>,
    any_block: CachedStatement<'a>,
    block_end: CachedStatement<'a>,
    next_block: CachedStatement<'a>,
    add_block: CachedStatement<'a>,
    set_block: CachedStatement<'a>,
    remove_block: CachedStatement<'a>,
    files: CachedStatement<'a>,
    blocks: CachedStatement<'a>,
    move_to: CachedStatement<'a>,
    keep: CachedStatement<'a>,
}

/// The keys of a shard from those of one block up to those of the next.
struct Window {
    shard_id: i64,
    /// `None`: from the lowest on.
    from: Option<Key>,
    /// The first that is beyond; `None`: up to the highest.
    to: Option<Key>,
    block: Option<Block>,
}

/// A block in memory.
struct Block {
    id: i64,
    entries: Vec<Entry>,
    is_changed: bool,
}

impl Block {
    /// Of a row that begins with a block's number and entries.
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let id = row.get(0)?;
        let entries = decoded(row.get_ref(1)?.as_bytes()?).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, id))?;
        Ok(Self { id, entries, is_changed: false })
    }
}

impl Window {
    fn covers(&self, shard_id: i64, key: &Key) -> bool {
        self.shard_id == shard_id
            && self.from.as_ref().is_none_or(|from| from <= key)
            && self.to.as_ref().is_none_or(|to| key < to)
    }
}

impl<'a> Entries<'a> {
    pub(crate) fn new(database: &'a Connection, table_id: i64) -> Result<Self, LakeError> {
        let prepare = |sql: &str| database.prepare_cached(sql);
        Ok(Self {
            table_id,
            window: None,
            add: prepare(
                "INSERT INTO _dosql_index (table_id, shard_id, key, file, position) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            set: prepare("INSERT OR REPLACE INTO _dosql_index VALUES (?1, ?2, ?3, ?4, ?5)")?,
            get: prepare("SELECT file, position FROM _dosql_index WHERE table_id = ?1 AND shard_id = ?2 AND key = ?3")?,
            remove: prepare("DELETE FROM _dosql_index WHERE table_id = ?1 AND shard_id = ?2 AND key = ?3")?,
            any: prepare(
                "SELECT 1 FROM _dosql_index WHERE table_id = ?1 AND shard_id = ?2 AND key BETWEEN ?3 AND ?4 LIMIT 1",
            )?,
            some: prepare(
                "SELECT key, file, position FROM _dosql_index WHERE table_id = ?1 AND shard_id = ?2 LIMIT ?3",
            )?,
            block: prepare(
                "SELECT id, entries, first FROM _dosql_blocks WHERE table_id = ?1 AND shard_id = ?2 AND first <= ?3
                 ORDER BY first DESC LIMIT 1",
            )?,
            any_block: prepare("SELECT id, entries FROM _dosql_blocks WHERE table_id = ?1 AND shard_id = ?2 LIMIT 1")?,
            block_end: prepare(
                "SELECT last FROM _dosql_blocks WHERE table_id = ?1 AND shard_id = ?2 AND first <= ?3
                 ORDER BY first DESC LIMIT 1",
            )?,
            next_block: prepare(
                "SELECT first FROM _dosql_blocks WHERE table_id = ?1 AND shard_id = ?2 AND first > ?3
                 ORDER BY first LIMIT 1",
            )?,
            add_block: prepare(
                "INSERT INTO _dosql_blocks (table_id, shard_id, first, last, file, entries)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            set_block: prepare("UPDATE _dosql_blocks SET first = ?2, last = ?3, entries = ?4 WHERE id = ?1")?,
            remove_block: prepare("DELETE FROM _dosql_blocks WHERE id = ?1")?,
            files: prepare("SELECT DISTINCT file FROM _dosql_index WHERE table_id = ?1")?,
            blocks: prepare("SELECT id, entries FROM _dosql_blocks WHERE table_id = ?1")?,
            move_to: prepare(
                "INSERT INTO _dosql_moves (table_id, shard_id, key, file, position) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            keep: prepare(
                "INSERT INTO _dosql_undo (table_id, shard_id, key, file, position) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
        })
    }

    /// Where a key's row stands, or stood before compaction moved it.
    pub(crate) fn get(&mut self, shard_id: i64, key: &Key) -> Result<Option<Position>, LakeError> {
        if let Some((block, place)) = self.packed(shard_id, key)? {
            return Ok(Some(block.entries[place].1));
        }
        let position = |row: &Row<'_>| Ok(Position { file: row.get(0)?, row: row.get(1)? });
        Ok(self.get.query_row(params![self.table_id, shard_id, key], position).optional()?)
    }

    /// Sets where the row of a key stands that has an entry.
    pub(crate) fn set(&mut self, shard_id: i64, key: &Key, position: Position) -> Result<(), LakeError> {
        self.unpack(shard_id, key)?;
        self.set.execute(params![self.table_id, shard_id, key, position.file, position.row])?;
        Ok(())
    }

    /// Removes a key that has an entry.
    pub(crate) fn remove(&mut self, shard_id: i64, key: &Key) -> Result<(), LakeError> {
        if !self.unpack(shard_id, key)? {
            self.remove.execute(params![self.table_id, shard_id, key])?;
        }
        Ok(())
    }

    /// Whether no key from `first` to `last` has an entry.
    pub(crate) fn is_free(&mut self, shard_id: i64, first: &Key, last: &Key) -> Result<bool, LakeError> {
        let has_rows = self.any.exists(params![self.table_id, shard_id, first, last])?;
        Ok(!has_rows && !self.reaches_a_block(shard_id, first, last)?)
    }

    /// The first of these entries, which are in the order of their keys, whose key has an entry already, or another of these.
    pub(crate) fn first_known<'b>(&mut self, shard_id: i64, new: &'b [Entry]) -> Result<Option<&'b Entry>, LakeError> {
        if let Some(pair) = new.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Ok(Some(&pair[1]));
        }
        for entries in new.chunks(BLOCK_ENTRIES) {
            if let [(first, _), ..] = entries
                && let [.., (last, _)] = entries
                && self.is_free(shard_id, first, last)?
            {
                continue;
            }
            for entry in entries {
                if self.get(shard_id, &entry.0)?.is_some() {
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }

    /// The files that entries name, having read all of them.
    pub(crate) fn files(&mut self) -> Result<HashSet<i64>, LakeError> {
        let rows = self.files.query_map([self.table_id], |row| row.get(0))?;
        let mut files: HashSet<i64> = rows.collect::<Result<_, _>>()?;
        let mut blocks = self.blocks.query([self.table_id])?;
        while let Some(row) = blocks.next()? {
            files.extend(Block::read(row)?.entries.iter().map(|(_, position)| position.file));
        }
        Ok(files)
    }

    /// Adds keys, in ascending order, that have no entries.
    pub(crate) fn add(&mut self, shard_id: i64, entries: &[Entry]) -> Result<(), LakeError> {
        self.close()?;
        for entries in entries.chunks(BLOCK_ENTRIES) {
            if let [(first, Position { file, .. }), .., (last, _)] = entries
                && entries.len() >= FEWEST_ENTRIES
                && !self.reaches_a_block(shard_id, first, last)?
            {
                let blob = encoded(entries);
                self.add_block.execute(params![self.table_id, shard_id, first, last, file, blob])?;
                continue;
            }
            for (key, position) in entries {
                self.add.execute(params![self.table_id, shard_id, key, position.file, position.row])?;
            }
        }
        Ok(())
    }

    /// Removes some of a shard's entries and returns them; none where there are none left.
    pub(crate) fn take_some(&mut self, shard_id: i64, limit: u32) -> Result<Vec<Entry>, LakeError> {
        self.close()?;
        let rows = self.some.query_map(params![self.table_id, shard_id, limit], |row| {
            Ok((Key::read(row, 0)?, Position { file: row.get(1)?, row: row.get(2)? }))
        })?;
        let taken: Vec<Entry> = rows.collect::<Result<_, _>>()?;
        for (key, _) in &taken {
            self.remove.execute(params![self.table_id, shard_id, key])?;
        }
        if !taken.is_empty() {
            return Ok(taken);
        }
        let Some(block) = self.any_block.query_row(params![self.table_id, shard_id], Block::read).optional()? else {
            return Ok(taken);
        };
        self.remove_block.execute([block.id])?;
        Ok(block.entries)
    }

    /// Notes where a row will stand after the pending commit.
    pub(crate) fn move_to(&mut self, shard_id: i64, key: &Key, position: Position) -> Result<(), LakeError> {
        self.move_to.execute(params![self.table_id, shard_id, key, position.file, position.row])?;
        Ok(())
    }

    /// Keeps the place that a committed row had, for [`Index::take_back`](crate::index::Index::take_back).
    pub(crate) fn keep_for_undo(&mut self, shard_id: i64, key: &Key, position: Position) -> Result<(), LakeError> {
        self.keep.execute(params![self.table_id, shard_id, key, position.file, position.row])?;
        Ok(())
    }

    /// Stores what is still in memory.
    pub(crate) fn finish(mut self) -> Result<(), LakeError> {
        self.close()
    }

    /// Takes a key out of its block; says whether it was in one.
    pub(crate) fn unpack(&mut self, shard_id: i64, key: &Key) -> Result<bool, LakeError> {
        let Some((block, place)) = self.packed(shard_id, key)? else { return Ok(false) };
        block.entries.remove(place);
        block.is_changed = true;
        Ok(true)
    }

    /// The block that has a key, and its place there.
    fn packed(&mut self, shard_id: i64, key: &Key) -> Result<Option<(&mut Block, usize)>, LakeError> {
        if !self.window.as_ref().is_some_and(|window| window.covers(shard_id, key)) {
            self.turn_to(shard_id, key)?;
        }
        let Some(block) = self.window.as_mut().and_then(|window| window.block.as_mut()) else { return Ok(None) };
        let place = block.entries.binary_search_by(|(known, _)| known.cmp(key)).ok();
        Ok(place.map(|place| (block, place)))
    }

    /// Has the window cover a key.
    fn turn_to(&mut self, shard_id: i64, key: &Key) -> Result<(), LakeError> {
        self.close()?;
        let values = params![self.table_id, shard_id, key];
        let found = self.block.query_row(values, |row| Ok((Key::read(row, 2)?, Block::read(row)?)));
        let (from, block) = found.optional()?.unzip();
        let to = self.next_block.query_row(values, |row| Key::read(row, 0)).optional()?;
        self.window = Some(Window { shard_id, from, to, block });
        Ok(())
    }

    /// Stores the block in memory where it has changed.
    fn close(&mut self) -> Result<(), LakeError> {
        let Some(block) = self.window.take().and_then(|window| window.block) else { return Ok(()) };
        match block.entries.as_slice() {
            _ if !block.is_changed => {}
            [] => {
                self.remove_block.execute([block.id])?;
            }
            entries @ ([(first, _)] | [(first, _), ..]) => {
                let last = entries.last().map_or(first, |(last, _)| last);
                self.set_block.execute(params![block.id, first, last, encoded(entries)])?;
            }
        }
        Ok(())
    }

    /// Whether some block has keys from `first` to `last`, or could have.
    fn reaches_a_block(&mut self, shard_id: i64, first: &Key, last: &Key) -> Result<bool, LakeError> {
        let values = params![self.table_id, shard_id, last];
        let end = self.block_end.query_row(values, |row| Key::read(row, 0)).optional()?;
        Ok(end.is_some_and(|end| end >= *first))
    }
}

#[cfg(test)]
#[path = "entries_tests.rs"]
mod tests;
