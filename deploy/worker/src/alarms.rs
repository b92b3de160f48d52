//! An object's one alarm, which two need: its actor, and the subscribers that are due a heartbeat.

use std::cell::Cell;
use std::rc::Rc;

use dosql_proto::Address;
use worker::{ScheduledTime, State};

/// When the object is to be woken, in milliseconds since the epoch.
pub(crate) struct Alarms {
    state: Rc<State>,
    /// `None`: not known; an earlier life of the object may have said.
    actor: Cell<Option<u64>>,
    heartbeat: Cell<Option<u64>>,
    /// What the platform was told last.
    set: Cell<Option<u64>>,
}

impl Alarms {
    pub(crate) fn new(state: Rc<State>) -> Self {
        Self { state, actor: Cell::default(), heartbeat: Cell::default(), set: Cell::default() }
    }

    /// Sets the actor's alarm.
    pub(crate) fn set_actor(&self, address: &Address, at_ms: u64) {
        self.actor.set(Some(at_ms));
        self.tell(&address.to_string());
    }

    /// A heartbeat is due then, if none is due sooner.
    pub(crate) fn set_heartbeat(&self, at_ms: u64) {
        if self.heartbeat.get().is_none_or(|soonest| at_ms < soonest) {
            self.heartbeat.set(Some(at_ms));
            self.tell("a subscriber");
        }
    }

    /// The platform's alarm has fired; whether it is the actor's. The subscribers are to say anew when the next heartbeat is due.
    pub(crate) fn fired(&self, now_ms: u64) -> bool {
        self.set.set(None);
        self.heartbeat.set(None);
        if self.actor.get().is_some_and(|at_ms| at_ms > now_ms) {
            self.tell("the actor");
            return false;
        }
        self.actor.set(None);
        true
    }

    fn tell(&self, who: &str) {
        let Some(at_ms) = self.actor.get().into_iter().chain(self.heartbeat.get()).min() else { return };
        if self.set.replace(Some(at_ms)) == Some(at_ms) {
            return;
        }
        let storage = self.state.storage();
        let at = ScheduledTime::new(js_sys::Date::new(&(at_ms as f64).into()));
        let who = who.to_owned();
        // The platform orders this write with the pages written in the same turn; only its failure is reported later.
        wasm_bindgen_futures::spawn_local(async move {
            if let Err(error) = storage.set_alarm(at).await {
                worker::console_error!("{who}: the alarm could not be set: {error}");
            }
        });
    }
}
