//! A copy of everything a primary has, part by part, while it goes on writing.
//!
//! Each part brings the records since the part before, and then rows as of the last of them. So the replica always has exactly
//! what its primary had at one LSN, of all rows up to some key: a change of a row beyond that key is left out, since the row
//! comes later, with the change. What it has is a subset of a consistent state at any moment, and no constraint is violated.

use dosql_proto::{
    Error, ErrorCode, MemberState, Operation, ReadSnapshot, Row, RowChange, SnapshotPart, SnapshotPlace, SnapshotStage,
    WalRecord,
};
use prost::Message;
use rusqlite::Connection;

use super::super::apply;
use super::super::guard::own_sql;
use super::super::log::Log;
use super::super::schema::TableShape;
use super::transactions::Writer;
use super::{Failure, Store};
use crate::sql_name::quote;
use crate::sql_value::{self, Param, sql_error};

const DEFAULT_BYTES: usize = 1 << 20;
const MAX_BYTES: usize = 16 << 20;

fn start_over(message: String) -> Error {
    Error::new(ErrorCode::UnknownPosition, message)
}

/// How the rows of a table are told apart and ordered.
struct TableKey<'s> {
    shape: &'s TableShape,
    /// The columns of the key, quoted; a name of the rowid where it is that.
    names: Vec<String>,
}

impl<'s> TableKey<'s> {
    fn of(shape: &'s TableShape) -> Result<Self, Error> {
        let columns = &shape.table.columns;
        let names = if shape.has_rowid {
            let taken = |name: &str| columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            match ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name)) {
                Some(name) => vec![name.to_owned()],
                None if shape.rowid_is_key => {
                    vec![quote(&columns[shape.table.primary_key[0] as usize].name)]
                }
                None => {
                    let name = &shape.table.name;
                    let message = format!("table {name} cannot be copied: its columns take all names of the rowid");
                    return Err(Error::new(ErrorCode::Unsupported, message));
                }
            }
        } else {
            shape.table.primary_key.iter().map(|at| quote(&columns[*at as usize].name)).collect()
        };
        Ok(Self { shape, names })
    }

    fn list(&self) -> String {
        self.names.join(", ")
    }

    fn marks(&self) -> String {
        vec!["?"; self.names.len()].join(", ")
    }

    /// The key of a row whose image this is.
    fn key(&self, rowid: i64, row: &Row) -> Row {
        if self.shape.has_rowid {
            return Row { values: vec![rowid.into()] };
        }
        let value = |at: &u32| row.values.get(*at as usize).cloned().unwrap_or_default();
        Row { values: self.shape.table.primary_key.iter().map(value).collect() }
    }

    /// The rowid of a row after a change.
    fn rowid_after(&self, change: &RowChange) -> i64 {
        use dosql_proto::value::Kind;
        if self.shape.rowid_is_key
            && let (Some(at), Some(after)) = (self.shape.table.primary_key.first(), &change.after)
            && let Some(Some(Kind::Integer(rowid))) = after.values.get(*at as usize).map(|value| value.kind.as_ref())
        {
            return *rowid;
        }
        change.rowid
    }

    /// Whether the table has a row at or beyond a key.
    fn reaches(&self, connection: &Connection, key: &Row) -> Result<bool, Error> {
        let table = quote(&self.shape.table.name);
        let sql = format!("/*_dosql_*/ SELECT 1 FROM {table} WHERE ({}) >= ({}) LIMIT 1", self.list(), self.marks());
        let mut statement = connection.prepare_cached(&sql).map_err(sql_error)?;
        sql_value::bind(&mut statement, &key.values)?;
        let mut rows = statement.raw_query();
        Ok(rows.next().map_err(sql_error)?.is_some())
    }

    /// The greatest key; `None` where there is no row.
    fn greatest(&self, connection: &Connection) -> Result<Option<Row>, Error> {
        let descending: Vec<String> = self.names.iter().map(|name| format!("{name} DESC")).collect();
        let table = quote(&self.shape.table.name);
        let list = self.list();
        let sql = format!("/*_dosql_*/ SELECT {list} FROM {table} ORDER BY {} LIMIT 1", descending.join(", "));
        let mut statement = connection.prepare_cached(&sql).map_err(sql_error)?;
        let mut rows = statement.raw_query();
        match rows.next().map_err(sql_error)? {
            Some(row) => sql_value::to_row(row, self.names.len()).map(Some).map_err(sql_error),
            None => Ok(None),
        }
    }

    /// Rows after a key, as a record of inserts, and whether these are all.
    fn rows_after(
        &self,
        connection: &Connection,
        after: Option<&Row>,
        max_bytes: usize,
    ) -> Result<(WalRecord, bool), Error> {
        let columns: Vec<String> = self.shape.table.columns.iter().map(|column| quote(&column.name)).collect();
        let rowid = if self.shape.has_rowid { &self.names[0] } else { "0" };
        let condition = match after {
            Some(_) => format!("WHERE ({}) > ({})", self.list(), self.marks()),
            None => String::new(),
        };
        let sql = format!(
            "/*_dosql_*/ SELECT {rowid}, {} FROM {} {condition} ORDER BY {}",
            columns.join(", "),
            quote(&self.shape.table.name),
            self.list()
        );
        let mut statement = connection.prepare_cached(&sql).map_err(sql_error)?;
        for (place, value) in after.into_iter().flat_map(|row| &row.values).enumerate() {
            statement.raw_bind_parameter(place + 1, Param(value)).map_err(sql_error)?;
        }
        let mut rows = statement.raw_query();
        let mut record = WalRecord { tables: vec![self.shape.table.clone()], ..WalRecord::default() };
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(sql_error)? {
            if bytes >= max_bytes {
                return Ok((record, false));
            }
            let mut values = sql_value::to_row(row, columns.len() + 1).map_err(sql_error)?.values;
            values.remove(0);
            let mut change = RowChange {
                rowid: row.get(0).map_err(sql_error)?,
                after: Some(Row { values }),
                ..RowChange::default()
            };
            change.set_operation(Operation::Insert);
            bytes += change.encoded_len();
            record.changes.push(change);
        }
        Ok((record, true))
    }
}

