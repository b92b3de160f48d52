//! Which aggregates over a table's columns come out as SQLite's do.

use dosql_proto::{LakeAffinity, LakeAggregate, LakeFunction};

use super::predicate::{Bounds, Nulls};
use super::{FileBounds, Literal, ScanColumn, TableScan};
use crate::columns::ColumnType;

/// How far the sum of each column's values may be from zero; `None` where nobody knows.
pub(super) struct Extents(Vec<Option<u128>>);

impl Extents {
    pub(super) fn of(columns: usize) -> Self {
        Self(vec![Some(0); columns])
    }

    /// Counts a file's rows in.
    pub(super) fn add(&mut self, bounds: &FileBounds<'_>, columns: &[ScanColumn], rows: u64) {
        for (place, extent) in self.0.iter_mut().enumerate() {
            if columns[place].column_type != Some(ColumnType::Long) || bounds.nulls(place) == Nulls::All {
                continue;
            }
            let most = match (bounds.lower(place), bounds.upper(place)) {
                (Some(Literal::Long(lower)), Some(Literal::Long(upper))) => {
                    Some(u128::from(lower.unsigned_abs().max(upper.unsigned_abs())) * u128::from(rows))
                }
                _ => None,
            };
            *extent = extent.zip(most).and_then(|(extent, most)| extent.checked_add(most));
        }
    }
}

impl TableScan {
    /// Why an aggregate must be computed from the rows instead; `None` where it need not.
    #[must_use]
    pub fn declines(&self, aggregate: &LakeAggregate) -> Option<&'static str> {
        if !self.exact {
            return Some("a condition cannot be evaluated on the lake's columns alone");
        }
        if self.has_misfits {
            return Some("there are rows that do not fit their columns");
        }
        // What comes out is the value as SQLite has it, and values that differ there differ here.
        let faithful = |column: &u32| {
            let column = &self.columns[*column as usize];
            matches!(
                (column.column_type, column.affinity),
                (Some(ColumnType::Long), LakeAffinity::Numeric)
                    | (Some(ColumnType::String), LakeAffinity::Text)
                    | (Some(ColumnType::Binary), LakeAffinity::Blob)
            )
        };
        if !aggregate.groups.iter().all(faithful) {
            return Some("a group is not by integers, text or blobs");
        }
        for call in &aggregate.calls {
            let Some(column) = call.column else { continue };
            let place = column as usize;
            match call.function() {
                LakeFunction::CountRows => {}
                LakeFunction::Count if self.columns[place].field.is_some() => {}
                LakeFunction::Sum => {
                    if self.columns[place].column_type != Some(ColumnType::Long) || !faithful(&column) {
                        return Some("a sum is not of integers");
                    }
                    if self.sums.0[place].is_none_or(|extent| extent > i64::MAX.cast_unsigned().into()) {
                        return Some("a sum might exceed 64 bits");
                    }
                }
                LakeFunction::Min | LakeFunction::Max if faithful(&column) => {}
                LakeFunction::Min | LakeFunction::Max | LakeFunction::Count => {
                    return Some("an extreme is not of integers, text or blobs");
                }
            }
        }
        None
    }
}
