//! Transactions over several messages. One at a time holds the shard's write lock, from its first write to its end. Its changes
//! are in the connection's open SQLite transaction, or, when somebody else is served meanwhile, set aside as a redo log, or, once
//! it is prepared, in storage.

use std::rc::Rc;

use dosql_proto::{
    Ending, Error, ErrorCode, FinishTransaction, ImagesOf, PreparedTransaction, RollbackTo, ShardExecute,
    ShardExecuted, ShardLoad, ShardQuery, ShardTransaction, StatementResult, TransactionNoted, ValidateReads,
    WalRecord,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::group::{deferred_violations, run_own};
use super::{Failure, Store, check_texts};
use crate::shard::apply::{self, Quiet};
use crate::shard::capture::{CapturedLog, Mark};
use crate::shard::guard::own_sql;
use crate::shard::log::{corrupt, signed, unsigned};
use crate::sql_value::sql_error;

/// After how long without a word of it a transaction's coordinator is asked about it, in milliseconds.
const ENQUIRE_AFTER_MS: u64 = 1_000;

/// When whoever meets the lock may try again, in milliseconds.
const LOCKED_RETRY_MS: u64 = 5;

/// The transaction that holds the write lock.
pub(super) struct Writer {
    pub(super) id: String,
    coordinator: String,
    /// The last of its messages that wrote, and what it was answered.
    number: u64,
    answer: Result<ShardExecuted, Error>,
    state: State,
    /// Its savepoints, oldest first.
    marks: Vec<(u64, Mark)>,
    /// Whether rows violated a DEFERRED foreign key when it was set aside: SQLite has lost count of them since.
    uncounted: bool,
    touched_ms: u64,
    enquired_ms: u64,
}

/// Where a transaction's changes are.
enum State {
    /// In the connection's open SQLite transaction, and in the capture.
    Applied,
    /// Here alone.
    SetAside(CapturedLog),
    /// In storage too, as the record they will be.
    Prepared(Vec<u8>),
}

/// A transaction of which nothing was heard for a while.
pub(in crate::shard) struct Doubt {
    pub(in crate::shard) transaction: String,
    pub(in crate::shard) coordinator: String,
}

impl Writer {
    /// The transaction that was prepared before a restart.
    pub(super) fn recover(connection: &Connection, now_ms: u64) -> Result<Option<Self>, Error> {
        let found = connection
            .query_row(own_sql!("SELECT id, coordinator, number, record, results FROM _dosql_prepared"), [], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                    row.get::<_, Vec<u8>>(4)?,
                ))
            })
            .optional()
            .map_err(sql_error)?;
        let Some((id, coordinator, number, record, results)) = found else { return Ok(None) };
        Ok(Some(Self {
            id,
            coordinator,
            number: unsigned(number),
            answer: Ok(ShardExecuted::decode(results.as_slice()).map_err(corrupt)?),
            state: State::Prepared(record),
            marks: Vec::new(),
            uncounted: false,
            touched_ms: now_ms,
            enquired_ms: 0,
        }))
    }

    pub(super) fn is_prepared(&self) -> bool {
        matches!(self.state, State::Prepared(_))
    }

    /// For a replica, which is to know of it as well.
    pub(super) fn prepared(&self) -> Option<PreparedTransaction> {
        let State::Prepared(record) = &self.state else { return None };
        Some(PreparedTransaction {
            id: self.id.clone(),
            coordinator: self.coordinator.clone(),
            number: self.number,
            record: record.clone(),
            results: self.answer.clone().unwrap_or_default().encode_to_vec(),
        })
    }
}

fn aborted(message: impl Into<String>) -> Error {
    Error::retryable(ErrorCode::TransactionAborted, message, 0)
}

impl Store {
    /// Runs statements of a transaction.
    pub(super) fn execute_within(
        &mut self,
        request: &ShardExecute,
        transaction: &ShardTransaction,
    ) -> Result<ShardExecuted, Failure> {
        check_texts(&request.statements)?;
        self.within(transaction, &request.images_of, |store| store.statements(&request.statements, &mut true))
    }

    /// Inserts rows in bulk, in a transaction.
    pub(super) fn load_within(
        &mut self,
        request: &ShardLoad,
        transaction: &ShardTransaction,
    ) -> Result<ShardExecuted, Failure> {
        self.within(transaction, &[], |store| store.rows(request, &mut true))
    }

