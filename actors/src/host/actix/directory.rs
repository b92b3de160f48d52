//! Who runs where: finds an actor's arbiter, starts the actor on its first message, and hands the message over.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use actix::Addr;
use actix::prelude::SendError;
use dosql_proto::{Address, Envelope, Error, ErrorCode, Protocol};
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use tokio::sync::Semaphore;

use super::cell::{Cell, Close, Forward};
use super::data_dir::{DataDir, DataDirError, validate};
use super::http::Http;
use super::local_host::LocalHost;
use super::local_objects::LocalObjects;
use super::s3_objects::S3Objects;
use super::threads::ActorThread;
use crate::runtime::{
    Actor, Context, Delivery, Input, Mailbox, MailboxReceiver, ObjectStore, Payload, Settings, mailbox, supervise,
};

/// Pieces of work that may go on beside the actors of one thread: more than there are processors, so that a short one gets on
/// while others take long.
const BESIDE_A_THREAD: usize = 8;

/// With so many threads one of them is for the kinds that are apart. With fewer, what messages cost between threads counts more.
const THREADS_TO_BE_APART: usize = 4;

/// Drives an actor of one kind until its mailbox closes.
type Drive = fn(Context, MailboxReceiver) -> LocalBoxFuture<'static, ()>;

#[derive(Clone, Copy)]
struct Kind {
    drive: Drive,
    /// Whether no other kind is to hold it up.
    is_apart: bool,
}

/// Where a node's objects are.
#[derive(Clone)]
pub(super) enum Objects {
    Local(LocalObjects),
    S3(S3Objects),
}

impl Objects {
    /// The store as an actor uses it.
    pub(super) fn store(&self) -> Rc<dyn ObjectStore> {
        match self {
            Self::Local(objects) => Rc::new(objects.clone()),
            Self::S3(objects) => Rc::new(objects.clone()),
        }
    }
}

/// A node's actors.
pub(super) struct Directory {
    pub(super) data_dir: DataDir,
    pub(super) objects: Objects,
    pub(super) http: Http,
    pub(super) settings: Arc<Settings>,
    /// Bytes that one actor's database may keep in memory.
    pub(super) cache_bytes: u64,
    /// Work that may go on beside the actors at a time.
    pub(super) threads_beside: Arc<Semaphore>,
    mailbox_capacity: usize,
    threads: Vec<ActorThread>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kinds: HashMap<&'static str, Kind>,
    running: HashMap<Address, Running>,
    stopping: bool,
}

struct Running {
    address: Arc<Address>,
    cell: Addr<Cell>,
    mailbox: Mailbox,
    thread: thread::ThreadId,
    /// Resolves when the actor has ended.
    ended: oneshot::Receiver<()>,
}

/// The way to an actor.
struct Door {
    address: Arc<Address>,
    way: Way,
}

/// How a message reaches an actor.
enum Way {
    /// From another thread.
    There(Addr<Cell>),
    /// From the actor's own thread: nothing has to be woken on the way.
    Here(Mailbox),
}

impl Running {
    fn door(&self) -> Door {
        let way = if self.thread == thread::current().id() {
            Way::Here(self.mailbox.clone())
        } else {
            Way::There(self.cell.clone())
        };
        Door { address: Arc::clone(&self.address), way }
    }
}

impl Door {
    /// Hands a message over; says to whom.
    fn hand_over(self, delivery: Box<Delivery>) -> Result<Arc<Address>, Error> {
        let Self { address, way } = self;
        match way {
            Way::Here(mailbox) => mailbox.deliver(Input::Message(delivery)),
            Way::There(cell) => cell.try_send(Forward(delivery)).map_err(|refused| match refused {
                SendError::Full(_) => {
                    Error::retryable(ErrorCode::Overloaded, format!("{address}'s mailbox is full"), 50)
                }
                SendError::Closed(_) => stopped(&address),
            })?,
        }
        Ok(address)
    }
}

impl Directory {
    pub(super) fn new(
        data_dir: DataDir,
        objects: Objects,
        settings: Arc<Settings>,
        cache_bytes: u64,
        mailbox_capacity: usize,
        threads: Vec<ActorThread>,
    ) -> Self {
        let (http, state) = (Http::default(), Mutex::default());
        let threads_beside = Arc::new(Semaphore::new(threads.len() * BESIDE_A_THREAD));
        Self { data_dir, objects, http, settings, cache_bytes, threads_beside, mailbox_capacity, threads, state }
    }

