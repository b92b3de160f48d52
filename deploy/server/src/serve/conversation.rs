//! A session over one gRPC stream.

use dosql_proto::session_request::Request;
use dosql_proto::session_response::Response;
use dosql_proto::{Error, RowBatch, SessionRequest, SessionResponse};
use tonic::{Status, Streaming};

use super::backend::{Backend, OpenResult};
use super::grpc::{error_of, response_of};

/// A session, which ends with the stream, and the result that is being written to it.
pub(super) struct Conversation {
    backend: Backend,
    requests: Streaming<SessionRequest>,
    session: String,
    open: Option<OpenResult>,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let (backend, session) = (self.backend.clone(), std::mem::take(&mut self.session));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = backend.close_session(session).await {
                    tracing::debug!(%error, "a session was not closed; it expires");
                }
            });
        }
    }
}

impl Conversation {
    pub(super) async fn open(backend: Backend, requests: Streaming<SessionRequest>) -> Result<Self, Error> {
        let session = backend.open_session().await?.session;
        Ok(Self { backend, requests, session, open: None })
    }

    /// The next response; `None` when the client has hung up.
    pub(super) async fn next(mut self) -> Result<Option<(SessionResponse, Self)>, Status> {
        let outcome = match self.open.take() {
            Some(mut rest) => match rest.next().await {
                Ok(batch) => Ok(self.rows(batch.unwrap_or_default(), rest)),
                Err(error) => Err(error),
            },
            None => match self.requests.message().await {
                Ok(Some(request)) => self.answer(request).await,
                Ok(None) => return Ok(None),
                Err(status) => return Err(error_of(&status).into()),
            },
        };
        let (response, done) = outcome.unwrap_or_else(|error| (Response::Error(error), true));
        Ok(Some((SessionResponse { response: Some(response), done }, self)))
    }

    async fn answer(&mut self, request: SessionRequest) -> Result<(Response, bool), Error> {
        let session = self.session.clone();
        match request.request {
            Some(Request::Execute(mut request)) => {
                request.session = session;
                Ok((Response::Execute(self.backend.execute(request).await?), true))
            }
            Some(Request::Batch(mut request)) => {
                request.session = session;
                Ok((Response::Batch(self.backend.batch(request).await?), true))
            }
            Some(Request::Query(mut request)) => {
                request.session = session;
                let (first, rest) = self.backend.query(request).await?;
                Ok(self.rows(first, rest))
            }
            None => Err(Error::invalid("a request of a session must say what it is")),
        }
    }

    fn rows(&mut self, batch: RowBatch, rest: OpenResult) -> (Response, bool) {
        let done = rest.is_done();
        self.open = (!done).then_some(rest);
        (Response::Rows(response_of(batch)), done)
    }
}