    /// Fails where a transaction holds the lock.
    pub(super) fn check_unlocked(&self) -> Result<(), Error> {
        if self.in_transaction {
            return Ok(());
        }
        self.writer.as_ref().map_or(Ok(()), |writer| Err(self.locked(writer)))
    }

    fn locked(&self, writer: &Writer) -> Error {
        let state = if writer.is_prepared() { "that is about to commit " } else { "" };
        let message =
            format!("{} is locked by another transaction {state}({})", self.context.address().name, writer.id);
        Error::retryable(ErrorCode::LockTimeout, message, LOCKED_RETRY_MS)
    }

    /// Has the transaction that holds the lock, if it does, leave the connection to somebody else.
    pub(in crate::shard) fn set_aside(&mut self) -> Result<(), Failure> {
        if let Some(writer) = &mut self.writer
            && matches!(writer.state, State::Applied)
        {
            writer.uncounted |= deferred_violations(&self.connection)?;
            self.leave()?;
            let log = self.capture.borrow_mut().take_log();
            if let Some(writer) = &mut self.writer {
                writer.state = State::SetAside(log);
            }
        }
        Ok(())
    }

    /// Ends the SQLite transaction that holds a transaction's changes.
    fn leave(&mut self) -> Result<(), Failure> {
        let guard = Rc::clone(&self.guard);
        let _own = guard.own();
        if !self.connection.is_autocommit() {
            run_own(&self.connection, own_sql!("ROLLBACK")).map_err(Failure::Crash)?;
        }
        self.allow_spill(true).map_err(Failure::Crash)
    }

    /// Puts the changes of the transaction that holds the lock into the connection.
    fn enter(&mut self) -> Result<(), Failure> {
        let Some(writer) = &mut self.writer else {
            return Err(Error::internal("no transaction holds the lock").into());
        };
        let State::SetAside(log) = &mut writer.state else { return Ok(()) };
        let log = std::mem::take(log);
        self.commit().map_err(Failure::Crash)?;
        let entered = {
            let guard = Rc::clone(&self.guard);
            let _own = guard.own();
            self.allow_spill(false)
                .and_then(|()| run_own(&self.connection, own_sql!("BEGIN IMMEDIATE")))
                .and_then(|()| if log.is_empty() { Ok(()) } else { self.redo(&log.encoded()).map(drop) })
        };
        entered.map_err(Failure::Crash)?;
        self.capture.borrow_mut().put_log(log);
        if let Some(writer) = &mut self.writer {
            writer.state = State::Applied;
        }
        Ok(())
    }

    /// Says whether SQLite may write pages of an open transaction to storage before it commits; between transactions. Not where
    /// the transaction outlives the message that began it: a host that saves storage message by message would save half of it.
    /// The guard must have been told.
    pub(super) fn allow_spill(&mut self, allowed: bool) -> Result<(), Error> {
        if self.spill_off == allowed {
            self.spill_off = !allowed;
            let sql = if allowed { own_sql!("PRAGMA cache_spill = ON") } else { own_sql!("PRAGMA cache_spill = OFF") };
            run_own(&self.connection, sql)?;
        }
        Ok(())
    }

    /// Applies an encoded record. The guard must have been told.
    fn redo(&self, record: &[u8]) -> Result<WalRecord, Error> {
        let record = WalRecord::decode(record).map_err(corrupt)?;
        let _quiet = Quiet::begin(&self.connection, &self.schema)?;
        apply::changes(&self.connection, self.schema.shapes(), &record, 0..record.changes.len())?;
        apply::set_sequences(&self.connection, &record.sequences)?;
        Ok(record)
    }

