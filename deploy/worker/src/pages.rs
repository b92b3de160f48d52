//! SQLite's database file as rows of the object's own storage, a row a page.
//!
//! What SQLite writes stays in memory until it asks for a sync, which it does once a transaction, when it commits. Then all
//! pages go into the object's storage in one platform transaction, within one turn of the event loop: an object that dies at any
//! other moment comes back as of its last commit, and the platform holds replies until a sync's pages are durable. A
//! transaction's pages must therefore fit the object's memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use js_sys::{Array, JsString, Reflect, Uint8Array};
use rsqlite_vfs::{
    AccessMode, LockLevel, MemChunksFile, OpenAccess, OpenOptions, OpenRequest, OpenedFile, OsCallback,
    SQLiteIoMethods, SQLiteVfs, SyncOptions, VfsError, VfsErrorCode, VfsFile, VfsResult, VfsStore, register_vfs,
};
use wasm_bindgen::prelude::*;

/// The name the page VFS is registered under.
pub(crate) const VFS: &str = "dosql-pages";

/// Bytes in a page: SQLite's page size and a row's. The platform's own SQLite pages are as large.
pub(crate) const PAGE_BYTES: usize = 4096;

#[wasm_bindgen]
extern "C" {
    /// The object's storage (`ctx.storage`).
    #[derive(Clone)]
    pub(crate) type ObjectStorage;

    #[wasm_bindgen(method, getter)]
    fn sql(this: &ObjectStorage) -> ObjectSql;

    /// Runs the callback as one transaction: what it wrote is undone where it throws.
    #[wasm_bindgen(method, catch, js_name = transactionSync)]
    fn transaction_sync(
        this: &ObjectStorage,
        body: &mut dyn FnMut() -> Result<JsValue, JsValue>,
    ) -> Result<JsValue, JsValue>;

    /// The object's SQL (`ctx.storage.sql`).
    #[derive(Clone)]
    type ObjectSql;

    #[wasm_bindgen(method, catch, js_name = exec)]
    fn exec(this: &ObjectSql, query: &JsString) -> Result<ObjectCursor, JsValue>;

    #[wasm_bindgen(method, catch, js_name = exec)]
    fn exec_number(this: &ObjectSql, query: &JsString, number: f64) -> Result<ObjectCursor, JsValue>;

    #[wasm_bindgen(method, catch, js_name = exec)]
    fn exec_page(this: &ObjectSql, query: &JsString, number: f64, data: &Uint8Array) -> Result<ObjectCursor, JsValue>;

    #[wasm_bindgen(method, catch, js_name = exec)]
    fn exec_text(this: &ObjectSql, query: &JsString, text: &str) -> Result<ObjectCursor, JsValue>;

    type ObjectCursor;

    /// The remaining rows, each an object with a property for each column.
    #[wasm_bindgen(method, catch, js_name = toArray)]
    fn to_array(this: &ObjectCursor) -> Result<Array, JsValue>;
}

/// The object's storage as DoSQL lays it out: the pages of the actor's database, and the actor's address.
pub(crate) struct PageStore {
    storage: ObjectStorage,
    sql: ObjectSql,
    read: JsString,
    write: JsString,
    data: JsString,
}

impl PageStore {
    /// Opens the object's storage, creating its tables the first time.
    pub(crate) fn open(storage: ObjectStorage) -> Result<Self, JsValue> {
        let sql = storage.sql();
        for table in [
            "CREATE TABLE IF NOT EXISTS _dosql_pages (number INTEGER PRIMARY KEY, data BLOB NOT NULL)",
            "CREATE TABLE IF NOT EXISTS _dosql_address (id INTEGER PRIMARY KEY CHECK (id = 1), address TEXT NOT NULL)",
        ] {
            sql.exec(&table.into())?;
        }
        Ok(Self {
            storage,
            sql,
            read: "SELECT data FROM _dosql_pages WHERE number = ?".into(),
            write: "INSERT OR REPLACE INTO _dosql_pages (number, data) VALUES (?, ?)".into(),
            data: "data".into(),
        })
    }

