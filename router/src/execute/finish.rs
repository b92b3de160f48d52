//! Finishing a statement over gathered rows, in their scratch database.
//!
//! What is done within milliseconds is done at once. What is not is begun anew on a thread beside the router's, where the host
//! has one, so that the router goes on with other requests meanwhile.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dosql_actors::sql_hooks;
use dosql_actors::sql_value::{self, sql_error};
use dosql_proto::{Error, Row, StepStats, Value};
use futures_util::future::{Either, select};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ffi};

use super::cursor::Cursor;
use super::gather::note_footprint;
use super::read::Reading;
use super::{Scope, Shared};
use crate::sql_text;

/// How long the router finishes a statement before that moves beside it, in nanoseconds.
const AT_ONCE_NS: u64 = 3_000_000;

/// What is run on gathered rows.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Views that the statement needs.
    pub(super) views: &'a [String],
    /// The statement; its parameters are numbered.
    pub(super) sql: &'a str,
}

/// A finishing statement, on whatever thread it runs.
struct Work {
    sql: String,
    params: Vec<Value>,
    width: usize,
    max_bytes: u32,
    /// Rows after which nobody wants more.
    wanted: u64,
}

/// What it has found.
struct Found {
    /// The first batch.
    rows: Vec<Row>,
    /// All of them.
    number: u64,
    /// Whether rows beyond the first batch are kept in a table of their own, in their order.
    more: bool,
}

impl Shared {
    /// Runs the finishing statement; returns the first rows, and a cursor where there are more.
    pub(super) async fn finish(
        &self,
        scratch: Connection,
        finish: Finish<'_>,
        reading: Reading<'_>,
        scope: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let Reading { params, width, max_bytes } = reading;
        for view in finish.views {
            scratch.execute_batch(view).map_err(sql_error)?;
        }
        let began_ns = self.context.timer_ns();
        let (sql, params) = sql_text::compact_parameters(finish.sql, params);
        let wanted = match scope.rows_wanted() {
            0 => u64::MAX,
            wanted => wanted,
        };
        let work = Work { sql, params, width, max_bytes, wanted };
        let (mut scratch, found) = self.work_out(scratch, work, scope).await?;
        scope.note(|stats| note_footprint(&scratch, stats));
        scope.step(StepStats {
            step: "finish".to_owned(),
            rows: found.number,
            elapsed_us: self.since(began_ns),
            ..StepStats::default()
        });
        // The pages of the result have deadlines of their own.
        scratch.progress_handler(0, None::<fn() -> bool>).map_err(sql_error)?;
        Ok((found.rows, found.more.then_some(Cursor::Scratch { connection: scratch, last: 0, width, max_bytes })))
    }

    async fn work_out(&self, mut scratch: Connection, work: Work, scope: &Scope) -> Result<(Connection, Found), Error> {
        if !self.context.has_threads() {
            let found = work.run(&scratch)?;
            return Ok((scratch, found));
        }
        let takes_long = Rc::new(Cell::new(false));
        let (told, deadline_ms) = (Rc::clone(&takes_long), scope.deadline_ms);
        let until_ns = self.context.timer_ns().saturating_add(AT_ONCE_NS);
        sql_hooks::end_statements(&mut scratch, &self.context, move |context| {
            told.set(context.timer_ns() > until_ns);
            told.get() || sql_hooks::is_past(deadline_ms, context) || context.is_abandoned()
        })?;
        match work.run(&scratch) {
            Err(_) if takes_long.get() => self.work_out_beside(scratch, work, scope).await,
            found => Ok((scratch, found?)),
        }
    }

    /// Begins anew on another thread.
    async fn work_out_beside(
        &self,
        mut scratch: Connection,
        work: Work,
        scope: &Scope,
    ) -> Result<(Connection, Found), Error> {
        let over = Over(Arc::default());
        sql_hooks::end_statements_when(&mut scratch, Arc::clone(&over.0))?;
        if !scratch.is_autocommit() {
            scratch.execute_batch("ROLLBACK").map_err(sql_error)?;
        }
        scratch.execute_batch("DROP TABLE IF EXISTS _dosql_result").map_err(sql_error)?;
        let done = pin!(self.context.beside(move || {
            let found = work.run(&scratch);
            (scratch, found)
        }));
        let (scratch, found) = match scope.deadline_ms {
            0 => done.await?,
            deadline_ms => {
                let left = Duration::from_millis(deadline_ms.saturating_sub(self.context.now_ms()));
                match select(done, pin!(self.context.sleep(left))).await {
                    Either::Left((done, _)) => done?,
                    Either::Right(_) => {
                        let interrupted = ffi::Error::new(ffi::SQLITE_INTERRUPT);
                        return Err(sql_error(rusqlite::Error::SqliteFailure(interrupted, None)));
                    }
                }
            }
        };
        Ok((scratch, found?))
    }
}

/// Ends the work that looks at it when it is dropped: nobody waits any more.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Work {
    fn run(&self, scratch: &Connection) -> Result<Found, Error> {
        let columns: Vec<String> = (0..self.width).map(|index| format!("c{index}")).collect();
        scratch.execute_batch(&format!("CREATE TABLE _dosql_result ({})", columns.join(", "))).map_err(sql_error)?;
        let mut found = Found { rows: Vec::new(), number: 0, more: false };
        let mut statement = scratch.prepare(&self.sql).map_err(sql_error)?;
        sql_value::bind(&mut statement, &self.params)?;
        let places = vec!["?"; self.width].join(", ");
        let mut keep = scratch.prepare(&format!("INSERT INTO _dosql_result VALUES ({places})")).map_err(sql_error)?;
        let mut rows = statement.raw_query();
        let mut bytes = 0;
        scratch.execute_batch("BEGIN").map_err(sql_error)?;
        while found.number < self.wanted
            && let Some(row) = rows.next().map_err(sql_error)?
        {
            found.number += 1;
            if bytes > self.max_bytes as usize {
                found.more = true;
                for index in 0..self.width {
                    let value = row.get_ref(index).map_err(sql_error)?;
                    keep.raw_bind_parameter(index + 1, ToSqlOutput::Borrowed(value)).map_err(sql_error)?;
                }
                keep.raw_execute().map_err(sql_error)?;
                continue;
            }
            for index in 0..self.width {
                bytes += sql_value::size(row.get_ref(index).map_err(sql_error)?);
            }
            found.rows.push(sql_value::to_row(row, self.width).map_err(sql_error)?);
        }
        drop(rows);
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
        Ok(found)
    }
}
