//! The router over real shards on the embedded host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests are outside the actors: they have files, an environment and a plain SQLite"
)]

mod batches;
mod checks;
mod errors;
mod fuzzed;
mod limits;
mod lookups;
mod oracle;
mod plans;
mod renames;
mod sequences;
mod transactions;
mod vindexes;
mod vschema;

use std::path::PathBuf;

use dosql_actors::host::actix::{Client, Node, NodeConfig};
use dosql_actors::runtime::{AutoShard, Call, Settings};
use dosql_actors::shard::Shard;
use dosql_proto::{
    Error, ExecuteRequest, QueryRequest, RouterProtocol, RouterRequest, Row, Statement, StatementResult, Value,
    router_reply::Reply, router_request::Request,
};
use dosql_router::Router;

/// A router and its shards.
struct Database {
    node: Node,
    client: Client,
    data_dir: PathBuf,
    settings: Settings,
}

impl Database {
    fn new(name: &str, shards: u32, vschema: &str, auto_shard: AutoShard) -> Self {
        Self::new_on(2, name, shards, vschema, auto_shard)
    }

    /// A new one on so many threads.
    fn new_on(arbiters: usize, name: &str, shards: u32, vschema: &str, auto_shard: AutoShard) -> Self {
        let data_dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("router-{name}-{shards}"));
        let _ = std::fs::remove_dir_all(&data_dir);
        let settings = Settings { shard_count: shards, vschema: vschema.to_owned(), auto_shard, ..Settings::default() };
        Self::start_on(arbiters, data_dir, settings)
    }

    fn start(data_dir: PathBuf, settings: Settings) -> Self {
        Self::start_on(2, data_dir, settings)
    }

    fn start_on(arbiters: usize, data_dir: PathBuf, settings: Settings) -> Self {
        let with_shards = dosql_router::with_shards(settings.clone());
        let config =
            NodeConfig { data_dir: data_dir.clone(), arbiters, settings: with_shards, ..NodeConfig::default() };
        let node = Node::new(config).unwrap();
        node.register::<Shard>().unwrap();
        node.register_apart::<Router>().unwrap();
        let client = node.client();
        Self { node, client, data_dir, settings }
    }

    /// The same data with another VSchema.
    async fn restart(self, vschema: &str) -> Self {
        let Self { node, client, data_dir, settings } = self;
        drop(client);
        node.stop().await;
        Self::start(data_dir, Settings { vschema: vschema.to_owned(), ..settings })
    }

    async fn ask(&self, request: Request) -> Result<Reply, Error> {
        let request = RouterRequest { request: Some(request) };
        let reply = self.client.ask::<RouterProtocol>("default", request, &Call::system()).await?;
        Ok(reply.reply.unwrap())
    }

    async fn execute(&self, sql: &str, params: &[Value]) -> Result<StatementResult, Error> {
        let statement = Some(Statement { sql: sql.to_owned(), params: params.to_vec() });
        match self.ask(Request::Execute(ExecuteRequest { statement, ..ExecuteRequest::default() })).await? {
            Reply::Execute(response) => Ok(response.result.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// All rows, in small batches.
    async fn stream(&self, sql: &str, params: &[Value]) -> Result<Vec<Row>, Error> {
        let statement = Some(Statement { sql: sql.to_owned(), params: params.to_vec() });
        let mut request = Request::Query(QueryRequest { statement, max_batch_bytes: 64, ..QueryRequest::default() });
        let mut rows = Vec::new();
        loop {
            let Reply::Rows(batch) = self.ask(request).await? else { panic!("no rows") };
            rows.extend(batch.rows);
            if batch.cursor == 0 {
                return Ok(rows);
            }
            request = Request::Fetch(dosql_proto::FetchRequest { cursor: batch.cursor });
        }
    }
}
