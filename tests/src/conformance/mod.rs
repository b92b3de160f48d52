//! The conformance suite: one list of requests to [`Probe`](dosql_actors::probe::Probe) actors, and the answers that every host
//! must give. It speaks to a host through [`Target`] alone, in encoded packets, so that it runs against a process of its own
//! and against Durable Objects over HTTP.

mod actors;
pub mod http;
mod storage;

use std::fmt::Debug;
use std::time::Duration;

use dosql_proto::probe_request::Request;
use dosql_proto::{
    Address, Envelope, Error, ErrorCode, Packet, PacketReply, ProbeAdd, ProbeProtocol, ProbeReply, ProbeRequest,
    ProbeSql, Protocol, Statement, StatementResult, Value, packet_reply,
};
use prost::Message;

/// A host under test.
#[expect(async_fn_in_trait, reason = "the suite runs on one thread")]
pub trait Target {
    /// Delivers a packet and waits for the answer.
    async fn send(&self, packet: Packet) -> PacketReply;
    /// Ends the actor and whatever it holds in memory; the next message starts it from storage.
    async fn restart(&self, address: &Address);
    /// Lets time pass.
    async fn pause(&self, duration: Duration);
}

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// The cases that gave the expected answers.
    pub passed: Vec<&'static str>,
    /// The cases that did not, and how.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    fn note(&mut self, case: &'static str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.passed.push(case),
            Err(how) => self.failed.push((case, how)),
        }
    }

    /// Panics with every failure where there is one.
    ///
    /// # Panics
    /// Where a case failed.
    pub fn assert_passed(&self) {
        let failures: Vec<String> = self.failed.iter().map(|(case, how)| format!("{case}: {how}")).collect();
        assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    }
}

/// Runs every case against fresh actors whose names start with `run`.
pub async fn run(target: &impl Target, run: &str) -> Report {
    let suite = Suite { target, run };
    let mut report = Report::default();
    actors::run(&suite, &mut report).await;
    storage::run(&suite, &mut report).await;
    report
}

/// How often a request is repeated that an actor which restarts did not take.
const TRIES: u32 = 60;

struct Suite<'a, T> {
    target: &'a T,
    run: &'a str,
}

impl<T: Target> Suite<'_, T> {
    /// The name of a case's own actor.
    fn name(&self, case: &str) -> String {
        format!("{}-{case}", self.run)
    }

    async fn packet(&self, envelope: Envelope, body: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self.target.send(Packet { envelope: Some(envelope), body: body.into() }).await.outcome {
            Some(packet_reply::Outcome::Body(body)) => Ok(body.to_vec()),
            Some(packet_reply::Outcome::Error(error)) => Err(error),
            None => Err(Error::internal("a PacketReply without an outcome")),
        }
    }

    async fn ask(&self, name: &str, request: Request) -> Result<ProbeReply, Error> {
        let body = ProbeRequest { request: Some(request) }.encode_to_vec();
        let reply = self.packet(envelope(name), body).await?;
        ProbeReply::decode(&*reply).map_err(|error| Error::internal(format!("malformed ProbeReply: {error}")))
    }

    /// Asks again while the actor is restarting. Only for requests that may take effect twice.
    async fn ask_until_up(&self, name: &str, request: Request) -> Result<ProbeReply, Error> {
        let mut tries = 1;
        loop {
            match self.ask(name, request.clone()).await {
                Err(error) if error.code() == ErrorCode::Unavailable && tries < TRIES => {
                    tries += 1;
                    self.target.pause(Duration::from_millis(50)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn add(&self, name: &str, amount: i64) -> Result<i64, String> {
        let reply = self.ask_until_up(name, Request::Add(ProbeAdd { amount })).await;
        reply.map(|reply| reply.counter).map_err(|error| format!("adding {amount}: {error}"))
    }

    /// Runs statements as one request.
    async fn sql(&self, name: &str, statements: &[(&str, &[Value])]) -> Result<Vec<StatementResult>, Error> {
        let statements = statements
            .iter()
            .map(|(sql, params)| Statement { sql: (*sql).to_owned(), params: params.to_vec() })
            .collect();
        self.ask_until_up(name, Request::Sql(ProbeSql { statements })).await.map(|reply| reply.results)
    }

    /// Runs statements without parameters that must succeed.
    async fn batch(&self, name: &str, statements: &[&str]) -> Result<Vec<StatementResult>, String> {
        let statements: Vec<(&str, &[Value])> = statements.iter().map(|sql| (*sql, &[] as &[Value])).collect();
        self.sql(name, &statements).await.map_err(|error| error.to_string())
    }

    /// The rows of one query.
    async fn query(&self, name: &str, sql: &str) -> Result<Vec<Vec<Value>>, String> {
        let results = self.batch(name, &[sql]).await?;
        let result = results.into_iter().next().ok_or("no result")?;
        Ok(result.rows.into_iter().map(|row| row.values).collect())
    }

    /// The first column of one query.
    async fn column(&self, name: &str, sql: &str) -> Result<Vec<Value>, String> {
        let rows = self.query(name, sql).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next()).collect())
    }
}

fn envelope(name: &str) -> Envelope {
    Envelope {
        to: Some(Address::new(ProbeProtocol::KIND, name)),
        trace_id: "trace-1".to_owned(),
        caller: "conformance".to_owned(),
        ..Envelope::default()
    }
}

fn equal<V: PartialEq + Debug>(what: &str, found: &V, expected: &V) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: found {found:?}, expected {expected:?}")) }
}

fn refused<V: Debug>(what: &str, outcome: Result<V, Error>, code: ErrorCode) -> Result<(), String> {
    match outcome {
        Err(error) if error.code() == code => Ok(()),
        other => Err(format!("{what}: found {other:?}, expected {}", code.as_str_name())),
    }
}