    /// The address of the actor that lives here, once one does.
    pub(crate) fn address(&self) -> Result<Option<String>, JsValue> {
        let row = self.sql.exec(&"SELECT address FROM _dosql_address".into())?.to_array()?.get(0);
        if row.is_undefined() {
            return Ok(None);
        }
        Ok(Reflect::get(&row, &"address".into())?.as_string())
    }

    /// Remembers which actor lives here.
    pub(crate) fn set_address(&self, address: &str) -> Result<(), JsValue> {
        self.sql.exec_text(&"INSERT OR REPLACE INTO _dosql_address (id, address) VALUES (1, ?)".into(), address)?;
        Ok(())
    }

    /// How many pages the database has.
    fn count(&self) -> Result<u64, JsValue> {
        let query = "SELECT coalesce(max(number) + 1, 0) AS pages FROM _dosql_pages".into();
        let row = self.sql.exec(&query)?.to_array()?.get(0);
        let pages = Reflect::get(&row, &"pages".into())?.as_f64().unwrap_or(0.0);
        Ok(pages as u64)
    }

    /// Copies a page's bytes from `from` on into `into`; zeros where there is no such page.
    fn read(&self, number: u64, from: usize, into: &mut [u8]) -> Result<(), JsValue> {
        let row = self.sql.exec_number(&self.read, number as f64)?.to_array()?.get(0);
        if row.is_undefined() {
            into.fill(0);
            return Ok(());
        }
        let page = Uint8Array::new(&Reflect::get(&row, &self.data)?);
        if page.length() as usize != PAGE_BYTES {
            return Err(format!("page {number} has {} bytes", page.length()).into());
        }
        page.subarray(from as u32, (from + into.len()) as u32).copy_to(into);
        Ok(())
    }

    /// Drops the pages from `stored` on and writes `pages`: all of it, or nothing.
    fn commit(&self, stored: Option<u64>, pages: &BTreeMap<u64, Box<[u8]>>) -> Result<(), JsValue> {
        let drop: JsString = "DELETE FROM _dosql_pages WHERE number >= ?".into();
        self.storage.transaction_sync(&mut || {
            if let Some(stored) = stored {
                self.sql.exec_number(&drop, stored as f64)?;
            }
            for (number, page) in pages {
                self.sql.exec_page(&self.write, *number as f64, &Uint8Array::from(&page[..]))?;
            }
            Ok(JsValue::UNDEFINED)
        })?;
        Ok(())
    }
}

thread_local! {
    /// The storage behind each database that may be opened, by file name: many objects share one instance of this program.
    static STORES: RefCell<HashMap<String, Rc<PageStore>>> = RefCell::default();
    /// Whether the VFS is registered with SQLite.
    static REGISTERED: RefCell<bool> = const { RefCell::new(false) };
}

/// Lets `file` be opened through the VFS, on the pages in `store`. An object that comes back after an eviction replaces the
/// entry of its former life.
pub(crate) fn attach(file: &str, store: Rc<PageStore>) -> Result<(), String> {
    REGISTERED.with_borrow_mut(|registered| {
        if !*registered {
            // SAFETY: `PageVfs` and `PageIo` use the default callbacks and file layout and agree on the application data, which
            // the registration keeps; wasm has one thread, so nothing else registers or uses SQLite meanwhile.
            let registration = unsafe { register_vfs::<PageIo, PageVfs>(VFS, PageVfs, false) };
            registration.map_err(|error| error.to_string())?.into_raw();
            *registered = true;
        }
        Ok::<_, String>(())
    })?;
    STORES.with_borrow_mut(|stores| stores.insert(file.to_owned(), store));
    Ok(())
}

