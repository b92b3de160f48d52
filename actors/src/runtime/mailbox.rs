//! The loop that drives an actor: one message at a time, replies held until `settle`, restart from storage after a crash.
//! The same on every host.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use dosql_proto::{Error, ErrorCode, Protocol};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use prost::Message;

use super::asker::ReplySender;
use super::{Actor, Call, Context, Delivery, Handled, Input, Payload, ToTheEnd};

/// First pause before a restart; doubles with each failure in a row, up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The sending end of an actor's mailbox.
#[derive(Clone)]
pub struct Mailbox {
    inputs: async_channel::Sender<Input>,
}

/// The end the actor reads.
pub struct MailboxReceiver {
    inputs: async_channel::Receiver<Input>,
}

/// A mailbox that holds `capacity` messages.
#[must_use]
pub fn mailbox(capacity: usize) -> (Mailbox, MailboxReceiver) {
    let (sender, receiver) = async_channel::bounded(capacity);
    (Mailbox { inputs: sender }, MailboxReceiver { inputs: receiver })
}

impl Mailbox {
    /// Puts a message in; a full mailbox answers `OVERLOADED`, a closed one `UNAVAILABLE`, to whoever waits for the reply.
    pub fn deliver(&self, input: Input) {
        let (refused, error) = match self.inputs.try_send(input) {
            Ok(()) => return,
            Err(async_channel::TrySendError::Full(input)) => {
                (input, Error::retryable(ErrorCode::Overloaded, "the actor's mailbox is full", 50))
            }
            Err(async_channel::TrySendError::Closed(input)) => (input, unavailable("the actor has stopped")),
        };
        if let Input::Message(delivery) = refused {
            // Nobody may be waiting any more, which is their right.
            let _ = delivery.reply.send(Err(error));
        }
    }

    /// Puts the alarm in, as soon as there is room: an alarm is never refused.
    pub async fn ring(&self) {
        // Closed: the actor has stopped, and with it its alarm.
        let _ = self.inputs.send(Input::Alarm).await;
    }

    /// Refuses messages from now on; the actor ends when it has handled those that wait.
    pub fn close(&self) {
        self.inputs.close();
    }
}

/// Runs the actor until its mailbox closes, restarting it from storage whenever it crashes.
pub async fn supervise<A: Actor>(context: Context, mailbox: MailboxReceiver) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let crash = match AssertUnwindSafe(A::start(context.clone())).catch_unwind().await {
            Ok(Ok(actor)) => {
                match AssertUnwindSafe(drive(actor, &context, &mailbox, &mut pause)).catch_unwind().await {
                    Ok(Ended::Closed) => None,
                    Ok(Ended::Crashed(error)) => Some(error.to_string()),
                    Err(_) => Some("panicked".to_owned()),
                }
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("panicked while starting".to_owned()),
        };
        // Before the next incarnation opens the storage that they may still hold; one that failed to start left some, too.
        context.end_incarnation();
        let Some(crash) = crash else { return };
        tracing::error!(actor = %context.address(), crash, pause_ms = pause.as_millis(), "actor crashed; restarting from storage");
        context.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What came of a message, until it is let out.
enum Held<R> {
    Reply(Result<Payload, Error>),
    Later(LocalBoxFuture<'static, Result<R, Error>>),
    WhileAsked(LocalBoxFuture<'static, Result<R, Error>>, ToTheEnd),
}

enum Ended {
    Closed,
    Crashed(Error),
}

async fn drive<A: Actor>(mut actor: A, context: &Context, mailbox: &MailboxReceiver, pause: &mut Duration) -> Ended {
    let mut group: Vec<(ReplySender, Held<_>)> = Vec::new();
    loop {
        let Ok(first) = mailbox.inputs.recv().await else { return Ended::Closed };
        let mut next = Some(first);
        let mut crashed = None;
        while let Some(input) = next.take() {
            match input {
                Input::Message(delivery) => {
                    if let Some(handled) = handle(&mut actor, context, *delivery, &mut group).await {
                        crashed = Some(handled);
                        break;
                    }
                }
                Input::Alarm => {
                    if let Err(error) = actor.alarm().await {
                        crashed = Some(error);
                        break;
                    }
                }
            }
            if group.len() < A::GROUP {
                next = mailbox.inputs.try_recv().ok();
            }
        }
        let settled = match crashed {
            None => actor.settle().await,
            Some(error) => Err(error),
        };
        if let Err(error) = settled {
            let message = format!("{} restarted before it could answer: {error}", context.address());
            for (reply, _) in group {
                // Nobody may be waiting any more, which is their right.
                let _ = reply.send(Err(unavailable(&message)));
            }
            return Ended::Crashed(error);
        }
        *pause = SHORTEST_PAUSE;
        for (reply, held) in group.drain(..) {
            release(context, reply, held);
        }
    }
}

/// Handles one delivery into `group`; says why where the actor crashed.
async fn handle<A: Actor>(
    actor: &mut A,
    context: &Context,
    delivery: Delivery,
    group: &mut Vec<(ReplySender, Held<<A::Protocol as Protocol>::Reply>)>,
) -> Option<Error> {
    let Delivery { envelope, payload, reply } = delivery;
    let call = Call::from_envelope(envelope);
    if call.deadline_ms != 0 && call.deadline_ms < context.now_ms() {
        let error =
            Error::retryable(ErrorCode::DeadlineExceeded, "the deadline passed before the message was handled", 0);
        group.push((reply, Held::Reply(Err(error))));
        return None;
    }
    match payload.take() {
        Ok(request) => {
            context.asker.begin(reply);
            let handled = actor.handle(request, &call).await;
            let reply = context.asker.end()?;
            let (held, crash) = match handled {
                Handled::Reply(outcome) => (Held::Reply(outcome.map(Payload::typed)), None),
                Handled::Later(future) => (Held::Later(future), None),
                Handled::WhileAsked(future, to_the_end) => (Held::WhileAsked(future, to_the_end), None),
                Handled::Crash(error) => (Held::Reply(Err(error.clone())), Some(error)),
            };
            group.push((reply, held));
            crash
        }
        Err(error) => {
            group.push((reply, Held::Reply(Err(error))));
            None
        }
    }
}

fn release<R: Message + 'static>(context: &Context, reply: ReplySender, held: Held<R>) {
    match held {
        Held::Reply(outcome) => {
            // Nobody may be waiting any more, which is their right.
            let _ = reply.send(outcome);
        }
        Held::Later(future) => context.spawn(async move {
            let _ = reply.send(future.await.map(Payload::typed));
        }),
        Held::WhileAsked(future, to_the_end) => {
            context.spawn(context.asker.clone().answer(reply, future, to_the_end, Payload::typed));
        }
    }
}

fn unavailable(message: &str) -> Error {
    Error::retryable(ErrorCode::Unavailable, message, 50)
}
