//! The `dosql` program: the server, the shell, bulk import, and what operators do.

mod connection;
mod import;
mod promote;
mod serve;
mod shell;
mod vschema;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use uuid::Uuid;

/// Requests are many small allocations, freed on another thread than they were made on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A SQL database of many SQLite shards that streams its changes and feeds a lakehouse.
#[derive(Debug, Parser)]
#[command(name = "dosql", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the database
    Serve(serve::Options),
    /// Run SQL: one statement, a script on standard input, or an interactive shell
    Sql(shell::Options),
    /// Load a CSV file into a table
    Import(import::Options),
    /// Make another member of a shard its primary
    Promote(promote::Options),
    /// Check a VSchema, or print the JSON Schema of one
    Vschema(vschema::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve(options) => serve::run(options).await.map_err(|error| error.to_string()),
        Command::Sql(options) => return shell::run(options).await,
        Command::Vschema(options) => vschema::run(&options).map_err(|error| error.to_string()),
        Command::Promote(options) => promote::run(options).await.map_err(|error| error.to_string()),
        Command::Import(options) => import::run(options).await.map_err(|error| error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("dosql: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A name that nothing else has: 128 bits from the randomness that the operating system gave this process.
fn random_id() -> String {
    let half = || RandomState::new().build_hasher().finish();
    Uuid::from_u64_pair(half(), half()).simple().to_string()
}