/// The database file, and what was written to it since the last sync.
struct PageFile {
    store: Rc<PageStore>,
    /// Pages written and not yet in storage.
    unsynced: BTreeMap<u64, Box<[u8]>>,
    /// The file's length in pages.
    pages: u64,
    /// Pages below this number are in storage as of the last sync; what storage has above it has been truncated away.
    stored: u64,
    /// Whether storage has pages that were truncated away.
    truncated: bool,
}

impl PageFile {
    fn open(store: Rc<PageStore>) -> VfsResult<Self> {
        let pages = store.count().map_err(|error| failed(VfsErrorCode::CantOpen, &error))?;
        Ok(Self { store, unsynced: BTreeMap::new(), pages, stored: pages, truncated: false })
    }

    fn read_page(&self, number: u64, from: usize, into: &mut [u8]) -> VfsResult<()> {
        if let Some(page) = self.unsynced.get(&number) {
            into.copy_from_slice(&page[from..from + into.len()]);
        } else if number < self.stored {
            self.store.read(number, from, into).map_err(|error| failed(VfsErrorCode::IoRead, &error))?;
        } else {
            into.fill(0);
        }
        Ok(())
    }

    fn length(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// The parts of pages that `length` bytes at `offset` cover: page number, first byte in it, bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let end = offset + length as u64;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let from = (at % PAGE_BYTES as u64) as usize;
            let bytes = (PAGE_BYTES - from).min((end - at) as usize);
            let number = at / PAGE_BYTES as u64;
            at += bytes as u64;
            (number, from, bytes)
        })
    })
}

impl VfsFile for PageFile {
    fn read(&mut self, buf: &mut [u8], offset: u64) -> VfsResult<usize> {
        let available = self.length().saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        for (number, from, bytes) in parts(offset, available) {
            self.read_page(number, from, &mut buf[done..done + bytes])?;
            done += bytes;
        }
        Ok(available)
    }

