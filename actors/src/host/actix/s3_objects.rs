//! Object storage in a bucket that speaks S3: AWS, R2 from outside, MinIO and others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, ops};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};

use super::access;
use crate::runtime::{ObjectError, ObjectMeta, ObjectStore, SettingsError};

/// Written once by each process, to see whether the store minds the condition of a put.
const PROBE: &str = "conditional-put-probe";
/// A whole file of the lake goes in one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An operation is retried for this long before its actor hears of it, which then has its own pace.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Which bucket, and how it is reached. Its `Debug` hides what is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// `DOLAKE_S3_BUCKET`.
    pub bucket: String,
    /// `DOLAKE_S3_ENDPOINT`: the store's URL; AWS where there is none.
    pub endpoint: Option<String>,
    /// `DOLAKE_S3_REGION`.
    pub region: String,
    /// `DOLAKE_S3_ACCESS_KEY_ID` and `DOLAKE_S3_SECRET_ACCESS_KEY`; without them, what AWS's own variables, the container or
    /// the machine give.
    pub key: Option<(String, String)>,
    /// `DOLAKE_S3_SESSION_TOKEN`: what a temporary key goes with.
    pub session_token: Option<String>,
    /// `DOLAKE_S3_PREFIX`: what the names of all objects begin with, without a `/` at either end; may be empty.
    pub prefix: String,
    /// `DOLAKE_S3_PATH_STYLE`: whether the bucket stands in the path, and not in the host's name.
    pub path_style: bool,
    /// `DOLAKE_S3_ALLOW_HTTP`: whether the endpoint may be plain HTTP.
    pub allow_http: bool,
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bucket, endpoint, region, prefix, path_style, .. } = self;
        write!(formatter, "S3Settings({bucket}, {endpoint:?}, {region}, {prefix:?}, path style {path_style})")
    }
}

impl S3Settings {
    /// Reads the settings `DOLAKE_S3_...`; `None` where no bucket is named.
    ///
    /// # Errors
    /// The first setting that is malformed, or lacks one it goes with.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, SettingsError> {
        let text = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let bad = |name: &'static str, reason: &str| SettingsError {
            name,
            value: variable(name).unwrap_or_default(),
            reason: reason.to_owned(),
        };
        let truth = |name: &'static str, default: bool| match text(name).as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(bad(name, "expected true or false")),
        };
        let Some(bucket) = text("DOLAKE_S3_BUCKET") else {
            // A lake that silently stays on the local disk would be found out late.
            if text("DOLAKE_S3_ENDPOINT").is_some() {
                return Err(bad("DOLAKE_S3_BUCKET", "DOLAKE_S3_ENDPOINT is set, and no bucket"));
            }
            return Ok(None);
        };
        if bucket.contains('/') {
            return Err(bad("DOLAKE_S3_BUCKET", "expected a bucket's name alone"));
        }
        let endpoint = text("DOLAKE_S3_ENDPOINT");
        let allow_http = truth("DOLAKE_S3_ALLOW_HTTP", false)?;
        match endpoint.as_deref() {
            Some(url) if url.starts_with("http://") && !allow_http => {
                return Err(bad("DOLAKE_S3_ENDPOINT", "plain HTTP needs DOLAKE_S3_ALLOW_HTTP=true"));
            }
            Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                return Err(bad("DOLAKE_S3_ENDPOINT", "expected a URL as https://HOST"));
            }
            _ => {}
        }
        let key = match (text("DOLAKE_S3_ACCESS_KEY_ID"), variable("DOLAKE_S3_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Some((id, secret)),
            (None, None) => None,
            (Some(_), None) => return Err(bad("DOLAKE_S3_ACCESS_KEY_ID", "DOLAKE_S3_SECRET_ACCESS_KEY is missing")),
            (None, Some(_)) => return Err(bad("DOLAKE_S3_ACCESS_KEY_ID", "it is missing, and the secret is there")),
        };
        let prefix = text("DOLAKE_S3_PREFIX").unwrap_or_default().trim_matches('/').to_owned();
        if !prefix.is_empty() && access::locate(&prefix).is_err() {
            return Err(bad("DOLAKE_S3_PREFIX", "expected names separated by single slashes"));
        }
        Ok(Some(Self {
            bucket,
            region: text("DOLAKE_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            key,
            session_token: text("DOLAKE_S3_SESSION_TOKEN"),
            prefix,
            path_style: truth("DOLAKE_S3_PATH_STYLE", endpoint.is_some())?,
            endpoint,
            allow_http,
        }))
    }
}

/// Objects in a bucket, below a prefix.
#[derive(Debug, Clone)]
pub(super) struct S3Objects {
    store: Arc<PrefixStore<AmazonS3>>,
    /// What URLs of its objects start with, without a `/` at the end.
    root: Arc<str>,
    /// Whether the store was seen to refuse a put whose condition does not hold.
    is_exclusive: Arc<AtomicBool>,
}

