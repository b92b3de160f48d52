//! Errors.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::v1::{Error, ErrorCode};

/// An error as the body of an HTTP answer: `{"error": {"code": "SYNTAX_ERROR", "message": "...", "retryable": false}}`,
/// and `retry_after_ms` where it matters.
#[derive(Debug, Clone, Copy)]
pub struct ErrorBody<'a>(pub &'a Error);

impl ErrorBody<'_> {
    /// The JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, integers and booleans always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for ErrorBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_struct("ErrorBody", 1)?;
        body.serialize_field("error", &ErrorFields(self.0))?;
        body.end()
    }
}

/// The inner object of an [`ErrorBody`].
pub(super) struct ErrorFields<'a>(pub(super) &'a Error);

impl Serialize for ErrorFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let error = self.0;
        let mut fields = serializer.serialize_struct("Error", 3 + usize::from(error.retry_after_ms > 0))?;
        fields.serialize_field("code", error.code_name())?;
        fields.serialize_field("message", &error.message)?;
        fields.serialize_field("retryable", &error.retryable)?;
        if error.retry_after_ms > 0 {
            fields.serialize_field("retry_after_ms", &error.retry_after_ms)?;
        }
        fields.end()
    }
}

/// The HTTP status that goes with an error.
#[must_use]
pub fn http_status(error: &Error) -> u16 {
    match error.code() {
        ErrorCode::InvalidRequest
        | ErrorCode::SyntaxError
        | ErrorCode::UnknownColumn
        | ErrorCode::ParameterCount
        | ErrorCode::TypeMismatch
        | ErrorCode::Unsupported
        | ErrorCode::UnknownPosition
        | ErrorCode::SqlError => 400,
        ErrorCode::UnknownTable | ErrorCode::UnknownCursor | ErrorCode::UnknownSession | ErrorCode::NotFound => 404,
        ErrorCode::Constraint
        | ErrorCode::Conflict
        | ErrorCode::LockTimeout
        | ErrorCode::TransactionAborted
        | ErrorCode::AlreadyExists
        | ErrorCode::OutOfOrder => 409,
        ErrorCode::TooLarge => 413,
        ErrorCode::Overloaded | ErrorCode::BufferFull => 429,
        ErrorCode::NotPrimary | ErrorCode::ReplicaLagging | ErrorCode::Unavailable => 503,
        ErrorCode::DeadlineExceeded => 504,
        ErrorCode::Internal | ErrorCode::Storage | ErrorCode::ObjectStore | ErrorCode::Unspecified => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_code() {
        let error = Error::retryable(ErrorCode::Overloaded, "busy", 20);
        assert_eq!(
            ErrorBody(&error).to_json(),
            r#"{"error":{"code":"OVERLOADED","message":"busy","retryable":true,"retry_after_ms":20}}"#
        );
        assert_eq!(http_status(&error), 429);
    }
}
