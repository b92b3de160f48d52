//! The shell on a terminal.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

use super::script::{Script, is_blank, is_complete};
use super::{Session, ShellError};

const HELP: &str = "\
Statements end with ; and may span lines.
.tables          the tables
.schema [TABLE]  the statements that made them
.help            this text
.quit            ends the shell, as Ctrl-D does
Ctrl-C gives up what is being typed, or the statement that is running.";

const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                      AND name NOT LIKE '\\_dosql\\_%' ESCAPE '\\' ORDER BY name";

/// Reads statements from the terminal and runs them until the end of the input.
pub(super) async fn run(mut session: Session, url: &str) -> Result<(), ShellError> {
    println!("DoSQL {}, connected to {url}. Type .help for help.", env!("CARGO_PKG_VERSION"));
    let mut editor: Editor<Statements, FileHistory> = Editor::new()?;
    editor.set_helper(Some(Statements));
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".dosql_history"));
    if let Some(history) = &history
        && history.exists()
    {
        editor.load_history(history)?;
    }
    loop {
        // The editor waits for keys; nothing else of this program needs the thread meanwhile.
        let text = match tokio::task::block_in_place(|| editor.readline("dosql> ")) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if text.trim().is_empty() {
            continue;
        }
        editor.add_history_entry(text.trim_end())?;
        if let Some(history) = &history {
            editor.save_history(history)?;
        }
        match text.trim().strip_prefix('.') {
            Some("quit" | "exit") => break,
            Some(command) => run_command(&mut session, command).await?,
            None => run_statements(&mut session, &text).await?,
        }
    }
    Ok(())
}

async fn run_command(session: &mut Session, command: &str) -> Result<(), ShellError> {
    let mut words = command.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("help"), None, None) => {
            println!("{HELP}");
            Ok(())
        }
        (Some("tables"), None, None) => print_texts(session, TABLES).await,
        (Some("schema"), table, None) => {
            let only =
                table.map(|table| format!(" AND tbl_name = '{}'", table.replace('\'', "''"))).unwrap_or_default();
            let sql = format!(
                "SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE '\\_dosql\\_%' ESCAPE '\\'{only} \
                 ORDER BY tbl_name, type DESC, name"
            );
            print_texts(session, &sql).await
        }
        _ => {
            eprintln!("there is no command .{command}; .help lists them");
            Ok(())
        }
    }
}

/// Runs a statement and prints the text of its one column, a line or more each.
async fn print_texts(session: &mut Session, sql: &str) -> Result<(), ShellError> {
    match session.texts(sql).await {
        Ok(texts) => {
            for text in texts {
                println!("{text}");
            }
            Ok(())
        }
        Err(ShellError::Sql(error)) => {
            eprintln!("{error}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn run_statements(session: &mut Session, text: &str) -> Result<(), ShellError> {
    let mut script = Script::default();
    script.push(text);
    while let Some((_, statement)) = script.next_statement() {
        run_one(session, &statement).await?;
    }
    let (_, rest) = script.rest();
    if !is_blank(&rest) {
        run_one(session, &rest).await?;
    }
    Ok(())
}

/// Runs a statement; one that fails ends nothing here.
async fn run_one(session: &mut Session, sql: &str) -> Result<(), ShellError> {
    let begin = Instant::now();
    let mut stdout = io::BufWriter::new(io::stdout());
    let outcome = tokio::select! {
        outcome = session.run(sql, &mut stdout) => outcome,
        _ = tokio::signal::ctrl_c() => {
            stdout.flush()?;
            eprintln!("given up");
            return Ok(());
        }
    };
    stdout.flush()?;
    match outcome {
        Ok(()) => println!("{:.3} s", begin.elapsed().as_secs_f64()),
        Err(ShellError::Sql(error)) => eprintln!("{error}"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Tells the editor when a statement is complete.
struct Statements;

impl Validator for Statements {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let complete = text.trim_start().starts_with('.') || is_blank(text) || is_complete(text);
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Completer for Statements {
    type Candidate = String;
}

impl Hinter for Statements {
    type Hint = String;
}

impl Highlighter for Statements {}

impl Helper for Statements {}