    /// Runs `body` as one message of a transaction, which takes the lock with its first; all of it takes effect there or
    /// nothing.
    fn within(
        &mut self,
        transaction: &ShardTransaction,
        images_of: &[ImagesOf],
        body: impl FnOnce(&mut Self) -> Result<Vec<StatementResult>, Error>,
    ) -> Result<ShardExecuted, Failure> {
        if let Some(known) = self.take_lock(transaction)? {
            return known.map_err(Failure::Refused);
        }
        self.enter()?;
        let mark = {
            let mut capture = self.capture.borrow_mut();
            if let Some(writer) = &mut self.writer {
                writer.keep_marks(&transaction.savepoints, capture.log_mut());
            }
            capture.log_mut().mark()
        };
        let done = self.savepoint("SAVEPOINT").and_then(|()| {
            self.in_transaction = true;
            let done = body(self).and_then(|results| {
                self.note_sequences()?;
                let images = match images_of {
                    [] => Vec::new(),
                    of => self.capture.borrow_mut().log_mut().images_since(&mark, of)?,
                };
                Ok(ShardExecuted { results, lsn: self.log.last_lsn, duplicate: false, images })
            });
            self.in_transaction = false;
            done
        });
        let done = match done {
            Ok(executed) => self.savepoint("RELEASE").map(|()| executed).map_err(Failure::Crash),
            Err(error) => self.undo(&mark, error),
        };
        let answer = match done {
            Ok(executed) => Ok(executed),
            Err(Failure::Refused(error)) => Err(error),
            Err(crash) => return Err(crash),
        };
        let Some(writer) = &mut self.writer else {
            // SQLite has rolled back the whole transaction.
            return answer.map_err(Failure::Refused);
        };
        writer.answer = answer.clone();
        if transaction.prepare {
            let prepared = match answer {
                Ok(_) => self.prepare(),
                Err(error) => Err(error.into()),
            };
            if let Err(failure) = prepared {
                self.drop_writer()?;
                return Err(failure);
            }
        }
        answer_of(self.writer.as_ref()).map_err(Failure::Refused)
    }

    /// Takes the lock for a transaction, or finds that it has it. Returns the answer to a message that came before.
    fn take_lock(&mut self, transaction: &ShardTransaction) -> Result<Option<Result<ShardExecuted, Error>>, Failure> {
        let ShardTransaction { id, number, .. } = transaction;
        if id.is_empty() || *number == 0 {
            return Err(Error::invalid("a transaction must have an id, and number its messages from 1").into());
        }
        let now_ms = self.context.now_ms();
        if let Some(writer) = &mut self.writer
            && writer.id == *id
        {
            writer.touched_ms = now_ms;
            if writer.number == *number {
                return Ok(Some(writer.answer.clone()));
            }
            if writer.is_prepared() || writer.number > *number {
                return Err(Error::invalid("the transaction has gone on since this message").into());
            }
            if writer.number + 1 == *number {
                writer.number = *number;
                return Ok(None);
            }
            self.drop_writer()?;
            return Err(aborted("the transaction was rolled back: a message of it was lost").into());
        }
        let known = {
            let _own = self.guard.own();
            self.log.outcome(&self.connection, id)?
        };
        if let Some(outcome) = known {
            return Ok(Some(Ok(outcome)));
        }
        if *number != 1 {
            let message = "the transaction was rolled back: its time ran out, or the shard has restarted since";
            return Err(aborted(message).into());
        }
        if let Some(writer) = &self.writer {
            return Err(self.locked(writer).into());
        }
        self.check_read(transaction)?;
        self.writer = Some(Writer {
            id: id.clone(),
            coordinator: transaction.coordinator.clone(),
            number: 1,
            answer: Err(Error::internal("the message has no answer yet")),
            state: State::SetAside(CapturedLog::default()),
            marks: Vec::new(),
            uncounted: false,
            touched_ms: now_ms,
            enquired_ms: 0,
        });
        Ok(None)
    }

    /// Fails where the shard has changed since a transaction first read here.
    fn check_read(&self, transaction: &ShardTransaction) -> Result<(), Error> {
        match transaction.read_lsn {
            Some(lsn) if lsn != self.log.last_lsn => Err(aborted(format!(
                "the transaction was rolled back: {} has changed since it read there",
                self.context.address().name
            ))),
            _ => Ok(()),
        }
    }

    fn note_sequences(&mut self) -> Result<(), Error> {
        let _own = self.guard.own();
        let sequences = apply::sequences(&self.connection, &self.schema)?;
        self.capture.borrow_mut().set_sequences(self.sequences.moved_to(&sequences));
        Ok(())
    }

