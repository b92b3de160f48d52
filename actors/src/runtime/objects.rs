//! Object storage as actors see it.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use dosql_proto::{Error, ErrorCode};

/// A store of named, immutable-by-convention byte strings: a local directory, R2, S3, or the simulator's.
///
/// Paths are relative, `/`-separated and without `.` or `..`. A `put` or `create` that returned `Ok` survives any crash; one
/// that failed may or may not have taken effect.
#[async_trait(?Send)]
pub trait ObjectStore {
    /// The object's bytes, or `None` where there is no such object.
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError>;

    /// The bytes of `range`, which begins within the object and is not empty, or `None` where there is no such object. What of
    /// it lies beyond the object's end is left out. Only these bytes are fetched.
    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError>;

    /// Writes the object, replacing one of that name.
    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError>;

    /// Writes these objects, in any order, replacing those of their names. After an error any of them may have been written.
    /// Where objects are flushed to a disk, that costs less for several at once.
    async fn put_all(&self, objects: Vec<(String, Bytes)>) -> Result<(), ObjectError> {
        for (path, bytes) in objects {
            self.put(&path, bytes).await?;
        }
        Ok(())
    }

    /// Writes the object only where none of that name exists: the atomic step of an optimistic commit.
    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError>;

    /// Deletes the object; deleting one that does not exist succeeds.
    async fn delete(&self, path: &str) -> Result<(), ObjectError>;

    /// Every object whose path starts with `prefix`, in the order of their paths.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError>;

    /// What a path is called by programs outside (a `file://` or `s3://` URL): Iceberg metadata names its files so.
    fn url(&self, path: &str) -> String;
}

/// An object's listing entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written, in milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

/// Why an object could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// `create` found an object of that name.
    #[error("object {path} exists already")]
    AlreadyExists {
        /// The path.
        path: String,
    },
    /// Anything else; the write may have taken effect.
    #[error("object storage failed on {path}: {reason}")]
    Failed {
        /// The path.
        path: String,
        /// What the store said.
        reason: String,
    },
}

impl ObjectError {
    /// A range that no object, or none of this length, has.
    #[must_use]
    pub fn bad_range(path: &str, range: &Range<u64>, length: Option<u64>) -> Self {
        let of = length.map_or(String::new(), |length| format!(" of {length}"));
        Self::Failed {
            path: path.to_owned(),
            reason: format!("there are no bytes {} to {}{of}", range.start, range.end),
        }
    }
}

/// The part of an object's bytes that [`ObjectStore::get_range`] answers, for stores that have all of them at hand.
///
/// # Errors
/// Where the range is empty or begins beyond the object's end.
pub fn range_of(path: &str, bytes: &Bytes, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let length = bytes.len() as u64;
    if range.is_empty() || range.start >= length {
        return Err(ObjectError::bad_range(path, &range, Some(length)));
    }
    // Both fit, as they are at most the length.
    Ok(bytes.slice(range.start as usize..range.end.min(length) as usize))
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::AlreadyExists { .. } => Self::retryable(ErrorCode::Conflict, error.to_string(), 0),
            ObjectError::Failed { .. } => Self::retryable(ErrorCode::ObjectStore, error.to_string(), 1000),
        }
    }
}
