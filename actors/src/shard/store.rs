//! A shard's database.

mod altering;
mod following;
mod group;
mod member;
mod snapshot;
mod transactions;

use std::cell::RefCell;
use std::rc::Rc;

use dosql_proto::{
    AckWal, Error, ErrorCode, ReadWal, Row, RowBatch, ShardExecute, ShardExecuted, ShardLoad, ShardQuery, ShardStatus,
    Statement, StatementResult, WalBatch,
};
use rusqlite::Connection;
use rusqlite::limits::Limit;

use self::group::begin_unit;
pub(super) use self::member::Member;
pub(super) use self::transactions::Doubt;
use self::transactions::Writer;
use super::apply::{self, Sequences};
use super::capture::{Capture, MAX_RECORD_BYTES};
use super::cursors::Cursors;
use super::guard::{Guard, MAX_SQL_BYTES, check_text, may_roll_back, own_sql};
use super::log::{Keep, Log};
use super::schema::Schema;
use crate::runtime::Context;
use crate::sql_name::quote;
use crate::sql_sum;
use crate::sql_value::{self, Param, sql_error};

/// Most bytes of rows that one request's statements may return together.
const MAX_RESULT_BYTES: usize = 8 << 20;

/// Prepared statements kept for reuse.
const CACHED_STATEMENTS: usize = 256;

