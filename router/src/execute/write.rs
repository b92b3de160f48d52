//! Writes. What is on one shard is one transaction there, and is remembered there under the request's id; what is on several is
//! one transaction over all of them.

use std::rc::Rc;

use dosql_proto::{BatchResponse, Error, ErrorCode, ExecuteResponse, ShardExecuted, Statement, StatementResult};

use super::selected::add;
use super::shards::executed;
use super::transact::Work;
use super::values::Grouping;
use super::{Scope, Shared, check_count};
use crate::catalog::unsupported;
use crate::plan::{InsertSource, KeySource, Plan, Read, Step, Target};
use crate::sql_text;

/// How often a statement is run whose rowids turn out to be taken.
const MAX_ROWID_ATTEMPTS: u32 = 4;

impl Shared {
    /// Runs a statement that writes.
    pub(super) async fn write(
        &self,
        plan: &Plan,
        statement: Statement,
        request_id: String,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        call.go_on();
        if call.transaction().is_some()
            && matches!(plan.step, Step::Ddl { .. } | Step::AlterVSchema(_) | Step::AlterLake(_))
        {
            return Err(unsupported("a schema change within a transaction is not supported"));
        }
        let chosen = !request_id.is_empty();
        let request_id = self.request_id(request_id);
        match &plan.step {
            Step::Ddl { sql } => return self.change_schema(sql, &request_id, call).await,
            Step::AlterVSchema(change) => return self.alter_vschema(change, &request_id, call).await,
            Step::AlterLake(change) => return self.alter_lake(change, call).await,
            _ => {}
        }
        let (inside, waited) = self.gate.enter().await;
        if waited {
            drop(inside);
            let (anew, _) = self.planned(&statement.sql)?;
            check_count(anew.parameter_count, &statement.params)?;
            return Box::pin(self.write(&anew, statement, request_id, call)).await;
        }
        let _inside = inside;
        self.write_inside(plan, statement, (&request_id, chosen), call).await
    }

    /// Runs a statement that changes rows, while whoever calls is inside the gate. The request's id may be one that the client has
    /// chosen.
    pub(super) async fn write_inside(
        &self,
        plan: &Plan,
        statement: Statement,
        (request_id, chosen): (&str, bool),
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        if let Step::Generate(generate) = &plan.step {
            return self.write_generated(generate, statement, (request_id, chosen), call).await;
        }
        let reads = match &plan.step {
            Step::Insert(insert) => matches!(insert.source, InsertSource::Select { .. }),
            Step::Staged(_) | Step::Write { target: Target::Lookup(_), .. } => true,
            _ => false,
        };
        let mut attempt = 1;
        loop {
            let done = match reads || !plan.kept.is_empty() {
                // What it reads and what it writes are one transaction.
                true => self.write_reading(plan, statement.clone(), request_id, call).await,
                false => self.write_parts_of(plan, statement.clone(), request_id, call).await,
            };
            match (&done, &plan.step) {
                (Err(error), Step::Insert(insert))
                    if attempt < MAX_ROWID_ATTEMPTS
                        && insert.rowids.as_ref().is_some_and(|rowids| self.rowid_was_taken(&rowids.table, error)) =>
                {
                    attempt += 1;
                }
                (Err(error), Step::Insert(insert)) if self.may_hide_an_earlier(error, insert, call) => {
                    return self.insert_in_order((insert, plan), &statement.params, error, request_id, call).await;
                }
                _ => return done,
            }
        }
    }

    /// Runs a statement as a transaction of its own, or as a part of the one it belongs to.
    async fn write_reading(
        &self,
        plan: &Plan,
        statement: Statement,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        self.as_one(request_id, call, |scope| {
            let statement = statement.clone();
            async move { self.write_parts_of(plan, statement, request_id, &scope).await }
        })
        .await
    }

    /// Runs `run` as a transaction of its own, or as a part of the one it belongs to.
    pub(super) async fn as_one<F: Future<Output = Result<ExecuteResponse, Error>>>(
        &self,
        request_id: &str,
        call: &Scope,
        run: impl Fn(Scope) -> F,
    ) -> Result<ExecuteResponse, Error> {
        let (mut response, lsns) = self.transact(request_id, call, run).await?;
        if !lsns.is_empty() {
            response.bookmark = self.bookmark(lsns);
        }
        Ok(response)
    }

