//! Object storage in a local directory.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::access;
use super::data_dir::sync_directory;
use crate::runtime::{ObjectError, ObjectMeta, ObjectStore};

/// Where objects are written before they get their name. Not listed.
const STAGING: &str = ".staging";

/// Objects as files below a directory.
///
/// `object_store` does not flush what it writes, so each object is written under a staging name, flushed, and then renamed
/// (`put`) or linked (`create`) into place: a reader, and a restart after power failure, sees a whole object or none.
#[derive(Debug, Clone)]
pub(super) struct LocalObjects {
    store: LocalFileSystem,
    root: Arc<PathBuf>,
    staged: Arc<AtomicU64>,
}

impl LocalObjects {
    /// Opens the directory, which must exist, and removes what an earlier process left half written.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(root.join(STAGING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(root.join(STAGING))?,
        }
        let store = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { store, root: Arc::new(root), staged: Arc::default() })
    }

    /// Where an object is to stand, and where it is written before.
    fn draft(&self, path: String, bytes: Bytes) -> Result<Draft, ObjectError> {
        let located = self.store.path_to_filesystem(&locate(&path)?);
        let file = located.map_err(|error| failed(&path, &error))?;
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        Ok(Draft { path, bytes, file, staged: self.root.join(STAGING).join(number.to_string()) })
    }

    /// Does the work on some objects in one go: each turn taken beside the event loop costs more than most of the steps.
    async fn work(
        &self,
        drafts: Vec<Draft>,
        work: fn(&FilePath, &[Draft]) -> Result<(), ObjectError>,
    ) -> Result<(), ObjectError> {
        let (root, first) = (Arc::clone(&self.root), drafts.first().map(|draft| draft.path.clone()));
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work(&root, &drafts);
            if outcome.is_err() {
                // They may not be there; what stays behind is removed at the next start.
                drafts.iter().for_each(|draft| drop(fs::remove_file(&draft.staged)));
            }
            outcome
        });
        done.await.unwrap_or_else(|error| Err(failed(&first.unwrap_or_default(), &error)))
    }
}

/// An object to be written.
struct Draft {
    path: String,
    bytes: Bytes,
    file: PathBuf,
    staged: PathBuf,
}

fn failed(path: &str, error: &dyn Display) -> ObjectError {
    ObjectError::Failed { path: path.to_owned(), reason: error.to_string() }
}

/// Writes the files under their staging names and flushes them; makes and returns the directories that they are to stand in.
fn stage<'a>(root: &'a FilePath, drafts: &'a [Draft]) -> Result<BTreeSet<&'a FilePath>, ObjectError> {
    let write = |draft: &Draft| {
        let mut file = fs::File::create(&draft.staged)?;
        file.write_all(&draft.bytes)?;
        Ok(file)
    };
    let written = |draft: &'a Draft| {
        write(draft).map(|file| (draft, file)).map_err(|error: io::Error| failed(&draft.path, &error))
    };
    // Flushed when all are written: what the first flush has the file system's journal write is most of what the others need.
    let files: Vec<(&Draft, fs::File)> = drafts.iter().map(written).collect::<Result<_, _>>()?;
    let mut directories = BTreeSet::new();
    for (draft, file) in files {
        let directory = draft.file.parent().unwrap_or(root);
        let prepared = file.sync_all().and_then(|()| create_directories(root, directory));
        prepared.map_err(|error| failed(&draft.path, &error))?;
        directories.insert(directory);
    }
    Ok(directories)
}

/// Flushes the entries of these directories; an error is told of the first object.
fn sync_directories(directories: BTreeSet<&FilePath>, drafts: &[Draft]) -> Result<(), ObjectError> {
    let synced = directories.into_iter().try_for_each(sync_directory);
    synced.map_err(|error| failed(drafts.first().map_or("", |draft| &draft.path), &error))
}

fn put_durably(root: &FilePath, drafts: &[Draft]) -> Result<(), ObjectError> {
    let directories = stage(root, drafts)?;
    for draft in drafts {
        fs::rename(&draft.staged, &draft.file).map_err(|error| failed(&draft.path, &error))?;
    }
    sync_directories(directories, drafts)
}

/// Gives files their names only where those are free.
fn create_durably(root: &FilePath, drafts: &[Draft]) -> Result<(), ObjectError> {
    let directories = stage(root, drafts)?;
    for draft in drafts {
        fs::hard_link(&draft.staged, &draft.file).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ObjectError::AlreadyExists { path: draft.path.clone() },
            _ => failed(&draft.path, &error),
        })?;
        // What stays behind is removed at the next start.
        let _ = fs::remove_file(&draft.staged);
    }
    sync_directories(directories, drafts)
}

/// Creates `directory` below `root`, each new level durable in the one above.
fn create_directories(root: &FilePath, directory: &FilePath) -> io::Result<()> {
    if directory == root || directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_directories(root, parent)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_directory(parent)?,
        }
    }
    Ok(())
}

/// Where an object stands. What is being written is no object.
fn locate(path: &str) -> Result<Path, ObjectError> {
    match path.split('/').next() {
        Some(STAGING) => {
            Err(ObjectError::Failed { path: path.to_owned(), reason: "not the path of an object".to_owned() })
        }
        _ => access::locate(path),
    }
}

#[async_trait(?Send)]
impl ObjectStore for LocalObjects {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        locate(path)?;
        access::get(&self.store, path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        locate(path)?;
        access::get_range(&self.store, path, range).await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.put_all(vec![(path.to_owned(), bytes)]).await
    }

    async fn put_all(&self, objects: Vec<(String, Bytes)>) -> Result<(), ObjectError> {
        let drafts = objects.into_iter().map(|(path, bytes)| self.draft(path, bytes)).collect::<Result<_, _>>()?;
        self.work(drafts, put_durably).await
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let draft = self.draft(path.to_owned(), bytes)?;
        self.work(vec![draft], create_durably).await
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        locate(path)?;
        access::delete(&self.store, path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let mut found = access::list(&self.store, prefix).await?;
        found.retain(|object| !object.path.starts_with(".staging/"));
        Ok(found)
    }

    fn url(&self, path: &str) -> String {
        format!("file://{}/{path}", self.root.display())
    }
}
