//! Results that are read batch by batch.

use std::collections::{HashMap, VecDeque};

use dosql_actors::Call;
use dosql_actors::sql_value::{self, sql_error};
use dosql_proto::{
    CloseRequest, Error, ErrorCode, ExplainResponse, FetchRequest, Row, RowBatch, ShardProtocol, ShardQuery,
    ShardRequest, Statement, StepStats, shard_request::Request,
};
use rusqlite::Connection;

use super::{Scope, Shared, scope, shards};

/// Open results, at most.
const MAX_CURSORS: usize = 1_000;
/// A result that nobody reads for so long is given up.
const IDLE_MS: u64 = 60_000;

/// Where the next rows come from.
pub(super) enum Cursor {
    /// Shards that run the same statement.
    Shards {
        statement: Statement,
        max_bytes: u32,
        /// The one being read, and its cursor.
        open: Option<(usize, u64)>,
        /// Those not asked yet.
        todo: VecDeque<usize>,
    },
    /// A finished result in a scratch database.
    Scratch { connection: Connection, last: i64, width: usize, max_bytes: u32 },
}

/// The open results.
#[derive(Default)]
pub(crate) struct Cursors {
    open: HashMap<u64, Open>,
}

/// A result that a client is reading.
struct Open {
    cursor: Cursor,
    /// When it was read last.
    used_ms: u64,
    /// The plan that its last batch is to carry.
    query_plan: Option<ExplainResponse>,
    scope: Scope,
}

impl Shared {
    /// The next rows of a cursor, and whether they are the last. There may be none.
    pub(super) async fn advance(&self, cursor: &mut Cursor, call: &Scope) -> Result<(Vec<Row>, bool), Error> {
        match cursor {
            Cursor::Scratch { connection, last, width, max_bytes } => {
                page(connection, last, *width, *max_bytes).map_err(sql_error)
            }
            Cursor::Shards { statement, max_bytes, open, todo } => loop {
                let rows = if let Some((shard, id)) = open.take() {
                    let batch = self.fetch_from(shard, id, call).await?;
                    *open = (batch.cursor != 0).then_some((shard, batch.cursor));
                    batch.rows
                } else {
                    self.ask_next(statement, *max_bytes, open, todo, call).await?
                };
                let done = open.is_none() && todo.is_empty();
                if done || !rows.is_empty() {
                    return Ok((rows, done));
                }
            },
        }
    }

    /// Asks the next shards together. Where more than one has a long result, only the first stays open: the others are asked
    /// again when it is read, so that none holds a result that nobody reads yet.
    async fn ask_next(
        &self,
        statement: &Statement,
        max_bytes: u32,
        open: &mut Option<(usize, u64)>,
        todo: &mut VecDeque<usize>,
        call: &Scope,
    ) -> Result<Vec<Row>, Error> {
        let wave: Vec<usize> = todo.drain(..todo.len().min(self.max_parallel)).collect();
        let share = match wave.len() {
            0 | 1 => max_bytes,
            many => (max_bytes / u32::try_from(many).unwrap_or(u32::MAX)).max(1 << 10),
        };
        let answers = self
            .on_each(wave, |shard| async move { (shard, self.ask_query(shard, statement.clone(), share, call).await) })
            .await;
        let mut rows = Vec::new();
        let mut again = Vec::new();
        let mut failed = None;
        for (shard, answer) in answers {
            match answer {
                Ok(batch) if batch.cursor == 0 => rows.extend(batch.rows),
                Ok(batch) if open.is_none() => {
                    *open = Some((shard, batch.cursor));
                    rows.extend(batch.rows);
                }
                Ok(batch) => {
                    self.close_on(shard, batch.cursor);
                    again.push(shard);
                }
                Err(error) => failed = Some(error),
            }
        }
        for shard in again.into_iter().rev() {
            todo.push_front(shard);
        }
        match failed {
            None => Ok(rows),
            Some(error) => {
                if let Some((shard, id)) = open.take() {
                    self.close_on(shard, id);
                }
                Err(error)
            }
        }
    }

    /// The first batch of a statement on one shard.
    pub(super) async fn ask_query(
        &self,
        shard: usize,
        statement: Statement,
        max_batch_bytes: u32,
        call: &Scope,
    ) -> Result<RowBatch, Error> {
        let began_us = self.context.timer_us();
        let query = ShardQuery { statement: Some(statement), max_batch_bytes, ..ShardQuery::default() };
        let batch = shards::batch(self.ask(shard, Request::Query(query), call).await?)?;
        self.note_batch(shard, &batch, began_us, call);
        Ok(batch)
    }

    /// The next batch. Not asked for again: a batch whose answer was lost would be skipped.
    pub(super) async fn fetch_from(&self, shard: usize, cursor: u64, call: &Scope) -> Result<RowBatch, Error> {
        let began_us = self.context.timer_us();
        let reply = self.ask_once(shard, Request::Fetch(FetchRequest { cursor }), call).await?;
        let batch = shards::batch(reply)?;
        self.note_batch(shard, &batch, began_us, call);
        Ok(batch)
    }

