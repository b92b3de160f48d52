//! A subscription to the change stream, whichever interface it came through.

use std::sync::Arc;
use std::time::Duration;

use dosql_proto::{ChangeBatch, Error, ErrorCode, SubscribeRequest};

use super::audience::{Answer, Audience};
use super::backend::Backend;

/// How long to wait for changes before the subscriber gets a sign of life, where it does not say, and the least it may say.
const HEARTBEAT: Duration = Duration::from_secs(15);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(50);
/// How often a poll is repeated while the change stream is restarting or overloaded.
const RETRIES: u32 = 10;
const LONGEST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A subscription. It holds one batch at most: the next one is asked for when the subscriber has taken the last.
pub(super) struct Changes {
    backend: Backend,
    /// The name of the durable subscription; "" for one that is not.
    name: String,
    subscription: SubscribeRequest,
    heartbeat: Duration,
    audience: Arc<Audience>,
}

impl Changes {
    /// Opens a subscription: from here on it misses nothing, also where it starts at `latest`.
    ///
    /// # Errors
    /// What the change stream finds wrong with it.
    pub(super) async fn open(backend: Backend, subscription: SubscribeRequest) -> Result<Self, Error> {
        let name = subscription.name.clone();
        let mut retries = 0;
        loop {
            match backend.open_changes(subscription.clone()).await {
                Ok(opened) => {
                    let heartbeat = match opened.heartbeat_ms {
                        0 => HEARTBEAT,
                        milliseconds => Duration::from_millis(milliseconds).max(SHORTEST_HEARTBEAT),
                    };
                    let audience = backend.audiences().join(&opened);
                    return Ok(Self { backend, name, subscription: opened, heartbeat, audience });
                }
                Err(error) => rest(error, &mut retries).await?,
            }
        }
    }

    /// The next changes; a batch without any is a heartbeat.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the server stops; what the change stream answers.
    pub(super) async fn next(&mut self) -> Result<Arc<Answer>, Error> {
        let backend = self.backend.clone();
        tokio::select! {
            outcome = self.poll() => outcome,
            error = stopping(&backend) => Err(error),
        }
    }

    /// Completes, with what to tell the subscriber, when the server stops.
    pub(super) fn stopping(&self) -> impl Future<Output = Error> + use<> {
        let backend = self.backend.clone();
        async move { stopping(&backend).await }
    }

    /// Moves the durable subscription forward.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where it is not durable; what the change stream answers.
    pub(super) async fn acknowledge(&self, position: String) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::invalid("only a subscription with a name can be acknowledged"));
        }
        self.backend.acknowledge_changes(self.name.clone(), position).await.map(drop)
    }

    async fn poll(&mut self) -> Result<Arc<Answer>, Error> {
        let mut retries = 0;
        loop {
            match self.audience.next(&self.backend, &self.subscription, self.heartbeat).await {
                Ok(answer) => {
                    self.subscription.from.clone_from(&answer.batch.position);
                    return Ok(answer);
                }
                Err(error) => rest(error, &mut retries).await?,
            }
        }
    }
}

async fn stopping(backend: &Backend) -> Error {
    backend.stopping().await;
    Error::retryable(ErrorCode::Unavailable, "the server is stopping", 1_000)
}

/// Whether there is nothing for the subscriber in a batch: it tells where it stands.
pub(super) fn is_heartbeat(batch: &ChangeBatch) -> bool {
    batch.shards.iter().all(|shard| shard.records.is_empty())
}

/// Pauses before a repetition, where one may help.
async fn rest(error: Error, retries: &mut u32) -> Result<(), Error> {
    if !error.retryable || *retries >= RETRIES {
        return Err(error);
    }
    *retries += 1;
    tokio::time::sleep(Duration::from_millis(error.retry_after_ms.max(50)).min(LONGEST_RETRY_DELAY)).await;
    Ok(())
}