/// Why a request was not done.
pub(super) enum Failure {
    /// It left nothing behind; the shard goes on.
    Refused(Error),
    /// The group's transaction is gone or in doubt: the shard must restart from storage.
    Crash(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

pub(super) struct Store {
    context: Context,
    connection: Connection,
    guard: Rc<Guard>,
    capture: Rc<RefCell<Capture>>,
    schema: Schema,
    /// Where AUTOINCREMENT stands.
    sequences: Sequences,
    pub(super) log: Log,
    pub(super) member: Member,
    /// Of a replica: the number of what it has taken over last.
    taken: u64,
    /// Of a replica: the last LSN of its primary, as far as it knows.
    primary_lsn: u64,
    /// Of a replica: when it is known to have been as its primary, in milliseconds since the epoch.
    pub(super) fresh_at_ms: u64,
    /// Whether the unit that runs has changed the schema.
    schema_touched: bool,
    /// Requests whose effects the open transaction holds; `None` where none is open.
    group: Option<usize>,
    /// The transaction that holds the write lock.
    writer: Option<Writer>,
    /// Whether the statements that run belong to it.
    in_transaction: bool,
    /// Whether SQLite was told to keep the open transaction's pages in memory.
    spill_off: bool,
}

impl Store {
    /// Opens the shard's storage.
    pub(super) fn open(context: &Context) -> Result<Self, Error> {
        let mut connection = context.open_storage()?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        connection.execute_batch("PRAGMA foreign_keys = ON").map_err(sql_error)?;
        sql_sum::define_part(&connection).map_err(sql_error)?;
        let guard = Guard::install(&mut connection, context)?;
        let (log, schema, sequences, writer, member) = {
            let _own = guard.own();
            let log = Log::open(&connection)?;
            let schema = Schema::load(&connection)?;
            let sequences = apply::sequences(&connection, &schema)?;
            let writer = Writer::recover(&connection, context.now_ms())?;
            (log, schema, sequences, writer, Member::open(&connection, &context.address().name)?)
        };
        for (limit, bytes) in [
            (Limit::SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES),
            // The shard's own records are the longest values there are.
            (Limit::SQLITE_LIMIT_LENGTH, MAX_RECORD_BYTES + MAX_RECORD_BYTES / 4),
        ] {
            let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
            connection.set_limit(limit, bytes).map_err(sql_error)?;
        }
        let capture = Capture::install(&mut connection, &guard)?;
        capture.borrow_mut().set_shapes(schema.shapes());
        Ok(Self {
            context: context.clone(),
            connection,
            guard,
            capture,
            schema,
            sequences,
            log,
            member,
            taken: 0,
            primary_lsn: 0,
            fresh_at_ms: 0,
            schema_touched: false,
            group: None,
            writer,
            in_transaction: false,
            spill_off: false,
        })
    }

    /// The member's name.
    pub(super) fn name(&self) -> &str {
        &self.context.address().name
    }

    /// Bytes that a replica fetches at a time.
    pub(super) fn batch_size(&self) -> u32 {
        self.context.settings().replica_batch_size
    }

    /// When the statements that follow must end, in milliseconds since the epoch (0: never), and whether they only read: those
    /// end when nobody waits for their rows any more.
    pub(super) fn set_limits(&self, deadline_ms: u64, reads: bool) {
        self.guard.set_limits(deadline_ms, reads);
    }

    /// Runs statements as one unit.
    pub(super) fn execute(&mut self, request: &ShardExecute) -> Result<ShardExecuted, Failure> {
        if let Some(transaction) = &request.transaction {
            return self.execute_within(request, transaction);
        }
        self.set_aside()?;
        if request.statements.is_empty() {
            return Err(Error::invalid("the request holds no statement").into());
        }
        if !request.images_of.is_empty() {
            return Err(Error::invalid("row images are told of the statements of a transaction alone").into());
        }
        check_texts(&request.statements)?;
        let alone = request.statements.iter().any(|statement| may_roll_back(&statement.sql));
        self.unit(&request.request_id, alone, |store, open| store.statements(&request.statements, open))
    }

    /// Inserts rows in bulk as one unit.
    pub(super) fn load(&mut self, request: &ShardLoad) -> Result<ShardExecuted, Failure> {
        if request.columns.is_empty() {
            return Err(Error::invalid("a load must name its columns").into());
        }
        if let Some(transaction) = &request.transaction {
            return self.load_within(request, transaction);
        }
        self.set_aside()?;
        self.unit(&request.request_id, false, |store, open| {
            store.check_unlocked()?;
            store.rows(request, open)
        })
    }

    /// Runs one reading statement.
    pub(super) fn query(&mut self, cursors: &mut Cursors, request: &ShardQuery) -> Result<RowBatch, Failure> {
        let Some(Statement { sql, .. }) = &request.statement else {
            return Err(Error::invalid("the query holds no statement").into());
        };
        check_text(sql)?;
        self.check_bounds(request)?;
        self.prepare_read(request)?;
        self.guard.take_schema_statement();
        let mut prepared = self.connection.prepare_cached(sql).map_err(|error| self.guard.explain(sql_error(error)))?;
        let schema_statement = self.guard.take_schema_statement();
        let lsn = self.log.last_lsn;
        let answer = if prepared.readonly() {
            cursors.query(&self.context, &mut prepared, request).map_err(|error| self.guard.explain(error))
        } else {
            Err(Error::invalid("the statement writes; send it as an Execute"))
        };
        if schema_statement {
            prepared.discard();
        }
        Ok(RowBatch { lsn, ..answer? })
    }

    pub(super) fn read_wal(&self, request: &ReadWal) -> Result<WalBatch, Error> {
        let _own = self.guard.own();
        self.log.read_after(&self.connection, request)
    }

    pub(super) fn acknowledge(&mut self, request: &AckWal) -> Result<u64, Failure> {
        let settings = self.context.settings();
        let keep = Keep { bytes: settings.wal_segment_size, replica_bytes: settings.replica_log_size };
        self.set_aside()?;
        self.begin()?;
        let _own = self.guard.own();
        let acked = self.log.acknowledge(&self.connection, request, keep);
        self.group = self.group.map(|units| units + 1);
        acked.map_err(
            |error| if error.code() == ErrorCode::InvalidRequest { error.into() } else { Failure::Crash(error) },
        )
    }

    pub(super) fn status(&self) -> Result<ShardStatus, Error> {
        let _own = self.guard.own();
        let pages = |sql: &str| -> Result<u64, Error> {
            let number: i64 = self
                .connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
                .map_err(sql_error)?;
            Ok(u64::try_from(number).unwrap_or(0))
        };
        Ok(ShardStatus {
            last_lsn: self.log.last_lsn,
            oldest_lsn: self.log.oldest_lsn,
            hlc: self.log.hlc,
            database_bytes: pages(own_sql!("PRAGMA page_count"))? * pages(own_sql!("PRAGMA page_size"))?,
            tables: self.schema.tables(),
            transaction: self.writer.as_ref().map(|writer| writer.id.clone()).unwrap_or_default(),
            prepared: self.writer.as_ref().is_some_and(Writer::is_prepared),
            member: Some(self.member.state.clone()),
            fresh_at_ms: self.fresh_at_ms,
            primary_lsn: self.primary_lsn,
            ..ShardStatus::default()
        })
    }

    fn statements(&mut self, statements: &[Statement], open: &mut bool) -> Result<Vec<StatementResult>, Error> {
        let mut results = Vec::with_capacity(statements.len());
        let mut bytes_left = MAX_RESULT_BYTES;
        for statement in statements {
            results.push(self.statement(statement, open, &mut bytes_left)?);
        }
        Ok(results)
    }

    fn statement(
        &mut self,
        statement: &Statement,
        open: &mut bool,
        bytes_left: &mut usize,
    ) -> Result<StatementResult, Error> {
        self.guard.take_schema_statement();
        let explain = |error| self.guard.explain(sql_error(error));
        let mut prepared = self.connection.prepare_cached(&statement.sql).map_err(explain)?;
        let changes_schema = self.guard.take_schema_statement();
        let writes = !prepared.readonly();
        let outcome = if changes_schema && self.in_transaction {
            Err(Error::new(ErrorCode::Unsupported, "a schema change within a transaction is not supported"))
        } else if writes && !*open {
            let begun = self.check_unlocked().and_then(|()| begin_unit(&self.connection, &self.guard, &mut self.group));
            begun.inspect(|()| *open = true)
        } else {
            Ok(())
        };
        let before = self.connection.total_changes();
        self.capture.borrow_mut().take_inserted();
        let outcome = outcome
            .and_then(|()| sql_value::run(&mut prepared, &statement.params, *bytes_left))
            .map_err(|error| self.guard.explain(error));
        if changes_schema {
            // A statement is authorised, and so known to change the schema, only when it is prepared.
            prepared.discard();
        } else {
            drop(prepared);
        }
        // Why a row was refused explains more than what SQLite made of it.
        self.capture.borrow_mut().check()?;
        let collected = outcome?;
        *bytes_left = bytes_left.saturating_sub(collected.bytes);
        if writes && changes_schema {
            self.schema_may_have_changed(&statement.sql)?;
        }
        let changed = writes && self.connection.total_changes() != before;
        let inserted = self.capture.borrow_mut().take_inserted();
        Ok(StatementResult {
            columns: collected.columns,
            rows: collected.rows,
            rows_affected: if changed { self.connection.changes() } else { 0 },
            last_insert_rowid: if inserted { self.connection.last_insert_rowid() } else { 0 },
            ..StatementResult::default()
        })
    }

    fn rows(&mut self, request: &ShardLoad, open: &mut bool) -> Result<Vec<StatementResult>, Error> {
        let columns = request.columns.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
        let marks = vec!["?"; request.columns.len()].join(", ");
        let sql = format!("INSERT INTO {} ({columns}) VALUES ({marks})", quote(&request.table));
        check_text(&sql)?;
        let explain = |error| self.guard.explain(sql_error(error));
        let mut insert = self.connection.prepare_cached(&sql).map_err(explain)?;
        if !*open {
            begin_unit(&self.connection, &self.guard, &mut self.group)?;
            *open = true;
        }
        self.capture.borrow_mut().take_inserted();
        let mut rows_affected = 0;
        for (at, row) in request.rows.iter().enumerate() {
            rows_affected += insert_row(&mut insert, row, request.columns.len()).map_err(|error| {
                let error = self.guard.explain(error);
                Error { message: format!("row {} of {}: {}", at + 1, request.rows.len(), error.message), ..error }
            })?;
        }
        drop(insert);
        let mut capture = self.capture.borrow_mut();
        capture.check()?;
        let last_insert_rowid = if capture.take_inserted() { self.connection.last_insert_rowid() } else { 0 };
        Ok(vec![StatementResult { rows_affected, last_insert_rowid, ..StatementResult::default() }])
    }
}

fn check_texts(statements: &[Statement]) -> Result<(), Error> {
    statements.iter().try_for_each(|statement| check_text(&statement.sql))
}

fn insert_row(insert: &mut rusqlite::Statement<'_>, row: &Row, width: usize) -> Result<u64, Error> {
    if row.values.len() != width {
        let message = format!("it has {} values for {width} columns", row.values.len());
        return Err(Error::new(ErrorCode::ParameterCount, message));
    }
    for (at, value) in row.values.iter().enumerate() {
        insert.raw_bind_parameter(at + 1, Param(value)).map_err(sql_error)?;
    }
    insert.raw_execute().map(|rows| rows as u64).map_err(sql_error)
}
