//! Schema changes: rehearsed, logged, sent to the shards, then taken over. One at a time.

use dosql_proto::{Error, ErrorCode, ExecuteResponse, Statement, StatementResult};

use super::{Scope, Shared};
use crate::catalog::{COLLECT, Change, Outcome, PendingChange};
use crate::plan::AddVindex;

impl Shared {
    /// Runs a DDL statement.
    pub(super) async fn change_schema(
        &self,
        sql: &str,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _alone = self.changing.lock().await;
        self.resume(call).await?;
        if let Some(outcome) = self.catalog.borrow().outcome(request_id)? {
            return outcome.map(|()| response(String::new()));
        }
        let change = loop {
            match self.rehearse(sql)? {
                Outcome::Nothing => return Ok(response(String::new())),
                Outcome::Temporary => {
                    self.plans.borrow_mut().clear();
                    return Ok(response(String::new()));
                }
                Outcome::Change(change) => break change,
                Outcome::Collect(tables) => {
                    let sql = format!("{COLLECT}{}", tables.join(","));
                    let Outcome::Change(change) = self.rehearse(&sql)? else {
                        return Err(Error::internal("moving tables changes nothing"));
                    };
                    let version = self.catalog.borrow().begin_change(&sql, "")?;
                    self.apply(version, &sql, &change, call).await?;
                }
            }
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
    pub(super) async fn finish_pending(&self, call: &Scope) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        self.resume(call).await
    }

    /// The answer to a schema change that is sent again after it was applied, though it no longer fits the schema.
    pub(super) fn applied_before(&self, request_id: &str) -> Result<Option<ExecuteResponse>, Error> {
        let applied = !request_id.is_empty() && matches!(self.catalog.borrow().outcome(request_id)?, Some(Ok(())));
        Ok(applied.then(|| response(String::new())))
    }

    async fn resume(&self, call: &Scope) -> Result<(), Error> {
        loop {
            let pending = self.catalog.borrow().pending_change()?;
            let Some(PendingChange { version, sql, undoing }) = pending else { return Ok(()) };
            let outcome = match self.rehearse(&sql) {
                Ok(Outcome::Change(change)) if undoing => self.undo(version, &change, call).await,
                Ok(Outcome::Change(change)) => self.apply(version, &sql, &change, call).await.map(|_| ()),
                // It was accepted before it was logged, on the same schema.
                Ok(Outcome::Nothing | Outcome::Temporary | Outcome::Collect(_)) => {
                    Err(Error::internal("the logged schema change changes nothing"))
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                Err(error) if interrupted(&error) => return Err(error),
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
    async fn apply(&self, version: i64, sql: &str, change: &Change, call: &Scope) -> Result<ExecuteResponse, Error> {
        let _collecting = self.collect(version, change, call).await?;
        let (written, refused) = self.send_change(version, change, call).await?;
        if let Some(error) = refused {
            self.catalog.borrow().begin_undo(version, &error)?;
            self.take_back(version, change, &written, call).await?;
            self.catalog.borrow().fail_change(version, &error)?;
            return Err(error);
        }
        if let Some(fill) = &change.fill {
            self.fill_table(version, fill, call).await?;
        }
        self.catalog.borrow_mut().finish_change(version, sql, change)?;
        self.plans.borrow_mut().clear();
        self.rowids.borrow_mut().clear();
        Ok(response(self.bookmark(written)))
    }

    /// Goes on taking a change back. A shard that has applied it says so again; one that had refused it may apply it now, and
    /// is undone likewise.
    async fn undo(&self, version: i64, change: &Change, call: &Scope) -> Result<(), Error> {
        let (written, refused) = self.send_change(version, change, call).await?;
        self.take_back(version, change, &written, call).await?;
        let error = refused.unwrap_or_else(|| Error::internal("another shard had refused it"));
        self.catalog.borrow().fail_change(version, &error)
    }

    /// The shards that have applied a change, with the LSN, and why another refused it.
    ///
    /// # Errors
    /// Where a shard may have applied it or not.
    async fn send_change(
        &self,
        version: i64,
        change: &Change,
        call: &Scope,
    ) -> Result<(Vec<(usize, u64)>, Option<Error>), Error> {
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
                Err(error) if interrupted(&error) => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
        Ok((written, refused))
    }

    async fn take_back(
        &self,
        version: i64,
        change: &Change,
        written: &[(usize, u64)],
        call: &Scope,
    ) -> Result<(), Error> {
        let Some(undo) = &change.undo else { return Ok(()) };
        for (shard, _) in written {
            let statement = Statement { sql: undo.clone(), params: Vec::new() };
            self.execute_on(*shard, vec![statement], format!("ddl-{version}-undo"), call).await?;
        }
        Ok(())
    }
}

/// Whether a change that ended with this is to be taken up again: nobody has refused it.
fn interrupted(error: &Error) -> bool {
    super::shards::transient(error) || error.code() == ErrorCode::Storage
}

fn response(bookmark: String) -> ExecuteResponse {
    ExecuteResponse { result: Some(StatementResult::default()), bookmark }
}
