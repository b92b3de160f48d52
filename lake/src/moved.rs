//! Rows that compaction has moved, file by file.
//!
//! Compaction that leaves rows in their order moves them in runs, from which each row's new place can be worked out. So it notes
//! the runs, few for each file, and leaves the index's entries as they are: who looks a row up follows the runs from the file
//! that the entry names. An entry is written anew when its row changes.

use std::collections::HashMap;
use std::rc::Rc;

use prost::encoding::{decode_varint, encode_varint};

use crate::LakeError;
use crate::index::{Index, Position};

/// Consecutive rows of a file that no longer is in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its first row; it ends where the file's next one begins.
    pub(crate) first: i64,
    /// Where that one stands now.
    pub(crate) to: Position,
    /// Rows of the file that were left out, since they were deleted, in ascending order.
    pub(crate) gone: Vec<i64>,
}

impl Run {
    /// Where a row of the run stands now.
    fn place(&self, row: i64) -> Position {
        let gone = |row: i64| self.gone.partition_point(|gone| *gone < row) as i64;
        Position { file: self.to.file, row: self.to.row + (row - self.first) - (gone(row) - gone(self.first)) }
    }
}

/// Row numbers in ascending order, as the differences between them.
pub(crate) fn packed(rows: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * 2);
    let mut last = 0;
    for row in rows {
        encode_varint((row - last).cast_unsigned(), &mut bytes);
        last = *row;
    }
    bytes
}

/// The row numbers again; `None` where the bytes are of something else.
pub(crate) fn unpacked(mut bytes: &[u8]) -> Option<Vec<i64>> {
    let mut rows = Vec::new();
    let mut last: i64 = 0;
    while !bytes.is_empty() {
        last = last.checked_add(i64::try_from(decode_varint(&mut bytes).ok()?).ok()?)?;
        rows.push(last);
    }
    Some(rows)
}

/// Finds rows of one table where they are now.
pub(crate) struct Finder<'a> {
    index: &'a Index,
    table: &'a str,
    /// Of the files that were asked for; those that are in the table have none.
    runs: HashMap<i64, Rc<[Run]>>,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(index: &'a Index, table: &'a str) -> Self {
        Self { index, table, runs: HashMap::new() }
    }

    /// Where the row stands that an entry of the index has at `position`.
    pub(crate) fn find(&mut self, mut position: Position) -> Result<Position, LakeError> {
        loop {
            let runs = match self.runs.get(&position.file) {
                Some(runs) => Rc::clone(runs),
                None => {
                    let runs: Rc<[Run]> = self.index.runs(position.file)?.into();
                    self.runs.insert(position.file, Rc::clone(&runs));
                    runs
                }
            };
            if runs.is_empty() {
                return Ok(position);
            }
            let Some(place) = runs.partition_point(|run| run.first <= position.row).checked_sub(1) else {
                let reason = format!("a row is at {position:?}, from where none was moved");
                return Err(LakeError::IndexStale { table: self.table.to_owned(), reason });
            };
            position = runs[place].place(position.row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_without_those_that_are_gone() {
        let run = Run { first: 10, to: Position { file: 7, row: 100 }, gone: vec![3, 11, 12, 20] };
        let rows: Vec<i64> = [10, 13, 19, 21].iter().map(|row| run.place(*row).row).collect();
        assert_eq!(rows, [100, 101, 107, 108]);
    }

    #[test]
    fn rows_are_packed() {
        for rows in [&[][..], &[0], &[0, 1, 2], &[5, 127, 128, 100_000, i64::MAX]] {
            assert_eq!(unpacked(&packed(rows)).as_deref(), Some(rows));
        }
        assert_eq!(unpacked(&[0x80]), None);
    }
}
