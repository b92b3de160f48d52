//! The one place where SQLite's values, rows and errors become messages, and messages become parameters. Exact: integers and
//! reals keep their class and bits, text keeps its NULs and its invalid UTF-8.

use dosql_proto::value::Kind;
use dosql_proto::{Column, Error, ErrorCode, Row, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Statement, ToSql, ffi};

/// A value of SQLite's as a message.
#[must_use]
pub fn to_value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::NULL,
        ValueRef::Integer(integer) => integer.into(),
        ValueRef::Real(real) => real.into(),
        ValueRef::Text(bytes) => Value::from_text_bytes(bytes),
        ValueRef::Blob(bytes) => Value::blob(bytes),
    }
}

/// A message's value as SQLite sees it, borrowed.
#[must_use]
pub fn as_value_ref(value: &Value) -> ValueRef<'_> {
    match &value.kind {
        None => ValueRef::Null,
        Some(Kind::Integer(integer)) => ValueRef::Integer(*integer),
        Some(Kind::Real(real)) => ValueRef::Real(*real),
        Some(Kind::Text(text)) => ValueRef::Text(text.as_bytes()),
        Some(Kind::RawText(bytes)) => ValueRef::Text(bytes),
        Some(Kind::Blob(bytes)) => ValueRef::Blob(bytes),
    }
}

/// A value as a parameter of a statement.
#[derive(Debug, Clone, Copy)]
pub struct Param<'a>(pub &'a Value);

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(as_value_ref(self.0)))
    }
}

/// Binds all parameters of a statement, to be followed by `raw_query` or `raw_execute`.
///
/// # Errors
/// `PARAMETER_COUNT` unless there are exactly as many as the statement has; `TOO_LARGE` for a value beyond SQLite's limit.
pub fn bind(statement: &mut Statement<'_>, params: &[Value]) -> Result<(), Error> {
    let expected = statement.parameter_count();
    if params.len() != expected {
        return Err(parameter_count(params.len(), expected));
    }
    for (index, value) in params.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, Param(value)).map_err(sql_error)?;
    }
    Ok(())
}

/// The names and declared types of a statement's result columns.
#[must_use]
pub fn columns(statement: &Statement<'_>) -> Vec<Column> {
    statement
        .columns()
        .map(|column| Column {
            name: column.name().to_owned(),
            declared_type: column.decl_type().unwrap_or_default().to_owned(),
        })
        .collect()
}

/// The first `width` values of a row.
///
/// # Errors
/// When the row has fewer.
pub fn to_row(row: &rusqlite::Row<'_>, width: usize) -> rusqlite::Result<Row> {
    (0..width).map(|index| row.get_ref(index).map(to_value)).collect()
}

/// What a statement returned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// Its result columns; none for a statement that returns no rows.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// About how many bytes the rows' values take.
    pub bytes: usize,
}

/// Binds the parameters, runs the statement to its end and collects its rows, up to about `max_bytes` of values.
///
/// # Errors
/// As [`bind`]; what SQLite reports; `TOO_LARGE` where the rows take more, in which case the statement did not end.
pub fn run(statement: &mut Statement<'_>, params: &[Value], max_bytes: usize) -> Result<Collected, Error> {
    bind(statement, params)?;
    let mut collected = Collected { columns: columns(statement), ..Collected::default() };
    let width = collected.columns.len();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(sql_error)? {
        for index in 0..width {
            collected.bytes += size(row.get_ref(index).map_err(sql_error)?);
        }
        if collected.bytes > max_bytes {
            let message = format!("the statement returns more than {max_bytes} bytes of rows; read them as a query");
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        collected.rows.push(to_row(row, width).map_err(sql_error)?);
    }
    Ok(collected)
}

/// About how many bytes a value takes in a message.
#[must_use]
pub fn size(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null => 2,
        ValueRef::Integer(_) | ValueRef::Real(_) => 11,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len() + 8,
    }
}

fn parameter_count(given: usize, expected: usize) -> Error {
    let plural = if expected == 1 { "parameter" } else { "parameters" };
    Error::new(ErrorCode::ParameterCount, format!("the statement has {expected} {plural}, but {given} were given"))
}

