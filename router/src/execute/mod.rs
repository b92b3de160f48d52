//! Running plans: everything a request needs beside its own state, and the requests themselves.

mod abandoned;
mod analytics;
mod analyze;
mod chain;
mod collect;
mod cursor;
mod ddl;
mod endings;
mod fill;
mod finish;
mod gate;
mod gather;
mod in_flight;
mod join;
mod lake;
mod load;
mod lookups;
mod members;
mod merge;
mod promote;
mod read;
mod rowids;
mod scope;
mod selected;
mod sequences;
mod session;
mod shard_rows;
mod shards;
mod show;
mod staged;
mod strict;
mod transact;
mod values;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use dosql_actors::runtime::ToTheEnd;
use dosql_actors::{Call, Context};
use dosql_proto::{
    BatchRequest, BatchResponse, Closed, Error, ErrorCode, ExecuteRequest, ExecuteResponse, ExplainRequest,
    ExplainResponse, FetchRequest, InDoubtNoted, Promoted, QueryRequest, RouterReply, RouterRequest, Row, RowBatch,
    SessionClosed, Statement, StatementResult, Value, router_reply::Reply, router_request::Request,
};
use futures_util::lock::Mutex;

use crate::affinity::Converter;
use crate::catalog::Catalog;
use crate::literals;
use crate::plan::{Cached, Explained, KeyBound, KeySource, Keys, Plan, PlanCache, Step, Target, explain};
use crate::replicas::Replicas;
use crate::transaction::Live;
use cursor::{Cursor, Cursors};
use gate::Gate;
use in_flight::InFlight;
use read::Reading;
pub(crate) use scope::Scope;
use session::{Control, Sessions};

/// The size a batch is cut at unless the request says otherwise, in bytes.
const DEFAULT_BATCH_BYTES: u32 = 256 << 10;
/// The largest batch, and the most that Execute returns, in bytes.
const MAX_BATCH_BYTES: u32 = 4 << 20;

/// The router's state, shared by all requests in flight.
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) catalog: RefCell<Catalog>,
    plans: RefCell<PlanCache>,
    converter: Rc<Converter>,
    pub(crate) cursors: RefCell<Cursors>,
    /// Which shard reads a reference table next.
    rotation: Cell<usize>,
    /// Held while a schema change runs.
    changing: Mutex<()>,
    /// Held while a reference table is written, so that its copies see writes in one order, and while a statement is worked out
    /// here, so that none is worked out on what another is about to change.
    copying: Mutex<()>,
    /// Held while rows are loaded on several shards.
    loading: Mutex<()>,
    /// Set while tables move to one shard: requests wait.
    collecting: Cell<bool>,
    /// The highest rowid of tables whose rowids are given out here.
    rowids: RefCell<HashMap<String, i64>>,
    /// Closed while tables change their places: writes are held back.
    gate: Gate,
    max_parallel: usize,
    shard_timeout_ms: u64,
    caching: bool,
    /// For what goes on after the request that began it.
    me: Weak<Shared>,
    live: Live,
    in_flight: InFlight,
    /// Decisions that every shard has applied, which the log does not know yet.
    applied: RefCell<Vec<String>>,
    /// Whether the log of decisions must be read anew: its last write failed.
    must_restart: Cell<bool>,
    sessions: RefCell<Sessions>,
    /// When the alarm is set to; 0: it is not.
    alarm_ms: Cell<u64>,
    replicas: Replicas,
}

