//! Asking actors from outside, from any thread.

use std::sync::Arc;
use std::time::Duration;

use dosql_proto::{Address, Envelope, Error, ErrorCode, Packet, PacketReply, Protocol};

use super::directory::Directory;
use super::local_host::now_ms;
use crate::runtime::{Call, Payload, packet_reply};

/// Asks a node's actors. Cheap to clone, usable from any task of a tokio runtime.
#[derive(Clone)]
pub struct Client {
    directory: Arc<Directory>,
}

impl Client {
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        Self { directory }
    }

    /// Asks the actor `name` of protocol `P` at once; the future waits for the answer, until the call's deadline. With a
    /// deadline it needs the timer of a tokio runtime.
    ///
    /// # Errors
    /// What the actor answered; `DEADLINE_EXCEEDED`; `OVERLOADED` where its mailbox is full; `UNAVAILABLE` where it died
    /// meanwhile, in which case it may have handled the request or not.
    pub fn ask<P: Protocol>(
        &self,
        name: &str,
        request: P::Request,
        call: &Call,
    ) -> impl Future<Output = Result<P::Reply, Error>> + Send + use<P> {
        let envelope = call.envelope(Address::new(P::KIND, name), call.from.clone());
        let answer = self.send(envelope, Payload::typed(request));
        async move { answer.await?.take() }
    }

    /// Delivers a message that came from outside the process, and waits for the answer. Every failure is an answer, too.
    pub async fn send_packet(&self, packet: Packet) -> PacketReply {
        let outcome = match packet.envelope {
            Some(envelope) => self.send(envelope, Payload::Encoded(packet.body)).await,
            None => Err(Error::invalid("the packet has no envelope")),
        };
        packet_reply(outcome)
    }

    /// Hands the message over at once.
    fn send(
        &self,
        envelope: Envelope,
        payload: Payload,
    ) -> impl Future<Output = Result<Payload, Error>> + Send + use<> {
        let deadline_ms = envelope.deadline_ms;
        let answer = self.directory.send(envelope, payload);
        async move {
            if deadline_ms == 0 {
                return answer.await;
            }
            let patience = Duration::from_millis(deadline_ms.saturating_sub(now_ms()));
            tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
                let message = format!("no answer within {} ms", patience.as_millis());
                Err(Error::retryable(ErrorCode::DeadlineExceeded, message, 0))
            })
        }
    }
}
