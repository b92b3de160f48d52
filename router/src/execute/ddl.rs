//! Schema changes: rehearsed, logged, sent to the shards, then taken over. One at a time.

use dosql_proto::{Error, ErrorCode, ExecuteResponse, Statement, StatementResult};

use super::{Scope, Shared};
use crate::catalog::versions::Logged;
use crate::catalog::{COLLECT, Catalog, Change, Outcome, Part, PendingChange, unsupported};
use crate::plan::AlterVSchema;
use crate::sql_text::quote;

impl Shared {
    /// Runs a DDL statement.
    pub(super) async fn change_schema(
        &self,
        sql: &str,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _alone = self.changing.lock().await;
        if let Some(done) = self.done_before(request_id, call).await? {
            return Ok(done);
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
                    self.apply(version, Some(&sql), &change, call).await?;
                }
            }
        };
        // Where the VSchema goes with what is renamed, no write goes by the one before.
        let closed = match change.vschema {
            Some(_) => Some(self.gate.close().await),
            None => None,
        };
        let version = self.catalog.borrow().begin_change(sql, request_id)?;
        let done = self.apply(version, Some(sql), &change, call).await?;
        drop(closed);
        self.fill_lookups(request_id, call).await?;
        Ok(done)
    }

    /// Finishes what was interrupted; the answer to a change that was sent before.
    ///
    /// # Errors
    /// Why it was refused then; why an interrupted change cannot be finished now.
    async fn done_before(&self, request_id: &str, call: &Scope) -> Result<Option<ExecuteResponse>, Error> {
        self.resume(call).await?;
        let outcome = self.catalog.borrow().outcome(request_id)?;
        Ok(outcome.transpose()?.map(|()| response(String::new())))
    }

    /// Runs an `ALTER VSCHEMA` statement.
    pub(super) async fn alter_vschema(
        &self,
        statement: &AlterVSchema,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _alone = self.changing.lock().await;
        if let Some(done) = self.done_before(request_id, call).await? {
            return Ok(done);
        }
        let vschema = self.catalog.borrow().version.vschema.altered(statement)?;
        if let AlterVSchema::AddAutoIncrement { table, column, sequence } = statement
            && self.catalog.borrow().table(table).is_some()
        {
            // The sequence goes on after the rows there are, and no row comes meanwhile that it does not give its value.
            let _closed = self.gate.close().await;
            self.catch_up(table, column, sequence, call).await?;
            return self.change_closed(Logged { vschema, document: None }, request_id, call).await;
        }
        let done = self.change_vschema(Logged { vschema, document: None }, request_id, call).await?;
        self.fill_lookups(request_id, call).await?;
        Ok(done)
    }

    /// Puts the VSchema of a changed document in force.
    pub(super) async fn follow_document(&self, call: &Scope) -> Result<(), Error> {
        let Some(vschema) = self.catalog.borrow_mut().wanted.take() else { return Ok(()) };
        let _alone = self.changing.lock().await;
        let document = Some(self.context.settings().vschema.clone());
        self.change_vschema(Logged { vschema, document }, &self.request_id(String::new()), call).await.map(drop)
    }

    /// Puts a VSchema in force. Writes wait meanwhile; whatever reads goes on as it was planned.
    pub(super) async fn change_vschema(
        &self,
        logged: Logged,
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _closed = self.gate.close().await;
        self.change_closed(logged, request_id, call).await
    }

    /// The same behind the closed gate.
    async fn change_closed(&self, logged: Logged, request_id: &str, call: &Scope) -> Result<ExecuteResponse, Error> {
        let text = logged.text()?;
        let rehearsed = self.catalog.borrow().rehearse_vschema(logged.vschema, logged.document.as_deref())?;
        let Outcome::Change(change) = rehearsed else { return Ok(response(String::new())) };
        self.check_empty(&change, call).await?;
        let version = self.catalog.borrow().begin_change(&text, request_id)?;
        self.apply(version, None, &change, call).await
    }

    /// Refuses a change of place of a table that has rows.
    async fn check_empty(&self, change: &Change, call: &Scope) -> Result<(), Error> {
        for name in &change.emptied {
            let (shards, table) = {
                let catalog = self.catalog.borrow();
                let Some(table) = catalog.table(name) else { continue };
                (catalog.shards_of(&table.placement), table.shape.name.clone())
            };
            let rows = self
                .on_each(shards, |shard| {
                    // It waits for transactions that have written there.
                    let nothing =
                        Statement { sql: format!("DELETE FROM {} WHERE 0", quote(&table)), params: Vec::new() };
                    let any = Statement { sql: format!("SELECT 1 FROM {} LIMIT 1", quote(&table)), params: Vec::new() };
                    async move {
                        let id = self.request_id(String::new());
                        let done = self.execute_on(shard, vec![nothing, any], id, call).await?;
                        Ok::<bool, Error>(done.results.last().is_some_and(|result| !result.rows.is_empty()))
                    }
                })
                .await;
            if rows.into_iter().collect::<Result<Vec<bool>, Error>>()?.contains(&true) {
                return Err(unsupported(format!(
                    "changing where the rows of table {table} are is not supported: it has some, and they would have to move"
                )));
            }
        }
        Ok(())
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
            let logged = Logged::parse(&sql)?;
            let statement = logged.is_none().then_some(sql.as_str());
            let rehearsed = match logged {
                Some(Logged { vschema, document }) => {
                    self.catalog.borrow().rehearse_vschema(vschema, document.as_deref())
                }
                None => self.rehearse(&sql),
            };
            let outcome = match rehearsed {
                Ok(Outcome::Change(change)) if undoing => self.undo(version, &change, call).await,
                Ok(Outcome::Change(change)) => match self.check_empty(&change, call).await {
                    Ok(()) => self.apply(version, statement, &change, call).await.map(|_| ()),
                    Err(error) => Err(error),
                },
                // It was accepted before it was logged, on the same schema.
                Ok(Outcome::Nothing | Outcome::Temporary | Outcome::Collect(_)) => {
                    Err(Error::internal("the logged schema change changes nothing"))
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                // Parts of it may be in force already: it stays pending while a lock is in its way.
                Err(error) if interrupted(&error) || Catalog::is_passing(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(version, %error, "an interrupted schema change was refused");
                    self.catalog.borrow().fail_change(version, &error)?;
                }
            }
        }
    }

    fn rehearse(&self, sql: &str) -> Result<Outcome, Error> {
        let auto_shard = self.context.settings().auto_shard;
        self.catalog.borrow_mut().rehearse(sql, auto_shard)
    }

    /// Sends a logged change to its shards and takes it over; one that a shard refuses is taken back from the others.
    async fn apply(
        &self,
        version: i64,
        sql: Option<&str>,
        change: &Change,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _collecting = self.collect(version, change, call).await?;
        let mut lsns = Vec::new();
        for (number, phase) in change.phases.iter().enumerate() {
            let (written, refused) = self.send_phase(version, number, phase, call).await?;
            match refused {
                None => lsns.extend(written.iter().map(|(part, lsn)| (part.shard, *lsn))),
                Some(error) if number == 0 => {
                    self.catalog.borrow().begin_undo(version, &error)?;
                    self.take_back(version, &written, call).await?;
                    self.catalog.borrow().fail_change(version, &error)?;
                    return Err(error);
                }
                // What the first phase made is in force; that something empty was left behind harms nobody.
                Some(error) => tracing::warn!(version, %error, "a shard keeps what a schema change has left behind"),
            }
        }
        for (shard, lsn) in &lsns {
            self.note_schema(*shard, *lsn)?;
        }
        if let Some(fill) = &change.fill {
            self.fill_table(version, fill, call).await?;
        }
        self.catalog.borrow_mut().finish_change(version, sql, change, self.context.now_ms())?;
        self.plans.borrow_mut().clear();
        self.rowids.borrow_mut().clear();
        Ok(response(self.bookmark(lsns)))
    }

    /// Goes on taking a change back. A shard that has applied it says so again; one that had refused it may apply it now, and
    /// is undone likewise.
    async fn undo(&self, version: i64, change: &Change, call: &Scope) -> Result<(), Error> {
        let Some(phase) = change.phases.first() else { return Ok(()) };
        let (written, _) = self.send_phase(version, 0, phase, call).await?;
        self.take_back(version, &written, call).await?;
        self.catalog.borrow().end_undo(version)
    }

    /// The parts that have been applied, with the shards' LSNs, and why another was refused.
    ///
    /// # Errors
    /// Where a shard may have applied its part or not.
    async fn send_phase<'a>(
        &self,
        version: i64,
        number: usize,
        phase: &'a [Part],
        call: &Scope,
    ) -> Result<(Vec<(&'a Part, u64)>, Option<Error>), Error> {
        let id = if number == 0 { format!("ddl-{version}") } else { format!("ddl-{version}-{number}") };
        let outcomes = self
            .on_each(phase.iter().collect(), |part: &'a Part| {
                let id = id.clone();
                async move {
                    let call = &self.surely(part.shard, call);
                    (part, self.execute_on(part.shard, statements(&part.statements), id, call).await)
                }
            })
            .await;
        let mut written = Vec::new();
        let mut refused = None;
        for (part, outcome) in outcomes {
            match outcome {
                Ok(executed) => written.push((part, executed.lsn)),
                Err(error) if interrupted(&error) => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
        Ok((written, refused))
    }

    async fn take_back(&self, version: i64, written: &[(&Part, u64)], call: &Scope) -> Result<(), Error> {
        for (part, _) in written.iter().filter(|(part, _)| !part.undo.is_empty()) {
            let call = &self.surely(part.shard, call);
            self.execute_on(part.shard, statements(&part.undo), format!("ddl-{version}-undo"), call).await?;
        }
        Ok(())
    }
}

fn statements(texts: &[String]) -> Vec<Statement> {
    texts.iter().map(|sql| Statement { sql: sql.clone(), params: Vec::new() }).collect()
}

/// Whether a change that ended with this is to be taken up again: nobody has refused it.
fn interrupted(error: &Error) -> bool {
    super::shards::transient(error) || error.code() == ErrorCode::Storage
}

pub(super) fn response(bookmark: String) -> ExecuteResponse {
    ExecuteResponse { result: Some(StatementResult::default()), bookmark }
}
