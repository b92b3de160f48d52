//! The file system under the simulated actors' SQLite.
//!
//! A database is opened as `LIFE/kind/name.sqlite`, where LIFE numbers the process that opens it. Once that process has died,
//! everything it still asks of the disk fails: a connection that is dropped afterwards cannot tidy up.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dosql_proto::{Address, Error};
use rsqlite_vfs::{
    AccessMode, DeviceCharacteristics, LockLevel, OpenOptions, OpenRequest, OpenedFile, OsCallback, SQLiteIoMethods,
    SQLiteVfs, SyncOptions, VfsError, VfsErrorCode, VfsFile, VfsRegistration, VfsResult, VfsStore, register_vfs,
};
use rusqlite::{Connection, OpenFlags};

use super::FaultCounts;
use super::executor::Executor;
use super::file::File;
use super::random::Random;
use crate::host::log_mode::use_log;

/// Tells the file systems of simulations that run beside each other apart.
static DISKS: AtomicU64 = AtomicU64::new(0);

/// A simulation's disk, registered with SQLite under a name of its own.
///
/// It stays on the thread that made it: it holds `Rc`s, and so do the contexts through which alone connections are opened.
pub(super) struct Disk {
    name: String,
    state: Rc<DiskState>,
    /// `None` only while it is being dropped.
    registration: Option<VfsRegistration<Rc<DiskState>>>,
}

pub(super) struct DiskState {
    random: Rc<Random>,
    executor: Rc<Executor>,
    counts: Rc<Cell<FaultCounts>>,
    /// How likely a read, write or sync fails, just now.
    io_errors: Cell<f64>,
    lying_sync: bool,
    files: RefCell<BTreeMap<String, Rc<RefCell<File>>>>,
    /// Deleted, but a power failure may bring them back.
    deleted: RefCell<BTreeMap<String, Rc<RefCell<File>>>>,
    living: RefCell<BTreeSet<u64>>,
    open: Cell<usize>,
}

impl Disk {
    pub(super) fn new(
        random: Rc<Random>,
        executor: Rc<Executor>,
        counts: Rc<Cell<FaultCounts>>,
        lying_sync: bool,
    ) -> Result<Self, Error> {
        let name = format!("dosql-simulation-{}", DISKS.fetch_add(1, Ordering::Relaxed));
        let state = Rc::new(DiskState {
            random,
            executor,
            counts,
            io_errors: Cell::new(0.0),
            lying_sync,
            files: RefCell::default(),
            deleted: RefCell::default(),
            living: RefCell::default(),
            open: Cell::new(0),
        });
        // SAFETY: the default constructor, callbacks and file layout are used, and they agree on `Rc<DiskState>`. The name is
        // unique in the process. SQLite is built with its mutexes, so that its list of file systems may be changed while other
        // threads use it; ours is reached only by name, and only from this thread (see `Disk`).
        let registration = unsafe { register_vfs::<SimulatedIo, SimulatedVfs>(&name, Rc::clone(&state), false) }
            .map_err(|error| Error::internal(format!("the simulated file system was refused: {error}")))?;
        Ok(Self { name, state, registration: Some(registration) })
    }

    /// Allows a process to use the disk.
    pub(super) fn begin(&self, life: u64) {
        self.state.living.borrow_mut().insert(life);
    }

    /// Ends a process: its handles go dead, and of what it had not synced chance keeps some.
    pub(super) fn crash(&self, life: u64, address: &Address) {
        self.state.living.borrow_mut().remove(&life);
        self.state.lose_unsynced(&path_of(address));
    }

    pub(super) fn set_io_errors(&self, probability: f64) {
        self.state.io_errors.set(probability);
    }

    /// Opens the database of an actor for one of its processes.
    pub(super) fn connect(&self, life: u64, address: &Address) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = format!("{life}/{}", path_of(address));
        let connection = Connection::open_with_flags_and_vfs(path, flags, self.name.as_str())?;
        // As on the other hosts a log, which here needs no shared memory since nobody shares the file.
        connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        use_log(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        // Small, so that short histories see pages spill and checkpoints happen.
        connection.pragma_update(None, "cache_size", 50)?;
        connection.pragma_update(None, "wal_autocheckpoint", 40)?;
        Ok(connection)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(registration) = self.registration.take() else { return };
        if self.state.open.get() > 0 {
            // Somebody kept a connection: SQLite may still call, so everything stays where it is.
            registration.into_raw();
            return;
        }
        // SAFETY: no file is open, so no connection is; nobody else knows the name, and this is the only thread that used it.
        if let Err((registration, error)) = unsafe { registration.unregister() } {
            tracing::error!(%error, "SQLite keeps a simulated file system");
            registration.into_raw();
        }
    }
}

