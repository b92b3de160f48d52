//! The Durable Object host: the same actors, compiled to WebAssembly, each in an object of its own.
//!
//! An actor's object is found by its address (`shard/shard-3`); messages travel as fetches with a protobuf body. Its SQLite
//! keeps every page as a row of the object's storage (`pages`), object storage is an R2 bucket (`bucket`), and the Worker's
//! entry point speaks to clients (`entry`).
#![cfg(target_family = "wasm")]
#![allow(missing_docs, reason = "the class macro of the `worker` crate generates methods without")]

mod bucket;
mod changes;
mod conformance;
mod entry;
mod host;
mod log;
mod object;
mod pages;
mod reach;
mod tasks;

use worker::{Context, DurableObject, Env, Request, Response, Result, State, durable_object, event};

use object::Object;

/// The class of shards, routers, change streams and probes.
#[durable_object(alarm)]
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
