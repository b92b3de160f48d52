//! Gathering rows into a scratch database.

use std::cell::Cell;

use dosql_actors::sql_hooks;
use dosql_actors::sql_memory::{Footprint, footprint};
use dosql_actors::sql_sum;
use dosql_actors::sql_value::{Param, sql_error};
use dosql_proto::{Error, ErrorCode, QueryStats, Row, Statement, Value};
use futures_util::stream::{self, StreamExt};
use rusqlite::Connection;

use super::cursor::Cursor;
use super::finish::Finish;
use super::read::Reading;
use super::scope::encoded;
use super::shard_rows::Asked;
use super::{Scope, Shared};
use crate::plan::{Gather, Input};
use crate::sql_text;

/// The least and the most that a shard is asked for at a time, in bytes.
const BATCH_BYTES: std::ops::RangeInclusive<u64> = 8 << 10..=1 << 20;
/// A decoded row takes up to so many times the bytes of its encoding.
const DECODED: u64 = 8;

impl Shared {
    /// Gathers and finishes; returns the first rows, and a cursor where there are more.
    pub(super) async fn gather(
        &self,
        gather: &Gather,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let mut attempt = 1;
        loop {
            let finish = Finish { views: &gather.views, sql: &gather.finish };
            let outcome = match self.gather_once(gather, reading.params, call).await {
                Ok(scratch) => self.finish(scratch, finish, reading, call).await,
                Err(error) => Err(error),
            };
            let outcome = outcome.map_err(|error| self.explain_full(error));
            match (outcome, &gather.fallback) {
                // Whether integers overflow depends on the order of the rows.
                (Err(error), Some(fallback)) if error.message.contains(sql_sum::OVERFLOW) => {
                    return Box::pin(self.gather(fallback, reading, call)).await;
                }
                (Err(error), _) if self.begins_again(attempt, &error, call) => {
                    attempt += 1;
                }
                (outcome, _) => return outcome,
            }
        }
    }

    async fn gather_once(&self, gather: &Gather, params: &[Value], call: &Scope) -> Result<Connection, Error> {
        let scratch = self.begin_scratch(call)?;
        let mut work = Vec::new();
        for input in &gather.inputs {
            scratch.execute_batch(&input.create).map_err(sql_error)?;
            let (sql, used) = sql_text::compact_parameters(&input.sql, params);
            for shard in self.resolve_in(&input.target, params, call).await? {
                work.push((input, shard, Statement { sql: sql.clone(), params: used.clone() }));
            }
        }
        let max_bytes = self.gather_batch_bytes();
        let gathered = Cell::new(0);
        let mut fills = stream::iter(work.into_iter().map(|(input, shard, statement)| {
            let asked = Asked { shard, statement, max_bytes, max_rows: 0, step: "gather", table: &input.table };
            self.fill(&scratch, input, asked, &gathered, call)
        }))
        .buffer_unordered(self.max_parallel);
        while let Some(filled) = fills.next().await {
            filled?;
        }
        drop(fills);
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
        Ok(scratch)
    }

    /// Where the batches of rows to be gathered are cut, in bytes.
    pub(super) fn gather_batch_bytes(&self) -> u32 {
        let share = self.context.settings().query_memory / (4 * DECODED * self.max_parallel as u64);
        u32::try_from(share.clamp(*BATCH_BYTES.start(), *BATCH_BYTES.end())).unwrap_or(u32::MAX)
    }

    /// A scratch database with a transaction open in it, whose statements end with the request.
    pub(super) fn begin_scratch(&self, call: &Scope) -> Result<Connection, Error> {
        let mut scratch = self.bounded_scratch()?;
        let deadline_ms = call.deadline_ms;
        sql_hooks::end_statements(&mut scratch, &self.context, move |context| {
            sql_hooks::is_past(deadline_ms, context) || context.is_abandoned()
        })?;
        sql_sum::define_wholes(&scratch).map_err(sql_error)?;
        scratch.execute_batch("PRAGMA foreign_keys = OFF; BEGIN").map_err(sql_error)?;
        Ok(scratch)
    }

