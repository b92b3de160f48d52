//! What one request brings along through all that it causes.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;

use dosql_actors::Call;
use dosql_proto::{ExplainResponse, QueryOptions, QueryStats, Row, StepStats};
use prost::Message;

use super::Shared;

/// A request's call (deadline, trace, caller), how its statements are to be run, and where what they take is noted.
#[derive(Clone)]
pub(crate) struct Scope {
    call: Call,
    pub(crate) options: Rc<QueryOptions>,
    profile: Option<Rc<RefCell<QueryStats>>>,
    /// When the request came, on the host's timer.
    began_us: u64,
}

impl Deref for Scope {
    type Target = Call;

    fn deref(&self) -> &Call {
        &self.call
    }
}

impl Scope {
    /// A scope for the next request of an open result: its own time limit, the first request's options and notes.
    pub(super) fn resumed(&self, call: Call, began_us: u64) -> Self {
        Self { call, began_us, ..self.clone() }
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
                }
                None => stats.steps.push(add),
            }
        });
    }

    /// Whether notes are taken.
    pub(super) fn profiles(&self) -> bool {
        self.profile.is_some()
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
        let options = options.unwrap_or_default();
        Scope {
            call: call.within(self.context.now_ms(), timeout_ms),
            profile: options.profile.then(Rc::default),
            options: Rc::new(options),
            began_us: self.context.timer_us(),
        }
    }

    /// Counts rows given to the client, and the time that this request took.
    pub(super) fn note_rows(&self, rows: &[Row], scope: &Scope) {
        scope.note(|stats| {
            stats.rows += rows.len() as u64;
            stats.bytes += encoded(rows);
            stats.elapsed_us += self.context.timer_us().saturating_sub(scope.began_us);
        });
    }

    /// The plan, where the request asks for it.
    pub(super) fn plan_asked(
        &self,
        sql: &str,
        params: &[dosql_proto::Value],
        scope: &Scope,
    ) -> Option<ExplainResponse> {
        // What cannot be explained (a schema change that made its own text invalid) is no reason to withhold the result.
        scope.options.explain.then(|| self.explanation(sql, params).ok()).flatten()
    }
}
