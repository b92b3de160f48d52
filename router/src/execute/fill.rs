//! Filling lookup tables that were made for rows there are. From the moment there is such a table, every write keeps it; the
//! rows from before are entered batch by batch, each in a transaction that holds the lock of the rows' shard. Whatever happens
//! in between, a row's entry is there once, since it names the row.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dosql_actors::Call;
use dosql_proto::{Error, ErrorCode, Row, Statement, value::Kind};

use super::shard_rows::Asked;
use super::{Scope, Shared};
use crate::catalog::versions::Logged;
use crate::catalog::{Definition, Filled, Lookup, OWNER_ROW};
use crate::sql_text::quote;

/// Rows that are entered at a time.
const ROWS_AT_ONCE: usize = 500;
/// How long one batch may take, in milliseconds.
const BATCH_TIMEOUT_MS: u64 = 30_000;
/// The pause after one that failed, in milliseconds.
const PAUSE_MS: u64 = 500;

impl Shared {
    /// Fills the lookup tables that a request has made, while it waits.
    ///
    /// # Errors
    /// `CONSTRAINT` where two rows have a value that is to be unique: then the vindex is dropped again. `UNAVAILABLE` where it takes
    /// longer, and goes on by itself.
    pub(super) async fn fill_lookups(&self, request_id: &str, call: &Scope) -> Result<(), Error> {
        loop {
            let error = match self.fill_all(call).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.code() == ErrorCode::Constraint {
                self.catalog.borrow().fail_request(request_id, &error)?;
                return Err(error);
            }
            if call.deadline_ms != 0 && self.context.now_ms() + PAUSE_MS >= call.deadline_ms {
                self.go_on_filling();
                let message =
                    format!("a lookup table is being filled still, and is not read before: {}", error.message);
                return Err(Error::retryable(ErrorCode::Unavailable, message, PAUSE_MS));
            }
            tracing::debug!(%error, "filling a lookup table goes on");
            self.context.sleep(Duration::from_millis(PAUSE_MS)).await;
        }
    }

    /// Fills what is not filled yet beside everything else.
    pub(super) fn go_on_filling(&self) {
        let Some(shared) = self.me.upgrade() else { return };
        self.context.spawn(async move {
            loop {
                let filled = {
                    let _alone = shared.changing.lock().await;
                    let call = shared.scope(&Call::system(), BATCH_TIMEOUT_MS, None);
                    shared.fill_all(&call).await
                };
                match filled {
                    Ok(()) => return,
                    Err(error) if error.code() == ErrorCode::Constraint => {
                        tracing::warn!(%error, "a lookup vindex is dropped: two rows have the same value");
                    }
                    Err(error) => tracing::debug!(%error, "filling a lookup table goes on"),
                }
                shared.context.sleep(Duration::from_millis(PAUSE_MS)).await;
            }
        });
    }

    async fn fill_all(&self, call: &Scope) -> Result<(), Error> {
        loop {
            let unfilled = self.catalog.borrow().unfilled()?;
            let Some((lookup, filled)) = unfilled.into_iter().next() else { return Ok(()) };
            let error = match self.fill_lookup(&lookup, filled).await {
                Ok(()) => continue,
                Err(error) => lookup.definition.of_owner(error),
            };
            if error.code() == ErrorCode::Constraint {
                let mut vschema = self.catalog.borrow().version.vschema.clone();
                vschema.drop_lookup(&lookup.definition.owner, &lookup.definition.name);
                let logged = Logged { vschema, document: None };
                self.change_vschema(logged, &self.request_id(String::new()), call).await?;
            }
            return Err(error);
        }
    }

    /// Enters the rows there are, from where this was left.
    async fn fill_lookup(&self, lookup: &Rc<Lookup>, mut filled: Filled) -> Result<(), Error> {
        let shards = self.catalog.borrow().shards.len();
        let table = &lookup.definition.table;
        while filled.shard < shards {
            let call = self.scope(&Call::system(), BATCH_TIMEOUT_MS, None);
            let (shard, after) = (filled.shard, &filled.last_row);
            let id = self.request_id(String::new());
            let (last_row, _) = self
                .transact(&id, &call, |scope| async move { self.enter_rows(lookup, shard, after, &scope).await })
                .await?;
            filled = match last_row.values.is_empty() {
                true => Filled { shard: shard + 1, last_row },
                false => Filled { shard, last_row },
            };
            self.catalog.borrow_mut().note_filled(table, Some(&filled))?;
        }
        self.catalog.borrow_mut().note_filled(table, None)?;
        // What was planned without it may use it now.
        self.plans.borrow_mut().clear();
        tracing::info!(table, "a lookup table has all entries");
        Ok(())
    }

    /// Enters the rows of one shard that come next after one; what identifies the last of them, or nothing.
    async fn enter_rows(&self, lookup: &Lookup, shard: usize, after: &Row, scope: &Scope) -> Result<Row, Error> {
        let transaction =
            scope.transaction().ok_or_else(|| Error::internal("rows are entered without a transaction"))?;
        // Nobody else writes rows there that this does not see.
        self.lock(transaction, shard, scope).await?;
        let definition = &lookup.definition;
        let statement = next_rows(definition, after);
        let asked = Asked { shard, statement, max_bytes: 1 << 20, max_rows: 0, step: "fill", table: &definition.table };
        let rows = self.all_of(asked, scope).await?;
        let mut parts: BTreeMap<usize, Vec<Statement>> = BTreeMap::new();
        for row in &rows {
            let rowid = match row.values.get(2).and_then(|value| value.kind.as_ref()) {
                Some(Kind::Integer(rowid)) => *rowid,
                _ => 0,
            };
            if let Some(entry) = definition.entry(&row.values, rowid) {
                let statement = enter(definition, entry.clone().into_row());
                parts.entry(self.shard_of_entry(lookup, &entry)?).or_default().push(statement);
            }
        }
        if !parts.is_empty() {
            self.write_all(transaction, parts.into_iter().collect(), &[], scope).await?;
        }
        Ok(Row { values: rows.last().map(|row| row.values[2..].to_vec()).unwrap_or_default() })
    }
}

/// Reads the columns that entries are made of, in the order of the rows' identities, which come last.
fn next_rows(definition: &Definition, after: &Row) -> Statement {
    let terms = definition.identity.terms().join(", ");
    let (column, key, owner) = (quote(&definition.column), quote(&definition.key), quote(&definition.owner));
    let rest = match after.values.len() {
        0 => String::new(),
        count => format!(" WHERE ({terms}) > ({})", vec!["?"; count].join(", ")),
    };
    let sql = format!("SELECT {column}, {key}, {terms} FROM {owner}{rest} ORDER BY {terms} LIMIT {ROWS_AT_ONCE}");
    Statement { sql, params: after.values.clone() }
}

/// Inserts an entry that is not there yet.
fn enter(definition: &Definition, entry: Row) -> Statement {
    let [from, to, row] = definition.entry_columns();
    let table = quote(&definition.table);
    let sql = format!(
        "INSERT INTO {table} ({from}, {to}, {row}) SELECT ?1, ?2, ?3 WHERE NOT EXISTS \
         (SELECT 1 FROM {table} WHERE {from} = ?1 AND {to} IS ?2 AND {OWNER_ROW} IS ?3)"
    );
    Statement { sql, params: entry.values }
}
