//! What SQL from outside may do to a shard's database, and for how long.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode};
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};

use crate::runtime::Context;
use crate::sql_hooks::{self, ThreadBound};
use crate::sql_value::sql_error;

/// Every statement of the shard's own begins so. Statements are cached by their text, and a cached one is not authorised
/// again: no text from outside may equal one of the shard's own.
macro_rules! own_sql {
    ($sql:literal) => {
        concat!("/*_dosql_*/ ", $sql)
    };
}
pub(super) use own_sql;

const OWN_MARK: &str = "/*_dosql_*/";

/// Names of the shard's own tables begin so.
pub(super) const OWN_PREFIX: &str = "_dosql_";

/// Longest statement text, in bytes.
pub(super) const MAX_SQL_BYTES: usize = 1 << 20;

/// PRAGMAs that only tell, with whatever argument.
const TELLING_PRAGMAS: [&str; 10] = [
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];

/// PRAGMAs that tell without an argument, and set something with one.
const READABLE_PRAGMAS: [&str; 16] = [
    "application_id",
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "encoding",
    "foreign_keys",
    "freelist_count",
    "function_list",
    "module_list",
    "page_count",
    "page_size",
    "pragma_list",
    "recursive_triggers",
    "schema_version",
    "user_version",
];

/// Shared between a shard and its connection's hooks.
#[derive(Default)]
pub(super) struct Guard {
    /// Whether the shard's own statements are being prepared or run.
    own: Cell<bool>,
    /// What the last statement from outside was refused for.
    refused: RefCell<Option<String>>,
    /// Whether the statement prepared last changes the schema.
    schema_statement: Cell<bool>,
    /// When the statement must end, in milliseconds since the epoch; 0: never.
    deadline_ms: Cell<u64>,
    /// Whether it only reads, so that it may end when nobody waits for its rows.
    reads: Cell<bool>,
}

/// While it lives, statements are the shard's own.
pub(super) struct Own<'g>(&'g Guard);

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.0.own.set(false);
    }
}

impl Guard {
    /// Puts a guard on a connection.
    pub(super) fn install(connection: &mut Connection, context: &Context) -> Result<Rc<Self>, Error> {
        let guard = Rc::new(Self::default());
        let bound = ThreadBound::new(Rc::clone(&guard));
        connection.authorizer(Some(move |asked: AuthContext<'_>| bound.get().authorize(&asked))).map_err(sql_error)?;
        let clock = Rc::clone(&guard);
        sql_hooks::end_statements(connection, context, move |context| {
            let past = || sql_hooks::is_past(clock.deadline_ms.get(), context);
            !clock.own.get() && (past() || clock.reads.get() && context.is_abandoned())
        })?;
        Ok(guard)
    }

    /// Marks what follows as the shard's own, until the mark is dropped.
    pub(super) fn own(&self) -> Own<'_> {
        self.own.set(true);
        Own(self)
    }

    pub(super) fn is_own(&self) -> bool {
        self.own.get()
    }

    /// When the statements that follow must end (0: never), and whether they only read.
    pub(super) fn set_limits(&self, deadline_ms: u64, reads: bool) {
        self.deadline_ms.set(deadline_ms);
        self.reads.set(reads);
    }

    /// Whether the statement that was just prepared changes the schema; forgets it.
    pub(super) fn take_schema_statement(&self) -> bool {
        self.schema_statement.take()
    }

    /// What is to be said about a statement from outside that failed with `error`.
    pub(super) fn explain(&self, error: Error) -> Error {
        match (error.code(), self.refused.take()) {
            (_, Some(what)) => Error::new(ErrorCode::Unsupported, what),
            _ => error,
        }
    }

    fn authorize(&self, asked: &AuthContext<'_>) -> Authorization {
        if self.own.get() {
            return Authorization::Allow;
        }
        match self.refusal(&asked.action) {
            None => Authorization::Allow,
            Some(what) => {
                *self.refused.borrow_mut() = Some(what);
                Authorization::Deny
            }
        }
    }

    /// Why an action is refused; notes changes of the schema.
    fn refusal(&self, action: &AuthAction<'_>) -> Option<String> {
        match *action {
            AuthAction::Transaction { operation } => {
                let name = match operation {
                    TransactionOperation::Begin => "BEGIN",
                    TransactionOperation::Rollback => "ROLLBACK",
                    _ => "COMMIT",
                };
                Some(format!("{name} is not supported here; a batch is one transaction"))
            }
            AuthAction::Savepoint { operation, .. } => {
                let name = match operation {
                    TransactionOperation::Release => "RELEASE",
                    TransactionOperation::Rollback => "ROLLBACK TO",
                    _ => "SAVEPOINT",
                };
                Some(format!("{name} is not supported here; a batch is one transaction"))
            }
            AuthAction::Attach { .. } => Some("ATTACH is not supported".to_owned()),
            AuthAction::Detach { .. } => Some("DETACH is not supported".to_owned()),
            AuthAction::Pragma { pragma_name, pragma_value } => {
                let known = |list: &[&str]| list.iter().any(|name| name.eq_ignore_ascii_case(pragma_name));
                let telling = known(&TELLING_PRAGMAS) || (pragma_value.is_none() && known(&READABLE_PRAGMAS));
                (!telling).then(|| match pragma_value {
                    Some(_) => format!("PRAGMA {pragma_name} with a value is not supported"),
                    None => format!("PRAGMA {pragma_name} is not supported"),
                })
            }
            AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => {
                Some("temporary tables, views, indexes and triggers are not supported".to_owned())
            }
            AuthAction::CreateVtable { module_name, .. } => {
                Some(format!("CREATE VIRTUAL TABLE (USING {module_name}) is not supported"))
            }
            AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
                Some("load_extension() is not supported".to_owned())
            }
            AuthAction::CreateIndex { index_name: name, table_name }
            | AuthAction::DropIndex { index_name: name, table_name }
            | AuthAction::CreateTrigger { trigger_name: name, table_name }
            | AuthAction::DropTrigger { trigger_name: name, table_name } => {
                self.schema_statement.set(true);
                own_name(name).or_else(|| own_name(table_name))
            }
            AuthAction::CreateTable { table_name: name }
            | AuthAction::DropTable { table_name: name }
            | AuthAction::AlterTable { table_name: name, .. }
            | AuthAction::CreateView { view_name: name }
            | AuthAction::DropView { view_name: name } => {
                self.schema_statement.set(true);
                own_name(name)
            }
            AuthAction::Insert { table_name }
            | AuthAction::Delete { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Read { table_name, .. } => own_name(table_name),
            _ => None,
        }
    }
}

/// Why a name is refused, where it is one of the shard's own.
pub(super) fn own_name(name: &str) -> Option<String> {
    let own = name.get(..OWN_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN_PREFIX));
    own.then(|| format!("{name}: names that begin with {OWN_PREFIX} are DoSQL's own"))
}

