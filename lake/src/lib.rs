//! The lake writer: change records of the shards in, Apache Iceberg tables out.
//!
//! [`Lake`] is the actor `lake/default`. It buffers the records that the change stream delivers and, by time, count or size,
//! commits them to two Iceberg v2 tables for each source table: a *mirror* of the current rows (`warehouse/default/TABLE/`)
//! and a *change log* that only grows (`warehouse/default/TABLE__changes/`).
//!
//! # Columns
//! A column of the source table becomes an optional Iceberg column of the same name. Its type follows the declared type:
//!
//! | declared type | Iceberg type | values that fit |
//! |---|---|---|
//! | INTEGER affinity, or containing `BOOL` | long | integers |
//! | REAL affinity | double | reals, and integers that a double holds exactly |
//! | TEXT affinity; NUMERIC affinity containing `DATE` or `TIME`; none; `ANY` | string | text that is valid UTF-8; finite numbers, as SQL writes them |
//! | BLOB affinity, declared | binary | blobs |
//! | any other NUMERIC affinity (`DECIMAL(10,2)`, `NUMERIC`, ...) | double | as REAL |
//!
//! SQLite lets a column hold any value. A value that does not fit reads as NULL in its column, and the **whole row** stands as
//! JSON in the column `_misfit`, which is null for every other row: `{"column": value}`, where a blob is
//! `{"blob": "HEX"}`, text that is not UTF-8 `{"raw_text": "HEX"}` and an infinite real `{"real": "inf"}`.
//!
//! Both tables carry `_shard`, `_lsn` (the transaction's LSN in that shard), `_committed_at` and `_misfit`; the change log also
//! `_operation` (`insert`, `delete`, `update_before`, `update_after`,
//! `drop_table`) and `_ordinal` (the change's place in its transaction), the mirror `_key` (see `key.rs`).
//! Tables are partitioned by `day(_committed_at)` unless their options say otherwise; the partition field is called `dt`, or `_dt`
//! where the table has a column `dt` when its lake table is made. A source column whose name is taken by one of these is mirrored as `user_NAME`.
//!
//! # Schema changes
//! Columns are followed by field ids (`forms.rs`). A renamed column keeps its id, and its rows are not written again; a dropped one
//! leaves the schema when no shard's rows have it any more; one that is added has a new id, whatever its name was before. The
//! values of a default arrive as row changes. Where a table is dropped, its mirror becomes empty, and its files, snapshots and
//! change log stay; a new table of the same name goes on in them: columns of the same name and type are the same. A renamed
//! table is dropped under its old name and made, with its rows, under the new one.
//!
//! # Exactly once
//! A commit is the exclusive creation of `vN.metadata.json`, or, where a REST catalog keeps the tables, what that answers (see
//! `authority.rs`). Its snapshot's summary names, as `dosql.lsn.SHARD`, the last LSN
//! of each shard that the table has taken in: records at or below it are skipped when they are delivered again.
//! The steps of a flush, and what a crash between them leaves, are described in `flush.rs`.

mod actor;
mod arrange;
mod arrangement;
mod authority;
mod block;
mod buffer;
mod catalog;
mod cell_column;
mod cells;
mod cleanup;
mod columns;
mod commit;
mod compaction;
mod configure;
mod dictionary;
mod entries;
mod error;
mod flush;
mod forms;
mod images;
mod index;
mod key;
mod layout;
mod live_files;
mod maintenance;
mod mirror;
mod misfits;
mod moved;
mod opening;
mod options;
mod parquet_file;
mod partition;
mod rebuild;
mod record_batch;
mod reshape;
mod rest;
mod rows;
pub mod scan;
mod sorting;
mod table;

pub use actor::Lake;
pub use catalog::Catalog;
pub use error::LakeError;
