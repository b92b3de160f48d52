//! A replica's side of the log: records taken over from the primary, with what came of the requests behind them.

use dosql_proto::{
    Error, ErrorCode, MemberNoted, PreparedTransaction, Replicate, ShardExecuted, ShardQuery, StoredOutcome, WalBatch,
    WalRecord, replicate::Fetched,
};
use prost::Message;
use rusqlite::{OptionalExtension, params};

use super::super::apply::{self, Quiet};
use super::super::guard::own_sql;
use super::super::log::{corrupt, signed, unsigned};
use super::super::schema::Schema;
use super::member::not_primary;
use super::transactions::Writer;
use super::{Failure, Store};
use crate::sql_name::quote;
use crate::sql_value::sql_error;

impl Store {
    /// Takes over what the follower has fetched from the primary.
    pub(in crate::shard) fn replicate(&mut self, request: Replicate) -> Result<MemberNoted, Failure> {
        self.take(request)?;
        Ok(MemberNoted { last_lsn: self.log.last_lsn })
    }

    fn take(&mut self, request: Replicate) -> Result<(), Failure> {
        let state = &self.member.state;
        if request.epoch != state.epoch || state.promised != state.epoch || !self.member.is_replica() {
            let message = format!("what was fetched in epoch {} comes too late", request.epoch);
            return Err(not_primary(message).into());
        }
        self.set_aside()?;
        let state = &self.member.state;
        if request.number <= self.taken {
            return Ok(());
        }
        self.taken = request.number;
        match request.fetched {
            None => Err(Error::invalid("nothing was fetched").into()),
            Some(Fetched::Records(batch)) if state.snapshot.is_none() => {
                self.take_records(&batch).map_err(Failure::Crash)?;
                self.primary_lsn = self.primary_lsn.max(batch.last_lsn);
                if self.log.last_lsn >= batch.last_lsn {
                    self.fresh_at_ms = self.fresh_at_ms.max(request.asked_ms);
                }
                Ok(())
            }
            Some(Fetched::Records(_)) => Ok(()),
            Some(Fetched::Part(part)) => self.take_part(&part).map_err(Failure::Crash),
            Some(Fetched::StartOver(reason)) => self.start_over(&reason, request.number),
        }
    }

    fn take_records(&mut self, batch: &WalBatch) -> Result<(), Error> {
        let first = batch.records.first().map_or(0, |record| record.lsn);
        if first > self.log.last_lsn + 1 {
            return Ok(());
        }
        super::group::begin_group(&self.connection, &self.guard, &mut self.group)?;
        for record in &batch.records {
            if record.lsn == self.log.last_lsn + 1 {
                self.take_record(record)?;
            }
        }
        let last_lsn = self.log.last_lsn;
        let new = self.member.set_epochs(&batch.epochs, last_lsn);
        if let Some(request) = new.iter().map(|start| start.request).min() {
            let _own = self.guard.own();
            self.member.save(&self.connection)?;
            // Outcomes of requests without effect that the new primary never had.
            self.connection
                .prepare_cached(own_sql!("DELETE FROM _dosql_requests WHERE seq > ?1"))
                .and_then(|mut delete| delete.execute([signed(request)]))
                .map_err(sql_error)?;
        }
        self.take_outcomes(&batch.outcomes)?;
        if last_lsn >= batch.last_lsn {
            self.set_prepared(batch.prepared.as_ref())?;
        } else {
            self.forget_committed()?;
        }
        let _own = self.guard.own();
        self.log.prune_before(&self.connection, batch.oldest_lsn)?;
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }

    /// Does what one record says, and appends it to the log.
    pub(super) fn take_record(&mut self, record: &WalRecord) -> Result<(), Error> {
        let mut next = 0;
        for change in &record.schema_changes {
            let until = (change.after_changes as usize).clamp(next, record.changes.len());
            self.quietly(|store| {
                apply::changes(&store.connection, store.schema.shapes(), record, next..until)?;
                store.connection.execute_batch(&change.sql).map_err(sql_error)
            })?;
            next = until;
            self.load_schema()?;
            if let (Some(table), false) = (&change.table, change.dropped.is_empty()) {
                // The rows of a renamed table are in the record under its new name. They are here already.
                next += self.count_rows(&table.name)?;
            }
        }
        self.quietly(|store| {
            let range = next.min(record.changes.len())..record.changes.len();
            apply::changes(&store.connection, store.schema.shapes(), record, range)?;
            apply::set_sequences(&store.connection, &record.sequences)
        })?;
        self.append_taken(record)?;
        if record.prepared.is_some() {
            self.set_prepared(record.prepared.as_ref())?;
        }
        let _own = self.guard.own();
        self.sequences = apply::sequences(&self.connection, &self.schema)?;
        Ok(())
    }

