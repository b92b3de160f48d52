//! Reads of the lake through DataFusion: columnar and vectorised, for hosts that have threads and memory to spare. On Durable
//! Objects, whose module size DataFusion would burst, the lake's own pruned scans serve instead.
//!
//! [`Analytics`] is the actor `analytics/default`. The lake's [`scan`](dosql_lake::scan) decides which files may hold wanted rows
//! and what a condition means for their columns; DataFusion reads the files, skips row groups and pages, filters and aggregates, on
//! threads of its own. It gets bytes of files from the actor alone, which asks its context for them.

mod actor;
mod engine;
mod expressions;
mod footers;
mod provider;
mod readers;

pub use actor::Analytics;
