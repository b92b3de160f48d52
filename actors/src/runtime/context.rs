//! What an actor may touch.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dosql_proto::{Address, Envelope, Error, ErrorCode, Protocol};
use futures_channel::oneshot;
use futures_util::future::{Either, LocalBoxFuture, select};
use rusqlite::Connection;

use super::asker::Asker;
use super::{HttpError, HttpRequest, HttpResponse, ObjectStore, Payload, Settings};

/// What a host gives one actor. Implemented by each host; actors use [`Context`].
pub trait Host {
    /// The actor this serves.
    fn address(&self) -> &Address;
    /// Milliseconds since the Unix epoch. Does not go back between two calls within one incarnation.
    fn now_ms(&self) -> u64;
    /// Nanoseconds on a timer that does not go back, for measuring how long things take. Where the platform lets time pass
    /// only between requests, it stands still meanwhile.
    fn timer_ns(&self) -> u64 {
        self.now_ms().saturating_mul(1_000_000)
    }
    /// A random number from the host's source.
    fn random_u64(&self) -> u64;
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()>;
    /// Has [`Input::Alarm`](super::Input::Alarm) delivered at `at_ms` or later, even after a crash. One alarm an actor: the
    /// last call counts.
    fn set_alarm(&self, at_ms: u64);
    /// Opens the actor's own database, with the host's pragmas set. One connection at a time.
    ///
    /// # Errors
    /// `STORAGE` where it cannot be opened.
    fn open_storage(&self) -> Result<Connection, Error>;
    /// Opens an empty private database that vanishes when closed and spills to disk where the host has one.
    ///
    /// # Errors
    /// `STORAGE` where it cannot be opened.
    fn open_scratch(&self) -> Result<Connection, Error>;
    /// Whether a scratch database writes what its cache does not hold to disk; where it does not, all of it is memory.
    fn scratch_spills(&self) -> bool {
        false
    }
    /// Object storage.
    fn objects(&self) -> Rc<dyn ObjectStore>;
    /// Makes one HTTP request. [`Context::exchange`] sees to the time it may take. Hosts without a network refuse.
    fn exchange(&self, request: HttpRequest) -> LocalBoxFuture<'static, Result<HttpResponse, HttpError>> {
        Box::pin(async move { Err(HttpError::Unsupported { url: request.url }) })
    }
    /// Delivers a message to `envelope.to` and waits for the answer.
    fn send(&self, envelope: Envelope, payload: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>>;
    /// Runs a future of this actor's beside its mailbox; dropped when the incarnation ends.
    fn spawn(&self, future: LocalBoxFuture<'static, ()>);
    /// Whether [`beside`](Self::beside) has threads of its own.
    fn has_threads(&self) -> bool {
        false
    }
    /// Runs work that takes long: on a thread beside the actor's where the host has some, else at once. Dropping the future does
    /// not end work that has begun.
    fn beside(&self, work: Box<dyn FnOnce() + Send>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }
    /// Drops everything that was spawned: the incarnation it belongs to has ended.
    fn end_incarnation(&self);
    /// The system's settings.
    fn settings(&self) -> &Arc<Settings>;
}

/// What the message being handled belongs to: passed on with every `ask`, so that a deadline, a trace and the caller's
/// identity cross every hop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// Who asked.
    pub from: Option<Address>,
    /// When the asker stops waiting, in milliseconds since the Unix epoch; 0: never.
    pub deadline_ms: u64,
    /// Ties together everything that one client call caused.
    pub trace_id: String,
    /// The authenticated caller; "" for the system itself.
    pub caller: String,
}

impl Call {
    /// Work of the system's own, without a deadline.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// The call an envelope carries.
    #[must_use]
    pub fn from_envelope(envelope: Envelope) -> Self {
        let Envelope { to: _, from, deadline_ms, trace_id, caller } = envelope;
        Self { from, deadline_ms, trace_id, caller }
    }

    /// An envelope of this call, from one actor (or from outside) to another.
    #[must_use]
    pub fn envelope(&self, to: Address, from: Option<Address>) -> Envelope {
        Envelope {
            to: Some(to),
            from,
            deadline_ms: self.deadline_ms,
            trace_id: self.trace_id.clone(),
            caller: self.caller.clone(),
        }
    }

    /// The same call with a deadline `timeout_ms` from now, or its own where that is sooner.
    #[must_use]
    pub fn within(&self, now_ms: u64, timeout_ms: u64) -> Self {
        Self { deadline_ms: self.sooner(now_ms, timeout_ms), ..self.clone() }
    }

    fn sooner(&self, now_ms: u64, timeout_ms: u64) -> u64 {
        let limit = now_ms.saturating_add(timeout_ms);
        if self.deadline_ms == 0 { limit } else { self.deadline_ms.min(limit) }
    }
}

/// An actor's only way to the world. Cheap to clone, for the futures an actor leaves running.
#[derive(Clone)]
pub struct Context {
    host: Rc<dyn Host>,
    pub(super) asker: Asker,
}

impl Context {
    /// A context on what a host gives.
    #[must_use]
    pub fn new(host: Rc<dyn Host>) -> Self {
        Self { host, asker: Asker::default() }
    }