    /// Makes a kind of actor known.
    pub(super) fn register<A: Actor>(&self, is_apart: bool) -> Result<(), DataDirError> {
        let kind = <A::Protocol as Protocol>::KIND;
        self.data_dir.prepare_kind(kind)?;
        let drive: Drive = |context, receiver| Box::pin(supervise::<A>(context, receiver));
        self.state().kinds.insert(kind, Kind { drive, is_apart });
        Ok(())
    }

    /// Starts every actor that had set an alarm.
    pub(super) fn resume(self: &Arc<Self>) -> std::io::Result<()> {
        let kinds: Vec<_> = self.state().kinds.keys().copied().collect();
        for kind in kinds {
            for name in self.data_dir.names(kind, "alarm")? {
                let address = Address::new(kind, name);
                if let Err(error) = self.find(&address) {
                    tracing::warn!(%address, %error, "an alarm file that belongs to no actor");
                }
            }
        }
        Ok(())
    }

    /// Hands a message over at once; the future waits for the answer.
    pub(super) fn send(
        self: &Arc<Self>,
        envelope: Envelope,
        payload: Payload,
    ) -> impl Future<Output = Result<Payload, Error>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let found = match &envelope.to {
            Some(address) => self.find(address),
            None => self.find(&Address::default()),
        };
        let handed = found.and_then(|door| door.hand_over(Box::new(Delivery { envelope, payload, reply })));
        async move {
            let address = handed?;
            answer.await.unwrap_or_else(|_| {
                Err(Error::retryable(ErrorCode::Unavailable, format!("{address} restarted before it could answer"), 50))
            })
        }
    }

    /// Refuses new messages from now on and has every actor finish what it was sent; the futures resolve when they have ended.
    pub(super) fn close(&self) -> Vec<oneshot::Receiver<()>> {
        let running = {
            let mut state = self.state();
            state.stopping = true;
            std::mem::take(&mut state.running)
        };
        running
            .into_values()
            .map(|actor| {
                actor.cell.do_send(Close);
                actor.ended
            })
            .collect()
    }

    /// The way to the actor, which is started where it is not running yet.
    fn find(self: &Arc<Self>, address: &Address) -> Result<Door, Error> {
        let mut state = self.state();
        if let Some(running) = state.running.get(address) {
            return Ok(running.door());
        }
        if state.stopping {
            return Err(stopped(address));
        }
        validate(address)?;
        let Some(&kind) = state.kinds.get(address.kind.as_str()) else {
            return Err(Error::new(
                ErrorCode::NotFound,
                format!("there is no kind of actor called {:?}", address.kind),
            ));
        };
        let running = self.start(address.clone(), kind.drive, self.thread(address, kind, &state));
        let door = running.door();
        state.running.insert(address.clone(), running);
        Ok(door)
    }

    fn start(self: &Arc<Self>, address: Address, drive: Drive, thread: &ActorThread) -> Running {
        let (sender, receiver) = actix::dev::channel::channel(self.mailbox_capacity);
        let (alive, ended) = oneshot::channel::<()>();
        let directory = Arc::clone(self);
        let (inputs, inbox) = mailbox(self.mailbox_capacity);
        let known = Arc::new(address.clone());
        let (cell, inputs_here) = (Addr::new(sender), inputs.clone());
        let running = Running { address: known, cell, mailbox: inputs_here, thread: thread.id(), ended };
        thread.spawn_fn(move || {
            let context = Context::new(Rc::new(LocalHost::new(directory, address, inputs.clone())));
            actix_rt::spawn(async move {
                drive(context, inbox).await;
                drop(alive);
            });
            actix_rt::spawn(actix::Context::with_receiver(receiver).into_future(Cell::new(inputs)));
        });
        running
    }

    /// The thread that an actor will run on.
    fn thread(&self, address: &Address, kind: Kind, state: &State) -> &ActorThread {
        // There is at least one.
        let (apart, others) = self.threads.split_at(1);
        let are_apart = self.threads.len() >= THREADS_TO_BE_APART && state.kinds.values().any(|kind| kind.is_apart);
        let threads = match (are_apart, kind.is_apart) {
            (true, true) => apart,
            (true, false) => others,
            (false, _) => &self.threads[..],
        };
        let mut hasher = DefaultHasher::new();
        (&address.kind, &address.name).hash(&mut hasher);
        // The remainder fits: it is smaller than the number of threads, which is at least 1.
        &threads[(hasher.finish() % threads.len() as u64) as usize]
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held, and each change of it is a single step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped(address: &Address) -> Error {
    Error::retryable(ErrorCode::Unavailable, format!("{address} has stopped: the node is shutting down"), 1000)
}
