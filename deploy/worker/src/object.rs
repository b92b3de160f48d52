//! A Durable Object with an actor in it.

use std::cell::RefCell;
use std::rc::Rc;

use dosql_actors::cdc::Cdc;
use dosql_actors::probe::Probe;
use dosql_actors::shard::Shard;
use dosql_actors::{Actor, Context, Delivery, Input, Mailbox, Payload, mailbox, supervise};
use dosql_lake::Lake;
use dosql_lake::scan::LakeReader;
use dosql_proto::packet_reply::Outcome;
use dosql_proto::{Address, CdcProtocol, Envelope, Error, ErrorCode, Packet, PacketReply, Protocol};
use dosql_router::Router;
use futures_channel::oneshot;
use prost::Message;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Env, Request, Response, State, WebSocket, WebSocketIncomingMessage};

use crate::alarms::Alarms;
use crate::entry::{DEFAULT, refuse};
use crate::host::ObjectHost;
use crate::pages::PageStore;
use crate::sockets::Sockets;

/// Messages that wait for one object at most; it answers `OVERLOADED` to more.
const MAILBOX: usize = 1024;

/// One object: whichever actor its first message was for.
pub(crate) struct Object {
    state: Rc<State>,
    env: Env,
    running: RefCell<Option<Running>>,
    alarms: Rc<Alarms>,
    sockets: Rc<Sockets>,
}

struct Running {
    address: Address,
    mailbox: Mailbox,
}

impl Object {
    pub(crate) fn new(state: State, env: Env) -> Self {
        crate::log::start(&env);
        let state = Rc::new(state);
        let alarms = Rc::new(Alarms::new(Rc::clone(&state)));
        let sockets = Rc::new(Sockets::new(Rc::clone(&state), Rc::clone(&alarms)));
        Self { state, env, running: RefCell::new(None), alarms, sockets }
    }

    /// A message from another object or the Worker. (`/evict` never gets here: the shim ends the object itself.)
    pub(crate) async fn fetch(&self, mut request: Request) -> worker::Result<Response> {
        self.wake()?;
        match request.path().as_str() {
            "/packet" => {
                let outcome = match self.take(request.bytes().await?).await {
                    Ok(payload) => Outcome::Body(payload.into_bytes()),
                    Err(error) => Outcome::Error(error),
                };
                Response::from_bytes(PacketReply { outcome: Some(outcome) }.encode_to_vec())
            }
            "/cdc" => {
                let opened = match self.mailbox(Some(&Address::new(CdcProtocol::KIND, DEFAULT))) {
                    Ok(mailbox) => self.sockets.open(&request, mailbox).await,
                    Err(error) => Err(error),
                };
                opened.or_else(|error| refuse(&error))
            }
            path => Response::error(format!("an object has no {path}"), 404),
        }
    }

    /// The platform's alarm: the actor that set it may have been evicted since.
    pub(crate) async fn alarm(&self) -> worker::Result<Response> {
        self.wake()?;
        let now_ms = js_sys::Date::now() as u64;
        let is_actors = self.alarms.fired(now_ms);
        self.sockets.beat(now_ms);
        if is_actors {
            // The platform calls again after a failure.
            self.mailbox(None).map_err(|error| error.to_string())?.ring().await;
        }
        Response::empty()
    }

    /// A subscriber says something.
    pub(crate) fn said(&self, socket: &WebSocket, message: WebSocketIncomingMessage) -> worker::Result<()> {
        self.wake()?;
        self.sockets.said(socket, message);
        Ok(())
    }

    /// A subscriber is gone.
    pub(crate) fn gone(&self, socket: &WebSocket) -> worker::Result<()> {
        self.wake()?;
        self.sockets.gone(socket);
        Ok(())
    }

    fn wake(&self) -> worker::Result<()> {
        self.sockets.wake(|| self.mailbox(None)).map_err(|error| error.to_string().into())
    }

