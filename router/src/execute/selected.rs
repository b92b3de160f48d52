//! INSERT ... SELECT: the rows are read first, to the end, and kept in a scratch database where they are many; then they are
//! written batch by batch, all in one transaction.

use dosql_proto::{Error, ExecuteResponse, Row, ShardExecuted, Statement, StatementResult, Value};
use sqlparser::ast;
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

use super::read::Reading;
use super::sequences::Numbered;
use super::{MAX_BATCH_BYTES, Scope, Shared};
use crate::plan::{Generate, Insert, InsertSource, Plan, Read};
use crate::sql_text;

/// Parameters in one statement, as SQLite limits them.
const MAX_PARAMETERS: usize = 32_766;
/// Rows in one INSERT.
const ROWS_AT_ONCE: usize = 500;

impl Insert {
    /// Whether every shard gets every row.
    pub(super) fn is_reference(&self) -> bool {
        self.keys.is_none() && self.target == crate::plan::Target::All
    }
}

impl Shared {
    /// Runs an INSERT ... SELECT within the call's transaction.
    pub(super) async fn insert_selected(
        &self,
        insert: &Insert,
        plan: &Plan,
        params: &[Value],
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let transaction =
            call.transaction().ok_or_else(|| Error::internal("selected rows are inserted outside a transaction"))?;
        let savepoint = insert.otherwise.as_ref().map(|_| transaction.set_savepoint(""));
        let returns = insert.otherwise.is_some() && insert.tree.returning.is_some();
        let inserted = match returns {
            true => Ok(None),
            false => self.insert_batches(insert, plan, params, request_id, call).await,
        };
        if let Some(savepoint) = savepoint {
            if !matches!(inserted, Ok(Some(_))) && !returns {
                self.roll_back_to(transaction, savepoint, call).await;
            }
            transaction.release(savepoint);
        }
        match inserted? {
            Some(done) => Ok(done),
            None => {
                let staged = insert.otherwise.as_ref().ok_or_else(|| Error::internal("no other way to INSERT"))?;
                self.write_staged(staged, plan, params, request_id, call).await
            }
        }
    }

    /// Inserts what is selected, batch by batch; `None` where a row must be worked out here.
    async fn insert_batches(
        &self,
        insert: &Insert,
        plan: &Plan,
        params: &[Value],
        request_id: &str,
        call: &Scope,
    ) -> Result<Option<ExecuteResponse>, Error> {
        let InsertSource::Select { read, width, key } = &insert.source else {
            return Err(Error::internal("rows of VALUES are not selected"));
        };
        let reading = Reading { params, width: *width, max_bytes: MAX_BATCH_BYTES };
        let (mut rows, mut rest) = self.open_selected(read, reading, call).await?;
        let reference = insert.is_reference();
        let _in_order = match reference {
            true => Some(self.copying.lock().await),
            false => None,
        };
        let mut result = StatementResult { columns: plan.columns.clone(), ..StatementResult::default() };
        let mut lsns = Vec::new();
        loop {
            if !rows.is_empty() {
                let Some(parts) = self.split_selected(insert, *key, rows, params, call).await? else {
                    return Ok(None);
                };
                let done = self.write_keeping(parts, &plan.kept, request_id, call).await?;
                lsns.extend(done.iter().map(|(shard, executed)| (*shard, executed.lsn)));
                add(&mut result, done, reference);
            }
            let Some(open) = &mut rest else { break };
            let (more, last) = self.advance(open, call).await?;
            rows = more;
            if last {
                rest = None;
            }
        }
        Ok(Some(ExecuteResponse { result: Some(result), bookmark: self.bookmark(lsns) }))
    }