    /// Appends a record as it is.
    pub(super) fn append_taken(&mut self, record: &WalRecord) -> Result<(), Error> {
        if record.lsn != self.log.last_lsn + 1 {
            let (lsn, last) = (record.lsn, self.log.last_lsn);
            return Err(Error::internal(format!("the record of LSN {lsn} does not follow LSN {last}")));
        }
        let _own = self.guard.own();
        self.log.append(&self.connection, record.hlc, &record.encode_to_vec())
    }

    /// Runs the shard's own statements with triggers and foreign keys off.
    pub(super) fn quietly<T>(&self, run: impl FnOnce(&Self) -> Result<T, Error>) -> Result<T, Error> {
        let _own = self.guard.own();
        let _quiet = Quiet::begin(&self.connection, &self.schema)?;
        run(self)
    }

    /// Takes note of a schema that has changed.
    pub(super) fn load_schema(&mut self) -> Result<(), Error> {
        let schema = {
            let _own = self.guard.own();
            Schema::load(&self.connection)?
        };
        self.replace_schema(schema);
        Ok(())
    }

    fn count_rows(&self, table: &str) -> Result<usize, Error> {
        let _own = self.guard.own();
        let sql = format!("/*_dosql_*/ SELECT count(*) FROM {}", quote(table));
        let count: i64 = self.connection.query_row(&sql, [], |row| row.get(0)).map_err(sql_error)?;
        usize::try_from(count).map_err(|_| Error::internal("a table has fewer than no rows"))
    }

    pub(super) fn take_outcomes(&self, outcomes: &[StoredOutcome]) -> Result<(), Error> {
        let _own = self.guard.own();
        for StoredOutcome { number, id, at_ms, outcome } in outcomes {
            self.connection
                .prepare_cached(own_sql!(
                    "INSERT OR REPLACE INTO _dosql_requests (seq, id, at, outcome) VALUES (?1, ?2, ?3, ?4)"
                ))
                .and_then(|mut insert| insert.execute(params![signed(*number), id, signed(*at_ms), outcome]))
                .map_err(sql_error)?;
        }
        Ok(())
    }

    /// Notes which transaction is prepared on the primary.
    pub(super) fn set_prepared(&self, prepared: Option<&PreparedTransaction>) -> Result<(), Error> {
        let _own = self.guard.own();
        let id = prepared.map_or("", |prepared| prepared.id.as_str());
        let delete = self.connection.prepare_cached(own_sql!("DELETE FROM _dosql_prepared WHERE id <> ?1"));
        delete.and_then(|mut delete| delete.execute([id])).map_err(sql_error)?;
        let Some(PreparedTransaction { id, coordinator, number, record, results }) = prepared else { return Ok(()) };
        self.connection
            .prepare_cached(own_sql!(
                "INSERT OR REPLACE INTO _dosql_prepared (id, coordinator, number, record, results) \
                 VALUES (?1, ?2, ?3, ?4, ?5)"
            ))
            .and_then(|mut insert| insert.execute(params![id, coordinator, signed(*number), record, results]))
            .map(|_| ())
            .map_err(sql_error)
    }

    /// Forgets a prepared transaction that has taken effect.
    fn forget_committed(&self) -> Result<(), Error> {
        let _own = self.guard.own();
        self.connection
            .prepare_cached(own_sql!("DELETE FROM _dosql_prepared WHERE id IN (SELECT id FROM _dosql_requests)"))
            .and_then(|mut delete| delete.execute([]))
            .map(|_| ())
            .map_err(sql_error)
    }

