//! A host for one lake actor: objects in memory that fail on request, a clock that stands still, seeded randomness.

#![allow(clippy::disallowed_methods, reason = "this is a host: it gives the actor its world")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dosql_actors::runtime::range_of;
use dosql_actors::{Actor, Call, Context, Handled, Host, ObjectError, ObjectMeta, ObjectStore, Payload, Settings};
use dosql_lake::Lake;
use dosql_proto::{
    Address, CompactionMode, Envelope, Error, ErrorCode, LakeAppend, LakeCleaned, LakeCleanup, LakeCompact,
    LakeCompaction, LakeFlush, LakePosition, LakePositionsRequest, LakeReply, LakeRequest, LakeStatus,
    LakeStatusRequest, WalRecord, lake_reply, lake_request,
};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rusqlite::Connection;

/// What happens to an operation on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails without effect.
    Before,
    /// It takes effect, and fails.
    After,
    /// It takes no effect, and every later one fails, until the host is restarted.
    CrashBefore,
    /// It takes effect and fails, and every later one fails, until the host is restarted.
    CrashAfter,
}

/// Objects in memory.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) files: RefCell<BTreeMap<String, Bytes>>,
    /// Operations so far.
    pub(crate) operations: Cell<u64>,
    /// Which operation fails, and how.
    pub(crate) fault: Cell<Option<(u64, Fault)>>,
    pub(crate) down: Cell<bool>,
    /// Before which operation something else happens, once.
    pub(crate) meanwhile: RefCell<Option<(u64, Meanwhile)>>,
    /// When each was last written.
    pub(crate) modified_ms: RefCell<BTreeMap<String, u64>>,
    pub(crate) now_ms: Rc<Cell<u64>>,
    pub(crate) base: String,
}

/// Something that happens.
pub(crate) type Meanwhile = Box<dyn FnOnce()>;

impl Objects {
    /// Does an operation, or fails it.
    fn operate<T>(&self, path: &str, work: impl FnOnce() -> Result<T, ObjectError>) -> Result<T, ObjectError> {
        let failed = || Err(ObjectError::Failed { path: path.to_owned(), reason: "injected".to_owned() });
        if self.down.get() {
            return failed();
        }
        self.operations.set(self.operations.get() + 1);
        let number = self.operations.get();
        let meanwhile = self.meanwhile.borrow_mut().take_if(|(at, _)| *at <= number);
        if let Some((_, meanwhile)) = meanwhile {
            meanwhile();
        }
        let fault = self.fault.get().filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        if matches!(fault, Some(Fault::CrashBefore | Fault::CrashAfter)) {
            self.down.set(true);
        }
        match fault {
            None => work(),
            Some(Fault::Before | Fault::CrashBefore) => failed(),
            Some(Fault::After | Fault::CrashAfter) => {
                let _ = work();
                failed()
            }
        }
    }
}

