//! The system: its processes, their alarms, and what strikes them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dosql_proto::{Address, Error, ErrorCode, Protocol};

use super::FaultCounts;
use super::config::SimulationConfig;
use super::disk::Disk;
use super::executor::{Executor, Owner};
use super::network::unavailable;
use super::objects::Objects;
use super::process::{Drive, Process};
use super::random::Random;
use super::services::Services;
use super::simulated_host::SimulatedHost;
use crate::runtime::{Actor, Context, Delivery, Input, Settings, mailbox, supervise};

/// Owns what no actor's death ends: messages on their way, object storage, alarms.
pub(super) const WORLD: Owner = 0;

/// Everything that a simulation's parts share.
pub(super) struct Core {
    pub(super) config: SimulationConfig,
    pub(super) settings: Arc<Settings>,
    pub(super) random: Rc<Random>,
    pub(super) executor: Rc<Executor>,
    pub(super) disk: Disk,
    pub(super) objects: Objects,
    pub(super) services: Services,
    pub(super) isolated: RefCell<BTreeSet<String>>,
    pub(super) counts: Rc<Cell<FaultCounts>>,
    /// Actors killed, by kind.
    pub(super) deaths: RefCell<BTreeMap<String, u64>>,
    kinds: RefCell<BTreeMap<&'static str, Drive>>,
    processes: RefCell<BTreeMap<String, Process>>,
    /// The last alarm each actor set, in milliseconds since the epoch; kept by the platform, so it survives the actor.
    alarms: RefCell<BTreeMap<String, u64>>,
    lives: Cell<u64>,
    faults_on: Cell<bool>,
}

impl Core {
    pub(super) fn new(seed: u64, config: SimulationConfig) -> Result<Rc<Self>, Error> {
        let random = Rc::new(Random::new(seed));
        let executor = Rc::new(Executor::new(Rc::clone(&random), config.time_limit));
        let counts: Rc<Cell<FaultCounts>> = Rc::default();
        let disk = Disk::new(Rc::clone(&random), Rc::clone(&executor), Rc::clone(&counts), config.lying_sync)?;
        let core = Rc::new(Self {
            settings: Arc::new(config.settings.clone()),
            random,
            executor,
            disk,
            objects: Objects::default(),
            services: Services::default(),
            isolated: RefCell::default(),
            counts,
            deaths: RefCell::default(),
            kinds: RefCell::default(),
            processes: RefCell::default(),
            alarms: RefCell::default(),
            lives: Cell::new(WORLD),
            faults_on: Cell::new(false),
            config,
        });
        core.set_faults(true);
        if let Some(interval) = core.config.crash_interval {
            core.executor.spawn(WORLD, Box::pin(Rc::clone(&core).strike(interval)));
        }
        Ok(core)
    }

    pub(super) fn register<A: Actor>(&self) {
        let drive: Drive = |context, receiver| Box::pin(supervise::<A>(context, receiver));
        self.kinds.borrow_mut().insert(<A::Protocol as Protocol>::KIND, drive);
    }

    pub(super) fn set_faults(&self, on: bool) {
        self.faults_on.set(on);
        self.disk.set_io_errors(if on { self.config.io_errors } else { 0.0 });
    }

