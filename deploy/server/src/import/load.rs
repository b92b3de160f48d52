//! Sending a file's rows, a few requests ahead of the server's acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::{Error, ErrorCode, LoadRequest};
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::rows::{Place, Requests, Span, request_id};
use super::{ImportError, Source};

/// Requests that are made before the connection takes them.
const AHEAD: usize = 2;
/// Attempts in a row that get nothing done before the import gives up.
const ATTEMPTS: u32 = 10;

/// Loads all rows; returns how many.
pub(super) async fn load(
    mut client: QueryServiceClient<Channel>,
    table: &str,
    source: Source,
    progress: &ProgressBar,
) -> Result<u64, ImportError> {
    let mut import = Import {
        source: Arc::new(source),
        table: table.into(),
        import_id: crate::random_id().into(),
        loaded: 0,
        place: Place::START,
    };
    let mut attempts = 0;
    loop {
        let before = import.loaded;
        let (error, failed) = match import.attempt(&mut client, progress).await {
            Ok(()) => break,
            Err(Failure::File(error)) => return Err(error),
            Err(Failure::Server(error, span)) => (error, span),
        };
        attempts = if import.loaded > before { 1 } else { attempts + 1 };
        if !worth_retrying(&error, attempts).await {
            let path = import.source.path.clone();
            return Err(match failed {
                Some(Span { first_line: first, last_line: last, .. }) => {
                    ImportError::Rows { path, first, last, loaded: import.loaded, error }
                }
                None => ImportError::Server(error),
            });
        }
    }
    if import.loaded == import.source.rows {
        Ok(import.loaded)
    } else {
        Err(ImportError::Changed(import.source.path.clone()))
    }
}

/// Waits before another attempt; false where there is no use in one.
pub(super) async fn worth_retrying(error: &Error, attempts: u32) -> bool {
    let lost = error.code() == ErrorCode::Unavailable;
    if attempts >= ATTEMPTS || !(error.retryable || lost) {
        return false;
    }
    let delay = error.retry_after_ms.max(50 << attempts.min(6));
    tokio::time::sleep(Duration::from_millis(delay)).await;
    true
}

enum Failure {
    /// The server or the connection failed; the request that was to be acknowledged next, where one was sent.
    Server(Error, Option<Span>),
    /// The file did.
    File(ImportError),
}

/// How far an import is.
struct Import {
    source: Arc<Source>,
    table: Arc<str>,
    import_id: Arc<str>,
    /// Rows acknowledged.
    loaded: u64,
    /// The oldest request that is not acknowledged.
    place: Place,
}

impl Import {
    /// One stream of requests, from the oldest that is not acknowledged on.
    async fn attempt(
        &mut self,
        client: &mut QueryServiceClient<Channel>,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let (requests, taken) = mpsc::channel::<LoadRequest>(AHEAD);
        let (spans, sent) = mpsc::unbounded_channel::<Span>();
        let (source, table, import_id) = (self.source.clone(), self.table.clone(), self.import_id.clone());
        let place = self.place.clone();
        // Reading and parsing is work for a thread of its own.
        let producer = tokio::task::spawn_blocking(move || -> Result<(), ImportError> {
            let mut file = Requests::from(&source, &table, &import_id, &place)?;
            while let Some((span, request)) = file.next()? {
                // Both fail only when the attempt is over. A request is announced before it is sent.
                if spans.send(span).is_err() || requests.blocking_send(request).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let outcome = self.receive(client, taken, sent, progress).await;
        match producer.await {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Err(Failure::File(error)),
            Err(error) => Err(Failure::Server(Error::internal(format!("reading the file failed: {error}")), None)),
        }
    }

    /// Takes the acknowledgements.
    async fn receive(
        &mut self,
        client: &mut QueryServiceClient<Channel>,
        taken: mpsc::Receiver<LoadRequest>,
        mut sent: mpsc::UnboundedReceiver<Span>,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let answers = client.load(ReceiverStream::new(taken)).await;
        let mut answers =
            answers.map_err(|status| Failure::Server(Error::from(&status), sent.try_recv().ok()))?.into_inner();
        loop {
            let answer = answers.message().await;
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Ok(()),
                Err(status) => return Err(Failure::Server(Error::from(&status), sent.try_recv().ok())),
            };
            let Ok(span) = sent.try_recv() else {
                let error = Error::internal("the server acknowledged a request that was not sent");
                return Err(Failure::Server(error, None));
            };
            let expected = request_id(&self.import_id, self.place.number);
            if answer.request_id != expected || answer.rows_loaded != span.rows {
                let error = Error::internal(format!(
                    "the server acknowledged {} rows of {}, not {} of {expected}",
                    answer.rows_loaded, answer.request_id, span.rows
                ));
                return Err(Failure::Server(error, Some(span)));
            }
            self.loaded += span.rows;
            self.place = span.next;
            progress.set_position(self.place.bytes());
        }
    }
}
