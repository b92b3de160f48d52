//! `GET /cdc`: committed changes over a WebSocket.

use std::collections::HashMap;

use dosql_proto::json::change_frames;
use dosql_proto::{ChangeBatch, Error, PollChanges, SubscribeRequest, cdc_reply, cdc_request};
use futures_util::future::{Either, select};
use futures_util::{StreamExt as _, pin_mut};
use prost::Message as _;
use worker::{Request, Response, WebSocket, WebSocketPair, WebsocketEvent};

use crate::entry::{Entry, platform};

/// How long one poll waits for changes. Also how soon a subscriber that vanished is noticed at the latest.
const WAIT_MS: u64 = 10_000;

/// What a poll may take beyond its wait.
const PATIENCE_MS: u64 = 20_000;

#[derive(Clone, Copy)]
enum Format {
    Json,
    Protobuf,
}

/// Opens a subscription: `tables` (names with commas between, all if missing), `from` (`earliest`, `latest`, or the position
/// of an earlier frame) and `format` (`json` or `protobuf`).
pub(crate) async fn subscribe(entry: Entry, request: &Request) -> Result<Response, Error> {
    let url = request.url().map_err(platform)?;
    let mut query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let format = match query.remove("format").as_deref() {
        None | Some("json") => Format::Json,
        Some("protobuf") => Format::Protobuf,
        Some(other) => return Err(Error::invalid(format!("format={other} is neither json nor protobuf"))),
    };
    let tables = query.remove("tables").unwrap_or_default();
    let tables = tables.split(',').filter(|table| !table.is_empty()).map(str::to_owned).collect();
    let from = query.remove("from").unwrap_or_else(|| "latest".to_owned());
    if let Some(unknown) = query.into_keys().next() {
        return Err(Error::invalid(format!("/cdc has no parameter {unknown}")));
    }
    if !matches!(request.headers().get("upgrade"), Ok(Some(protocol)) if protocol.eq_ignore_ascii_case("websocket")) {
        return Err(Error::invalid("/cdc is a WebSocket: the request must ask for an upgrade"));
    }

    // The first poll fixes where "latest" is and refuses a position that is none, before there is a socket.
    let mut subscription = SubscribeRequest { tables, from };
    let first = poll(&entry, &subscription, 0).await?;
    subscription.from.clone_from(&first.position);

    let pair = WebSocketPair::new().map_err(platform)?;
    let server = pair.server;
    server.accept().map_err(platform)?;
    wasm_bindgen_futures::spawn_local(async move {
        // Where sending fails, the subscriber is gone, and there is nobody to tell.
        if let Ok(Some(error)) = serve(&entry, &server, subscription, format, first).await {
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
    format: Format,
    first: ChangeBatch,
) -> worker::Result<Option<Error>> {
    let mut events = socket.events()?;
    if let Err(error) = send(socket, format, &first) {
        return error;
    }
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
fn send(socket: &WebSocket, format: Format, batch: &ChangeBatch) -> Result<(), worker::Result<Option<Error>>> {
    if batch.shards.iter().all(|shard| shard.records.is_empty()) {
        return Ok(());
    }
    match format {
        Format::Json => {
            for frame in change_frames(batch).map_err(|error| Ok(Some(error)))? {
                socket.send_with_str(frame).map_err(Err)?;
            }
        }
        Format::Protobuf => socket.send_with_bytes(batch.encode_to_vec()).map_err(Err)?,
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
