//! One subscriber's connection, while the object is in memory.

use std::cell::Cell;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use dosql_actors::{Call, Mailbox, Payload};
use dosql_proto::subscriber::{BATCH_BYTES, Failures, Frames, Message, Subscriber, farewell, heartbeat};
use dosql_proto::{
    Address, CdcProtocol, CdcReply, CdcRequest, ChangeBatch, Error, PollChanges, Protocol, cdc_reply, cdc_request,
};
use futures_channel::mpsc;
use futures_util::StreamExt as _;
use futures_util::future::{Either, pending, select};
use worker::{Delay, WebSocket};

use super::{Sockets, Tag};
use crate::entry::DEFAULT;
use crate::object::deliver;

/// A timer that keeps the object in memory, one after the other.
const AWAKE: Duration = Duration::from_secs(3_600);

/// What happens to a line from outside.
pub(super) enum Event {
    Said(Message),
    /// A heartbeat is due.
    Beat,
}

/// Why a stream has ended.
enum End {
    /// The subscriber, or the object, is gone.
    Gone,
    Because(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

pub(super) struct Line {
    tag: Tag,
    socket: WebSocket,
    subscriber: Subscriber,
    events: mpsc::Receiver<Event>,
    heartbeat_at_ms: Rc<Cell<u64>>,
    mailbox: Mailbox,
    failures: Failures,
}

impl Line {
    pub(super) fn new(
        tag: Tag,
        socket: WebSocket,
        subscriber: Subscriber,
        events: mpsc::Receiver<Event>,
        heartbeat_at_ms: Rc<Cell<u64>>,
        mailbox: Mailbox,
    ) -> Self {
        Self { tag, socket, subscriber, events, heartbeat_at_ms, mailbox, failures: Failures::default() }
    }

    /// Sends changes until the subscriber hangs up, the stream ends, or the object is put aside.
    pub(super) async fn serve(mut self, sockets: Weak<Sockets>) {
        let error = loop {
            match self.step(&sockets).await {
                Ok(()) => {}
                // Nothing may be done with a socket here: where the object was put aside it is another life's.
                Err(End::Gone) => return,
                Err(End::Because(error)) => break error,
            }
        };
        say_why(&self.socket, &error);
        if let Some(sockets) = sockets.upgrade() {
            sockets.lines.borrow_mut().remove(&self.tag);
            sockets.attachments.forget(&self.tag);
        }
    }

    /// Sends what may be sent, puts down where the subscriber stands, and waits for what comes next.
    async fn step(&mut self, sockets: &Weak<Sockets>) -> Result<(), End> {
        if let Some((frames, messages)) = self.subscriber.next_messages() {
            for message in &frames.carried()[messages] {
                send(&self.socket, message).map_err(|_| End::Gone)?;
            }
        }
        let asks = self.subscriber.wants_changes();
        let stands = {
            let sockets = sockets.upgrade().ok_or(End::Gone)?;
            // One that comes from an earlier life still waits for that one's heartbeat.
            if !asks {
                self.heartbeat_at_ms.set(0);
            } else if self.heartbeat_at_ms.get() == 0 {
                let wait_ms = u64::try_from(heartbeat(self.subscriber.subscription()).as_millis()).unwrap_or(u64::MAX);
                self.heartbeat_at_ms.set(now_ms().saturating_add(wait_ms));
            }
            if asks {
                sockets.alarms.set_heartbeat(self.heartbeat_at_ms.get());
            }
            let state = self.subscriber.state(self.heartbeat_at_ms.get());
            if let Some(state) = &state {
                sockets.attachments.write(&self.tag, &self.socket, state)?;
            }
            state.is_some()
        };
        let event = {
            let polled = pin!(async {
                // Without a time limit: a timer would keep the object awake.
                if asks { poll(&self.mailbox, &self.subscriber, u64::MAX).await } else { pending().await }
            });
            let awake = pin!(async {
                // What can only be resumed as a whole is not put aside in the middle.
                while !stands {
                    Delay::from(AWAKE).await;
                }
                pending::<()>().await;
            });
            match select(self.events.next(), select(polled, awake)).await {
                Either::Left((event, _)) => Either::Left(event.ok_or(End::Gone)?),
                Either::Right((Either::Left((answer, _)), _)) => Either::Right(answer),
                Either::Right((Either::Right(_), _)) => return Ok(()),
            }
        };
        // Whatever it is, the subscriber hears from us or has let us hear from it.
        self.heartbeat_at_ms.set(0);
        match event {
            Either::Left(Event::Said(message)) => {
                for acknowledged in self.subscriber.hear(&message)? {
                    ask(&self.mailbox, cdc_request::Request::Acknowledge(acknowledged)).await?;
                }
            }
            Either::Left(Event::Beat) if asks => {
                let answer = poll(&self.mailbox, &self.subscriber, 0).await;
                self.take(answer).await?;
            }
            Either::Left(Event::Beat) => {}
            Either::Right(answer) => self.take(answer).await?,
        }
        Ok(())
    }

    async fn take(&mut self, answer: Result<ChangeBatch, Error>) -> Result<(), Error> {
        match answer {
            Ok(batch) => {
                self.failures = Failures::default();
                let frames = Frames::of(&batch, self.subscriber.format(), now_ms())?;
                self.subscriber.take(Arc::new(frames));
                Ok(())
            }
            Err(error) => {
                Delay::from(self.failures.pause(error)?).await;
                Ok(())
            }
        }
    }
}

/// The next changes of a subscriber, after waiting for them up to `wait_ms`; `u64::MAX`: for ever.
async fn poll(mailbox: &Mailbox, subscriber: &Subscriber, wait_ms: u64) -> Result<ChangeBatch, Error> {
    let subscription = Some(subscriber.subscription().clone());
    match ask(mailbox, cdc_request::Request::Poll(PollChanges { subscription, wait_ms, max_bytes: BATCH_BYTES }))
        .await?
    {
        cdc_reply::Reply::Changes(batch) => Ok(batch),
        _ => Err(Error::internal("the change stream answered something else than changes")),
    }
}

/// Asks the change stream, which lives in the same object.
pub(super) async fn ask(mailbox: &Mailbox, request: cdc_request::Request) -> Result<cdc_reply::Reply, Error> {
    let envelope = Call::system().envelope(Address::new(CdcProtocol::KIND, DEFAULT), None);
    let reply = deliver(mailbox, envelope, Payload::typed(CdcRequest { request: Some(request) })).await?;
    reply.take::<CdcReply>()?.reply.ok_or_else(|| Error::internal("the change stream answered nothing"))
}

fn send(socket: &WebSocket, message: &Message) -> worker::Result<()> {
    match message {
        Message::Text(text) => socket.send_with_str(text),
        Message::Binary(bytes) => socket.send_with_bytes(bytes),
    }
}

/// Sends the error, then closes. Where either fails the subscriber is gone, and there is nobody to tell.
pub(super) fn say_why(socket: &WebSocket, error: &Error) {
    let (message, code, reason) = farewell(error);
    let _ = send(socket, &message);
    let _ = socket.close(Some(code), Some(reason));
}

fn now_ms() -> u64 {
    js_sys::Date::now() as u64
}
