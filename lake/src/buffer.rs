//! What was delivered and is not yet committed.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::value::Kind;
use dosql_proto::{Operation, Row, RowChange, SchemaChange, Value, WalRecord, WalTable};

use crate::LakeError;
use crate::columns::ColumnType;
use crate::misfits::Misfit;

/// What happened to a row.
#[derive(Debug)]
pub(crate) enum Action {
    Insert {
        after: Row,
    },
    Update {
        before: Row,
        after: Row,
    },
    Delete {
        before: Row,
    },
    /// The shard dropped the table: none of its rows remain.
    Drop,
    /// The shard's rows have the change's layout from here on.
    Reshape,
}

impl Action {
    /// Its rows, and whether each is the one before the change.
    fn rows(&self) -> impl Iterator<Item = (&Row, bool)> {
        let (before, after) = match self {
            Self::Insert { after } => (None, Some(after)),
            Self::Update { before, after } => (Some(before), Some(after)),
            Self::Delete { before } => (Some(before), None),
            Self::Drop | Self::Reshape => (None, None),
        };
        before.map(|row| (row, true)).into_iter().chain(after.map(|row| (row, false)))
    }
}

/// One change of a source table.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) shard: Rc<str>,
    pub(crate) lsn: u64,
    /// When the transaction committed, in milliseconds since the epoch.
    pub(crate) committed_ms: i64,
    /// Its place in the transaction.
    pub(crate) ordinal: u32,
    pub(crate) rowid: i64,
    /// Index into [`TableBuffer::layouts`].
    pub(crate) layout: usize,
    pub(crate) action: Action,
}

impl Change {
    /// The day of its commit, in days since the epoch.
    pub(crate) fn day(&self) -> i32 {
        i32::try_from(self.committed_ms.div_euclid(86_400_000)).unwrap_or(i32::MAX)
    }
}

/// The buffered changes of one source table.
#[derive(Debug, Default)]
pub(crate) struct TableBuffer {
    /// The forms its rows have had.
    pub(crate) layouts: Vec<WalTable>,
    /// By layout, the types that its columns have in the lake.
    types: Vec<Vec<ColumnType>>,
    /// In the order of each shard's LSNs.
    pub(crate) changes: Vec<Change>,
    /// The values that do not fit the types which their columns were declared with.
    pub(crate) misfits: Vec<Misfit>,
}

impl TableBuffer {
    /// The index of this layout.
    fn layout(&mut self, table: &WalTable) -> usize {
        if let Some(index) = self.layouts.iter().rposition(|layout| layout == table) {
            return index;
        }
        self.layouts.push(table.clone());
        self.types.push(table.columns.iter().map(|column| ColumnType::of_declared(&column.declared_type)).collect());
        self.layouts.len() - 1
    }

    /// Takes in a change; returns the memory that it takes, in bytes, about. Its values are looked at once, while they are in the
    /// processor's cache.
    fn push(&mut self, change: Change) -> u64 {
        let (number, types) = (self.changes.len(), &self.types[change.layout]);
        let mut bytes = size_of::<Change>();
        for (row, before) in change.action.rows() {
            bytes += row.values.capacity() * size_of::<Value>();
            for (place, (value, column_type)) in row.values.iter().zip(types).enumerate() {
                let Some(kind) = &value.kind else { continue };
                bytes += heap_bytes(kind);
                if !column_type.fits(kind) {
                    self.misfits.push(Misfit { change: number, before, place });
                }
            }
        }
        self.changes.push(change);
        bytes as u64
    }
}

/// Everything buffered.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// By source table.
    pub(crate) tables: BTreeMap<String, TableBuffer>,
    /// Row changes held.
    pub(crate) events: u64,
    /// Memory they take, in bytes, about.
    pub(crate) bytes: u64,
    /// When the oldest record was accepted, in milliseconds since the epoch.
    pub(crate) since_ms: Option<u64>,
}

impl Buffer {
    /// Forgets everything, but keeps the memory for as many changes of the same tables.
    pub(crate) fn clear(&mut self) {
        self.tables.retain(|_, table| !table.changes.is_empty());
        for table in self.tables.values_mut() {
            table.changes.clear();
            *table = TableBuffer { changes: std::mem::take(&mut table.changes), ..TableBuffer::default() };
        }
        *self = Self { tables: std::mem::take(&mut self.tables), ..Self::default() };
    }

