//! Waking those who wait for something to happen.

use std::cell::RefCell;

use futures_channel::oneshot;

/// Something that happens now and then, and those who wait for the next time.
#[derive(Default)]
pub(crate) struct News {
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

impl News {
    /// Completes when the next announcement is made after this call. Take it before looking whether to wait: an announcement
    /// in between is not missed.
    pub(crate) fn next(&self) -> impl Future<Output = ()> + use<> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|sender| !sender.is_canceled());
        waiting.push(sender);
        async move {
            // It was announced, or nobody is left to announce anything.
            let _ = receiver.await;
        }
    }

    /// Wakes everyone who waits.
    pub(crate) fn announce(&self) {
        for sender in self.waiting.take() {
            // Whoever stopped waiting has no use for it.
            let _ = sender.send(());
        }
    }
}
