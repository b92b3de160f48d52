//! Hooks on an actor's connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dosql_proto::Error;
use rusqlite::Connection;

use crate::runtime::Context;
use crate::sql_value::sql_error;

/// Virtual machine steps between two looks at the clock.
const STEPS_PER_LOOK: i32 = 10_000;

/// Lets a hook that SQLite keeps hold what stays on the actor's thread.
pub(crate) struct ThreadBound<T>(T);

impl<T> ThreadBound<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

// SAFETY: rusqlite asks for `Send` because a connection may move between threads. An actor owns its connection privately and is
// itself not `Send` (it holds its `Context`), so its hooks are made, called and dropped on one thread.
unsafe impl<T> Send for ThreadBound<T> {}

/// Whether a deadline (milliseconds since the Unix epoch; 0: never) has passed.
#[must_use]
pub fn is_past(deadline_ms: u64, context: &Context) -> bool {
    deadline_ms != 0 && context.now_ms() > deadline_ms
}

/// Has every statement of the connection end with `DEADLINE_EXCEEDED` once `over` says so.
///
/// # Errors
/// SQLite's, where it refuses the hook.
pub fn end_statements(
    connection: &mut Connection,
    context: &Context,
    over: impl Fn(&Context) -> bool + 'static,
) -> Result<(), Error> {
    let bound = ThreadBound::new((context.clone(), over));
    connection
        .progress_handler(
            STEPS_PER_LOOK,
            Some(move || {
                let (context, over) = bound.get();
                over(context)
            }),
        )
        .map_err(sql_error)
}

/// Has every statement of the connection end with `DEADLINE_EXCEEDED` once `over` is set, on whatever thread it runs.
///
/// # Errors
/// SQLite's, where it refuses the hook.
pub fn end_statements_when(connection: &mut Connection, over: Arc<AtomicBool>) -> Result<(), Error> {
    connection.progress_handler(STEPS_PER_LOOK, Some(move || over.load(Ordering::Relaxed))).map_err(sql_error)
}
