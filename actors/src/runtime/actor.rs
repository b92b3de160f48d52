//! The actor trait.

use dosql_proto::{Error, Protocol};
use futures_util::future::LocalBoxFuture;

use super::{Call, Context, ToTheEnd};

/// Private state behind one mailbox.
///
/// Messages are handled one at a time. After a run of them (up to [`GROUP`](Actor::GROUP), or until none waits) the runtime
/// calls [`settle`](Actor::settle), and only then lets the replies out: an actor that commits in `settle` acknowledges a whole
/// group with one fsync, and never acknowledges what is not durable.
///
/// Actors are crash-only. When `handle` says [`Handled::Crash`], panics, or `settle` fails, the actor is dropped, everyone who
/// waits on the group gets an `UNAVAILABLE` error, and a new incarnation [`start`](Actor::start)s from storage.
#[allow(async_fn_in_trait, reason = "actors live on one thread; their futures need not be Send")]
pub trait Actor: Sized + 'static {
    /// The messages it understands.
    type Protocol: Protocol;

    /// How many messages one `settle` may cover, at most.
    const GROUP: usize = 128;

    /// A new incarnation: opens storage and recovers from whatever the last one left.
    ///
    /// # Errors
    /// When it cannot; the runtime tries again with back-off.
    async fn start(context: Context) -> Result<Self, Error>;

    /// Handles one message.
    async fn handle(
        &mut self,
        request: <Self::Protocol as Protocol>::Request,
        call: &Call,
    ) -> Handled<<Self::Protocol as Protocol>::Reply>;

    /// Makes everything handled since the last call durable.
    ///
    /// # Errors
    /// When that failed: the group's replies become this error and the actor restarts.
    async fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// The alarm that was set through [`Context::set_alarm`] has fired. It may fire more than once or late; never early.
    ///
    /// # Errors
    /// As for `settle`: the actor restarts.
    async fn alarm(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// What came of a message.
pub enum Handled<R> {
    /// The answer, let out after the next `settle`.
    Reply(Result<R, Error>),
    /// The answer takes other actors or time: the future runs beside the messages that follow. It starts after `settle`.
    Later(LocalBoxFuture<'static, Result<R, Error>>),
    /// The same, but where nobody waits for the answer any more the future is dropped, unless it has been told to go on.
    WhileAsked(LocalBoxFuture<'static, Result<R, Error>>, ToTheEnd),
    /// The actor's state cannot be trusted any more (a failed rollback, say): restart it.
    Crash(Error),
}

impl<R> From<Result<R, Error>> for Handled<R> {
    fn from(result: Result<R, Error>) -> Self {
        Self::Reply(result)
    }
}