    fn write(&mut self, buf: &[u8], offset: u64) -> VfsResult<()> {
        let mut done = 0;
        for (number, from, bytes) in parts(offset, buf.len()) {
            let data = &buf[done..done + bytes];
            done += bytes;
            if bytes == PAGE_BYTES {
                self.unsynced.insert(number, data.into());
            } else {
                let mut page = vec![0; PAGE_BYTES].into_boxed_slice();
                self.read_page(number, 0, &mut page)?;
                page[from..from + bytes].copy_from_slice(data);
                self.unsynced.insert(number, page);
            }
            self.pages = self.pages.max(number + 1);
        }
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> VfsResult<()> {
        self.pages = size.div_ceil(PAGE_BYTES as u64).min(self.pages);
        self.unsynced.split_off(&self.pages);
        if self.pages < self.stored {
            self.stored = self.pages;
            self.truncated = true;
        }
        Ok(())
    }

    fn sync(&mut self, _options: SyncOptions) -> VfsResult<()> {
        if self.unsynced.is_empty() && !self.truncated {
            return Ok(());
        }
        let stored = self.truncated.then_some(self.stored);
        self.store.commit(stored, &self.unsynced).map_err(|error| failed(VfsErrorCode::IoSync, &error))?;
        self.unsynced.clear();
        self.stored = self.pages;
        self.truncated = false;
        Ok(())
    }

    fn size(&self) -> VfsResult<u64> {
        Ok(self.length())
    }

    // An object has one connection to its database, and nobody else can reach it.
    fn lock(&mut self, _level: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn unlock(&mut self, _level: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn check_reserved_lock(&self) -> VfsResult<bool> {
        Ok(false)
    }
}

/// A file SQLite opens: the database on its pages, or a temporary one in memory.
enum File {
    Pages(PageFile),
    Memory(MemChunksFile),
}

impl VfsFile for File {
    fn read(&mut self, buf: &mut [u8], offset: u64) -> VfsResult<usize> {
        match self {
            Self::Pages(file) => file.read(buf, offset),
            Self::Memory(file) => file.read(buf, offset),
        }
    }

    fn write(&mut self, buf: &[u8], offset: u64) -> VfsResult<()> {
        match self {
            Self::Pages(file) => file.write(buf, offset),
            Self::Memory(file) => file.write(buf, offset),
        }
    }

    fn truncate(&mut self, size: u64) -> VfsResult<()> {
        match self {
            Self::Pages(file) => file.truncate(size),
            Self::Memory(file) => file.truncate(size),
        }
    }

    fn sync(&mut self, options: SyncOptions) -> VfsResult<()> {
        match self {
            Self::Pages(file) => file.sync(options),
            Self::Memory(file) => file.sync(options),
        }
    }

    fn size(&self) -> VfsResult<u64> {
        match self {
            Self::Pages(file) => file.size(),
            Self::Memory(file) => file.size(),
        }
    }

    fn lock(&mut self, _level: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn unlock(&mut self, _level: LockLevel) -> VfsResult<()> {
        Ok(())
    }

    fn check_reserved_lock(&self) -> VfsResult<bool> {
        Ok(false)
    }
}

struct PageFiles;

impl VfsStore for PageFiles {
    type File = File;
    type AppData = PageVfs;

    fn open_file(_data: &PageVfs, request: OpenRequest<'_>) -> VfsResult<OpenedFile<File>> {
        let file = match request.filename {
            None => File::Memory(MemChunksFile::new(PAGE_BYTES)),
            Some(name) => {
                let store = STORES.with_borrow(|stores| stores.get(name.path()).map(Rc::clone)).ok_or_else(|| {
                    VfsError::new(VfsErrorCode::CantOpen, format!("no object holds a file {}", name.path()).into())
                })?;
                File::Pages(PageFile::open(store)?)
            }
        };
        Ok(OpenedFile { file, access: OpenAccess::ReadWrite })
    }

    fn close_file(_data: &PageVfs, name: Option<&str>, file: File, _options: OpenOptions) -> VfsResult<()> {
        // An object's next life may have attached its own storage under this name already.
        if let (Some(name), File::Pages(file)) = (name, file) {
            STORES.with_borrow_mut(|stores| match stores.get(name) {
                Some(store) if Rc::ptr_eq(store, &file.store) => drop(stores.remove(name)),
                _ => {}
            });
        }
        Ok(())
    }

    fn access(_data: &PageVfs, name: &str, _mode: AccessMode) -> VfsResult<bool> {
        // Journals are kept in memory, so that there is never one to recover from.
        Ok(STORES.with_borrow(|stores| stores.contains_key(name)))
    }

    fn full_pathname(_data: &PageVfs, name: &str) -> VfsResult<String> {
        Ok(name.to_owned())
    }

    fn delete_file(_data: &PageVfs, name: &str, _sync_dir: bool) -> VfsResult<()> {
        Err(VfsError::new(VfsErrorCode::IoDelete, format!("{name} cannot be deleted").into()))
    }

    fn record_error(_data: &PageVfs, error: VfsError) {
        // A new database's first read finds an empty file.
        if error.code() != VfsErrorCode::IoShortRead {
            tracing::error!(%error, "storage failed");
        }
    }
}

struct PageIo;

impl SQLiteIoMethods for PageIo {
    type Store = PageFiles;
}

/// The VFS, and what it needs of the platform: a clock and randomness.
struct PageVfs;

impl SQLiteVfs<PageIo> for PageVfs {
    type Os = Self;

    fn os(data: &Self) -> &Self {
        data
    }
}

impl OsCallback for PageVfs {
    fn sleep(&self, _dur: Duration) {
        // SQLite sleeps only while it waits for a lock, and there are none.
    }

    fn random(&self, buf: &mut [u8]) -> usize {
        if getrandom::fill(buf).is_ok() { buf.len() } else { 0 }
    }

    fn epoch_timestamp_in_ms(&self) -> VfsResult<i64> {
        Ok(js_sys::Date::now() as i64)
    }
}

fn failed(code: VfsErrorCode, error: &JsValue) -> VfsError {
    VfsError::new(code, crate::reach::describe(error).into())
}
