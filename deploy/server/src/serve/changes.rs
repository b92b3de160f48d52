//! A subscription to the change stream, whichever interface it came through.

use std::sync::Arc;

use dosql_proto::subscriber::Failures;
use dosql_proto::{AcknowledgeChanges, Error, ErrorCode, SubscribeRequest};

use super::audience::{Answer, Audience};
use super::backend::Backend;

/// A subscription. It holds one batch at most: the next one is asked for when the subscriber has taken the last.
pub(super) struct Changes {
    backend: Backend,
    subscription: SubscribeRequest,
    audience: Arc<Audience>,
}

impl Changes {
    /// Opens a subscription: from here on it misses nothing, also where it starts at `latest`.
    ///
    /// # Errors
    /// What the change stream finds wrong with it.
    pub(super) async fn open(backend: Backend, subscription: SubscribeRequest) -> Result<Self, Error> {
        let mut failures = Failures::default();
        loop {
            match backend.open_changes(subscription.clone()).await {
                Ok(opened) => {
                    let audience = backend.audiences().join(&opened);
                    return Ok(Self { backend, subscription: opened, audience });
                }
                Err(error) => tokio::time::sleep(failures.pause(error)?).await,
            }
        }
    }

    /// What was opened, from where it stands.
    pub(super) fn subscription(&self) -> &SubscribeRequest {
        &self.subscription
    }

    /// The next changes; a batch without any is a heartbeat. It goes on waiting when the server [stops](Self::stopping).
    ///
    /// # Errors
    /// What the change stream answers.
    pub(super) async fn next(&mut self) -> Result<Arc<Answer>, Error> {
        let mut failures = Failures::default();
        loop {
            match self.audience.next(&self.backend, &self.subscription).await {
                Ok(answer) => {
                    self.subscription.from.clone_from(&answer.batch.position);
                    return Ok(answer);
                }
                Err(error) => tokio::time::sleep(failures.pause(error)?).await,
            }
        }
    }

    /// Completes, with what to tell the subscriber, when the server stops.
    pub(super) fn stopping(&self) -> impl Future<Output = Error> + use<> {
        let backend = self.backend.clone();
        async move {
            backend.stopping().await;
            Error::retryable(ErrorCode::Unavailable, "the server is stopping", 1_000)
        }
    }

    /// Moves a durable subscription forward.
    ///
    /// # Errors
    /// What the change stream answers.
    pub(super) async fn acknowledge(&self, acknowledged: AcknowledgeChanges) -> Result<(), Error> {
        self.backend.acknowledge_changes(acknowledged).await.map(drop)
    }
}
