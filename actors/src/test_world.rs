//! A small host for this crate's own tests: actors on one thread, files in a directory of the test's own, messages always
//! encoded, and a switch that loses them.
#![allow(clippy::disallowed_methods, reason = "a host is where the world is touched")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dosql_proto::{Address, Envelope, Error, ErrorCode, Protocol};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rusqlite::Connection;

use crate::runtime::{
    Actor, Call, Context, Delivery, Host, Input, Mailbox, ObjectStore, Payload, Settings, mailbox, supervise,
};

/// The world of one test.
pub(crate) struct World {
    pub(crate) settings: Arc<Settings>,
    mailboxes: RefCell<HashMap<Address, Mailbox>>,
    directory: PathBuf,
    /// Added to the clock, in milliseconds.
    pub(crate) skew_ms: Cell<i64>,
    /// Messages to this kind of actor fail before they are handled.
    pub(crate) unreachable: RefCell<Option<&'static str>>,
    /// Messages that arrived, by kind.
    pub(crate) delivered: RefCell<HashMap<String, u64>>,
    /// Timers that run, by the kind of actor that waits for them.
    timers: RefCell<HashMap<String, u64>>,
}

impl Drop for World {
    fn drop(&mut self) {
        // What is left behind in the directory for temporary files is only untidy.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs a test's future where its actors can live.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

impl World {
    pub(crate) fn new(settings: Settings) -> Rc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dosql-actors-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        Rc::new(Self {
            settings: Arc::new(settings),
            mailboxes: RefCell::default(),
            directory,
            skew_ms: Cell::new(0),
            unreachable: RefCell::default(),
            delivered: RefCell::default(),
            timers: RefCell::default(),
        })
    }

    /// What an actor of this address is given.
    pub(crate) fn context(self: &Rc<Self>, kind: &str, name: &str) -> Context {
        Context::new(Rc::new(TestHost {
            world: Rc::clone(self),
            address: Address::new(kind, name),
            alarm: Rc::default(),
            tasks: RefCell::default(),
        }))
    }

    /// Starts an actor; one of that address that runs already is stopped.
    pub(crate) fn start<A: Actor>(self: &Rc<Self>, name: &str) {
        let (sender, receiver) = mailbox(1024);
        let address = Address::new(<A::Protocol as Protocol>::KIND, name);
        let context = self.context(&address.kind, name);
        self.mailboxes.borrow_mut().insert(address, sender);
        tokio::task::spawn_local(supervise::<A>(context, receiver));
    }

    pub(crate) async fn ask<P: Protocol>(self: &Rc<Self>, name: &str, request: P::Request) -> Result<P::Reply, Error> {
        let context = self.context("test", "test");
        let call = Call::system().within(context.now_ms(), 10_000);
        context.ask::<P>(name, request, &call).await
    }

    pub(crate) fn delivered(&self, kind: &str) -> u64 {
        self.delivered.borrow().get(kind).copied().unwrap_or(0)
    }

    /// How many timers actors of this kind wait for.
    pub(crate) fn timers(&self, kind: &str) -> u64 {
        self.timers.borrow().get(kind).copied().unwrap_or(0)
    }
}

struct TestHost {
    world: Rc<World>,
    address: Address,
    alarm: Rc<Cell<u64>>,
    tasks: RefCell<tokio::task::JoinSet<()>>,
}

impl Host for TestHost {
    fn address(&self) -> &Address {
        &self.address
    }

    fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap().checked_add_signed(self.world.skew_ms.get()).unwrap()
    }

    fn random_u64(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        struct Running(Rc<World>, String);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.timers.borrow_mut().entry(self.1.clone()).and_modify(|timers| *timers -= 1);
            }
        }
        let (world, kind) = (Rc::clone(&self.world), self.address.kind.clone());
        async move {
            *world.timers.borrow_mut().entry(kind.clone()).or_default() += 1;
            let _running = Running(world, kind);
            tokio::time::sleep(duration).await;
        }
        .boxed_local()
    }

    fn set_alarm(&self, at_ms: u64) {
        self.alarm.set(at_ms);
        let patience = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
        let mailbox = self.world.mailboxes.borrow().get(&self.address).cloned();
        let alarm = Rc::clone(&self.alarm);
        let Some(mailbox) = mailbox else { return };
        tokio::task::spawn_local(async move {
            tokio::time::sleep(patience).await;
            if alarm.get() == at_ms {
                mailbox.deliver(Input::Alarm);
            }
        });
    }

    fn open_storage(&self) -> Result<Connection, Error> {
        let connection =
            Connection::open(self.world.directory.join(format!("{}-{}.sqlite", self.address.kind, self.address.name)))
                .unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
        Ok(connection)
    }

    fn open_scratch(&self) -> Result<Connection, Error> {
        Ok(Connection::open("").unwrap())
    }

    fn objects(&self) -> Rc<dyn ObjectStore> {
        unreachable!("no actor of these tests has objects")
    }

    fn send(&self, envelope: Envelope, payload: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>> {
        let to = envelope.to.clone().unwrap_or_default();
        let lost = *self.world.unreachable.borrow() == Some(to.kind.as_str());
        let mailbox = self.world.mailboxes.borrow().get(&to).cloned();
        let unavailable = || Error::retryable(ErrorCode::Unavailable, "unreachable", 0);
        let Some(mailbox) = mailbox.filter(|_| !lost) else { return async move { Err(unavailable()) }.boxed_local() };
        *self.world.delivered.borrow_mut().entry(to.kind).or_default() += 1;
        let (reply, answer) = oneshot::channel();
        let payload = Payload::Encoded(payload.into_bytes());
        mailbox.deliver(Input::Message(Box::new(Delivery { envelope, payload, reply })));
        async move {
            let payload = answer.await.unwrap_or_else(|_| Err(unavailable()))?;
            Ok(Payload::Encoded(payload.into_bytes()))
        }
        .boxed_local()
    }

    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        self.tasks.borrow_mut().spawn_local(future);
    }

    fn end_incarnation(&self) {
        self.tasks.borrow_mut().abort_all();
    }

    fn settings(&self) -> &Arc<Settings> {
        &self.world.settings
    }
}
