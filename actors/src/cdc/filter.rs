//! Row filters: an SQL expression that SQLite evaluates on one row of a scratch database.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, Row, WalTable};
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use crate::runtime::Context;
use crate::sql_hooks::{self, ThreadBound};
use crate::sql_name::quote;
use crate::sql_value::{self, sql_error};

/// Longest text of a filter, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// How long a filter may take for one row, in milliseconds.
const MAX_MS: u64 = 1_000;

/// Tables beside the row's own that a filter may read.
const TABLE_FUNCTIONS: [&str; 2] = ["json_each", "json_tree"];

/// A filter, and the tables it was asked about. Costs a scratch database.
pub(super) struct Filter {
    text: String,
    context: Context,
    connection: Connection,
    bounds: Rc<Bounds>,
    tables: RefCell<BTreeMap<String, Rc<Prepared>>>,
}

/// What a filter may do.
#[derive(Default)]
struct Bounds {
    /// The table that the filter may read; `None` while the scratch database's own statements run.
    table: RefCell<Option<String>>,
    deadline_ms: Cell<u64>,
}

/// A table as it is known in the scratch database.
struct Prepared {
    table: WalTable,
    /// Whether the row's rowid is stored, too: no column has its name.
    rowid: bool,
    clear: String,
    insert: String,
    select: String,
}

