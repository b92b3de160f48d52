//! Object storage in a local directory.

use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _};

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
        let location = locate(path)?;
        let staged = Path::from(format!("{STAGING}/{}", self.staged.fetch_add(1, Ordering::Relaxed)));
        let outcome = async {
            self.store.put(&staged, bytes.into()).await?;
            let staged_file = self.store.path_to_filesystem(&staged)?;
            let directory = self.parent_of(&location)?;
            let root = Arc::clone(&self.root);
            blocking(move || {
                fs::File::open(staged_file)?.sync_all()?;
                create_directories(&root, &directory)
            })
            .await?;
            if exclusive {
                self.store.copy_if_not_exists(&staged, &location).await?;
            } else {
                self.store.rename(&staged, &location).await?;
            }
            let directory = self.parent_of(&location)?;
            blocking(move || sync_directory(&directory)).await
        }
        .await;
        if exclusive || outcome.is_err() {
            // It may not be there; what stays behind is removed at the next start.
            let _ = self.store.delete(&staged).await;
        }
        outcome.map_err(|error| match error {
            StoreError::AlreadyExists { .. } => ObjectError::AlreadyExists { path: path.to_owned() },
            error => failed(error.to_string()),
        })
    }

    fn parent_of(&self, location: &Path) -> Result<PathBuf, StoreError> {
        let file = self.store.path_to_filesystem(location)?;
        Ok(file.parent().unwrap_or(&self.root).to_owned())
    }
}

/// Runs file work beside the arbiter's event loop.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), StoreError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Generic { store: "local", source };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
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
