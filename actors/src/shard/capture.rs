//! The row images of the transaction that runs, taken by SQLite's pre-update hook and kept encoded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, ImagesOf, Operation, Row, RowImage, SchemaChange, Sequence, WalRecord, WalTable};
use prost::Message;
use rusqlite::Connection;
use rusqlite::hooks::{Action, PreUpdateCase};
use rusqlite::types::ValueRef;

use super::encoding::{Change, put_change, put_value};
use super::guard::Guard;
use super::log::corrupt;
use super::schema::TableShape;
use crate::sql_hooks::ThreadBound;
use crate::sql_value::sql_error;

/// Most bytes one transaction's record may take.
pub(super) const MAX_RECORD_BYTES: usize = 128 << 20;

/// Largest value a row may hold, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;

/// What the running transaction has changed so far.
#[derive(Default)]
pub(super) struct Capture {
    shapes: BTreeMap<String, Rc<TableShape>>,
    log: CapturedLog,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Why the transaction must not be kept.
    failure: Option<Error>,
    /// Calls of the hook that began and that ended: a panic in between would otherwise pass unnoticed.
    began: u64,
    ended: u64,
    /// Whether a row was inserted since this was last asked.
    inserted: bool,
}

/// The record of a transaction, while it grows.
#[derive(Default)]
pub(super) struct CapturedLog {
    /// The tables the record refers to, by index.
    tables: Vec<Rc<TableShape>>,
    /// The index of each table as it is now.
    indexes: BTreeMap<String, u32>,
    /// The table that changed last, by index: changes come in runs.
    last: Option<u32>,
    /// The record's changes, encoded.
    changes: Vec<u8>,
    count: u32,
    schema_changes: Vec<SchemaChange>,
    sequences: Vec<Sequence>,
}

/// How far a record has grown.
pub(super) struct Mark {
    tables: usize,
    bytes: usize,
    count: u32,
    sequences: Vec<Sequence>,
}

impl CapturedLog {
    /// How far it has grown.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            tables: self.tables.len(),
            bytes: self.changes.len(),
            count: self.count,
            sequences: self.sequences.clone(),
        }
    }

    /// Forgets what came after a mark; fails where what came before it is gone already. Schema changes have no marks.
    #[must_use]
    pub(super) fn truncate(&mut self, mark: &Mark) -> bool {
        if self.changes.len() < mark.bytes {
            return false;
        }
        self.changes.truncate(mark.bytes);
        self.tables.truncate(mark.tables);
        self.indexes.retain(|_, index| (*index as usize) < mark.tables);
        self.last = None;
        self.count = mark.count;
        self.sequences.clone_from(&mark.sequences);
        true
    }

    /// The rows of some tables that were changed after a mark.
    ///
    /// # Errors
    /// `UNKNOWN_COLUMN` where a table does not store a column.
    pub(super) fn images_since(&self, mark: &Mark, of: &[ImagesOf]) -> Result<Vec<RowImage>, Error> {
        let record = WalRecord::decode(self.changes.get(mark.bytes..).unwrap_or_default()).map_err(corrupt)?;
        // Of each table of the log: what was asked of it, and the places of the columns.
        let mut wanted: Vec<Vec<(u32, Vec<usize>)>> = Vec::with_capacity(self.tables.len());
        for shape in &self.tables {
            let mut asked = Vec::new();
            for (index, of) in (0_u32..).zip(of) {
                if of.table.eq_ignore_ascii_case(&shape.table.name) {
                    asked.push((index, places(&shape.table, &of.columns)?));
                }
            }
            wanted.push(asked);
        }
        let mut images = Vec::new();
        for change in record.changes {
            for (index, places) in wanted.get(change.table as usize).into_iter().flatten() {
                let project = |row: &Row| Row {
                    values: places.iter().map(|at| row.values.get(*at).cloned().unwrap_or_default()).collect(),
                };
                images.push(RowImage {
                    of: *index,
                    rowid: change.rowid,
                    before: change.before.as_ref().map(project),
                    after: change.after.as_ref().map(project),
                });
            }
        }
        Ok(images)
    }

    /// Whether nothing was changed.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.schema_changes.is_empty() && self.sequences.is_empty()
    }

    /// The record without its LSN, encoded.
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut record = self.changes.clone();
        record.extend_from_slice(&self.rest(0, 0).encode_to_vec());
        record
    }

    /// Everything but the row changes.
    fn rest(&self, lsn: u64, hlc: u64) -> WalRecord {
        WalRecord {
            lsn,
            hlc,
            tables: self.tables.iter().map(|shape| shape.table.clone()).collect(),
            changes: Vec::new(),
            schema_changes: self.schema_changes.clone(),
            sequences: self.sequences.clone(),
            ..WalRecord::default()
        }
    }
}