/// The primary's side.
impl Store {
    /// The next part of a copy.
    pub(in crate::shard) fn read_snapshot(&mut self, request: &ReadSnapshot) -> Result<SnapshotPart, Failure> {
        self.set_aside()?;
        Ok(self.snapshot_part(request)?)
    }

    fn snapshot_part(&self, request: &ReadSnapshot) -> Result<SnapshotPart, Error> {
        let place = request.place.clone().unwrap_or_default();
        let max_bytes = match request.max_bytes as usize {
            0 => DEFAULT_BYTES,
            bytes => bytes.min(MAX_BYTES),
        };
        let mut part = SnapshotPart {
            stage: place.stage,
            part: place.part,
            epochs: self.member.state.epochs.clone(),
            lsn: self.log.last_lsn,
            oldest_lsn: self.log.oldest_lsn,
            ..SnapshotPart::default()
        };
        let _own = self.guard.own();
        if place.stage() == SnapshotStage::Unspecified {
            part.objects = self.schema.definitions().into_iter().map(|(_, object)| object).collect();
            part.copied = Log::records_after(&self.connection, self.log.last_lsn.saturating_sub(1), max_bytes)?;
            part.complete = true;
            return Ok(part);
        }
        if place.lsn_epoch != self.member.epoch_at(self.log.last_lsn) || place.lsn + 1 < self.log.oldest_lsn {
            return Err(start_over(format!("the copy as of LSN {} cannot be continued", place.lsn)));
        }
        self.check_history(place.lsn, place.lsn_epoch)?;
        part.records = Log::records_after(&self.connection, place.lsn, max_bytes)?;
        if part.records.iter().any(|record| !record.schema_changes.is_empty()) {
            return Err(start_over("the schema was changed while it was copied".to_owned()));
        }
        let reached = part.records.last().map_or(place.lsn, |record| record.lsn);
        if reached < self.log.last_lsn {
            part.lsn = reached;
            return Ok(part);
        }
        match place.stage() {
            SnapshotStage::Rows => {
                let shape = self.schema.shapes().get(&place.table);
                let shape = shape.ok_or_else(|| start_over(format!("there is no table {}", place.table)))?;
                let (rows, complete) =
                    TableKey::of(shape)?.rows_after(&self.connection, place.after.as_ref(), max_bytes)?;
                (part.copied, part.complete) = (vec![rows], complete);
            }
            SnapshotStage::Records => {
                let next = place.next_lsn.max(self.log.oldest_lsn);
                if next < place.began_lsn {
                    part.copied = Log::records_after(&self.connection, next.saturating_sub(1), max_bytes)?;
                    part.copied.retain(|record| record.lsn < place.began_lsn);
                }
                part.complete = part.copied.last().map_or(next, |record| record.lsn + 1) >= place.began_lsn;
            }
            SnapshotStage::Requests | SnapshotStage::Rest => {
                (part.outcomes, part.complete) = self.outcomes_after(place.after_request, u64::MAX, max_bytes)?;
                part.prepared = self.writer.as_ref().and_then(Writer::prepared);
                part.sequences = apply::Sequences::default().moved_to(&self.sequences);
            }
            SnapshotStage::Unspecified => {}
        }
        Ok(part)
    }
}

