//! A shard's log: its records, the consumers that need them, and the requests that have taken effect.

use dosql_proto::{AckWal, Error, ErrorCode, ReadWal, ShardExecuted, WalBatch, WalRecord};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::guard::own_sql;
use crate::sql_value::sql_error;

/// How many tables the shard has of its own.
pub(super) const OWN_TABLES: usize = 4;

/// How long a request is remembered at least, in milliseconds, unless [`MAX_REQUESTS`] came after it.
const REQUEST_MEMORY_MS: u64 = 600_000;

/// How many requests are remembered at most.
const MAX_REQUESTS: u64 = 1_000_000;

/// Time between two rounds of forgetting requests, in milliseconds.
const FORGET_EVERY_MS: u64 = 10_000;

/// What `ReadWal` returns at most, in bytes of records, where it does not say and where it may say.
const DEFAULT_READ_BYTES: usize = 1 << 20;
const MAX_READ_BYTES: usize = 16 << 20;

/// How many bytes of records are kept after every consumer has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    pub(super) bytes: u64,
    /// Where a replica lacks some of them.
    pub(super) replica_bytes: u64,
}

/// Where the log stands. All methods run statements of the shard's own: the guard must have been told.
pub(super) struct Log {
    /// LSN of the last record; 0 where there never was one.
    pub(super) last_lsn: u64,
    /// Lowest LSN kept; 0 where there never was a record.
    pub(super) oldest_lsn: u64,
    /// HLC timestamp of the last record.
    pub(super) hlc: u64,
    /// Up to where every consumer has acknowledged; `None` where there is no consumer.
    acked: Option<u64>,
    /// Bytes of the kept records up to `acked`.
    acked_bytes: u64,
    /// Up to where every replica has the records; they are kept for those that lack some, within a bound.
    pub(super) held: Option<u64>,
    forgotten_ms: u64,
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Log {
    /// Makes the shard's own tables where they are missing, and reads where the log stands.
    pub(super) fn open(connection: &Connection) -> Result<Self, Error> {
        Self::read(connection).map_err(sql_error)
    }

    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.execute_batch(
            "BEGIN IMMEDIATE;
             CREATE TABLE IF NOT EXISTS _dosql_wal (lsn INTEGER PRIMARY KEY, hlc INTEGER NOT NULL, record BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS _dosql_requests
                 (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, outcome BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS _dosql_prepared
                 (id TEXT PRIMARY KEY, coordinator TEXT NOT NULL, number INTEGER NOT NULL, record BLOB NOT NULL,
                  results BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS _dosql_consumers (name TEXT PRIMARY KEY, lsn INTEGER NOT NULL) WITHOUT ROWID;
             COMMIT",
        )?;
        // The last record is never pruned, so it tells where the log stands.
        let last = connection
            .query_row("SELECT lsn, hlc FROM _dosql_wal ORDER BY lsn DESC LIMIT 1", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        let (last_lsn, hlc) = last.unwrap_or_default();
        let oldest: Option<i64> = connection.query_row("SELECT min(lsn) FROM _dosql_wal", [], |row| row.get(0))?;
        let mut log = Self {
            last_lsn: unsigned(last_lsn),
            oldest_lsn: unsigned(oldest.unwrap_or(0)),
            hlc: unsigned(hlc),
            acked: None,
            acked_bytes: 0,
            held: None,
            forgotten_ms: 0,
        };
        log.acked = log.acknowledged(connection)?;
        if let Some(acked) = log.acked {
            log.acked_bytes = log.bytes_between(connection, 0, acked)?;
        }
        Ok(log)
    }

    /// The timestamp of a record made now: never below or at an earlier one, not even where the clock went back.
    pub(super) fn next_hlc(&self, now_ms: u64) -> u64 {
        (now_ms << 16).max(self.hlc + 1)
    }

    /// Appends the record of the next LSN.
    pub(super) fn append(&mut self, connection: &Connection, hlc: u64, record: &[u8]) -> Result<(), Error> {
        let lsn = self.last_lsn + 1;
        connection
            .prepare_cached(own_sql!("INSERT INTO _dosql_wal (lsn, hlc, record) VALUES (?1, ?2, ?3)"))
            .and_then(|mut insert| insert.execute(params![signed(lsn), signed(hlc), record]))
            .map_err(sql_error)?;
        self.last_lsn = lsn;
        self.hlc = hlc;
        if self.oldest_lsn == 0 {
            self.oldest_lsn = lsn;
        }
        Ok(())
    }

    /// Begins a new log, which stands at a record of another one; 0 where that had none.
    pub(super) fn reset(&mut self, connection: &Connection, record: Option<&WalRecord>) -> Result<(), Error> {
        connection
            .execute_batch(own_sql!(
                "DELETE FROM _dosql_wal; DELETE FROM _dosql_requests; DELETE FROM _dosql_consumers; DELETE FROM _dosql_prepared"
            ))
            .map_err(sql_error)?;
        (self.last_lsn, self.oldest_lsn, self.hlc) = (0, 0, 0);
        (self.acked, self.acked_bytes, self.held) = (None, 0, None);
        if let Some(record) = record {
            self.last_lsn = record.lsn.saturating_sub(1);
            self.append(connection, record.hlc, &record.encode_to_vec())?;
        }
        Ok(())
    }

    /// Adds records from before the oldest one, in their order: the last call's end where this one begins.
    pub(super) fn put_before(&mut self, connection: &Connection, records: &[WalRecord]) -> Result<(), Error> {
        let mut insert = connection
            .prepare_cached(own_sql!("INSERT OR REPLACE INTO _dosql_wal (lsn, hlc, record) VALUES (?1, ?2, ?3)"))
            .map_err(sql_error)?;
        for record in records {
            insert
                .execute(params![signed(record.lsn), signed(record.hlc), record.encode_to_vec()])
                .map_err(sql_error)?;
            self.oldest_lsn = self.oldest_lsn.min(record.lsn);
        }
        Ok(())
    }

    /// Drops records before an LSN, except the last one.
    pub(super) fn prune_before(&mut self, connection: &Connection, lsn: u64) -> Result<(), Error> {
        let lsn = lsn.min(self.last_lsn);
        if lsn > self.oldest_lsn {
            connection
                .prepare_cached(own_sql!("DELETE FROM _dosql_wal WHERE lsn < ?1"))
                .and_then(|mut delete| delete.execute([signed(lsn)]))
                .map_err(sql_error)?;
            self.oldest_lsn = lsn;
        }
        Ok(())
    }

    /// Records after an LSN.
    pub(super) fn read_after(&self, connection: &Connection, request: &ReadWal) -> Result<WalBatch, Error> {
        let after = request.after_lsn;
        if after > self.last_lsn {
            let message = format!("LSN {after} is in the future; the last one is {}", self.last_lsn);
            return Err(Error::new(ErrorCode::UnknownPosition, message));
        }
        if after + 1 < self.oldest_lsn {
            let (oldest, last) = (self.oldest_lsn, self.last_lsn);
            let message =
                format!("records after LSN {after} are no longer retained; retained are LSN {oldest} to {last}");
            return Err(Error::new(ErrorCode::UnknownPosition, message));
        }
        let mut batch = WalBatch {
            records: Vec::new(),
            last_lsn: self.last_lsn,
            oldest_lsn: self.oldest_lsn,
            ..WalBatch::default()
        };
        if after < self.last_lsn {
            let max_bytes = match request.max_bytes as usize {
                0 => DEFAULT_READ_BYTES,
                bytes => bytes.min(MAX_READ_BYTES),
            };
            batch.records = Self::records_after(connection, after, max_bytes)?;
        }
        Ok(batch)
    }

    pub(super) fn records_after(
        connection: &Connection,
        after: u64,
        max_bytes: usize,
    ) -> Result<Vec<WalRecord>, Error> {
        let mut statement = connection
            .prepare_cached(own_sql!("SELECT record FROM _dosql_wal WHERE lsn > ?1 ORDER BY lsn"))
            .map_err(sql_error)?;
        let mut rows = statement.query([signed(after)]).map_err(sql_error)?;
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(sql_error)? {
            let encoded = row.get_ref(0).map_err(sql_error)?.as_blob().map_err(corrupt)?;
            bytes += encoded.len();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(WalRecord::decode(encoded).map_err(corrupt)?);
        }
        Ok(records)
    }

    /// Notes a consumer's acknowledgement, and prunes what no consumer needs beyond what is to be kept.
    pub(super) fn acknowledge(&mut self, connection: &Connection, request: &AckWal, keep: Keep) -> Result<u64, Error> {
        if request.consumer.is_empty() {
            return Err(Error::invalid("an acknowledgement must name its consumer"));
        }
        if request.lsn > self.last_lsn {
            let (lsn, last) = (request.lsn, self.last_lsn);
            return Err(Error::invalid(format!("cannot acknowledge LSN {lsn}: the last one is {last}")));
        }
        self.note(connection, request, keep).map_err(sql_error)
    }

    fn note(&mut self, connection: &Connection, request: &AckWal, keep: Keep) -> rusqlite::Result<u64> {
        let lsn: i64 = connection
            .prepare_cached(own_sql!(
                "INSERT INTO _dosql_consumers (name, lsn) VALUES (?1, ?2) \
                 ON CONFLICT (name) DO UPDATE SET lsn = max(lsn, excluded.lsn) RETURNING lsn"
            ))?
            .query_row(params![request.consumer, signed(request.lsn)], |row| row.get(0))?;
        let acked = self.acknowledged(connection)?.unwrap_or(0);
        let before = self.acked.unwrap_or(0);
        // A consumer that registers later may stand further back.
        self.acked_bytes = if acked >= before {
            self.acked_bytes + self.bytes_between(connection, before, acked)?
        } else {
            self.bytes_between(connection, 0, acked)?
        };
        self.acked = Some(acked);
        self.prune(connection, keep)?;
        Ok(unsigned(lsn))
    }

    fn acknowledged(&self, connection: &Connection) -> rusqlite::Result<Option<u64>> {
        let lowest: Option<i64> = connection
            .prepare_cached(own_sql!("SELECT min(lsn) FROM _dosql_consumers"))?
            .query_row([], |row| row.get(0))?;
        Ok(lowest.map(unsigned))
    }

    fn bytes_between(&self, connection: &Connection, after: u64, up_to: u64) -> rusqlite::Result<u64> {
        let bytes: i64 = connection
            .prepare_cached(own_sql!(
                "SELECT coalesce(sum(length(record)), 0) FROM _dosql_wal WHERE lsn > ?1 AND lsn <= ?2"
            ))?
            .query_row([signed(after), signed(up_to)], |row| row.get(0))?;
        Ok(unsigned(bytes))
    }

    /// Drops the oldest acknowledged records until at most so many bytes of acknowledged ones are kept. Never the last record:
    /// it tells where the log stands.
    fn prune(&mut self, connection: &Connection, keep: Keep) -> rusqlite::Result<()> {
        let limit = self.acked.unwrap_or(0).min(self.last_lsn.saturating_sub(1));
        if self.acked_bytes <= keep.bytes || limit < self.oldest_lsn {
            return Ok(());
        }
        let mut drop_to = None;
        {
            let mut oldest = connection
                .prepare_cached(own_sql!("SELECT lsn, length(record) FROM _dosql_wal WHERE lsn <= ?1 ORDER BY lsn"))?;
            let mut rows = oldest.query([signed(limit)])?;
            while self.acked_bytes > keep.bytes {
                let Some(row) = rows.next()? else { break };
                let lsn = unsigned(row.get(0)?);
                if self.held.is_some_and(|held| lsn > held) && self.acked_bytes <= keep.replica_bytes.max(keep.bytes) {
                    break;
                }
                drop_to = Some(lsn);
                self.acked_bytes = self.acked_bytes.saturating_sub(unsigned(row.get(1)?));
            }
        }
        if let Some(lsn) = drop_to {
            connection.prepare_cached(own_sql!("DELETE FROM _dosql_wal WHERE lsn <= ?1"))?.execute([signed(lsn)])?;
            self.oldest_lsn = lsn + 1;
        }
        Ok(())
    }

    /// What came of the request of this id, where it has taken effect.
    pub(super) fn outcome(&self, connection: &Connection, request_id: &str) -> Result<Option<ShardExecuted>, Error> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let stored: Option<Vec<u8>> = connection
            .prepare_cached(own_sql!("SELECT outcome FROM _dosql_requests WHERE id = ?1"))
            .and_then(|mut statement| statement.query_row([request_id], |row| row.get(0)).optional())
            .map_err(sql_error)?;
        let Some(stored) = stored else { return Ok(None) };
        let outcome = ShardExecuted::decode(stored.as_slice()).map_err(corrupt)?;
        Ok(Some(ShardExecuted { duplicate: true, ..outcome }))
    }

    /// Remembers what came of a request.
    pub(super) fn remember(
        &self,
        connection: &Connection,
        request_id: &str,
        now_ms: u64,
        outcome: &ShardExecuted,
    ) -> Result<(), Error> {
        if request_id.is_empty() {
            return Ok(());
        }
        connection
            .prepare_cached(own_sql!("INSERT INTO _dosql_requests (id, at, outcome) VALUES (?1, ?2, ?3)"))
            .and_then(|mut insert| insert.execute(params![request_id, signed(now_ms), outcome.encode_to_vec()]))
            .map_err(sql_error)?;
        Ok(())
    }

    /// Forgets requests so old that nobody repeats them, every now and then. The last one stays, so that numbers are not given
    /// out again.
    pub(super) fn forget_requests(&mut self, connection: &Connection, now_ms: u64) -> Result<(), Error> {
        if now_ms < self.forgotten_ms + FORGET_EVERY_MS {
            return Ok(());
        }
        self.forgotten_ms = now_ms;
        let cutoff = now_ms.saturating_sub(REQUEST_MEMORY_MS);
        connection
            .prepare_cached(own_sql!(
                "DELETE FROM _dosql_requests WHERE seq < \
                 max(coalesce((SELECT seq FROM _dosql_requests WHERE at >= ?1 ORDER BY seq LIMIT 1), \
                              (SELECT max(seq) FROM _dosql_requests), 0), \
                     coalesce((SELECT max(seq) FROM _dosql_requests), 0) + 1 - ?2)"
            ))
            .and_then(|mut delete| delete.execute([signed(cutoff), signed(MAX_REQUESTS)]))
            .map_err(sql_error)?;
        Ok(())
    }
}

pub(super) fn corrupt(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Storage, format!("the shard's own records are damaged: {error}"))
}
