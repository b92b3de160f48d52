//! Schema changes: rehearsed, logged, sent to the shards, then taken over. One at a time.

use dosql_actors::Call;
use dosql_proto::{Error, ExecuteResponse, Statement, StatementResult};

use super::Shared;
use crate::catalog::{Change, Outcome};
use crate::plan::AddVindex;

impl Shared {
    /// Runs a DDL statement.
    pub(super) async fn change_schema(
        &self,
        sql: &str,
        request_id: &str,
        call: &Call,
    ) -> Result<ExecuteResponse, Error> {
        let _alone = self.changing.lock().await;
        self.resume(call).await?;
        if self.catalog.borrow().was_applied(request_id)? {
            return Ok(response(String::new()));
        }
        let change = match self.rehearse(sql)? {
            Outcome::Nothing => return Ok(response(String::new())),
            Outcome::Change(change) => change,
        };
        let version = self.catalog.borrow().begin_change(sql, request_id)?;
        self.apply(version, sql, &change, call).await
    }

    /// Notes how a table that is yet to be created is sharded.
    pub(super) async fn add_vindex(&self, vindex: &AddVindex) -> Result<ExecuteResponse, Error> {
        let _alone = self.changing.lock().await;
        self.catalog.borrow().add_vindex(&vindex.table, &vindex.column, &self.vschema)?;
        Ok(response(String::new()))
    }

    /// Finishes a schema change that was interrupted.
    pub(super) async fn finish_pending(&self, call: &Call) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        self.resume(call).await
    }

    async fn resume(&self, call: &Call) -> Result<(), Error> {
        loop {
            let pending = self.catalog.borrow().pending_change()?;
            let Some((version, sql)) = pending else { return Ok(()) };
            let outcome = match self.rehearse(&sql) {
                Ok(Outcome::Change(change)) => self.apply(version, &sql, &change, call).await.map(|_| ()),
                // It was accepted before it was logged, on the same schema.
                Ok(Outcome::Nothing) => Err(Error::internal("the logged schema change changes nothing")),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                Err(error) if super::shards::transient(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(version, %error, "an interrupted schema change was refused");
                    self.catalog.borrow().fail_change(version, &error)?;
                }
            }
        }
    }

    fn rehearse(&self, sql: &str) -> Result<Outcome, Error> {
        let auto_shard = self.context.settings().auto_shard;
        self.catalog.borrow_mut().rehearse(sql, &self.vschema, auto_shard)
    }

    /// Sends a logged change to its shards and takes it over; one that a shard refuses is taken back from the others.
    async fn apply(&self, version: i64, sql: &str, change: &Change, call: &Call) -> Result<ExecuteResponse, Error> {
        let outcomes = self
            .on_each(change.shards.clone(), |shard| {
                let statement = Statement { sql: change.sql.clone(), params: Vec::new() };
                async move {
                    let done = self.execute_on(shard, vec![statement], format!("ddl-{version}"), call).await;
                    (shard, done)
                }
            })
            .await;
        let mut written = Vec::new();
        let mut refused = None;
        for (shard, outcome) in outcomes {
            match outcome {
                Ok(executed) => written.push((shard, executed.lsn)),
                Err(error) if super::shards::transient(&error) => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            if let Some(undo) = &change.undo {
                for (shard, _) in &written {
                    let statement = Statement { sql: undo.clone(), params: Vec::new() };
                    self.execute_on(*shard, vec![statement], format!("ddl-{version}-undo"), call).await?;
                }
            }
            self.catalog.borrow().fail_change(version, &error)?;
            return Err(error);
        }
        self.catalog.borrow_mut().finish_change(version, sql, change)?;
        self.plans.borrow_mut().clear();
        Ok(response(self.bookmark(written)))
    }
}

fn response(bookmark: String) -> ExecuteResponse {
    ExecuteResponse { result: Some(StatementResult::default()), bookmark }
}
