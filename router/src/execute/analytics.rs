//! Reads answered by the lake: its actor sends rows, or aggregates, of each table, and the statement is finished on them.

use std::cell::Cell;

use dosql_actors::sql_value::sql_error;
use dosql_proto::{
    AnalyticsProtocol, AnalyticsReply, AnalyticsRequest, CloseRequest, Error, ErrorCode, FetchRequest, LakeComparison,
    LakeCondition, LakeConditions, LakeNullTest, LakeRows, LakeScan, Position, ReadPreference, Row, StepStats, Value,
    analytics_reply::Reply, analytics_request::Request, lake_condition,
};
use futures_util::future::try_join_all;
use rusqlite::Connection;

use super::cursor::Cursor;
use super::finish::Finish;
use super::read::Reading;
use super::scope::encoded;
use super::{Scope, Shared};
use crate::plan::{Condition, LakeInput, LakeRead};

/// The actor that reads the lake.
const READER: &str = "default";

/// An open result of the lake. Dropped before its end, it is given up there too.
struct LakeCursor<'a> {
    shared: &'a Shared,
    /// 0 where everything has been read.
    cursor: u64,
}

impl Drop for LakeCursor<'_> {
    fn drop(&mut self) {
        if self.cursor != 0 {
            let request = Some(Request::Close(CloseRequest { cursor: self.cursor }));
            // Where the message is lost the result is given up by itself, later.
            self.shared.context.tell::<AnalyticsProtocol>(READER, AnalyticsRequest { request });
        }
    }
}

impl Shared {
    /// Whether a read is the lake's to answer: it asks for analytics, sees no transaction of its own, and no replica is kept for
    /// analytics.
    pub(super) fn reads_lake(&self, scope: &Scope) -> bool {
        scope.options.read_preference() == ReadPreference::Analytics
            && scope.transaction().is_none()
            && !scope.strict()
            && !self.replicas.have_analytics()
    }

