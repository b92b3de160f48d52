//! The embedded host: one process, a pool of arbiter threads that any number of actors share.
//!
//! An actor starts on the first message to it, on the arbiter that its address hashes to, among those for its kind. Everything it
//! stores lives under one data directory:
//!
//! ```text
//! DATA_DIR/LOCK                          held while a node runs
//! DATA_DIR/actors/KIND/NAME.sqlite       an actor's own database (WAL mode, synchronous=FULL)
//! DATA_DIR/actors/KIND/NAME.alarm        when its alarm was last set for
//! DATA_DIR/lake/...                      object storage, where it is not a bucket
//! ```

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this host is what implements the context: clocks, threads, files and locks end here"
)]

mod access;
mod cell;
mod client;
mod data_dir;
mod directory;
mod http;
mod local_host;
mod local_objects;
mod node;
mod s3_objects;
mod threads;

pub use client::Client;
pub use data_dir::DataDirError;
pub use node::{Node, NodeConfig, NodeError};
pub use s3_objects::S3Settings;
pub use threads::keep_a_timer_due;
