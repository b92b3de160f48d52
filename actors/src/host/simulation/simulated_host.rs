//! What one actor is given in a simulation.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dosql_proto::{Address, Envelope, Error, ErrorCode};
use futures_util::future::LocalBoxFuture;
use rusqlite::Connection;

use super::executor::TaskId;
use super::objects::SimulatedObjects;
use super::system::Core;
use super::{network, services};
use crate::runtime::{Host, HttpError, HttpRequest, HttpResponse, ObjectStore, Payload, Settings};

/// One life of an actor.
pub(super) struct SimulatedHost {
    core: Rc<Core>,
    address: Address,
    life: u64,
    /// What this incarnation left running; some of it has ended.
    tasks: RefCell<Vec<TaskId>>,
}

impl SimulatedHost {
    pub(super) fn new(core: Rc<Core>, address: Address, life: u64) -> Self {
        Self { core, address, life, tasks: RefCell::default() }
    }

    fn storage_failed(&self, what: &str, error: &rusqlite::Error) -> Error {
        Error::retryable(ErrorCode::Storage, format!("{what} of {} cannot be opened: {error}", self.address), 1000)
    }
}

impl Host for SimulatedHost {
    fn address(&self) -> &Address {
        &self.address
    }

    fn now_ms(&self) -> u64 {
        self.core.executor.now_ms()
    }

    fn random_u64(&self) -> u64 {
        self.core.random.next()
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(self.core.executor.sleep(duration))
    }

    fn set_alarm(&self, at_ms: u64) {
        self.core.set_alarm(&self.address, at_ms);
    }

    fn open_storage(&self) -> Result<Connection, Error> {
        self.core.disk.connect(self.life, &self.address).map_err(|error| self.storage_failed("the database", &error))
    }

    fn open_scratch(&self) -> Result<Connection, Error> {
        Connection::open_in_memory().map_err(|error| self.storage_failed("a scratch database", &error))
    }

    fn objects(&self) -> Rc<dyn ObjectStore> {
        Rc::new(SimulatedObjects { core: Rc::clone(&self.core) })
    }

    fn exchange(&self, request: HttpRequest) -> LocalBoxFuture<'static, Result<HttpResponse, HttpError>> {
        services::exchange(&self.core, request)
    }

    fn send(&self, envelope: Envelope, payload: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>> {
        network::send(&self.core, envelope, payload)
    }

    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        let task = self.core.executor.spawn(self.life, future);
        self.tasks.borrow_mut().push(task);
    }

    fn end_incarnation(&self) {
        let tasks = self.tasks.take();
        self.core.executor.cancel(tasks);
    }

    fn settings(&self) -> &Arc<Settings> {
        &self.core.settings
    }
}
