//! Gathering rows into a scratch database, and finishing the statement there.

use std::cell::Cell;

use dosql_actors::sql_hooks;
use dosql_actors::sql_value::{self, Param, sql_error};
use dosql_proto::{Error, ErrorCode, Row, Statement, Value};
use futures_util::stream::{self, StreamExt};
use prost::Message;
use rusqlite::Connection;

use super::cursor::Cursor;
use super::{Scope, Shared, shards};
use crate::plan::{Gather, Input};
use crate::sql_text;

/// The most that one statement may gather, in bytes of encoded rows.
const MAX_GATHERED_BYTES: usize = 1 << 30;
/// The batches that are asked for, in bytes.
const BATCH_BYTES: u32 = 1 << 20;
/// How often a gathering that a lost batch spoiled is begun again.
const MAX_ATTEMPTS: u32 = 5;

impl Shared {
    /// Gathers and finishes; returns the first rows, and a cursor where there are more.
    pub(super) async fn gather(
        &self,
        gather: &Gather,
        params: &[Value],
        width: usize,
        max_bytes: u32,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let mut attempt = 1;
        loop {
            let outcome = match self.gather_once(gather, params, call).await {
                Ok(scratch) => finish(scratch, gather, params, width, max_bytes),
                Err(error) => Err(error),
            };
            match (outcome, &gather.fallback) {
                // Partial sums may overflow where the whole does not, or the other way round.
                (Err(error), Some(fallback)) if error.message.contains("integer overflow") => {
                    return Box::pin(self.gather(fallback, params, width, max_bytes, call)).await;
                }
                (Err(error), _)
                    if attempt < MAX_ATTEMPTS
                        && (shards::transient(&error) || error.code() == ErrorCode::UnknownCursor)
                        && self.context.now_ms() < call.deadline_ms =>
                {
                    attempt += 1;
                }
                (outcome, _) => return outcome,
            }
        }
    }

    async fn gather_once(&self, gather: &Gather, params: &[Value], call: &Scope) -> Result<Connection, Error> {
        let mut scratch = self.context.open_scratch()?;
        let deadline_ms = call.deadline_ms;
        sql_hooks::end_statements(&mut scratch, &self.context, move || deadline_ms)?;
        scratch.execute_batch("PRAGMA foreign_keys = OFF; BEGIN").map_err(sql_error)?;
        let mut work = Vec::new();
        for input in &gather.inputs {
            scratch.execute_batch(&input.create).map_err(sql_error)?;
            let (sql, used) = sql_text::compact_parameters(&input.sql, params);
            for shard in self.resolve(&input.target, params)? {
                work.push((input, shard, Statement { sql: sql.clone(), params: used.clone() }));
            }
        }
        let gathered = Cell::new(0);
        let mut fills = stream::iter(
            work.into_iter()
                .map(|(input, shard, statement)| self.fill(&scratch, input, shard, statement, &gathered, call)),
        )
        .buffer_unordered(self.max_parallel);
        while let Some(filled) = fills.next().await {
            filled?;
        }
        drop(fills);
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
        Ok(scratch)
    }

    /// Moves one shard's rows into the scratch table.
    async fn fill(
        &self,
        scratch: &Connection,
        input: &Input,
        shard: usize,
        statement: Statement,
        gathered: &Cell<usize>,
        call: &Scope,
    ) -> Result<(), Error> {
        let mut batch = self.ask_query(shard, statement, BATCH_BYTES, call).await?;
        loop {
            let bytes: usize = batch.rows.iter().map(Message::encoded_len).sum();
            gathered.set(gathered.get() + bytes);
            if gathered.get() > MAX_GATHERED_BYTES {
                if batch.cursor != 0 {
                    self.close_on(shard, batch.cursor);
                }
                let message =
                    format!("the statement needs more than {MAX_GATHERED_BYTES} bytes of rows of several shards");
                return Err(Error::new(ErrorCode::TooLarge, message));
            }
            insert(scratch, &input.insert, &batch.rows).map_err(sql_error)?;
            if batch.cursor == 0 {
                return Ok(());
            }
            batch = self.fetch_from(shard, batch.cursor, call).await?;
        }
    }
}

fn insert(scratch: &Connection, sql: &str, rows: &[Row]) -> rusqlite::Result<()> {
    let mut statement = scratch.prepare_cached(sql)?;
    for row in rows {
        for (index, value) in row.values.iter().enumerate() {
            statement.raw_bind_parameter(index + 1, Param(value))?;
        }
        statement.raw_execute()?;
    }
    Ok(())
}

/// Runs the finishing statement. Rows beyond the first batch are kept in a table of their own, in their order.
fn finish(
    mut scratch: Connection,
    gather: &Gather,
    params: &[Value],
    width: usize,
    max_bytes: u32,
) -> Result<(Vec<Row>, Option<Cursor>), Error> {
    for view in &gather.views {
        scratch.execute_batch(view).map_err(sql_error)?;
    }
    let columns: Vec<String> = (0..width).map(|index| format!("c{index}")).collect();
    scratch.execute_batch(&format!("CREATE TABLE _dosql_result ({})", columns.join(", "))).map_err(sql_error)?;
    let (sql, params) = sql_text::compact_parameters(&gather.finish, params);
    let mut rows = Vec::new();
    let mut more = false;
    {
        let mut statement = scratch.prepare(&sql).map_err(sql_error)?;
        sql_value::bind(&mut statement, &params)?;
        let places = vec!["?"; width].join(", ");
        let mut keep = scratch.prepare(&format!("INSERT INTO _dosql_result VALUES ({places})")).map_err(sql_error)?;
        let mut found = statement.raw_query();
        let mut bytes = 0;
        scratch.execute_batch("BEGIN").map_err(sql_error)?;
        while let Some(row) = found.next().map_err(sql_error)? {
            if bytes > max_bytes as usize {
                more = true;
                for index in 0..width {
                    let value = row.get_ref(index).map_err(sql_error)?;
                    keep.raw_bind_parameter(index + 1, rusqlite::types::ToSqlOutput::Borrowed(value))
                        .map_err(sql_error)?;
                }
                keep.raw_execute().map_err(sql_error)?;
                continue;
            }
            for index in 0..width {
                bytes += sql_value::size(row.get_ref(index).map_err(sql_error)?);
            }
            rows.push(sql_value::to_row(row, width).map_err(sql_error)?);
        }
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
    }
    // The pages of the result have deadlines of their own.
    scratch.progress_handler(0, None::<fn() -> bool>).map_err(sql_error)?;
    Ok((rows, more.then_some(Cursor::Scratch { connection: scratch, last: 0, width, max_bytes })))
}
