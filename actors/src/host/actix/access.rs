//! What the crate `object_store` answers, in the terms that actors know.

use std::ops::Range;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore as Store, ObjectStoreExt as _};

use crate::runtime::{ObjectError, ObjectMeta};

/// The error of an operation on `path`.
pub(super) fn failed(path: &str, error: &StoreError) -> ObjectError {
    match error {
        StoreError::AlreadyExists { .. } => ObjectError::AlreadyExists { path: path.to_owned() },
        error => ObjectError::Failed { path: path.to_owned(), reason: error.to_string() },
    }
}

/// Where the object stands.
pub(super) fn locate(path: &str) -> Result<Path, ObjectError> {
    let refused = |reason: String| ObjectError::Failed { path: path.to_owned(), reason };
    let location = Path::parse(path).map_err(|error| refused(error.to_string()))?;
    // `Path::parse` drops a leading and a trailing slash; such a path would then name another object than it says.
    if location.as_ref() != path || path.is_empty() {
        return Err(refused("not the path of an object".to_owned()));
    }
    Ok(location)
}

pub(super) async fn get(store: &impl Store, path: &str) -> Result<Option<Bytes>, ObjectError> {
    let found = match store.get(&locate(path)?).await {
        Ok(found) => found.bytes().await.map(Some),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    found.map_err(|error| failed(path, &error))
}

pub(super) async fn get_range(store: &impl Store, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
    if range.is_empty() {
        return Err(ObjectError::bad_range(path, &range, None));
    }
    match store.get_range(&locate(path)?, range).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

pub(super) async fn delete(store: &impl Store, path: &str) -> Result<(), ObjectError> {
    match store.delete(&locate(path)?).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(failed(path, &error)),
    }
}

pub(super) async fn list(store: &impl Store, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
    let refused = |reason: String| ObjectError::Failed { path: prefix.to_owned(), reason };
    // A store lists whole directories; a prefix may end within a name.
    let directory = match prefix.rsplit_once('/') {
        Some((directory, _)) => Some(Path::parse(directory).map_err(|error| refused(error.to_string()))?),
        None => None,
    };
    let mut found: Vec<ObjectMeta> = store
        .list(directory.as_ref())
        .map_ok(|object| ObjectMeta {
            path: object.location.to_string(),
            size: object.size,
            modified_ms: object.last_modified.timestamp_millis().try_into().unwrap_or(0),
        })
        .try_collect()
        .await
        .map_err(|error| failed(prefix, &error))?;
    found.retain(|object| object.path.starts_with(prefix));
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}
