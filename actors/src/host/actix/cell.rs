//! The actix actor in front of each of ours: its bounded mailbox is how messages of other threads reach the arbiter.

use actix::{Actor, ActorContext, Context, Handler, Message};

use crate::runtime::{Delivery, Input, Mailbox};

/// Takes messages on the actor's arbiter and puts them into the actor's mailbox.
pub(super) struct Cell {
    mailbox: Mailbox,
}

impl Cell {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox }
    }
}

impl Actor for Cell {
    type Context = Context<Self>;
}

/// A message for the actor.
pub(super) struct Forward(pub(super) Box<Delivery>);

impl Message for Forward {
    type Result = ();
}

impl Handler<Forward> for Cell {
    type Result = ();

    fn handle(&mut self, Forward(delivery): Forward, _: &mut Context<Self>) {
        self.mailbox.deliver(Input::Message(delivery));
    }
}

/// Lets the actor finish what its mailbox holds, and end.
pub(super) struct Close;

impl Message for Close {
    type Result = ();
}

impl Handler<Close> for Cell {
    type Result = ();

    fn handle(&mut self, Close: Close, context: &mut Context<Self>) {
        self.mailbox.close();
        context.stop();
    }
}
