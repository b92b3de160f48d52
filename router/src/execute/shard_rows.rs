//! The rows of a statement on one shard, batch by batch.

use dosql_actors::Context;
use dosql_proto::{
    CloseRequest, Error, FetchRequest, Row, RowBatch, ShardProtocol, ShardQuery, ShardRequest, Statement, StepStats,
    shard_request::Request,
};

use super::scope::{encoded, lower};
use super::{Scope, Shared, shards};
use crate::transaction::contended;

/// What a shard is asked.
#[derive(Clone)]
pub(super) struct Asked<'a> {
    pub(super) shard: usize,
    pub(super) statement: Statement,
    /// Where its batches are cut, in bytes.
    pub(super) max_bytes: u32,
    /// Rows that are worth reading; 0: all.
    pub(super) max_rows: u64,
    /// The step and the table that the time is noted under.
    pub(super) step: &'static str,
    pub(super) table: &'a str,
}

/// An open result on a shard. Dropped before its end, however that comes about (an error, a deadline, a client that has enough),
/// it is given up there too.
pub(super) struct ShardRows {
    context: Context,
    /// The member that has it.
    name: String,
    /// 0 where everything has been read.
    cursor: u64,
    step: &'static str,
    table: String,
}

impl ShardRows {
    /// Whether there is more to read.
    pub(super) fn is_open(&self) -> bool {
        self.cursor != 0
    }
}

impl Drop for ShardRows {
    fn drop(&mut self) {
        if self.cursor != 0 {
            let close = Request::Close(CloseRequest { cursor: self.cursor });
            let request = ShardRequest { request: Some(close), ..ShardRequest::default() };
            // Where the message is lost the shard gives the result up by itself, later.
            self.context.tell::<ShardProtocol>(&self.name, request);
        }
    }
}

impl Shared {
    /// The first rows of a statement on a shard, and the rest of them.
    pub(super) async fn read_shard(&self, asked: Asked<'_>, scope: &Scope) -> Result<(Vec<Row>, ShardRows), Error> {
        let Asked { shard, statement, max_bytes, max_rows, step, table } = asked;
        let mut rows = ShardRows {
            context: self.context.clone(),
            name: self.catalog.borrow().shards[shard].clone(),
            // As shards choose them: below 2^53, and not 0.
            cursor: (self.context.random_u64() >> 11).max(1),
            step,
            table: table.to_owned(),
        };
        let transaction = match scope.transaction() {
            Some(transaction) => Some(Box::pin(self.join_for_read(transaction, shard, scope)).await?),
            None => None,
        };
        let query = ShardQuery {
            statement: Some(statement),
            strict: transaction.is_some(),
            transaction,
            max_batch_bytes: max_bytes,
            max_rows: lower(max_rows, scope.rows_wanted()),
            cursor: rows.cursor,
            ..ShardQuery::default()
        };
        let began_ns = self.context.timer_ns();
        let asked = self.ask_reader(shard, query, scope).await;
        if let (Some(transaction), Err(error)) = (scope.transaction(), &asked)
            && contended(error)
        {
            transaction.fail(error);
        }
        let (member, batch) = asked?;
        rows.name = member;
        rows.cursor = batch.cursor;
        scope.saw(shard, batch.lsn);
        if let Some(transaction) = scope.transaction() {
            transaction.note_read(shard, batch.lsn)?;
        }
        self.note_batch(&rows, &batch, began_ns, scope);
        Ok((batch.rows, rows))
    }

    /// The next rows. Not asked for again: a batch whose answer was lost would be skipped.
    pub(super) async fn more_of(&self, rows: &mut ShardRows, scope: &Scope) -> Result<Vec<Row>, Error> {
        let began_ns = self.context.timer_ns();
        let reply = self.ask_open(&rows.name, Request::Fetch(FetchRequest { cursor: rows.cursor }), scope).await?;
        let batch = shards::batch(reply)?;
        rows.cursor = batch.cursor;
        self.note_batch(rows, &batch, began_ns, scope);
        Ok(batch.rows)
    }

    fn note_batch(&self, rows: &ShardRows, batch: &RowBatch, began_ns: u64, scope: &Scope) {
        if scope.profiles() {
            scope.step(StepStats {
                step: rows.step.to_owned(),
                table: rows.table.clone(),
                shard: rows.name.clone(),
                rows: batch.rows.len() as u64,
                bytes: encoded(&batch.rows),
                batches: 1,
                elapsed_us: self.since(began_ns),
                ..StepStats::default()
            });
        }
    }
}
