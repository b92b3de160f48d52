//! The lake's writer on objects and a database in memory: what it makes of changes, and what failures make of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and is no actor"
)]

mod choosing;
mod exactly_once;
mod options;
mod partitions;
mod reading;
mod records;
mod schema_evolution;
mod support;
mod tables;
