//! `dosql serve`: one process with every actor in it, and the interfaces in front of them.

mod audience;
mod backend;
mod catalog;
mod changes;
mod conversation;
mod grpc;
mod http;
mod listen;
mod maintenance;
mod shard_count;
mod socket;
mod websocket;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::serve::ListenerExt as _;
use clap::Args;
use dosql_actors::cdc::Cdc;
use dosql_actors::host::actix::{Node, NodeConfig, NodeError, S3Settings, keep_a_timer_due};
use dosql_actors::runtime::{AutoShard, Settings, SettingsError};
use dosql_actors::shard::Shard;
use dosql_analytics::Analytics;
use dosql_lake::{Catalog, Lake};
use dosql_router::{Router, VSchema};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tracing_subscriber::EnvFilter;

use backend::Backend;
use shard_count::ShardCountError;

/// How long requests in progress may take to finish once the server is told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Options of `dosql serve`. Further settings come from the environment, as the operator's guide lists them.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = "./dosql-data")]
    data_dir: PathBuf,
    /// Address of the gRPC interface; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    grpc: String,
    /// Address of the HTTP interface; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: String,
    /// Number of shards [default: SHARD_COUNT, or that of the data]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    shards: Option<u32>,
    /// The VSchema, a JSON or TOML file
    #[arg(long, value_name = "FILE")]
    vschema: Option<PathBuf>,
    /// How a table without a VSchema entry is sharded: off, primary-key or first-column [default: AUTO_SHARD, or off]
    #[arg(long, value_name = "HOW", value_parser = parse_auto_shard)]
    auto_shard: Option<AutoShard>,
}

fn parse_auto_shard(text: &str) -> Result<AutoShard, &'static str> {
    text.parse()
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("LOG_LEVEL={0:?} is not usable: expected debug, info, warn or error")]
    LogLevel(String),
    #[error("the VSchema {} cannot be read: {source}", path.display())]
    VSchema { path: PathBuf, source: io::Error },
    #[error(transparent)]
    ShardCount(#[from] ShardCountError),
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("the router does not start: {0}")]
    Router(dosql_proto::Error),
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
}

/// Runs the server until it is told to stop.
pub(crate) async fn run(options: Options) -> Result<(), ServeError> {
    log_to_stderr()?;
    let settings = settings(&options)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let (grpc_listener, grpc_address) = listen::bind("gRPC", "--grpc", &options.grpc).await?;
    let (http_listener, http_address) = listen::bind("HTTP", "--http", &options.http).await?;

    let shards = settings.shard_names().count();
    let numbered = (!lists_shards(&settings)).then_some(settings.shard_count);
    let query_timeout_ms = settings.query_timeout_ms;
    let bucket = S3Settings::from_variables(|name| std::env::var(name).ok())?;
    let hints = catalog::StorageHints::of(bucket.as_ref());
    let node = Node::new(NodeConfig { data_dir: options.data_dir.clone(), bucket, settings, ..NodeConfig::default() })?;
    if let Some(shards) = numbered {
        shard_count::remember(&options.data_dir, shards)?;
    }
    node.register::<Shard>()?;
    node.register::<Cdc>()?;
    node.register_apart::<Router>()?;
    node.register::<Lake>()?;
    node.register::<Catalog>()?;
    node.register::<Analytics>()?;
    node.resume()?;

    let (stop, stopping) = watch::channel(false);
    let backend = Backend::new(node.client(), query_timeout_ms, stopping.clone());
    // A VSchema that is not usable shows here, and not with the first statement.
    backend.healthy().await.map_err(ServeError::Router)?;
    wake_change_stream(backend.clone());
    tokio::spawn(keep_a_timer_due());
    let grpc = spawn_grpc(grpc_listener, grpc::routes(&backend).await, stopping.clone());
    let http = spawn_http(http_listener, http::routes(&backend, hints, grpc::routes(&backend).await), stopping);
    announce(shards, &options.data_dir, grpc_address, http_address);

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    // Nobody is left to hear it only where both servers have ended already.
    let _ = stop.send(true);
    let finished = async {
        let (grpc, http) = tokio::join!(grpc, http);
        for outcome in [grpc, http] {
            if let Err(error) = outcome {
                tracing::error!(%error, "a server ended badly");
            }
        }
    };
    tokio::select! {
        outcome = tokio::time::timeout(GRACE, finished) => if outcome.is_err() {
            tracing::warn!("requests still in progress are given up");
        },
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    node.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// The settings: options win over the environment, and what neither says follows the data.
fn settings(options: &Options) -> Result<Settings, ServeError> {
    let mut settings = Settings::from_variables(|name| std::env::var(name).ok())?;
    if let Some(path) = &options.vschema {
        settings.vschema =
            std::fs::read_to_string(path).map_err(|source| ServeError::VSchema { path: path.clone(), source })?;
    }
    if let Some(auto_shard) = options.auto_shard {
        settings.auto_shard = auto_shard;
    }
    // Where a VSchema lists the shards their number is not a setting, and the router's catalog judges a change.
    if !lists_shards(&settings) {
        let wanted = options.shards.or_else(|| std::env::var_os("SHARD_COUNT").map(|_| settings.shard_count));
        settings.shard_count = shard_count::settle(&options.data_dir, wanted)?.unwrap_or(settings.shard_count);
    }
    Ok(dosql_router::with_shards(settings))
}

/// Whether the VSchema says which shards there are; one that is not usable is refused by the router.
fn lists_shards(settings: &Settings) -> bool {
    VSchema::parse(&settings.vschema).is_ok_and(|vschema| vschema.lists_shards())
}

/// Logs to standard error at LOG_LEVEL; RUST_LOG, where it is set, is finer.
fn log_to_stderr() -> Result<(), ServeError> {
    let filter = if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some() {
        EnvFilter::from_default_env()
    } else {
        let level = std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
        match level.to_ascii_lowercase().as_str() {
            level @ ("debug" | "info" | "warn" | "error") => EnvFilter::new(level),
            _ => return Err(ServeError::LogLevel(level)),
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false).init();
    Ok(())
}

/// The change stream asks the shards for what a crash kept it from being told.
fn wake_change_stream(backend: Backend) {
    tokio::spawn(async move {
        if let Err(error) = backend.cdc_status().await {
            tracing::warn!(%error, "the change stream did not wake up; it will with the next write");
        }
    });
}

fn spawn_grpc(
    listener: TcpListener,
    routes: tonic::service::Routes,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(60)))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .add_routes(routes)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop_signal(stopping))
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the gRPC server has ended");
        }
    })
}

fn spawn_http(listener: TcpListener, routes: axum::Router, stopping: watch::Receiver<bool>) -> JoinHandle<()> {
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
    });
    tokio::spawn(async move {
        let served = axum::serve(listener, routes).with_graceful_shutdown(stop_signal(stopping)).await;
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP server has ended");
        }
    })
}

async fn stop_signal(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Says where everything is, and in one line for programs that start this one.
fn announce(shards: usize, data_dir: &Path, grpc: SocketAddr, http: SocketAddr) {
    let plural = if shards == 1 { "" } else { "s" };
    let text = format!(
        "DoSQL {version}: {shards} shard{plural}, data in {data}\n\
         \x20 HTTP   http://{http}\n\
         \x20 gRPC   http://{grpc}\n\
         \x20 shell  dosql sql --url http://{grpc}\n\
         dosql is ready grpc={grpc} http={http}\n",
        version = env!("CARGO_PKG_VERSION"),
        data = data_dir.display(),
    );
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!(%error, "standard output is closed");
    }
}