fn path_of(address: &Address) -> String {
    format!("{}/{}.sqlite", address.kind, address.name)
}

fn failed(code: VfsErrorCode, message: &'static str) -> VfsError {
    VfsError::new(code, message.into())
}

fn to_index(number: u64) -> VfsResult<usize> {
    usize::try_from(number).map_err(|_| failed(VfsErrorCode::Full, "beyond the address space"))
}

impl DiskState {
    /// The file's own name, where the process that gave it lives.
    fn resolve<'a>(&self, name: &'a str) -> VfsResult<(u64, &'a str)> {
        let parsed = name.split_once('/').and_then(|(life, path)| Some((life.parse::<u64>().ok()?, path)));
        let (life, path) = parsed.ok_or_else(|| failed(VfsErrorCode::CantOpen, "not a name of the simulation's"))?;
        self.check_alive(life)?;
        Ok((life, path))
    }

    fn check_alive(&self, life: u64) -> VfsResult<()> {
        if self.living.borrow().contains(&life) {
            Ok(())
        } else {
            Err(failed(VfsErrorCode::Io, "the process has died"))
        }
    }

    /// Fails now and then.
    fn fault(&self, code: VfsErrorCode) -> VfsResult<()> {
        if !self.random.chance(self.io_errors.get()) {
            return Ok(());
        }
        let mut counts = self.counts.get();
        counts.io_errors += 1;
        self.counts.set(counts);
        self.executor.trace.record("io error", &[u64::from(code.as_raw().unsigned_abs())]);
        Err(failed(code, "simulated failure"))
    }

    fn lose_unsynced(&self, path: &str) {
        let belongs = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        // Sometimes only the process dies, and the operating system still writes everything.
        let power_failure = self.lying_sync || self.random.chance(0.7);
        self.executor.trace.record("disk", &[u64::from(power_failure)]);
        let mut files = self.files.borrow_mut();
        if !power_failure {
            for (_, file) in files.iter().filter(|(name, _)| belongs(name)) {
                file.borrow_mut().sync();
            }
            return;
        }
        let mut counts = self.counts.get();
        counts.power_failures += 1;
        self.counts.set(counts);
        let mut deleted = self.deleted.borrow_mut();
        let returning: Vec<String> = deleted.keys().filter(|name| belongs(name)).cloned().collect();
        for name in returning {
            let file = deleted.remove(&name);
            if let Some(file) = file.filter(|_| self.random.chance(0.5)) {
                files.entry(name).or_insert(file);
            }
        }
        files.retain(|name, file| {
            if !belongs(name) {
                return true;
            }
            let mut file = file.borrow_mut();
            file.lose_unsynced(&self.random);
            file.named_durably || self.random.chance(0.5)
        });
    }
}

/// An open file.
struct Handle {
    disk: Rc<DiskState>,
    /// `None` for a file without a name, which no other process can have written.
    life: Option<u64>,
    path: String,
    file: Rc<RefCell<File>>,
}

impl Handle {
    fn check(&self, code: VfsErrorCode) -> VfsResult<()> {
        match self.life {
            None => Ok(()),
            Some(life) => {
                self.disk.check_alive(life)?;
                self.disk.fault(code)
            }
        }
    }
}

