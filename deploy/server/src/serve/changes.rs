//! A subscription to the change stream, whichever interface it came through.

use std::time::Duration;

use dosql_proto::{ChangeBatch, Error, ErrorCode, SubscribeRequest};

use super::backend::Backend;

/// How long to wait for changes before the subscriber gets a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often a poll is repeated while the change stream is restarting or overloaded.
const RETRIES: u32 = 10;
const LONGEST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A subscription. It holds one batch at most: the next one is asked for when the subscriber has taken the last.
pub(super) struct Changes {
    backend: Backend,
    subscription: SubscribeRequest,
    /// What opening the subscription brought already.
    first: Option<ChangeBatch>,
}

impl Changes {
    /// Opens a subscription: from here on it misses nothing, also where it starts at `latest`.
    ///
    /// # Errors
    /// `UNKNOWN_POSITION` where it cannot start from there.
    pub(super) async fn open(backend: Backend, mut subscription: SubscribeRequest) -> Result<Self, Error> {
        if subscription.from.is_empty() {
            "latest".clone_into(&mut subscription.from);
        }
        let mut changes = Self { backend, subscription, first: None };
        changes.first = Some(changes.poll(Duration::ZERO).await?);
        Ok(changes)
    }

    /// The next changes; an empty batch where there were none for a while.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the server stops; what the change stream answers.
    pub(super) async fn next(&mut self) -> Result<ChangeBatch, Error> {
        if let Some(first) = self.first.take()
            && !first.shards.is_empty()
        {
            return Ok(first);
        }
        let backend = self.backend.clone();
        tokio::select! {
            outcome = self.poll(HEARTBEAT) => outcome,
            () = backend.stopping() => Err(Error::retryable(ErrorCode::Unavailable, "the server is stopping", 1_000)),
        }
    }

    async fn poll(&mut self, wait: Duration) -> Result<ChangeBatch, Error> {
        let mut retries = 0;
        loop {
            match self.backend.poll_changes(self.subscription.clone(), wait).await {
                Ok(batch) => {
                    if !batch.position.is_empty() {
                        self.subscription.from.clone_from(&batch.position);
                    }
                    return Ok(batch);
                }
                Err(error) if error.retryable && retries < RETRIES => {
                    retries += 1;
                    let delay = Duration::from_millis(error.retry_after_ms.max(50)).min(LONGEST_RETRY_DELAY);
                    tokio::time::sleep(delay).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