    /// This actor's address.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.host.address()
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.host.now_ms()
    }

    /// Whether nobody waits any more for the answer that is being worked out: the asker has given up, or its client has. Where
    /// the host cannot tell it is false.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.asker.is_gone()
    }

    /// Nanoseconds on a timer of the host's that does not go back, for measuring how long things take.
    #[must_use]
    pub fn timer_ns(&self) -> u64 {
        self.host.timer_ns()
    }

    /// A random number.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.host.random_u64()
    }

    /// Completes after `duration`. For the futures of [`Handled::Later`](super::Handled::Later); a handler that sleeps holds up
    /// its mailbox.
    pub async fn sleep(&self, duration: Duration) {
        self.host.sleep(duration).await;
    }

    /// Has [`Actor::alarm`](super::Actor::alarm) called at `at_ms` (milliseconds since the epoch) or later, even after a crash.
    /// The last call counts.
    pub fn set_alarm(&self, at_ms: u64) {
        self.host.set_alarm(at_ms);
    }

    /// Opens this actor's own database.
    ///
    /// # Errors
    /// `STORAGE` where it cannot be opened.
    pub fn open_storage(&self) -> Result<Connection, Error> {
        self.host.open_storage()
    }

    /// Opens an empty private database that vanishes when closed.
    ///
    /// # Errors
    /// `STORAGE` where it cannot be opened.
    pub fn open_scratch(&self) -> Result<Connection, Error> {
        self.host.open_scratch()
    }

    /// Whether scratch databases keep what exceeds their cache on disk.
    #[must_use]
    pub fn scratch_spills(&self) -> bool {
        self.host.scratch_spills()
    }

    /// Object storage.
    #[must_use]
    pub fn objects(&self) -> Rc<dyn ObjectStore> {
        self.host.objects()
    }

    /// Makes one HTTP request of a service outside the system, and waits that long for the whole answer.
    ///
    /// # Errors
    /// Where there is no answer; one whose status says that something went wrong is an answer.
    pub async fn exchange(&self, request: HttpRequest, patience: Duration) -> Result<HttpResponse, HttpError> {
        let url = request.url.clone();
        match select(self.host.exchange(request), self.host.sleep(patience)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => {
                Err(HttpError::NoAnswer { url, reason: format!("none within {} ms", patience.as_millis()) })
            }
        }
    }

    /// The system's settings.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        self.host.settings()
    }

    /// Runs a future beside the mailbox; dropped when this incarnation ends.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.host.spawn(Box::pin(future));
    }

    /// Whether the host has threads for work [`beside`](Self::beside) the actor; otherwise such work holds the actor up.
    #[must_use]
    pub fn has_threads(&self) -> bool {
        self.host.has_threads()
    }

    /// Runs work that takes long and touches nothing of the actor's, which goes on meanwhile where the host has threads for that.
    /// Work that has begun comes to its end, though nobody waits for it.
    ///
    /// # Errors
    /// `INTERNAL` where the work has panicked.
    pub async fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let (done, outcome) = oneshot::channel();
        let run = self.host.beside(Box::new(move || {
            // Nobody waits for it any more: what it made is dropped where it was made.
            let _ = done.send(work());
        }));
        run.await;
        outcome.await.map_err(|_| Error::internal("work beside the actor came to no end"))
    }

    /// Drops what the incarnation left running.
    pub(super) fn end_incarnation(&self) {
        self.asker.end();
        self.host.end_incarnation();
    }

    /// Asks the actor `name` of protocol `P` and waits for the answer, until the call's deadline.
    ///
    /// # Errors
    /// What the actor answered; `DEADLINE_EXCEEDED`; `OVERLOADED` where its mailbox is full; `UNAVAILABLE` where it died
    /// meanwhile or the message was lost, in which case it may have been handled or not.
    pub fn ask<P: Protocol>(
        &self,
        name: &str,
        request: P::Request,
        call: &Call,
    ) -> impl Future<Output = Result<P::Reply, Error>> + 'static {
        self.ask_until::<P>(name, request, call, call.deadline_ms, self.now_ms())
    }

    /// Like [`ask`](Self::ask), but for `timeout_ms` at most.
    ///
    /// # Errors
    /// As `ask`.
    pub fn ask_within<P: Protocol>(
        &self,
        name: &str,
        request: P::Request,
        call: &Call,
        timeout_ms: u64,
    ) -> impl Future<Output = Result<P::Reply, Error>> + 'static {
        let now_ms = self.now_ms();
        self.ask_until::<P>(name, request, call, call.sooner(now_ms, timeout_ms), now_ms)
    }

    fn ask_until<P: Protocol>(
        &self,
        name: &str,
        request: P::Request,
        call: &Call,
        deadline_ms: u64,
        now_ms: u64,
    ) -> impl Future<Output = Result<P::Reply, Error>> + 'static {
        let envelope = call.envelope(Address::new(P::KIND, name), Some(self.address().clone()));
        let envelope = Envelope { deadline_ms, ..envelope };
        let name = name.to_owned();
        let host = Rc::clone(&self.host);
        // Boxed before it would become a part of the future, which is moved.
        let payload = Payload::typed(request);
        async move {
            let sent = host.send(envelope, payload);
            let payload = if deadline_ms == 0 {
                sent.await?
            } else {
                let patience = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
                match select(sent, host.sleep(patience)).await {
                    Either::Left((outcome, _)) => outcome?,
                    Either::Right(_) => {
                        let message = format!("no answer from {}/{name} within {} ms", P::KIND, patience.as_millis());
                        return Err(Error::retryable(ErrorCode::DeadlineExceeded, message, 0));
                    }
                }
            };
            payload.take()
        }
    }

    /// Sends a message without waiting. It may be lost; whoever needs certainty asks.
    pub fn tell<P: Protocol>(&self, name: &str, request: P::Request) {
        let asked = self.ask::<P>(name, request, &Call::system());
        self.spawn(async move {
            if let Err(error) = asked.await {
                tracing::debug!(%error, "a told message was not handled");
            }
        });
    }
}
