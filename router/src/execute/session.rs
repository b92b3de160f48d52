//! Sessions: transactions that a client begins and ends itself.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use dosql_actors::runtime::TransactionMode;
use dosql_proto::{Error, ErrorCode, ExecuteResponse, SessionOpened};
use futures_util::lock::{Mutex, OwnedMutexGuard};

use super::{Scope, Shared};
use crate::catalog::unsupported;
use crate::sql_text;
use crate::transaction::{Transaction, aborted};

/// Open sessions, at most.
const MAX_SESSIONS: usize = 10_000;
/// Answers that a session keeps for requests that come twice.
const MAX_ANSWERS: usize = 32;

/// The open sessions, by token.
#[derive(Default)]
pub(crate) struct Sessions {
    open: HashMap<String, Rc<Session>>,
}

struct Session {
    /// Held by the request that runs: the others wait.
    busy: Arc<Mutex<()>>,
    state: RefCell<State>,
}

struct State {
    mode: TransactionMode,
    transaction: Option<Running>,
    used_ms: u64,
    /// The last answers, by their requests' ids.
    answers: VecDeque<(String, Result<ExecuteResponse, Error>)>,
}

#[derive(Clone)]
struct Running {
    transaction: Rc<Transaction>,
    began_ms: u64,
    /// Whether a SAVEPOINT began it, so that its RELEASE commits it.
    by_savepoint: bool,
}

/// A request's turn in its session.
pub(super) struct Seat {
    session: Rc<Session>,
    shared: Weak<Shared>,
    /// Whether a statement of it runs, so that it is not known what the transaction did.
    running: Cell<bool>,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let (true, Some(running), Some(shared)) = (self.running.get(), self.running(), self.shared.upgrade()) {
            shared.fail(&running, &aborted("its client hung up while a statement of it ran"));
        }
    }
}

/// A statement about the session itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    Begin { locking: bool },
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    SetMode(TransactionMode),
}

impl Control {
    /// The statement, where it is one about the session.
    ///
    /// # Errors
    /// `SYNTAX_ERROR` where it begins like one and goes on differently; what is wrong with a setting.
    pub(super) fn parse(sql: &str) -> Result<Option<Self>, Error> {
        let words = sql_text::leading_words(sql, 4);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let rest = |count: usize| sql_text::after_words(sql, count).trim().trim_end_matches(';').trim().to_owned();
        let (control, used) = match words.as_slice() {
            ["BEGIN", "DEFERRED", "TRANSACTION", ..] => (Self::Begin { locking: false }, 3),
            ["BEGIN", "IMMEDIATE" | "EXCLUSIVE", "TRANSACTION", ..] => (Self::Begin { locking: true }, 3),
            ["BEGIN", "DEFERRED" | "TRANSACTION", ..] => (Self::Begin { locking: false }, 2),
            ["BEGIN", "IMMEDIATE" | "EXCLUSIVE", ..] => (Self::Begin { locking: true }, 2),
            ["BEGIN", ..] => (Self::Begin { locking: false }, 1),
            ["COMMIT" | "END", "TRANSACTION", ..] => (Self::Commit, 2),
            ["COMMIT" | "END", ..] => (Self::Commit, 1),
            ["ROLLBACK", "TRANSACTION", "TO", "SAVEPOINT", ..] => {
                return name(&rest(4)).map(Self::RollbackTo).map(Some);
            }
            ["ROLLBACK", "TRANSACTION", "TO", ..] | ["ROLLBACK", "TO", "SAVEPOINT", ..] => {
                return name(&rest(3)).map(Self::RollbackTo).map(Some);
            }
            ["ROLLBACK", "TO", ..] => return name(&rest(2)).map(Self::RollbackTo).map(Some),
            ["ROLLBACK", "TRANSACTION", ..] => (Self::Rollback, 2),
            ["ROLLBACK", ..] => (Self::Rollback, 1),
            ["SAVEPOINT", ..] => return name(&rest(1)).map(Self::Savepoint).map(Some),
            ["RELEASE", "SAVEPOINT", ..] => return name(&rest(2)).map(Self::Release).map(Some),
            ["RELEASE", ..] => return name(&rest(1)).map(Self::Release).map(Some),
            ["SET", "TRANSACTION_MODE", ..] => return mode(&rest(2)).map(Self::SetMode).map(Some),
            _ => return Ok(None),
        };
        match rest(used).as_str() {
            "" => Ok(Some(control)),
            more => Err(near(more)),
        }
    }
}