impl Shared {
    /// Opens the catalog and finishes what the last incarnation left.
    ///
    /// # Errors
    /// What is wrong with the VSchema; `STORAGE`; a shard's error while an interrupted schema change is finished.
    pub(crate) async fn start(context: Context) -> Result<Rc<Self>, Error> {
        let converter = Rc::new(Converter::new(context.open_scratch()?)?);
        let catalog = Catalog::open(&context, Rc::clone(&converter))?;
        let settings = context.settings();
        let limits = &catalog.wanted.as_ref().unwrap_or(&catalog.version.vschema).settings;
        let max_parallel = limits.max_parallel_shards.unwrap_or(settings.max_parallel_shards) as usize;
        let shard_timeout_ms = limits.shard_timeout_ms.unwrap_or(settings.shard_timeout_ms);
        let caching = limits.enable_caching.unwrap_or(true);
        let replicas = Replicas::load(&catalog, settings)?;
        let shared = Rc::new_cyclic(|me| Self {
            catalog: RefCell::new(catalog),
            plans: RefCell::default(),
            converter,
            cursors: RefCell::default(),
            rotation: Cell::new(0),
            changing: Mutex::new(()),
            copying: Mutex::new(()),
            loading: Mutex::new(()),
            collecting: Cell::new(false),
            rowids: RefCell::default(),
            gate: Gate::default(),
            max_parallel,
            shard_timeout_ms,
            caching,
            context,
            me: Weak::clone(me),
            live: Live::default(),
            in_flight: InFlight::default(),
            applied: RefCell::default(),
            must_restart: Cell::new(false),
            sessions: RefCell::default(),
            alarm_ms: Cell::new(0),
            replicas,
        });
        shared.start_replicas();
        let decisions = shared.catalog.borrow().open_decisions()?;
        for decision in decisions {
            shared.carry_out(decision, None);
        }
        if let Err(error) = shared.finish_interrupted().await {
            // So that the next start does not find it in the way again.
            shared.end_abandoned().await;
            return Err(error);
        }
        shared.go_on_filling();
        Ok(shared)
    }

    async fn finish_interrupted(&self) -> Result<(), Error> {
        let call = self.scope(&Call::system(), 0, None);
        self.join_shards().await?;
        self.finish_pending(&call).await?;
        self.follow_document(&call).await
    }

    /// Answers one request. Whatever a plain read does not do is boxed where it is waited for, here and below: each request's
    /// future is allocated and moved as a whole, as large as the largest thing that it may come to do.
    ///
    /// # Errors
    /// Typed, for the client.
    pub(crate) async fn answer(
        self: Rc<Self>,
        request: RouterRequest,
        call: Call,
        to_the_end: ToTheEnd,
    ) -> Result<RouterReply, Error> {
        let request = request.request.ok_or_else(|| Error::invalid("RouterRequest without a request"))?;
        if self.collecting.get() {
            drop(self.changing.lock().await);
        }
        // What only reads ends when its client hangs up; of these, it turns out later.
        if !matches!(request, Request::Execute(_) | Request::Query(_) | Request::Fetch(_)) {
            to_the_end.go_on();
        }
        let reply = match request {
            Request::Execute(request) => Reply::Execute(self.execute(request, &call, to_the_end).await?),
            Request::Query(request) => Reply::Rows(self.query(request, &call, to_the_end).await?),
            Request::Fetch(FetchRequest { cursor }) => Reply::Rows(self.fetch(cursor, &call).await?),
            Request::Close(request) => {
                self.close(request.cursor);
                Reply::Closed(Closed {})
            }
            Request::Batch(request) => Reply::Batch(Box::pin(self.batch(request, &call)).await?),
            Request::Explain(request) => Reply::Explain(self.explain(request)?),
            Request::Load(request) => Reply::Load(Box::pin(self.load(request, &call)).await?),
            Request::Promote(request) => Reply::Promoted(Box::pin(self.promote(request)).await?),
            Request::Topology(_) => Reply::Topology(Box::pin(self.topology(false)).await),
            Request::Health(_) => Reply::Topology(Box::pin(self.topology(true)).await),
            Request::OpenSession(_) => Reply::Session(self.open_session()?),
            Request::CloseSession(request) => {
                self.close_session(&request.session);
                Reply::SessionClosed(SessionClosed {})
            }
            Request::InDoubt(request) => {
                self.resolve_doubt(&request.transaction, &request.shard)?;
                Reply::InDoubt(InDoubtNoted {})
            }
        };
        Ok(RouterReply { reply: Some(reply) })
    }

    /// The alarm has rung.
    pub(crate) fn wake(&self) {
        self.alarm_ms.set(0);
        self.expire();
        if let Some(at_ms) = self.expire_sessions() {
            self.wake_at(at_ms);
        }
    }

