//! Services outside the system as actors see them: one HTTP request, one answer.

use bytes::Bytes;
use dosql_proto::{Error, ErrorCode};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    /// `GET`.
    Get,
    /// `POST`.
    Post,
}

/// A request. It may hold secrets, so it has no `Debug`.
#[derive(Clone)]
pub struct HttpRequest {
    /// `GET` or `POST`.
    pub method: HttpMethod,
    /// An absolute `http` or `https` URL. Redirections are not followed.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(&'static str, String)>,
    /// Empty where there is none.
    pub body: Bytes,
    /// Bytes of the answer's body at most.
    pub most_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// From 100 to 599.
    pub status: u16,
    /// Names, in lower case, and values that are text.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The host has no network.
    #[error("this host makes no HTTP requests; {url} cannot be reached")]
    Unsupported {
        /// Where the request was to go.
        url: String,
    },
    /// None came, or not in time, or a part of it. The request may have been handled.
    #[error("no answer from {url}: {reason}")]
    NoAnswer {
        /// Where the request was to go.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The answer exceeds what the request allows. The request was handled.
    #[error("the answer of {url} is longer than {most_bytes} bytes")]
    TooLong {
        /// Where the request went.
        url: String,
        /// How long it may be.
        most_bytes: usize,
    },
}

impl From<HttpError> for Error {
    fn from(error: HttpError) -> Self {
        let message = error.to_string();
        match error {
            HttpError::Unsupported { .. } => Self::new(ErrorCode::Unsupported, message),
            HttpError::NoAnswer { .. } => Self::retryable(ErrorCode::Unavailable, message, 1000),
            HttpError::TooLong { .. } => Self::new(ErrorCode::TooLarge, message),
        }
    }
}