    /// Selected rows as statements for each shard; `None` where a row must be worked out here.
    async fn split_selected(
        &self,
        insert: &Insert,
        key: Option<usize>,
        rows: Vec<Row>,
        params: &[Value],
        call: &Scope,
    ) -> Result<Option<Vec<(usize, Vec<Statement>)>>, Error> {
        let mut split: Vec<Vec<Row>> = vec![Vec::new(); self.catalog.borrow().shards.len()];
        match (&insert.keys, key) {
            (Some(keys), Some(key)) => {
                let mut rowid = match &insert.rowids {
                    Some(rowids) => Some(self.take_rowids(&rowids.table, rows.len(), call).await?),
                    None => None,
                };
                for mut row in rows {
                    let value = row.values.get(key).ok_or_else(|| Error::internal("a selected row is too short"))?;
                    if insert.key_is_rowid && value.is_null() {
                        return Ok(None);
                    }
                    let shard = self.shard_for(value, keys)?;
                    if let Some(rowid) = &mut rowid {
                        row.values.insert(0, (*rowid).into());
                        *rowid = rowid.saturating_add(1);
                    }
                    split[shard].push(row);
                }
            }
            _ => {
                for shard in self.resolve(&insert.target, &[])? {
                    split[shard].clone_from(&rows);
                }
            }
        }
        let tree = insert.rowids.as_ref().map_or(&insert.tree, |rowids| &rowids.tree);
        split
            .into_iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(shard, rows)| Ok((shard, inserts_of(tree, rows, params)?)))
            .collect::<Result<_, Error>>()
            .map(Some)
    }

    /// Runs an INSERT ... SELECT into a table one of whose columns a sequence fills.
    pub(super) async fn insert_numbered(
        &self,
        generate: &Generate,
        (read, width): (&Read, usize),
        params: &[Value],
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let (tree, place) = generate.of_rows();
        let tree = &tree;
        let numbered = Numbered { table: &generate.table, column: &generate.column, sequence: &generate.sequence };
        self.as_one(request_id, call, |scope| async move {
            let reading = Reading { params, width, max_bytes: MAX_BATCH_BYTES };
            let (mut rows, mut rest) = self.open_selected(read, reading, &scope).await?;
            let mut result = StatementResult { columns: generate.given.columns.clone(), ..StatementResult::default() };
            loop {
                if generate.is_missing() {
                    for row in &mut rows {
                        row.values.insert(place, Value::NULL);
                    }
                }
                let values: Vec<&mut Value> = rows.iter_mut().filter_map(|row| row.values.get_mut(place)).collect();
                let last = self.number(numbered, values.into_iter(), None)?;
                for statement in inserts_of(tree, rows, params)? {
                    let plan = self.plan_given(&statement.sql)?;
                    let done = Box::pin(self.write_inside(&plan, statement, (request_id, false), &scope)).await?;
                    let done = done.result.unwrap_or_default();
                    result.rows_affected += done.rows_affected;
                    result.rows.extend(done.rows);
                    result.last_insert_rowid = last.unwrap_or(done.last_insert_rowid);
                }
                let Some(open) = &mut rest else { break };
                let (more, done) = self.advance(open, &scope).await?;
                rows = more;
                if done {
                    rest = None;
                }
            }
            Ok(ExecuteResponse { result: Some(result), bookmark: String::new() })
        })
        .await
    }
}

/// Adds what shards did to what a statement did.
pub(super) fn add(result: &mut StatementResult, done: Vec<(usize, ShardExecuted)>, reference: bool) {
    for (_, executed) in done {
        for one in executed.results {
            result.rows_affected += one.rows_affected;
            result.rows.extend(one.rows);
            // Where rows went to several shards, the last one has the highest.
            if one.last_insert_rowid > result.last_insert_rowid || result.last_insert_rowid == 0 {
                result.last_insert_rowid = one.last_insert_rowid;
            }
        }
        if reference {
            // Every copy says the same.
            break;
        }
    }
}

/// INSERTs of selected rows, each within SQLite's limit of parameters, with the original's conflict clauses and RETURNING.
fn inserts_of(tree: &ast::Insert, rows: Vec<Row>, params: &[Value]) -> Result<Vec<Statement>, Error> {
    let width = rows.first().map_or(1, |row| row.values.len().max(1));
    // The conflict clause may have parameters of its own.
    let at_once = ((MAX_PARAMETERS - params.len().min(MAX_PARAMETERS - width)) / width).clamp(1, ROWS_AT_ONCE);
    let marker = "SELECT _dosql_rows";
    let query = Parser::new(&SQLiteDialect {})
        .try_with_sql(marker)
        .and_then(|mut parser| parser.parse_query())
        .map_err(|error| Error::internal(error.to_string()))?;
    let mut tree = tree.clone();
    tree.source = Some(query);
    let text = tree.to_string();
    let mut statements = Vec::new();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let mut values = params.to_vec();
        let mut lists = Vec::new();
        for row in rows.by_ref().take(at_once) {
            let first = values.len() + 1;
            let places: Vec<String> = (first..first + row.values.len()).map(|number| format!("?{number}")).collect();
            lists.push(format!("({})", places.join(", ")));
            values.extend(row.values);
        }
        let text = text.replacen(marker, &format!("VALUES {}", lists.join(", ")), 1);
        let (sql, params) = sql_text::compact_parameters(&text, &values);
        statements.push(Statement { sql, params });
    }
    Ok(statements)
}