impl Filter {
    /// # Errors
    /// `SYNTAX_ERROR`, `TOO_LARGE` and whatever else makes the text no expression.
    pub(super) fn new(context: &Context, text: &str) -> Result<Self, Error> {
        if text.len() > MAX_BYTES {
            let message = format!("the filter has {} bytes; at most {MAX_BYTES} are allowed", text.len());
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        if text.contains('\0') {
            return Err(Error::new(ErrorCode::SyntaxError, "the filter holds a NUL character"));
        }
        let mut connection = context.open_scratch()?;
        let bounds = Rc::new(Bounds::default());
        let bound = ThreadBound::new(Rc::clone(&bounds));
        connection.authorizer(Some(move |asked: AuthContext<'_>| bound.get().authorize(&asked))).map_err(sql_error)?;
        let clock = Rc::clone(&bounds);
        sql_hooks::end_statements(&mut connection, context, move |context| {
            sql_hooks::is_past(clock.deadline_ms.get(), context)
        })?;
        // One transaction for ever: nothing here is to be kept.
        connection.execute_batch("BEGIN").map_err(sql_error)?;
        let filter =
            Self { text: text.to_owned(), context: context.clone(), connection, bounds, tables: RefCell::default() };
        // Without a table its columns are unknown; whatever else is wrong shows already.
        match filter.prepare(&format!("SELECT {}", filter.condition()), "") {
            Err(error) if error.code() != ErrorCode::UnknownColumn => Err(error),
            _ => Ok(filter),
        }
    }

    /// # Errors
    /// Why the filter cannot be evaluated on the table's rows.
    pub(super) fn check(&self, table: &WalTable) -> Result<(), Error> {
        self.prepared(table).map(drop)
    }

    /// Whether the filter is true of a row.
    ///
    /// # Errors
    /// As [`check`](Self::check); what SQLite reports of the evaluation.
    pub(super) fn is_true(&self, table: &WalTable, rowid: i64, row: &Row) -> Result<bool, Error> {
        let prepared = self.prepared(table)?;
        self.bounds.deadline_ms.set(self.context.now_ms() + MAX_MS);
        self.evaluate(&prepared, rowid, row).map_err(|error| self.explain(table, error))
    }

    fn condition(&self) -> String {
        // The line break ends a comment.
        format!("({}\n) IS TRUE", self.text)
    }

    fn explain(&self, table: &WalTable, error: Error) -> Error {
        let Self { text, .. } = self;
        if error.code() == ErrorCode::DeadlineExceeded {
            return Error::new(ErrorCode::TooLarge, format!("the filter {text:?} takes over {MAX_MS} ms for one row"));
        }
        let on = if table.name.is_empty() { String::new() } else { format!(" on {}", table.name) };
        Error { message: format!("the filter {text:?}{on}: {}", error.message), ..error }
    }

    /// Checks a statement that holds the filter.
    fn prepare(&self, sql: &str, table: &str) -> Result<(), Error> {
        *self.bounds.table.borrow_mut() = Some(table.to_owned());
        let prepared = self.connection.prepare_cached(sql).map_err(sql_error);
        *self.bounds.table.borrow_mut() = None;
        // SQLite has no code of its own for a function that is refused.
        let prepared = prepared.map_err(|error| match error.message.starts_with("not authorized") {
            true => Error::new(ErrorCode::Unsupported, error.message),
            false => error,
        });
        let outcome = prepared.and_then(|statement| match statement.parameter_count() {
            0 => Ok(()),
            _ => Err(Error::new(ErrorCode::ParameterCount, "it has parameters, for which there are no values")),
        });
        outcome.map_err(|error| self.explain(&WalTable { name: table.to_owned(), ..WalTable::default() }, error))
    }

    fn prepared(&self, table: &WalTable) -> Result<Rc<Prepared>, Error> {
        if let Some(prepared) = self.tables.borrow().get(&table.name)
            && prepared.table.columns == table.columns
        {
            return Ok(Rc::clone(prepared));
        }
        let name = quote(&table.name);
        let columns: Vec<String> = table.columns.iter().map(|column| quote(&column.name)).collect();
        let typed: Vec<String> = table
            .columns
            .iter()
            .zip(&columns)
            .map(|(column, name)| format!("{name} {}", affinity(&column.declared_type)))
            .collect();
        let make = format!("DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({})", typed.join(", "));
        self.connection.execute_batch(&make).map_err(sql_error)?;
        let rowid = !table.columns.iter().any(|column| column.name.eq_ignore_ascii_case("rowid"));
        let targets: Vec<&str> =
            rowid.then_some("rowid").into_iter().chain(columns.iter().map(String::as_str)).collect();
        let marks = vec!["?"; targets.len()].join(", ");
        let prepared = Rc::new(Prepared {
            table: table.clone(),
            rowid,
            clear: format!("DELETE FROM {name}"),
            insert: format!("INSERT INTO {name} ({}) VALUES ({marks})", targets.join(", ")),
            select: format!("SELECT {} FROM {name}", self.condition()),
        });
        self.prepare(&prepared.select, &table.name)?;
        self.tables.borrow_mut().insert(table.name.clone(), Rc::clone(&prepared));
        Ok(prepared)
    }

    fn evaluate(&self, prepared: &Prepared, rowid: i64, row: &Row) -> Result<bool, Error> {
        let statement = |sql: &str| self.connection.prepare_cached(sql).map_err(sql_error);
        statement(&prepared.clear)?.execute([]).map_err(sql_error)?;
        let mut insert = statement(&prepared.insert)?;
        let first = usize::from(prepared.rowid);
        if prepared.rowid {
            insert.raw_bind_parameter(1, rowid).map_err(sql_error)?;
        }
        if insert.parameter_count() != first + row.values.len() {
            return Err(Error::internal("a row does not have the columns of its table"));
        }
        for (at, value) in row.values.iter().enumerate() {
            insert.raw_bind_parameter(first + at + 1, sql_value::Param(value)).map_err(sql_error)?;
        }
        insert.raw_execute().map_err(sql_error)?;
        *self.bounds.table.borrow_mut() = Some(prepared.table.name.clone());
        let outcome = statement(&prepared.select)
            .and_then(|mut select| select.query_row([], |row| row.get(0)).map_err(sql_error));
        *self.bounds.table.borrow_mut() = None;
        outcome
    }
}

impl Bounds {
    fn authorize(&self, asked: &AuthContext<'_>) -> Authorization {
        let table = self.table.borrow();
        let Some(table) = table.as_deref() else { return Authorization::Allow };
        let allowed = match asked.action {
            AuthAction::Select => true,
            AuthAction::Function { function_name } => !function_name.eq_ignore_ascii_case("load_extension"),
            AuthAction::Read { table_name, .. } => {
                table_name.is_empty() || table_name.eq_ignore_ascii_case(table) || TABLE_FUNCTIONS.contains(&table_name)
            }
            _ => false,
        };
        if allowed { Authorization::Allow } else { Authorization::Deny }
    }
}

/// A type whose affinity is that of a declared type, by SQLite's rules.
fn affinity(declared: &str) -> &'static str {
    let declared = declared.to_ascii_uppercase();
    let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
    if has(&["INT"]) {
        "INTEGER"
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        "TEXT"
    } else if declared.is_empty() || declared == "ANY" || has(&["BLOB"]) {
        // ANY of a STRICT table leaves values as they are.
        "BLOB"
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        "REAL"
    } else {
        "NUMERIC"
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::{Column, Value};

    use super::*;
    use crate::runtime::Settings;
    use crate::test_world::World;

    fn filter(text: &str) -> Result<Filter, Error> {
        Filter::new(&World::new(Settings::default()).context("test", "test"), text)
    }

    fn table() -> WalTable {
        let column = |name: &str, kind: &str| Column { name: name.into(), declared_type: kind.into() };
        let columns = vec![column("a", "INTEGER"), column("select", "VARCHAR(9)"), column("c", "DECIMAL(5,2)")];
        WalTable { name: "order".into(), columns, primary_key: vec![0] }
    }

    fn holds(text: &str) -> bool {
        let row: Row = [Value::from(7), Value::from("12"), Value::NULL].into_iter().collect();
        filter(text).unwrap().is_true(&table(), 9, &row).unwrap()
    }

    #[test]
    fn sqlite_decides() {
        for text in [
            "a = 7",
            "a = '7'",
            "\"select\" = 12",
            "\"order\".a > 1 AND rowid = 9",
            "c IS NULL -- nothing",
            "\"select\" LIKE '1%'",
            "EXISTS (SELECT 1 FROM json_each('[7]') WHERE value = a)",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in ["a <> 7", "c > 1", "NULL", "\"select\" = 'x'", "0"] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn one_filter_sees_rows_and_schemas_change() {
        let filter = filter("a > 5").unwrap();
        let row = |a: i64| [Value::from(a), Value::NULL, Value::NULL].into_iter().collect::<Row>();
        let asked: Vec<bool> = [4, 6, 5, 7].map(|a| filter.is_true(&table(), a, &row(a)).unwrap()).into();
        assert_eq!(asked, [false, true, false, true]);
        let mut other = table();
        other.columns.truncate(1);
        let short: Row = [Value::from(8)].into_iter().collect();
        assert!(filter.is_true(&other, 1, &short).unwrap());
        other.columns[0].name = "b".into();
        assert_eq!(filter.is_true(&other, 1, &short).unwrap_err().code(), ErrorCode::UnknownColumn);
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for (text, code) in [
            ("a >", ErrorCode::SyntaxError),
            ("1); SELECT (1", ErrorCode::InvalidRequest),
            ("1); DROP TABLE \"order\"; SELECT (1", ErrorCode::UnknownTable),
            ("1) -- ", ErrorCode::SyntaxError),
            ("a = ?", ErrorCode::ParameterCount),
            ("(SELECT count(*) FROM sqlite_schema)", ErrorCode::Unsupported),
            ("(SELECT 1 FROM pragma_database_list)", ErrorCode::Unsupported),
            (
                "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n)",
                ErrorCode::Unsupported,
            ),
            ("load_extension('x')", ErrorCode::Unsupported),
            ("nix(a)", ErrorCode::SqlError),
        ] {
            let refused = filter(text).and_then(|filter| filter.check(&table())).unwrap_err();
            assert_eq!(refused.code(), code, "{text}: {refused}");
        }
        let unknown = filter("nix = 1").unwrap().check(&table()).unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::UnknownColumn);
        assert!(unknown.message.contains("nix"), "{unknown}");
    }
}