fn near(text: &str) -> Error {
    let word = text.split_whitespace().next().unwrap_or_default();
    Error::new(ErrorCode::SyntaxError, format!("near \"{word}\": syntax error"))
}

/// A savepoint's name, in lower case: case does not matter.
fn name(text: &str) -> Result<String, Error> {
    let quotes = [('"', '"'), ('`', '`'), ('[', ']'), ('\'', '\'')];
    for (open, close) in quotes {
        if let Some(inner) = text.strip_prefix(open).and_then(|inner| inner.strip_suffix(close)) {
            let doubled: String = [close, close].iter().collect();
            return Ok(inner.replace(&doubled, &close.to_string()).to_lowercase());
        }
    }
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    match text.split_whitespace().collect::<Vec<_>>().as_slice() {
        [name] if name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) => Ok(name.to_lowercase()),
        [] => Err(Error::new(ErrorCode::SyntaxError, "incomplete input: a savepoint needs a name")),
        [first, ..] => Err(near(first)),
    }
}

fn mode(text: &str) -> Result<TransactionMode, Error> {
    let value = text.trim_start_matches('=').trim();
    let value = value.trim_matches(|c| c == '\'' || c == '"');
    value.parse().map_err(|reason| Error::invalid(format!("transaction_mode {value:?}: {reason}")))
}

fn sql(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::SqlError, message)
}

impl Seat {
    /// The scope of a statement of this session, which runs until [`leave`](Shared::leave).
    pub(super) fn scope(&self, scope: &Scope) -> Scope {
        self.running.set(true);
        scope.within(self.running().map(|running| running.transaction))
    }

    /// What a request of this id was answered before.
    pub(super) fn answered(&self, request_id: &str) -> Option<Result<ExecuteResponse, Error>> {
        let state = self.session.state.borrow();
        let known = state.answers.iter().find(|(id, _)| !request_id.is_empty() && id == request_id);
        known.map(|(_, answer)| answer.clone())
    }

    /// Keeps what a request was answered, for when it comes again: a statement of a transaction is to run once.
    pub(super) fn keep(&self, request_id: String, answer: &Result<ExecuteResponse, Error>) {
        if request_id.is_empty() {
            return;
        }
        let mut state = self.session.state.borrow_mut();
        if state.answers.len() >= MAX_ANSWERS {
            state.answers.pop_front();
        }
        state.answers.push_back((request_id, answer.clone()));
    }

    fn running(&self) -> Option<Running> {
        self.session.state.borrow().transaction.clone()
    }

    fn start(&self, running: Running) {
        self.session.state.borrow_mut().transaction = Some(running);
    }

    fn end(&self) {
        self.session.state.borrow_mut().transaction = None;
    }
}

impl Shared {
    /// Opens a session.
    ///
    /// # Errors
    /// `OVERLOADED` where too many are open.
    pub(super) fn open_session(&self) -> Result<SessionOpened, Error> {
        let settings = self.context.settings();
        let mut sessions = self.sessions.borrow_mut();
        if sessions.open.len() >= MAX_SESSIONS {
            let message = format!("{MAX_SESSIONS} sessions are open already");
            return Err(Error::retryable(ErrorCode::Overloaded, message, 1_000));
        }
        let token = format!("{:016x}{:016x}", self.context.random_u64(), self.context.random_u64());
        let used_ms = self.context.now_ms();
        let state = State { mode: settings.transaction_mode, transaction: None, used_ms, answers: VecDeque::new() };
        let session = Session { busy: Arc::default(), state: RefCell::new(state) };
        sessions.open.insert(token.clone(), Rc::new(session));
        drop(sessions);
        let idle_timeout_ms = settings.session_idle_timeout_ms;
        self.wake_at(used_ms + idle_timeout_ms + 1);
        Ok(SessionOpened { session: token, idle_timeout_ms })
    }

