//! What can go wrong in the lake writer.

use dosql_actors::{HttpError, ObjectError};
use dosql_proto::{Error, ErrorCode};

/// Why the lake could not take records in or commit them.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The lake's own database failed.
    #[error("the lake's own database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// Object storage failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The catalog that keeps the tables did not answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The catalog could not do what it was asked to, or says nothing of it. It may have happened.
    #[error("the catalog answered {url} with status {status}: {reason}")]
    CatalogFailed {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// The catalog did not do what it was asked to.
    #[error("the catalog refused {url} with status {status}: {reason}")]
    CatalogRefused {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// The catalog has a table elsewhere than the lake's objects are.
    #[error(
        "{table} is at {location:?}, outside of {root:?}, where the lake's objects are: give the warehouse a location there"
    )]
    OutsideStore {
        /// The table, and the catalog.
        table: String,
        /// Where the catalog has it.
        location: String,
        /// Where the objects are.
        root: String,
    },
    /// Iceberg metadata could not be built or read.
    #[error("Iceberg metadata: {0}")]
    Iceberg(Box<iceberg::Error>),
    /// Rows could not be turned into columns.
    #[error("columns: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A Parquet file could not be written.
    #[error("Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// An object of the lake is not what it should be.
    #[error("{path} is malformed: {reason}")]
    Malformed {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else committed to a table.
    #[error("{table} was changed by another writer: {reason}")]
    Conflict {
        /// The table's directory.
        table: String,
        /// What was found.
        reason: String,
    },
    /// The index from keys to rows does not agree with the table. It is made anew before the table is used next.
    #[error("the index of {table} does not agree with the table: {reason}; it will be made anew")]
    IndexStale {
        /// The table.
        table: String,
        /// What was found.
        reason: String,
    },
    /// The lake holds tables of which nothing says how far they are.
    #[error(
        "{table} exists, but the lake actor's database is gone, and so is {positions}, which would say how far each shard \
         was taken in: restore one of them, or move the tables away to start the lake anew"
    )]
    PositionsLost {
        /// A table's directory.
        table: String,
        /// The object that is missing.
        positions: String,
    },
    /// An option of a table that cannot be used.
    #[error("option {name} of {table}: {reason}")]
    Option {
        /// The source table.
        table: String,
        /// The option.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value does not fit its column, and the table's option `misfits` is `stop`.
    #[error(
        "{column} of {table}: {value}, which {shard} wrote at LSN {lsn}, does not fit its type {column_type}, and the table's \
         option misfits is stop; nothing of the table is committed until it is null or widen"
    )]
    Misfit {
        /// The source table.
        table: String,
        /// The column.
        column: String,
        /// The column's type in the lake.
        column_type: &'static str,
        /// The value, in short.
        value: String,
        /// The shard.
        shard: String,
        /// The LSN of the change.
        lsn: u64,
    },
    /// A read asks for what the lake does not tell exactly.
    #[error("{column} of {table} cannot be read from the lake: {reason}")]
    NotInLake {
        /// The source table.
        table: String,
        /// The column.
        column: String,
        /// Why not.
        reason: &'static str,
    },
    /// A record that no shard writes.
    #[error("record {lsn} of {shard} is malformed: {reason}")]
    Record {
        /// The shard.
        shard: String,
        /// The record's LSN.
        lsn: u64,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<iceberg::Error> for LakeError {
    fn from(error: iceberg::Error) -> Self {
        Self::Iceberg(Box::new(error))
    }
}

impl From<LakeError> for Error {
    fn from(error: LakeError) -> Self {
        let message = error.to_string();
        match error {
            LakeError::Database(_) | LakeError::PositionsLost { .. } => Self::new(ErrorCode::Storage, message),
            LakeError::Object(error) => error.into(),
            LakeError::Http(error) => error.into(),
            LakeError::CatalogFailed { .. } => Self::retryable(ErrorCode::Unavailable, message, 1000),
            LakeError::OutsideStore { .. } => Self::new(ErrorCode::Unsupported, message),
            LakeError::Malformed { .. } | LakeError::CatalogRefused { .. } => {
                Self::new(ErrorCode::ObjectStore, message)
            }
            LakeError::Conflict { .. } | LakeError::IndexStale { .. } => {
                Self::retryable(ErrorCode::Conflict, message, 1000)
            }
            LakeError::Record { .. } | LakeError::Option { .. } => Self::invalid(message),
            LakeError::Misfit { .. } => Self::new(ErrorCode::TypeMismatch, message),
            LakeError::NotInLake { .. } => Self::new(ErrorCode::Unsupported, message),
            LakeError::Iceberg(_) | LakeError::Arrow(_) | LakeError::Parquet(_) => Self::internal(message),
        }
    }
}
