//! What the router knows of a transaction: which shards it has touched, and its savepoints.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use dosql_actors::runtime::TransactionMode;
use dosql_proto::{Error, ErrorCode, ShardTransaction};

/// The transactions whose outcome is still open, by id. A shard that asks about another one is told that it was rolled back.
pub(crate) type Live = Rc<RefCell<HashSet<String>>>;

/// A transaction over several messages: a session's, or one statement's over several shards.
pub(crate) struct Transaction {
    pub(crate) id: String,
    coordinator: String,
    pub(crate) mode: TransactionMode,
    /// Whether it locks a shard before it reads there.
    pub(crate) locking: bool,
    parts: RefCell<BTreeMap<usize, Part>>,
    savepoints: RefCell<Vec<Savepoint>>,
    last_savepoint: Cell<u64>,
    failure: RefCell<Option<Error>>,
    /// Whether its outcome is out of this transaction's hands.
    decided: Cell<bool>,
    /// Whether it is to fail soon where another transaction holds a lock.
    hurries: Cell<bool>,
    live: Live,
}

/// What it did on one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Messages that took or have the lock.
    pub(crate) writes: u64,
    /// The shard's last LSN when it first read there, before it had the lock.
    pub(crate) read_lsn: Option<u64>,
}

struct Savepoint {
    id: u64,
    /// In lower case; "": it is a statement's own.
    name: String,
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.live.borrow_mut().remove(&self.id);
    }
}

impl Transaction {
    pub(crate) fn new(id: String, coordinator: &str, mode: TransactionMode, locking: bool, live: &Live) -> Rc<Self> {
        live.borrow_mut().insert(id.clone());
        Rc::new(Self {
            id,
            coordinator: coordinator.to_owned(),
            mode,
            locking,
            parts: RefCell::default(),
            savepoints: RefCell::default(),
            last_savepoint: Cell::new(0),
            failure: RefCell::default(),
            decided: Cell::new(false),
            hurries: Cell::new(false),
            live: Rc::clone(live),
        })
    }

    /// What a message that writes on a shard carries.
    ///
    /// # Errors
    /// Why the transaction cannot go on; that it may use one shard only.
    pub(crate) fn for_write(&self, shard: usize) -> Result<ShardTransaction, Error> {
        self.touch(shard)?;
        let mut parts = self.parts.borrow_mut();
        let part = parts.entry(shard).or_default();
        part.writes += 1;
        Ok(ShardTransaction {
            number: part.writes,
            read_lsn: part.read_lsn.filter(|_| part.writes == 1),
            savepoints: self.savepoints.borrow().iter().map(|savepoint| savepoint.id).collect(),
            ..self.message()
        })
    }

    /// What a message that reads on a shard carries.
    ///
    /// # Errors
    /// As [`for_write`](Self::for_write).
    pub(crate) fn for_read(&self, shard: usize) -> Result<ShardTransaction, Error> {
        self.touch(shard)?;
        let part = self.parts.borrow().get(&shard).copied().unwrap_or_default();
        let read_lsn = part.read_lsn.filter(|_| part.writes == 0);
        Ok(ShardTransaction { number: part.writes, read_lsn, ..self.message() })
    }

    fn message(&self) -> ShardTransaction {
        ShardTransaction { id: self.id.clone(), coordinator: self.coordinator.clone(), ..ShardTransaction::default() }
    }

    fn touch(&self, shard: usize) -> Result<(), Error> {
        self.check()?;
        if self.mode == TransactionMode::Single && self.parts.borrow().keys().any(|other| *other != shard) {
            return Err(single());
        }
        Ok(())
    }

    /// Notes what a shard's last LSN was when the transaction read there.
    ///
    /// # Errors
    /// `TRANSACTION_ABORTED` where it was another one before.
    pub(crate) fn note_read(&self, shard: usize, lsn: u64) -> Result<(), Error> {
        let mut parts = self.parts.borrow_mut();
        let part = parts.entry(shard).or_default();
        if part.writes == 0 && *part.read_lsn.get_or_insert(lsn) != lsn {
            drop(parts);
            let error = aborted("a shard has changed since it read there");
            self.fail(&error);
            return Err(error);
        }
        Ok(())
    }

