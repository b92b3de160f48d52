//! Values that do not fit their column's type, of which SQLite allows any.

use dosql_proto::value::Kind;
use dosql_proto::{Row, Value};

use crate::LakeError;
use crate::buffer::{Action, TableBuffer};
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
    pub(crate) fn fits(self, value: &Kind) -> bool {
        match (self, value) {
            (Self::Long | Self::String, Kind::Integer(_))
            | (Self::Double, Kind::Real(_))
            | (Self::String, Kind::Text(_))
            | (Self::Binary, Kind::Blob(_)) => true,
            // SQL has no word for infinity.
            (Self::String, Kind::Real(real)) => real.is_finite(),
            (Self::Double, Kind::Integer(integer)) => is_exact(*integer),
            _ => false,
        }
    }

    /// The type of column that holds such values as they are. Text that is not UTF-8 has none.
    pub(crate) fn holding(value: &Kind) -> Option<Self> {
        match value {
            Kind::Integer(_) => Some(Self::Long),
            Kind::Real(_) => Some(Self::Double),
            Kind::Text(_) => Some(Self::String),
            Kind::Blob(_) => Some(Self::Binary),
            Kind::RawText(_) => None,
        }
    }
}

/// Whether a double holds this integer exactly.
pub(crate) fn is_exact(integer: i64) -> bool {
    const LIMIT: i64 = 1 << 53;
    (-LIMIT..=LIMIT).contains(&integer)
}

impl TableBuffer {
    /// The row that a misfit stands in.
    pub(crate) fn row_of(&self, misfit: Misfit) -> Option<&Row> {
        match (&self.changes[misfit.change].action, misfit.before) {
            (Action::Update { before, .. } | Action::Delete { before }, true) => Some(before),
            (Action::Insert { after } | Action::Update { after, .. }, false) => Some(after),
            _ => None,
        }
    }

    /// Why a table whose rows may have no misfits cannot be written.
    pub(crate) fn refusal(&self, source: &str, misfit: Misfit) -> LakeError {
        let change = &self.changes[misfit.change];
        let column = self.layouts[change.layout].columns.get(misfit.place).cloned().unwrap_or_default();
        let value = self.row_of(misfit).and_then(|row| row.values.get(misfit.place));
        LakeError::Misfit {
            table: source.to_owned(),
            column_type: ColumnType::of_declared(&column.declared_type).name(),
            column: column.name,
            value: value.map_or_else(String::new, in_short),
            shard: change.shard.to_string(),
            lsn: change.lsn,
        }
    }
}

/// A value as a message tells it.
fn in_short(value: &Value) -> String {
    match &value.kind {
        None => "NULL".to_owned(),
        Some(Kind::Integer(integer)) => format!("the integer {integer}"),
        Some(Kind::Real(real)) => format!("the real {real:?}"),
        Some(Kind::Text(text)) => {
            let short: String = text.chars().take(40).collect();
            format!("the text {short:?}{}", if short.len() < text.len() { "..." } else { "" })
        }
        Some(Kind::Blob(bytes)) => format!("a blob of {} bytes", bytes.len()),
        Some(Kind::RawText(bytes)) => format!("{} bytes of text that is not UTF-8", bytes.len()),
    }
}