    fn savepoint(&self, what: &str) -> Result<(), Error> {
        let _own = self.guard.own();
        match what {
            "SAVEPOINT" => run_own(&self.connection, own_sql!("SAVEPOINT _dosql_unit")),
            "RELEASE" => run_own(&self.connection, own_sql!("RELEASE _dosql_unit")),
            _ => run_own(&self.connection, own_sql!("ROLLBACK TO _dosql_unit"))
                .and_then(|()| run_own(&self.connection, own_sql!("RELEASE _dosql_unit"))),
        }
    }

    /// Leaves nothing of a message that failed.
    fn undo<T>(&mut self, mark: &Mark, error: Error) -> Result<T, Failure> {
        let kept = {
            let mut capture = self.capture.borrow_mut();
            // What it would say belongs to the failed message.
            let _ = capture.check();
            capture.log_mut().truncate(mark)
        };
        if self.connection.is_autocommit() || !kept {
            // SQLite has rolled back everything (OR ROLLBACK, a full disk), or the log is gone (too much was changed).
            self.drop_writer()?;
        } else {
            self.savepoint("ROLLBACK").map_err(Failure::Crash)?;
        }
        Err(error.into())
    }

    /// Forgets the transaction that holds the lock, where it is not prepared.
    pub(super) fn drop_writer(&mut self) -> Result<(), Failure> {
        let Some(writer) = self.writer.take_if(|writer| !writer.is_prepared()) else { return Ok(()) };
        if matches!(writer.state, State::Applied) {
            self.capture.borrow_mut().clear();
            self.leave()?;
        }
        Ok(())
    }

    /// Fails where the transaction in the connection leaves rows that violate a foreign key.
    fn check_keys(&self) -> Result<(), Error> {
        let _own = self.guard.own();
        let mut violated = deferred_violations(&self.connection)?;
        if !violated && self.writer.as_ref().is_some_and(|writer| writer.uncounted) {
            let mut check = self.connection.prepare_cached(own_sql!("PRAGMA foreign_key_check")).map_err(sql_error)?;
            violated = check.exists([]).map_err(sql_error)?;
        }
        match violated {
            true => Err(Error::new(ErrorCode::Constraint, "FOREIGN KEY constraint failed")),
            false => Ok(()),
        }
    }

    /// Writes the changes of the transaction in the connection to storage, as the record they will be.
    fn prepare(&mut self) -> Result<(), Failure> {
        self.check_keys()?;
        let log = self.capture.borrow_mut().take_log();
        self.leave()?;
        let record = if log.is_empty() { Vec::new() } else { log.encoded() };
        self.begin()?;
        let Some(writer) = &mut self.writer else { return Err(Error::internal("no transaction to prepare").into()) };
        let results = answer_of(Some(writer)).unwrap_or_default().encode_to_vec();
        let _own = self.guard.own();
        self.connection
            .prepare_cached(own_sql!(
                "INSERT INTO _dosql_prepared (id, coordinator, number, record, results) VALUES (?1, ?2, ?3, ?4, ?5)"
            ))
            .and_then(|mut insert| {
                insert.execute(params![writer.id, writer.coordinator, signed(writer.number), record, results])
            })
            .map_err(|error| Failure::Crash(sql_error(error)))?;
        writer.state = State::Prepared(record);
        writer.marks.clear();
        if self.member.has_replicas() {
            // Whoever has this LSN knows of it.
            let hlc = self.log.next_hlc(self.context.now_ms());
            let lsn = self.log.last_lsn + 1;
            let marker = WalRecord { lsn, hlc, prepared: writer.prepared(), ..WalRecord::default() };
            self.log.append(&self.connection, hlc, &marker.encode_to_vec()).map_err(Failure::Crash)?;
        }
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }

