//! Whether anybody still waits for the answer that an actor works on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context as Waker, Poll};

use dosql_proto::Error;
use futures_channel::oneshot;
use futures_util::future::{LocalBoxFuture, poll_fn};

use super::Payload;

/// Where an answer goes.
pub(super) type ReplySender = oneshot::Sender<Result<Payload, Error>>;

/// Says that an answer is worked out to its end, whoever still waits for it: from when it is told so. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct ToTheEnd(Rc<Cell<bool>>);

impl ToTheEnd {
    /// From now on nothing breaks the work off.
    pub fn go_on(&self) {
        self.0.set(true);
    }

    fn goes_on(&self) -> bool {
        self.0.get()
    }
}

/// The message that an actor works on at the moment.
#[derive(Clone, Default)]
pub(super) struct Asker(Rc<RefCell<Option<Asked>>>);

struct Asked {
    reply: ReplySender,
    /// Where the actor has said that it may go on.
    to_the_end: Option<ToTheEnd>,
}

impl Asked {
    fn goes_on(&self) -> bool {
        self.to_the_end.as_ref().is_some_and(ToTheEnd::goes_on)
    }
}

impl Asker {
    /// Notes what is worked on from now on.
    pub(super) fn begin(&self, reply: ReplySender) {
        *self.0.borrow_mut() = Some(Asked { reply, to_the_end: None });
    }

    /// That is worked on no more; where the answer goes.
    pub(super) fn end(&self) -> Option<ReplySender> {
        self.0.take().map(|asked| asked.reply)
    }

    /// Whether nobody waits for it, and nobody has said that it goes on all the same.
    pub(super) fn is_gone(&self) -> bool {
        let asked = self.0.borrow();
        asked.as_ref().is_some_and(|asked| asked.reply.is_canceled() && !asked.goes_on())
    }

    /// Runs a future and sends what comes of it. The future is dropped where nobody waits for that any more.
    pub(super) async fn answer<R>(
        self,
        reply: ReplySender,
        mut future: LocalBoxFuture<'static, Result<R, Error>>,
        to_the_end: ToTheEnd,
        payload: impl Fn(R) -> Payload,
    ) {
        let mut waiting = Some(Asked { reply, to_the_end: Some(to_the_end) });
        let outcome = poll_fn(|waker: &mut Waker<'_>| {
            if let Some(asked) = &mut waiting
                && asked.reply.poll_canceled(waker).is_ready()
                && !asked.goes_on()
            {
                return Poll::Ready(None);
            }
            let outer = self.0.replace(waiting.take());
            let polled = future.as_mut().poll(waker);
            waiting = self.0.replace(outer);
            polled.map(Some)
        })
        .await;
        if let (Some(outcome), Some(Asked { reply, .. })) = (outcome, waiting) {
            // Nobody may be waiting any more, which is their right.
            let _ = reply.send(outcome.map(payload));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A future that never ends, and says when it is dropped.
    fn endless(dropped: &Rc<Cell<bool>>) -> LocalBoxFuture<'static, Result<dosql_proto::Closed, Error>> {
        struct Noted(Rc<Cell<bool>>);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let noted = Noted(Rc::clone(dropped));
        Box::pin(async move {
            let _noted = noted;
            std::future::pending().await
        })
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_unless_it_is_to_go_on() {
        for goes_on in [false, true] {
            let (reply, answer) = oneshot::channel();
            let (asker, to_the_end, dropped) = (Asker::default(), ToTheEnd::default(), Rc::default());
            let mut work = Box::pin(asker.answer(
                reply,
                endless(&dropped),
                to_the_end.clone(),
                Payload::typed::<dosql_proto::Closed>,
            ));
            assert!(work.as_mut().now_or_never().is_none());
            if goes_on {
                to_the_end.go_on();
            }
            drop(answer);
            assert_eq!(work.as_mut().now_or_never().is_some(), !goes_on);
            drop(work);
            assert!(dropped.get());
        }
    }

    #[test]
    fn it_is_known_while_it_runs_whether_anybody_waits() {
        let asker = Asker::default();
        let (reply, answer) = oneshot::channel();
        asker.begin(reply);
        assert!(!asker.is_gone());
        drop(answer);
        assert!(asker.is_gone());
        assert!(asker.end().is_some());
        assert!(!asker.is_gone());
    }
}
