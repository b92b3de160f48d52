//! What a subscriber chose to see of a record.

use std::rc::Rc;

use dosql_proto::value::Kind;
use dosql_proto::{
    Error, ErrorCode, Operation, Row, RowChange, SchemaChange, SnapshotCursor, SubscribeRequest, WalRecord, WalTable,
};

use super::filter::Filter;
use super::shards::Shards;
use super::snapshot;

/// A subscriber's choices, checked as far as they can be without looking at tables.
pub(super) struct Choice {
    tables: Vec<String>,
    shards: Vec<String>,
    operations: Vec<Operation>,
    /// The table that each is of, where it says; the name.
    columns: Vec<(Option<String>, String)>,
    filter: Option<Rc<Filter>>,
}

/// A table as the subscriber sees it.
struct Shown {
    /// Its place in the record that is sent.
    place: u32,
    /// Positions of its columns; `None`: all.
    columns: Option<Vec<usize>>,
}

impl Choice {
    /// # Errors
    /// `INVALID_REQUEST` where the choices contradict one another or name a shard that is none; why the filter is none.
    pub(super) fn new(shards: &Shards, request: &SubscribeRequest) -> Result<Self, Error> {
        if request.tables.is_empty() && !(request.columns.is_empty() && request.filter.is_empty()) {
            return Err(Error::invalid("columns and a filter need the tables they are of"));
        }
        let all = shards.names();
        if let Some(unknown) = request.shards.iter().find(|name| !all.contains(name)) {
            return Err(Error::invalid(format!("{unknown} is no shard; the shards are {}", all.join(", "))));
        }
        let chosen = |name: &String| request.shards.is_empty() || request.shards.contains(name);
        if let Some(bad) = request.operations.iter().find(|operation| {
            !matches!(Operation::try_from(**operation), Ok(Operation::Insert | Operation::Update | Operation::Delete))
        }) {
            return Err(Error::invalid(format!("{bad} is no operation that a row change can be")));
        }
        let columns = request.columns.iter().map(|column| match column.split_once('.') {
            Some((table, column)) => (Some(table.to_owned()), column.to_owned()),
            None => (None, column.clone()),
        });
        let filter = if request.filter.is_empty() { None } else { Some(shards.filter(&request.filter)?) };
        Ok(Self {
            tables: request.tables.clone(),
            shards: all.into_iter().filter(chosen).collect(),
            operations: request.operations().collect(),
            columns: columns.collect(),
            filter,
        })
    }

    pub(super) fn shards(&self) -> &[String] {
        &self.shards
    }

    /// The tables by name; none means all.
    pub(super) fn tables(&self) -> &[String] {
        &self.tables
    }

    pub(super) fn wants(&self, table: &str) -> bool {
        self.tables.is_empty() || self.tables.iter().any(|wanted| wanted.eq_ignore_ascii_case(table))
    }

    /// Checks the filter and the columns against the tables there are.
    ///
    /// # Errors
    /// `UNKNOWN_COLUMN`; why the filter cannot be evaluated.
    pub(super) fn check(&self, tables: &[WalTable]) -> Result<(), Error> {
        let wanted: Vec<&WalTable> = tables.iter().filter(|table| self.wants(&table.name)).collect();
        if let Some(filter) = &self.filter {
            wanted.iter().try_for_each(|table| filter.check(table))?;
        }
        // A table that is still to be made may have it.
        let complete = self.tables.iter().all(|name| wanted.iter().any(|table| table.name.eq_ignore_ascii_case(name)));
        let known = |of: &Option<String>, name: &str| {
            wanted
                .iter()
                .any(|table| is_of(of, table) && table.columns.iter().any(|c| c.name.eq_ignore_ascii_case(name)))
        };
        match self.columns.iter().find(|(of, name)| complete && !known(of, name)) {
            Some((_, name)) => {
                Err(Error::new(ErrorCode::UnknownColumn, format!("no chosen table has a column {name}")))
            }
            None => Ok(()),
        }
    }

    /// The columns of a table that are sent.
    fn columns_of(&self, table: &WalTable) -> Option<Vec<usize>> {
        if self.columns.is_empty() {
            return None;
        }
        let is_key = |at: usize| table.primary_key.iter().any(|key| *key as usize == at);
        let is_chosen =
            |name: &str| self.columns.iter().any(|(of, chosen)| is_of(of, table) && chosen.eq_ignore_ascii_case(name));
        let columns = table.columns.iter().enumerate();
        Some(columns.filter(|(at, column)| is_key(*at) || is_chosen(&column.name)).map(|(at, _)| at).collect())
    }

    fn passes(&self, table: &WalTable, rowid: i64, row: &Row) -> Result<bool, Error> {
        self.filter.as_ref().map_or(Ok(true), |filter| filter.is_true(table, rowid, row))
    }

    fn takes_everything(&self) -> bool {
        self.tables.is_empty() && self.operations.is_empty()
    }

    /// What the rows of a snapshot, as a record of inserts, have for the subscriber.
    ///
    /// # Errors
    /// The filter's.
    pub(super) fn rows(&self, record: &WalRecord) -> Result<Option<WalRecord>, Error> {
        self.cut(record, None, &[])
    }