    /// Ends a transaction.
    pub(in crate::shard) fn finish_transaction(
        &mut self,
        request: &FinishTransaction,
    ) -> Result<TransactionNoted, Failure> {
        let id = &request.transaction;
        let holds = self.writer.as_ref().filter(|writer| writer.id == *id).map(Writer::is_prepared);
        match (request.ending(), holds) {
            (Ending::Rollback, Some(true)) => self.forget_prepared(id)?,
            (Ending::Rollback, Some(false)) => self.drop_writer()?,
            (Ending::CommitPrepared, Some(true)) => self.commit_prepared()?,
            (Ending::CommitHere, Some(false)) => self.commit_here(request.number)?,
            // What was prepared is never lost: it has been committed, or rolled back, before.
            (Ending::Rollback | Ending::CommitPrepared, None) => {}
            (Ending::CommitHere, None) => {
                let known = {
                    let _own = self.guard.own();
                    self.log.outcome(&self.connection, id)?
                };
                if known.is_none() {
                    let message = "the transaction was rolled back: its time ran out, or the shard has restarted since";
                    return Err(aborted(message).into());
                }
            }
            (Ending::CommitPrepared, Some(false)) => {
                return Err(Error::invalid("the transaction is not prepared").into());
            }
            (Ending::CommitHere, Some(true)) => {
                return Err(Error::invalid("the transaction is prepared: its coordinator decides").into());
            }
            (Ending::Unspecified, _) => return Err(Error::invalid("an ending must say which").into()),
        }
        Ok(TransactionNoted { lsn: self.log.last_lsn })
    }

    fn forget_prepared(&mut self, id: &str) -> Result<(), Failure> {
        self.begin()?;
        let _own = self.guard.own();
        delete_prepared(&self.connection, id).map_err(Failure::Crash)?;
        self.writer = None;
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }

    fn commit_prepared(&mut self) -> Result<(), Failure> {
        self.begin()?;
        let Some(Writer { id, state: State::Prepared(record), .. }) = self.writer.take() else {
            return Err(Failure::Crash(Error::internal("no prepared transaction to commit")));
        };
        let guard = Rc::clone(&self.guard);
        let _own = guard.own();
        // It was promised: nothing that happens here may leave it undone.
        let done = (|| {
            if !record.is_empty() {
                self.redo(&record)?;
                self.append_record(record)?;
            }
            let outcome = ShardExecuted { lsn: self.log.last_lsn, ..ShardExecuted::default() };
            self.log.remember(&self.connection, &id, self.context.now_ms(), &outcome)?;
            delete_prepared(&self.connection, &id)?;
            self.sequences = apply::sequences(&self.connection, &self.schema)?;
            Ok(())
        })();
        done.map_err(Failure::Crash)?;
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }

    /// Appends an encoded record that has no LSN yet.
    fn append_record(&mut self, mut record: Vec<u8>) -> Result<(), Error> {
        let hlc = self.log.next_hlc(self.context.now_ms());
        // Protobuf's last word on a field counts.
        let numbers = WalRecord { lsn: self.log.last_lsn + 1, hlc, ..WalRecord::default() };
        record.extend_from_slice(&numbers.encode_to_vec());
        self.log.append(&self.connection, hlc, &record)
    }

    /// Commits a transaction that has written here alone.
    fn commit_here(&mut self, number: u64) -> Result<(), Failure> {
        if self.writer.as_ref().is_none_or(|writer| writer.number != number) {
            self.drop_writer()?;
            return Err(aborted("the transaction was rolled back: a message of it was lost").into());
        }
        self.enter()?;
        self.check_keys()?;
        let log = self.capture.borrow_mut().take_log();
        let Some(Writer { id, .. }) = self.writer.take() else { return Ok(()) };
        let guard = Rc::clone(&self.guard);
        let _own = guard.own();
        let done = (|| {
            if !log.is_empty() {
                self.append_record(log.encoded())?;
            }
            let outcome = ShardExecuted { lsn: self.log.last_lsn, ..ShardExecuted::default() };
            self.log.remember(&self.connection, &id, self.context.now_ms(), &outcome)?;
            self.sequences = apply::sequences(&self.connection, &self.schema)?;
            Ok(())
        })();
        done.map_err(Failure::Crash)?;
        // Its SQLite transaction is the group's from here on.
        self.group = Some(1);
        Ok(())
    }

