//! Values that sequences give to rows.

use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, ExecuteResponse, Row, Statement, Value, value::Kind};

use super::{Scope, Shared};
use crate::affinity::Affinity;
use crate::plan::{Cached, Generate, GenerateSource, Plan, Slot};
use crate::sql_text::quote;

/// A column that a sequence fills.
#[derive(Clone, Copy)]
pub(super) struct Numbered<'a> {
    pub(super) table: &'a str,
    pub(super) column: &'a str,
    pub(super) sequence: &'a str,
}

impl Shared {
    /// Runs an INSERT into a table one of whose columns a sequence fills.
    pub(super) async fn write_generated(
        &self,
        generate: &Generate,
        statement: Statement,
        (request_id, chosen): (&str, bool),
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let rows = match &generate.source {
            GenerateSource::Values(rows) => rows,
            GenerateSource::Select { read, width } => {
                return self.insert_numbered(generate, (read, *width), &statement.params, request_id, call).await;
            }
        };
        let mut values = Vec::with_capacity(rows.len());
        for slot in rows {
            values.push(match slot {
                Slot::Missing => Value::NULL,
                Slot::Value(source) => self.key_value(source, &statement.params)?,
            });
        }
        let numbered = Numbered { table: &generate.table, column: &generate.column, sequence: &generate.sequence };
        // A transaction's outcome is remembered as a whole.
        let again = (chosen && call.transaction().is_none()).then_some(request_id);
        let generated = self.number(numbered, values.iter_mut(), again)?;
        let Some(last) = generated else {
            return Box::pin(self.write_inside(&generate.given, statement, (request_id, chosen), call)).await;
        };
        let (sql, params) = generate.with_values(statement.params, values)?;
        let plan = self.plan_given(&sql)?;
        let statement = Statement { sql, params };
        let mut done = Box::pin(self.write_inside(&plan, statement, (request_id, chosen), call)).await?;
        if let Some(result) = &mut done.result {
            result.last_insert_rowid = last;
        }
        Ok(done)
    }

    /// Puts numbers in the place of NULLs, and has the sequence go on after the others. The last number given, if any. `again`: the
    /// id of a request that may come again, and must then mean the same rows.
    pub(super) fn number<'a>(
        &self,
        Numbered { table, column, sequence }: Numbered<'_>,
        values: impl ExactSizeIterator<Item = &'a mut Value>,
        again: Option<&str>,
    ) -> Result<Option<i64>, Error> {
        let catalog = self.catalog.borrow();
        let shape = catalog.table(table).map(|table| &table.shape);
        let info = shape.and_then(|shape| Some(&shape.columns[shape.column(column)?]));
        let affinity = info.map_or(Affinity::Blob, |info| info.affinity);
        let mut missing = Vec::new();
        for value in values {
            if value.is_null() {
                missing.push(value);
            } else if let Some(Kind::Integer(number)) = self.converter.store(value, affinity)?.kind {
                catalog.pass_number(sequence, number)?;
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        let now_ms = self.context.now_ms();
        let first = catalog.numbers_for(sequence, missing.len(), again.map(|request_id| (request_id, now_ms)))?;
        let mut last = first;
        for (number, value) in (first..).zip(missing) {
            *value = number.into();
            last = number;
        }
        Ok(Some(last))
    }

    /// Fills a column of rows that are loaded.
    pub(super) fn fill_rows(
        &self,
        table: &str,
        columns: &mut Vec<String>,
        rows: &mut [Row],
        again: Option<&str>,
    ) -> Result<(), Error> {
        let Some(increment) = self.catalog.borrow().increment(table).cloned() else { return Ok(()) };
        if columns.is_empty()
            && let Some(known) = self.catalog.borrow().table(table)
        {
            let stored = known.shape.columns.iter().filter(|column| !column.generated);
            columns.extend(stored.map(|column| column.name.clone()));
        }
        if rows.iter().any(|row| row.values.len() != columns.len()) {
            // They are refused later.
            return Ok(());
        }
        let place = match columns.iter().position(|column| column.eq_ignore_ascii_case(&increment.column)) {
            Some(place) => place,
            None => {
                columns.push(increment.column.clone());
                for row in rows.iter_mut() {
                    row.values.push(Value::NULL);
                }
                columns.len() - 1
            }
        };
        let values: Vec<&mut Value> = rows.iter_mut().filter_map(|row| row.values.get_mut(place)).collect();
        let numbered = Numbered { table, column: &increment.column, sequence: &increment.sequence };
        self.number(numbered, values.into_iter(), again).map(drop)
    }

    /// Has a sequence go on after the highest value of a column.
    pub(super) async fn catch_up(&self, table: &str, column: &str, sequence: &str, call: &Scope) -> Result<(), Error> {
        let sql = format!(
            "SELECT max({column}) FROM {table} WHERE typeof({column}) = 'integer'",
            column = quote(column),
            table = quote(table)
        );
        let shards = {
            let catalog = self.catalog.borrow();
            let known = catalog
                .table(table)
                .ok_or_else(|| Error::new(ErrorCode::UnknownTable, format!("no such table: {table}")))?;
            catalog.shards_of(&known.placement)
        };
        let highest = self
            .on_each(shards, |shard| {
                let statement = Statement { sql: sql.clone(), params: Vec::new() };
                async move { self.execute_on(shard, vec![statement], String::new(), call).await }
            })
            .await;
        for done in highest {
            let value = done?.results.first().and_then(|result| result.rows.first()?.values.first()?.kind.clone());
            if let Some(Kind::Integer(number)) = value {
                self.catalog.borrow().pass_number(sequence, number)?;
            }
        }
        Ok(())
    }

    /// The plan of a statement whose values are all given.
    pub(super) fn plan_given(&self, sql: &str) -> Result<Rc<Plan>, Error> {
        // No statement of a client begins so.
        let key = format!("\0given {sql}");
        if self.caching
            && let Some(Cached::Plan(plan)) = self.plans.borrow_mut().get(&key)
        {
            return Ok(plan);
        }
        let plan = Rc::new(Plan::given(sql, &mut self.catalog.borrow_mut())?);
        if self.caching {
            self.plans.borrow_mut().insert(&key, &plan);
        }
        Ok(plan)
    }
}
