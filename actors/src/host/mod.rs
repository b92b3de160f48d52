//! Hosts: what carries messages between actors and gives each its storage, clock and alarm.

#[cfg(feature = "actix")]
pub mod actix;