    /// Ends a session; its transaction, if one is open, is rolled back.
    pub(super) fn close_session(&self, token: &str) {
        let closed = self.sessions.borrow_mut().open.remove(token);
        if let Some(session) = closed {
            self.forsake(&session);
        }
    }

    fn forsake(&self, session: &Session) {
        if let Some(running) = session.state.borrow_mut().transaction.take() {
            self.roll_back(&running.transaction);
        }
    }

    /// Waits for a request's turn in its session; `None` where it names none.
    ///
    /// # Errors
    /// `UNKNOWN_SESSION`.
    pub(super) async fn seat(&self, token: &str) -> Result<Option<Seat>, Error> {
        if token.is_empty() {
            return Ok(None);
        }
        let find = || self.sessions.borrow().open.get(token).cloned();
        let unknown = || {
            let message = "no such session is open: it was closed, or idle too long, or the router has restarted since";
            Error::new(ErrorCode::UnknownSession, message)
        };
        let session = find().ok_or_else(unknown)?;
        let turn = Arc::clone(&session.busy).lock_owned().await;
        // It may have been closed meanwhile.
        let session = find().ok_or_else(unknown)?;
        let now_ms = self.context.now_ms();
        session.state.borrow_mut().used_ms = now_ms;
        let seat = Seat { session, shared: Weak::clone(&self.me), running: Cell::new(false), _turn: turn };
        let limit_ms = self.context.settings().transaction_timeout_ms;
        if let Some(running) = seat.running()
            && running.began_ms + limit_ms < now_ms
        {
            self.fail(&running, &aborted(&format!("it took longer than {limit_ms} ms")));
        }
        Ok(Some(seat))
    }

    /// Rolls back a transaction that its client has yet to end.
    fn fail(&self, running: &Running, error: &Error) {
        running.transaction.fail(error);
        self.roll_back(&running.transaction);
    }

    /// After a statement: a transaction that cannot commit any more gives up its locks, and the session's time begins anew.
    pub(super) fn leave(&self, seat: &Seat) {
        seat.running.set(false);
        if let Some(running) = seat.running()
            && running.transaction.failed()
        {
            self.roll_back(&running.transaction);
        }
        seat.session.state.borrow_mut().used_ms = self.context.now_ms();
    }

    /// Carries out a statement about the session.
    ///
    /// # Errors
    /// As SQLite words them; why a commit failed.
    pub(super) async fn control(&self, seat: &Seat, control: Control, call: &Scope) -> Result<String, Error> {
        call.go_on();
        let running = seat.running();
        match (control, running) {
            (Control::SetMode(_), Some(_)) => {
                return Err(unsupported("changing transaction_mode within a transaction is not supported"));
            }
            (Control::SetMode(mode), None) => seat.session.state.borrow_mut().mode = mode,
            (Control::Begin { .. }, Some(_)) => return Err(sql("cannot start a transaction within a transaction")),
            (Control::Begin { locking }, None) => seat.start(self.running(seat, locking, false)),
            (Control::Commit, None) => return Err(sql("cannot commit - no transaction is active")),
            (Control::Commit, Some(running)) => return self.commit_session(seat, &running, call).await,
            (Control::Rollback, None) => return Err(sql("cannot rollback - no transaction is active")),
            (Control::Rollback, Some(running)) => {
                seat.end();
                self.roll_back(&running.transaction);
            }
            (Control::Savepoint(name), None) => {
                let running = self.running(seat, false, true);
                running.transaction.set_savepoint(&name);
                seat.start(running);
            }
            (Control::Savepoint(name), Some(running)) => {
                running.transaction.check()?;
                running.transaction.set_savepoint(&name);
            }
            (Control::Release(name) | Control::RollbackTo(name), None) => return Err(missing(&name)),
            (Control::Release(name), Some(running)) => {
                running.transaction.check()?;
                let id = running.transaction.savepoint(&name).ok_or_else(|| missing(&name))?;
                if id == 1 && running.by_savepoint {
                    return self.commit_session(seat, &running, call).await;
                }
                running.transaction.release(id);
            }
            (Control::RollbackTo(name), Some(running)) => {
                running.transaction.check()?;
                let id = running.transaction.savepoint(&name).ok_or_else(|| missing(&name))?;
                self.roll_back_to(&running.transaction, id, call).await;
                running.transaction.check()?;
            }
        }
        Ok(String::new())
    }

