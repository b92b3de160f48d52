//! Values that do not fit their column's type, of which SQLite allows any.

use crate::LakeError;
use crate::buffer::{Action, TableBuffer};
use crate::cells::Cell;
use crate::columns::ColumnType;

/// A value that does not fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Misfit {
    /// Index of the change.
    pub(crate) change: usize,
    /// Whether it stands in the row as it was before the change.
    pub(crate) before: bool,
    /// The value's place in the row.
    pub(crate) place: usize,
}

impl ColumnType {
    /// Whether a column of this type holds the value.
    pub(crate) fn fits(self, value: Cell<'_>) -> bool {
        match (self, value) {
            (Self::Long | Self::String, Cell::Integer(_))
            | (Self::Double, Cell::Real(_))
            | (Self::String, Cell::Text(_))
            | (Self::Binary, Cell::Blob(_)) => true,
            // SQL has no word for infinity.
            (Self::String, Cell::Real(real)) => real.is_finite(),
            (Self::Double, Cell::Integer(integer)) => is_exact(integer),
            _ => false,
        }
    }

    /// The type of column that holds such values as they are. Text that is not UTF-8 has none.
    pub(crate) fn holding(value: Cell<'_>) -> Option<Self> {
        match value {
            Cell::Integer(_) => Some(Self::Long),
            Cell::Real(_) => Some(Self::Double),
            Cell::Text(_) => Some(Self::String),
            Cell::Blob(_) => Some(Self::Binary),
            Cell::RawText(_) => None,
        }
    }
}

/// Whether a double holds this integer exactly.
pub(crate) fn is_exact(integer: i64) -> bool {
    const LIMIT: i64 = 1 << 53;
    (-LIMIT..=LIMIT).contains(&integer)
}

impl TableBuffer {
    /// A value that does not fit.
    pub(crate) fn misfit(&self, misfit: Misfit) -> Option<Cell<'_>> {
        let change = &self.changes[misfit.change];
        let image = match (change.action, misfit.before) {
            (Action::Update { before, .. } | Action::Delete { before }, true) => before,
            (Action::Insert { after } | Action::Update { after, .. }, false) => after,
            _ => return None,
        };
        self.row(change, image).cell(misfit.place)
    }

    /// Why a table whose rows may have no misfits cannot be written.
    pub(crate) fn refusal(&self, source: &str, misfit: Misfit) -> LakeError {
        let change = &self.changes[misfit.change];
        let column = self.layouts[change.layout].columns.get(misfit.place).cloned().unwrap_or_default();
        LakeError::Misfit {
            table: source.to_owned(),
            column_type: ColumnType::of_declared(&column.declared_type).name(),
            column: column.name,
            value: self.misfit(misfit).map_or_else(String::new, Cell::in_short),
            shard: change.shard.to_string(),
            lsn: change.lsn,
        }
    }
}