    /// Takes in one record.
    pub(crate) fn push(&mut self, shard: &Rc<str>, record: WalRecord, now_ms: u64) -> Result<(), LakeError> {
        let WalRecord { lsn, hlc, tables, changes, schema_changes, .. } = record;
        let malformed = |reason: String| LakeError::Record { shard: shard.to_string(), lsn, reason };
        if let Some(change) = changes.iter().find(|change| change.table as usize >= tables.len()) {
            return Err(malformed(format!("a change refers to table {} of {}", change.table, tables.len())));
        }
        // Checked as a whole, so that a malformed record leaves nothing behind.
        let changes: Vec<_> = changes
            .into_iter()
            .map(|change| {
                let (table, rowid) = (change.table as usize, change.rowid);
                action(change, tables[table].columns.len()).map(|action| (table, rowid, action))
            })
            .collect::<Result<_, _>>()
            .map_err(malformed)?;
        self.since_ms.get_or_insert(now_ms);
        let committed_ms = i64::try_from(hlc >> 16).unwrap_or(i64::MAX);
        let mut place = Place { shard, lsn, committed_ms, ordinal: 0 };
        let mut schema_changes = schema_changes.into_iter().peekable();
        // Found out where a table's first change comes; `None` within for one that is not mirrored.
        let mut layouts: Vec<Option<Option<usize>>> = vec![None; tables.len()];
        // Up to here the changes only show values under a column's new name. The lake follows columns by their ids.
        let mut renamed = 0;
        for (number, (index, rowid, action)) in changes.into_iter().enumerate() {
            while let Some(change) = schema_changes.next_if(|change| change.after_changes as usize <= number) {
                renamed = number + change.renaming_changes as usize;
                self.push_schema_change(change, &mut place);
            }
            if number < renamed {
                continue;
            }
            let table = &tables[index];
            let layout = *layouts[index].get_or_insert_with(|| {
                is_mirrored(&table.name).then(|| entry(&mut self.tables, &table.name).layout(table))
            });
            let (Some(layout), Some(buffer)) = (layout, self.tables.get_mut(&table.name)) else { continue };
            self.bytes += buffer.push(place.change(rowid, layout, action));
            self.events += 1;
        }
        for change in schema_changes {
            self.push_schema_change(change, &mut place);
        }
        Ok(())
    }

    /// A renamed table's rows come as inserts into the new one: for the old name it is as if it was dropped.
    fn push_schema_change(&mut self, change: SchemaChange, place: &mut Place<'_>) {
        let SchemaChange { table, dropped, .. } = change;
        if !dropped.is_empty() && is_mirrored(&dropped) {
            let buffer = entry(&mut self.tables, &dropped);
            let layout = buffer.layout(&WalTable { name: dropped, ..WalTable::default() });
            self.bytes += buffer.push(place.change(0, layout, Action::Drop));
            self.events += 1;
        }
        if let Some(table) = table.filter(|table| is_mirrored(&table.name)) {
            let buffer = entry(&mut self.tables, &table.name);
            let layout = buffer.layout(&table);
            self.bytes += buffer.push(place.change(0, layout, Action::Reshape));
            self.events += 1;
        }
    }
}

fn entry<'a>(tables: &'a mut BTreeMap<String, TableBuffer>, name: &str) -> &'a mut TableBuffer {
    tables.entry(name.to_owned()).or_default()
}

/// Where in the history the next change stands.
struct Place<'a> {
    shard: &'a Rc<str>,
    lsn: u64,
    committed_ms: i64,
    ordinal: u32,
}

impl Place<'_> {
    fn change(&mut self, rowid: i64, layout: usize, action: Action) -> Change {
        let Self { lsn, committed_ms, ordinal, .. } = *self;
        if !matches!(action, Action::Reshape) {
            self.ordinal += 1;
        }
        Change { shard: Rc::clone(self.shard), lsn, committed_ms, ordinal, rowid, layout, action }
    }
}

/// Tables of SQLite's and of the shard's own are not mirrored.
fn is_mirrored(table: &str) -> bool {
    let starts = |prefix: &str| table.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    !starts("sqlite_") && !starts("_dosql_")
}

fn action(change: RowChange, columns: usize) -> Result<Action, String> {
    let operation = change.operation();
    let image = |row: Option<Row>, which: &str| match row {
        Some(row) if row.values.len() == columns => Ok(row),
        Some(row) => Err(format!("a row has {} values, its table {columns} columns", row.values.len())),
        None => Err(format!("a change lacks its {which} image")),
    };
    Ok(match operation {
        Operation::Insert => Action::Insert { after: image(change.after, "after")? },
        Operation::Update => {
            Action::Update { before: image(change.before, "before")?, after: image(change.after, "after")? }
        }
        Operation::Delete => Action::Delete { before: image(change.before, "before")? },
        Operation::Unspecified => return Err("a change has no operation".to_owned()),
    })
}

/// Memory of a value beside the value itself.
fn heap_bytes(kind: &Kind) -> usize {
    match kind {
        Kind::Text(text) => text.capacity(),
        Kind::Blob(bytes) | Kind::RawText(bytes) => bytes.capacity(),
        Kind::Integer(_) | Kind::Real(_) => 0,
    }
}
