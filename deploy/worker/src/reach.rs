//! How a message gets from one object to another: a fetch with a `Packet`, answered by a `PacketReply`.

use dosql_actors::{Call, Payload};
use dosql_proto::packet_reply::Outcome;
use dosql_proto::{Address, Envelope, Error, ErrorCode, LakeProtocol, Packet, PacketReply, Protocol};
use js_sys::Uint8Array;
use prost::Message;
use wasm_bindgen::{JsCast as _, JsValue};
use worker::{Env, Method, ObjectNamespace, Request, RequestInit, Stub};

/// Reaches every actor through the two namespaces it may live in.
#[derive(Clone)]
pub(crate) struct Reach {
    dosql: ObjectNamespace,
    dolake: ObjectNamespace,
}

impl Reach {
    pub(crate) fn new(env: &Env) -> worker::Result<Self> {
        Ok(Self { dosql: env.durable_object("DOSQL")?, dolake: env.durable_object("DOLAKE")? })
    }

    /// The object an actor lives in.
    pub(crate) fn stub(&self, address: &Address) -> worker::Result<Stub> {
        let namespace = if address.kind == LakeProtocol::KIND { &self.dolake } else { &self.dosql };
        namespace.id_from_name(&address.to_string())?.get_stub()
    }

    /// Delivers a message to `envelope.to` and waits for the answer.
    pub(crate) async fn send(&self, envelope: Envelope, payload: Payload) -> Result<Payload, Error> {
        let to = envelope.to.clone().ok_or_else(|| Error::invalid("the envelope names no receiver"))?;
        let packet = Packet { envelope: Some(envelope), body: payload.into_bytes() };
        let reply = self.forward(&to, &packet.encode_to_vec()).await.map_err(|error| {
            Error::retryable(ErrorCode::Unavailable, format!("{to} could not be reached: {error}"), 50)
        })?;
        let reply = PacketReply::decode(&reply[..])
            .map_err(|error| Error::new(ErrorCode::Internal, format!("malformed answer from {to}: {error}")))?;
        match reply.outcome {
            Some(Outcome::Body(bytes)) => Ok(Payload::Encoded(bytes)),
            Some(Outcome::Error(error)) => Err(error),
            None => Err(Error::new(ErrorCode::Internal, format!("{to} answered nothing"))),
        }
    }

    /// Delivers an encoded `Packet`; the answer is an encoded `PacketReply`.
    pub(crate) async fn forward(&self, to: &Address, packet: &[u8]) -> worker::Result<Vec<u8>> {
        let mut init = RequestInit::new();
        init.with_method(Method::Post).with_body(Some(Uint8Array::from(packet).into()));
        let request = Request::new_with_init("https://actor/packet", &init)?;
        let mut response = self.stub(to)?.fetch_with_request(request).await?;
        if response.status_code() != 200 {
            return Err(format!("status {}", response.status_code()).into());
        }
        response.bytes().await
    }

    /// Asks an actor on behalf of a client.
    pub(crate) async fn ask<P: Protocol>(
        &self,
        name: &str,
        request: P::Request,
        call: &Call,
    ) -> Result<P::Reply, Error> {
        let envelope = Envelope {
            to: Some(Address::new(P::KIND, name)),
            from: None,
            deadline_ms: call.deadline_ms,
            trace_id: call.trace_id.clone(),
            caller: call.caller.clone(),
        };
        self.send(envelope, Payload::typed(request)).await?.take()
    }
}

/// What a thrown JavaScript value says.
pub(crate) fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => error.as_string().unwrap_or_else(|| format!("{error:?}")),
    }
}
