//! The change stream as a WebSocket.

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::Error;
use dosql_proto::json::stream_parameters;
use dosql_proto::subscriber::{LONGEST_MESSAGE, Message, Subscriber, farewell};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};

use super::backend::Backend;
use super::changes::Changes;
use super::http::HttpError;

/// Bytes that are read of a subscriber at a time; the buffer is cleared for each reading, and subscribers say little.
const READ_BUFFER: usize = 4 << 10;

/// `GET /cdc`. A subscription that cannot start is refused before the connection becomes a WebSocket.
pub(super) async fn subscribe(
    State(backend): State<Backend>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    let Query(pairs) = parameters.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    let parameters = stream_parameters(pairs)?;
    let upgrade = upgrade.map_err(|rejection| {
        Error::invalid(format!("/cdc speaks WebSocket, and this request does not: {}", rejection.body_text()))
    })?;
    let changes = Changes::open(backend, parameters.subscription.clone()).await?;
    let subscriber = Subscriber::new(&parameters, changes.subscription().clone());
    Ok(upgrade.read_buffer_size(READ_BUFFER).max_message_size(LONGEST_MESSAGE).on_upgrade(async move |socket| {
        let (sender, receiver) = socket.split();
        let mut line = Line { sender, receiver, changes, subscriber };
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
    sender: SplitSink<WebSocket, Frame>,
    receiver: SplitStream<WebSocket>,
    changes: Changes,
    subscriber: Subscriber<Frame>,
}

/// Why a stream has ended.
enum End {
    /// The subscriber has hung up.
    Gone(String),
    Because(Error),
}

impl From<axum::Error> for End {
    fn from(error: axum::Error) -> Self {
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
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// Sends what may be sent, then waits for more of it. Changes are asked for when the last ones have been sent and there is
    /// credit for more, so that a slow reader holds up nobody and costs one batch of memory.
    async fn step(&mut self) -> Result<(), End> {
        while let Some(message) = self.subscriber.next_message() {
            self.sender.feed(message).await?;
        }
        self.sender.flush().await?;
        let asks = self.subscriber.wants_changes();
        let stopping = self.changes.stopping();
        let said = tokio::select! {
            answer = self.changes.next(), if asks => {
                self.subscriber.take(answer?.frames(self.subscriber.format())?);
                return Ok(());
            }
            said = self.receiver.next() => said,
            stopping = stopping, if !asks => return Err(stopping.into()),
        };
        let message = match said {
            None | Some(Ok(Frame::Close(_))) => return Err(End::Gone("it has closed the connection".to_owned())),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => return Ok(()),
            Some(Ok(Frame::Text(text))) => Message::Text(text.as_str().to_owned()),
            Some(Ok(Frame::Binary(bytes))) => Message::Binary(bytes.into()),
        };
        for acknowledged in self.subscriber.hear(&message)? {
            self.changes.acknowledge(acknowledged).await?;
        }
        Ok(())
    }

    /// Sends the error as a frame, then closes.
    async fn say_why(&mut self, error: &Error) -> Result<(), axum::Error> {
        let (message, code, reason) = farewell(error);
        self.sender.send(frame(message)).await?;
        self.sender.send(Frame::Close(Some(CloseFrame { code, reason: reason.into() }))).await
    }
}

/// A message as axum carries it.
pub(super) fn frame(message: Message) -> Frame {
    match message {
        Message::Text(text) => Frame::Text(text.into()),
        Message::Binary(bytes) => Frame::Binary(bytes.into()),
    }
}
