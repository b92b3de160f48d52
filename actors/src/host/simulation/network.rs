//! Messages on their way: always encoded, late, lost, doubled.

use std::rc::Rc;

use dosql_proto::{Address, Envelope, Error, ErrorCode, Packet, PacketReply, packet_reply};
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use prost::Message;

use super::system::{Core, WORLD};
use crate::runtime::{self, Delivery, Payload};

/// Sends a message off; the future waits for the answer.
pub(super) fn send(
    core: &Rc<Core>,
    envelope: Envelope,
    payload: Payload,
) -> LocalBoxFuture<'static, Result<Payload, Error>> {
    let to = envelope.to.clone().unwrap_or_default();
    let isolated = {
        let isolated = core.isolated.borrow();
        [&envelope.to, &envelope.from].into_iter().flatten().any(|address| isolated.contains(&address.to_string()))
    };
    let packet = Packet { envelope: Some(envelope), body: payload.into_bytes() }.encode_to_vec();
    core.executor.trace.record("send", &[packet.len() as u64]);
    core.executor.trace.bytes(&packet);
    let (sender, answer) = oneshot::channel();
    let carrier = Rc::clone(core);
    let name = to.clone();
    core.executor.spawn(
        WORLD,
        Box::pin(async move {
            let outcome = carry(&carrier, packet, &name, isolated).await;
            // The asker may have died meanwhile.
            let _ = sender.send(outcome);
        }),
    );
    Box::pin(async move { answer.await.unwrap_or_else(|_| Err(lost(&to))) })
}

async fn carry(core: &Rc<Core>, packet: Vec<u8>, to: &Address, isolated: bool) -> Result<Payload, Error> {
    let config = &core.config;
    if isolated || core.fault(config.message_loss, |counts| counts.lost += 1) {
        core.executor.sleep(config.loss_noticed_after).await;
        return Err(lost(to));
    }
    if core.fault(config.message_duplication, |counts| counts.duplicated += 1) {
        let again = Rc::clone(core);
        let copy = packet.clone();
        core.executor.spawn(WORLD, Box::pin(async move { drop(deliver(&again, copy).await) }));
    }
    let outcome = deliver(core, packet).await;
    if core.fault(config.message_loss, |counts| counts.lost += 1) {
        core.executor.sleep(config.loss_noticed_after).await;
        return Err(lost(to));
    }
    outcome
}

/// Takes one copy of a packet there and the answer back.
async fn deliver(core: &Rc<Core>, packet: Vec<u8>) -> Result<Payload, Error> {
    core.delay().await;
    let Packet { envelope, body } =
        Packet::decode(&*packet).map_err(|error| Error::internal(format!("a packet was garbled: {error}")))?;
    let envelope = envelope.unwrap_or_default();
    let to = envelope.to.clone().unwrap_or_default();
    let (reply, answer) = oneshot::channel();
    core.deliver(&to, Delivery { envelope, payload: Payload::Encoded(body), reply });
    let outcome = answer
        .await
        .unwrap_or_else(|oneshot::Canceled| Err(unavailable(format!("{to} restarted before it could answer"))));
    let reply = runtime::packet_reply(outcome).encode_to_vec();
    core.executor.trace.record("answer", &[reply.len() as u64]);
    core.executor.trace.bytes(&reply);
    core.delay().await;
    match PacketReply::decode(&*reply).map(|reply| reply.outcome) {
        Ok(Some(packet_reply::Outcome::Body(body))) => Ok(Payload::Encoded(body)),
        Ok(Some(packet_reply::Outcome::Error(error))) => Err(error),
        Ok(None) => Err(Error::internal("an answer without an outcome")),
        Err(error) => Err(Error::internal(format!("an answer was garbled: {error}"))),
    }
}

pub(super) fn unavailable(message: String) -> Error {
    Error::retryable(ErrorCode::Unavailable, message, 50)
}

fn lost(to: &Address) -> Error {
    unavailable(format!("a message to {to}, or its answer, was lost"))
}
