//! The data directory: who may use it, and where in it everything lies.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dosql_proto::{Address, Error};

/// Longest kind or name of an actor, in bytes: with every suffix it fits the 255 that file systems allow.
const LONGEST_NAME: usize = 200;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds it.
    #[error("the data directory {} is in use by another process (process {process})", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of the holder.
        process: String,
    },
    /// It cannot be created, read or written.
    #[error("the data directory {} cannot be used: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
}

/// Holds the directory while it lives; the operating system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct DataDirLock {
    _file: File,
}

impl DataDir {
    /// Creates the directory where it is missing and takes hold of it.
    pub(super) fn open(path: &Path) -> Result<(Self, DataDirLock), DataDirError> {
        let failed = |source| DataDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path.join("actors")).map_err(failed)?;
        fs::create_dir_all(path.join("lake")).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let lock_path = path.join("LOCK");
        let mut lock =
            File::options().create(true).truncate(false).read(true).write(true).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&lock_path).unwrap_or_default().trim().to_owned();
                return Err(DataDirError::InUse { path, process });
            }
            Err(TryLockError::Error(source)) => return Err(DataDirError::Io { path, source }),
        }
        lock.set_len(0).map_err(failed)?;
        lock.write_all(std::process::id().to_string().as_bytes()).map_err(failed)?;
        sync_directory(&path).map_err(failed)?;
        Ok((Self { path }, DataDirLock { _file: lock }))
    }

    /// Where objects lie.
    pub(super) fn objects(&self) -> PathBuf {
        self.path.join("lake")
    }

    /// The actor's file with this suffix.
    pub(super) fn actor_file(&self, address: &Address, suffix: &str) -> PathBuf {
        self.path.join("actors").join(&address.kind).join(format!("{}.{suffix}", address.name))
    }

    /// Creates the directory of a kind of actors.
    pub(super) fn prepare_kind(&self, kind: &str) -> Result<(), DataDirError> {
        let failed = |source| DataDirError::Io { path: self.path.clone(), source };
        fs::create_dir_all(self.path.join("actors").join(kind)).map_err(failed)?;
        sync_directory(&self.path.join("actors")).map_err(failed)
    }

    /// The names of the actors of `kind` that have a file with this suffix.
    pub(super) fn names(&self, kind: &str, suffix: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join("actors").join(kind))? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(suffix)).and_then(|name| name.strip_suffix('.'));
            names.extend(stem.map(str::to_owned));
        }
        Ok(names)
    }
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Refuses an address whose parts are not file names made of `A-Z a-z 0-9 _ . -`.
pub(super) fn validate(address: &Address) -> Result<(), Error> {
    for part in [&address.kind, &address.name] {
        let usable = !part.is_empty()
            && part.len() <= LONGEST_NAME
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !usable {
            return Err(Error::invalid(format!(
                "{part:?} cannot name an actor: 1 to {LONGEST_NAME} of A-Z a-z 0-9 _ . - not starting with a dot"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for name in ["", "..", ".hidden", "a/b", "a\\b", "a\0", "é", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(validate(&Address::new("shard", name)).is_err(), "{name:?}");
        }
        assert!(validate(&Address::new("shard", "shard-3.old_1")).is_ok());
    }
}