impl S3Objects {
    pub(super) fn open(settings: &S3Settings) -> io::Result<Self> {
        let S3Settings { bucket, endpoint, region, key, session_token, prefix, path_style, allow_http } = settings;
        let options = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
        let retries = RetryConfig { backoff: BackoffConfig::default(), max_retries: 3, retry_timeout: RETRY_TIMEOUT };
        let mut builder = match key {
            Some((id, secret)) => AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret),
            None => AmazonS3Builder::from_env(),
        };
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_region(region)
            .with_virtual_hosted_style_request(!path_style)
            .with_client_options(options)
            .with_allow_http(*allow_http)
            .with_retry(retries)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .build()
            .map_err(io::Error::other)?;
        let root = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix.as_str())),
            root: root.into(),
            is_exclusive: Arc::default(),
        })
    }

    async fn create_unchecked(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        let location = access::locate(path)
            .map_err(|error| StoreError::Generic { store: "S3", source: error.to_string().into() })?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&location, bytes.into(), options).await.map(drop)
    }

    /// Makes sure that the store minds the condition of a put. On one that does not, two writers would overwrite each other's
    /// commits.
    async fn require_conditions(&self) -> Result<(), ObjectError> {
        if self.is_exclusive.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.put(PROBE, Bytes::new()).await?;
        match self.create_unchecked(PROBE, Bytes::new()).await {
            Err(StoreError::AlreadyExists { .. }) => {}
            Ok(()) => {
                let reason = "the store does not honour If-None-Match, without which commits are not safe".to_owned();
                return Err(ObjectError::Failed { path: PROBE.to_owned(), reason });
            }
            Err(error) => return Err(access::failed(PROBE, &error)),
        }
        self.is_exclusive.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait(?Send)]
impl ObjectStore for S3Objects {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        access::get(&*self.store, path).await
    }

    async fn get_range(&self, path: &str, range: ops::Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        access::get_range(&*self.store, path, range).await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let location = access::locate(path)?;
        self.store.put(&location, bytes.into()).await.map(drop).map_err(|error| access::failed(path, &error))
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.require_conditions().await?;
        self.create_unchecked(path, bytes).await.map_err(|error| access::failed(path, &error))
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        access::delete(&*self.store, path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        access::list(&*self.store, prefix).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<S3Settings>, String> {
        let value = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        S3Settings::from_variables(value).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read_and_refused() {
        assert_eq!(read(&[]), Ok(None));
        let settings = read(&[("DOLAKE_S3_BUCKET", "lake"), ("DOLAKE_S3_PREFIX", "/a/b/")]).unwrap().unwrap();
        assert_eq!((settings.prefix.as_str(), settings.path_style, settings.key.is_none()), ("a/b", false, true));
        let secret = [
            ("DOLAKE_S3_BUCKET", "lake"),
            ("DOLAKE_S3_ACCESS_KEY_ID", "id"),
            ("DOLAKE_S3_SECRET_ACCESS_KEY", "hidden"),
            ("DOLAKE_S3_ENDPOINT", "https://storage.example"),
        ];
        let settings = read(&secret).unwrap().unwrap();
        assert!(settings.path_style && !format!("{settings:?}").contains("hidden"));
        for (pairs, named) in [
            (&[("DOLAKE_S3_ENDPOINT", "https://storage.example")][..], "DOLAKE_S3_BUCKET"),
            (&[("DOLAKE_S3_BUCKET", "a/b")], "DOLAKE_S3_BUCKET"),
            (&[("DOLAKE_S3_BUCKET", "a"), ("DOLAKE_S3_ENDPOINT", "http://x")], "DOLAKE_S3_ENDPOINT"),
            (&[("DOLAKE_S3_BUCKET", "a"), ("DOLAKE_S3_ENDPOINT", "x")], "DOLAKE_S3_ENDPOINT"),
            (&[("DOLAKE_S3_BUCKET", "a"), ("DOLAKE_S3_ACCESS_KEY_ID", "x")], "DOLAKE_S3_ACCESS_KEY_ID"),
            (&[("DOLAKE_S3_BUCKET", "a"), ("DOLAKE_S3_PREFIX", "a//b")], "DOLAKE_S3_PREFIX"),
            (&[("DOLAKE_S3_BUCKET", "a"), ("DOLAKE_S3_PATH_STYLE", "maybe")], "DOLAKE_S3_PATH_STYLE"),
        ] {
            let refusal = read(pairs).unwrap_err();
            assert!(refusal.starts_with(named), "{refusal}");
        }
    }
}
