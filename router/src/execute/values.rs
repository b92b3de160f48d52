//! INSERT ... VALUES: each row goes to its shard.

use std::collections::BTreeMap;

use dosql_actors::runtime::TransactionMode;
use dosql_proto::{Error, ErrorCode, ExecuteResponse, Statement, StatementResult, Value};
use sqlparser::ast::{Expr, SetExpr, Value as Literal};

use super::selected::add;
use super::{Scope, Shared};
use crate::plan::{Insert, InsertSource, KeySource, Plan, rows_of};
use crate::sql_text;

/// Most rows of a statement that is run again in their order, to tell which of them fails first.
const MAX_ORDERED_ROWS: usize = 128;

/// How a shard's rows are put together.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grouping {
    /// All of them in one statement.
    ByShard,
    /// At most so many that come one after the other, for statements that run in the order of the rows.
    InOrder { at_once: usize },
}

impl Grouping {
    /// The rows of each statement, given the shard of each row.
    fn of(self, shards: Vec<usize>) -> Vec<(usize, Vec<usize>)> {
        let rows = shards.into_iter().enumerate();
        match self {
            Self::ByShard => {
                let mut split: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
                rows.for_each(|(row, shard)| split.entry(shard).or_default().push(row));
                split.into_iter().collect()
            }
            Self::InOrder { at_once } => {
                let mut runs: Vec<(usize, Vec<usize>)> = Vec::new();
                for (row, shard) in rows {
                    match runs.last_mut() {
                        Some((last, rows)) if *last == shard && rows.len() < at_once => rows.push(row),
                        _ => runs.push((shard, vec![row])),
                    }
                }
                runs
            }
        }
    }
}

impl Shared {
    /// The statements for each shard, row by row; `None` where it must be worked out here.
    pub(super) async fn split_values(
        &self,
        insert: &Insert,
        mut params: Vec<Value>,
        grouping: Grouping,
        call: &Scope,
    ) -> Result<Option<Vec<(usize, Vec<Statement>)>>, Error> {
        let keys = insert.keys.as_ref().ok_or_else(|| Error::internal("VALUES without keys"))?;
        for given in &insert.given_rowids {
            if self.key_value(given, &params)?.is_null() {
                return Ok(None);
            }
        }
        let mut shards = Vec::with_capacity(keys.values.len());
        // Keys that were evaluated here, so that the shard does not evaluate them to something else.
        let mut evaluated = Vec::new();
        let mut whole = (&insert.tree, &insert.sql);
        if let Some(rowids) = &insert.rowids {
            let first = self.take_rowids(&rowids.table, keys.values.len(), call).await?;
            params.truncate(rowids.parameters);
            params.extend((0..keys.values.len() as i64).map(|row| Value::from(first.saturating_add(row))));
            whole = (&rowids.tree, &rowids.sql);
        }
        let (tree, sql) = whole;
        for (row, key) in keys.values.iter().enumerate() {
            let value = self.key_value(key, &params)?;
            if insert.key_is_rowid && value.is_null() {
                return Ok(None);
            }
            shards.push(self.shard_for(&value, keys)?);
            if let KeySource::Expression(text) = key {
                params.push(value);
                evaluated.push((row, text.clone(), params.len()));
            }
        }
        let mut parts = grouping.of(shards);
        if evaluated.is_empty() && parts.len() == 1 {
            let (shard, _) = parts.remove(0);
            return Ok(Some(vec![(shard, vec![Statement { sql: sql.clone(), params }])]));
        }
        if parts.len() > 1 && insert.otherwise.is_some() && tree.returning.is_some() {
            return Ok(None);
        }
        let all = tree.source.as_deref().and_then(rows_of).ok_or_else(|| Error::internal("VALUES without rows"))?;
        parts
            .into_iter()
            .map(|(shard, rows)| {
                let mut tree = tree.clone();
                let Some(SetExpr::Values(values)) = tree.source.as_mut().map(|source| source.body.as_mut()) else {
                    return Err(Error::internal("VALUES without rows"));
                };
                values.rows = rows.iter().map(|row| all[*row].clone()).collect();
                for (place, row) in rows.iter().enumerate() {
                    for (_, text, number) in evaluated.iter().filter(|(evaluated, ..)| evaluated == row) {
                        for expression in &mut values.rows[place].content {
                            if expression.to_string() == *text {
                                *expression = Expr::value(Literal::Placeholder(format!("?{number}")));
                                break;
                            }
                        }
                    }
                }
                let (sql, params) = sql_text::compact_parameters(&tree.to_string(), &params);
                Ok((shard, vec![Statement { sql, params }]))
            })
            .collect::<Result<_, Error>>()
            .map(Some)
    }

    /// Whether an INSERT that failed, and left nothing behind, may have a row before the one that is told of which fails too:
    /// all shards run their rows at once, and lookup tables change after them.
    pub(super) fn may_hide_an_earlier(&self, error: &Error, insert: &Insert, call: &Scope) -> bool {
        let rows = insert.keys.as_ref().map_or(0, |keys| keys.values.len());
        let undone =
            call.transaction().is_some() || self.context.settings().transaction_mode == TransactionMode::TwoPhase;
        let of_a_row = matches!(error.code(), ErrorCode::Constraint | ErrorCode::TypeMismatch | ErrorCode::SqlError);
        matches!(insert.source, InsertSource::Values) && (2..=MAX_ORDERED_ROWS).contains(&rows) && undone && of_a_row
    }

    /// Runs an INSERT that has failed with `error` again, row after row, so that the first row that fails is the one told of.
    pub(super) async fn insert_in_order(
        &self,
        (insert, plan): (&Insert, &Plan),
        params: &[Value],
        error: &Error,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let at_once = if plan.kept.is_empty() { MAX_ORDERED_ROWS } else { 1 };
        self.as_one(request_id, call, |scope| async move {
            let parts = self.split_values(insert, params.to_vec(), Grouping::InOrder { at_once }, &scope).await?;
            let parts = parts.filter(|parts| parts.len() > 1).ok_or_else(|| error.clone())?;
            let mut result = StatementResult { columns: plan.columns.clone(), ..StatementResult::default() };
            for part in parts {
                add(&mut result, self.write_keeping(vec![part], &plan.kept, request_id, &scope).await?, false);
            }
            Ok(ExecuteResponse { result: Some(result), bookmark: String::new() })
        })
        .await
    }
}