    fn running(&self, seat: &Seat, locking: bool, by_savepoint: bool) -> Running {
        let mode = seat.session.state.borrow().mode;
        let transaction = self.begin("session", mode, locking);
        Running { transaction, began_ms: self.context.now_ms(), by_savepoint }
    }

    /// Commits; returns the bookmark. Where a violated constraint alone prevents it, the transaction goes on.
    async fn commit_session(&self, seat: &Seat, running: &Running, call: &Scope) -> Result<String, Error> {
        let transaction = &running.transaction;
        match self.commit(transaction, None, call).await {
            Ok(lsns) => {
                seat.end();
                Ok(call.with_own(self.bookmark(lsns)))
            }
            Err(error) => {
                if transaction.failed() {
                    seat.end();
                    self.roll_back(transaction);
                }
                Err(error)
            }
        }
    }

    /// Closes the sessions that were idle too long, and rolls back transactions that take too long; says when to look again.
    pub(super) fn expire_sessions(&self) -> Option<u64> {
        let now_ms = self.context.now_ms();
        let settings = self.context.settings();
        let (idle_ms, limit_ms) = (settings.session_idle_timeout_ms, settings.transaction_timeout_ms);
        let mut closed = Vec::new();
        let mut next: Option<u64> = None;
        self.sessions.borrow_mut().open.retain(|_, session| {
            let busy = session.busy.try_lock().is_none();
            let mut state = session.state.borrow_mut();
            if busy {
                state.used_ms = now_ms;
            }
            let mut due_ms = state.used_ms + idle_ms;
            if due_ms <= now_ms {
                closed.push(Rc::clone(session));
                return false;
            }
            if let Some(running) = state.transaction.clone().filter(|running| !busy && !running.transaction.failed()) {
                let limit_at = running.began_ms + limit_ms;
                if limit_at <= now_ms {
                    self.fail(&running, &aborted(&format!("it took longer than {limit_ms} ms")));
                } else {
                    due_ms = due_ms.min(limit_at);
                }
            }
            drop(state);
            next = Some(next.map_or(due_ms, |at| at.min(due_ms)));
            true
        });
        for session in closed {
            self.forsake(&session);
        }
        next.map(|at| at + 1)
    }
}

fn missing(name: &str) -> Error {
    sql(format!("no such savepoint: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_the_session_are_told_from_others() {
        let begin = |locking| Some(Control::Begin { locking });
        for (text, control) in [
            ("begin", begin(false)),
            ("BEGIN DEFERRED;", begin(false)),
            ("BEGIN TRANSACTION", begin(false)),
            (" /* x */ begin immediate transaction ; ", begin(true)),
            ("BEGIN EXCLUSIVE", begin(true)),
            ("END", Some(Control::Commit)),
            ("COMMIT TRANSACTION", Some(Control::Commit)),
            ("rollback", Some(Control::Rollback)),
            ("ROLLBACK TRANSACTION TO SAVEPOINT a", Some(Control::RollbackTo("a".into()))),
            ("ROLLBACK TO \"A b\"", Some(Control::RollbackTo("a b".into()))),
            ("SAVEPOINT Säule", Some(Control::Savepoint("säule".into()))),
            ("RELEASE a", Some(Control::Release("a".into()))),
            ("RELEASE SAVEPOINT [a]", Some(Control::Release("a".into()))),
            ("SET transaction_mode = 'twopc'", Some(Control::SetMode(TransactionMode::TwoPhase))),
            ("set transaction_mode=single;", Some(Control::SetMode(TransactionMode::Single))),
            ("SELECT 1", None),
        ] {
            assert_eq!(Control::parse(text).unwrap(), control, "{text}");
        }
        for text in ["BEGIN nonsense", "COMMIT 1", "SAVEPOINT", "SAVEPOINT a b", "RELEASE 1", "ROLLBACK TO"] {
            assert_eq!(Control::parse(text).unwrap_err().code(), ErrorCode::SyntaxError, "{text}");
        }
        assert!(Control::parse("SET transaction_mode = 'three'").unwrap_err().message.contains("three"));
    }
}
