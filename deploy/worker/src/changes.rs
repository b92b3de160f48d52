//! `GET /cdc`: committed changes over a WebSocket.

use dosql_proto::json::{FrameFormat, StreamParameters, change_frames, debezium_frames, stream_parameters};
use dosql_proto::{ChangeBatch, Error, ErrorCode, PollChanges, SubscribeRequest, cdc_reply, cdc_request};
use futures_util::future::{Either, select};
use futures_util::{StreamExt as _, pin_mut};
use prost::Message as _;
use worker::{Request, Response, WebSocket, WebSocketPair, WebsocketEvent};

use crate::entry::{Entry, platform};

/// How long one poll waits for changes. Also how soon a subscriber that vanished is noticed at the latest.
const WAIT_MS: u64 = 10_000;

/// What a poll may take beyond its wait.
const PATIENCE_MS: u64 = 20_000;

/// Opens a subscription, with the parameters of every host's `/cdc`, except for credit and names.
pub(crate) async fn subscribe(entry: Entry, request: &Request) -> Result<Response, Error> {
    let url = request.url().map_err(platform)?;
    let StreamParameters { subscription, format, credit } = stream_parameters(url.query_pairs())?;
    if credit.is_some() || !subscription.name.is_empty() {
        let message =
            "credit and durable subscriptions are not supported on this host, where nothing a subscriber says is heard";
        return Err(Error::new(ErrorCode::Unsupported, message));
    }
    if !matches!(request.headers().get("upgrade"), Ok(Some(protocol)) if protocol.eq_ignore_ascii_case("websocket")) {
        return Err(Error::invalid("/cdc is a WebSocket: the request must ask for an upgrade"));
    }

    // This fixes where "latest" is and refuses what cannot start, before there is a socket.
    let subscription = match entry.cdc(cdc_request::Request::Open(subscription), &entry.call(PATIENCE_MS)?).await? {
        cdc_reply::Reply::Opened(opened) => opened,
        _ => return Err(Error::internal("the change stream answered something else than where it starts")),
    };

    let pair = WebSocketPair::new().map_err(platform)?;
    let server = pair.server;
    server.accept().map_err(platform)?;
    wasm_bindgen_futures::spawn_local(async move {
        // Where sending fails, the subscriber is gone, and there is nobody to tell.
        if let Ok(Some(error)) = serve(&entry, &server, subscription, format).await {
            let _ = server.close(Some(1011), Some(close_reason(&error)));
        }
    });
    Response::from_websocket(pair.client).map_err(platform)
}

/// Sends changes until the subscriber closes or sending fails; `Some` where the stream itself failed.
async fn serve(
    entry: &Entry,
    socket: &WebSocket,
    mut subscription: SubscribeRequest,
    format: FrameFormat,
) -> worker::Result<Option<Error>> {
    let mut events = socket.events()?;
    loop {
        let batch = {
            let polled = poll(entry, &subscription, WAIT_MS);
            let closed = async {
                while let Some(Ok(event)) = events.next().await {
                    if matches!(event, WebsocketEvent::Close(_)) {
                        break;
                    }
                }
            };
            pin_mut!(polled, closed);
            match select(polled, closed).await {
                Either::Left((Ok(batch), _)) => batch,
                Either::Left((Err(error), _)) if error.retryable => continue,
                Either::Left((Err(error), _)) => return Ok(Some(error)),
                Either::Right(_) => return Ok(None),
            }
        };
        if let Err(error) = send(socket, format, &batch) {
            return error;
        }
        subscription.from = batch.position;
    }
}

/// Sends a batch's frames; fails with what `serve` ends with.
fn send(socket: &WebSocket, format: FrameFormat, batch: &ChangeBatch) -> Result<(), worker::Result<Option<Error>>> {
    if batch.shards.iter().all(|shard| shard.records.is_empty()) {
        return Ok(());
    }
    let frames = match format {
        FrameFormat::Json => change_frames(batch),
        FrameFormat::Debezium => debezium_frames(batch, js_sys::Date::now() as u64),
        FrameFormat::Protobuf => return socket.send_with_bytes(batch.encode_to_vec()).map_err(Err),
    };
    for frame in frames.map_err(|error| Ok(Some(error)))? {
        socket.send_with_str(frame).map_err(Err)?;
    }
    Ok(())
}

async fn poll(entry: &Entry, subscription: &SubscribeRequest, wait_ms: u64) -> Result<ChangeBatch, Error> {
    let request = PollChanges { subscription: Some(subscription.clone()), wait_ms, max_bytes: 0 };
    let call = entry.call(wait_ms + PATIENCE_MS)?;
    match entry.cdc(cdc_request::Request::Poll(request), &call).await? {
        cdc_reply::Reply::Changes(batch) => Ok(batch),
        _ => Err(Error::internal("the change stream answered something else than changes")),
    }
}

/// A close frame's reason holds 123 bytes at most.
fn close_reason(error: &Error) -> String {
    let mut reason = error.to_string();
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}