    /// Has the alarm ring at `at_ms`, or sooner where it is set so already.
    fn wake_at(&self, at_ms: u64) {
        let set_ms = self.alarm_ms.get();
        if set_ms < self.context.now_ms() || at_ms < set_ms {
            self.alarm_ms.set(at_ms);
            self.context.set_alarm(at_ms);
        }
    }

    /// Whether this incarnation must not go on, and why.
    pub(crate) fn broken(&self) -> Option<Error> {
        self.must_restart.get().then(|| Error::internal("the log of decisions could not be written"))
    }

    async fn execute(
        &self,
        request: ExecuteRequest,
        call: &Call,
        to_the_end: ToTheEnd,
    ) -> Result<ExecuteResponse, Error> {
        let statement = required(request.statement)?;
        let scope = self.scope(call, request.timeout_ms, request.options).told_by(to_the_end);
        let Some(seat) = self.seat(&request.session).await? else {
            return self.execute_in(statement, request.request_id, scope).await;
        };
        if let Some(answer) = seat.answered(&request.request_id) {
            return answer;
        }
        let done = match Control::parse(&statement.sql)? {
            Some(control) => Box::pin(self.control(&seat, control, &scope))
                .await
                .map(|bookmark| ExecuteResponse { result: Some(StatementResult::default()), bookmark }),
            None => self.execute_in(statement, request.request_id.clone(), seat.scope(&scope)).await,
        };
        self.leave(&seat);
        seat.keep(request.request_id, &done);
        done
    }