    async fn take(&self, packet: Vec<u8>) -> Result<Payload, Error> {
        let packet =
            Packet::decode(&packet[..]).map_err(|error| Error::invalid(format!("malformed Packet: {error}")))?;
        let envelope = packet.envelope.ok_or_else(|| Error::invalid("the Packet has no envelope"))?;
        let mailbox = self.mailbox(envelope.to.as_ref())?;
        deliver(&mailbox, envelope, Payload::Encoded(packet.body)).await
    }

    /// The actor's mailbox; starts the actor if it does not run yet. Without `to`, the one that lived here before.
    fn mailbox(&self, to: Option<&Address>) -> Result<Mailbox, Error> {
        if let Some(running) = &*self.running.borrow() {
            return match to {
                Some(to) if *to != running.address => {
                    Err(Error::invalid(format!("a message for {to} reached {}", running.address)))
                }
                _ => Ok(running.mailbox.clone()),
            };
        }
        let storage: JsValue = self.state.storage().as_raw().into();
        let store = PageStore::open(storage.unchecked_into()).map_err(|error| storage_failed(&error))?;
        let remembered = store.address().map_err(|error| storage_failed(&error))?;
        let address = match (to, remembered.as_deref().and_then(Address::parse)) {
            (Some(to), Some(own)) if *to != own => {
                return Err(Error::invalid(format!("a message for {to} reached {own}")));
            }
            (_, Some(own)) => own,
            (Some(to), None) => {
                store.set_address(&to.to_string()).map_err(|error| storage_failed(&error))?;
                to.clone()
            }
            (None, None) => return Err(Error::new(ErrorCode::NotFound, "no actor has lived in this object")),
        };
        let mailbox = self.start(&address, Rc::new(store))?;
        *self.running.borrow_mut() = Some(Running { address, mailbox: mailbox.clone() });
        Ok(mailbox)
    }

    fn start(&self, address: &Address, store: Rc<PageStore>) -> Result<Mailbox, Error> {
        let run = runner(&address.kind).ok_or_else(|| {
            Error::new(ErrorCode::NotFound, format!("there is no actor of the kind {}", address.kind))
        })?;
        let host = ObjectHost::new(address.clone(), &self.state, Rc::clone(&self.alarms), store, &self.env)
            .map_err(|error| Error::invalid(format!("{address} could not be started: {error}")))?;
        Ok(run(Context::new(Rc::new(host))))
    }
}

/// Puts a message into an actor's mailbox and waits for the answer.
pub(crate) async fn deliver(mailbox: &Mailbox, envelope: Envelope, payload: Payload) -> Result<Payload, Error> {
    let (reply, answer) = oneshot::channel();
    mailbox.deliver(Input::Message(Box::new(Delivery { envelope, payload, reply })));
    answer
        .await
        .unwrap_or_else(|_| Err(Error::retryable(ErrorCode::Unavailable, "the actor ended before it could answer", 50)))
}

/// What starts an actor of this kind.
fn runner(kind: &str) -> Option<fn(Context) -> Mailbox> {
    fn run<A: Actor>(context: Context) -> Mailbox {
        let (sender, receiver) = mailbox(MAILBOX);
        wasm_bindgen_futures::spawn_local(supervise::<A>(context, receiver));
        sender
    }
    fn of<A: Actor>(kind: &str) -> Option<fn(Context) -> Mailbox> {
        (kind == A::Protocol::KIND).then_some(run::<A> as fn(Context) -> Mailbox)
    }
    of::<Shard>(kind)
        .or_else(|| of::<Router>(kind))
        .or_else(|| of::<Cdc>(kind))
        .or_else(|| of::<Lake>(kind))
        .or_else(|| of::<LakeReader>(kind))
        .or_else(|| of::<Probe>(kind))
}

fn storage_failed(error: &JsValue) -> Error {
    Error::new(ErrorCode::Storage, format!("the object's storage failed: {}", crate::reach::describe(error)))
}
