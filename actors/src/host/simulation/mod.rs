//! The deterministic host: one thread, virtual time, and everything that can go wrong, by seed.
//!
//! One seed gives one history: which task runs next, how long each message travels, which are lost or come twice, when actors
//! die, which unsynced bytes survive them, which reads and writes fail. Messages are always encoded and decoded. Time stands
//! still while anything can run and jumps to the next timer when nothing can, so that hours pass in milliseconds.
//!
//! Not in the seed's hands: SQLite's own random numbers (`random()`, the salts of its log), which it draws from the process,
//! and the order of a `HashMap` with the standard hasher; an actor that lets either decide what it does breaks the replay.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this host is what implements the context: its scratch databases, and the lock a waker must have"
)]

mod config;
mod disk;
mod executor;
mod file;
mod network;
mod objects;
mod process;
mod random;
mod services;
mod simulated_host;
mod system;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{Address, Error, ErrorCode, Packet, PacketReply, Protocol};
use futures_util::future::{Either, select};

pub use self::config::SimulationConfig;
pub use self::services::Outside;
use self::system::Core;
use crate::runtime::{Actor, Call, HttpRequest, HttpResponse, Payload, packet_reply};

/// One simulated system.
pub struct Simulation {
    core: Rc<Core>,
}

impl Simulation {
    /// A system without actors, in which everything that `config` leaves to chance follows from `seed`.
    ///
    /// # Errors
    /// `INTERNAL` where SQLite does not take the simulated file system.
    pub fn new(seed: u64, config: SimulationConfig) -> Result<Self, Error> {
        Ok(Self { core: Core::new(seed, config)? })
    }

    /// Makes a kind of actor known: from now on messages to its addresses start it.
    pub fn register<A: Actor>(&self) {
        self.core.register::<A>();
    }

    /// Has requests whose URLs begin so answered by a service.
    pub fn serve(&self, url: &str, service: impl Fn(&HttpRequest, &Outside<'_>) -> HttpResponse + 'static) {
        self.core.services.add(url, Rc::new(service));
    }

    /// For asking the actors.
    #[must_use]
    pub fn client(&self) -> SimClient {
        SimClient { core: Rc::clone(&self.core) }
    }

    /// Runs the system until the future is done. What else is under way then stands still until the next call.
    ///
    /// # Panics
    /// Where the future can never finish: nothing can run and no timer is set, or `time_limit` has passed.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.core.executor.run_until(future)
    }

    /// Kills an actor that runs: its tasks stop where they are, its connections are cut, and of what it had not synced some is
    /// lost. It restarts after a pause.
    pub fn crash(&self, address: &Address) {
        self.core.crash(&address.to_string());
    }

    /// Loses every message from and to an actor, until [`heal`](Self::heal) or [`quiesce`](Self::quiesce).
    pub fn isolate(&self, address: &Address) {
        self.core.isolated.borrow_mut().insert(address.to_string());
    }

    /// Lets isolated actors be reached again.
    pub fn heal(&self) {
        self.core.isolated.borrow_mut().clear();
    }

    /// Turns the configured faults on or off. On at first.
    pub fn set_faults(&self, on: bool) {
        self.core.set_faults(on);
    }

    /// Turns faults off, heals, and lets the system run for `duration` of its own time.
    pub fn quiesce(&self, duration: Duration) {
        self.set_faults(false);
        self.heal();
        self.block_on(self.core.executor.sleep(duration));
    }

    /// Milliseconds since the Unix epoch, in the system's time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.core.executor.now_ms()
    }

    /// Everything in object storage: paths and bytes.
    #[must_use]
    pub fn objects(&self) -> Vec<(String, bytes::Bytes)> {
        self.core.objects.all()
    }

    /// A hash of everything that has happened so far. Two runs of one seed give the same.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.core.executor.trace.value()
    }

    /// How often actors of each kind were killed.
    #[must_use]
    pub fn deaths(&self) -> BTreeMap<String, u64> {
        self.core.deaths.borrow().clone()
    }

    /// How often each kind of fault has struck, for tests that must not pass because nothing happened.
    #[must_use]
    pub fn faults(&self) -> FaultCounts {
        self.core.counts.get()
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.core.shut_down();
    }
}

/// How often each kind of fault has struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Messages and answers lost.
    pub lost: u64,
    /// Messages delivered twice.
    pub duplicated: u64,
    /// Actors killed.
    pub crashes: u64,
    /// Of these, those that lost what they had not synced.
    pub power_failures: u64,
    /// Reads, writes and syncs that failed.
    pub io_errors: u64,
    /// Object operations that failed.
    pub object_errors: u64,
    /// Object operations that were slow.
    pub slow_objects: u64,
    /// Requests of services outside, and their answers, that were lost.
    pub service_errors: u64,
    /// Requests of services outside that were slow.
    pub slow_services: u64,
    /// Listings that lacked an object, or showed one that was gone.
    pub stale_listings: u64,
}

/// Asks a simulation's actors, from within [`Simulation::block_on`]. Its messages meet the same faults as those between actors.
#[derive(Clone)]
pub struct SimClient {
    core: Rc<Core>,
}

impl SimClient {
    /// Asks the actor `name` of protocol `P` and waits for the answer, until the call's deadline.
    ///
    /// # Errors
    /// As [`Context::ask`](crate::Context::ask).
    pub async fn ask<P: Protocol>(&self, name: &str, request: P::Request, call: &Call) -> Result<P::Reply, Error> {
        let envelope = call.envelope(Address::new(P::KIND, name), call.from.clone());
        let answer = network::send(&self.core, envelope, Payload::typed(request));
        if call.deadline_ms == 0 {
            return answer.await?.take();
        }
        let patience = Duration::from_millis(call.deadline_ms.saturating_sub(self.now_ms()));
        match select(answer, Box::pin(self.sleep(patience))).await {
            Either::Left((outcome, _)) => outcome?.take(),
            Either::Right(_) => {
                Err(Error::retryable(ErrorCode::DeadlineExceeded, format!("no answer within {patience:?}"), 0))
            }
        }
    }

    /// Delivers a packet as it is and waits for the answer. Every failure is an answer, too.
    pub async fn send_packet(&self, packet: Packet) -> PacketReply {
        let outcome = match packet.envelope {
            Some(envelope) => network::send(&self.core, envelope, Payload::Encoded(packet.body)).await,
            None => Err(Error::invalid("the packet has no envelope")),
        };
        packet_reply(outcome)
    }

    /// Lets virtual time pass.
    pub async fn sleep(&self, duration: Duration) {
        self.core.executor.sleep(duration).await;
    }

    /// Milliseconds since the Unix epoch, in the system's time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.core.executor.now_ms()
    }
}
