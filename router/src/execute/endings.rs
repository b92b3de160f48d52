//! How transactions end on their shards: a decision reaches all of them, however long that takes, and a rollback if it can.

use std::collections::HashMap;
use std::time::Duration;

use dosql_actors::Call;
use dosql_proto::{Ending, Error, ErrorCode, FinishTransaction, shard_reply::Reply, shard_request::Request};
use futures_channel::oneshot;
use futures_util::future::{Either, select};

use super::{Scope, Shared};
use crate::catalog::Decision;
use crate::transaction::{Transaction, aborted};

/// How long a shard may take to forget a transaction, in milliseconds. It asks by itself where it has not heard of it.
pub(super) const ROLLBACK_TIMEOUT_MS: u64 = 2_000;
/// First pause before a decision is sent again, in milliseconds; doubles up to [`LONGEST_PAUSE_MS`].
const SHORTEST_PAUSE_MS: u64 = 20;
const LONGEST_PAUSE_MS: u64 = 1_000;

impl Shared {
    /// Has every shard apply a decision, however long that takes; waits for it until the call's deadline.
    pub(super) async fn apply_decision(&self, decision: Decision, call: &Scope) -> Result<HashMap<usize, u64>, Error> {
        let (sender, applied) = oneshot::channel();
        self.carry_out(decision, Some(sender));
        let patience = match call.deadline_ms {
            0 => self.context.settings().query_timeout_ms,
            deadline_ms => deadline_ms.saturating_sub(self.context.now_ms()),
        };
        let waited = self.context.sleep(Duration::from_millis(patience));
        match select(applied, Box::pin(waited)).await {
            Either::Left((Ok(lsns), _)) => Ok(lsns),
            _ => {
                let message = "the transaction takes effect, but not every shard has applied it yet; \
                    a retry with the same request id waits for that";
                Err(Error::retryable(ErrorCode::Unavailable, message, 0))
            }
        }
    }

    /// Sends a decision to its shards until all have applied it.
    pub(super) fn carry_out(&self, decision: Decision, done: Option<oneshot::Sender<HashMap<usize, u64>>>) {
        let Some(shared) = self.me.upgrade() else { return };
        self.context.spawn(async move {
            let work = decision.shards.iter().map(|name| shared.deliver(name, &decision.id));
            let lsns = futures_util::future::join_all(work).await;
            let lsns = {
                let catalog = shared.catalog.borrow();
                let place = |name: &String| catalog.shards.iter().position(|shard| shard == name);
                decision.shards.iter().zip(lsns).filter_map(|(name, lsn)| Some((place(name)?, lsn))).collect()
            };
            shared.applied.borrow_mut().push(decision.id);
            if let Some(done) = done {
                // The client may have given up.
                let _ = done.send(lsns);
            }
        });
    }

    /// Tells a shard, until it has heard it, that a transaction takes effect.
    async fn deliver(&self, name: &str, id: &str) -> u64 {
        let mut pause_ms = SHORTEST_PAUSE_MS;
        loop {
            match self.end_on(name, id, Ending::CommitPrepared, self.shard_timeout_ms).await {
                Ok(lsn) => return lsn,
                Err(error) => tracing::debug!(%error, shard = name, "a shard has not applied a transaction yet"),
            }
            self.context.sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(LONGEST_PAUSE_MS);
        }
    }

    pub(super) async fn end_on(&self, name: &str, id: &str, ending: Ending, timeout_ms: u64) -> Result<u64, Error> {
        let place = self.catalog.borrow().shards.iter().position(|shard| shard == name);
        let shard = place.ok_or_else(|| Error::internal(format!("there is no shard {name} any more")))?;
        let finish = FinishTransaction { transaction: id.to_owned(), ending: ending.into(), number: 0 };
        let scope = self.scope(&Call::system(), timeout_ms, None);
        match self.ask_primary(shard, &Request::Finish(finish), &scope).await? {
            Reply::Transaction(noted) => Ok(noted.lsn),
            _ => Err(Error::internal("a shard answered the end of a transaction with something else")),
        }
    }

    /// Rolls a transaction back on the shards whose locks it has, without waiting for them.
    pub(super) fn roll_back(&self, transaction: &Transaction) {
        if transaction.decided() {
            return;
        }
        transaction.fail(&aborted("it has ended"));
        self.live.borrow_mut().remove(&transaction.id);
        for (shard, part) in transaction.parts() {
            if part.writes > 0 {
                let name = self.catalog.borrow().shards[shard].clone();
                self.roll_back_on(name, transaction.id.clone());
            }
        }
    }

    fn roll_back_on(&self, name: String, id: String) {
        let Some(shared) = self.me.upgrade() else { return };
        self.context.spawn(async move {
            if let Err(error) = shared.end_on(&name, &id, Ending::Rollback, ROLLBACK_TIMEOUT_MS).await {
                tracing::debug!(%error, shard = name, "a shard has not rolled back yet; it asks by itself");
            }
        });
    }

    /// Has a shard hear what became of a transaction, where that is known.
    pub(super) fn resolve_doubt(&self, id: &str, shard: &str) -> Result<(), Error> {
        if self.must_restart.get() {
            // It may be a decision that could not be logged, or could.
            return Err(in_doubt("the router is restarting"));
        }
        let decision = self.catalog.borrow().decision(id)?;
        match decision {
            Some(decision) => self.carry_out(Decision { shards: vec![shard.to_owned()], ..decision }, None),
            None if self.live.borrow().contains(id) => {}
            None => self.roll_back_on(shard.to_owned(), id.to_owned()),
        }
        Ok(())
    }
}

pub(super) fn in_doubt(why: &str) -> Error {
    let message =
        format!("the transaction may have taken effect or not ({why}); a retry with the same request id tells");
    Error::retryable(ErrorCode::Unavailable, message, 50)
}