impl VfsFile for Handle {
    fn device_characteristics(&self) -> DeviceCharacteristics {
        // A torn write leaves the bytes around it alone.
        DeviceCharacteristics::POWERSAFE_OVERWRITE
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> VfsResult<usize> {
        self.check(VfsErrorCode::IoRead)?;
        Ok(self.file.borrow().read(buf, to_index(offset)?))
    }

    fn write(&mut self, buf: &[u8], offset: u64) -> VfsResult<()> {
        self.check(VfsErrorCode::IoWrite)?;
        self.file.borrow_mut().write(buf, to_index(offset)?);
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> VfsResult<()> {
        self.check(VfsErrorCode::IoTruncate)?;
        self.file.borrow_mut().truncate(to_index(size)?);
        Ok(())
    }

    fn sync(&mut self, _: SyncOptions) -> VfsResult<()> {
        self.check(VfsErrorCode::IoSync)?;
        if !self.disk.lying_sync {
            let mut file = self.file.borrow_mut();
            if !file.named_durably {
                // The first sync of a new file syncs its directory, too, and with it what was deleted there.
                let directory = |path: &str| path.rsplit_once('/').map(|(directory, _)| directory.to_owned());
                self.disk.deleted.borrow_mut().retain(|path, _| directory(path) != directory(&self.path));
            }
            file.sync();
        }
        Ok(())
    }

    fn size(&self) -> VfsResult<u64> {
        if let Some(life) = self.life {
            self.disk.check_alive(life)?;
        }
        Ok(self.file.borrow().size() as u64)
    }

    // Nobody shares an actor's database: the process before this one is dead.
    fn lock(&mut self, _: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn unlock(&mut self, _: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn check_reserved_lock(&self) -> VfsResult<bool> {
        Ok(false)
    }
}

struct SimulatedStore;

impl VfsStore for SimulatedStore {
    type File = Handle;
    type AppData = Rc<DiskState>;

    fn open_file(disk: &Rc<DiskState>, request: OpenRequest<'_>) -> VfsResult<OpenedFile<Handle>> {
        let options = request.options;
        let (life, path, file) = match request.filename {
            None => (None, String::new(), Rc::default()),
            Some(filename) => {
                let (life, path) = disk.resolve(filename.path())?;
                disk.fault(VfsErrorCode::CantOpen)?;
                let mut files = disk.files.borrow_mut();
                let file = match files.get(path) {
                    Some(_) if options.exclusive() => return Err(failed(VfsErrorCode::CantOpen, "the file exists")),
                    Some(file) => Rc::clone(file),
                    None if options.create() => {
                        disk.deleted.borrow_mut().remove(path);
                        let file = Rc::default();
                        files.insert(path.to_owned(), Rc::clone(&file));
                        file
                    }
                    None => return Err(failed(VfsErrorCode::CantOpen, "there is no such file")),
                };
                (Some(life), path.to_owned(), file)
            }
        };
        disk.open.set(disk.open.get() + 1);
        Ok(OpenedFile { file: Handle { disk: Rc::clone(disk), life, path, file }, access: options.access() })
    }

    fn close_file(disk: &Rc<DiskState>, name: Option<&str>, _: Handle, options: OpenOptions) -> VfsResult<()> {
        disk.open.set(disk.open.get() - 1);
        if let Some(name) = name.filter(|_| options.delete_on_close()) {
            let (_, path) = disk.resolve(name)?;
            disk.files.borrow_mut().remove(path);
        }
        Ok(())
    }

    fn access(disk: &Rc<DiskState>, name: &str, _: AccessMode) -> VfsResult<bool> {
        let (_, path) = disk.resolve(name)?;
        Ok(disk.files.borrow().contains_key(path))
    }

    fn full_pathname(_: &Rc<DiskState>, name: &str) -> VfsResult<String> {
        Ok(name.to_owned())
    }

    fn delete_file(disk: &Rc<DiskState>, name: &str, sync_dir: bool) -> VfsResult<()> {
        let (_, path) = disk.resolve(name)?;
        disk.fault(VfsErrorCode::IoDelete)?;
        let Some(file) = disk.files.borrow_mut().remove(path) else {
            return Err(failed(VfsErrorCode::IoDeleteNoEntry, "there is no such file"));
        };
        if !sync_dir && file.borrow().named_durably {
            disk.deleted.borrow_mut().insert(path.to_owned(), file);
        }
        Ok(())
    }
}

struct SimulatedIo;

impl SQLiteIoMethods for SimulatedIo {
    type Store = SimulatedStore;
}

struct SimulatedVfs;

impl SQLiteVfs<SimulatedIo> for SimulatedVfs {
    type Os = DiskState;

    fn os(disk: &Rc<DiskState>) -> &DiskState {
        disk
    }
}

impl OsCallback for DiskState {
    // SQLite sleeps only where somebody else holds a lock, and here nobody does.
    fn sleep(&self, _: Duration) {}

    fn random(&self, buf: &mut [u8]) -> usize {
        for byte in buf.iter_mut() {
            // The lowest byte.
            *byte = self.random.next() as u8;
        }
        buf.len()
    }

    fn epoch_timestamp_in_ms(&self) -> VfsResult<i64> {
        i64::try_from(self.executor.now_ms()).map_err(|_| failed(VfsErrorCode::Error, "the end of time"))
    }
}
