//! A node of so many shards, in a directory of its own, for tests that send it SQL.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dosql_actors::Call;
use dosql_actors::host::actix::{Client, Node, NodeConfig, NodeError};
use dosql_actors::runtime::{AutoShard, Settings};
use dosql_actors::shard::Shard;
use dosql_proto::{
    Error, ExecuteRequest, OpenSession, RouterProtocol, RouterRequest, Statement, StatementResult, router_reply::Reply,
    router_request::Request,
};
use dosql_router::Router;

/// The node; its directory goes with it.
pub struct Sharded {
    node: Option<Node>,
    client: Client,
    directory: PathBuf,
}

impl Sharded {
    /// A node whose tables are sharded by their first column.
    ///
    /// # Errors
    /// Where its directory or threads cannot be made.
    pub fn new(shards: u32) -> Result<Self, NodeError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = temporary().join(format!("dosql-sharded-{}-{number}", std::process::id()));
        let settings = Settings {
            shard_count: shards,
            max_parallel_shards: 16,
            query_timeout_ms: 300_000,
            shard_timeout_ms: 300_000,
            auto_shard: AutoShard::FirstColumn,
            ..Settings::default()
        };
        let config = NodeConfig { data_dir: directory.clone(), arbiters: 1, settings, ..NodeConfig::default() };
        let node = Node::new(config)?;
        node.register::<Shard>()?;
        node.register::<Router>()?;
        Ok(Self { client: node.client(), node: Some(node), directory })
    }

    /// For asking it.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

impl Drop for Sharded {
    fn drop(&mut self) {
        drop(self.node.take());
        // What is left of it is in a temporary directory.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Memory where there is a file system in it: what a disk does is not the subject here.
fn temporary() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Has the router run one statement.
///
/// # Errors
/// The router's.
pub async fn execute(client: &Client, sql: &str) -> Result<StatementResult, Error> {
    execute_in(client, "", sql).await
}

/// Has the router run one statement in a session; an empty token stands for none.
///
/// # Errors
/// The router's.
pub async fn execute_in(client: &Client, session: &str, sql: &str) -> Result<StatementResult, Error> {
    let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
    let request = ExecuteRequest { statement, session: session.to_owned(), ..ExecuteRequest::default() };
    match ask(client, Request::Execute(request)).await? {
        Some(Reply::Execute(response)) => Ok(response.result.unwrap_or_default()),
        _ => Err(Error::internal("the router answered an Execute with something else")),
    }
}

/// Opens a session and returns its token.
///
/// # Errors
/// The router's.
pub async fn open_session(client: &Client) -> Result<String, Error> {
    match ask(client, Request::OpenSession(OpenSession {})).await? {
        Some(Reply::Session(opened)) => Ok(opened.session),
        _ => Err(Error::internal("the router answered an OpenSession with something else")),
    }
}

async fn ask(client: &Client, request: Request) -> Result<Option<Reply>, Error> {
    let request = RouterRequest { request: Some(request) };
    Ok(client.ask::<RouterProtocol>("default", request, &Call::system()).await?.reply)
}
