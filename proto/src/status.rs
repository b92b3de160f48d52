//! `Error` as a gRPC status and back.

use prost::Message as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::v1::{Error, ErrorCode};

/// The metadata key that carries an error's code by name, as in `SYNTAX_ERROR`.
pub const ERROR_CODE_METADATA: &str = "dosql-error-code";

fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidRequest
        | ErrorCode::SyntaxError
        | ErrorCode::UnknownColumn
        | ErrorCode::ParameterCount
        | ErrorCode::TypeMismatch
        | ErrorCode::SqlError => Code::InvalidArgument,
        ErrorCode::UnknownTable | ErrorCode::UnknownCursor | ErrorCode::UnknownSession | ErrorCode::NotFound => {
            Code::NotFound
        }
        ErrorCode::Constraint | ErrorCode::OutOfOrder => Code::FailedPrecondition,
        ErrorCode::TooLarge | ErrorCode::Overloaded | ErrorCode::BufferFull => Code::ResourceExhausted,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::Unavailable | ErrorCode::ObjectStore | ErrorCode::NotPrimary | ErrorCode::ReplicaLagging => {
            Code::Unavailable
        }
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::UnknownPosition => Code::OutOfRange,
        ErrorCode::Conflict | ErrorCode::LockTimeout | ErrorCode::TransactionAborted => Code::Aborted,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::Storage | ErrorCode::Internal => Code::Internal,
        ErrorCode::Unspecified => Code::Unknown,
    }
}

impl From<Error> for Status {
    /// The message as it is, the `Error` encoded in the details, and its code's name under [`ERROR_CODE_METADATA`].
    fn from(error: Error) -> Self {
        let name = error.code_name();
        let details = error.encode_to_vec();
        let mut status = Self::with_details(grpc_code(error.code()), error.message, details.into());
        status.metadata_mut().insert(ERROR_CODE_METADATA, MetadataValue::from_static(name));
        status
    }
}

impl From<&Status> for Error {
    /// The `Error` in the details, or, from a server or proxy that sent none, the nearest one.
    fn from(status: &Status) -> Self {
        if !status.details().is_empty()
            && let Ok(error) = Self::decode(status.details())
            && error.code() != ErrorCode::Unspecified
        {
            return error;
        }
        let (code, retryable) = match status.code() {
            Code::InvalidArgument => (ErrorCode::InvalidRequest, false),
            Code::NotFound => (ErrorCode::NotFound, false),
            Code::ResourceExhausted | Code::OutOfRange => (ErrorCode::TooLarge, false),
            Code::Unimplemented => (ErrorCode::Unsupported, false),
            Code::Unavailable => (ErrorCode::Unavailable, true),
            Code::DeadlineExceeded => (ErrorCode::DeadlineExceeded, true),
            _ => (ErrorCode::Internal, false),
        };
        Self { retryable, ..Self::new(code, status.message()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_status() {
        let error = Error::retryable(ErrorCode::BufferFull, "buffer_full", 250);
        let status = Status::from(error.clone());
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get(ERROR_CODE_METADATA).unwrap(), "BUFFER_FULL");
        assert_eq!(Error::from(&status), error);
    }

    #[test]
    fn a_foreign_status_becomes_the_nearest_error() {
        let error = Error::from(&Status::unavailable("no route"));
        assert_eq!((error.code(), error.message.as_str(), error.retryable), (ErrorCode::Unavailable, "no route", true));
    }
}
