//! A node: the arbiters, the data directory and the actors of one process.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use actix_rt::System;
use futures_channel::oneshot;
use futures_util::future::join_all;

use super::client::Client;
use super::data_dir::{DataDir, DataDirError, DataDirLock};
use super::directory::{Directory, Objects};
use super::local_objects::LocalObjects;
use super::s3_objects::{S3Objects, S3Settings};
use super::threads;
use crate::runtime::{Actor, Settings};

/// How long [`Node::stop`] waits for actors to finish what they were sent.
const GRACE: Duration = Duration::from_secs(20);

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where everything is stored; created where it is missing.
    pub data_dir: PathBuf,
    /// Number of arbiter threads; 0: as many as there are cores.
    pub arbiters: usize,
    /// Messages that one actor's mailbox holds before it answers `OVERLOADED`.
    pub mailbox_capacity: usize,
    /// Bytes that all shards' page caches together may take; shared out evenly, 64 KiB to 16 MiB each.
    pub cache_bytes: u64,
    /// The bucket that holds the objects; without one they lie in the data directory.
    pub bucket: Option<S3Settings>,
    /// The system's settings.
    pub settings: Settings,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("dosql-data"),
            arbiters: 0,
            mailbox_capacity: 1024,
            cache_bytes: 64 << 20,
            bucket: None,
            settings: Settings::default(),
        }
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The operating system refused a thread or its event loop.
    #[error("cannot start the arbiter threads: {0}")]
    Threads(#[source] io::Error),
    /// Object storage cannot be used.
    #[error("cannot open object storage: {0}")]
    Objects(#[source] io::Error),
    /// The alarms that actors left cannot be read.
    #[error("cannot read the alarms: {0}")]
    Alarms(#[source] io::Error),
}

/// The actors of one process and the threads they share. Dropping it ends them where they stand, as a crash would; see
/// [`stop`](Self::stop).
pub struct Node {
    directory: Arc<Directory>,
    system: System,
    thread: Option<JoinHandle<()>>,
    /// Let go of last, when no thread uses the directory any more.
    _lock: DataDirLock,
}

impl Node {
    /// Takes hold of the data directory and starts the arbiters. No actor runs yet.
    ///
    /// # Errors
    /// Where the directory is in use or unusable, or no thread can be started.
    pub fn new(config: NodeConfig) -> Result<Self, NodeError> {
        let (data_dir, lock) = DataDir::open(&config.data_dir)?;
        let objects = match &config.bucket {
            Some(bucket) => Objects::S3(S3Objects::open(bucket).map_err(NodeError::Objects)?),
            None => Objects::Local(LocalObjects::open(data_dir.objects()).map_err(NodeError::Objects)?),
        };
        let arbiters = match config.arbiters {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            number => number,
        };
        let (system, threads, thread) = threads::start(arbiters).map_err(NodeError::Threads)?;
        let cache_bytes =
            (config.cache_bytes / u64::from(config.settings.shard_count.max(1))).clamp(64 << 10, 16 << 20);
        let directory = Directory::new(
            data_dir,
            objects,
            Arc::new(config.settings),
            cache_bytes,
            config.mailbox_capacity.max(1),
            threads,
        );
        Ok(Self { directory: Arc::new(directory), system, thread: Some(thread), _lock: lock })
    }

    /// Makes a kind of actor known: from now on messages to its addresses start it.
    ///
    /// # Errors
    /// Where its directory cannot be created.
    pub fn register<A: Actor>(&self) -> Result<(), NodeError> {
        Ok(self.directory.register::<A>(false)?)
    }

    /// Like [`register`](Self::register), for a kind that everything goes through: where there are four arbiters or more, one is for
    /// such kinds alone, so that no other actor's work holds them up.
    ///
    /// # Errors
    /// As `register`.
    pub fn register_apart<A: Actor>(&self) -> Result<(), NodeError> {
        Ok(self.directory.register::<A>(true)?)
    }

    /// Starts every actor that had set its alarm before the process ended, so that it rings. To be called once, after every
    /// kind is registered. An alarm that has rung already may ring once more.
    ///
    /// # Errors
    /// Where the alarm files cannot be read.
    pub fn resume(&self) -> Result<(), NodeError> {
        self.directory.resume().map_err(NodeError::Alarms)
    }

    /// For asking the actors.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(Arc::clone(&self.directory))
    }

    /// Refuses new messages, lets every actor finish what its mailbox holds, closes the databases and ends the threads. What an
    /// actor left running beside its mailbox is dropped. Gives up on an actor after 20 seconds; it loses nothing that was
    /// acknowledged.
    pub async fn stop(self) {
        let (finished, all_ended) = oneshot::channel();
        let ended = self.directory.close();
        let number = ended.len();
        self.system.arbiter().spawn(async move {
            if tokio::time::timeout(GRACE, join_all(ended)).await.is_err() {
                tracing::warn!(actors = number, "some actors did not end in time");
            }
            // The node may have been dropped meanwhile.
            let _ = finished.send(());
        });
        // An error means that the threads are gone already.
        let _ = all_ended.await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.directory.close();
        self.system.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that runs the arbiters panicked");
        }
    }
}
