//! The change stream as a WebSocket.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::json::{
    ErrorBody, FrameFormat, change_frames, debezium_frames, debezium_heartbeat, heartbeat_frame, messages_from_json,
    stream_parameters,
};
use dosql_proto::{ChangeBatch, Error, ErrorCode, SubscriberMessage, subscriber_message};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;

use super::backend::Backend;
use super::changes::{Changes, is_heartbeat};
use super::flow::Credits;
use super::http::HttpError;

/// Longest text that the protocol lets a close frame carry, in bytes.
const LONGEST_REASON: usize = 123;
/// Bytes that are read of a subscriber at a time; the buffer is cleared for each reading, and subscribers say little.
const READ_BUFFER: usize = 4 << 10;
/// Longest message of a subscriber's, in bytes; a position in it may be that of many shards.
const LONGEST_MESSAGE: usize = 1 << 20;

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
    let changes = Changes::open(backend, parameters.subscription).await?;
    let credits = parameters.credit.map_or_else(Credits::unlimited, Credits::limited);
    Ok(upgrade.read_buffer_size(READ_BUFFER).max_message_size(LONGEST_MESSAGE).on_upgrade(async move |socket| {
        let (sender, receiver) = socket.split();
        let mut subscriber = Subscriber { sender, receiver, changes, credits, format: parameters.format };
        match subscriber.serve().await {
            End::Gone(reason) => tracing::debug!(reason, "a subscriber is gone"),
            End::Because(error) => {
                if let Err(error) = subscriber.say_why(&error).await {
                    tracing::debug!(%error, "a subscriber did not hear why its stream ended");
                }
            }
        }
    }))
}

struct Subscriber {
    sender: SplitSink<WebSocket, Message>,
    receiver: SplitStream<WebSocket>,
    changes: Changes,
    credits: Credits,
    format: FrameFormat,
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

impl Subscriber {
    /// Sends changes until the subscriber hangs up or the stream ends.
    async fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// Sends the next changes. They are asked for when the last ones have been sent and there is credit for more, so that a slow
    /// reader holds up nobody and costs one batch of memory.
    async fn step(&mut self) -> Result<(), End> {
        self.wait_for_credit().await?;
        let answer = loop {
            let said = tokio::select! {
                answer = self.changes.next() => break answer?,
                said = self.receiver.next() => said,
            };
            self.hear(said).await?;
        };
        for message in answer.frames(self.format, messages)? {
            if !self.credits.allow() {
                self.sender.flush().await?;
                self.wait_for_credit().await?;
            }
            self.credits.spend(match message {
                Message::Text(text) => text.len(),
                Message::Binary(bytes) => bytes.len(),
                _ => 0,
            });
            self.sender.feed(message.clone()).await?;
        }
        Ok(self.sender.flush().await?)
    }

    async fn wait_for_credit(&mut self) -> Result<(), End> {
        while !self.credits.allow() {
            let said = tokio::select! {
                said = self.receiver.next() => said,
                stopping = self.changes.stopping() => return Err(stopping.into()),
            };
            self.hear(said).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, said: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        let messages = match said {
            None | Some(Ok(Message::Close(_))) => return Err(End::Gone("it has closed the connection".to_owned())),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Vec::new(),
            Some(Ok(Message::Text(text))) => messages_from_json(&text)?,
            Some(Ok(Message::Binary(bytes))) => {
                let said = SubscriberMessage::decode(bytes)
                    .map_err(|error| Error::invalid(format!("a subscriber's message is malformed: {error}")))?;
                said.message.into_iter().collect()
            }
        };
        for message in messages {
            match message {
                subscriber_message::Message::Credit(credit) => self.credits.grant(credit),
                subscriber_message::Message::Acknowledge(position) => self.changes.acknowledge(position).await?,
                subscriber_message::Message::Subscribe(_) => {
                    return Err(Error::invalid("the connection has its subscription already").into());
                }
            }
        }
        Ok(())
    }

    /// Sends the error as a frame, then closes.
    async fn say_why(&mut self, error: &Error) -> Result<(), axum::Error> {
        self.sender.send(Message::Text(ErrorBody(error).to_json().into())).await?;
        let code = match error.code() {
            ErrorCode::Unavailable => close_code::AWAY,
            ErrorCode::UnknownPosition | ErrorCode::InvalidRequest => close_code::POLICY,
            _ => close_code::ERROR,
        };
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
        self.sender.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await
    }
}

/// A batch as it is sent; one without changes is a heartbeat.
fn messages(batch: &ChangeBatch, format: FrameFormat) -> Result<Vec<Message>, Error> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    let frames = match format {
        FrameFormat::Protobuf => return Ok(vec![Message::Binary(batch.encode_to_vec().into())]),
        FrameFormat::Json if is_heartbeat(batch) => vec![heartbeat_frame(&batch.position, now_ms)],
        FrameFormat::Debezium if is_heartbeat(batch) => vec![debezium_heartbeat(&batch.position, now_ms)],
        FrameFormat::Json => change_frames(batch)?,
        FrameFormat::Debezium => debezium_frames(batch, now_ms)?,
    };
    Ok(frames.into_iter().map(|frame| Message::Text(frame.into())).collect())
}