    fn note_batch(&self, shard: usize, batch: &RowBatch, began_us: u64, call: &Scope) {
        if call.profiles() {
            call.step(StepStats {
                step: "read".to_owned(),
                shard: self.catalog.borrow().shards[shard].clone(),
                rows: batch.rows.len() as u64,
                bytes: scope::encoded(&batch.rows),
                batches: 1,
                elapsed_us: self.context.timer_us().saturating_sub(began_us),
                ..StepStats::default()
            });
        }
    }

    /// Gives up a shard's result. If the message is lost the shard gives it up by itself, later.
    pub(super) fn close_on(&self, shard: usize, cursor: u64) {
        let name = self.catalog.borrow().shards[shard].clone();
        let request =
            ShardRequest { request: Some(Request::Close(CloseRequest { cursor })), ..ShardRequest::default() };
        self.context.tell::<ShardProtocol>(&name, request);
    }

    /// Keeps a cursor for its client; returns its number.
    pub(super) fn keep(
        &self,
        cursor: Cursor,
        query_plan: Option<ExplainResponse>,
        scope: &Scope,
    ) -> Result<u64, Error> {
        self.expire();
        let used_ms = self.context.now_ms();
        let mut cursors = self.cursors.borrow_mut();
        if cursors.open.len() >= MAX_CURSORS {
            drop(cursors);
            self.abandon(cursor);
            let message = format!("{MAX_CURSORS} results are open already");
            return Err(Error::retryable(ErrorCode::Overloaded, message, 1_000));
        }
        let id = loop {
            let id = self.context.random_u64();
            if id != 0 && !cursors.open.contains_key(&id) {
                break id;
            }
        };
        cursors.open.insert(id, Open { cursor, used_ms, query_plan, scope: scope.clone() });
        self.context.set_alarm(used_ms + IDLE_MS + 1);
        Ok(id)
    }

    /// The next batch of an open result.
    pub(super) async fn fetch(&self, id: u64, call: &Call) -> Result<RowBatch, Error> {
        let taken = self.cursors.borrow_mut().open.remove(&id);
        let Some(mut open) = taken else {
            let message =
                format!("no result is open under cursor {id}: it was closed, read to its end, or idle too long");
            return Err(Error::new(ErrorCode::UnknownCursor, message));
        };
        let now_ms = self.context.now_ms();
        let call = call.within(now_ms, self.context.settings().query_timeout_ms);
        open.scope = open.scope.resumed(call, self.context.timer_us());
        let (rows, done) = self.advance(&mut open.cursor, &open.scope).await?;
        self.note_rows(&rows, &open.scope);
        if done {
            return Ok(RowBatch {
                rows,
                query_plan: open.query_plan,
                stats: open.scope.stats(),
                ..RowBatch::default()
            });
        }
        open.used_ms = self.context.now_ms();
        self.cursors.borrow_mut().open.insert(id, open);
        Ok(RowBatch { rows, cursor: id, ..RowBatch::default() })
    }

    /// Gives up a result; one that is not open is no error.
    pub(super) fn close(&self, id: u64) {
        let taken = self.cursors.borrow_mut().open.remove(&id);
        if let Some(open) = taken {
            self.abandon(open.cursor);
        }
    }

    /// Gives up a result that nobody reads.
    pub(super) fn abandon(&self, cursor: Cursor) {
        if let Cursor::Shards { open: Some((shard, id)), .. } = cursor {
            self.close_on(shard, id);
        }
    }

    /// Gives up results that were idle too long; the alarm is set again where some are left.
    pub(crate) fn expire(&self) {
        let now_ms = self.context.now_ms();
        let mut cursors = self.cursors.borrow_mut();
        let idle: Vec<u64> =
            cursors.open.iter().filter(|(_, open)| open.used_ms + IDLE_MS <= now_ms).map(|(id, _)| *id).collect();
        let expired: Vec<Cursor> =
            idle.iter().filter_map(|id| cursors.open.remove(id)).map(|open| open.cursor).collect();
        if !cursors.open.is_empty() {
            self.context.set_alarm(now_ms + IDLE_MS + 1);
        }
        drop(cursors);
        expired.into_iter().for_each(|cursor| self.abandon(cursor));
    }
}

/// The rows after `last` of a finished result, up to `max_bytes`.
fn page(connection: &Connection, last: &mut i64, width: usize, max_bytes: u32) -> rusqlite::Result<(Vec<Row>, bool)> {
    let mut statement =
        connection.prepare_cached("SELECT rowid, * FROM _dosql_result WHERE rowid > ?1 ORDER BY rowid")?;
    let mut found = statement.query([*last])?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(row) = found.next()? {
        if bytes > max_bytes as usize {
            return Ok((rows, false));
        }
        *last = row.get(0)?;
        let mut values = Vec::with_capacity(width);
        for index in 1..=width {
            let value = row.get_ref(index)?;
            bytes += sql_value::size(value);
            values.push(sql_value::to_value(value));
        }
        rows.push(Row { values });
    }
    Ok((rows, true))
}
