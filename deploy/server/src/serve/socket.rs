//! WebSocket connections that take frames made beforehand.
//!
//! What a server sends is not masked, so that a message's frame is the same bytes for everybody: it is made once, and messages that
//! follow each other go to a connection in one write. Everything else of the protocol is tungstenite's.

use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::Response;
use dosql_proto::Error;
use dosql_proto::subscriber::Message;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message as Received};

use super::http::HttpError;

/// Bytes of the header of a frame that is not masked, at most.
const LONGEST_HEADER: usize = 10;

/// The frames of messages that follow each other.
#[derive(Debug)]
pub(super) struct Wire {
    bytes: Bytes,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Wire {
    pub(super) fn of(messages: Vec<Message>) -> Self {
        let payloads = messages.iter().map(|message| match message {
            Message::Text(text) => (Data::Text, text.as_bytes()),
            Message::Binary(bytes) => (Data::Binary, bytes.as_slice()),
        });
        let mut bytes = Vec::with_capacity(payloads.clone().map(|(_, payload)| LONGEST_HEADER + payload.len()).sum());
        let ends = payloads.map(|(kind, payload)| {
            let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
            #[expect(clippy::expect_used, reason = "only writing can fail, and a vector takes everything")]
            header.format(payload.len() as u64, &mut bytes).expect("written to a vector");
            bytes.extend_from_slice(payload);
            bytes.len()
        });
        let ends = ends.collect();
        Self { bytes: bytes.into(), ends }
    }

    /// The frames of some of the messages.
    pub(super) fn frames(&self, messages: Range<usize>) -> Bytes {
        let end = |messages: usize| messages.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.bytes.slice(end(messages.start)..end(messages.end))
    }
}

/// A request that wants to go on as a WebSocket.
pub(super) struct Upgrade {
    connection: OnUpgrade,
    consent: Response,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, HttpError> {
        let refused = |reason: String| {
            Error::invalid(format!("{} speaks WebSocket, and this request does not: {reason}", parts.uri.path()))
        };
        let request = Request::from_parts(parts.clone(), ());
        let consent = create_response_with_body(&request, Body::empty).map_err(|error| refused(error.to_string()))?;
        let connection = parts.extensions.remove::<OnUpgrade>();
        let connection = connection.ok_or_else(|| refused("its connection cannot be anything else".to_owned()))?;
        Ok(Self { connection, consent })
    }
}

impl Upgrade {
    /// Consents, and serves the connection from there on.
    pub(super) fn serve<F>(self, config: WebSocketConfig, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(async move {
            match self.connection.await {
                Ok(connection) => {
                    let connection = TokioIo::new(connection);
                    let stream = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
                    serve(Socket { stream }).await;
                }
                Err(error) => tracing::debug!(%error, "a connection did not become a WebSocket"),
            }
        });
        self.consent
    }
}

/// A connection.
pub(super) struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
}

impl Socket {
    /// Sends frames, after everything that was sent before. Where it is not seen through, nothing may be sent any more.
    ///
    /// # Errors
    /// Where the connection is broken.
    pub(super) async fn send_frames(&mut self, frames: &Bytes) -> Result<(), tungstenite::Error> {
        // An answer to a ping may still be on its way.
        self.stream.flush().await?;
        Ok(self.stream.get_mut().write_all(frames).await?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Where the connection is broken.
    pub(super) async fn send(&mut self, message: Received) -> Result<(), tungstenite::Error> {
        self.stream.send(message).await
    }

    /// What the other side says next; `None` once it has hung up.
    ///
    /// # Errors
    /// Where the connection is broken, or what comes is not WebSocket.
    pub(super) async fn receive(&mut self) -> Option<Result<Received, tungstenite::Error>> {
        self.stream.next().await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_client_reads_what_the_messages_are() {
        // Lengths are written in three ways.
        let lengths = [0, 1, 125, 126, 65_535, 65_536];
        let texts = lengths.map(|length| Message::Text("x".repeat(length)));
        let binaries = lengths.map(|length| Message::Binary(vec![0xff; length]));
        let messages: Vec<Message> = texts.into_iter().chain(binaries).collect();
        let wire = Wire::of(messages.clone());
        for (first, next) in [(0, 12), (3, 3), (3, 8), (11, 12)] {
            let frames = Cursor::new(wire.frames(first..next).to_vec());
            let mut client = tungstenite::WebSocket::from_raw_socket(frames, Role::Client, None);
            for message in &messages[first..next] {
                match (message, client.read().unwrap()) {
                    (Message::Text(sent), Received::Text(read)) => assert_eq!(*sent, read.as_str()),
                    (Message::Binary(sent), Received::Binary(read)) => assert_eq!(*sent, read),
                    (_, read) => panic!("read as {} bytes of another kind", read.len()),
                }
            }
            assert!(client.read().is_err());
        }
    }
}