    async fn execute_in(
        &self,
        statement: Statement,
        request_id: String,
        scope: Scope,
    ) -> Result<ExecuteResponse, Error> {
        let query_plan = self.plan_asked(&statement.sql, &statement.params, &scope);
        let (plan, statement) = match self.prepare(statement, &scope) {
            Ok(prepared) => prepared,
            Err(error) => return self.applied_before(&request_id)?.ok_or(error),
        };
        if plan.writes() {
            let mut done = Box::pin(self.write(&plan, statement, request_id, &scope)).await?;
            done.bookmark = scope.with_own(done.bookmark);
            if let Some(result) = &mut done.result {
                self.count(&result.rows, &scope);
                result.query_plan = query_plan;
                result.stats = scope.stats();
            }
            return Ok(done);
        }
        let (rows, cursor) = self.rows(&plan, statement, MAX_BATCH_BYTES, &scope).await?;
        self.give(&rows, &scope)?;
        if cursor.is_some() {
            let message = format!("the result has more than {MAX_BATCH_BYTES} bytes; use Query, which streams it");
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        let result = StatementResult {
            columns: plan.columns.clone(),
            rows,
            query_plan,
            stats: scope.stats(),
            ..StatementResult::default()
        };
        Ok(ExecuteResponse { result: Some(result), bookmark: self.seen(&scope) })
    }

    async fn query(&self, request: QueryRequest, call: &Call, to_the_end: ToTheEnd) -> Result<RowBatch, Error> {
        let statement = required(request.statement)?;
        let scope = self.scope(call, request.timeout_ms, request.options).told_by(to_the_end);
        let bytes = match request.max_batch_bytes {
            0 => DEFAULT_BATCH_BYTES,
            bytes => bytes.min(MAX_BATCH_BYTES),
        };
        let Some(seat) = self.seat(&request.session).await? else {
            return self.query_in(statement, request.request_id, bytes, scope).await;
        };
        if let Some(control) = Control::parse(&statement.sql)? {
            let bookmark = Box::pin(self.control(&seat, control, &scope)).await?;
            return Ok(RowBatch { bookmark, ..RowBatch::default() });
        }
        let done = self.query_in(statement, request.request_id, bytes, seat.scope(&scope)).await;
        self.leave(&seat);
        done
    }

    async fn query_in(
        &self,
        statement: Statement,
        request_id: String,
        bytes: u32,
        scope: Scope,
    ) -> Result<RowBatch, Error> {
        let query_plan = self.plan_asked(&statement.sql, &statement.params, &scope);
        let (plan, statement) = match self.prepare(statement, &scope) {
            Ok(prepared) => prepared,
            Err(error) => {
                let applied = self.applied_before(&request_id)?.ok_or(error)?;
                return Ok(RowBatch { bookmark: applied.bookmark, ..RowBatch::default() });
            }
        };
        if plan.writes() {
            let done = Box::pin(self.write(&plan, statement, request_id, &scope)).await?;
            let result = done.result.unwrap_or_default();
            self.count(&result.rows, &scope);
            return Ok(RowBatch {
                columns: result.columns,
                rows: result.rows,
                cursor: 0,
                bookmark: scope.with_own(done.bookmark),
                rows_affected: result.rows_affected,
                query_plan,
                stats: scope.stats(),
                ..RowBatch::default()
            });
        }
        let (rows, cursor) = self.rows(&plan, statement, bytes, &scope).await?;
        self.give(&rows, &scope)?;
        let batch = RowBatch { columns: plan.columns.clone(), rows, ..RowBatch::default() };
        Ok(match cursor {
            Some(cursor) => RowBatch { cursor: self.keep(cursor, query_plan, &scope)?, ..batch },
            None => RowBatch { bookmark: self.seen(&scope), query_plan, stats: scope.stats(), ..batch },
        })
    }

    /// The first rows of a statement that reads, and where there are more of them.
    async fn rows(
        &self,
        plan: &Plan,
        statement: Statement,
        max_bytes: u32,
        scope: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        match &plan.step {
            Step::Catalog { sql } => Ok((self.read_catalog(sql, &statement.params)?, None)),
            Step::Pragma { sql } => {
                let value = self.catalog.borrow().pragma(sql)?;
                Ok((value.map(|value| Row { values: vec![value.into()] }).into_iter().collect(), None))
            }
            Step::Show(show) => Ok((Box::pin(self.show(show, scope)).await?, None)),
            Step::Promote(promote) => {
                scope.go_on();
                let Promoted { shard, primary, epoch, lsn } = Box::pin(self.promote(promote.clone())).await?;
                let values = vec![shard.into(), primary.into(), (epoch as i64).into(), (lsn as i64).into()];
                Ok((vec![Row { values }], None))
            }
            Step::Explain { sql, analyze: true } => {
                let report = Box::pin(self.analyze(sql, statement.params, scope)).await?;
                Ok((report.lines().map(|line| Row { values: vec![line.into()] }).collect(), None))
            }
            Step::Explain { sql, analyze: false } => {
                let explained = self.explained(sql, &statement.params, Some(scope))?;
                Ok((explained.plan.lines().map(|line| Row { values: vec![line.into()] }).collect(), None))
            }
            _ => {
                let read = plan.read().ok_or_else(|| Error::internal("the plan does not read"))?;
                let reading = Reading { params: &statement.params, width: plan.columns.len(), max_bytes };
                self.open_consistently(read, reading, scope).await
            }
        }
    }

    fn explain(&self, request: ExplainRequest) -> Result<ExplainResponse, Error> {
        let statement = required(request.statement)?;
        self.explanation(&statement.sql, &statement.params, None)
    }

    fn explanation(&self, sql: &str, params: &[Value], scope: Option<&Scope>) -> Result<ExplainResponse, Error> {
        let explained = self.explained(sql, params, scope)?;
        let catalog = self.catalog.borrow();
        Ok(ExplainResponse {
            plan: explained.plan,
            route: explained.route.to_owned(),
            shards: explained.targets.iter().map(|shard| catalog.shards[*shard].clone()).collect(),
        })
    }

    /// The plan of a statement as text; without a scope, as it is for requests that ask for nothing special.
    fn explained(&self, sql: &str, params: &[Value], scope: Option<&Scope>) -> Result<Explained, Error> {
        // Kept out of the cache, where the text stands without its literals.
        let mut plan = Rc::new(Plan::new(sql, &mut self.catalog.borrow_mut())?);
        if let Some(scope) = scope {
            plan = self.on_lake(plan, sql, scope)?;
        }
        let given = params.len() == plan.parameter_count;
        if !given && !params.is_empty() {
            check_count(plan.parameter_count, params)?;
        }
        let resolve = |target: &Target| match target {
            Target::Any => Some(vec![self.rotation.get() % self.catalog.borrow().shards.len()]),
            target if target.needs_parameters() && !given => None,
            target => self.resolve(target, params).ok(),
        };
        Ok(explain(&plan, &resolve, &|shard| self.catalog.borrow().shards[shard].clone()))
    }

    async fn batch(&self, request: BatchRequest, call: &Call) -> Result<BatchResponse, Error> {
        let scope = self.scope(call, request.timeout_ms, request.options);
        let Some(seat) = self.seat(&request.session).await? else {
            let done = self.write_batch(request.statements, request.request_id, &scope).await?;
            return Ok(BatchResponse { bookmark: scope.with_own(done.bookmark), ..done });
        };
        let done = self.write_batch(request.statements, request.request_id, &seat.scope(&scope)).await;
        self.leave(&seat);
        done
    }

    /// The plan of a statement, planned as it stands.
    fn plan(&self, sql: &str, scope: &Scope) -> Result<Rc<Plan>, Error> {
        let began_ns = self.context.timer_ns();
        let (plan, cached) = self.planned(sql)?;
        self.note_planning(began_ns, cached, scope);
        Ok(plan)
    }

    /// The plan of a statement, and the statement to run it with: its literals may have become parameters.
    fn prepare(&self, statement: Statement, scope: &Scope) -> Result<(Rc<Plan>, Statement), Error> {
        let began_ns = self.context.timer_ns();
        let (plan, statement, cached) = self.prepared(statement)?;
        let plan = self.on_lake(plan, &statement.sql, scope)?;
        self.note_planning(began_ns, cached, scope);
        Ok((plan, statement))
    }

    /// The plan, or one that reads the lake where the request asks for that.
    fn on_lake(&self, plan: Rc<Plan>, sql: &str, scope: &Scope) -> Result<Rc<Plan>, Error> {
        if plan.read().is_none() || !self.reads_lake(scope) {
            return Ok(plan);
        }
        let read = plan.over_lake(sql, &mut self.catalog.borrow_mut())?;
        Ok(read.map_or(plan, Rc::new))
    }

    fn note_planning(&self, began_ns: u64, cached: bool, scope: &Scope) {
        scope.note(|stats| {
            stats.planning_ns = self.context.timer_ns().saturating_sub(began_ns);
            stats.plan_cached = cached;
        });
    }

    fn prepared(&self, mut statement: Statement) -> Result<(Rc<Plan>, Statement, bool), Error> {
        let as_it_is = |statement: Statement| {
            let (plan, cached) = self.planned(&statement.sql)?;
            check_count(plan.parameter_count, &statement.params)?;
            Ok((plan, statement, cached))
        };
        if !self.caching {
            return as_it_is(statement);
        }
        let known = self.plans.borrow_mut().get(&statement.sql);
        if let Some(Cached::Plan(plan)) = known {
            check_count(plan.parameter_count, &statement.params)?;
            return Ok((plan, statement, true));
        }
        let Some(lifted) = literals::lift(&statement.sql) else { return as_it_is(statement) };
        let known = self.plans.borrow_mut().get(&lifted.text);
        let (plan, cached) = match known {
            Some(Cached::Plan(plan)) => (plan, true),
            Some(Cached::NeedsLiterals) => return as_it_is(statement),
            None => {
                let mut catalog = self.catalog.borrow_mut();
                // A partial index is used where SQLite sees that its condition holds, which takes the literal.
                let planned = match catalog.has_partial_index() {
                    true => None,
                    false => Plan::new(&lifted.text, &mut catalog).ok(),
                };
                drop(catalog);
                let Some(plan) = planned.map(Rc::new) else {
                    self.plans.borrow_mut().needs_literals(lifted.text);
                    return as_it_is(statement);
                };
                self.plans.borrow_mut().insert(&lifted.text, &plan);
                (plan, false)
            }
        };
        check_count(lifted.given, &statement.params)?;
        statement.sql = lifted.text;
        statement.params.extend(lifted.values);
        Ok((plan, statement, cached))
    }

    /// The plan of a text, and whether the cache had it.
    fn planned(&self, sql: &str) -> Result<(Rc<Plan>, bool), Error> {
        if self.caching
            && let Some(Cached::Plan(plan)) = self.plans.borrow_mut().get(sql)
        {
            return Ok((plan, true));
        }
        let plan = Rc::new(Plan::new(sql, &mut self.catalog.borrow_mut())?);
        if self.caching {
            self.plans.borrow_mut().insert(sql, &plan);
        }
        Ok((plan, false))
    }

    /// The shards a target means, each once.
    fn resolve(&self, target: &Target, params: &[Value]) -> Result<Vec<usize>, Error> {
        let count = self.catalog.borrow().shards.len();
        Ok(match target {
            Target::Shard(shard) => vec![*shard],
            Target::Nowhere => vec![0],
            Target::All => (0..count).collect(),
            Target::Any => {
                let next = self.rotation.get();
                self.rotation.set(next.wrapping_add(1));
                vec![next % count]
            }
            Target::Shards(shards) => shards.to_vec(),
            Target::Lookup(keys) => {
                let table = &keys.lookup.definition.table;
                return Err(Error::internal(format!("{table} is to be read to know the shards")));
            }
            Target::Keys(keys) => {
                let mut shards = Vec::new();
                for key in &keys.values {
                    let value = self.key_value(key, params)?;
                    shards.extend(keys.vindex.shard(&value, &self.converter)?);
                }
                some_of(shards, keys.vindex.shards())
            }
            Target::Range(range) => {
                let value = |bound: &Option<KeyBound>| -> Result<Option<(Value, bool)>, Error> {
                    let Some(bound) = bound else { return Ok(None) };
                    Ok(Some((self.key_value(&bound.value, params)?, bound.included)))
                };
                let (lower, upper) = (value(&range.lower)?, value(&range.upper)?);
                let shards = range.vindex.between(
                    lower.as_ref().map(|(value, included)| (value, *included)),
                    upper.as_ref().map(|(value, included)| (value, *included)),
                    &self.converter,
                )?;
                some_of(shards, range.vindex.shards())
            }
        })
    }

    /// A key's value, before its column's affinity is applied.
    fn key_value(&self, key: &KeySource, params: &[Value]) -> Result<Value, Error> {
        match key {
            KeySource::Literal(value) => Ok(value.clone()),
            KeySource::Param(index) => Ok(params.get(*index).cloned().unwrap_or_default()),
            KeySource::Expression(text) => self.converter.evaluate(text, params),
        }
    }

    /// The shard a row with this key goes to.
    ///
    /// # Errors
    /// `CONSTRAINT` where no shard takes it.
    fn shard_for(&self, value: &Value, keys: &Keys) -> Result<usize, Error> {
        match keys.vindex.shard(value, &self.converter)? {
            Some(shard) => Ok(shard),
            // Any shard will do to say what comes of a row that must not be.
            None if value.is_null() && keys.required && !keys.vindex.shards().is_empty() => Ok(keys.vindex.shards()[0]),
            None => Err(keys.vindex.outside(&keys.table, &keys.column, value)),
        }
    }

    /// The request's id, or a new one.
    fn request_id(&self, given: String) -> String {
        if given.is_empty() {
            format!("{:016x}{:016x}", self.context.random_u64(), self.context.random_u64())
        } else {
            given
        }
    }
}

/// These shards, each once and in order. Where no shard can hold such a row one of `all` is asked, which finds none: what a
/// statement says of no rows is its own business.
fn some_of(mut shards: Vec<usize>, all: &[usize]) -> Vec<usize> {
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        shards.extend(all.first());
    }
    shards
}

fn required(statement: Option<Statement>) -> Result<Statement, Error> {
    statement.ok_or_else(|| Error::invalid("the request has no statement"))
}

fn check_count(expected: usize, params: &[Value]) -> Result<(), Error> {
    if params.len() == expected {
        return Ok(());
    }
    let plural = if expected == 1 { "parameter" } else { "parameters" };
    let message = format!("the statement has {expected} {plural}, but {} were given", params.len());
    Err(Error::new(ErrorCode::ParameterCount, message))
}
