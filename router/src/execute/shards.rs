//! Asking shards: time limits, retries, and several at a time.

use std::time::Duration;

use dosql_proto::{
    Error, ErrorCode, Position, RowBatch, ShardExecute, ShardExecuted, Statement, shard_reply::Reply,
    shard_request::Request,
};
use futures_util::stream::{self, StreamExt};

use super::{Scope, Shared};

/// First pause before a retry, in milliseconds; doubles up to [`LONGEST_PAUSE_MS`].
const SHORTEST_PAUSE_MS: u64 = 10;
const LONGEST_PAUSE_MS: u64 = 2_000;
/// The same where a transaction holds a lock; a part of it at random, so that those who wait do not return together.
const SHORTEST_LOCK_PAUSE_MS: u64 = 4;
const LONGEST_LOCK_PAUSE_MS: u64 = 64;
/// How many attempts a read gets whose batches get lost, the first one included.
const MAX_ATTEMPTS: u32 = 5;

impl Shared {
    /// Asks a shard something that may safely be asked again: again and again, until the call's deadline.
    pub(super) async fn ask(&self, shard: usize, request: Request, call: &Scope) -> Result<Reply, Error> {
        self.ask_patiently(shard, request, self.context.settings().lock_timeout_ms, call).await
    }

    /// Like [`ask`](Self::ask), but waits at most `patience_ms` for a lock that a transaction holds there.
    pub(super) async fn ask_patiently(
        &self,
        shard: usize,
        request: Request,
        patience_ms: u64,
        call: &Scope,
    ) -> Result<Reply, Error> {
        let mut pause_ms = SHORTEST_PAUSE_MS;
        let mut lock_pause_ms = SHORTEST_LOCK_PAUSE_MS;
        let began_ms = self.context.now_ms();
        loop {
            let error = match self.ask_primary(shard, &request, call).await {
                Ok(reply) => return Ok(reply),
                Err(error) if transient(&error) => error,
                Err(error) if error.code() == ErrorCode::LockTimeout => {
                    let pause = 1 + self.context.random_u64() % lock_pause_ms;
                    let now_ms = self.context.now_ms();
                    let late = call.deadline_ms != 0 && now_ms + pause >= call.deadline_ms;
                    if late || now_ms + pause > began_ms + patience_ms {
                        return Err(error);
                    }
                    self.context.sleep(Duration::from_millis(pause)).await;
                    lock_pause_ms = (lock_pause_ms * 2).min(LONGEST_LOCK_PAUSE_MS);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Half of it at random, so that those who failed together do not return together.
            let pause = pause_ms.max(error.retry_after_ms);
            let pause = pause / 2 + self.context.random_u64() % (pause / 2 + 1);
            if call.deadline_ms != 0 && self.context.now_ms() + pause >= call.deadline_ms {
                return Err(error);
            }
            tracing::debug!(shard, %error, pause, "asking the shard again");
            self.context.sleep(Duration::from_millis(pause)).await;
            pause_ms = (pause_ms * 2).min(LONGEST_PAUSE_MS);
        }
    }

    /// Has one shard run statements as one transaction, once for a request id.
    pub(super) async fn execute_on(
        &self,
        shard: usize,
        statements: Vec<Statement>,
        request_id: String,
        call: &Scope,
    ) -> Result<ShardExecuted, Error> {
        let execute = ShardExecute { statements, request_id, ..ShardExecute::default() };
        executed(self.ask(shard, Request::Execute(execute), call).await?)
    }

    /// Does something on several shards, a bounded number at a time; the outcomes come in the order of `work`.
    pub(super) async fn on_each<W, T, F>(&self, work: Vec<W>, run: impl Fn(W) -> F) -> Vec<T>
    where
        F: Future<Output = T>,
    {
        // Most statements concern one shard.
        match <[W; 1]>::try_from(work) {
            Ok([only]) => vec![run(only).await],
            Err(work) => stream::iter(work.into_iter().map(run)).buffered(self.max_parallel).collect().await,
        }
    }

    /// The bookmark of what was written.
    pub(super) fn bookmark(&self, written: impl IntoIterator<Item = (usize, u64)>) -> String {
        let catalog = self.catalog.borrow();
        let mut position = Position::default();
        for (shard, lsn) in written {
            position.advance(&catalog.shards[shard], lsn);
        }
        position.to_string()
    }

    /// The id under which a shard remembers its part of a request.
    pub(super) fn part_id(&self, request_id: &str, shard: usize) -> String {
        format!("{request_id}@{}", self.catalog.borrow().shards[shard])
    }

    /// Whether a read that has failed in this attempt, counted from 1, is to be begun again.
    pub(super) fn begins_again(&self, attempt: u32, error: &Error, scope: &Scope) -> bool {
        attempt < MAX_ATTEMPTS
            && (transient(error) || error.code() == ErrorCode::UnknownCursor)
            && self.context.now_ms() < scope.deadline_ms
    }
}

/// Whether asking again may help.
pub(super) fn transient(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::Unavailable | ErrorCode::Overloaded | ErrorCode::DeadlineExceeded | ErrorCode::NotPrimary
    )
}

pub(super) fn executed(reply: Reply) -> Result<ShardExecuted, Error> {
    match reply {
        Reply::Executed(executed) => Ok(executed),
        _ => Err(Error::internal("a shard answered a write with something else")),
    }
}

pub(super) fn batch(reply: Reply) -> Result<RowBatch, Error> {
    match reply {
        Reply::Rows(batch) => Ok(batch),
        _ => Err(Error::internal("a shard answered a query with something else")),
    }
}