/// An error of SQLite's as a message, in SQLite's own words.
#[must_use]
pub fn sql_error(error: rusqlite::Error) -> Error {
    match error {
        rusqlite::Error::SqliteFailure(cause, message) => {
            let message = message.unwrap_or_else(|| cause.to_string());
            coded(cause, message)
        }
        rusqlite::Error::SqlInputError { error: cause, msg, .. } => coded(cause, msg),
        rusqlite::Error::InvalidParameterCount(given, expected) => parameter_count(given, expected),
        rusqlite::Error::MultipleStatement => {
            Error::invalid("more than one statement in one text; send them as a batch, one text each")
        }
        rusqlite::Error::Empty => Error::new(ErrorCode::SyntaxError, "the text holds no statement"),
        other => Error::new(ErrorCode::SqlError, other.to_string()),
    }
}

fn coded(cause: ffi::Error, message: String) -> Error {
    use rusqlite::ErrorCode as Sqlite;
    let code = match cause.code {
        Sqlite::ConstraintViolation if cause.extended_code == ffi::SQLITE_CONSTRAINT_DATATYPE => {
            ErrorCode::TypeMismatch
        }
        Sqlite::ConstraintViolation => ErrorCode::Constraint,
        Sqlite::TypeMismatch => ErrorCode::TypeMismatch,
        Sqlite::TooBig => ErrorCode::TooLarge,
        Sqlite::AuthorizationForStatementDenied => ErrorCode::Unsupported,
        Sqlite::OperationInterrupted => ErrorCode::DeadlineExceeded,
        Sqlite::SystemIoFailure
        | Sqlite::DiskFull
        | Sqlite::DatabaseCorrupt
        | Sqlite::NotADatabase
        | Sqlite::CannotOpen
        | Sqlite::ReadOnly
        | Sqlite::PermissionDenied
        | Sqlite::OutOfMemory
        | Sqlite::NoLargeFileSupport
        | Sqlite::FileLockingProtocolFailed
        | Sqlite::DatabaseBusy
        | Sqlite::DatabaseLocked => ErrorCode::Storage,
        Sqlite::InternalMalfunction | Sqlite::ApiMisuse => ErrorCode::Internal,
        _ => by_message(&message),
    };
    match code {
        ErrorCode::DeadlineExceeded => Error::retryable(code, "the statement ran beyond its deadline", 0),
        ErrorCode::Storage => Error::retryable(code, message, 0),
        _ => Error::new(code, message),
    }
}

