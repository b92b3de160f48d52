//! Values that sequences give to rows.

use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, ExecuteResponse, Row, Statement, Value, value::Kind};

use super::{Scope, Shared};
use crate::plan::{Cached, Generate, Plan, Slot};
use crate::sql_text::quote;

impl Shared {
    /// Runs an INSERT into a table one of whose columns a sequence fills.
    pub(super) async fn write_generated(
        &self,
        generate: &Generate,
        statement: Statement,
        request_id: (&str, bool),
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let Some(rows) = &generate.rows else {
            let done = Box::pin(self.write(&generate.given, statement, request_id.0.to_owned(), call)).await?;
            // What was selected may have gone beyond the sequence.
            self.catch_up(&generate.table, &generate.column, &generate.sequence, call).await?;
            return Ok(done);
        };
        let mut values = Vec::with_capacity(rows.len());
        for slot in rows {
            values.push(match slot {
                Slot::Missing => Value::NULL,
                Slot::Value(source) => self.key_value(source, &statement.params)?,
            });
        }
        let generated = self.number(&generate.sequence, values.iter_mut(), request_id)?;
        let Some(last) = generated else {
            return Box::pin(self.write(&generate.given, statement, request_id.0.to_owned(), call)).await;
        };
        let (sql, params) = generate.with_values(statement.params, values)?;
        let plan = self.plan_given(&sql)?;
        let statement = Statement { sql, params };
        let mut done = Box::pin(self.write(&plan, statement, request_id.0.to_owned(), call)).await?;
        if let Some(result) = &mut done.result {
            result.last_insert_rowid = last;
        }
        Ok(done)
    }

    /// Puts numbers in the place of NULLs, and has the sequence go on after the others. The last number given, if any.
    fn number<'a>(
        &self,
        sequence: &str,
        values: impl ExactSizeIterator<Item = &'a mut Value>,
        (request_id, chosen): (&str, bool),
    ) -> Result<Option<i64>, Error> {
        let catalog = self.catalog.borrow();
        let mut missing = Vec::new();
        for value in values {
            match &value.kind {
                None => missing.push(value),
                Some(Kind::Integer(number)) => catalog.pass_number(sequence, *number)?,
                Some(_) => {}
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        // An id that the client has chosen may come again, and must then mean the same rows.
        let now_ms = self.context.now_ms();
        let first = catalog.numbers_for(sequence, missing.len(), chosen.then_some((request_id, now_ms)))?;
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
        request_id: (&str, bool),
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
        self.number(&increment.sequence, values.into_iter(), request_id).map(drop)
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
    fn plan_given(&self, sql: &str) -> Result<Rc<Plan>, Error> {
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
