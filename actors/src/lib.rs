//! The actor model of DoSQL: the [`runtime`] (what an actor is and what it may touch), the actors that own data, and the
//! [`host`]s that need no cloud.
//!
//! An actor is private state behind one mailbox. It reaches the world only through its [`Context`]: other actors, its own
//! SQLite, object storage, services that speak HTTP, the clock, randomness, the alarm. Everything else is forbidden to actor code by clippy
//! (`clippy.toml` in this crate, shared with the crates of the other actors), which is what lets the same code run in one
//! process, in a simulator and on Durable Objects.

pub mod cdc;
pub mod host;
mod news;
pub mod probe;
pub mod runtime;
pub mod shard;
pub mod sql_hooks;
pub mod sql_memory;
pub mod sql_name;
pub mod sql_order;
pub mod sql_sum;
pub mod sql_value;
#[cfg(test)]
mod test_world;

pub use runtime::{
    Actor, Call, CatalogAccess, CatalogSettings, Context, Delivery, Handled, Host, HttpError, HttpMethod, HttpRequest,
    HttpResponse, Input, Mailbox, ObjectError, ObjectMeta, ObjectStore, Payload, Settings, SettingsError, mailbox,
    supervise,
};