/// SQLite reports whatever it finds while compiling a statement under one code; only the text tells them apart.
fn by_message(message: &str) -> ErrorCode {
    const STARTS: [(&str, ErrorCode); 14] = [
        ("no such table", ErrorCode::UnknownTable),
        ("no such view", ErrorCode::UnknownTable),
        ("no such column", ErrorCode::UnknownColumn),
        ("no such index", ErrorCode::NotFound),
        ("no such trigger", ErrorCode::NotFound),
        ("incomplete input", ErrorCode::SyntaxError),
        ("unrecognized token", ErrorCode::SyntaxError),
        ("duplicate column name", ErrorCode::AlreadyExists),
        ("there is already", ErrorCode::AlreadyExists),
        ("too many", ErrorCode::TooLarge),
        ("Expression tree is too large", ErrorCode::TooLarge),
        ("statement too long", ErrorCode::TooLarge),
        ("parser stack overflow", ErrorCode::TooLarge),
        ("string or blob too big", ErrorCode::TooLarge),
    ];
    if let Some((_, code)) = STARTS.iter().find(|(start, _)| message.starts_with(start)) {
        *code
    } else if message.ends_with("syntax error") {
        ErrorCode::SyntaxError
    } else if message.contains(" has no column named ") {
        ErrorCode::UnknownColumn
    } else if message.ends_with(" already exists") {
        ErrorCode::AlreadyExists
    } else {
        ErrorCode::SqlError
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
mod tests {
    use super::*;

    fn ask(connection: &rusqlite::Connection, sql: &str, params: &[Value]) -> Result<Collected, Error> {
        let mut statement = connection.prepare(sql).map_err(sql_error)?;
        run(&mut statement, params, 1 << 20)
    }

    fn memory() -> rusqlite::Connection {
        rusqlite::Connection::open_in_memory().unwrap()
    }

    #[test]
    fn every_value_survives_exactly() {
        let raw = Value { kind: Some(Kind::RawText(vec![b'a', 0xff, 0, 0xc3])) };
        let values = vec![
            Value::NULL,
            i64::MAX.into(),
            i64::MIN.into(),
            1.0.into(),
            (-0.0).into(),
            f64::INFINITY.into(),
            "a\0b".into(),
            "".into(),
            raw.clone(),
            Value::blob([]),
            Value::blob([0, 255]),
        ];
        let sql = format!("SELECT {}", vec!["?"; values.len()].join(","));
        let back = ask(&memory(), &sql, &values).unwrap();
        assert_eq!(back.rows[0].values, values);
        let kind = ask(&memory(), "SELECT typeof(?1), hex(?1)", &[raw]).unwrap();
        assert_eq!(kind.rows[0].values, ["text".into(), "61FF00C3".into()]);
    }

    #[test]
    fn columns_carry_their_declared_types() {
        let connection = memory();
        connection.execute_batch("CREATE TABLE t (a DECIMAL(10,2), b)").unwrap();
        let columns = ask(&connection, "SELECT a, b, a + 1 AS c FROM t", &[]).unwrap().columns;
        let named: Vec<_> = columns.iter().map(|c| (c.name.as_str(), c.declared_type.as_str())).collect();
        assert_eq!(named, [("a", "DECIMAL(10,2)"), ("b", ""), ("c", "")]);
    }

    #[test]
    fn errors_have_their_codes_and_sqlites_words() {
        let connection = memory();
        connection
            .execute_batch(
                "CREATE TABLE t (a INTEGER PRIMARY KEY, b NOT NULL); CREATE TABLE s (a INTEGER) STRICT; CREATE INDEX i ON t(b)",
            )
            .unwrap();
        for (sql, code, part) in [
            ("SELEC 1", ErrorCode::SyntaxError, "near \"SELEC\": syntax error"),
            ("SELECT (1", ErrorCode::SyntaxError, "incomplete input"),
            ("SELECT 'x", ErrorCode::SyntaxError, "unrecognized token"),
            ("", ErrorCode::SyntaxError, "no statement"),
            ("SELECT * FROM nix", ErrorCode::UnknownTable, "no such table: nix"),
            ("SELECT nix FROM t", ErrorCode::UnknownColumn, "no such column: nix"),
            ("INSERT INTO t (nix) VALUES (1)", ErrorCode::UnknownColumn, "table t has no column named nix"),
            ("CREATE TABLE t (a)", ErrorCode::AlreadyExists, "table t already exists"),
            ("CREATE INDEX i ON t(a)", ErrorCode::AlreadyExists, "index i already exists"),
            ("DROP INDEX nix", ErrorCode::NotFound, "no such index: nix"),
            ("INSERT INTO t VALUES ('x', 1)", ErrorCode::TypeMismatch, "datatype mismatch"),
            ("INSERT INTO s VALUES ('x')", ErrorCode::TypeMismatch, "cannot store TEXT value in INTEGER column s.a"),
            ("INSERT INTO t VALUES (1, NULL)", ErrorCode::Constraint, "NOT NULL constraint failed: t.b"),
            ("SELECT abs(-9223372036854775808)", ErrorCode::SqlError, "integer overflow"),
            ("SELECT 1; SELECT 2", ErrorCode::InvalidRequest, "more than one statement"),
            ("SELECT zeroblob(2000000000)", ErrorCode::TooLarge, "too big"),
        ] {
            let error = ask(&connection, sql, &[]).unwrap_err();
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.message.contains(part), "{sql}: {error}");
        }
    }

    #[test]
    fn parameters_are_counted_exactly() {
        for given in [0, 1, 3] {
            let error = ask(&memory(), "SELECT ?, ?", &vec![Value::NULL; given]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ParameterCount);
            assert_eq!(error.message, format!("the statement has 2 parameters, but {given} were given"));
        }
    }

    #[test]
    fn a_result_beyond_the_bound_is_refused() {
        let connection = memory();
        let mut statement = connection.prepare("SELECT zeroblob(600) UNION ALL SELECT zeroblob(600)").unwrap();
        assert_eq!(run(&mut statement, &[], 1000).unwrap_err().code(), ErrorCode::TooLarge);
        assert_eq!(run(&mut statement, &[], 2000).unwrap().rows.len(), 2);
    }
}
