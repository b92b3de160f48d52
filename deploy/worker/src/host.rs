//! What one Durable Object gives the actor that lives in it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dosql_actors::{Host, HttpError, HttpRequest, HttpResponse, ObjectStore, Payload, Settings};
use dosql_proto::{Address, Envelope, Error, ErrorCode};
use futures_util::future::LocalBoxFuture;
use rusqlite::{Connection, OpenFlags};
use worker::{Delay, Env, State};

use crate::alarms::Alarms;
use crate::bucket::R2;
use crate::http;
use crate::pages::{self, PageStore};
use crate::reach::Reach;
use crate::tasks::Tasks;

/// The longest timer the platform keeps; a longer sleep is several.
const LONGEST_TIMER: Duration = Duration::from_secs(86_400);

/// KiB of pages SQLite keeps in memory for each object. Many objects share the 128 MB of one isolate.
const CACHE_KIB: i64 = 2048;

/// The host of one object.
pub(crate) struct ObjectHost {
    address: Address,
    /// The object's id: unlike the address, it differs between the two namespaces.
    file: String,
    alarms: Rc<Alarms>,
    store: Rc<PageStore>,
    reach: Reach,
    objects: Rc<dyn ObjectStore>,
    settings: Arc<Settings>,
    /// The latest time handed out, in milliseconds since the epoch.
    latest_ms: Cell<u64>,
    tasks: Tasks,
}

impl ObjectHost {
    pub(crate) fn new(
        address: Address,
        state: &State,
        alarms: Rc<Alarms>,
        store: Rc<PageStore>,
        env: &Env,
    ) -> worker::Result<Self> {
        let settings = Settings::from_variables(|name| variable(env, name)).map_err(|error| error.to_string())?;
        let root = variable(env, "LAKEHOUSE_URL").unwrap_or_else(|| "s3://dosql-lakehouse".to_owned());
        Ok(Self {
            file: state.id().to_string(),
            address,
            alarms,
            store,
            reach: Reach::new(env)?,
            objects: Rc::new(R2::new(env.bucket("LAKEHOUSE_BUCKET")?, &root)),
            settings: Arc::new(dosql_router::with_shards(settings)),
            latest_ms: Cell::new(0),
            tasks: Tasks::default(),
        })
    }

    fn connect(&self) -> Result<Connection, Box<dyn std::error::Error>> {
        pages::attach(&self.file, Rc::clone(&self.store))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(&self.file, flags, pages::VFS)?;
        connection.pragma_update(None, "page_size", pages::PAGE_BYTES as i64)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "MEMORY")?;
        // One sync for each commit: that is when the page VFS writes to the object's storage.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(connection)
    }
}

impl Host for ObjectHost {
    fn address(&self) -> &Address {
        &self.address
    }

    fn now_ms(&self) -> u64 {
        let now = (js_sys::Date::now() as u64).max(self.latest_ms.get());
        self.latest_ms.set(now);
        now
    }

    fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        #[expect(
            clippy::expect_used,
            reason = "the platform's crypto always answers; without randomness nothing may go on"
        )]
        getrandom::fill(&mut bytes).expect("crypto.getRandomValues");
        u64::from_le_bytes(bytes)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let mut left = duration;
            while left > LONGEST_TIMER {
                Delay::from(LONGEST_TIMER).await;
                left -= LONGEST_TIMER;
            }
            Delay::from(left).await;
        })
    }

    fn set_alarm(&self, at_ms: u64) {
        self.alarms.set_actor(&self.address, at_ms);
    }

    fn open_storage(&self) -> Result<Connection, Error> {
        self.connect().map_err(|error| {
            Error::new(ErrorCode::Storage, format!("the database of {} could not be opened: {error}", self.address))
        })
    }

    fn open_scratch(&self) -> Result<Connection, Error> {
        Connection::open_in_memory().map_err(|error| {
            Error::new(ErrorCode::Storage, format!("{} could not open a scratch database: {error}", self.address))
        })
    }

    fn objects(&self) -> Rc<dyn ObjectStore> {
        Rc::clone(&self.objects)
    }

    fn exchange(&self, request: HttpRequest) -> LocalBoxFuture<'static, Result<HttpResponse, HttpError>> {
        Box::pin(http::exchange(request))
    }

    fn send(&self, envelope: Envelope, payload: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>> {
        let reach = self.reach.clone();
        Box::pin(async move { reach.send(envelope, payload).await })
    }

    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        self.tasks.spawn(future);
    }

    fn end_incarnation(&self) {
        self.tasks.end();
    }

    fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }
}

/// A variable of the Worker's configuration, whether it was written as text, a number or a truth value.
pub(crate) fn variable(env: &Env, name: &str) -> Option<String> {
    let value = js_sys::Reflect::get(env, &name.into()).ok()?;
    value
        .as_string()
        .or_else(|| value.as_f64().map(|number| number.to_string()))
        .or_else(|| value.as_bool().map(|truth| truth.to_string()))
}
