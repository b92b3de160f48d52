//! Messages on their way.

use std::any::Any;

use bytes::Bytes;
use dosql_proto::packet_reply::Outcome;
use dosql_proto::{Envelope, Error, PacketReply};
use futures_channel::oneshot;
use prost::Message;

/// A message's body: the typed value within a process, protobuf bytes between processes.
pub enum Payload {
    /// A value that is moved, not encoded.
    Typed(Box<dyn TypedBody>),
    /// Its protobuf encoding.
    Encoded(Bytes),
}

/// A prost message of any type.
pub trait TypedBody: Send {
    /// Its protobuf encoding.
    fn encode(&self) -> Bytes;
    /// For downcasting.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<M: Message + 'static> TypedBody for M {
    fn encode(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl Payload {
    /// Wraps a message.
    pub fn typed<M: Message + 'static>(message: M) -> Self {
        Self::Typed(Box::new(message))
    }

    /// The message, decoded where it came encoded.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where it is malformed or of another type.
    pub fn take<M: Message + Default + 'static>(self) -> Result<M, Error> {
        match self {
            Self::Typed(body) => body.into_any().downcast().map(|message| *message).map_err(|_| {
                Error::invalid(format!("this actor does not understand the message; it expects {}", name_of::<M>()))
            }),
            Self::Encoded(bytes) => {
                M::decode(bytes).map_err(|error| Error::invalid(format!("malformed {}: {error}", name_of::<M>())))
            }
        }
    }

    /// Its protobuf encoding.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Typed(body) => body.encode(),
            Self::Encoded(bytes) => bytes,
        }
    }
}

/// An answer as it crosses a process boundary; a failure is an answer, too.
#[must_use]
pub fn packet_reply(outcome: Result<Payload, Error>) -> PacketReply {
    PacketReply {
        outcome: Some(match outcome {
            Ok(payload) => Outcome::Body(payload.into_bytes()),
            Err(error) => Outcome::Error(error),
        }),
    }
}

fn name_of<M>() -> &'static str {
    let path = std::any::type_name::<M>();
    path.rsplit("::").next().unwrap_or(path)
}

/// A message in a mailbox.
pub struct Delivery {
    /// From whom, to whom, until when.
    pub envelope: Envelope,
    /// What.
    pub payload: Payload,
    /// Where the answer goes; nobody may be waiting any more.
    pub reply: oneshot::Sender<Result<Payload, Error>>,
}

/// What a mailbox holds.
pub enum Input {
    /// A message: boxed, since it changes hands several times.
    Message(Box<Delivery>),
    /// The alarm has fired.
    Alarm,
}
