//! `dosql sql`: one statement, a script, or an interactive shell.

mod interactive;
mod output;
mod script;

use std::io::{self, BufRead, IsTerminal as _, Read as _, Write};
use std::process::ExitCode;

use clap::Args;
use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::value::Kind;
use dosql_proto::{Error, ErrorCode, OpenSession, QueryRequest, QueryResponse, Statement};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connection::{DEFAULT_URL, connect};
use output::{Format, Printer};
use script::{Script, is_blank};

/// Options of `dosql sql`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The server
    #[arg(long, value_name = "URL", env = "DOSQL_URL", default_value = DEFAULT_URL)]
    url: String,
    /// How results are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Statements to run; without them they are read from standard input
    #[arg(value_name = "SQL", allow_hyphen_values = true)]
    sql: Option<String>,
}

/// Why the shell cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    /// A statement failed.
    #[error("{0}")]
    Sql(Error),
    /// A statement of a script failed.
    #[error("line {line}: {error}")]
    Script { line: usize, error: Error },
    #[error("the script cannot be read: {0}")]
    Input(io::Error),
    #[error("{0}")]
    Output(#[from] io::Error),
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[from] rustyline::error::ReadlineError),
}

impl From<Error> for ShellError {
    fn from(error: Error) -> Self {
        Self::Sql(error)
    }
}

/// Runs the shell; ends with 1 where a statement failed.
pub(crate) async fn run(options: Options) -> ExitCode {
    match run_statements(options).await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has had enough, as `head` does.
        Err(ShellError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run_statements(options: Options) -> Result<(), ShellError> {
    let mut session = Session::new(connect(&options.url).await?, options.format);
    let mut stdout = io::BufWriter::new(io::stdout());
    if let Some(sql) = options.sql {
        return session.run_script(sql.as_bytes(), &mut stdout, false).await;
    }
    let stdin = io::stdin();
    if stdin.is_terminal() && io::stdout().is_terminal() {
        return interactive::run(session, &options.url).await;
    }
    session.run_script(stdin.lock(), &mut stdout, true).await
}

/// Whether a statement is one that only a session understands.
fn needs_session(sql: &str) -> bool {
    matches!(first_word(sql).as_str(), "BEGIN" | "SAVEPOINT" | "SET")
}

/// The first word of a statement, in upper case.
fn first_word(sql: &str) -> String {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    word.to_ascii_uppercase()
}

/// A connection, and how its results are written.
pub(crate) struct Session {
    client: QueryServiceClient<Channel>,
    format: Format,
    /// The server's session; "" while none is needed.
    token: String,
    /// Whether a transaction was begun in it and not ended.
    in_transaction: bool,
}

impl Session {
    fn new(client: QueryServiceClient<Channel>, format: Format) -> Self {
        Self { client, format, token: String::new(), in_transaction: false }
    }

    async fn query(&mut self, sql: &str) -> Result<Streaming<QueryResponse>, Error> {
        if self.token.is_empty() && needs_session(sql) {
            let opened = self.client.open_session(OpenSession {}).await.map_err(|status| Error::from(&status))?;
            self.token = opened.into_inner().session;
        }
        let mut answer = self.query_once(sql).await;
        if answer.as_ref().is_err_and(|error| error.code() == ErrorCode::UnknownSession) {
            // It was idle too long. That a transaction was rolled back by that is the user's to know; nothing else is.
            self.token = String::new();
            if !std::mem::take(&mut self.in_transaction) {
                answer = Box::pin(self.query(sql)).await;
            }
        } else if answer.is_ok() {
            match first_word(sql).as_str() {
                "BEGIN" | "SAVEPOINT" => self.in_transaction = true,
                "COMMIT" | "END" | "ROLLBACK" if !sql.to_ascii_uppercase().contains(" TO ") => {
                    self.in_transaction = false
                }
                _ => {}
            }
        }
        answer
    }

    async fn query_once(&mut self, sql: &str) -> Result<Streaming<QueryResponse>, Error> {
        let statement = Statement { sql: sql.to_owned(), params: Vec::new() };
        let request =
            QueryRequest { statement: Some(statement), session: self.token.clone(), ..QueryRequest::default() };
        Ok(self.client.query(request).await.map_err(|status| Error::from(&status))?.into_inner())
    }

    /// Runs one statement and writes its result as it arrives.
    async fn run(&mut self, sql: &str, out: &mut impl Write) -> Result<(), ShellError> {
        let mut responses = self.query(sql).await?;
        let mut printer = Printer::new(self.format, out);
        while let Some(response) = responses.message().await.map_err(|status| Error::from(&status))? {
            printer.print(response)?;
        }
        printer.finish()?;
        Ok(())
    }

    /// Runs one statement whose only column is TEXT, of which there is little.
    async fn texts(&mut self, sql: &str) -> Result<Vec<String>, ShellError> {
        let mut responses = self.query(sql).await?;
        let mut texts = Vec::new();
        while let Some(response) = responses.message().await.map_err(|status| Error::from(&status))? {
            for value in response.rows.into_iter().flat_map(|row| row.values) {
                match value.kind {
                    Some(Kind::Text(text)) => texts.push(text),
                    _ => return Err(Error::internal("the schema has a name that is no text").into()),
                }
            }
        }
        Ok(texts)
    }

    /// Runs statement after statement until one fails, whose line is told where `with_lines`.
    async fn run_script(
        &mut self,
        mut input: impl BufRead,
        out: &mut impl Write,
        with_lines: bool,
    ) -> Result<(), ShellError> {
        let mut script = Script::default();
        loop {
            let mut line = Vec::new();
            if (&mut input).take(script::LONGEST_LINE).read_until(b'\n', &mut line).map_err(ShellError::Input)? == 0 {
                break;
            }
            let text = String::from_utf8(line).map_err(|error| ShellError::Input(io::Error::other(error)))?;
            script.push(&text);
            while let Some((line, statement)) = script.next_statement() {
                self.run_at(line, &statement, out, with_lines).await?;
            }
        }
        let (line, rest) = script.rest();
        if !is_blank(&rest) {
            self.run_at(line, &rest, out, with_lines).await?;
        }
        out.flush()?;
        Ok(())
    }

    async fn run_at(
        &mut self,
        line: usize,
        sql: &str,
        out: &mut impl Write,
        with_lines: bool,
    ) -> Result<(), ShellError> {
        let outcome = self.run(sql, out).await;
        // What came before an error is seen before it.
        out.flush()?;
        match outcome {
            Err(ShellError::Sql(error)) if with_lines => Err(ShellError::Script { line, error }),
            outcome => outcome,
        }
    }
}
