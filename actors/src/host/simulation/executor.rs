//! Tasks, timers and virtual time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::random::{Random, Trace};

/// When every simulation begins: 2024-01-01, in microseconds since the epoch.
const BEGINNING_US: u64 = 1_704_067_200_000_000;
/// The task that `run_until` was called with.
const MAIN: TaskId = 0;
/// Polls without time passing after which something is taken to spin.
const MOST_POLLS_AT_ONCE: u64 = 5_000_000;

pub(super) type TaskId = u64;
/// Whose death ends a task.
pub(super) type Owner = u64;

/// Who waits for a timer; gone where it no longer does.
type Sleeper = Weak<RefCell<Option<Waker>>>;

/// Runs tasks one poll at a time, the next one chosen by chance among those that can run.
pub(super) struct Executor {
    pub(super) trace: Rc<Trace>,
    random: Rc<Random>,
    now_us: Cell<u64>,
    time_limit: Duration,
    next_id: Cell<TaskId>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    ready: Arc<Mutex<Vec<TaskId>>>,
    timers: RefCell<BTreeMap<(u64, u64), Sleeper>>,
}

struct Task {
    owner: Owner,
    /// `None` while it is being polled.
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

/// Puts its task on the ready list, once.
struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}

impl Executor {
    pub(super) fn new(random: Rc<Random>, time_limit: Duration) -> Self {
        Self {
            trace: Rc::default(),
            random,
            now_us: Cell::new(BEGINNING_US),
            time_limit,
            next_id: Cell::new(MAIN + 1),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_us.get() / 1000
    }

    pub(super) fn spawn(&self, owner: Owner, future: LocalBoxFuture<'static, ()>) -> TaskId {
        let id = self.fresh();
        let waker = self.waker(id);
        self.tasks.borrow_mut().insert(id, Task { owner, future: Some(future), waker: Arc::clone(&waker) });
        waker.wake();
        id
    }

    /// Drops tasks where they stand. Not for the task that is running.
    pub(super) fn cancel(&self, tasks: impl IntoIterator<Item = TaskId>) {
        let mut all = self.tasks.borrow_mut();
        let cancelled: Vec<Task> = tasks.into_iter().filter_map(|task| all.remove(&task)).collect();
        drop(all);
        // Dropped when nothing is borrowed: what they own may call back.
        drop(cancelled);
    }

    /// Drops every task of an owner.
    pub(super) fn cancel_owner(&self, owner: Owner) {
        let tasks: Vec<TaskId> =
            self.tasks.borrow().iter().filter(|(_, task)| task.owner == owner).map(|(id, _)| *id).collect();
        self.cancel(tasks);
    }

    /// Drops every task.
    pub(super) fn clear(&self) {
        // What is dropped may spawn again.
        loop {
            let tasks = self.tasks.take();
            if tasks.is_empty() {
                return;
            }
        }
    }

    /// Completes after `duration` of virtual time.
    pub(super) fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let at_us = self.now_us.get().saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        Sleep { executor: Rc::clone(self), at_us, waker: Rc::default(), registered: false }
    }

    pub(super) fn run_until<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let limit_us = self.now_us.get().saturating_add(u64::try_from(self.time_limit.as_micros()).unwrap_or(u64::MAX));
        let main = self.waker(MAIN);
        Arc::clone(&main).wake();
        let mut polls = 0_u64;
        loop {
            let Some(task) = self.choose() else {
                polls = 0;
                assert!(self.advance(), "the driver waits for something that can never happen");
                assert!(self.now_us.get() <= limit_us, "the driver did not finish within {:?}", self.time_limit);
                continue;
            };
            polls += 1;
            assert!(polls < MOST_POLLS_AT_ONCE, "a task spins: time stands still at {} us", self.now_us.get());
            self.trace.record("poll", &[task]);
            if task == MAIN {
                main.queued.store(false, Ordering::Relaxed);
                let waker = Waker::from(Arc::clone(&main));
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    self.ready.lock().unwrap_or_else(PoisonError::into_inner).retain(|ready| *ready != MAIN);
                    return output;
                }
            } else {
                self.poll(task);
            }
        }
    }

    fn poll(&self, id: TaskId) {
        let taken = self.tasks.borrow_mut().get_mut(&id).and_then(|task| {
            let future = task.future.take()?;
            Some((future, Arc::clone(&task.waker)))
        });
        let Some((mut future, waker)) = taken else { return };
        waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(waker);
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.tasks.borrow_mut();
        let ended = if done {
            tasks.remove(&id);
            Some(future)
        } else if let Some(task) = tasks.get_mut(&id) {
            task.future = Some(future);
            None
        } else {
            // Cancelled while it ran.
            Some(future)
        };
        drop(tasks);
        drop(ended);
    }

    fn choose(&self) -> Option<TaskId> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_empty() {
            return None;
        }
        let index = self.random.index(ready.len());
        Some(ready.swap_remove(index))
    }

    /// Jumps to the next timer that somebody still waits for; `false` where there is none.
    fn advance(&self) -> bool {
        loop {
            let Some(((at_us, _), waker)) = self.timers.borrow_mut().pop_first() else { return false };
            let Some(waker) = waker.upgrade() else { continue };
            self.now_us.set(self.now_us.get().max(at_us));
            self.trace.record("time", &[at_us]);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
            return true;
        }
    }

    fn fresh(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    fn waker(&self, id: TaskId) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) })
    }
}

/// See [`Executor::sleep`].
pub(super) struct Sleep {
    executor: Rc<Executor>,
    at_us: u64,
    /// Shared with the timer, which is void once this is dropped.
    waker: Rc<RefCell<Option<Waker>>>,
    registered: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now_us.get() >= self.at_us {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        if !self.registered {
            self.registered = true;
            let key = (self.at_us, self.executor.fresh());
            self.executor.timers.borrow_mut().insert(key, Rc::downgrade(&self.waker));
        }
        Poll::Pending
    }
}