/// The replica's side.
impl Store {
    /// Begins to copy everything from the primary. What there is remains until the first part has come.
    pub(super) fn start_over(&mut self, reason: &str, number: u64) -> Result<(), Failure> {
        tracing::warn!(member = %self.context.address(), reason, "copying everything from the primary");
        self.member.state.snapshot = Some(SnapshotPlace { part: number, ..SnapshotPlace::default() });
        self.save_member()
    }

    /// Takes over a part of the copy.
    pub(super) fn take_part(&mut self, part: &SnapshotPart) -> Result<(), Error> {
        let Some(mut place) = self.member.state.snapshot.clone() else { return Ok(()) };
        if part.stage != place.stage || part.part != place.part {
            return Ok(());
        }
        super::group::begin_group(&self.connection, &self.guard, &mut self.group)?;
        let reached = part.records.last().map_or(place.lsn, |record| record.lsn);
        for record in &part.records {
            self.take_partly(record, &place)?;
        }
        place.lsn = place.lsn.max(reached);
        match place.stage() {
            SnapshotStage::Unspecified => {
                self.begin_copy(part)?;
                place.lsn = part.lsn;
                place.lsn_epoch = self.member.epoch_at(part.lsn);
                (place.began_lsn, place.next_lsn) = (part.lsn, 0);
                self.next_table(&mut place, "");
            }
            SnapshotStage::Rows if reached == part.lsn => {
                self.quietly(|store| {
                    let rows = part.copied.iter();
                    rows.into_iter().try_for_each(|rows| {
                        apply::changes(&store.connection, store.schema.shapes(), rows, 0..rows.changes.len())
                    })
                })?;
                if part.complete {
                    let table = std::mem::take(&mut place.table);
                    self.next_table(&mut place, &table);
                }
            }
            SnapshotStage::Records => {
                let _own = self.guard.own();
                self.log.put_before(&self.connection, &part.copied)?;
                self.log.prune_before(&self.connection, part.oldest_lsn)?;
                place.next_lsn = part.copied.last().map_or(place.next_lsn, |record| record.lsn + 1);
                if part.complete {
                    place.set_stage(SnapshotStage::Requests);
                }
            }
            SnapshotStage::Requests | SnapshotStage::Rest => {
                self.take_outcomes(&part.outcomes)?;
                place.after_request = part.outcomes.last().map_or(place.after_request, |last| last.number);
                if part.complete && reached == part.lsn {
                    let _own = self.guard.own();
                    self.connection
                        .execute_batch(if self.schema.has_sequences {
                            own_sql!("DELETE FROM sqlite_sequence")
                        } else {
                            ""
                        })
                        .map_err(sql_error)?;
                    apply::set_sequences(&self.connection, &part.sequences)?;
                    self.set_prepared(part.prepared.as_ref())?;
                    let _own = self.guard.own();
                    self.sequences = apply::sequences(&self.connection, &self.schema)?;
                    place.set_stage(SnapshotStage::Unspecified);
                }
            }
            SnapshotStage::Rows => {}
        }
        let done = place.stage() == SnapshotStage::Unspecified;
        place.part += 1;
        if place.stage() == SnapshotStage::Rows {
            place.after = match self.schema.shapes().get(&place.table) {
                Some(shape) => {
                    let _own = self.guard.own();
                    TableKey::of(shape)?.greatest(&self.connection)?
                }
                None => None,
            };
        }
        self.member.state.snapshot = (!done).then_some(place);
        let _own = self.guard.own();
        self.member.save(&self.connection)?;
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }

