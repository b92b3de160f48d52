//! Hosts: what carries messages between actors and gives each its storage, clock and alarm.

#[cfg(feature = "actix")]
pub mod actix;
#[cfg(feature = "simulation")]
pub mod simulation;

#[cfg(any(feature = "actix", feature = "simulation"))]
mod log_mode;
