//! `dosql import`: loads a CSV file into a table.
//!
//! The file is read twice: once to learn the types of its columns, once to send its rows, a few thousand at a time with a few
//! requests under way, so that neither side holds more than those. A request that fails in a way that may pass is sent again
//! under the same name, and what the server has loaded already it skips.

mod infer;
mod load;
mod rows;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::{Error, ExecuteRequest, Statement};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::transport::Channel;

use crate::connection::{DEFAULT_URL, connect};
use infer::{ColumnType, Inference};

/// Options of `dosql import`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The CSV file, whose first line names the columns
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The table; made where there is none
    #[arg(long, value_name = "T")]
    table: String,
    /// Spread the rows over the shards by a hash of this column, where the table is made
    #[arg(long, value_name = "COLUMN")]
    shard_by: Option<String>,
    /// Read fields that are exactly this as NULL
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    null: Option<String>,
    /// The server
    #[arg(long, value_name = "URL", env = "DOSQL_URL", default_value = DEFAULT_URL)]
    url: String,
}

/// Why a file was not loaded, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Csv { path: PathBuf, source: csv::Error },
    #[error("{} {what}", path.display())]
    Unusable { path: PathBuf, what: String },
    #[error("{0}")]
    Server(Error),
    #[error(
        "{}, lines {first} to {last}: {error}\n\
         The {loaded} rows before these lines are loaded. Of these, and of a few thousand after them, each shard has loaded all \
         of its rows or none.",
        path.display()
    )]
    Rows { path: PathBuf, first: u64, last: u64, loaded: u64, error: Error },
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
}

/// A file whose columns are known.
struct Source {
    path: PathBuf,
    names: Vec<String>,
    types: Vec<ColumnType>,
    /// Number of rows.
    rows: u64,
    /// The text that is NULL.
    null: Option<Vec<u8>>,
}

/// Loads the file.
pub(crate) async fn run(options: Options) -> Result<(), ImportError> {
    let begin = Instant::now();
    let Options { file, table, shard_by, null, url } = options;
    let null = null.map(String::into_bytes);
    let progress = progress_bar(&file)?;
    progress.set_message("reading");
    let source = tokio::task::block_in_place(|| survey(&file, null, &progress))?;
    if let Some(column) = &shard_by
        && !source.names.iter().any(|name| name.eq_ignore_ascii_case(column))
    {
        let what = format!("has no column {column:?} to shard by; its columns are {}", source.names.join(", "));
        return Err(ImportError::Unusable { path: file, what });
    }
    let mut client = connect(&url).await.map_err(ImportError::Server)?;
    create_table(&mut client, &table, &source, shard_by.as_deref()).await?;
    progress.set_message("loading");
    let loaded = load::load(client, &table, source, &progress).await?;
    progress.finish_and_clear();
    let plural = if loaded == 1 { "" } else { "s" };
    println!("{loaded} row{plural} loaded into {table} in {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn progress_bar(file: &Path) -> Result<ProgressBar, ImportError> {
    let failed = |source| ImportError::File { path: file.to_owned(), source };
    let metadata = std::fs::metadata(file).map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // The bar hides itself where standard error is no terminal.
    let bar = ProgressBar::new(metadata.len());
    if let Ok(style) = ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3}% {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    Ok(bar)
}

/// Reads the whole file for its columns' names and types.
fn survey(path: &Path, null: Option<Vec<u8>>, progress: &ProgressBar) -> Result<Source, ImportError> {
    let failed = |source| ImportError::File { path: path.to_owned(), source };
    let unusable = |what: String| ImportError::Unusable { path: path.to_owned(), what };
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read(&mut magic)).map_err(failed)?;
    if magic[..read].starts_with(&[0x1f, 0x8b]) || magic[..read].starts_with(b"PK\x03\x04") {
        return Err(unusable("is compressed; unpack it first".to_owned()));
    }
    let mut reader = rows::reader(path)?;
    let csv_failed = |source| ImportError::Csv { path: path.to_owned(), source };
    let header = reader.byte_headers().map_err(csv_failed)?;
    let mut names: Vec<String> = Vec::with_capacity(header.len());
    for field in header {
        let name = std::str::from_utf8(field)
            .map_err(|_| unusable("names a column in something else than UTF-8".to_owned()))?
            .trim();
        if name.is_empty() {
            return Err(unusable(format!("has no name for column {} in its first line", names.len() + 1)));
        }
        if names.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            return Err(unusable(format!("has two columns called {name:?}")));
        }
        names.push(name.to_owned());
    }
    if names.is_empty() {
        return Err(unusable("is empty; its first line must name the columns".to_owned()));
    }
    let mut columns = vec![Inference::default(); names.len()];
    let mut record = csv::ByteRecord::new();
    let mut rows = 0_u64;
    while reader.read_byte_record(&mut record).map_err(csv_failed)? {
        for (column, field) in columns.iter_mut().zip(&record) {
            if null.as_deref() != Some(field) {
                column.see(field);
            }
        }
        rows += 1;
        if rows.is_multiple_of(4096) {
            progress.set_position(reader.position().byte());
        }
    }
    let types = columns.into_iter().map(Inference::result).collect();
    Ok(Source { path: path.to_owned(), names, types, rows, null })
}

/// Makes the table where there is none.
async fn create_table(
    client: &mut QueryServiceClient<Channel>,
    table: &str,
    source: &Source,
    shard_by: Option<&str>,
) -> Result<(), ImportError> {
    if let Some(column) = shard_by {
        let sql = format!("ALTER VSCHEMA ON {} ADD VINDEX hash({}) USING hash", quote(table), quote(column));
        execute(client, sql).await?;
    }
    let columns: Vec<String> = source
        .names
        .iter()
        .zip(&source.types)
        .map(|(name, column_type)| format!("{} {}", quote(name), column_type.declared()))
        .collect();
    execute(client, format!("CREATE TABLE IF NOT EXISTS {} ({})", quote(table), columns.join(", "))).await
}

async fn execute(client: &mut QueryServiceClient<Channel>, sql: String) -> Result<(), ImportError> {
    let request = ExecuteRequest {
        statement: Some(Statement { sql, params: Vec::new() }),
        request_id: crate::random_id(),
        ..ExecuteRequest::default()
    };
    let mut attempts = 0;
    loop {
        match client.execute(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) => {
                let error = Error::from(&status);
                attempts += 1;
                if !load::worth_retrying(&error, attempts).await {
                    return Err(ImportError::Server(error));
                }
            }
        }
    }
}

/// An identifier as SQL writes it, whatever it contains.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
