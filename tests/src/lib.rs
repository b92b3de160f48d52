//! What whole-system tests share.

pub mod conformance;
pub mod seeds;
pub mod serialisability;
pub mod sharded;
pub mod storms;
