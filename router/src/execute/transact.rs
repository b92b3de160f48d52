//! Transactions over several shards: two-phase commit, with the log of decisions in this actor's storage.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use dosql_actors::runtime::TransactionMode;
use dosql_proto::{
    Ending, Error, ErrorCode, FinishTransaction, ImagesOf, PartOutcome, PartOutcomes, RollbackTo, Row, ShardExecute,
    ShardExecuted, ShardLoad, ShardTransaction, Statement, ValidateReads, shard_reply::Reply, shard_request::Request,
};
use prost::Message;

use super::endings::in_doubt;
use super::{Scope, Shared, shards};
use crate::catalog::Decision;
use crate::transaction::{Transaction, contended, fatal, single};

/// How long the first attempt, which asks all shards at once, waits for a lock, in milliseconds. The later ones lock shard after
/// shard, in one order, so that they cannot wait for each other.
const FIRST_PATIENCE_MS: u64 = 30;
/// One part of a write: a shard, and what it runs.
pub(super) type Part = (usize, Vec<Statement>);

/// What one shard is to do of a write.
#[derive(Clone)]
pub(super) enum Work {
    Statements(Vec<Statement>),
    /// Rows that it inserts in bulk.
    Rows {
        table: Rc<str>,
        columns: Rc<[String]>,
        rows: Vec<Row>,
    },
}

impl Work {
    /// The message to the shard: with the id by which it remembers it, or as part of a transaction.
    pub(super) fn request(
        self,
        request_id: String,
        transaction: Option<ShardTransaction>,
        images_of: &[ImagesOf],
    ) -> Request {
        match self {
            Self::Statements(statements) => {
                Request::Execute(ShardExecute { statements, request_id, transaction, images_of: images_of.to_vec() })
            }
            Self::Rows { table, columns, rows } => Request::Load(ShardLoad {
                table: table.to_string(),
                columns: columns.to_vec(),
                rows,
                request_id,
                transaction,
            }),
        }
    }
}

impl From<Vec<Statement>> for Work {
    fn from(statements: Vec<Statement>) -> Self {
        Self::Statements(statements)
    }
}

impl Shared {
    /// Begins a transaction.
    pub(super) fn begin(&self, name: &str, mode: TransactionMode, locking: bool) -> Rc<Transaction> {
        let id = format!("{name}/{:016x}", self.context.random_u64());
        Transaction::new(id, &self.context.address().name, mode, locking, &self.live)
    }

