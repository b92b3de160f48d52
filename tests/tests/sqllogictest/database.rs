//! The databases that scripts run on: a node with so many shards, and one SQLite.

use std::sync::{Arc, Mutex};

use dosql_actors::host::actix::Client;
use dosql_actors::sql_value;
use dosql_proto::value::Kind;
use dosql_proto::{Error, ErrorCode, Row, Value};
use dosql_tests::sharded::execute;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType};

/// The letters of the query that runs: they say how its values are written.
pub(crate) type Letters = Arc<Mutex<Vec<DefaultColumnType>>>;

/// What was refused as unsupported: the statement and why.
pub(crate) type Refused = Arc<Mutex<Vec<(String, String)>>>;

/// A connection to a node.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) letters: Letters,
    pub(crate) refused: Refused,
    /// Whether a query that fails while it runs has no rows, as in SQLite's own runner, which looks at errors of compiling only.
    pub(crate) as_sqlites_runner: bool,
}

#[async_trait::async_trait]
impl AsyncDB for Connection {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Error> {
        let mut result = execute(&self.client, sql).await;
        if let Err(error) = &result
            && error.message.starts_with("more than one statement")
        {
            // SQLite's runner gives a record's text to sqlite3_exec, which runs all of it.
            for statement in sql.split(";\n").filter(|statement| !statement.trim().is_empty()) {
                result = execute(&self.client, statement).await;
                if result.is_err() {
                    break;
                }
            }
        }
        if self.as_sqlites_runner && matches!(&result, Err(error) if error.message == "integer overflow") {
            return Ok(DBOutput::Rows { types: self.letters.lock().unwrap().clone(), rows: Vec::new() });
        }
        let result = result.inspect_err(|error| {
            if error.code() == ErrorCode::Unsupported {
                self.refused.lock().unwrap().push((sql.to_owned(), error.message.clone()));
            }
        })?;
        Ok(output(result.columns.len(), &result.rows, result.rows_affected, &self.letters))
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "sqlite"
    }
}

/// One SQLite.
pub(crate) struct Plain {
    pub(crate) connection: Mutex<rusqlite::Connection>,
    pub(crate) letters: Letters,
}

#[async_trait::async_trait]
impl AsyncDB for Plain {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Error> {
        let connection = self.connection.lock().unwrap();
        let mut statement = connection.prepare(sql).map_err(sql_value::sql_error)?;
        let collected = sql_value::run(&mut statement, &[], usize::MAX)?;
        Ok(output(collected.columns.len(), &collected.rows, connection.changes(), &self.letters))
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "sqlite"
    }
}

fn output(width: usize, rows: &[Row], count: u64, letters: &Letters) -> DBOutput<DefaultColumnType> {
    if width == 0 {
        return DBOutput::StatementComplete(count);
    }
    let letters = letters.lock().unwrap();
    let letter = |index: usize| letters.get(index).unwrap_or(&DefaultColumnType::Text);
    DBOutput::Rows {
        types: (0..width).map(|index| letter(index).clone()).collect(),
        rows: rows
            .iter()
            .map(|row| row.values.iter().enumerate().map(|(index, value)| text_of(value, letter(index))).collect())
            .collect(),
    }
}

/// A value as SQLite's own runner writes it under a query's letter.
fn text_of(value: &Value, letter: &DefaultColumnType) -> String {
    if value.is_null() {
        return "NULL".to_owned();
    }
    match letter {
        DefaultColumnType::Integer => {
            asked(value, "SELECT CAST(?1 AS INTEGER)", |row| row.get::<_, i64>(0)).to_string()
        }
        DefaultColumnType::FloatingPoint => asked(value, "SELECT printf('%.3f', ?1)", |row| row.get(0)),
        _ => {
            let text = match &value.kind {
                Some(Kind::Text(text)) => text.clone(),
                Some(Kind::RawText(bytes) | Kind::Blob(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                _ => asked(value, "SELECT CAST(?1 AS TEXT)", |row| row.get(0)),
            };
            match text.is_empty() {
                true => "(empty)".to_owned(),
                false => text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '@' }).collect(),
            }
        }
    }
}

/// What SQLite makes of a value.
fn asked<T>(value: &Value, sql: &str, read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>) -> T {
    thread_local! {
        static CONVERTER: rusqlite::Connection = rusqlite::Connection::open_in_memory().unwrap();
    }
    CONVERTER.with(|connection| {
        let mut statement = connection.prepare_cached(sql).unwrap();
        statement.query_row([sql_value::Param(value)], |row| read(row)).unwrap()
    })
}
