//! The WebSockets of an object: subscribers to the change stream beside the actor that has it.
//!
//! The platform keeps them open while the object is not in memory. What a subscriber is sent next, and how much, then stands in its
//! attachment, from which it goes on when a message, an alarm or news from a shard wakes the object. Meanwhile nothing may run that
//! would keep the object awake: who waits for changes waits without a timer, and heartbeats are due by the object's alarm.

mod attachment;
mod line;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use dosql_actors::Mailbox;
use dosql_proto::json::stream_parameters;
use dosql_proto::subscriber::{Failures, Message, Subscriber};
use dosql_proto::{Error, ErrorCode, SubscribeRequest, cdc_reply, cdc_request};
use futures_channel::mpsc;
use worker::{Delay, Request, Response, State, WebSocket, WebSocketIncomingMessage, WebSocketPair};

use self::attachment::Attachments;
use self::line::{Event, Line, ask};
use crate::alarms::Alarms;
use crate::entry::platform;

/// Subscribers of one object at most; the platform takes 32,768.
const MAX_SUBSCRIBERS: usize = 32_000;

/// Messages of one subscriber that wait to be heard at most.
const MAX_UNHEARD: usize = 256;

/// The name of a socket, by which it is known for as long as it is open.
type Tag = String;

/// The open WebSockets.
pub(crate) struct Sockets {
    state: Rc<State>,
    alarms: Rc<Alarms>,
    attachments: Attachments,
    awake: Cell<bool>,
    lines: RefCell<HashMap<Tag, Ends>>,
}

/// What there is to do with a line from outside.
struct Ends {
    events: mpsc::Sender<Event>,
    /// When it is due a heartbeat; 0 where it is due none.
    heartbeat_at_ms: Rc<Cell<u64>>,
}

impl Sockets {
    pub(crate) fn new(state: Rc<State>, alarms: Rc<Alarms>) -> Self {
        let attachments = Attachments::new(Rc::clone(&state));
        Self { state, alarms, attachments, awake: Cell::new(false), lines: RefCell::default() }
    }

    /// Lets the subscribers go on that an earlier life of the object had; before anything else happens in this one.
    ///
    /// # Errors
    /// Why the actor cannot be started.
    pub(crate) fn wake(self: &Rc<Self>, mailbox: impl FnOnce() -> Result<Mailbox, Error>) -> Result<(), Error> {
        if self.awake.get() {
            return Ok(());
        }
        let sockets = self.state.get_websockets();
        if !sockets.is_empty() {
            let mailbox = mailbox()?;
            let tags: Vec<Tag> = sockets.iter().filter_map(|socket| self.tag(socket)).collect();
            self.attachments.keep_only(&tags)?;
            tracing::info!(subscribers = sockets.len(), "subscribers go on, after the object was away");
            for socket in sockets {
                let Some(tag) = self.tag(&socket) else { continue };
                match self.attachments.read(&tag, &socket) {
                    Ok(state) => {
                        let heartbeat_at_ms = state.heartbeat_at_ms;
                        self.start(tag, socket, Subscriber::restore(state), heartbeat_at_ms, mailbox.clone());
                    }
                    Err(error) => line::say_why(&socket, &error),
                }
            }
        }
        self.awake.set(true);
        Ok(())
    }