    /// Whether a fault of this probability strikes now.
    pub(super) fn fault(&self, probability: f64, count: impl FnOnce(&mut FaultCounts)) -> bool {
        let strikes = self.random.chance(probability) && self.faults_on.get();
        if strikes {
            self.count(count);
        }
        strikes
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut FaultCounts)) {
        let mut counts = self.counts.get();
        count(&mut counts);
        self.counts.set(counts);
    }

    /// How long something takes on its way.
    pub(super) async fn delay(&self) {
        self.executor.sleep(self.random.duration(self.config.longest_delay)).await;
    }

    /// Puts a message into an actor's mailbox, starting the actor where it does not run yet.
    pub(super) fn deliver(self: &Rc<Self>, to: &Address, delivery: Delivery) {
        let refusal = match self.start(to) {
            Ok(()) => match self.processes.borrow().get(&to.to_string()) {
                Some(Process::Up { mailbox, .. }) => {
                    mailbox.deliver(Input::Message(Box::new(delivery)));
                    return;
                }
                _ => unavailable(format!("{to} is restarting")),
            },
            Err(error) => error,
        };
        // The asker may have died meanwhile.
        let _ = delivery.reply.send(Err(refusal));
    }

    /// Starts an actor, unless it runs or is down.
    fn start(self: &Rc<Self>, address: &Address) -> Result<(), Error> {
        let key = address.to_string();
        if self.processes.borrow().contains_key(&key) {
            return Ok(());
        }
        let Some(drive) = self.kinds.borrow().get(address.kind.as_str()).copied() else {
            return Err(Error::new(
                ErrorCode::NotFound,
                format!("there is no kind of actor called {:?}", address.kind),
            ));
        };
        if address.name.is_empty() {
            return Err(Error::invalid("an actor's name is missing"));
        }
        self.lives.set(self.lives.get() + 1);
        let life = self.lives.get();
        self.disk.begin(life);
        let (mailbox, receiver) = mailbox(self.config.mailbox_capacity);
        let context = Context::new(Rc::new(SimulatedHost::new(Rc::clone(self), address.clone(), life)));
        self.executor.trace.record("start", &[life]);
        self.executor.trace.bytes(key.as_bytes());
        self.processes.borrow_mut().insert(key, Process::Up { address: address.clone(), life, mailbox });
        self.executor.spawn(life, drive(context, receiver));
        Ok(())
    }

    pub(super) fn crash(self: &Rc<Self>, key: &str) {
        let process = self.processes.borrow_mut().get_mut(key).map(|process| std::mem::replace(process, Process::Down));
        let Some(Process::Up { address, life, mailbox }) = process else {
            return;
        };
        self.executor.trace.record("crash", &[life]);
        self.count(|counts| counts.crashes += 1);
        *self.deaths.borrow_mut().entry(address.kind.clone()).or_default() += 1;
        // The disk first: what the tasks drop must not reach it any more.
        self.disk.crash(life, &address);
        self.executor.cancel_owner(life);
        drop(mailbox);
        let core = Rc::clone(self);
        let pause = self.random.duration(self.config.longest_restart);
        self.executor.spawn(
            WORLD,
            Box::pin(async move {
                core.executor.sleep(pause).await;
                let key = address.to_string();
                core.processes.borrow_mut().remove(&key);
                // The alarm may have rung in vain; it may ring again.
                let alarm = core.alarms.borrow().get(&key).copied();
                if let Some(at_ms) = alarm {
                    core.set_alarm(&address, at_ms);
                }
            }),
        );
    }

    pub(super) fn set_alarm(self: &Rc<Self>, address: &Address, at_ms: u64) {
        let key = address.to_string();
        self.alarms.borrow_mut().insert(key.clone(), at_ms);
        let core = Rc::clone(self);
        let address = address.clone();
        self.executor.spawn(
            WORLD,
            Box::pin(async move {
                let wait = Duration::from_millis(at_ms.saturating_sub(core.executor.now_ms()));
                core.executor.sleep(wait).await;
                if core.alarms.borrow().get(&key) != Some(&at_ms) || core.start(&address).is_err() {
                    return;
                }
                let mailbox = match core.processes.borrow().get(&key) {
                    Some(Process::Up { mailbox, .. }) => mailbox.clone(),
                    // It rings when the actor is back.
                    _ => return,
                };
                mailbox.ring().await;
            }),
        );
    }

    /// Kills actors, one now and then.
    async fn strike(self: Rc<Self>, interval: Duration) {
        loop {
            self.executor.sleep(self.random.duration(interval * 2)).await;
            let running: Vec<String> = {
                let processes = self.processes.borrow();
                processes
                    .iter()
                    .filter(|(_, process)| matches!(process, Process::Up { .. }))
                    .map(|(key, _)| key.clone())
                    .collect()
            };
            if self.faults_on.get() && !running.is_empty() {
                self.crash(&running[self.random.index(running.len())]);
            }
        }
    }

    /// Ends everything, as the end of the world would, so that nothing refers to anything else any more.
    pub(super) fn shut_down(&self) {
        let processes = self.processes.take();
        for process in processes.values() {
            if let Process::Up { address, life, .. } = process {
                self.disk.crash(*life, address);
            }
        }
        self.executor.clear();
    }
}
