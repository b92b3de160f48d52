//! Sequences: numbers that are given out once, in blocks that are written down before the first of them is given out.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};
use rusqlite::{Connection, OptionalExtension};

use super::Catalog;
use crate::vschema::{AutoIncrement, SequenceEntry, TableEntry, VSchema};

pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _dosql_sequences (name TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_generated (
  request_id TEXT PRIMARY KEY, first INTEGER NOT NULL, since_ms INTEGER NOT NULL
) WITHOUT ROWID;
";

/// How long it is remembered which numbers a request was given, in milliseconds: a day, within which it may be sent again.
const REMEMBERED_MS: u64 = 86_400_000;

/// The blocks in memory, by the sequences' names in lower case.
#[derive(Debug, Default)]
pub(super) struct Blocks(RefCell<BTreeMap<String, Block>>);

/// Numbers that may be given out: from `next` to below `end`.
#[derive(Debug, Clone, Copy)]
struct Block {
    next: i64,
    end: i64,
}

/// The tables with a column whose values a sequence gives, by their names in lower case.
pub(super) fn increments(vschema: &VSchema) -> BTreeMap<String, AutoIncrement> {
    vschema
        .tables
        .iter()
        .filter_map(|(name, entry)| match entry {
            TableEntry::Sharded { auto_increment: Some(increment), .. } => {
                Some((name.to_ascii_lowercase(), increment.clone()))
            }
            _ => None,
        })
        .collect()
}

impl Catalog {
    /// Takes `count` numbers that follow one another; the first of them.
    ///
    /// # Errors
    /// `STORAGE` where a new block cannot be written down; `CONSTRAINT` where there are no numbers left.
    pub(crate) fn take_numbers(&self, sequence: &str, count: usize) -> Result<i64, Error> {
        let entry = self.sequence(sequence)?;
        let count = i64::try_from(count).map_err(|_| exhausted(sequence))?;
        let mut blocks = self.blocks.0.borrow_mut();
        let block = self.block(&mut blocks, sequence, &entry)?;
        let first = block.next;
        let after = first.checked_add(count).ok_or_else(|| exhausted(sequence))?;
        if after > block.end {
            block.end = self.reserve(sequence, after, &entry)?;
        }
        block.next = after;
        Ok(first)
    }

    /// The numbers that a request was given before, or new ones. Requests without an id of their own are given new ones.
    ///
    /// # Errors
    /// As [`take_numbers`](Self::take_numbers).
    pub(crate) fn numbers_for(&self, sequence: &str, count: usize, request: Option<(&str, u64)>) -> Result<i64, Error> {
        let Some((request_id, now_ms)) = request else { return self.take_numbers(sequence, count) };
        let known: Option<i64> = self
            .storage
            .query_row("SELECT first FROM _dosql_generated WHERE request_id = ?1", [request_id], |row| row.get(0))
            .optional()
            .map_err(sql_error)?;
        if let Some(first) = known {
            return Ok(first);
        }
        let first = self.take_numbers(sequence, count)?;
        let remember = || -> rusqlite::Result<()> {
            let transaction = self.storage.unchecked_transaction()?;
            let forgotten = now_ms.saturating_sub(REMEMBERED_MS) as i64;
            transaction.prepare_cached("DELETE FROM _dosql_generated WHERE since_ms < ?1")?.execute([forgotten])?;
            transaction.prepare_cached("INSERT INTO _dosql_generated VALUES (?1, ?2, ?3)")?.execute((
                request_id,
                first,
                now_ms as i64,
            ))?;
            transaction.commit()
        };
        remember().map_err(sql_error)?;
        Ok(first)
    }

    /// Has a sequence go on after a number that was used otherwise.
    ///
    /// # Errors
    /// `STORAGE` where that cannot be written down.
    pub(crate) fn pass_number(&self, sequence: &str, number: i64) -> Result<(), Error> {
        let entry = self.sequence(sequence)?;
        let mut blocks = self.blocks.0.borrow_mut();
        let block = self.block(&mut blocks, sequence, &entry)?;
        if number < block.next {
            return Ok(());
        }
        // After the highest number there is none: the next one to be asked for is refused.
        let next = number.saturating_add(1);
        if next > block.end {
            block.end = self.reserve(sequence, next, &entry)?;
        }
        block.next = next;
        Ok(())
    }

    fn sequence(&self, name: &str) -> Result<SequenceEntry, Error> {
        let sequences = &self.version.vschema.sequences;
        let found = sequences.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found
            .map(|(_, entry)| entry.clone())
            .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("there is no sequence {name}")))
    }

    fn block<'a>(
        &self,
        blocks: &'a mut BTreeMap<String, Block>,
        name: &str,
        entry: &SequenceEntry,
    ) -> Result<&'a mut Block, Error> {
        let key = name.to_ascii_lowercase();
        if !blocks.contains_key(&key) {
            let next = stored(&self.storage, &key).map_err(sql_error)?.unwrap_or(entry.start);
            blocks.insert(key.clone(), Block { next, end: next });
        }
        blocks.get_mut(&key).ok_or_else(|| Error::internal("a sequence's block vanished"))
    }

    /// Writes down that numbers below the returned one, which is at least `end`, may have been given out.
    fn reserve(&self, name: &str, end: i64, entry: &SequenceEntry) -> Result<i64, Error> {
        let end = end.saturating_add(i64::from(entry.cache));
        self.storage
            .execute(
                "INSERT INTO _dosql_sequences VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET next = max(next, excluded.next)",
                (name.to_ascii_lowercase(), end),
            )
            .map_err(sql_error)?;
        Ok(end)
    }
}

fn stored(storage: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    storage.query_row("SELECT next FROM _dosql_sequences WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn exhausted(sequence: &str) -> Error {
    Error::new(ErrorCode::Constraint, format!("the sequence {sequence} has no numbers left"))
}