    /// `GET /cdc`. A subscription that cannot start is refused before there is a WebSocket.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn open(self: &Rc<Self>, request: &Request, mailbox: Mailbox) -> Result<Response, Error> {
        let url = request.url().map_err(platform)?;
        let parameters = stream_parameters(url.query_pairs())?;
        let upgrade = request.headers().get("upgrade").map_err(platform)?;
        if !upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
            return Err(Error::invalid("/cdc speaks WebSocket, and this request does not ask for an upgrade"));
        }
        if self.lines.borrow().len() >= MAX_SUBSCRIBERS {
            let message = format!("there are {MAX_SUBSCRIBERS} subscribers already");
            return Err(Error::retryable(ErrorCode::Overloaded, message, 1_000));
        }
        let opened = open_changes(&mailbox, &parameters.subscription).await?;
        let mut tag = [0; 16];
        getrandom::fill(&mut tag).map_err(|error| Error::internal(format!("no randomness: {error}")))?;
        let tag: Tag = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        let WebSocketPair { client, server } = WebSocketPair::new().map_err(platform)?;
        self.state.accept_websocket_with_tags(&server, &[&tag]);
        self.start(tag, server, Subscriber::new(&parameters, opened), 0, mailbox);
        Response::from_websocket(client).map_err(platform)
    }

    fn start(
        self: &Rc<Self>,
        tag: Tag,
        socket: WebSocket,
        subscriber: Subscriber,
        heartbeat_at_ms: u64,
        mailbox: Mailbox,
    ) {
        let (sender, events) = mpsc::channel(MAX_UNHEARD);
        let heartbeat_at_ms = Rc::new(Cell::new(heartbeat_at_ms));
        let ends = Ends { events: sender, heartbeat_at_ms: Rc::clone(&heartbeat_at_ms) };
        self.lines.borrow_mut().insert(tag.clone(), ends);
        let line = Line::new(tag, socket, subscriber, events, heartbeat_at_ms, mailbox);
        // It must not keep what it is in alive: an object that is gone ends its lines.
        wasm_bindgen_futures::spawn_local(line.serve(Rc::downgrade(self)));
    }

    /// A subscriber says something.
    pub(crate) fn said(&self, socket: &WebSocket, message: WebSocketIncomingMessage) {
        let message = match message {
            WebSocketIncomingMessage::String(text) => Message::Text(text),
            WebSocketIncomingMessage::Binary(bytes) => Message::Binary(bytes),
        };
        let Some(tag) = self.tag(socket) else { return };
        let heard = self.tell(&tag, Event::Said(message));
        if !heard && self.lines.borrow_mut().remove(&tag).is_some() {
            line::say_why(socket, &Error::invalid("more was said at once than can be heard"));
        }
    }

    /// A subscriber is gone.
    pub(crate) fn gone(&self, socket: &WebSocket) {
        // The platform leaves it to us to close our side; it may be closed already.
        let _ = socket.close::<&str>(Some(1000), None);
        if let Some(tag) = self.tag(socket) {
            self.lines.borrow_mut().remove(&tag);
            self.attachments.forget(&tag);
        }
    }

    /// The alarm has fired: some heartbeats may be due.
    pub(crate) fn beat(&self, now_ms: u64) {
        let due: Vec<(Tag, u64)> = self
            .lines
            .borrow()
            .iter()
            .map(|(tag, ends)| (tag.clone(), ends.heartbeat_at_ms.get()))
            .filter(|(_, at_ms)| *at_ms > 0)
            .collect();
        for (tag, at_ms) in due {
            if at_ms > now_ms {
                self.alarms.set_heartbeat(at_ms);
            } else {
                // Where it cannot hear, it has something to do, and says then when the next one is due.
                self.tell(&tag, Event::Beat);
            }
        }
    }

    /// Whether the line has room for the event.
    fn tell(&self, tag: &Tag, event: Event) -> bool {
        self.lines.borrow_mut().get_mut(tag).is_some_and(|ends| ends.events.try_send(event).is_ok())
    }

    fn tag(&self, socket: &WebSocket) -> Option<Tag> {
        self.state.get_tags(socket).into_iter().next()
    }
}

/// Checks a subscription and finds where it starts.
async fn open_changes(mailbox: &Mailbox, subscription: &SubscribeRequest) -> Result<SubscribeRequest, Error> {
    let mut failures = Failures::default();
    loop {
        match ask(mailbox, cdc_request::Request::Open(subscription.clone())).await {
            Ok(cdc_reply::Reply::Opened(opened)) => return Ok(opened),
            Ok(_) => return Err(Error::internal("the change stream answered something else than where it starts")),
            Err(error) => Delay::from(failures.pause(error)?).await,
        }
    }
}
