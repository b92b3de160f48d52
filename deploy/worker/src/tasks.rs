//! The futures an actor leaves running beside its mailbox.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

type Slot = Rc<RefCell<Option<LocalBoxFuture<'static, ()>>>>;

/// The running futures of one incarnation of an actor.
#[derive(Default)]
pub(crate) struct Tasks {
    next: Cell<u64>,
    running: Rc<RefCell<HashMap<u64, Slot>>>,
}

impl Tasks {
    /// Runs a future until it completes or the incarnation ends.
    pub(crate) fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        let id = self.next.replace(self.next.get() + 1);
        let slot: Slot = Rc::new(RefCell::new(Some(future)));
        self.running.borrow_mut().insert(id, Rc::clone(&slot));
        let running = Rc::clone(&self.running);
        wasm_bindgen_futures::spawn_local(async move {
            poll_fn(|context| match slot.borrow_mut().as_mut() {
                Some(future) => future.poll_unpin(context),
                None => Poll::Ready(()),
            })
            .await;
            running.borrow_mut().remove(&id);
        });
    }

    /// Ends the incarnation: drops every future that still runs, and with it what the future holds.
    pub(crate) fn end(&self) {
        let ended: Vec<Slot> = self.running.borrow_mut().drain().map(|(_, slot)| slot).collect();
        for slot in ended {
            // Dropping a future may run code of its own, so the slot is not borrowed meanwhile.
            let future = slot.borrow_mut().take();
            drop(future);
        }
    }
}