impl Capture {
    /// Puts the hook on a connection.
    pub(super) fn install(connection: &mut Connection, guard: &Rc<Guard>) -> Result<Rc<RefCell<Self>>, Error> {
        let capture = Rc::new(RefCell::new(Self::default()));
        let bound = ThreadBound::new((Rc::clone(&capture), Rc::clone(guard)));
        let hook = move |_: Action, database: &str, table: &str, case: &PreUpdateCase| {
            let (capture, guard) = bound.get();
            if database == "main" && !guard.is_own() && !table.starts_with("sqlite_") {
                capture.borrow_mut().row(table, case);
            }
        };
        connection.preupdate_hook(Some(hook)).map_err(sql_error)?;
        Ok(capture)
    }

    /// Tables as they are from now on.
    pub(super) fn set_shapes(&mut self, shapes: &BTreeMap<String, Rc<TableShape>>) {
        self.shapes.clone_from(shapes);
        self.log.indexes.clear();
        self.log.last = None;
    }

    /// Forgets everything but the tables.
    pub(super) fn clear(&mut self) {
        let shapes = std::mem::take(&mut self.shapes);
        let mut changes = std::mem::take(&mut self.log.changes);
        changes.clear();
        // One large transaction must not hold its memory for ever.
        changes.shrink_to(1 << 20);
        *self = Self { shapes, log: CapturedLog { changes, ..CapturedLog::default() }, ..Self::default() };
    }

    /// Whether nothing was changed.
    pub(super) fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// What was changed so far.
    pub(super) fn log_mut(&mut self) -> &mut CapturedLog {
        &mut self.log
    }

    /// Ends this transaction's capture; what it has changed is the caller's.
    pub(super) fn take_log(&mut self) -> CapturedLog {
        let log = std::mem::take(&mut self.log);
        self.clear();
        log
    }

    /// Goes on with a transaction.
    pub(super) fn put_log(&mut self, log: CapturedLog) {
        self.clear();
        self.log = log;
    }

    /// Whether a row was inserted since this was last asked.
    pub(super) fn take_inserted(&mut self) -> bool {
        std::mem::take(&mut self.inserted)
    }

    /// Records where AUTOINCREMENT has moved to; this takes the place of what was said before.
    pub(super) fn set_sequences(&mut self, sequences: Vec<Sequence>) {
        self.log.sequences = sequences;
    }

    /// Records a change of the schema, after the row changes so far.
    pub(super) fn schema_changed(&mut self, change: SchemaChange) {
        self.log.schema_changes.push(SchemaChange { after_changes: self.log.count, ..change });
    }

    /// All changes since the last change of the schema show values under a column's new name.
    pub(super) fn were_renaming(&mut self) {
        let count = self.log.count;
        if let Some(change) = self.log.schema_changes.last_mut() {
            change.renaming_changes = count - change.after_changes;
        }
    }

