//! Hooks on an actor's connections.

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

/// Has every statement of the connection end with `DEADLINE_EXCEEDED` once the time that `deadline_ms` gives (milliseconds since
/// the Unix epoch; 0: never) has passed.
///
/// # Errors
/// SQLite's, where it refuses the hook.
pub fn end_statements(
    connection: &mut Connection,
    context: &Context,
    deadline_ms: impl Fn() -> u64 + 'static,
) -> Result<(), Error> {
    let bound = ThreadBound::new((context.clone(), deadline_ms));
    connection
        .progress_handler(
            STEPS_PER_LOOK,
            Some(move || {
                let (context, deadline_ms) = bound.get();
                let deadline_ms = deadline_ms();
                deadline_ms != 0 && context.now_ms() > deadline_ms
            }),
        )
        .map_err(sql_error)
}
