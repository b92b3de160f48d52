//! Reaching a server.

use std::time::Duration;

use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::{Error, ErrorCode};
use tonic::transport::{Channel, Endpoint};

/// Where `dosql serve` listens unless told otherwise.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:50051";

/// Longest answer that a client takes, in bytes: a batch of rows is at most 4 MiB, or one row.
const LARGEST_ANSWER: usize = 256 << 20;

/// Bytes that a server may send before the client has read them; larger than HTTP/2's default so that streams of rows flow.
const WINDOW: u32 = 2 << 20;

/// Connects to the server at `url`.
///
/// # Errors
/// `INVALID_REQUEST` where the URL is none, `UNAVAILABLE` where nobody answers there.
pub(crate) async fn connect(url: &str) -> Result<QueryServiceClient<Channel>, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| Error::invalid(format!("{url} is not a URL such as {DEFAULT_URL}: {error}")))?
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let channel = endpoint.connect().await.map_err(|error| {
        let message = format!("no server answers at {url}: {}", innermost(&error));
        Error::retryable(ErrorCode::Unavailable, message, 0)
    })?;
    Ok(QueryServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}

/// What went wrong at the bottom, such as "Connection refused".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