/// Refuses statement texts that must not reach the parser.
///
/// # Errors
/// `TOO_LARGE`, `SYNTAX_ERROR`, `UNSUPPORTED`.
pub(super) fn check_text(sql: &str) -> Result<(), Error> {
    if sql.len() > MAX_SQL_BYTES {
        let message = format!("the statement has {} bytes; at most {MAX_SQL_BYTES} are allowed", sql.len());
        return Err(Error::new(ErrorCode::TooLarge, message));
    }
    // SQLite would silently stop reading there.
    if let Some(at) = sql.find('\0') {
        return Err(Error::new(ErrorCode::SyntaxError, format!("the statement holds a NUL character at byte {at}")));
    }
    if sql.trim_start().starts_with(OWN_MARK) {
        return Err(Error::new(ErrorCode::Unsupported, format!("a statement cannot begin with {OWN_MARK}")));
    }
    if first_word(sql).eq_ignore_ascii_case("VACUUM") {
        return Err(Error::new(ErrorCode::Unsupported, "VACUUM is not supported"));
    }
    Ok(())
}

/// The first keyword of a statement, after white space and comments.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';' || c == '\u{feff}');
        let skipped = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map(|(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map(|(_, after)| after)
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return &rest[..end];
        };
        match skipped {
            Some(after) => rest = after,
            None => return "",
        }
    }
}

/// Whether a statement may roll back the whole transaction when it fails (`OR ROLLBACK`, `RAISE(ROLLBACK, ...)`).
pub(super) fn may_roll_back(sql: &str) -> bool {
    const WORD: &[u8] = b"rollback";
    sql.as_bytes().windows(WORD.len()).any(|window| window.eq_ignore_ascii_case(WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_found_behind_comments() {
        for (sql, word) in [
            ("  vacuum INTO 'x'", "vacuum"),
            ("-- a\n/* b\n */VACUUM", "VACUUM"),
            (";;SELECT 1", "SELECT"),
            ("/* open", ""),
            ("-- all", ""),
        ] {
            assert_eq!(first_word(sql), word, "{sql}");
        }
    }

    #[test]
    fn texts_that_must_not_reach_the_parser_are_refused() {
        let long = format!("SELECT '{}'", "x".repeat(MAX_SQL_BYTES));
        for (sql, code) in [
            (long.as_str(), ErrorCode::TooLarge),
            ("SELECT 1\0, 2", ErrorCode::SyntaxError),
            ("  /*_dosql_*/ COMMIT", ErrorCode::Unsupported),
            ("/* x */ vacuum", ErrorCode::Unsupported),
        ] {
            assert_eq!(check_text(sql).unwrap_err().code(), code);
        }
        assert_eq!(check_text("SELECT 'vacuum'"), Ok(()));
    }
}
