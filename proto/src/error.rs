//! `Error`, the message, as a Rust error.

use crate::v1::{Error, ErrorCode};

impl Error {
    /// An error that a retry of the same request would meet again.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), ..Self::default() }
    }

    /// An error that may pass; `retry_after_ms` says when to try again (0: at once).
    pub fn retryable(code: ErrorCode, message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retryable: true, retry_after_ms, ..Self::new(code, message) }
    }

    /// A message that could not be decoded or lacks what it must have.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// A fault of our own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The code's stable name, as in `SYNTAX_ERROR`.
    #[must_use]
    pub fn code_name(&self) -> &'static str {
        self.code().as_str_name()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.code_name(), self.message)
    }
}

impl std::error::Error for Error {}