    async fn write_parts_of(
        &self,
        plan: &Plan,
        statement: Statement,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let params = statement.params;
        let (parts, reference) = match &plan.step {
            Step::Write { target, sql, reference } => {
                let shards = self.resolve_in(target, &params, call).await?;
                let parts = shards
                    .into_iter()
                    .map(|shard| (shard, vec![Statement { sql: sql.clone(), params: params.clone() }]))
                    .collect();
                (parts, *reference)
            }
            Step::Insert(insert) => match &insert.source {
                InsertSource::Select { .. } => {
                    return self.insert_selected(insert, plan, &params, request_id, call).await;
                }
                InsertSource::Values => match self.split_values(insert, params.clone(), Grouping::ByShard, call).await?
                {
                    Some(parts) => (parts, insert.is_reference()),
                    None => {
                        let staged =
                            insert.otherwise.as_ref().ok_or_else(|| Error::internal("no other way to INSERT"))?;
                        let params = &params;
                        return self
                            .as_one(request_id, call, |scope| async move {
                                self.write_staged(staged, plan, params, request_id, &scope).await
                            })
                            .await;
                    }
                },
            },
            Step::Staged(staged) => {
                return self.write_staged(staged, plan, &params, request_id, call).await;
            }
            _ => return Err(Error::internal("the plan does not write")),
        };
        let _in_order = match reference {
            true => Some(self.copying.lock().await),
            false => None,
        };
        let upkeep = matches!(&plan.step, Step::Write { sql, .. } if maintains(sql));
        let done = match upkeep && call.transaction().is_none() {
            true => self.write_parts(parts, request_id, call).await?,
            false => self.write_keeping(parts, &plan.kept, request_id, call).await?,
        };
        let bookmark = self.bookmark(done.iter().map(|(shard, executed)| (*shard, executed.lsn)));
        let mut result = StatementResult { columns: plan.columns.clone(), ..StatementResult::default() };
        add(&mut result, done, reference);
        Ok(ExecuteResponse { result: Some(result), bookmark })
    }

    /// Sends each shard its part, which it commits by itself.
    pub(super) async fn write_parts<W: Into<Work>>(
        &self,
        parts: Vec<(usize, W)>,
        request_id: &str,
        call: &Scope,
    ) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        let count = parts.len();
        let outcomes = self
            .on_each(parts, |(shard, work)| {
                let request = work.into().request(self.part_id(request_id, shard), None, &[]);
                async move { Ok((shard, executed(self.ask(shard, request, call).await?)?)) }
            })
            .await;
        let applied = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        outcomes.into_iter().collect::<Result<_, Error>>().map_err(|error| partial(error, applied, count))
    }

    /// Runs several statements as one transaction.
    pub(super) async fn write_batch(
        &self,
        statements: Vec<Statement>,
        request_id: String,
        call: &Scope,
    ) -> Result<BatchResponse, Error> {
        let request_id = self.request_id(request_id);
        let (_inside, _) = self.gate.enter().await;
        if statements.is_empty() {
            return Ok(BatchResponse::default());
        }
        let mut plans = Vec::with_capacity(statements.len());
        for (index, statement) in statements.iter().enumerate() {
            let plan = self.plan(&statement.sql, call).map_err(|error| in_batch(index, error))?;
            check_count(plan.parameter_count, &statement.params)
                .and_then(|()| refuse_in_batch(&plan))
                .map_err(|error| in_batch(index, error))?;
            plans.push(plan);
        }
        let place = match call.transaction() {
            Some(_) => None,
            None => self.one_shard(&plans, &statements, call).await?,
        };
        match place {
            Some((shard, writes)) => self.batch_on(shard, writes, &plans, statements, &request_id, call).await,
            None => self.batch_anywhere(&plans, statements, &request_id, call).await,
        }
    }

    /// A batch that one shard can run by itself.
    async fn batch_on(
        &self,
        shard: usize,
        writes: bool,
        plans: &[Rc<Plan>],
        statements: Vec<Statement>,
        request_id: &str,
        call: &Scope,
    ) -> Result<BatchResponse, Error> {
        let id = if writes { self.part_id(request_id, shard) } else { String::new() };
        let explained: Vec<_> =
            statements.iter().map(|statement| self.plan_asked(&statement.sql, &statement.params, call)).collect();
        let done = self.execute_on(shard, statements, id, call).await?;
        let bookmark = self.bookmark([(shard, done.lsn)]);
        let results = done
            .results
            .into_iter()
            .zip(plans.iter().zip(explained))
            .map(|(result, (plan, query_plan))| StatementResult { columns: plan.columns.clone(), query_plan, ..result })
            .collect();
        Ok(BatchResponse { results, bookmark })
    }

    /// A batch over several shards.
    async fn batch_anywhere(
        &self,
        plans: &[Rc<Plan>],
        statements: Vec<Statement>,
        request_id: &str,
        call: &Scope,
    ) -> Result<BatchResponse, Error> {
        let statements = &statements;
        let (mut response, lsns) = self
            .transact(request_id, call, |scope| async move {
                let mut results = Vec::with_capacity(statements.len());
                for (index, (plan, statement)) in plans.iter().zip(statements).enumerate() {
                    let done = self.batch_statement(plan, statement.clone(), request_id, &scope).await;
                    results.push(done.map_err(|error| in_batch(index, error))?);
                }
                Ok(BatchResponse { results, bookmark: String::new() })
            })
            .await?;
        response.bookmark = self.bookmark(lsns);
        Ok(response)
    }

    async fn batch_statement(
        &self,
        plan: &Plan,
        statement: Statement,
        request_id: &str,
        scope: &Scope,
    ) -> Result<StatementResult, Error> {
        let query_plan = self.plan_asked(&statement.sql, &statement.params, scope);
        if plan.writes() {
            let done = self.write_inside(plan, statement, (request_id, false), scope).await?;
            return Ok(StatementResult { query_plan, ..done.result.unwrap_or_default() });
        }
        let (rows, cursor) = self.rows(plan, statement, super::MAX_BATCH_BYTES, scope).await?;
        if cursor.is_some() {
            let message = format!("the result has more than {} bytes; use Query", super::MAX_BATCH_BYTES);
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        Ok(StatementResult { columns: plan.columns.clone(), rows, query_plan, ..StatementResult::default() })
    }

    /// The one shard that a batch's statements can all run on as they are, where there is one, and whether they write.
    async fn one_shard(
        &self,
        plans: &[Rc<Plan>],
        statements: &[Statement],
        call: &Scope,
    ) -> Result<Option<(usize, bool)>, Error> {
        let mut place: Option<usize> = None;
        let mut writes = false;
        for (index, (plan, statement)) in plans.iter().zip(statements).enumerate() {
            let shards = self.batch_shards(plan, statement, call).await.map_err(|error| in_batch(index, error))?;
            writes |= plan.writes();
            match shards.as_deref() {
                // Any shard will do.
                Some([]) => {}
                Some([shard]) if place.is_none_or(|known| known == *shard) => place = Some(*shard),
                _ => return Ok(None),
            }
        }
        let anywhere = || self.resolve(&Target::Any, &[]).map(|shards| shards.first().copied().unwrap_or_default());
        Ok(Some((place.map_or_else(anywhere, Ok)?, writes)))
    }

    /// The shards that can run a statement as it is; none where any can; `None` where it must be taken apart.
    async fn batch_shards(
        &self,
        plan: &Plan,
        statement: &Statement,
        call: &Scope,
    ) -> Result<Option<Vec<usize>>, Error> {
        if !plan.kept.is_empty() {
            return Ok(None);
        }
        let params = &statement.params;
        Ok(match &plan.step {
            Step::Read(Read::Pinned { pins, .. }) => {
                let pins = pins.iter().filter(|pin| **pin != Target::Any);
                Some(self.resolve_each(pins, params, call).await?)
            }
            // What is looked up must hold still when it is written.
            Step::Write { target: Target::Lookup(_), .. } => None,
            Step::Read(Read::Concatenate { target, .. }) | Step::Write { target, .. } => {
                Some(self.resolve_in(target, params, call).await?)
            }
            Step::Read(Read::Merge(merge)) => Some(self.resolve_in(&merge.target, params, call).await?),
            Step::Read(Read::Gather(gather)) => match gather.inputs.as_slice() {
                [input] => Some(self.resolve_in(&input.target, params, call).await?),
                _ => None,
            },
            // Its rows need rowids that are given here.
            Step::Insert(insert) if insert.rowids.is_some() => None,
            Step::Insert(insert) => {
                let computed = insert
                    .keys
                    .as_ref()
                    .is_some_and(|keys| keys.values.iter().any(|key| matches!(key, KeySource::Expression(_))));
                match insert.source {
                    InsertSource::Values if !computed => {
                        let parts =
                            self.split_values(insert, statement.params.clone(), Grouping::ByShard, call).await?;
                        parts.map(|parts| parts.into_iter().map(|(shard, _)| shard).collect())
                    }
                    _ => None,
                }
            }
            _ => None,
        })
    }
}

