//! Reading: the first batch of a result goes straight to the asker; what does not fit waits, encoded, in scratch storage.

use std::collections::BTreeMap;

use dosql_proto::{Error, ErrorCode, Row, RowBatch, ShardQuery};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Statement, params};

use super::encoding::{put_batch_row, put_value};
use crate::runtime::Context;
use crate::sql_value::{self, sql_error};

/// How many results may be open.
const MAX_CURSORS: usize = 64;

/// How long an open result waits for its next fetch, in milliseconds.
const IDLE_MS: u64 = 60_000;

/// Where a batch is cut, in bytes of rows, where the query does not say and where it may say.
const DEFAULT_BATCH_BYTES: usize = 256 << 10;
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The open results of a shard.
#[derive(Default)]
pub(super) struct Cursors {
    open: BTreeMap<u64, Cursor>,
}

struct Cursor {
    spill: Connection,
    next: i64,
    last: i64,
    used_ms: u64,
}

impl Cursors {
    /// Runs a prepared reading statement and returns its first batch.
    ///
    /// # Errors
    /// Those of the statement; `OVERLOADED` where too many results are open and this one does not fit one batch.
    pub(super) fn query(
        &mut self,
        context: &Context,
        statement: &mut Statement<'_>,
        request: &ShardQuery,
    ) -> Result<RowBatch, Error> {
        let max_bytes = match request.max_batch_bytes as usize {
            0 => DEFAULT_BATCH_BYTES,
            bytes => bytes.min(MAX_BATCH_BYTES),
        };
        let params = request.statement.as_ref().map(|statement| statement.params.as_slice()).unwrap_or_default();
        sql_value::bind(statement, params)?;
        let width = statement.column_count();
        let mut first: Vec<Row> = Vec::new();
        let mut bytes = 0;
        let mut spill: Option<Spill> = None;
        let mut encoded = Vec::new();
        let mut rows = statement.raw_query();
        let mut left = if request.max_rows == 0 { u64::MAX } else { request.max_rows };
        while left > 0
            && let Some(row) = rows.next().map_err(sql_error)?
        {
            left -= 1;
            if let Some(spill) = &mut spill {
                encoded.clear();
                for index in 0..width {
                    put_value(&mut encoded, row.get_ref(index).map_err(sql_error)?);
                }
                spill.push(&encoded)?;
                continue;
            }
            for index in 0..width {
                bytes += sql_value::size(row.get_ref(index).map_err(sql_error)?);
            }
            first.push(sql_value::to_row(row, width).map_err(sql_error)?);
            if bytes >= max_bytes {
                spill = Some(self.spill(context, max_bytes)?);
            }
        }
        let cursor = match spill {
            None => 0,
            Some(spill) => self.keep(context, spill, request.cursor)?,
        };
        Ok(RowBatch { rows: first, cursor, ..RowBatch::default() })
    }

    fn spill(&self, context: &Context, max_bytes: usize) -> Result<Spill, Error> {
        if self.open.len() >= MAX_CURSORS {
            let message = format!("{MAX_CURSORS} results are open already; read or close one");
            return Err(Error::retryable(ErrorCode::Overloaded, message, 1000));
        }
        let connection = context.open_scratch()?;
        // Written once and read once, from the front to the end: a cache would only hold what is not read again.
        connection
            .execute_batch(
                "PRAGMA cache_size = -256;
                 CREATE TABLE batch (number INTEGER PRIMARY KEY, rows BLOB NOT NULL); BEGIN",
            )
            .map_err(sql_error)?;
        Ok(Spill { connection, batch: Vec::new(), batches: 0, max_bytes })
    }

    /// Keeps a result open under the number `wanted`, whose earlier result it replaces, or under one of its own where that is 0.
    fn keep(&mut self, context: &Context, mut spill: Spill, wanted: u64) -> Result<u64, Error> {
        spill.cut()?;
        if spill.batches == 0 {
            return Ok(0);
        }
        spill.connection.execute_batch("COMMIT").map_err(sql_error)?;
        let cursor = Cursor { spill: spill.connection, next: 1, last: spill.batches, used_ms: context.now_ms() };
        if wanted != 0 {
            self.open.insert(wanted, cursor);
            return Ok(wanted);
        }
        loop {
            // Below 2^53, for clients whose numbers are doubles.
            let id = context.random_u64() >> 11;
            if id != 0 && !self.open.contains_key(&id) {
                self.open.insert(id, cursor);
                return Ok(id);
            }
        }
    }

    /// The next batch of an open result; its cursor is 0 when it is the last one.
    ///
    /// # Errors
    /// `UNKNOWN_CURSOR`.
    pub(super) fn fetch(&mut self, id: u64, now_ms: u64) -> Result<RowBatch, Error> {
        let Some(cursor) = self.open.get_mut(&id) else {
            let message = format!("result {id} was closed, read to its end, or idle for {} s", IDLE_MS / 1000);
            return Err(Error::new(ErrorCode::UnknownCursor, message));
        };
        let encoded: Option<Vec<u8>> = cursor
            .spill
            .prepare_cached("SELECT rows FROM batch WHERE number = ?1")
            .and_then(|mut statement| statement.query_row([cursor.next], |row| row.get(0)).optional())
            .map_err(sql_error)?;
        let Some(encoded) = encoded else { return Err(Error::internal("a spilled batch is missing")) };
        let mut batch = RowBatch::decode(encoded.as_slice())
            .map_err(|error| Error::internal(format!("a spilled batch is damaged: {error}")))?;
        cursor.used_ms = now_ms;
        cursor.next += 1;
        if cursor.next > cursor.last {
            self.open.remove(&id);
        } else {
            batch.cursor = id;
        }
        Ok(batch)
    }

    /// Gives up an open result; one that is gone already is no error.
    pub(super) fn close(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Drops the results that nobody has read for [`IDLE_MS`].
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.open.retain(|_, cursor| now_ms < cursor.used_ms + IDLE_MS);
    }

    /// When the next one may be dropped.
    pub(super) fn due(&self) -> Option<u64> {
        self.open.values().map(|cursor| cursor.used_ms + IDLE_MS).min()
    }
}

/// A result being spilled.
struct Spill {
    connection: Connection,
    /// The batch being filled, an encoded `RowBatch`.
    batch: Vec<u8>,
    batches: i64,
    max_bytes: usize,
}

impl Spill {
    fn push(&mut self, row: &[u8]) -> Result<(), Error> {
        put_batch_row(&mut self.batch, row);
        if self.batch.len() >= self.max_bytes { self.cut() } else { Ok(()) }
    }

    fn cut(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batches += 1;
        self.connection
            .prepare_cached("INSERT INTO batch (number, rows) VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute(params![self.batches, self.batch]))
            .map_err(sql_error)?;
        self.batch.clear();
        Ok(())
    }
}
