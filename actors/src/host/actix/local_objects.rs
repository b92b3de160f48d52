//! Object storage in a local directory.

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

    async fn write(&self, path: &str, bytes: Bytes, exclusive: bool) -> Result<(), ObjectError> {
        let failed = |reason: String| ObjectError::Failed { path: path.to_owned(), reason };
        let file = self.store.path_to_filesystem(&locate(path)?).map_err(|error| failed(error.to_string()))?;
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let (root, staged) = (Arc::clone(&self.root), self.root.join(STAGING).join(number.to_string()));
        // In one go: each turn taken beside the event loop costs more than most of the steps.
        let written = tokio::task::spawn_blocking(move || {
            let outcome = write_durably(&root, &staged, &file, &bytes, exclusive);
            if exclusive || outcome.is_err() {
                // It may not be there; what stays behind is removed at the next start.
                let _ = fs::remove_file(&staged);
            }
            outcome
        });
        match written.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(ObjectError::AlreadyExists { path: path.to_owned() }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Writes a file under its staging name, flushes it, and gives it its name; says whether it could, which it cannot where that
/// must be `exclusive` and is taken.
fn write_durably(
    root: &FilePath,
    staged: &FilePath,
    file: &FilePath,
    bytes: &[u8],
    exclusive: bool,
) -> io::Result<bool> {
    let mut writer = fs::File::create(staged)?;
    writer.write_all(bytes)?;
    writer.sync_all()?;
    let directory = file.parent().unwrap_or(root);
    create_directories(root, directory)?;
    if !exclusive {
        fs::rename(staged, file)?;
    } else if let Err(error) = fs::hard_link(staged, file) {
        return if error.kind() == io::ErrorKind::AlreadyExists { Ok(false) } else { Err(error) };
    }
    sync_directory(directory)?;
    Ok(true)
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
        self.write(path, bytes, false).await
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.write(path, bytes, true).await
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
