//! What one request brings along through all that it causes.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

use dosql_actors::Call;
use dosql_actors::runtime::ToTheEnd;
use dosql_proto::{Error, ErrorCode, ExplainResponse, Position, QueryOptions, QueryStats, Row, StepStats, Value};
use prost::Message;

use super::Shared;
use crate::transaction::Transaction;

/// A request's call (deadline, trace, caller), how its statements are to be run, and where what they take is noted.
#[derive(Clone)]
pub(crate) struct Scope {
    call: Call,
    pub(crate) options: Rc<QueryOptions>,
    profile: Option<Rc<RefCell<QueryStats>>>,
    /// Rows and bytes of the result that the client has been given.
    given: Rc<Cell<(u64, u64)>>,
    /// When the request came, on the host's timer.
    began_ns: u64,
    /// The transaction it belongs to, where that goes on.
    transaction: Option<Rc<Transaction>>,
    /// Told where the request's work goes on though its client hangs up.
    to_the_end: ToTheEnd,
    /// How far each shard had come when it was read, for the bookmark.
    seen: Rc<RefCell<BTreeMap<usize, u64>>>,
}

impl Deref for Scope {
    type Target = Call;

    fn deref(&self) -> &Call {
        &self.call
    }
}

impl Scope {
    /// A scope for the next request of an open result: its own time limit, the first request's options and notes.
    pub(super) fn resumed(&self, call: Call, began_ns: u64) -> Self {
        Self { call, began_ns, ..self.clone() }
    }

    /// The same scope for a statement whose rows go nowhere: it takes notes, and has no limits.
    pub(super) fn analyzed(&self) -> Self {
        let options = QueryOptions { max_rows: 0, max_bytes: 0, ..(*self.options).clone() };
        Self { profile: Some(Rc::default()), options: Rc::new(options), given: Rc::default(), ..self.clone() }
    }

    /// The same scope for what a statement reads on its way, which the limits of its result do not concern.
    pub(super) fn unlimited(&self) -> Self {
        let options = QueryOptions { max_rows: 0, max_bytes: 0, ..(*self.options).clone() };
        Self { options: Rc::new(options), ..self.clone() }
    }

    /// Notes how far a shard had come when it was read.
    pub(super) fn saw(&self, shard: usize, lsn: u64) {
        if lsn == 0 {
            return;
        }
        let mut seen = self.seen.borrow_mut();
        let known = seen.entry(shard).or_default();
        *known = lsn.max(*known);
    }

    /// The same scope, with writes acknowledged when a replica has them.
    pub(super) fn replicated(&self) -> Self {
        let mut options = (*self.options).clone();
        options.set_durability(dosql_proto::Durability::Replicated);
        Self { options: Rc::new(options), ..self.clone() }
    }

    /// The bookmark of what was written, and whatever the request's own bookmark says.
    pub(super) fn with_own(&self, bookmark: String) -> String {
        let own: Position = self.options.bookmark.parse().unwrap_or_default();
        let mut position: Position = bookmark.parse().unwrap_or_default();
        own.0.iter().for_each(|(shard, lsn)| position.advance(shard, *lsn));
        position.to_string()
    }

    /// How far the shards had come that were read.
    pub(super) fn seen(&self) -> Ref<'_, BTreeMap<usize, u64>> {
        self.seen.borrow()
    }

    /// The call, with a deadline `timeout_ms` from now at the latest.
    pub(super) fn limited(&self, now_ms: u64, timeout_ms: u64) -> Call {
        self.call.within(now_ms, timeout_ms)
    }

    /// The same for a request that goes on to its end where it is told so here.
    pub(super) fn told_by(self, to_the_end: ToTheEnd) -> Self {
        Self { to_the_end, ..self }
    }

    /// What follows is done to its end, though the client may hang up: it writes.
    pub(super) fn go_on(&self) {
        self.to_the_end.go_on();
    }

    /// The same within a transaction.
    pub(super) fn within(&self, transaction: Option<Rc<Transaction>>) -> Self {
        Self { transaction, ..self.clone() }
    }

    /// The transaction it belongs to, where that goes on.
    pub(super) fn transaction(&self) -> Option<&Rc<Transaction>> {
        self.transaction.as_ref()
    }

    /// Changes the notes, where some are taken.
    pub(super) fn note(&self, note: impl FnOnce(&mut QueryStats)) {
        if let Some(profile) = &self.profile {
            note(&mut profile.borrow_mut());
        }
    }

    /// The notes so far, where some are taken.
    pub(super) fn stats(&self) -> Option<QueryStats> {
        self.profile.as_ref().map(|profile| profile.borrow().clone())
    }

    /// Adds to a step's numbers; a step is known by its name, table and shard.
    pub(super) fn step(&self, add: StepStats) {
        self.note(|stats| {
            let same =
                |step: &&mut StepStats| step.step == add.step && step.table == add.table && step.shard == add.shard;
            match stats.steps.iter_mut().find(same) {
                Some(step) => {
                    step.rows += add.rows;
                    step.bytes += add.bytes;
                    step.batches += add.batches;
                    step.elapsed_us += add.elapsed_us;
                    step.lake = add.lake.or(step.lake);
                }
                None => stats.steps.push(add),
            }
        });
    }

    /// The most rows that are worth reading: one more than may still be given, so that too many show; 0: any number.
    pub(super) fn rows_wanted(&self) -> u64 {
        match self.options.max_rows {
            0 => 0,
            most => most.saturating_sub(self.given.get().0).saturating_add(1),
        }
    }

    /// Whether notes are taken.
    pub(super) fn profiles(&self) -> bool {
        self.profile.is_some()
    }
}

