//! What was delivered and is not yet committed.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{Operation, Row, RowChange, SchemaChange, WalRecord, WalTable};

use crate::LakeError;
use crate::misfits::Misfit;
use crate::rows::{RowRef, Rows, Sizes};

/// Memory that a flush takes for a change beside it, about: its key, where its row goes, what the index says of it.
const PLAN_BYTES: usize = 192;

/// What happened to a row. Images of rows are numbers in the [`Rows`] of the change's layout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    Insert {
        after: u32,
    },
    Update {
        before: u32,
        after: u32,
    },
    Delete {
        before: u32,
    },
    /// The shard dropped the table: none of its rows remain.
    Drop,
    /// The shard's rows have the change's layout from here on.
    Reshape,
}

impl Action {
    /// Whether it is about the table rather than a row.
    pub(crate) fn changes_schema(self) -> bool {
        matches!(self, Self::Drop | Self::Reshape)
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
    /// By layout.
    pub(crate) rows: Vec<Rows>,
    /// In the order of each shard's LSNs.
    pub(crate) changes: Vec<Change>,
    /// The values that do not fit the types which their columns were declared with.
    pub(crate) misfits: Vec<Misfit>,
    /// What there was of the layout that came last before.
    before: Option<Sizes>,
}

impl TableBuffer {
    /// The index of this layout, whose rows may become more.
    fn layout(&mut self, table: &WalTable) -> usize {
        let known = self.layouts.iter().rposition(|layout| layout == table);
        if let Some(index) = known.filter(|index| self.rows[*index].is_open()) {
            return index;
        }
        self.layouts.push(table.clone());
        self.rows.push(Rows::new(table, self.before.take()));
        self.layouts.len() - 1
    }

    /// An image of a change.
    pub(crate) fn row(&self, change: &Change, image: u32) -> RowRef<'_> {
        self.rows[change.layout].get(image)
    }

    /// Takes in a row; returns its number, and the memory that it takes, in bytes, about.
    fn push_row(&mut self, row: Row, layout: usize, before: bool) -> (u32, usize) {
        let (change, misfits) = (self.changes.len(), &mut self.misfits);
        self.rows[layout].push(row, |place| misfits.push(Misfit { change, before, place }))
    }

    /// Takes in a change; returns the memory that it takes, in bytes, about.
    fn push(&mut self, place: &mut Place<'_>, layout: usize, change: RowChange) -> u64 {
        let RowChange { rowid, before, after, .. } = change;
        let before = before.map(|row| self.push_row(row, layout, true));
        let after = after.map(|row| self.push_row(row, layout, false));
        let bytes = [before, after].iter().flatten().map(|(_, bytes)| bytes).sum::<usize>();
        let action = match (before, after) {
            (Some((before, _)), Some((after, _))) => Action::Update { before, after },
            (None, Some((after, _))) => Action::Insert { after },
            (Some((before, _)), None) => Action::Delete { before },
            // No change that was checked has neither.
            (None, None) => return 0,
        };
        self.push_change(place.change(rowid, layout, action)) + bytes as u64
    }

    fn push_change(&mut self, change: Change) -> u64 {
        self.changes.push(change);
        (size_of::<Change>() + PLAN_BYTES) as u64
    }

    /// Forgets the changes, but keeps memory for as many.
    fn clear(&mut self) {
        self.before = self.rows.last().and_then(Rows::sizes);
        self.rows.clear();
        self.layouts.clear();
        self.changes.clear();
        self.misfits.clear();
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
        self.tables.values_mut().for_each(TableBuffer::clear);
        (self.events, self.bytes, self.since_ms) = (0, 0, None);
    }

    /// Has everything ready to be read. What comes later is read only after the next time.
    pub(crate) fn seal(&mut self) {
        self.tables.values_mut().flat_map(|table| &mut table.rows).for_each(Rows::seal);
    }

    /// Takes in one record.
    pub(crate) fn push(&mut self, shard: &Rc<str>, record: WalRecord, now_ms: u64) -> Result<(), LakeError> {
        let WalRecord { lsn, hlc, tables, mut changes, schema_changes, .. } = record;
        let malformed = |reason: String| LakeError::Record { shard: shard.to_string(), lsn, reason };
        if let Some(change) = changes.iter().find(|change| change.table as usize >= tables.len()) {
            return Err(malformed(format!("a change refers to table {} of {}", change.table, tables.len())));
        }
        // Checked as a whole, so that a malformed record leaves nothing behind.
        changes
            .iter_mut()
            .try_for_each(|change| check(change, tables[change.table as usize].columns.len()))
            .map_err(malformed)?;
        self.since_ms.get_or_insert(now_ms);
        let committed_ms = i64::try_from(hlc >> 16).unwrap_or(i64::MAX);
        let mut place = Place { shard, lsn, committed_ms, ordinal: 0 };
        let mut schema_changes = schema_changes.into_iter().peekable();
        // Found out where a table's first change comes; `None` within for one that is not mirrored.
        let mut layouts: Vec<Option<Option<usize>>> = vec![None; tables.len()];
        // Up to here the changes only show values under a column's new name. The lake follows columns by their ids.
        let mut renamed = 0;
        for (number, change) in changes.into_iter().enumerate() {
            while let Some(change) = schema_changes.next_if(|change| change.after_changes as usize <= number) {
                renamed = number + change.renaming_changes as usize;
                self.push_schema_change(change, &mut place);
            }
            if number < renamed {
                continue;
            }
            let index = change.table as usize;
            let table = &tables[index];
            let layout = *layouts[index].get_or_insert_with(|| {
                is_mirrored(&table.name).then(|| entry(&mut self.tables, &table.name).layout(table))
            });
            let (Some(layout), Some(buffer)) = (layout, self.tables.get_mut(&table.name)) else { continue };
            self.bytes += buffer.push(&mut place, layout, change);
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
            self.bytes += buffer.push_change(place.change(0, layout, Action::Drop));
            self.events += 1;
        }
        if let Some(table) = table.filter(|table| is_mirrored(&table.name)) {
            let buffer = entry(&mut self.tables, &table.name);
            let layout = buffer.layout(&table);
            self.bytes += buffer.push_change(place.change(0, layout, Action::Reshape));
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

/// Whether a change has the images that its operation has, of so many columns. Others are taken out.
fn check(change: &mut RowChange, columns: usize) -> Result<(), String> {
    let (has_before, has_after) = match change.operation() {
        Operation::Insert => (false, true),
        Operation::Update => (true, true),
        Operation::Delete => (true, false),
        Operation::Unspecified => return Err("a change has no operation".to_owned()),
    };
    for (image, is_due, which) in [(&mut change.before, has_before, "before"), (&mut change.after, has_after, "after")]
    {
        match image {
            _ if !is_due => *image = None,
            Some(row) if row.values.len() == columns => {}
            Some(row) => return Err(format!("a row has {} values, its table {columns} columns", row.values.len())),
            None => return Err(format!("a change lacks its {which} image")),
        }
    }
    Ok(())
}
