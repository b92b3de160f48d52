//! The schema of all tables, without rows, in a scratch SQLite. Statements are prepared on it before anything runs, so that
//! SQLite itself says what is wrong with them, which tables and columns they touch and what they return.

use std::collections::{BTreeMap, BTreeSet};

use dosql_actors::sql_value::{self, sql_error};
use dosql_proto::{Column, Error};
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// What a statement touches, as SQLite's authorizer reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Columns read, by table. A table whose rows are only counted has none.
    pub(crate) reads: BTreeMap<String, BTreeSet<String>>,
    /// Tables inserted into.
    pub(crate) inserts: BTreeSet<String>,
    /// Columns updated, by table.
    pub(crate) updates: BTreeMap<String, BTreeSet<String>>,
    /// Tables deleted from.
    pub(crate) deletes: BTreeSet<String>,
    /// Functions called, in lower case.
    pub(crate) functions: BTreeSet<String>,
    /// Views read through and triggers that fire.
    pub(crate) through: BTreeSet<String>,
    /// What the statement does to the schema.
    pub(crate) ddl: Option<Ddl>,
}

/// What a DDL statement works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ddl {
    CreateTable,
    /// ALTER TABLE, DROP TABLE, and CREATE or DROP of its indexes.
    OfTable(String),
    /// A trigger and its table or view.
    CreateTrigger(String, String),
    DropTrigger(String, String),
    CreateView(String),
    DropView(String),
    /// A view of this incarnation's.
    TemporaryView,
    /// What no shard is sent: the construct's name.
    Refused(&'static str),
}

enum Use {
    Read(String, String),
    Insert(String),
    Update(String, String),
    Delete(String),
    Function(String),
    Through(String),
    Ddl(Ddl),
}

/// A statement that SQLite accepts.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) columns: Vec<Column>,
    pub(crate) parameter_count: usize,
    pub(crate) readonly: bool,
    pub(crate) uses: Uses,
}

/// The schema in a scratch database.
pub(crate) struct Mirror {
    pub(crate) connection: Connection,
    uses: UnboundedReceiver<Use>,
}

impl Mirror {
    /// A mirror that holds the objects these statements create.
    ///
    /// # Errors
    /// `STORAGE` where they cannot be created.
    pub(crate) fn new(mut connection: Connection, objects: &[String]) -> Result<Self, Error> {
        let (sender, uses) = unbounded();
        connection.authorizer(Some(move |context: AuthContext<'_>| note(&sender, &context))).map_err(sql_error)?;
        // A scratch database keeps no journal, but changes are rehearsed here and rolled back.
        connection.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA foreign_keys = OFF").map_err(sql_error)?;
        let mirror = Self { connection, uses };
        for sql in objects {
            mirror.connection.execute_batch(sql).map_err(sql_error)?;
        }
        Ok(mirror)
    }

    /// Has SQLite compile a statement.
    ///
    /// # Errors
    /// What SQLite says.
    pub(crate) fn prepare(&mut self, sql: &str) -> Result<Prepared, Error> {
        self.drain(|_| ());
        let prepared = {
            let statement = self.connection.prepare(sql).map_err(sql_error)?;
            Prepared {
                columns: sql_value::columns(&statement),
                parameter_count: statement.parameter_count(),
                readonly: statement.readonly(),
                uses: Uses::default(),
            }
        };
        let mut uses = Uses::default();
        self.drain(|one| uses.add(one));
        Ok(Prepared { uses, ..prepared })
    }

    fn drain(&mut self, mut take: impl FnMut(Use)) {
        while let Ok(one) = self.uses.try_recv() {
            take(one);
        }
    }
}

impl Uses {
    fn add(&mut self, one: Use) {
        match one {
            Use::Read(table, column) => {
                let columns = self.reads.entry(table).or_default();
                if !column.is_empty() {
                    columns.insert(column);
                }
            }
            Use::Insert(table) => {
                self.inserts.insert(table);
            }
            Use::Update(table, column) => {
                self.updates.entry(table).or_default().insert(column);
            }
            Use::Delete(table) => {
                self.deletes.insert(table);
            }
            Use::Function(name) => {
                self.functions.insert(name.to_ascii_lowercase());
            }
            Use::Through(name) => {
                self.through.insert(name.to_ascii_lowercase());
            }
            // The first says what the statement is about; those that follow are its consequences (a dropped table's indexes).
            Use::Ddl(ddl) => {
                self.ddl.get_or_insert(ddl);
            }
        }
    }

    /// Whether an evaluation may differ from the next.
    pub(crate) fn volatile(&self) -> bool {
        ["random", "randomblob", "changes", "total_changes", "last_insert_rowid"]
            .iter()
            .any(|name| self.functions.contains(*name))
    }
}

fn note(sender: &UnboundedSender<Use>, context: &AuthContext<'_>) -> Authorization {
    if let Some(name) = context.accessor {
        // The receiver lives as long as the connection.
        let _ = sender.unbounded_send(Use::Through(name.to_owned()));
    }
    let used = match context.action {
        AuthAction::Read { table_name, column_name } => Use::Read(table_name.to_owned(), column_name.to_owned()),
        AuthAction::Insert { table_name } if !internal(table_name) => Use::Insert(table_name.to_owned()),
        AuthAction::Update { table_name, column_name } if !internal(table_name) => {
            Use::Update(table_name.to_owned(), column_name.to_owned())
        }
        AuthAction::Delete { table_name } if !internal(table_name) => Use::Delete(table_name.to_owned()),
        AuthAction::Function { function_name } => Use::Function(function_name.to_owned()),
        AuthAction::CreateTable { .. } => Use::Ddl(Ddl::CreateTable),
        AuthAction::AlterTable { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::DropIndex { table_name, .. } => Use::Ddl(Ddl::OfTable(table_name.to_owned())),
        AuthAction::CreateTrigger { trigger_name, table_name } => {
            Use::Ddl(Ddl::CreateTrigger(trigger_name.to_owned(), table_name.to_owned()))
        }
        AuthAction::DropTrigger { trigger_name, table_name } => {
            Use::Ddl(Ddl::DropTrigger(trigger_name.to_owned(), table_name.to_owned()))
        }
        AuthAction::CreateView { view_name } => Use::Ddl(Ddl::CreateView(view_name.to_owned())),
        AuthAction::DropView { view_name } => Use::Ddl(Ddl::DropView(view_name.to_owned())),
        AuthAction::CreateTempView { .. } | AuthAction::DropTempView { .. } => Use::Ddl(Ddl::TemporaryView),
        AuthAction::CreateTempTable { .. } | AuthAction::CreateTempIndex { .. } => {
            Use::Ddl(Ddl::Refused("a temporary table"))
        }
        AuthAction::CreateTempTrigger { .. } => Use::Ddl(Ddl::Refused("a temporary trigger")),
        AuthAction::CreateVtable { .. } | AuthAction::DropVtable { .. } => Use::Ddl(Ddl::Refused("a virtual table")),
        _ => return Authorization::Allow,
    };
    // The receiver lives as long as the connection.
    let _ = sender.unbounded_send(used);
    Authorization::Allow
}

fn internal(table: &str) -> bool {
    table.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"))
}
