//! Object storage on an R2 bucket.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use dosql_actors::{ObjectError, ObjectMeta, ObjectStore};
use js_sys::{Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use worker::{Bucket, GetOptionsBuilder, Headers, Range as R2Range};

#[wasm_bindgen]
extern "C" {
    /// The bucket's binding, for the conditional put that the `worker` crate does not offer.
    type R2Binding;

    #[wasm_bindgen(method, catch)]
    async fn put(this: &R2Binding, key: &str, value: &Uint8Array, options: &Object) -> Result<JsValue, JsValue>;
}

/// The bucket behind one binding.
pub(crate) struct R2 {
    bucket: Bucket,
    /// What URLs of its objects start with, without a `/` at the end.
    root: String,
}

impl R2 {
    pub(crate) fn new(bucket: Bucket, root: &str) -> Self {
        Self { bucket, root: root.trim_end_matches('/').to_owned() }
    }
}

fn failed(path: &str, reason: impl ToString) -> ObjectError {
    ObjectError::Failed { path: path.to_owned(), reason: reason.to_string() }
}

#[async_trait(?Send)]
impl ObjectStore for R2 {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        fetch(path, self.bucket.get(path)).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        if range.is_empty() {
            return Err(ObjectError::bad_range(path, &range, None));
        }
        let wanted = R2Range::OffsetWithLength { offset: range.start, length: range.end - range.start };
        fetch(path, self.bucket.get(path).range(wanted)).await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let stored = self.bucket.put(path, Vec::from(bytes)).execute().await.map_err(|error| failed(path, error))?;
        stored.map(drop).ok_or_else(|| failed(path, "the bucket did not store it"))
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let stored =
            create(&self.bucket, path, &bytes).await.map_err(|error| failed(path, crate::reach::describe(&error)))?;
        // The bucket answers null where the condition did not hold.
        if stored.is_null() { Err(ObjectError::AlreadyExists { path: path.to_owned() }) } else { Ok(()) }
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        self.bucket.delete(path).await.map_err(|error| failed(path, error))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let mut found = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request = self.bucket.list().prefix(prefix);
            if let Some(cursor) = cursor {
                request = request.cursor(cursor);
            }
            let page = request.execute().await.map_err(|error| failed(prefix, error))?;
            found.extend(page.objects().into_iter().map(|object| ObjectMeta {
                path: object.key(),
                size: object.size(),
                modified_ms: object.uploaded().as_millis(),
            }));
            cursor = page.cursor().filter(|_| page.truncated());
            if cursor.is_none() {
                break;
            }
        }
        // R2 lists in this order too; the trait promises it.
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }
}

/// What the bucket answers to a read.
async fn fetch(path: &str, read: GetOptionsBuilder<'_>) -> Result<Option<Bytes>, ObjectError> {
    let object = read.execute().await.map_err(|error| failed(path, error))?;
    let Some(object) = object else { return Ok(None) };
    let body = object.body().ok_or_else(|| failed(path, "the object came without a body"))?;
    let bytes = body.bytes().await.map_err(|error| failed(path, error))?;
    Ok(Some(bytes.into()))
}

/// Puts the object where none of that name exists; the answer is null where one does.
async fn create(bucket: &Bucket, path: &str, bytes: &[u8]) -> Result<JsValue, JsValue> {
    let headers = Headers::new();
    headers.set("If-None-Match", "*").map_err(JsValue::from)?;
    let options = Object::new();
    Reflect::set(&options, &"onlyIf".into(), headers.0.as_ref())?;
    let binding: &JsValue = bucket.as_ref();
    binding.unchecked_ref::<R2Binding>().put(path, &Uint8Array::from(bytes), &options).await
}
