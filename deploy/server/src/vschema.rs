//! `dosql vschema`: checks VSchema documents, and says what they may hold.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use dosql_router::{VSchema, json_schema};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the JSON Schema of a VSchema document
    Schema,
    /// Check a VSchema document, and say everything that is wrong with it
    Check {
        /// A JSON or TOML file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VSchemaError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", .0.message)]
    Refused(dosql_proto::Error),
    #[error("standard output: {0}")]
    Output(io::Error),
}

pub(crate) fn run(options: &Options) -> Result<(), VSchemaError> {
    let text = match &options.command {
        Command::Schema => json_schema(),
        Command::Check { file } => {
            let read = |source| VSchemaError::Read { path: file.clone(), source };
            let vschema =
                VSchema::parse(&std::fs::read_to_string(file).map_err(read)?).map_err(VSchemaError::Refused)?;
            let (tables, shards) = (vschema.tables.len(), vschema.shards.len());
            format!("{}: usable, with {tables} tables and {shards} listed shards\n", file.display())
        }
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(VSchemaError::Output)
}