/// Whether a statement changes no rows, but what SQLite knows of them: each shard does that for itself.
fn maintains(sql: &str) -> bool {
    sql_text::leading_words(sql, 1).first().is_some_and(|word| word == "ANALYZE" || word == "REINDEX")
}

/// Says which statement of a batch an error is about.
fn in_batch(index: usize, error: Error) -> Error {
    Error { message: format!("statement {}: {}", index + 1, error.message), ..error }
}

fn refuse_in_batch(plan: &Plan) -> Result<(), Error> {
    match &plan.step {
        Step::Ddl { .. } | Step::AlterVSchema(_) | Step::AlterLake(_) => {
            Err(unsupported("a schema change in a batch is not supported: send it by itself"))
        }
        Step::Catalog { .. } | Step::Pragma { .. } | Step::Explain { .. } | Step::Show(_) | Step::Promote(_) => {
            Err(unsupported("PRAGMA, EXPLAIN, SHOW, PROMOTE and sqlite_schema in a batch are not supported"))
        }
        _ => Ok(()),
    }
}

/// Says what an error on one shard left on the others.
pub(super) fn partial(error: Error, applied: usize, count: usize) -> Error {
    if applied == 0 || error.code() == ErrorCode::Unspecified {
        return error;
    }
    let message = format!(
        "{} ({applied} of {count} shards have applied their part; a retry with the same request id completes the others)",
        error.message
    );
    Error { message, ..error }
}