    /// Has nothing but the schema and the record at which the copy begins.
    fn begin_copy(&mut self, part: &SnapshotPart) -> Result<(), Error> {
        let dropped = self.schema.definitions();
        self.quietly(|store| {
            for (kind, object) in dropped.iter().rev() {
                let sql = format!("/*_dosql_*/ DROP {kind} IF EXISTS {}", quote(&object.name));
                store.connection.execute_batch(&sql).map_err(sql_error)?;
            }
            part.objects.iter().try_for_each(|object| store.connection.execute_batch(&object.sql).map_err(sql_error))
        })?;
        {
            let _own = self.guard.own();
            self.log.reset(&self.connection, part.copied.last())?;
        }
        self.member.state = MemberState { epochs: Vec::new(), ..self.member.state.clone() };
        self.member.set_epochs(&part.epochs, part.lsn);
        self.load_schema()
    }

    /// Goes on with the table after this one, or with what comes after the tables.
    fn next_table(&self, place: &mut SnapshotPlace, table: &str) {
        match self.schema.shapes().keys().find(|name| name.as_str() > table) {
            Some(next) => {
                place.set_stage(SnapshotStage::Rows);
                place.table.clone_from(next);
            }
            None => place.set_stage(SnapshotStage::Records),
        }
    }

    /// Does what a record says of rows that are here already, and appends it to the log.
    fn take_partly(&mut self, record: &WalRecord, place: &SnapshotPlace) -> Result<(), Error> {
        let copying = place.stage() == SnapshotStage::Rows;
        self.quietly(|store| {
            let shapes = store.schema.shapes();
            if !copying {
                return apply::changes(&store.connection, shapes, record, 0..record.changes.len());
            }
            for (at, change) in record.changes.iter().enumerate() {
                let Some(table) = record.tables.get(change.table as usize) else { continue };
                if table.name < place.table {
                    apply::changes(&store.connection, shapes, record, at..at + 1)?;
                } else if table.name == place.table
                    && let Some(shape) = shapes.get(&table.name)
                    && let Some(change) = within(&store.connection, &TableKey::of(shape)?, change)?
                {
                    let alone = WalRecord { changes: vec![change], ..head(record) };
                    apply::changes(&store.connection, shapes, &alone, 0..1)?;
                }
            }
            Ok(())
        })?;
        self.append_taken(record)
    }
}

/// A record without its changes.
fn head(record: &WalRecord) -> WalRecord {
    WalRecord { lsn: record.lsn, hlc: record.hlc, tables: record.tables.clone(), ..WalRecord::default() }
}

/// What a change means for the rows that are here: those up to the greatest key.
fn within(connection: &Connection, key: &TableKey<'_>, change: &RowChange) -> Result<Option<RowChange>, Error> {
    let reaches = |rowid: i64, row: &Option<Row>| -> Result<bool, Error> {
        match row {
            Some(row) => key.reaches(connection, &key.key(rowid, row)),
            None => Ok(false),
        }
    };
    let rowid_after = key.rowid_after(change);
    let before = reaches(change.rowid, &change.before)?;
    let after = reaches(rowid_after, &change.after)?;
    let only = |operation: Operation, rowid: i64| {
        let mut only = RowChange { rowid, ..change.clone() };
        only.set_operation(operation);
        Some(only)
    };
    Ok(match (before, after) {
        (false, false) => None,
        (true, true) => Some(change.clone()),
        (true, false) => only(Operation::Delete, change.rowid),
        (false, true) => only(Operation::Insert, rowid_after),
    })
}
