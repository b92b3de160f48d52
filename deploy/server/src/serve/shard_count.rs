//! The number of shards of a data directory. Where a row lives depends on it, so it is written down once and never changes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Why a data directory cannot be served with a number of shards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardCountError {
    #[error(
        "the data in {} is spread over {existing} shards, which cannot be changed to {wanted}: \
         leave out --shards and SHARD_COUNT, or choose another --data-dir",
        data_dir.display()
    )]
    Different { data_dir: PathBuf, existing: u32, wanted: u32 },
    #[error("{} holds no number of shards but {text:?}", path.display())]
    Unreadable { path: PathBuf, text: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn file_of(data_dir: &Path) -> PathBuf {
    data_dir.join("SHARD_COUNT")
}

/// The number of shards to serve with: that of the data, else `wanted`.
pub(super) fn settle(data_dir: &Path, wanted: Option<u32>) -> Result<Option<u32>, ShardCountError> {
    let existing = read(data_dir)?;
    match (existing, wanted) {
        (Some(existing), Some(wanted)) if existing != wanted => {
            Err(ShardCountError::Different { data_dir: data_dir.to_owned(), existing, wanted })
        }
        _ => Ok(existing.or(wanted)),
    }
}

/// Writes the number down before the first row is written. To be called while holding the data directory.
pub(super) fn remember(data_dir: &Path, shards: u32) -> Result<(), ShardCountError> {
    if settle(data_dir, Some(shards))? == read(data_dir)? {
        return Ok(());
    }
    let path = file_of(data_dir);
    let failed = |source| ShardCountError::Io { path: path.clone(), source };
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished).map_err(failed)?;
    file.write_all(format!("{shards}\n").as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn read(data_dir: &Path) -> Result<Option<u32>, ShardCountError> {
    let path = file_of(data_dir);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(shards) => Ok(Some(shards)),
            Err(_) => Err(ShardCountError::Unreadable { path, text }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ShardCountError::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_never_changes() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(settle(directory.path(), None).unwrap(), None);
        assert_eq!(settle(directory.path(), Some(4)).unwrap(), Some(4));
        remember(directory.path(), 4).unwrap();
        remember(directory.path(), 4).unwrap();
        assert_eq!(settle(directory.path(), None).unwrap(), Some(4));
        let error = settle(directory.path(), Some(5)).unwrap_err().to_string();
        assert!(error.contains("over 4 shards") && error.contains("to 5"), "{error}");
        assert!(remember(directory.path(), 5).is_err());
    }
}