    /// Reads what the lake has of the tables, and finishes the statement.
    pub(super) async fn read_lake(
        &self,
        read: &LakeRead,
        reading: Reading<'_>,
        scope: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let mut read = read;
        let mut attempt = 1;
        loop {
            let finish = Finish { views: &read.views, sql: &read.finish };
            let outcome = match (self.gather_lake(read, reading.params, scope).await, &read.rows) {
                (Ok(Some(scratch)), _) => self.finish(scratch, finish, reading, scope).await,
                (Ok(None), Some(rows)) => {
                    read = rows;
                    continue;
                }
                (Ok(None), None) => Err(Error::internal("the lake declined to send rows")),
                (Err(error), _) => Err(error),
            };
            match outcome.map_err(|error| self.explain_full(error)) {
                Err(error) if self.begins_again(attempt, &error, scope) => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// A scratch database with the tables' rows; `None` where the lake declines what it was asked.
    async fn gather_lake(&self, read: &LakeRead, params: &[Value], scope: &Scope) -> Result<Option<Connection>, Error> {
        let scratch = self.begin_scratch(scope)?;
        for input in &read.inputs {
            scratch.execute_batch(&input.create).map_err(sql_error)?;
        }
        let gathered = Cell::new(0);
        let fills = read.inputs.iter().map(|input| self.fill_from_lake(&scratch, input, params, &gathered, scope));
        if !try_join_all(fills).await?.into_iter().all(|filled| filled) {
            return Ok(None);
        }
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
        Ok(Some(scratch))
    }

    /// Moves one table's rows into the scratch table; false where the lake declines.
    async fn fill_from_lake(
        &self,
        scratch: &Connection,
        input: &LakeInput,
        params: &[Value],
        gathered: &Cell<u64>,
        scope: &Scope,
    ) -> Result<bool, Error> {
        let number = (self.context.random_u64() >> 11).max(1);
        let scan = self.lake_scan(input, params, number, scope)?;
        let mut request = Request::Scan(scan);
        let mut open = LakeCursor { shared: self, cursor: number };
        loop {
            let began_ns = self.context.timer_ns();
            let rows = match self.ask_lake(request, scope).await? {
                Reply::Rows(rows) => rows,
                Reply::Declined(declined) => {
                    tracing::debug!(table = input.table, reason = declined.reason, "the lake sends rows instead");
                    open.cursor = 0;
                    return Ok(false);
                }
                Reply::Closed(_) => return Err(Error::internal("the lake answered a read with something else")),
            };
            let LakeRows { rows, cursor, position, stats } = rows;
            open.cursor = cursor;
            self.saw_lake(&position, scope)?;
            if scope.profiles() {
                scope.step(StepStats {
                    step: "lake".to_owned(),
                    table: input.table.clone(),
                    rows: rows.len() as u64,
                    bytes: encoded(&rows),
                    batches: 1,
                    elapsed_us: self.since(began_ns),
                    lake: stats,
                    ..StepStats::default()
                });
            }
            self.take_in(scratch, &input.insert, false, &rows, gathered, scope)?;
            if cursor == 0 {
                return Ok(true);
            }
            request = Request::Fetch(FetchRequest { cursor });
        }
    }

    async fn ask_lake(&self, request: Request, scope: &Scope) -> Result<Reply, Error> {
        let request = AnalyticsRequest { request: Some(request) };
        match self.context.ask::<AnalyticsProtocol>(READER, request, scope).await {
            Ok(AnalyticsReply { reply: Some(reply) }) => Ok(reply),
            Ok(AnalyticsReply { reply: None }) => Err(Error::internal("the lake gave an empty reply")),
            Err(error) if error.code() == ErrorCode::NotFound => Err(Error::new(
                ErrorCode::Unsupported,
                "there is no analytics replica that a read could use, and nothing here reads the lake",
            )),
            Err(error) => Err(error),
        }
    }

    /// The request for one table.
    fn lake_scan(&self, input: &LakeInput, params: &[Value], number: u64, scope: &Scope) -> Result<LakeScan, Error> {
        let filter = input
            .filter
            .iter()
            .map(|condition| self.lake_condition(condition, params))
            .collect::<Result<_, Error>>()?;
        let shard = match input.reference {
            true => self.catalog.borrow().shards.first().cloned().unwrap_or_default(),
            false => String::new(),
        };
        Ok(LakeScan {
            table: input.table.clone(),
            columns: input.columns.clone(),
            output: input.output.clone(),
            filter,
            shard,
            fresh: scope.options.max_staleness_ms > 0 || !scope.options.bookmark.is_empty(),
            at_least: scope.options.bookmark.clone(),
            aggregate: input.aggregate.clone(),
            max_batch_bytes: self.gather_batch_bytes(),
            cursor: number,
        })
    }

    /// A condition with its values as its columns' affinities make them.
    fn lake_condition(&self, condition: &Condition, params: &[Value]) -> Result<LakeCondition, Error> {
        let several = |parts: &[Condition]| -> Result<LakeConditions, Error> {
            let conditions = parts.iter().map(|part| self.lake_condition(part, params)).collect::<Result<_, _>>()?;
            Ok(LakeConditions { conditions })
        };
        let condition = match condition {
            Condition::All(parts) => lake_condition::Condition::All(several(parts)?),
            Condition::Any(parts) => lake_condition::Condition::Any(several(parts)?),
            Condition::Null { column, is_null } => {
                lake_condition::Condition::Null(LakeNullTest { column: *column, is_null: *is_null })
            }
            Condition::Compare { column, operator, affinity, value } => {
                let value = self.key_value(value, params)?;
                lake_condition::Condition::Comparison(LakeComparison {
                    column: *column,
                    operator: (*operator).into(),
                    value: Some(self.converter.store(&value, *affinity)?.into_owned()),
                })
            }
        };
        Ok(LakeCondition { condition: Some(condition) })
    }

    /// Notes how far the lake had come, for the bookmark.
    fn saw_lake(&self, position: &str, scope: &Scope) -> Result<(), Error> {
        let position: Position =
            position.parse().map_err(|error| Error::internal(format!("the lake's position: {error}")))?;
        let catalog = self.catalog.borrow();
        for (shard, name) in catalog.shards.iter().enumerate() {
            scope.saw(shard, position.lsn(name));
        }
        Ok(())
    }
}
