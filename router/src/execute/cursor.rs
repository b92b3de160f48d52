//! Results that are read batch by batch.

use std::collections::HashMap;

use dosql_actors::Call;
use dosql_actors::sql_value::{self, sql_error};
use dosql_proto::{Error, ErrorCode, ExplainResponse, Row, RowBatch};
use rusqlite::Connection;

use super::chain::Chain;
use super::merge::Merging;
use super::{Scope, Shared};

/// Open results, at most.
const MAX_CURSORS: usize = 1_000;
/// A result that nobody reads for so long is given up.
const IDLE_MS: u64 = 60_000;

/// Where the next rows come from.
pub(super) enum Cursor {
    /// Shards that run the same statement, one after the other.
    Chain(Chain),
    /// Shards whose rows are sorted.
    Merge(Box<Merging>),
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
    pub(super) async fn advance(&self, cursor: &mut Cursor, scope: &Scope) -> Result<(Vec<Row>, bool), Error> {
        match cursor {
            Cursor::Scratch { connection, last, width, max_bytes } => {
                page(connection, last, *width, *max_bytes).map_err(sql_error)
            }
            Cursor::Chain(chain) => self.advance_chain(chain, scope).await,
            Cursor::Merge(merging) => Box::pin(self.advance_merge(merging, scope)).await,
        }
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
        self.wake_at(used_ms + IDLE_MS + 1);
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
        open.scope = open.scope.resumed(call, self.context.timer_ns());
        let (rows, done) = self.advance(&mut open.cursor, &open.scope).await?;
        self.give(&rows, &open.scope)?;
        if done {
            return Ok(RowBatch {
                rows,
                bookmark: self.seen(&open.scope),
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
        // Dropped when nothing is borrowed.
        let _closed = self.cursors.borrow_mut().open.remove(&id);
    }

    /// Gives up results that were idle too long; the alarm is set again where some are left.
    pub(crate) fn expire(&self) {
        let now_ms = self.context.now_ms();
        let mut cursors = self.cursors.borrow_mut();
        let idle: Vec<u64> =
            cursors.open.iter().filter(|(_, open)| open.used_ms + IDLE_MS <= now_ms).map(|(id, _)| *id).collect();
        let expired: Vec<Open> = idle.iter().filter_map(|id| cursors.open.remove(id)).collect();
        if !cursors.open.is_empty() {
            self.wake_at(now_ms + IDLE_MS + 1);
        }
        drop(cursors);
        drop(expired);
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