/// The lower of two limits, of which 0 is none.
pub(super) fn lower(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, limit) | (limit, 0) => limit,
        (one, other) => one.min(other),
    }
}

/// The bytes of some rows, encoded.
pub(super) fn encoded(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.encoded_len() as u64).sum()
}

impl Shared {
    /// The scope of a request that may take `timeout_ms`; 0: the default.
    pub(super) fn scope(&self, call: &Call, timeout_ms: u64, options: Option<QueryOptions>) -> Scope {
        let timeout_ms = if timeout_ms == 0 { self.context.settings().query_timeout_ms } else { timeout_ms };
        let mut options = options.unwrap_or_default();
        let settings = self.context.settings();
        options.max_rows = lower(options.max_rows, settings.max_result_rows);
        options.max_bytes = lower(options.max_bytes, settings.max_result_bytes);
        Scope {
            call: call.within(self.context.now_ms(), timeout_ms),
            profile: options.profile.then(Rc::default),
            options: Rc::new(options),
            given: Rc::default(),
            began_ns: self.context.timer_ns(),
            transaction: None,
            to_the_end: ToTheEnd::default(),
            seen: Rc::default(),
        }
    }

    /// How long ago that was, in microseconds.
    pub(super) fn since(&self, began_ns: u64) -> u64 {
        self.context.timer_ns().saturating_sub(began_ns) / 1_000
    }

    /// Counts rows about to be given to the client, and the time that this request took.
    ///
    /// # Errors
    /// `TOO_LARGE` where the result has more rows or bytes than it may have.
    pub(super) fn give(&self, rows: &[Row], scope: &Scope) -> Result<(), Error> {
        let QueryOptions { max_rows, max_bytes, .. } = *scope.options;
        if max_rows != 0 || max_bytes != 0 {
            let (mut given_rows, mut given_bytes) = scope.given.get();
            given_rows += rows.len() as u64;
            given_bytes += encoded(rows);
            scope.given.set((given_rows, given_bytes));
            let over = |limit: u64, given: u64, what: &str, option: &str, setting: &str| {
                let message = format!(
                    "the result has more than {limit} {what}, which is its limit ({option} of the request, or {setting})"
                );
                (limit != 0 && given > limit).then(|| Error::new(ErrorCode::TooLarge, message))
            };
            let error = over(max_rows, given_rows, "rows", "max_rows", "DOSQL_MAX_RESULT_ROWS")
                .or_else(|| over(max_bytes, given_bytes, "bytes", "max_bytes", "DOSQL_MAX_RESULT_BYTES"));
            if let Some(error) = error {
                return Err(error);
            }
        }
        self.count(rows, scope);
        Ok(())
    }

    /// Counts rows of a statement that has taken effect already, so that no limit can refuse them any more.
    pub(super) fn count(&self, rows: &[Row], scope: &Scope) {
        scope.note(|stats| {
            stats.rows += rows.len() as u64;
            stats.bytes += encoded(rows);
            stats.elapsed_us += self.since(scope.began_ns);
        });
    }

    /// The plan, where the request asks for it.
    pub(super) fn plan_asked(&self, sql: &str, params: &[Value], scope: &Scope) -> Option<ExplainResponse> {
        // What cannot be explained (a schema change that made its own text invalid) is no reason to withhold the result.
        scope.options.explain.then(|| self.explanation(sql, params, Some(scope)).ok()).flatten()
    }
}