    /// What a record has for the subscriber; of a shard that is being copied, who has its rows up to the cursor.
    ///
    /// # Errors
    /// The filter's; `CONFLICT` where the copy cannot go on after the record.
    pub(super) fn changes(
        &self,
        record: &WalRecord,
        copied: Option<&SnapshotCursor>,
    ) -> Result<Option<WalRecord>, Error> {
        match copied {
            None if self.takes_everything() => {
                // Preparing a transaction and a promotion have records of their own, which are nothing to a subscriber.
                let anything = !record.changes.is_empty() || !record.schema_changes.is_empty();
                Ok(anything.then(|| record.clone()))
            }
            copied => {
                copied.map_or(Ok(()), |cursor| snapshot::check_schema(self, cursor, record))?;
                self.cut(record, copied, &self.operations)
            }
        }
    }

    fn cut(
        &self,
        record: &WalRecord,
        copied: Option<&SnapshotCursor>,
        operations: &[Operation],
    ) -> Result<Option<WalRecord>, Error> {
        let mut tables: Vec<WalTable> = Vec::new();
        let mut shown: Vec<Option<Shown>> = Vec::with_capacity(record.tables.len());
        for table in &record.tables {
            shown.push(self.wants(&table.name).then(|| {
                let columns = self.columns_of(table);
                let place = u32::try_from(tables.len()).unwrap_or(u32::MAX);
                tables.push(columns.as_ref().map_or_else(|| table.clone(), |columns| narrow(table, columns)));
                Shown { place, columns }
            }));
        }
        let mut changes: Vec<RowChange> = Vec::new();
        // How many of the first n changes remain, to say after which of them the schema changed.
        let mut remaining = Vec::with_capacity(record.changes.len() + 1);
        remaining.push(0);
        for change in &record.changes {
            if let Some(Some(shown)) = shown.get(change.table as usize)
                && let Some(change) = self.change(&record.tables[change.table as usize], change, shown, copied)?
                && (operations.is_empty() || operations.contains(&change.operation()))
            {
                changes.push(change);
            }
            remaining.push(u32::try_from(changes.len()).unwrap_or(u32::MAX));
        }
        let is_shown = |name: &str| self.wants(name) && copied.is_none_or(|cursor| name <= cursor.table.as_str());
        let schema_changes: Vec<SchemaChange> = record
            .schema_changes
            .iter()
            .filter(|change| {
                is_shown(&change.dropped) && !change.dropped.is_empty()
                    || change.table.as_ref().is_some_and(|table| is_shown(&table.name))
                    || self.tables.is_empty() && change.dropped.is_empty() && change.table.is_none()
            })
            .map(|change| {
                let left = |count: u32| remaining.get(count as usize).copied().unwrap_or(count);
                let after_changes = left(change.after_changes);
                let renaming_changes = left(change.after_changes + change.renaming_changes) - after_changes;
                SchemaChange { after_changes, renaming_changes, ..change.clone() }
            })
            .collect();
        let anything = !changes.is_empty() || !schema_changes.is_empty();
        Ok(anything.then_some(WalRecord {
            lsn: record.lsn,
            hlc: record.hlc,
            tables,
            changes,
            schema_changes,
            ..WalRecord::default()
        }))
    }

    /// A change as it looks to the subscriber, who sees a part of the table's rows: one that comes into it was inserted, one that
    /// leaves it was deleted.
    fn change(
        &self,
        table: &WalTable,
        change: &RowChange,
        shown: &Shown,
        copied: Option<&SnapshotCursor>,
    ) -> Result<Option<RowChange>, Error> {
        let rowid_after = snapshot::rowid_after(table, change);
        let visible = |row: &Option<Row>, rowid: i64| match row {
            Some(row) if copied.is_none_or(|cursor| snapshot::has(cursor, table, rowid, row)) => {
                self.passes(table, rowid, row)
            }
            _ => Ok(false),
        };
        let was = visible(&change.before, change.rowid)?;
        let is = visible(&change.after, rowid_after)?;
        let row = |row: &Option<Row>| match &shown.columns {
            None => row.clone(),
            Some(columns) => {
                row.as_ref().map(|row| columns.iter().filter_map(|at| row.values.get(*at).cloned()).collect())
            }
        };
        let (operation, rowid) = match (was, is) {
            (false, false) => return Ok(None),
            (false, true) => (Operation::Insert, rowid_after),
            (true, false) => (Operation::Delete, change.rowid),
            (true, true) => (Operation::Update, change.rowid),
        };
        let (before, after) = (was.then(|| row(&change.before)).flatten(), is.then(|| row(&change.after)).flatten());
        if shown.columns.is_some() && operation == Operation::Update && before == after {
            return Ok(None);
        }
        Ok(Some(RowChange { table: shown.place, operation: operation.into(), rowid, before, after }))
    }
}

fn is_of(of: &Option<String>, table: &WalTable) -> bool {
    of.as_ref().is_none_or(|of| of.eq_ignore_ascii_case(&table.name))
}

fn narrow(table: &WalTable, columns: &[usize]) -> WalTable {
    let place = |key: &u32| columns.iter().position(|at| *at == *key as usize).and_then(|at| u32::try_from(at).ok());
    WalTable {
        name: table.name.clone(),
        columns: columns.iter().filter_map(|at| table.columns.get(*at).cloned()).collect(),
        primary_key: table.primary_key.iter().filter_map(place).collect(),
    }
}

/// The integer in a row's only key column, if there is one.
pub(super) fn integer_key(table: &WalTable, row: &Row) -> Option<i64> {
    let [key] = table.primary_key.as_slice() else { return None };
    match row.values.get(*key as usize)?.kind {
        Some(Kind::Integer(integer)) => Some(integer),
        _ => None,
    }
}