    /// Records one row that the hook does not see.
    pub(super) fn row_outside_hook(
        &mut self,
        shape: &TableShape,
        operation: Operation,
        rowid: i64,
        before: Option<&[ValueRef<'_>]>,
        after: &[ValueRef<'_>],
    ) -> Result<(), Error> {
        let Some(table) = self.index(&shape.table.name) else { return self.check() };
        self.before.clear();
        self.after.clear();
        for value in before.into_iter().flatten() {
            put_value(&mut self.before, *value);
        }
        for value in after {
            put_value(&mut self.after, *value);
        }
        self.push(table, operation, rowid, before.is_some(), true);
        self.check()
    }

    /// Fails where an image is missing or the transaction has grown beyond the limits.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        if self.began != self.ended {
            return Err(Error::internal("a row image could not be taken"));
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// The record, encoded. Ends this transaction's capture.
    pub(super) fn record(&mut self, lsn: u64, hlc: u64) -> &[u8] {
        let rest = self.log.rest(lsn, hlc);
        let changes = &mut self.log.changes;
        changes.reserve(rest.encoded_len());
        // Protobuf's fields may come in any order: what is known last goes last, and the changes are not copied.
        changes.extend_from_slice(&rest.encode_to_vec());
        changes
    }

    fn row(&mut self, table: &str, case: &PreUpdateCase) {
        if self.failure.is_some() {
            return;
        }
        self.began += 1;
        if let Some(index) = self.index(table)
            && let Err(error) = self.images(index, case)
        {
            self.failure.get_or_insert_with(|| sql_error(error));
        }
        self.ended += 1;
    }

    fn index(&mut self, name: &str) -> Option<u32> {
        if let Some(last) = self.log.last
            && self.log.tables[last as usize].table.name == name
        {
            return Some(last);
        }
        if let Some(index) = self.log.indexes.get(name) {
            self.log.last = Some(*index);
            return self.log.last;
        }
        let Some(shape) = self.shapes.get(name) else {
            self.failure.get_or_insert_with(|| Error::internal(format!("rows of the unknown table {name} changed")));
            return None;
        };
        let index = u32::try_from(self.log.tables.len()).ok()?;
        self.log.tables.push(Rc::clone(shape));
        self.log.indexes.insert(name.to_owned(), index);
        self.log.last = Some(index);
        self.log.last
    }

    fn images(&mut self, table: u32, case: &PreUpdateCase) -> rusqlite::Result<()> {
        let shape = Rc::clone(&self.log.tables[table as usize]);
        let rowid = |rowid: i64| if shape.has_rowid { rowid } else { 0 };
        match case {
            PreUpdateCase::Insert(new) => {
                self.inserted |= shape.has_rowid && new.get_query_depth() == 0;
                image(&mut self.after, &shape, &mut self.failure, |column| new.get_new_column_value(column))?;
                self.push(table, Operation::Insert, rowid(new.get_new_row_id()), false, true);
            }
            PreUpdateCase::Delete(old) => {
                image(&mut self.before, &shape, &mut self.failure, |column| old.get_old_column_value(column))?;
                self.push(table, Operation::Delete, rowid(old.get_old_row_id()), true, false);
            }
            PreUpdateCase::Update { old_value_accessor: old, new_value_accessor: new } => {
                image(&mut self.before, &shape, &mut self.failure, |column| old.get_old_column_value(column))?;
                image(&mut self.after, &shape, &mut self.failure, |column| new.get_new_column_value(column))?;
                let (was, is) = (rowid(old.get_old_row_id()), rowid(new.get_new_row_id()));
                if was != is && !shape.rowid_is_key {
                    // No column shows the new rowid, which may be all that tells the row from others.
                    self.push(table, Operation::Delete, was, true, false);
                    self.push(table, Operation::Insert, is, false, true);
                } else {
                    self.push(table, Operation::Update, was, true, true);
                }
            }
            PreUpdateCase::Unknown => {
                self.failure = Some(Error::internal("SQLite reported a change of an unknown kind"));
            }
        }
        Ok(())
    }

    fn push(&mut self, table: u32, operation: Operation, rowid: i64, before: bool, after: bool) {
        let change = Change {
            table,
            operation,
            rowid,
            before: before.then_some(self.before.as_slice()),
            after: after.then_some(self.after.as_slice()),
        };
        put_change(&mut self.log.changes, &change);
        self.log.count += 1;
        if self.log.changes.len() > MAX_RECORD_BYTES {
            let message = format!("one transaction may change at most {MAX_RECORD_BYTES} bytes of rows; split it");
            self.failure.get_or_insert_with(|| Error::new(ErrorCode::TooLarge, message));
            self.log.changes = Vec::new();
        }
    }
}

/// The places of columns among those that a table stores.
fn places(table: &WalTable, columns: &[String]) -> Result<Vec<usize>, Error> {
    let place = |name: &String| {
        let found = table.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::new(ErrorCode::UnknownColumn, format!("no such column: {}.{name}", table.name)))
    };
    columns.iter().map(place).collect()
}

/// Encodes the row whose columns `value` gives.
fn image<'v>(
    out: &mut Vec<u8>,
    shape: &TableShape,
    failure: &mut Option<Error>,
    value: impl Fn(i32) -> rusqlite::Result<ValueRef<'v>>,
) -> rusqlite::Result<()> {
    out.clear();
    for (at, column) in shape.stored.iter().enumerate() {
        let value = match value(*column)? {
            ValueRef::Integer(integer) if shape.real[at] => ValueRef::Real(integer as f64),
            value => value,
        };
        if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = value
            && bytes.len() > MAX_VALUE_BYTES
        {
            let name = &shape.table.columns[at].name;
            let message =
                format!("the value of column {name} has {} bytes; at most {MAX_VALUE_BYTES} are allowed", bytes.len());
            failure.get_or_insert_with(|| Error::new(ErrorCode::TooLarge, message));
        }
        put_value(out, value);
    }
    Ok(())
}
