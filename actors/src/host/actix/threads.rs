//! The threads that actors share: an arbiter each, in one actix system.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use actix_rt::{Arbiter, ArbiterHandle, System};
use tokio::time::MissedTickBehavior;

/// A thread that actors run on.
pub(super) struct ActorThread {
    arbiter: ArbiterHandle,
    id: ThreadId,
}

impl ActorThread {
    /// Runs something there; it is dropped where the thread has ended.
    pub(super) fn spawn_fn(&self, run: impl FnOnce() + Send + 'static) {
        self.arbiter.spawn_fn(run);
    }

    pub(super) fn id(&self) -> ThreadId {
        self.id
    }
}

/// Starts a thread for the actix system, and so many arbiters in it.
pub(super) fn start(number: usize) -> io::Result<(System, Vec<ActorThread>, JoinHandle<()>)> {
    let (started, outcome) = mpsc::channel();
    let thread = thread::Builder::new().name("dosql-node".to_owned()).spawn(move || {
        let runner = System::new();
        let (arbiters, threads) = match start_arbiters(number) {
            Ok(both) => both,
            Err(error) => {
                // Nobody can fail to wait: the receiver lives until an outcome comes.
                let _ = started.send(Err(error));
                return;
            }
        };
        let _ = started.send(Ok((System::current(), threads)));
        if let Err(error) = runner.run() {
            tracing::error!(%error, "the actor system ended with an error");
        }
        for arbiter in arbiters {
            arbiter.stop();
            if arbiter.join().is_err() {
                tracing::error!("an arbiter thread panicked");
            }
        }
    })?;
    let (system, threads) = outcome.recv().map_err(io::Error::other)??;
    Ok((system, threads, thread))
}

/// Has the event loop of the tokio runtime that it runs on always await a timer that is due within a second.
///
/// Tokio interrupts its event loop by a system call where a timer is set that is due before all others, though it be set by the
/// loop's own thread and taken back at once, as are the time limits of most requests.
pub async fn keep_a_timer_due() {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
    }
}

fn start_arbiters(number: usize) -> io::Result<(Vec<Arbiter>, Vec<ActorThread>)> {
    let arbiters: Vec<Arbiter> = (0..number).map(|_| Arbiter::try_new()).collect::<io::Result<_>>()?;
    let threads = arbiters.iter().map(|arbiter| named(arbiter.handle())).collect::<io::Result<_>>()?;
    Ok((arbiters, threads))
}

/// An arbiter, and which thread it is.
fn named(arbiter: ArbiterHandle) -> io::Result<ActorThread> {
    let (sender, receiver) = mpsc::channel();
    arbiter.spawn(keep_a_timer_due());
    arbiter.spawn_fn(move || {
        // An error means that nobody waits any more: the node did not start.
        let _ = sender.send(thread::current().id());
    });
    Ok(ActorThread { id: receiver.recv().map_err(io::Error::other)?, arbiter })
}
