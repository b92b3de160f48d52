//! What the conformance suite and the end-to-end tests reach beyond the public interface. Off unless the variable
//! `DOSQL_CONFORMANCE` is `1`: it lets anyone speak to any actor.

use std::collections::HashMap;

use dosql_actors::ObjectStore as _;
use dosql_proto::{Address, Error, ErrorCode, Packet};
use prost::Message as _;
use worker::{Env, Method, Request, Response};

use crate::bucket::R2;
use crate::entry::{Entry, body, json, platform};
use crate::host::variable;

/// Whether these paths exist.
pub(crate) fn enabled(env: &Env) -> bool {
    variable(env, "DOSQL_CONFORMANCE").is_some_and(|value| value == "1")
}

/// Answers a request of the suite.
pub(crate) async fn fetch(entry: &Entry, method: Method, path: &str, request: Request) -> Result<Response, Error> {
    let url = request.url().map_err(platform)?;
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let parameter =
        |name: &str| query.get(name).cloned().ok_or_else(|| Error::invalid(format!("the parameter {name} is missing")));
    match (method, path) {
        // A `Packet` for any actor; the answer is its `PacketReply`.
        (Method::Post, "/_actor") => {
            let packet = body(request).await?;
            let to = Packet::decode(&packet[..])
                .map_err(|error| Error::invalid(format!("malformed Packet: {error}")))?
                .envelope
                .and_then(|envelope| envelope.to)
                .ok_or_else(|| Error::invalid("the Packet names no receiver"))?;
            let reply = entry.reach.forward(&to, &packet).await.map_err(platform)?;
            Response::from_bytes(reply).map_err(platform)
        }
        // Ends the object of an `Address`; it starts again from storage on its next message.
        (Method::Post, "/_evict") => {
            let address = Address::decode(&body(request).await?[..])
                .map_err(|error| Error::invalid(format!("malformed Address: {error}")))?;
            let stub = entry.reach.stub(&address).map_err(platform)?;
            match stub.fetch_with_str("https://actor/evict").await {
                // The object dies without answering.
                Err(_) => json(b"{}".to_vec()),
                Ok(_) => Err(Error::internal(format!("{address} survived its eviction"))),
            }
        }
        // The objects in the bucket, one path a line.
        (Method::Get, "/_objects") => {
            let prefix = query.get("prefix").map_or("", String::as_str);
            let paths: Vec<String> = bucket(entry)?.list(prefix).await?.into_iter().map(|object| object.path).collect();
            Response::ok(paths.join("\n")).map_err(platform)
        }
        (Method::Get, "/_object") => {
            let path = parameter("path")?;
            match bucket(entry)?.get(&path).await? {
                Some(bytes) => Response::from_bytes(bytes.into()).map_err(platform),
                None => Err(Error::new(ErrorCode::NotFound, format!("there is no object {path}"))),
            }
        }
        _ => Err(Error::new(ErrorCode::NotFound, format!("there is no {path}"))),
    }
}

fn bucket(entry: &Entry) -> Result<R2, Error> {
    Ok(R2::new(entry.env.bucket("LAKEHOUSE_BUCKET").map_err(platform)?, ""))
}
