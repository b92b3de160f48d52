//! Which rows of a file's row groups are not deleted.

use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::file::metadata::ParquetMetaData;

/// What is left of a row group.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// Every row.
    All,
    /// No row.
    Nothing,
    /// These.
    Some(RowSelection),
}

/// What is left of each row group. Positions are counted over all row groups of the file, and are in ascending order.
#[must_use]
pub fn kept(deleted: &[i64], footer: &ParquetMetaData) -> Vec<Kept> {
    kept_of(deleted, footer.row_groups().iter().map(|group| group.num_rows()))
}

fn kept_of(deleted: &[i64], groups: impl Iterator<Item = i64>) -> Vec<Kept> {
    let mut deleted = deleted.iter().copied().peekable();
    let mut first = 0;
    let rows = |rows: i64| usize::try_from(rows).unwrap_or(0);
    groups
        .map(|number| {
            let end = first + number;
            let mut selectors = Vec::new();
            let (mut next, mut left) = (first, number);
            while let Some(position) = deleted.next_if(|position| *position < end) {
                selectors.push(RowSelector::select(rows(position - next)));
                selectors.push(RowSelector::skip(1));
                next = position + 1;
                left -= 1;
            }
            first = end;
            match (selectors.is_empty(), left) {
                (true, _) => Kept::All,
                (false, 0) => Kept::Nothing,
                (false, _) => {
                    selectors.push(RowSelector::select(rows(end - next)));
                    // Neighbours of a kind become one; empty ones vanish.
                    Kept::Some(RowSelection::from_iter(selectors))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_rows_are_left_out_of_their_row_group() {
        let found = kept_of(&[0, 1, 4, 10, 11], [5, 5, 2, 1].into_iter());
        let some = RowSelection::from(vec![RowSelector::skip(2), RowSelector::select(2), RowSelector::skip(1)]);
        assert_eq!(found, [Kept::Some(some), Kept::All, Kept::Nothing, Kept::All]);
    }
}
