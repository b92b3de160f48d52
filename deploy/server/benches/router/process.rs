//! A `dosql serve` process.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::{ExecuteRequest, QueryOptions, Row, Statement, StatementResult, Value};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::measure;

/// The server under test.
pub(crate) struct Server {
    process: Child,
    url: String,
    http: String,
    pub(crate) queries: QueryServiceClient<Channel>,
    health: HealthClient<Channel>,
}

impl Server {
    pub(crate) async fn start(data_dir: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_dosql"))
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .envs(settings.iter().copied())
            .env("LOG_LEVEL", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready =
            lines.find_map(|line| Some(line.unwrap().strip_prefix("dosql is ready grpc=")?.to_owned())).unwrap();
        let (grpc, http) = ready.split_once(" http=").unwrap();
        let (url, http) = (format!("http://{grpc}"), http.to_owned());
        let channel = Endpoint::from_shared(url.clone()).unwrap().tcp_nodelay(true).connect().await.unwrap();
        let queries = QueryServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        Self { process, url, http, queries, health: HealthClient::new(channel) }
    }

    /// The URL of a WebSocket at this path.
    pub(crate) fn websocket(&self, path: &str) -> String {
        format!("ws://{}{path}", self.http)
    }

    /// Runs `dosql` with these arguments against this server.
    pub(crate) fn run(&self, arguments: &[&str]) {
        let done =
            Command::new(env!("CARGO_BIN_EXE_dosql")).args(arguments).args(["--url", &self.url]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub(crate) async fn execute(&self, sql: &str, params: &[Value], options: QueryOptions) -> StatementResult {
        let statement = Some(Statement { sql: sql.to_owned(), params: params.to_vec() });
        let request = ExecuteRequest { statement, options: Some(options), ..ExecuteRequest::default() };
        let answer = self.queries.clone().execute(request).await;
        answer.unwrap_or_else(|status| panic!("{sql}: {}", status.message())).into_inner().result.unwrap()
    }

    /// Runs a statement and hands its rows over as they come.
    pub(crate) async fn stream(&self, sql: &str, mut take: impl FnMut(Row)) {
        let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
        let request = dosql_proto::QueryRequest { statement, ..Default::default() };
        let mut batches = self.queries.clone().query(request).await.unwrap().into_inner();
        while let Some(batch) = batches.message().await.unwrap() {
            batch.rows.into_iter().for_each(&mut take);
        }
    }

    /// A gRPC call that does nothing.
    pub(crate) async fn empty_call(&self) {
        self.health.clone().check(HealthCheckRequest::default()).await.unwrap();
    }

    /// The CPU time of the server so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        measure::cpu(self.process.id())
    }

    /// Waits until the server has nothing left to do, such as bringing what was written to the lake.
    pub(crate) async fn idle(&self) {
        let mut quiet = 0;
        while quiet < 4 {
            let before = self.cpu();
            tokio::time::sleep(Duration::from_millis(250)).await;
            quiet = if self.cpu() - before < 0.02 { quiet + 1 } else { 0 };
        }
    }

    /// The resident memory of the server, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Forgets the peak of the resident memory.
    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
    }

    /// The peak of the resident memory since it was forgotten, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        measure::memory(&self.process.id().to_string(), name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
