//! The Durable Object host: the same actors, compiled to WebAssembly, each in an object of its own.
//!
//! An actor's object is found by its address (`shard/shard-3`); messages travel as fetches with a protobuf body. Its SQLite
//! keeps every page as a row of the object's storage (`pages`), object storage is an R2 bucket (`bucket`), services outside are
//! reached by `fetch` (`http`), and the Worker's entry point speaks to clients (`entry`).
#![cfg(target_family = "wasm")]
#![allow(missing_docs, reason = "the class macro of the `worker` crate generates methods without")]

mod alarms;
mod bucket;
mod conformance;
mod entry;
mod host;
mod http;
mod log;
mod maintenance;
mod object;
mod pages;
mod reach;
mod sockets;
mod subscriptions;
mod tasks;

use worker::{
    Context, DurableObject, Env, Error, Request, Response, Result, State, WebSocket, WebSocketIncomingMessage,
    durable_object, event,
};

use object::Object;

/// The class of shards, routers, change streams and probes.
#[durable_object]
pub struct DoSQL {
    object: Object,
}

impl DurableObject for DoSQL {
    fn new(state: State, env: Env) -> Self {
        Self { object: Object::new(state, env) }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        self.object.fetch(request).await
    }

    async fn alarm(&self) -> Result<Response> {
        self.object.alarm().await
    }

    async fn websocket_message(&self, socket: WebSocket, message: WebSocketIncomingMessage) -> Result<()> {
        self.object.said(&socket, message)
    }

    async fn websocket_close(&self, socket: WebSocket, _code: usize, _reason: String, _clean: bool) -> Result<()> {
        self.object.gone(&socket)
    }

    async fn websocket_error(&self, socket: WebSocket, _error: Error) -> Result<()> {
        self.object.gone(&socket)
    }
}

/// The class of lake writers.
#[durable_object(alarm)]
pub struct DoLake {
    object: Object,
}

impl DurableObject for DoLake {
    fn new(state: State, env: Env) -> Self {
        Self { object: Object::new(state, env) }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        self.object.fetch(request).await
    }

    async fn alarm(&self) -> Result<Response> {
        self.object.alarm().await
    }
}

#[event(fetch)]
async fn fetch(request: Request, env: Env, context: Context) -> Result<Response> {
    entry::fetch(request, env, context).await
}