    /// Writes on several shards: all of it takes effect, or none, and once for a request's id. Within a session's transaction
    /// it becomes part of that.
    ///
    /// # Errors
    /// Why nothing of it took effect; `UNAVAILABLE` where it may have: a retry with the same id tells.
    pub(super) async fn atomically<W: Into<Work> + Clone>(
        &self,
        mut parts: Vec<(usize, W)>,
        request_id: &str,
        call: &Scope,
    ) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        if let Some(transaction) = call.transaction() {
            return self.write_all(transaction, parts, &[], call).await;
        }
        if parts.len() < 2 {
            return self.write_parts(parts, request_id, call).await;
        }
        match self.context.settings().transaction_mode {
            TransactionMode::Single => return Err(single()),
            TransactionMode::Multi => return self.write_parts(parts, request_id, call).await,
            TransactionMode::TwoPhase => {}
        }
        let _alone = self.in_flight.enter(request_id).await;
        let decided = self.catalog.borrow().decided(request_id)?;
        if let Some(decision) = decided {
            return self.repeated(decision, call).await;
        }
        parts.sort_by_key(|(shard, _)| *shard);
        let mut attempt = 0;
        loop {
            let transaction = self.begin(request_id, TransactionMode::TwoPhase, false);
            let error = match self.prepare_parts(&transaction, parts.clone(), attempt > 0, call).await {
                Ok(mut done) => {
                    let outcome = self.outcome_of(&done).encode_to_vec();
                    let lsns = self.decide(&transaction, request_id, outcome, call).await?;
                    for (shard, executed) in &mut done {
                        executed.lsn = lsns.get(shard).copied().unwrap_or(executed.lsn);
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            self.roll_back(&transaction);
            attempt += 1;
            self.pause_before_retry(error, attempt, call).await?;
        }
    }

    /// Runs `run` in a transaction of its own, anew where another one got in its way, and commits it; what it returned is
    /// returned again to a retry of the request. Within a session's transaction it becomes part of that, as a whole.
    ///
    /// # Errors
    /// As [`atomically`](Self::atomically).
    pub(super) async fn transact<T: Message + Default, F: Future<Output = Result<T, Error>>>(
        &self,
        request_id: &str,
        call: &Scope,
        run: impl Fn(Scope) -> F,
    ) -> Result<(T, Vec<(usize, u64)>), Error> {
        if let Some(transaction) = call.transaction() {
            let savepoint = transaction.set_savepoint("");
            let done = run(call.clone()).await;
            if done.is_err() {
                self.roll_back_to(transaction, savepoint, call).await;
            }
            transaction.release(savepoint);
            return Ok((done?, Vec::new()));
        }
        let _alone = self.in_flight.enter(request_id).await;
        let decided = self.catalog.borrow().decided(request_id)?;
        if let Some(decision) = decided {
            let outcome = T::decode(decision.outcome.as_slice()).map_err(|error| damaged(&error))?;
            return Ok((outcome, self.apply_decision(decision, call).await?.into_iter().collect()));
        }
        let mode = self.context.settings().transaction_mode;
        let mut attempt = 0;
        let mut wanted = BTreeSet::new();
        loop {
            let transaction = self.begin(request_id, mode, attempt > 1);
            transaction.hurry(attempt == 0);
            let scope = call.within(Some(Rc::clone(&transaction)));
            let attempted = async {
                // In one order, so that those who were in each other's way do not wait for each other again.
                for shard in &wanted {
                    self.lock(&transaction, *shard, &scope).await?;
                }
                run(scope.clone()).await
            };
            let error = match attempted.await {
                Ok(outcome) => {
                    let logged = Some((request_id, outcome.encode_to_vec()));
                    match self.commit(&transaction, logged, call).await {
                        Ok(lsns) => return Ok((outcome, lsns)),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let parts = transaction.parts();
            wanted.extend(parts.into_iter().filter(|(_, part)| part.writes > 0).map(|(shard, _)| shard));
            self.roll_back(&transaction);
            attempt += 1;
            self.pause_before_retry(error, attempt, call).await?;
        }
    }

    /// Waits a moment, where what failed with `error` may succeed when it is tried again.
    async fn pause_before_retry(&self, error: Error, attempt: u32, call: &Scope) -> Result<(), Error> {
        let pause = 1 + self.context.random_u64() % (10 << attempt.min(5));
        if !contended(&error) || call.deadline_ms != 0 && self.context.now_ms() + pause >= call.deadline_ms {
            return Err(error);
        }
        tracing::debug!(%error, attempt, "running a transaction again");
        self.context.sleep(Duration::from_millis(pause)).await;
        Ok(())
    }

    /// One message of a transaction that writes on a shard, or takes its lock.
    async fn write_within(
        &self,
        transaction: &Transaction,
        (shard, work): (usize, impl Into<Work>),
        images_of: &[ImagesOf],
        prepare: bool,
        patience_ms: u64,
        call: &Scope,
    ) -> Result<ShardExecuted, Error> {
        let mut message = transaction.for_write(shard)?;
        message.prepare = prepare;
        let request = work.into().request(String::new(), Some(message), images_of);
        let asked = self.ask_patiently(shard, request, patience_ms, call).await;
        let done = asked.and_then(shards::executed);
        if let Err(error) = &done
            && fatal(error)
        {
            transaction.fail(error);
        }
        done
    }

    fn lock_timeout_ms(&self) -> u64 {
        self.context.settings().lock_timeout_ms
    }

    /// Takes a shard's lock for a transaction.
    pub(super) async fn lock(&self, transaction: &Transaction, shard: usize, call: &Scope) -> Result<(), Error> {
        if transaction.has_lock(shard) {
            return Ok(());
        }
        self.write_within(transaction, (shard, Work::Statements(Vec::new())), &[], false, self.lock_timeout_ms(), call)
            .await
            .map(drop)
    }

    /// What a message carries by which a transaction reads on a shard. One that locks before it reads takes the lock first.
    pub(super) async fn join_for_read(
        &self,
        transaction: &Transaction,
        shard: usize,
        call: &Scope,
    ) -> Result<ShardTransaction, Error> {
        if transaction.locking {
            self.lock(transaction, shard, call).await?;
        }
        transaction.for_read(shard)
    }

    /// A statement's parts within a transaction that goes on: where one fails, the others are undone.
    pub(super) async fn write_all<W: Into<Work>>(
        &self,
        transaction: &Transaction,
        parts: Vec<(usize, W)>,
        images_of: &[ImagesOf],
        call: &Scope,
    ) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        let savepoint = (parts.len() > 1).then(|| transaction.set_savepoint(""));
        let patience = if transaction.hurries() { FIRST_PATIENCE_MS } else { self.lock_timeout_ms() };
        let outcomes = self
            .on_each(parts, |part| async move {
                let shard = part.0;
                self.write_within(transaction, part, images_of, false, patience, call).await.map(|done| (shard, done))
            })
            .await;
        let done = all(outcomes);
        if let Some(savepoint) = savepoint {
            if done.is_err() {
                self.roll_back_to(transaction, savepoint, call).await;
            }
            transaction.release(savepoint);
        }
        done
    }

    /// Undoes what a transaction did since a savepoint, on every shard.
    pub(super) async fn roll_back_to(&self, transaction: &Transaction, savepoint: u64, call: &Scope) {
        let shards = transaction.parts().into_iter().filter(|(_, part)| part.writes > 0).map(|(shard, _)| shard);
        let shards: Vec<usize> = if transaction.failed() { Vec::new() } else { shards.collect() };
        self.on_each(shards, |shard| async move {
            let undone = async {
                let request = RollbackTo { transaction: Some(transaction.for_write(shard)?), savepoint };
                self.ask(shard, Request::RollbackTo(request), call).await
            };
            if let Err(error) = undone.await {
                transaction.fail(&error);
            }
        })
        .await;
        transaction.forget_after(savepoint);
    }

    /// Has each shard run and prepare its part: all at once, or one after the other.
    async fn prepare_parts<W: Into<Work>>(
        &self,
        transaction: &Transaction,
        parts: Vec<(usize, W)>,
        in_order: bool,
        call: &Scope,
    ) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        if in_order {
            let mut done = Vec::with_capacity(parts.len());
            for part in parts {
                let shard = part.0;
                done.push((
                    shard,
                    self.write_within(transaction, part, &[], true, self.lock_timeout_ms(), call).await?,
                ));
            }
            return Ok(done);
        }
        let outcomes = self
            .on_each(parts, |part| async move {
                let shard = part.0;
                self.write_within(transaction, part, &[], true, FIRST_PATIENCE_MS, call).await.map(|done| (shard, done))
            })
            .await;
        all(outcomes)
    }

    /// Commits a transaction. `logged`: its request's id, and what a retry of that is to be answered.
    ///
    /// Where it fails and the transaction has not failed, it can go on.
    pub(super) async fn commit(
        &self,
        transaction: &Transaction,
        logged: Option<(&str, Vec<u8>)>,
        call: &Scope,
    ) -> Result<Vec<(usize, u64)>, Error> {
        transaction.check()?;
        let parts = transaction.parts();
        let written: Vec<(usize, u64)> =
            parts.iter().filter(|(_, part)| part.writes > 0).map(|(shard, part)| (*shard, part.writes)).collect();
        let read: Vec<(usize, u64)> = parts
            .iter()
            .filter(|(_, part)| part.writes == 0)
            .filter_map(|(shard, part)| Some((*shard, part.read_lsn?)))
            .collect();
        if parts.len() > 1 && written.len() < 2 {
            self.validate(transaction, read.clone(), !written.is_empty(), call).await?;
        }
        if written.is_empty() {
            return Ok(Vec::new());
        }
        let several = written.len() > 1 || logged.is_some();
        if !several || transaction.mode != TransactionMode::TwoPhase {
            if written.len() > 1 {
                self.validate(transaction, read, true, call).await?;
            }
            return self.commit_one_by_one(transaction, written, call).await;
        }
        let preparing = self.on_each(written, |(shard, _)| async move {
            self.write_within(
                transaction,
                (shard, Work::Statements(Vec::new())),
                &[],
                true,
                self.lock_timeout_ms(),
                call,
            )
            .await
        });
        // All locks are held: what was read and still holds now is what the transaction saw.
        let (prepared, valid) =
            futures_util::future::join(preparing, self.validate(transaction, read, true, call)).await;
        let prepared = prepared.into_iter().collect::<Result<Vec<_>, Error>>().and(valid);
        if let Err(error) = prepared {
            transaction.fail(&error);
            return Err(error);
        }
        let (request_id, outcome) = logged.unwrap_or((transaction.id.as_str(), Vec::new()));
        Ok(self.decide(transaction, request_id, outcome, call).await?.into_iter().collect())
    }

    /// Fails where something that a transaction has read on a shard no longer holds.
    async fn validate(
        &self,
        transaction: &Transaction,
        read: Vec<(usize, u64)>,
        writes: bool,
        call: &Scope,
    ) -> Result<(), Error> {
        let outcomes = self
            .on_each(read, |(shard, lsn)| async move {
                let request = ValidateReads { transaction: transaction.id.clone(), lsn, writes };
                self.ask(shard, Request::Validate(request), call).await
            })
            .await;
        let valid = outcomes.into_iter().try_for_each(|outcome| outcome.map(drop));
        if let Err(error) = &valid {
            transaction.fail(error);
        }
        valid
    }

    /// Commits on each shard by itself.
    async fn commit_one_by_one(
        &self,
        transaction: &Transaction,
        written: Vec<(usize, u64)>,
        call: &Scope,
    ) -> Result<Vec<(usize, u64)>, Error> {
        let count = written.len();
        let mut lsns = Vec::with_capacity(count);
        for (shard, number) in written {
            let request =
                FinishTransaction { transaction: transaction.id.clone(), ending: Ending::CommitHere.into(), number };
            match self.ask(shard, Request::Finish(request), call).await {
                Ok(Reply::Transaction(noted)) => lsns.push((shard, noted.lsn)),
                Ok(_) => return Err(Error::internal("a shard answered a commit with something else")),
                Err(error) => {
                    // With one shard, a violated constraint leaves the transaction as it was.
                    if fatal(&error) || count > 1 {
                        transaction.fail(&error);
                    }
                    let error = match shards::transient(&error) {
                        true => Error::retryable(
                            ErrorCode::Unavailable,
                            format!("the transaction may have taken effect or not: {}", error.message),
                            0,
                        ),
                        false => error,
                    };
                    return Err(super::write::partial(error, lsns.len(), count));
                }
            }
        }
        Ok(lsns)
    }

    /// Decides that a prepared transaction takes effect, and has every shard apply it. Returns their LSNs.
    async fn decide(
        &self,
        transaction: &Transaction,
        request_id: &str,
        outcome: Vec<u8>,
        call: &Scope,
    ) -> Result<HashMap<usize, u64>, Error> {
        let shards = {
            let catalog = self.catalog.borrow();
            transaction
                .parts()
                .iter()
                .filter(|(_, part)| part.writes > 0)
                .map(|(shard, _)| catalog.shards[*shard].clone())
                .collect()
        };
        let decision = Decision { id: transaction.id.clone(), request_id: request_id.to_owned(), shards, outcome };
        let applied = std::mem::take(&mut *self.applied.borrow_mut());
        if self.must_restart.get() {
            return Err(in_doubt("the router is restarting"));
        }
        transaction.decide();
        let logged = self.catalog.borrow().decide(&decision, &applied, self.context.now_ms());
        if let Err(error) = logged {
            // Whether it stands is known when the log is opened anew.
            self.must_restart.set(true);
            return Err(in_doubt(&error.message));
        }
        self.apply_decision(decision, call).await
    }

    fn outcome_of(&self, done: &[(usize, ShardExecuted)]) -> PartOutcomes {
        let catalog = self.catalog.borrow();
        let part = |(shard, executed): &(usize, ShardExecuted)| PartOutcome {
            shard: catalog.shards[*shard].clone(),
            executed: Some(executed.clone()),
        };
        PartOutcomes { parts: done.iter().map(part).collect() }
    }

    /// The outcome of a request that was decided before.
    async fn repeated(&self, decision: Decision, call: &Scope) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        let outcome = PartOutcomes::decode(decision.outcome.as_slice()).map_err(|error| damaged(&error))?;
        let lsns = self.apply_decision(decision, call).await?;
        let catalog = self.catalog.borrow();
        let part = |part: PartOutcome| {
            let shard = catalog.shards.iter().position(|name| *name == part.shard)?;
            let executed = part.executed.unwrap_or_default();
            let lsn = lsns.get(&shard).copied().unwrap_or(executed.lsn);
            Some((shard, ShardExecuted { lsn, duplicate: true, ..executed }))
        };
        Ok(outcome.parts.into_iter().filter_map(part).collect())
    }
}

/// All outcomes, or the error that says most: one after which the transaction cannot go on.
fn all<T>(outcomes: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    let mut done = Vec::with_capacity(outcomes.len());
    let mut failed: Option<Error> = None;
    for outcome in outcomes {
        match outcome {
            Ok(one) => done.push(one),
            Err(error) if failed.as_ref().is_none_or(|known| !fatal(&error) && fatal(known)) => failed = Some(error),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(done), Err)
}

fn damaged(error: &prost::DecodeError) -> Error {
    Error::internal(format!("the log of decisions is damaged: {error}"))
}
