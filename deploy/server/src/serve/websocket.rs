//! The change stream as a WebSocket.

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::json::{ErrorBody, change_frames};
use dosql_proto::{ChangeBatch, Error, ErrorCode, SubscribeRequest};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use serde::Deserialize;

use super::backend::Backend;
use super::changes::Changes;
use super::http::HttpError;

/// Longest text that the protocol lets a close frame carry, in bytes.
const LONGEST_REASON: usize = 123;

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Protobuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Names separated by commas; none means all.
    #[serde(default)]
    tables: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    format: Format,
}

/// `GET /cdc`. A subscription that cannot start is refused before the connection becomes a WebSocket.
pub(super) async fn subscribe(
    State(backend): State<Backend>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    let Query(parameters) = parameters.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    let upgrade = upgrade.map_err(|rejection| {
        Error::invalid(format!("/cdc speaks WebSocket, and this request does not: {}", rejection.body_text()))
    })?;
    let tables = parameters.tables.split(',').map(str::trim).filter(|table| !table.is_empty());
    let subscription = SubscribeRequest { tables: tables.map(str::to_owned).collect(), from: parameters.from };
    let changes = Changes::open(backend, subscription).await?;
    Ok(upgrade.on_upgrade(async move |socket| serve(socket, changes, parameters.format).await))
}

/// Sends changes until the subscriber hangs up or the stream ends. The next changes are asked for when the last ones have been
/// sent, so that a slow reader holds up nobody and costs one batch of memory.
async fn serve(socket: WebSocket, mut changes: Changes, format: Format) {
    let (mut sender, mut receiver) = socket.split();
    let ended = loop {
        let batch = tokio::select! {
            batch = changes.next() => batch,
            () = hung_up(&mut receiver) => return,
        };
        let sent = match batch {
            Ok(batch) => send(&mut sender, &batch, format).await,
            Err(error) => break error,
        };
        match sent {
            Ok(()) => {}
            Err(SendError::Disconnected(error)) => {
                tracing::debug!(%error, "a subscriber is gone");
                return;
            }
            Err(SendError::Changes(error)) => break error,
        }
    };
    if let Err(error) = say_why(&mut sender, &ended).await {
        tracing::debug!(%error, "a subscriber did not hear why its stream ended");
    }
}

enum SendError {
    Disconnected(axum::Error),
    Changes(Error),
}

impl From<axum::Error> for SendError {
    fn from(error: axum::Error) -> Self {
        Self::Disconnected(error)
    }
}

async fn send(
    sender: &mut SplitSink<WebSocket, Message>,
    batch: &ChangeBatch,
    format: Format,
) -> Result<(), SendError> {
    if batch.shards.is_empty() {
        return Ok(sender.send(Message::Ping(axum::body::Bytes::new())).await?);
    }
    match format {
        Format::Json => {
            for frame in change_frames(batch).map_err(SendError::Changes)? {
                sender.feed(Message::Text(frame.into())).await?;
            }
            sender.flush().await?;
        }
        Format::Protobuf => sender.send(Message::Binary(batch.encode_to_vec().into())).await?,
    }
    Ok(())
}

/// Completes when the subscriber closes the connection; what it says otherwise is of no interest.
async fn hung_up(receiver: &mut SplitStream<WebSocket>) {
    while let Some(Ok(_)) = receiver.next().await {}
}

/// Sends the error as a frame, then closes.
async fn say_why(sender: &mut SplitSink<WebSocket, Message>, error: &Error) -> Result<(), axum::Error> {
    sender.send(Message::Text(ErrorBody(error).to_json().into())).await?;
    let code = match error.code() {
        ErrorCode::Unavailable => close_code::AWAY,
        ErrorCode::UnknownPosition | ErrorCode::InvalidRequest => close_code::POLICY,
        _ => close_code::ERROR,
    };
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    sender.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await
}