    /// The shards it has touched, in order, and how.
    pub(crate) fn parts(&self) -> Vec<(usize, Part)> {
        self.parts.borrow().iter().map(|(shard, part)| (*shard, *part)).collect()
    }

    /// Some shard it has touched: the best one to read what every shard has.
    pub(crate) fn somewhere(&self) -> Option<usize> {
        self.parts.borrow().keys().next().copied()
    }

    /// Whether it has a shard's lock.
    pub(crate) fn has_lock(&self, shard: usize) -> bool {
        self.parts.borrow().get(&shard).is_some_and(|part| part.writes > 0)
    }

    /// Sets a savepoint. A name may be set more than once: the last one counts.
    pub(crate) fn set_savepoint(&self, name: &str) -> u64 {
        let id = self.last_savepoint.get() + 1;
        self.last_savepoint.set(id);
        self.savepoints.borrow_mut().push(Savepoint { id, name: name.to_owned() });
        id
    }

    /// The last savepoint of a name.
    pub(crate) fn savepoint(&self, name: &str) -> Option<u64> {
        self.savepoints.borrow().iter().rev().find(|savepoint| savepoint.name == name).map(|savepoint| savepoint.id)
    }

    /// Forgets a savepoint and those after it; says whether none is left.
    pub(crate) fn release(&self, id: u64) -> bool {
        let mut savepoints = self.savepoints.borrow_mut();
        savepoints.retain(|savepoint| savepoint.id < id);
        savepoints.is_empty()
    }

    /// Forgets the savepoints after one.
    pub(crate) fn forget_after(&self, id: u64) {
        self.savepoints.borrow_mut().retain(|savepoint| savepoint.id <= id);
    }

    /// The transaction cannot commit any more.
    pub(crate) fn fail(&self, error: &Error) {
        self.failure.borrow_mut().get_or_insert_with(|| error.clone());
    }

    /// Whether it is to fail soon where another transaction holds a lock, since it is run again then.
    pub(crate) fn hurry(&self, hurries: bool) {
        self.hurries.set(hurries);
    }

    /// What [`hurry`](Self::hurry) has said.
    pub(crate) fn hurries(&self) -> bool {
        self.hurries.get()
    }

    /// It may take effect from now on: it must not be rolled back.
    pub(crate) fn decide(&self) {
        self.decided.set(true);
    }

    /// Whether it may have taken effect.
    pub(crate) fn decided(&self) -> bool {
        self.decided.get()
    }

    /// Whether it cannot commit any more.
    pub(crate) fn failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// # Errors
    /// `TRANSACTION_ABORTED`, saying why, where it cannot commit any more.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(error) if error.code() == ErrorCode::TransactionAborted => Err(error.clone()),
            Some(error) => Err(aborted(&error.message)),
        }
    }
}

/// That a transaction was rolled back, and why.
pub(crate) fn aborted(why: &str) -> Error {
    Error::retryable(ErrorCode::TransactionAborted, format!("the transaction was rolled back: {why}"), 0)
}

/// That a transaction would need more shards than its mode allows.
pub(crate) fn single() -> Error {
    let message = "transaction_mode is single: a transaction over several shards is not supported";
    Error::new(ErrorCode::Unsupported, message)
}

/// Whether a transaction can go on after a message of it has failed so.
pub(crate) fn fatal(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::LockTimeout
            | ErrorCode::TransactionAborted
            | ErrorCode::Unavailable
            | ErrorCode::Overloaded
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Storage
            | ErrorCode::Internal
    )
}

/// Whether the same transaction, run anew, may succeed.
pub(crate) fn contended(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::LockTimeout | ErrorCode::TransactionAborted)
}
