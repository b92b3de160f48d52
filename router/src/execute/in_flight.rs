//! Requests that are being written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::lock::{Mutex, OwnedMutexGuard};

/// The requests that are being written, by id: one that comes twice waits for the first.
#[derive(Default)]
pub(crate) struct InFlight(Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>);

/// While it lives, no other request of the same id is written.
pub(super) struct Alone {
    id: String,
    lock: Arc<Mutex<()>>,
    guard: Option<OwnedMutexGuard<()>>,
    all: Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>,
}

impl InFlight {
    pub(super) async fn enter(&self, id: &str) -> Alone {
        let lock = Arc::clone(self.0.borrow_mut().entry(id.to_owned()).or_default());
        let guard = Arc::clone(&lock).lock_owned().await;
        Alone { id: id.to_owned(), lock, guard: Some(guard), all: Rc::clone(&self.0) }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.guard = None;
        // This one and the map's: nobody waits.
        if Arc::strong_count(&self.lock) <= 2 {
            self.all.borrow_mut().remove(&self.id);
        }
    }
}
