//! The change stream as a WebSocket.

use std::pin::{Pin, pin};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::Error;
use dosql_proto::json::stream_parameters;
use dosql_proto::subscriber::{LONGEST_MESSAGE, Message, Subscriber, farewell};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message as Received;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};

use super::backend::Backend;
use super::changes::Changes;
use super::http::HttpError;
use super::socket::{Socket, Upgrade, Wire};

/// Bytes that are read of a subscriber at a time; the buffer is cleared for each reading, and subscribers say little.
const READ_BUFFER: usize = 4 << 10;

/// `GET /cdc`. A subscription that cannot start is refused before the connection becomes a WebSocket.
pub(super) async fn subscribe(
    State(backend): State<Backend>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    upgrade: Result<Upgrade, HttpError>,
) -> Result<Response, HttpError> {
    let Query(pairs) = parameters.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    let parameters = stream_parameters(pairs)?;
    let upgrade = upgrade?;
    let changes = Changes::open(backend, parameters.subscription.clone()).await?;
    let subscriber = Subscriber::new(&parameters, changes.subscription().clone());
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).max_message_size(Some(LONGEST_MESSAGE));
    Ok(upgrade.serve(config, async move |socket| {
        let mut line = Line { socket, changes, subscriber };
        match line.serve().await {
            End::Gone(reason) => tracing::debug!(reason, "a subscriber is gone"),
            End::Because(error) => {
                if let Err(error) = line.say_why(&error).await {
                    tracing::debug!(%error, "a subscriber did not hear why its stream ended");
                }
            }
        }
    }))
}

/// A subscriber's connection.
struct Line {
    socket: Socket,
    changes: Changes,
    subscriber: Subscriber<Wire>,
}

/// Why a stream has ended.
enum End {
    /// The subscriber has hung up.
    Gone(String),
    Because(Error),
}

impl From<tungstenite::Error> for End {
    fn from(error: tungstenite::Error) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

impl Line {
    /// Sends changes until the subscriber hangs up or the stream ends.
    async fn serve(&mut self) -> End {
        let mut stopping = pin!(self.changes.stopping());
        loop {
            if let Err(end) = self.step(stopping.as_mut()).await {
                return end;
            }
        }
    }

    /// Sends what may be sent, then waits for more of it. Changes are asked for when the last ones have been sent and there is
    /// credit for more, so that a slow reader holds up nobody and costs one batch of memory.
    async fn step(&mut self, stopping: Pin<&mut impl Future<Output = Error>>) -> Result<(), End> {
        if let Some((frames, messages)) = self.subscriber.next_messages() {
            self.socket.send_frames(&frames.carried().frames(messages)).await?;
        }
        let said = tokio::select! {
            answer = self.changes.next(), if self.subscriber.wants_changes() => {
                self.subscriber.take(answer?.frames(self.subscriber.format())?);
                return Ok(());
            }
            said = self.socket.receive() => said,
            stopping = stopping => return Err(stopping.into()),
        };
        let message = match said {
            None | Some(Ok(Received::Close(_))) => return Err(End::Gone("it has closed the connection".to_owned())),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Received::Ping(_) | Received::Pong(_) | Received::Frame(_))) => return Ok(()),
            Some(Ok(Received::Text(text))) => Message::Text(text.as_str().to_owned()),
            Some(Ok(Received::Binary(bytes))) => Message::Binary(bytes.into()),
        };
        for acknowledged in self.subscriber.hear(&message)? {
            self.changes.acknowledge(acknowledged).await?;
        }
        Ok(())
    }

    /// Sends the error as a message, then closes.
    async fn say_why(&mut self, error: &Error) -> Result<(), tungstenite::Error> {
        let (message, code, reason) = farewell(error);
        self.socket.send_frames(&Wire::of(vec![message]).frames(0..1)).await?;
        self.socket.send(Received::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))).await
    }
}