    /// Undoes what a transaction did since a savepoint.
    pub(in crate::shard) fn rollback_to(&mut self, request: &RollbackTo) -> Result<TransactionNoted, Failure> {
        let Some(transaction) = &request.transaction else {
            return Err(Error::invalid("a savepoint belongs to a transaction").into());
        };
        if self.take_lock(transaction)?.is_none() {
            self.set_aside()?;
            if let Some(writer) = &mut self.writer {
                writer.answer = Ok(ShardExecuted { lsn: self.log.last_lsn, ..ShardExecuted::default() });
                let found = writer.marks.iter().position(|(savepoint, _)| *savepoint == request.savepoint);
                if let (Some(at), State::SetAside(log)) = (found, &mut writer.state) {
                    if !log.truncate(&writer.marks[at].1) {
                        return Err(Failure::Crash(Error::internal("a savepoint lies beyond the transaction's log")));
                    }
                    writer.marks.truncate(at + 1);
                }
            }
        }
        Ok(TransactionNoted { lsn: self.log.last_lsn })
    }

    /// Whether what a transaction has read still holds.
    pub(in crate::shard) fn validate(&mut self, request: &ValidateReads) -> Result<TransactionNoted, Failure> {
        if request.lsn != self.log.last_lsn {
            let message = format!("{} has changed since the transaction read there", self.context.address().name);
            return Err(aborted(message).into());
        }
        if let Some(writer) = &self.writer
            && writer.id != request.transaction
            && (request.writes || writer.is_prepared())
        {
            return Err(self.locked(writer).into());
        }
        Ok(TransactionNoted { lsn: self.log.last_lsn })
    }

    /// Puts the connection into the state that a query is to see.
    pub(super) fn prepare_read(&mut self, request: &ShardQuery) -> Result<(), Failure> {
        let own = match (&request.transaction, &mut self.writer) {
            (Some(transaction), Some(writer)) if writer.id == transaction.id => {
                writer.touched_ms = self.context.now_ms();
                !writer.is_prepared()
            }
            _ => false,
        };
        if own {
            return self.enter();
        }
        self.set_aside()?;
        if let Some(transaction) = &request.transaction {
            if transaction.number != 0 {
                let message = "the transaction was rolled back: its time ran out, or the shard has restarted since";
                return Err(aborted(message).into());
            }
            self.check_read(transaction)?;
        }
        match &self.writer {
            Some(writer) if request.strict && writer.is_prepared() => Err(self.locked(writer).into()),
            _ => Ok(()),
        }
    }

    /// When the coordinator of the transaction that holds the lock is to be asked about it.
    pub(in crate::shard) fn doubt_due(&self) -> Option<u64> {
        self.writer.as_ref().map(|writer| writer.touched_ms.max(writer.enquired_ms) + ENQUIRE_AFTER_MS)
    }

    /// The transaction whose coordinator is to be asked now. One that was never prepared, and whose coordinator does not
    /// answer either, is rolled back when its time is over.
    pub(in crate::shard) fn doubt(&mut self) -> Result<Option<Doubt>, Failure> {
        let now_ms = self.context.now_ms();
        if self.doubt_due().is_none_or(|due_ms| due_ms > now_ms) {
            return Ok(None);
        }
        let patience = self.context.settings().transaction_timeout_ms;
        if self.writer.as_ref().is_some_and(|writer| !writer.is_prepared() && writer.touched_ms + patience < now_ms) {
            self.drop_writer()?;
        }
        Ok(self.writer.as_mut().map(|writer| {
            writer.enquired_ms = now_ms;
            Doubt { transaction: writer.id.clone(), coordinator: writer.coordinator.clone() }
        }))
    }
}

impl Writer {
    /// Notes where the savepoints are that were set since the last message, and forgets those that were released.
    fn keep_marks(&mut self, savepoints: &[u64], log: &CapturedLog) {
        let common =
            self.marks.iter().zip(savepoints).take_while(|((known, _), savepoint)| known == *savepoint).count();
        self.marks.truncate(common);
        self.marks.extend(savepoints[common..].iter().map(|savepoint| (*savepoint, log.mark())));
    }
}

fn answer_of(writer: Option<&Writer>) -> Result<ShardExecuted, Error> {
    writer.map_or_else(|| Ok(ShardExecuted::default()), |writer| writer.answer.clone())
}

fn delete_prepared(connection: &Connection, id: &str) -> Result<(), Error> {
    connection
        .prepare_cached(own_sql!("DELETE FROM _dosql_prepared WHERE id = ?1"))
        .and_then(|mut delete| delete.execute([id]))
        .map(|_| ())
        .map_err(sql_error)
}
