//! Lets writes through, and holds them back while what they were planned by changes.

use std::cell::{Cell, RefCell};

use futures_channel::oneshot;

/// A gate. Everything is on one thread.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Cell<bool>,
    inside: Cell<usize>,
    /// Those who wait for it to open, or for the last one inside to leave.
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

/// Somebody is inside until this is dropped.
pub(super) struct Inside<'a>(&'a Gate);

/// The gate is closed, and nobody is inside, until this is dropped.
pub(super) struct Closed<'a>(&'a Gate);

impl Gate {
    /// Enters as soon as the gate is open. Says whether it was not at first: then the schema may have changed meanwhile.
    pub(super) async fn enter(&self) -> (Inside<'_>, bool) {
        let mut waited = false;
        while self.closed.get() {
            waited = true;
            self.change().await;
        }
        self.inside.set(self.inside.get() + 1);
        (Inside(self), waited)
    }

    /// Closes the gate and waits until nobody is inside.
    pub(super) async fn close(&self) -> Closed<'_> {
        while self.closed.get() {
            self.change().await;
        }
        self.closed.set(true);
        let closed = Closed(self);
        while self.inside.get() > 0 {
            self.change().await;
        }
        closed
    }

    async fn change(&self) {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        // A sender that is dropped is a change as well.
        let _ = receiver.await;
    }

    fn changed(&self) {
        for sender in self.waiting.take() {
            // Who has given up waiting need not be told.
            let _ = sender.send(());
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        if self.0.inside.get() == 0 {
            self.0.changed();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.closed.set(false);
        self.0.changed();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_closed_gate_is_empty_and_lets_nobody_in() {
        let gate = Gate::default();
        let (inside, waited) = gate.enter().now_or_never().unwrap();
        assert!(!waited);
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        let mut entering = Box::pin(gate.enter());
        assert!(entering.as_mut().now_or_never().is_none());
        drop(inside);
        let closed = closing.as_mut().now_or_never().unwrap();
        assert!(entering.as_mut().now_or_never().is_none());
        drop(closed);
        let (_inside, waited) = entering.as_mut().now_or_never().unwrap();
        assert!(waited);
    }

    #[test]
    fn giving_up_closing_opens_it() {
        let gate = Gate::default();
        let inside = gate.enter().now_or_never().unwrap();
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        drop(closing);
        assert!(!gate.enter().now_or_never().unwrap().1);
        drop(inside);
    }
}
