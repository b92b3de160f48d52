//! The small actor that judges a host: it stores, asks, waits and dies on request.

mod transcript;

use dosql_proto::probe_request::Request;
use dosql_proto::{
    Error, ErrorCode, ProbeAdd, ProbeDie, ProbeProtocol, ProbeRelay, ProbeReply, ProbeRequest, ProbeSql, Statement,
    StatementResult,
};
use rusqlite::Connection;

use crate::runtime::{Actor, Call, Context, Handled};
use crate::sql_value::{run, sql_error};

/// Bytes of rows that one statement may return.
const MAX_RESULT_BYTES: usize = 16 << 20;
/// What a fired alarm adds to the counter.
const ALARM_AMOUNT: i64 = 1000;

/// The conformance suite's actor: a counter and whatever tables its statements create, in its own storage.
pub struct Probe {
    context: Context,
    storage: Connection,
}

impl Actor for Probe {
    type Protocol = ProbeProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let storage = context.open_storage()?;
        storage
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS _dosql_probe (counter INTEGER NOT NULL);
                 INSERT INTO _dosql_probe SELECT 0 WHERE NOT EXISTS (SELECT * FROM _dosql_probe);",
            )
            .map_err(sql_error)?;
        Ok(Self { context, storage })
    }

    async fn handle(&mut self, request: ProbeRequest, call: &Call) -> Handled<ProbeReply> {
        match request.request {
            None => Handled::Reply(Err(Error::invalid("ProbeRequest.request is missing"))),
            Some(Request::Echo(echo)) => Handled::Reply(Ok(ProbeReply {
                text: echo.text,
                trace_id: call.trace_id.clone(),
                caller: call.caller.clone(),
                ..ProbeReply::default()
            })),
            Some(Request::Add(ProbeAdd { amount })) => crash_on_error(self.add(amount).map(counter)),
            Some(Request::Sql(ProbeSql { statements })) => match self.commit() {
                Ok(()) => Handled::Reply(self.run_all(&statements)),
                Err(error) => Handled::Crash(error),
            },
            Some(Request::Die(ProbeDie { sql })) => Handled::Crash(self.write_without_commit(&sql)),
            Some(Request::Relay(ProbeRelay { to, amount })) => {
                let request = ProbeRequest { request: Some(Request::Add(ProbeAdd { amount })) };
                Handled::Later(Box::pin(self.context.ask::<ProbeProtocol>(&to, request, call)))
            }
            Some(Request::Alarm(alarm)) => {
                self.context.set_alarm(self.context.now_ms().saturating_add(alarm.after_ms));
                Handled::Reply(Ok(ProbeReply::default()))
            }
            Some(Request::Objects(objects)) => {
                let store = self.context.objects();
                Handled::Later(Box::pin(async move {
                    let text = transcript::write(&*store, &objects.prefix).await?;
                    Ok(ProbeReply { text, ..ProbeReply::default() })
                }))
            }
        }
    }

    async fn settle(&mut self) -> Result<(), Error> {
        self.commit()
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        self.add(ALARM_AMOUNT).map(drop)
    }
}

impl Probe {
    /// Counts, within the transaction that `settle` commits.
    fn add(&self, amount: i64) -> Result<i64, Error> {
        if self.storage.is_autocommit() {
            self.storage.execute_batch("BEGIN").map_err(sql_error)?;
        }
        self.storage
            .query_row("UPDATE _dosql_probe SET counter = counter + ?1 RETURNING counter", [amount], |row| row.get(0))
            .map_err(sql_error)
    }

    fn commit(&self) -> Result<(), Error> {
        if self.storage.is_autocommit() {
            return Ok(());
        }
        self.storage.execute_batch("COMMIT").map_err(sql_error)
    }

    fn run_all(&self, statements: &[Statement]) -> Result<ProbeReply, Error> {
        let results = statements.iter().map(|statement| self.run_one(statement)).collect::<Result<_, _>>()?;
        Ok(ProbeReply { results, ..ProbeReply::default() })
    }

    fn run_one(&self, statement: &Statement) -> Result<StatementResult, Error> {
        let before = self.storage.total_changes();
        let mut prepared = self.storage.prepare(&statement.sql).map_err(sql_error)?;
        let collected = run(&mut prepared, &statement.params, MAX_RESULT_BYTES)?;
        let rows_affected = self.storage.total_changes() - before;
        Ok(StatementResult {
            columns: collected.columns,
            rows: collected.rows,
            rows_affected,
            last_insert_rowid: if rows_affected > 0 { self.storage.last_insert_rowid() } else { 0 },
            ..StatementResult::default()
        })
    }

    /// Leaves a transaction open that has written; says what to die of.
    fn write_without_commit(&self, sql: &str) -> Error {
        let written = self.commit().and_then(|()| {
            self.storage.execute_batch("BEGIN").map_err(sql_error)?;
            self.storage.execute_batch(sql).map_err(sql_error)
        });
        match written {
            Ok(()) => Error::new(ErrorCode::Internal, "told to die in the middle of a transaction"),
            Err(error) => error,
        }
    }
}

fn counter(counter: i64) -> ProbeReply {
    ProbeReply { counter, ..ProbeReply::default() }
}

/// A counter that cannot be written leaves the group's transaction in doubt.
fn crash_on_error(outcome: Result<ProbeReply, Error>) -> Handled<ProbeReply> {
    match outcome {
        Ok(reply) => Handled::Reply(Ok(reply)),
        Err(error) => Handled::Crash(error),
    }
}
