//! What whole-system tests share.

pub mod conformance;
pub mod seeds;
pub mod sharded;
