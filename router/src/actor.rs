//! The router actor.

use std::rc::Rc;

use dosql_actors::runtime::ToTheEnd;
use dosql_actors::{Actor, Call, Context, Handled};
use dosql_proto::{Error, ErrorCode, RouterProtocol, RouterReply, RouterRequest};

use crate::execute::Shared;

/// `router/default`: plans statements against the VSchema and its catalog, and runs them on the shards.
///
/// Every request runs beside the others. The actor's own storage holds the catalog and the log of schema changes; open results
/// are in memory and end with the incarnation.
pub struct Router {
    state: Result<Rc<Shared>, Error>,
}

impl Actor for Router {
    type Protocol = RouterProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        match Shared::start(context).await {
            Ok(shared) => Ok(Self { state: Ok(shared) }),
            // A restart would not mend these: every request is told.
            Err(error) if matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::Unsupported) => {
                tracing::error!(%error, "the router cannot serve");
                Ok(Self { state: Err(error) })
            }
            Err(error) => Err(error),
        }
    }

    async fn handle(&mut self, request: RouterRequest, call: &Call) -> Handled<RouterReply> {
        match &self.state {
            Ok(shared) if shared.broken().is_some() => Handled::Crash(shared.broken().unwrap_or_default()),
            Ok(shared) => {
                let to_the_end = ToTheEnd::default();
                let answer = Rc::clone(shared).answer(request, call.clone(), to_the_end.clone());
                Handled::WhileAsked(Box::pin(answer), to_the_end)
            }
            Err(error) => Handled::Reply(Err(error.clone())),
        }
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        if let Ok(shared) = &self.state {
            shared.wake();
        }
        Ok(())
    }
}