#[async_trait(?Send)]
impl ObjectStore for Objects {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        self.operate(path, || Ok(self.files.borrow().get(path).cloned()))
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        self.operate(path, || self.files.borrow().get(path).map(|bytes| range_of(path, bytes, range)).transpose())
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.operate(path, || {
            self.files.borrow_mut().insert(path.to_owned(), bytes);
            self.modified_ms.borrow_mut().insert(path.to_owned(), self.now_ms.get());
            Ok(())
        })
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.operate(path, || {
            let mut files = self.files.borrow_mut();
            if files.contains_key(path) {
                return Err(ObjectError::AlreadyExists { path: path.to_owned() });
            }
            files.insert(path.to_owned(), bytes);
            self.modified_ms.borrow_mut().insert(path.to_owned(), self.now_ms.get());
            Ok(())
        })
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        self.operate(path, || {
            self.files.borrow_mut().remove(path);
            Ok(())
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.operate(prefix, || {
            let meta = |(path, bytes): (&String, &Bytes)| ObjectMeta {
                path: path.clone(),
                size: bytes.len() as u64,
                modified_ms: self.modified_ms.borrow().get(path).copied().unwrap_or(0),
            };
            Ok(self.files.borrow().iter().filter(|(path, _)| path.starts_with(prefix)).map(meta).collect())
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

struct TestHost {
    address: Address,
    objects: Rc<Objects>,
    settings: Arc<Settings>,
    database: String,
    random: Rc<Cell<u64>>,
    now_ms: Rc<Cell<u64>>,
    alarm: Rc<Cell<Option<u64>>>,
}

impl Host for TestHost {
    fn address(&self) -> &Address {
        &self.address
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    fn random_u64(&self) -> u64 {
        next_random(&self.random)
    }

    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        futures_util::future::ready(()).boxed_local()
    }

    fn set_alarm(&self, at_ms: u64) {
        self.alarm.set(Some(at_ms));
    }

    fn open_storage(&self) -> Result<Connection, Error> {
        Connection::open(&self.database).map_err(|error| Error::new(ErrorCode::Storage, error.to_string()))
    }

    fn open_scratch(&self) -> Result<Connection, Error> {
        Connection::open_in_memory().map_err(|error| Error::new(ErrorCode::Storage, error.to_string()))
    }

    fn objects(&self) -> Rc<dyn ObjectStore> {
        Rc::<Objects>::clone(&self.objects)
    }

    fn send(&self, envelope: Envelope, _: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>> {
        panic!("the lake asked {:?}", envelope.to)
    }

    fn spawn(&self, _: LocalBoxFuture<'static, ()>) {
        panic!("the lake left a future running");
    }

    fn end_incarnation(&self) {}

    fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }
}

/// A step of splitmix64.
pub(crate) fn next_random(state: &Cell<u64>) -> u64 {
    state.set(state.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
    let mut value = state.get();
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A lake actor and its world.
pub(crate) struct World {
    pub(crate) objects: Rc<Objects>,
    pub(crate) now_ms: Rc<Cell<u64>>,
    pub(crate) alarm: Rc<Cell<Option<u64>>>,
    pub(crate) lake: Option<Lake>,
    context: Context,
    // Keeps the database in memory alive between incarnations.
    _database: Connection,
}

impl World {
    pub(crate) fn new(seed: u64, base: &str, settings: Settings) -> Self {
        let now_ms = Rc::new(Cell::new(1_767_225_600_000));
        let objects = Rc::new(Objects { base: base.to_owned(), now_ms: Rc::clone(&now_ms), ..Objects::default() });
        Self::on(objects, now_ms, seed, settings)
    }

    /// A lake actor with a database of its own over these objects.
    pub(crate) fn on(objects: Rc<Objects>, now_ms: Rc<Cell<u64>>, seed: u64, settings: Settings) -> Self {
        thread_local!(static WORLDS: Cell<u64> = const { Cell::new(0) });
        let number = WORLDS.with(|worlds| worlds.replace(worlds.get() + 1));
        let database = format!("file:lake-{:?}-{number}?mode=memory&cache=shared", std::thread::current().id());
        let alarm = Rc::new(Cell::new(None));
        let host = TestHost {
            address: Address::new("lake", "default"),
            objects: Rc::clone(&objects),
            settings: Arc::new(settings),
            database: database.clone(),
            random: Rc::new(Cell::new(seed)),
            now_ms: Rc::clone(&now_ms),
            alarm: Rc::clone(&alarm),
        };
        let context = Context::new(Rc::new(host));
        Self { objects, now_ms, alarm, lake: None, context, _database: Connection::open(database).unwrap() }
    }

    /// The same lake, without the actor's database.
    pub(crate) fn without_database(&self, seed: u64) -> Self {
        Self::on(Rc::clone(&self.objects), Rc::clone(&self.now_ms), seed, (**self.context.settings()).clone())
    }

    /// A new incarnation.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        self.lake = None;
        self.objects.down.set(false);
        self.lake = Some(now(Lake::start(self.context.clone()))?);
        Ok(())
    }

    pub(crate) fn ask(&mut self, request: lake_request::Request) -> Result<lake_reply::Reply, Error> {
        if self.lake.is_none() {
            self.restart()?;
        }
        let lake = self.lake.as_mut().unwrap();
        match now(lake.handle(LakeRequest { request: Some(request) }, &Call::system())) {
            Handled::Reply(outcome) => outcome.map(|LakeReply { reply }| reply.unwrap()),
            Handled::Later(future) | Handled::WhileAsked(future, _) => {
                now(future).map(|LakeReply { reply }| reply.unwrap())
            }
            Handled::Crash(error) => {
                self.lake = None;
                Err(error)
            }
        }
    }

    pub(crate) fn append(
        &mut self,
        shard: &str,
        after_lsn: u64,
        records: &[WalRecord],
    ) -> Result<Vec<LakePosition>, Error> {
        let append = LakeAppend { shard: shard.to_owned(), after_lsn, records: records.to_vec() };
        self.ask(lake_request::Request::Append(append)).map(positions)
    }

    pub(crate) fn flush(&mut self) -> Result<Vec<LakePosition>, Error> {
        self.ask(lake_request::Request::Flush(LakeFlush {})).map(positions)
    }

    pub(crate) fn positions(&mut self) -> Result<Vec<LakePosition>, Error> {
        self.ask(lake_request::Request::Positions(LakePositionsRequest {})).map(positions)
    }

    pub(crate) fn status(&mut self) -> LakeStatus {
        self.ask(lake_request::Request::Status(LakeStatusRequest {})).map(status).unwrap()
    }

    /// One step of compaction.
    pub(crate) fn compact(&mut self, table: &str, mode: CompactionMode) -> Result<Option<LakeCompaction>, Error> {
        let compact = LakeCompact { table: table.to_owned(), mode: mode.into(), ..LakeCompact::default() };
        match self.ask(lake_request::Request::Compact(compact))? {
            lake_reply::Reply::Compacted(compacted) => Ok(compacted.compaction),
            other => panic!("not a compaction: {other:?}"),
        }
    }

    pub(crate) fn clean_up(&mut self, table: &str, deep: bool, dry_run: bool) -> Result<LakeCleaned, Error> {
        let cleanup = LakeCleanup { table: table.to_owned(), deep, dry_run };
        match self.ask(lake_request::Request::Cleanup(cleanup))? {
            lake_reply::Reply::Cleaned(cleaned) => Ok(cleaned),
            other => panic!("not a clean-up: {other:?}"),
        }
    }

    /// Compacts every table as far as it goes, and cleans it up thoroughly.
    pub(crate) fn maintain(&mut self) -> Result<(), Error> {
        for table in self.ask(lake_request::Request::Status(LakeStatusRequest {})).map(status)?.tables {
            while self.compact(&table.name, CompactionMode::Full)?.is_some() {}
            let cleaned = self.clean_up(&table.name, true, false)?;
            if let Some(failure) = cleaned.failures.first() {
                return Err(Error::internal(format!("{failure:?}")));
            }
        }
        Ok(())
    }

    /// Lets the time pass and the alarm fire.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms.set(self.now_ms.get() + ms);
        if self.alarm.get().is_some_and(|at_ms| at_ms <= self.now_ms.get()) {
            self.alarm.set(None);
            now(self.lake.as_mut().unwrap().alarm()).unwrap();
        }
    }
}

fn status(reply: lake_reply::Reply) -> LakeStatus {
    match reply {
        lake_reply::Reply::Status(status) => status,
        other => panic!("not a status: {other:?}"),
    }
}

fn positions(reply: lake_reply::Reply) -> Vec<LakePosition> {
    match reply {
        lake_reply::Reply::Positions(positions) => positions.shards,
        other => panic!("not positions: {other:?}"),
    }
}

/// Nothing here waits, so every future is ready at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a future waited")
}
