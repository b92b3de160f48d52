//! `dosql promote`: makes another member of a shard its primary.

use std::io::{self, Write as _};

use clap::Args;
use dosql_proto::value::Kind;
use dosql_proto::{Error, ExecuteRequest, Statement, Value};

use crate::connection::{DEFAULT_URL, connect};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The server
    #[arg(long, value_name = "URL", env = "DOSQL_URL", default_value = DEFAULT_URL)]
    url: String,
    /// The shard
    #[arg(value_name = "SHARD")]
    shard: String,
    /// The member that is to be its primary; otherwise the one that has most
    #[arg(long, value_name = "MEMBER")]
    to: Option<String>,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PromoteError {
    #[error("{0}")]
    Server(#[from] Error),
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

pub(crate) async fn run(options: Options) -> Result<(), PromoteError> {
    let mut client = connect(&options.url).await?;
    let to = options.to.map_or_else(String::new, |member| format!(" TO {}", text(&member)));
    let sql = format!("PROMOTE SHARD {}{to}", text(&options.shard));
    let request =
        ExecuteRequest { statement: Some(Statement { sql, params: Vec::new() }), ..ExecuteRequest::default() };
    let answer = client.execute(request).await.map_err(|status| Error::from(&status))?.into_inner();
    let row = answer.result.and_then(|result| result.rows.into_iter().next()).unwrap_or_default();
    let shown: Vec<String> = row.values.iter().map(show).collect();
    let [shard, primary, epoch, lsn] = shown.as_slice() else {
        return Err(Error::internal("the server answered something else than a promotion").into());
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{primary} is the primary of {shard} since epoch {epoch}; its last LSN is {lsn}")?;
    Ok(stdout.flush()?)
}

/// A text as SQL has it.
fn text(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

fn show(value: &Value) -> String {
    match &value.kind {
        Some(Kind::Text(text)) => text.clone(),
        Some(Kind::Integer(integer)) => integer.to_string(),
        _ => String::new(),
    }
}
