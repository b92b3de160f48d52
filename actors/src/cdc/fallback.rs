//! The fallback storage: records that the lake could not be given for a while. They are kept in the change stream's own
//! database, so that the shards need not keep them, are delivered from here when the lake takes records again, and go when
//! the lake has them in a snapshot. Nothing that is not there is ever deleted.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, WalRecord};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use crate::sql_value::sql_error;

/// The records of one shard: all from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    first: u64,
    last: u64,
    records: u64,
    bytes: u64,
}

/// What is kept for the lake.
pub(super) struct Fallback {
    connection: Rc<Connection>,
    shards: BTreeMap<String, Held>,
    /// Bytes of records beyond which no more are taken.
    most_bytes: u64,
}

impl Fallback {
    /// # Errors
    /// `STORAGE`.
    pub(super) fn open(connection: Rc<Connection>, most_bytes: u64) -> Result<Self, Error> {
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS _dosql_fallback \
                 (shard TEXT NOT NULL, lsn INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (shard, lsn))",
            )
            .map_err(sql_error)?;
        let mut fallback = Self { connection, shards: BTreeMap::new(), most_bytes };
        let names: Vec<String> = fallback
            .connection
            .prepare("SELECT DISTINCT shard FROM _dosql_fallback")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
            .map_err(sql_error)?;
        for name in names {
            fallback.count(&name)?;
        }
        Ok(fallback)
    }

    /// Notes what there is of a shard.
    fn count(&mut self, shard: &str) -> Result<(), Error> {
        let held = self
            .connection
            .prepare_cached(
                "SELECT min(lsn), max(lsn), count(*), sum(length(record)) FROM _dosql_fallback WHERE shard = ?1 \
                 HAVING count(*) > 0",
            )
            .and_then(|mut select| {
                let number =
                    |row: &rusqlite::Row<'_>, place: usize| row.get::<usize, i64>(place).map(i64::cast_unsigned);
                select
                    .query_row([shard], |row| {
                        Ok(Held {
                            first: number(row, 0)?,
                            last: number(row, 1)?,
                            records: number(row, 2)?,
                            bytes: number(row, 3)?,
                        })
                    })
                    .optional()
            })
            .map_err(sql_error)?;
        match held {
            Some(held) => self.shards.insert(shard.to_owned(), held),
            None => self.shards.remove(shard),
        };
        Ok(())
    }

    /// The last LSN that is here; 0 where there is none.
    pub(super) fn last_lsn(&self, shard: &str) -> u64 {
        self.shards.get(shard).map_or(0, |held| held.last)
    }

    /// How many records are here, and their bytes.
    pub(super) fn size(&self, shard: &str) -> (u64, u64) {
        self.shards.get(shard).map_or((0, 0), |held| (held.records, held.bytes))
    }

    /// Takes records in, which follow the ones that are here. `false` where there is no room for them.
    ///
    /// # Errors
    /// `STORAGE`.
    pub(super) fn add(&mut self, shard: &str, records: &[WalRecord]) -> Result<bool, Error> {
        let taken: u64 = self.shards.values().map(|held| held.bytes).sum();
        let more: usize = records.iter().map(Message::encoded_len).sum();
        if taken.saturating_add(more as u64) > self.most_bytes {
            return Ok(false);
        }
        let transaction = self.connection.unchecked_transaction().map_err(sql_error)?;
        {
            // A transaction that failed may have taken effect: what is there is the same.
            let mut insert = transaction
                .prepare_cached("INSERT OR REPLACE INTO _dosql_fallback VALUES (?1, ?2, ?3)")
                .map_err(sql_error)?;
            for record in records {
                insert.execute(params![shard, record.lsn.cast_signed(), record.encode_to_vec()]).map_err(sql_error)?;
            }
        }
        transaction.commit().map_err(sql_error)?;
        self.count(shard)?;
        Ok(true)
    }

    /// The records after an LSN, about so many bytes; `None` where the next one is not here.
    ///
    /// # Errors
    /// `STORAGE`.
    pub(super) fn read(
        &self,
        shard: &str,
        after_lsn: u64,
        max_bytes: usize,
    ) -> Result<Option<VecDeque<WalRecord>>, Error> {
        let has_next = |held: &&Held| held.first <= after_lsn + 1 && after_lsn < held.last;
        if self.shards.get(shard).filter(has_next).is_none() {
            return Ok(None);
        }
        let mut select = self
            .connection
            .prepare_cached("SELECT record FROM _dosql_fallback WHERE shard = ?1 AND lsn > ?2 ORDER BY lsn")
            .map_err(sql_error)?;
        let mut rows = select.query(params![shard, after_lsn.cast_signed()]).map_err(sql_error)?;
        let (mut records, mut bytes) = (VecDeque::new(), 0);
        while bytes < max_bytes
            && let Some(row) = rows.next().map_err(sql_error)?
        {
            let record: Vec<u8> = row.get(0).map_err(sql_error)?;
            bytes += record.len();
            records.push_back(WalRecord::decode(record.as_slice()).map_err(|error| {
                Error::new(ErrorCode::Storage, format!("a record of {shard} in the fallback storage: {error}"))
            })?);
        }
        Ok(Some(records))
    }

    /// Deletes what the lake has in committed snapshots.
    ///
    /// # Errors
    /// `STORAGE`.
    pub(super) fn forget(&mut self, shard: &str, durable_lsn: u64) -> Result<(), Error> {
        if self.shards.get(shard).is_none_or(|held| held.first > durable_lsn) {
            return Ok(());
        }
        self.connection
            .prepare_cached("DELETE FROM _dosql_fallback WHERE shard = ?1 AND lsn <= ?2")
            .and_then(|mut delete| delete.execute(params![shard, durable_lsn.cast_signed()]))
            .map_err(sql_error)?;
        self.count(shard)
    }
}
