//! Writes as units within a group that one commit makes durable.

use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, ShardExecuted, StatementResult};
use rusqlite::{Connection, ffi};

use super::super::apply;
use super::super::guard::{Guard, own_sql};
use super::{Failure, Store};
use crate::sql_value::sql_error;

impl Store {
    /// Makes the group durable.
    pub(in crate::shard) fn commit(&mut self) -> Result<(), Error> {
        if self.group.is_none() {
            return Ok(());
        }
        let guard = Rc::clone(&self.guard);
        let _own = guard.own();
        self.log.forget_requests(&self.connection, self.context.now_ms())?;
        run_own(&self.connection, own_sql!("COMMIT"))?;
        self.group = None;
        self.allow_spill(true)
    }

    /// Runs `body` so that it takes effect as a whole, or not at all, and once for a request's id.
    ///
    /// `alone`: a failure may take the whole transaction with it, so there must be nobody else's work in it.
    pub(super) fn unit(
        &mut self,
        request_id: &str,
        alone: bool,
        body: impl FnOnce(&mut Self, &mut bool) -> Result<Vec<StatementResult>, Error>,
    ) -> Result<ShardExecuted, Failure> {
        {
            let _own = self.guard.own();
            if let Some(outcome) = self.log.outcome(&self.connection, request_id)? {
                return Ok(outcome);
            }
        }
        if alone || self.schema.may_roll_back {
            self.commit().map_err(Failure::Crash)?;
        }
        self.capture.borrow_mut().clear();
        self.schema_touched = false;
        self.in_transaction = false;
        let mut open = false;
        let done = body(self, &mut open);
        match done {
            Ok(results) if open => {
                let finished = self.finish(request_id, results);
                finished.or_else(|error| self.abandon(error))
            }
            Ok(results) => Ok(ShardExecuted { results, lsn: self.log.last_lsn, ..ShardExecuted::default() }),
            Err(error) if open => self.abandon(error),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a unit that succeeded: its record, its outcome, its savepoint.
    fn finish(&mut self, request_id: &str, results: Vec<StatementResult>) -> Result<ShardExecuted, Error> {
        let _own = self.guard.own();
        if deferred_violations(&self.connection)? {
            // SQLite would find them at the commit, and fail the whole group.
            return Err(Error::new(ErrorCode::Constraint, "FOREIGN KEY constraint failed"));
        }
        let now_ms = self.context.now_ms();
        let sequences = apply::sequences(&self.connection, &self.schema)?;
        let mut capture = self.capture.borrow_mut();
        capture.set_sequences(self.sequences.moved_to(&sequences));
        let (lsn, hlc) = (self.log.last_lsn, self.log.hlc);
        let oldest_lsn = self.log.oldest_lsn;
        let write = || {
            if !capture.is_empty() {
                let hlc = self.log.next_hlc(now_ms);
                let record = capture.record(self.log.last_lsn + 1, hlc);
                self.log.append(&self.connection, hlc, record)?;
            }
            let executed = ShardExecuted { results, lsn: self.log.last_lsn, ..ShardExecuted::default() };
            self.log.remember(&self.connection, request_id, now_ms, &executed)?;
            run_own(&self.connection, own_sql!("RELEASE _dosql_unit"))?;
            Ok(executed)
        };
        let written = write();
        match written {
            Ok(executed) => {
                self.group = self.group.map(|units| units + 1);
                self.sequences = sequences;
                Ok(executed)
            }
            Err(error) => {
                (self.log.last_lsn, self.log.hlc, self.log.oldest_lsn) = (lsn, hlc, oldest_lsn);
                Err(error)
            }
        }
    }

    /// Ends a unit that failed with `error`, leaving nothing of it.
    fn abandon(&mut self, error: Error) -> Result<ShardExecuted, Failure> {
        let others = self.group.unwrap_or(0);
        let rolled_back = {
            let _own = self.guard.own();
            if self.connection.is_autocommit() {
                // SQLite has rolled back everything (OR ROLLBACK, an I/O error, a full disk, an interrupt).
                self.group = None;
                if others == 0 { Ok(()) } else { Err(error.clone()) }
            } else {
                run_own(&self.connection, own_sql!("ROLLBACK TO _dosql_unit"))
                    .and_then(|()| run_own(&self.connection, own_sql!("RELEASE _dosql_unit")))
            }
        };
        self.capture.borrow_mut().clear();
        rolled_back.map_err(Failure::Crash)?;
        if self.schema_touched {
            self.reload_schema().map_err(Failure::Crash)?;
        }
        Err(error.into())
    }

    /// Opens the group where none is open.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        begin_group(&self.connection, &self.guard, &mut self.group).map_err(Failure::Crash)
    }
}

/// Runs a statement of the shard's own.
pub(super) fn run_own(connection: &Connection, sql: &'static str) -> Result<(), Error> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(|_| ()).map_err(sql_error)
}

/// Opens the group's transaction where none is open.
pub(super) fn begin_group(connection: &Connection, guard: &Guard, group: &mut Option<usize>) -> Result<(), Error> {
    if group.is_none() {
        let _own = guard.own();
        run_own(connection, own_sql!("BEGIN IMMEDIATE"))?;
        *group = Some(0);
    }
    Ok(())
}

/// Begins a unit.
pub(super) fn begin_unit(connection: &Connection, guard: &Guard, group: &mut Option<usize>) -> Result<(), Error> {
    begin_group(connection, guard, group)?;
    let _own = guard.own();
    run_own(connection, own_sql!("SAVEPOINT _dosql_unit"))
}

/// Whether rows violate DEFERRED foreign keys as things stand.
pub(super) fn deferred_violations(connection: &Connection) -> Result<bool, Error> {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the handle belongs to a connection that outlives the call, on the thread that uses it; the pointers are to
    // locals that SQLite writes before it returns.
    let status = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &raw mut current,
            &raw mut highest,
            0,
        )
    };
    match status {
        ffi::SQLITE_OK => Ok(current != 0),
        code => Err(Error::internal(format!("sqlite3_db_status failed with code {code}"))),
    }
}
