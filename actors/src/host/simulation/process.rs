//! Where an actor is in its life.

use dosql_proto::Address;
use futures_util::future::LocalBoxFuture;

use crate::runtime::{Context, Mailbox, MailboxReceiver};

/// Drives an actor of one kind until its mailbox closes.
pub(super) type Drive = fn(Context, MailboxReceiver) -> LocalBoxFuture<'static, ()>;

/// An actor that was started.
pub(super) enum Process {
    /// It runs.
    Up {
        /// Its address.
        address: Address,
        /// The number of this life, which owns its tasks and its handles on the disk.
        life: u64,
        /// Where its messages go.
        mailbox: Mailbox,
    },
    /// It has died and has not come back yet.
    Down,
}