    /// A scratch database within the memory and the disk that one statement may use: a quarter of the memory for its pages, a
    /// quarter for what it sorts, and the rest for rows on their way into it and out.
    fn bounded_scratch(&self) -> Result<Connection, Error> {
        let settings = self.context.settings();
        let scratch = self.context.open_scratch()?;
        let page_bytes: u64 =
            scratch.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0)).map_err(sql_error)?.into();
        let most = if self.context.scratch_spills() { settings.query_disk } else { settings.query_memory };
        scratch
            .execute_batch(&format!(
                "PRAGMA cache_size = -{}; PRAGMA max_page_count = {}",
                settings.query_memory / 4 / 1024,
                (most / page_bytes).clamp(16, u64::from(u32::MAX - 1))
            ))
            .map_err(sql_error)?;
        Ok(scratch)
    }

    /// Says which setting a full scratch database comes from.
    pub(super) fn explain_full(&self, error: Error) -> Error {
        if error.code() != ErrorCode::Storage || !error.message.contains("full") {
            return error;
        }
        let settings = self.context.settings();
        let (bytes, name) = match self.context.scratch_spills() {
            true => (settings.query_disk, "DOSQL_QUERY_DISK"),
            false => (settings.query_memory, "DOSQL_QUERY_MEMORY"),
        };
        let message = format!("the statement needs more than {bytes} bytes for rows of several shards ({name})");
        Error::new(ErrorCode::TooLarge, message)
    }

    /// Moves one shard's rows into the scratch table.
    pub(super) async fn fill(
        &self,
        scratch: &Connection,
        input: &Input,
        asked: Asked<'_>,
        gathered: &Cell<u64>,
        call: &Scope,
    ) -> Result<(), Error> {
        let (mut rows, mut rest) = self.read_shard(asked, call).await?;
        loop {
            self.take_in(scratch, &input.insert, input.has_rowid, &rows, gathered, call)?;
            if !rest.is_open() {
                return Ok(());
            }
            // Before the next ones come.
            drop(std::mem::take(&mut rows));
            rows = self.more_of(&mut rest, call).await?;
        }
    }

    /// Puts gathered rows into a scratch table.
    pub(super) fn take_in(
        &self,
        scratch: &Connection,
        insert: &str,
        has_rowid: bool,
        rows: &[Row],
        gathered: &Cell<u64>,
        call: &Scope,
    ) -> Result<(), Error> {
        let most = self.context.settings().query_memory + self.context.settings().query_disk;
        let bytes = encoded(rows);
        gathered.set(gathered.get() + bytes);
        if gathered.get() > most {
            let message = format!(
                "the statement needs more than {most} bytes of rows of several shards (DOSQL_QUERY_MEMORY and DOSQL_QUERY_DISK)"
            );
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        self::insert(scratch, insert, has_rowid, rows).map_err(sql_error)?;
        call.note(|stats| {
            stats.gathered_rows += rows.len() as u64;
            stats.gathered_bytes += bytes;
            note_footprint(scratch, stats);
        });
        Ok(())
    }
}

pub(super) fn note_footprint(scratch: &Connection, stats: &mut QueryStats) {
    let Footprint { memory, written } = footprint(scratch);
    stats.scratch_memory_bytes = stats.scratch_memory_bytes.max(memory);
    stats.scratch_disk_bytes = stats.scratch_disk_bytes.max(written);
}

fn insert(scratch: &Connection, insert: &str, has_rowid: bool, rows: &[Row]) -> rusqlite::Result<()> {
    let mut statement = scratch.prepare_cached(insert)?;
    for row in rows {
        for (index, value) in row.values.iter().enumerate() {
            statement.raw_bind_parameter(index + 1, Param(value))?;
        }
        match statement.raw_execute() {
            // Two shards use the same rowid: the router was restarted while a row was on its way. Both rows count.
            Err(error) if has_rowid && error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                statement.raw_bind_parameter(1, rusqlite::types::Null)?;
                statement.raw_execute()?;
            }
            done => {
                done?;
            }
        }
    }
    Ok(())
}
