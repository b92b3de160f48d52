//! What one actor is given on this host.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use dosql_proto::{Address, Envelope, Error, ErrorCode};
use futures_util::future::LocalBoxFuture;
use rusqlite::{Connection, OpenFlags};
use tokio::task::{JoinHandle, JoinSet};

use super::directory::Directory;
use crate::host::log_mode::use_log;
use crate::runtime::{Host, HttpError, HttpRequest, HttpResponse, Mailbox, ObjectStore, Payload, Settings};

/// How long a statement waits for somebody outside who reads or writes the same database file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis().try_into().unwrap_or(u64::MAX))
}

/// One actor's host. Lives on the actor's arbiter for as long as the actor runs, over all its incarnations.
pub(super) struct LocalHost {
    directory: Arc<Directory>,
    address: Address,
    mailbox: Mailbox,
    latest_ms: Cell<u64>,
    began: Instant,
    random: RandomState,
    drawn: Cell<u64>,
    /// What this incarnation left running.
    tasks: RefCell<JoinSet<()>>,
    alarm: RefCell<Option<JoinHandle<()>>>,
}

impl LocalHost {
    /// To be called on the actor's arbiter; takes up the alarm that an earlier process left.
    pub(super) fn new(directory: Arc<Directory>, address: Address, mailbox: Mailbox) -> Self {
        let host = Self {
            directory,
            address,
            mailbox,
            latest_ms: Cell::new(0),
            began: Instant::now(),
            random: RandomState::new(),
            drawn: Cell::new(0),
            tasks: RefCell::default(),
            alarm: RefCell::default(),
        };
        match fs::read_to_string(host.alarm_file()) {
            // What cannot be read was torn by a power failure: ringing at once is late, never early, and harmless.
            Ok(text) => host.arm(text.trim().parse().unwrap_or(0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(actor = %host.address, %error, "cannot read when the alarm was set for"),
        }
        host
    }

    fn alarm_file(&self) -> PathBuf {
        self.directory.data_dir.actor_file(&self.address, "alarm")
    }

    fn arm(&self, at_ms: u64) {
        let mailbox = self.mailbox.clone();
        let ring = actix_rt::spawn(async move {
            loop {
                let now_ms = now_ms();
                if now_ms >= at_ms {
                    break;
                }
                // In steps, since the wall clock may be set meanwhile.
                tokio::time::sleep(Duration::from_millis((at_ms - now_ms).min(60_000))).await;
            }
            mailbox.ring().await;
        });
        if let Some(earlier) = self.alarm.replace(Some(ring)) {
            earlier.abort();
        }
    }

    /// Records the alarm, so that a process that dies and starts again rings it. The file is written over in place, always as
    /// long as before, and not flushed: it survives the death of the process; a power failure may lose or tear it, after which
    /// the actor rearms as it starts.
    fn record_alarm(&self, at_ms: u64) -> io::Result<()> {
        let mut file = fs::File::options().create(true).truncate(false).write(true).open(self.alarm_file())?;
        file.write_all(format!("{at_ms:020}").as_bytes())
    }

    fn prepare_storage(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        use_log(connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Negative: KiB rather than pages.
        let cache_kib = i64::try_from(self.directory.cache_bytes / 1024).unwrap_or(i64::MAX);
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.pragma_update(None, "temp_store", "FILE")
    }

    fn storage_failed(&self, what: &str, error: &rusqlite::Error) -> Error {
        Error::retryable(ErrorCode::Storage, format!("{what} of {} cannot be opened: {error}", self.address), 1000)
    }
}

impl Host for LocalHost {
    fn address(&self) -> &Address {
        &self.address
    }

    fn now_ms(&self) -> u64 {
        self.latest_ms.set(self.latest_ms.get().max(now_ms()));
        self.latest_ms.get()
    }

    fn timer_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn random_u64(&self) -> u64 {
        // SipHash under a random key, of a counter.
        self.drawn.set(self.drawn.get().wrapping_add(1));
        self.random.hash_one(self.drawn.get())
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn set_alarm(&self, at_ms: u64) {
        self.arm(at_ms);
        if let Err(error) = self.record_alarm(at_ms) {
            tracing::warn!(actor = %self.address, %error, "the alarm is set, but will not survive the process");
        }
    }

    fn open_storage(&self) -> Result<Connection, Error> {
        let path = self.directory.data_dir.actor_file(&self.address, "sqlite");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(path, flags)
            .and_then(|connection| self.prepare_storage(&connection).map(|()| connection))
            .map_err(|error| self.storage_failed("the database", &error))
    }

    fn open_scratch(&self) -> Result<Connection, Error> {
        // An empty name: a private file in the directory for temporary files, deleted when closed.
        let opened = Connection::open("").and_then(|connection| {
            connection.execute_batch(
                "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; PRAGMA cache_size = -8192",
            )?;
            Ok(connection)
        });
        opened.map_err(|error| self.storage_failed("a scratch database", &error))
    }

    fn scratch_spills(&self) -> bool {
        true
    }

    fn objects(&self) -> Rc<dyn ObjectStore> {
        self.directory.objects.store()
    }

    fn exchange(&self, request: HttpRequest) -> LocalBoxFuture<'static, Result<HttpResponse, HttpError>> {
        Box::pin(self.directory.http.exchange(request))
    }

    fn send(&self, envelope: Envelope, payload: Payload) -> LocalBoxFuture<'static, Result<Payload, Error>> {
        Box::pin(self.directory.send(envelope, payload))
    }

    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(future);
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn beside(&self, work: Box<dyn FnOnce() + Send>) -> LocalBoxFuture<'static, ()> {
        let threads = Arc::clone(&self.directory.threads_beside);
        Box::pin(async move {
            // An error would mean that it is closed, which nobody does.
            let Ok(permit) = threads.acquire_owned().await else { return };
            let done = tokio::task::spawn_blocking(move || {
                work();
                drop(permit);
            });
            if let Err(error) = done.await {
                tracing::error!(%error, "work beside an actor has failed");
            }
        })
    }

    fn end_incarnation(&self) {
        // Dropping the set has the arbiter drop the tasks before it runs the next incarnation, which pauses first.
        self.tasks.take();
        self.latest_ms.set(0);
    }

    fn settings(&self) -> &Arc<Settings> {
        &self.directory.settings
    }
}

impl Drop for LocalHost {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            alarm.abort();
        }
    }
}