    /// Which transaction is prepared here; "" where none is.
    pub(in crate::shard) fn prepared_id(&self) -> Result<String, Error> {
        let _own = self.guard.own();
        let id = self
            .connection
            .prepare_cached(own_sql!("SELECT id FROM _dosql_prepared"))
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)).optional());
        id.map(Option::unwrap_or_default).map_err(sql_error)
    }

    /// The number of the last stored outcome of a request.
    pub(in crate::shard) fn last_request(&self) -> Result<u64, Error> {
        let _own = self.guard.own();
        let last: Option<i64> = self
            .connection
            .prepare_cached(own_sql!("SELECT max(seq) FROM _dosql_requests"))
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(sql_error)?;
        Ok(last.map_or(0, unsigned))
    }

    /// Stored outcomes after a number, of requests up to an LSN, until about `max_bytes`; and whether these are all.
    pub(super) fn outcomes_after(
        &self,
        number: u64,
        up_to_lsn: u64,
        max_bytes: usize,
    ) -> Result<(Vec<StoredOutcome>, bool), Error> {
        let _own = self.guard.own();
        let mut statement = self
            .connection
            .prepare_cached(own_sql!("SELECT seq, id, at, outcome FROM _dosql_requests WHERE seq > ?1 ORDER BY seq"))
            .map_err(sql_error)?;
        let mut rows = statement.query([signed(number)]).map_err(sql_error)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next().map_err(sql_error)? {
            let read = || -> rusqlite::Result<StoredOutcome> {
                Ok(StoredOutcome {
                    number: unsigned(row.get(0)?),
                    id: row.get(1)?,
                    at_ms: unsigned(row.get(2)?),
                    outcome: row.get(3)?,
                })
            };
            let stored = read().map_err(sql_error)?;
            bytes += stored.outcome.len() + stored.id.len() + 16;
            if bytes > max_bytes && !found.is_empty() {
                return Ok((found, false));
            }
            if ShardExecuted::decode(stored.outcome.as_slice()).map_err(corrupt)?.lsn > up_to_lsn {
                return Ok((found, false));
            }
            found.push(stored);
        }
        Ok((found, true))
    }

    /// Fails where what there is here is older than a read may be.
    pub(super) fn check_bounds(&self, request: &ShardQuery) -> Result<(), Error> {
        let name = &self.context.address().name;
        let last = self.log.last_lsn;
        if !self.member.is_replica() {
            if request.min_lsn > last {
                let message = format!(
                    "the bookmark's LSN {} is beyond the last one of {name}, {last}: what was written there is lost",
                    request.min_lsn
                );
                return Err(Error::new(ErrorCode::UnknownPosition, message));
            }
            return Ok(());
        }
        let lagging = |message: String| Err(Error::retryable(ErrorCode::ReplicaLagging, message, 20));
        if self.member.state.snapshot.is_some() {
            return lagging(format!("{name} is copying everything from its primary"));
        }
        if request.min_lsn > last {
            return lagging(format!("{name} has come to LSN {last}, not yet to LSN {}", request.min_lsn));
        }
        let behind_ms = self.context.now_ms().saturating_sub(self.fresh_at_ms);
        if request.max_staleness_ms > 0 && behind_ms > request.max_staleness_ms {
            let bound = request.max_staleness_ms;
            return lagging(format!("{name} may be {behind_ms} ms behind its primary, more than {bound} ms"));
        }
        Ok(())
    }

    /// What a replica is to take over next.
    ///
    /// # Errors
    /// `UNKNOWN_POSITION` where the replica must start over.
    pub(in crate::shard) fn read_for_replica(&self, request: &dosql_proto::ReadWal) -> Result<WalBatch, Error> {
        self.check_history(request.after_lsn, request.after_epoch)?;
        let mut batch = {
            let _own = self.guard.own();
            self.log.read_after(&self.connection, request)?
        };
        let up_to = batch.records.last().map_or(request.after_lsn, |record| record.lsn);
        batch.prepared = self.writer.as_ref().and_then(Writer::prepared);
        batch.epochs.clone_from(&self.member.state.epochs);
        // The numbers of outcomes go on from what the primary had when its epoch began.
        let new = self.member.state.epochs.iter().filter(|start| start.epoch > request.after_epoch);
        let after = new.map(|start| start.request).fold(request.after_request, u64::min);
        // All of them: a record must not be without the outcome of its request.
        batch.outcomes = self.outcomes_after(after, up_to, usize::MAX)?.0;
        Ok(batch)
    }

    /// Fails where a log that ends so is not the beginning of this one.
    pub(super) fn check_history(&self, lsn: u64, epoch: u64) -> Result<(), Error> {
        let mine = self.member.epoch_at(lsn);
        if lsn > self.log.last_lsn || mine != epoch {
            let last = self.log.last_lsn;
            let message = format!(
                "the log of epoch {epoch} up to LSN {lsn} has parted from that of the primary, of epoch {mine} there and up to LSN {last}"
            );
            return Err(Error::new(ErrorCode::UnknownPosition, message));
        }
        Ok(())
    }
}
