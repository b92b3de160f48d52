//! What a member of a shard shares with the futures it leaves running: how far its replicas are, and what it is to fetch next.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dosql_proto::{
    Error, ErrorCode, ReadSnapshot, ReadWal, Replicate, ShardProtocol, ShardReply, ShardRequest, WalBatch,
    replicate::Fetched, shard_reply::Reply, shard_request::Request,
};
use futures_util::future::select;

use super::store::Store;
use crate::news::News;
use crate::runtime::{Call, Context};

/// How long a primary may take to answer beyond the time that it waits for news, in milliseconds.
const FETCH_TIMEOUT_MS: u64 = 5_000;

/// First pause after a failure, in milliseconds; doubles.
const SHORTEST_PAUSE_MS: u64 = 20;
const LONGEST_PAUSE_MS: u64 = 1_000;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Replication {
    /// Something below has changed.
    news: News,
    /// The last LSN in storage.
    committed: Cell<u64>,
    /// The transaction that is prepared there; "" where none is.
    prepared: RefCell<String>,
    epoch: Cell<u64>,
    /// Whether this member is the primary of that epoch.
    primary: Cell<bool>,
    has_replicas: Cell<bool>,
    /// The first record of the epoch.
    begin: Cell<u64>,
    /// Up to where each replica has everything in its storage.
    acks: RefCell<BTreeMap<String, u64>>,
    /// Of a replica: what to ask its primary next.
    want: RefCell<Option<Want>>,
    /// Whether the future that asks runs.
    pub(super) following: Cell<bool>,
    fresh_at_ms: Cell<u64>,
    number: Cell<u64>,
}

/// A question for the primary.
#[derive(Clone)]
struct Want {
    primary: String,
    epoch: u64,
    request: Request,
    /// What is in storage.
    lsn: u64,
}

impl Replication {
    /// Takes note of what is in storage now, and says whether there is a primary to follow.
    pub(super) fn refresh(&self, store: &Store) -> Result<bool, Error> {
        let member = &store.member;
        let (epoch, primary) = (member.state.epoch, member.is_primary());
        if epoch != self.epoch.get() || primary != self.primary.get() {
            self.acks.borrow_mut().clear();
        }
        let before = (self.committed.get(), self.epoch.get(), self.primary.get());
        self.committed.set(store.log.last_lsn);
        self.epoch.set(epoch);
        self.primary.set(primary);
        self.has_replicas.set(member.has_replicas());
        self.begin.set(member.epoch_begin());
        let prepared = if member.has_replicas() { store.prepared_id()? } else { String::new() };
        let changed_prepared = self.prepared.replace(prepared.clone()) != prepared;
        let follows = member.is_replica() && member.state.promised == epoch;
        let changed = (store.log.last_lsn, epoch, primary) != before || changed_prepared;
        *self.want.borrow_mut() = if follows { Some(want(store)?) } else { None };
        if changed || follows {
            self.news.announce();
        }
        Ok(follows)
    }

    /// Notes what a replica has.
    pub(super) fn acknowledged(&self, request: &ReadWal) {
        self.acks.borrow_mut().insert(request.replica.clone(), request.after_lsn);
        self.news.announce();
    }

    /// Up to where each of these members has everything, at least; `None` where one has not said.
    pub(super) fn held(&self, members: &[String], myself: &str) -> Option<u64> {
        let acks = self.acks.borrow();
        let others = members.iter().filter(|name| *name != myself);
        others.map(|name| acks.get(name).copied().unwrap_or(0)).min()
    }

    /// Up to where no promotion loses anything: a replica has it, too, and knows the epoch. `None` where that is not known.
    pub(super) fn replicated_lsn(&self) -> Option<u64> {
        if !self.has_replicas.get() {
            return Some(self.committed.get());
        }
        let best = self.acks.borrow().values().copied().max()?;
        (best >= self.begin.get()).then_some(best)
    }

    /// When this replica is known to have been as its primary.
    pub(super) fn fresh_at_ms(&self) -> u64 {
        self.fresh_at_ms.get()
    }

    /// Completes when a replica has everything up to an LSN.
    ///
    /// # Errors
    /// `NOT_PRIMARY` where another epoch begins meanwhile, `DEADLINE_EXCEEDED`: what was written may be lost, or not.
    pub(super) async fn wait(self: Rc<Self>, context: Context, lsn: u64, call: Call) -> Result<(), Error> {
        let (epoch, primary) = (self.epoch.get(), self.primary.get());
        loop {
            let news = self.news.next();
            if self.epoch.get() != epoch || !primary || !self.primary.get() {
                let message = "a promotion began before a replica had what was written; it may be lost or not";
                return Err(Error::retryable(ErrorCode::NotPrimary, message, 20));
            }
            if self.replicated_lsn().is_some_and(|replicated| replicated >= lsn) {
                return Ok(());
            }
            let left_ms = match call.deadline_ms {
                0 => LONGEST_PAUSE_MS,
                deadline_ms => deadline_ms.saturating_sub(context.now_ms()),
            };
            if left_ms == 0 {
                let message =
                    "no replica has acknowledged what was written; it is on the primary and may be lost with it";
                return Err(Error::retryable(ErrorCode::DeadlineExceeded, message, 0));
            }
            select(Box::pin(news), Box::pin(context.sleep(Duration::from_millis(left_ms)))).await;
        }
    }

    /// Waits until there is more than a replica has, or until it is time to say that there is not. `prepared`: the transaction
    /// that is prepared.
    pub(super) async fn wait_for_news(
        self: Rc<Self>,
        context: Context,
        batch: WalBatch,
        prepared: String,
        wait_ms: u64,
    ) -> WalBatch {
        let until_ms = context.now_ms() + wait_ms;
        let epoch = self.epoch.get();
        loop {
            let news = self.news.next();
            let left_ms = until_ms.saturating_sub(context.now_ms());
            let moved = self.committed.get() > batch.last_lsn || *self.prepared.borrow() != prepared;
            if moved || self.epoch.get() != epoch || left_ms == 0 {
                return WalBatch { last_lsn: self.committed.get(), ..batch };
            }
            select(Box::pin(news), Box::pin(context.sleep(Duration::from_millis(left_ms)))).await;
        }
    }

    fn next_number(&self, now_ms: u64) -> u64 {
        // Above those of earlier incarnations, too.
        let number = (now_ms << 16).max(self.number.get() + 1);
        self.number.set(number);
        number
    }
}

fn want(store: &Store) -> Result<Want, Error> {
    let state = &store.member.state;
    let replica = store.name().to_owned();
    let max_bytes = store.batch_size();
    let lsn = store.log.last_lsn;
    let request = match &state.snapshot {
        Some(place) => Request::ReadSnapshot(ReadSnapshot { replica, place: Some(place.clone()), max_bytes }),
        None => Request::ReadWal(ReadWal {
            after_lsn: lsn,
            max_bytes,
            after_epoch: state.epochs.last().map_or(0, |start| start.epoch),
            after_request: store.last_request()?,
            prepared: store.prepared_id()?,
            replica,
            ..ReadWal::default()
        }),
    };
    Ok(Want { primary: state.primary.clone(), epoch: state.epoch, request, lsn })
}

/// Fetches from the primary, for ever, what this member lacks while it is a replica, and hands it to the member itself.
pub(super) async fn follow(context: Context, shared: Rc<Replication>) {
    let mut pause_ms = SHORTEST_PAUSE_MS;
    loop {
        let news = shared.news.next();
        let want = shared.want.borrow().clone();
        let Some(want) = want else {
            news.await;
            continue;
        };
        match step(&context, &shared, want).await {
            Ok(()) => pause_ms = SHORTEST_PAUSE_MS,
            Err(error) => {
                tracing::debug!(member = %context.address(), %error, "the primary cannot be followed");
                let pause = pause_ms / 2 + context.random_u64() % (pause_ms / 2 + 1);
                context.sleep(Duration::from_millis(pause)).await;
                pause_ms = (pause_ms * 2).min(LONGEST_PAUSE_MS);
            }
        }
    }
}

async fn step(context: &Context, shared: &Replication, want: Want) -> Result<(), Error> {
    let asked_ms = context.now_ms();
    let number = shared.next_number(asked_ms);
    let wait_ms = context.settings().replica_poll_ms;
    let mut request = want.request;
    let mut prepared = String::new();
    if let Request::ReadWal(read) = &mut request {
        read.wait_ms = wait_ms;
        prepared.clone_from(&read.prepared);
    }
    let fetched = match ask(context, &want.primary, request, want.epoch, wait_ms).await {
        Ok(reply) if reply.epoch != want.epoch => return Err(Error::internal("the primary is of another epoch")),
        Ok(ShardReply { reply: Some(Reply::Wal(batch)), .. }) => {
            if !brings(&batch, &prepared) {
                if batch.last_lsn <= want.lsn {
                    shared.fresh_at_ms.set(asked_ms.max(shared.fresh_at_ms.get()));
                }
                // There is news where the LSN is a later one: asked again, the primary tells it.
                return Ok(());
            }
            Fetched::Records(batch)
        }
        Ok(ShardReply { reply: Some(Reply::Snapshot(part)), .. }) => Fetched::Part(part),
        Ok(_) => return Err(Error::internal("the primary answered something else than its log")),
        Err(error) if error.code() == ErrorCode::UnknownPosition => Fetched::StartOver(error.message),
        Err(error) => return Err(error),
    };
    let replicate = Replicate { epoch: want.epoch, fetched: Some(fetched), asked_ms, number };
    let myself = &context.address().name;
    ask(context, myself, Request::Replicate(replicate), want.epoch, 0).await.map(|_| ())
}

/// Whether a batch tells anything to a replica on which this transaction is prepared.
pub(super) fn brings(batch: &WalBatch, prepared: &str) -> bool {
    let now_prepared = batch.prepared.as_ref().map_or("", |prepared| prepared.id.as_str());
    !batch.records.is_empty() || !batch.outcomes.is_empty() || now_prepared != prepared
}

async fn ask(context: &Context, member: &str, request: Request, epoch: u64, wait_ms: u64) -> Result<ShardReply, Error> {
    let call = Call::system().within(context.now_ms(), wait_ms + FETCH_TIMEOUT_MS);
    let request = ShardRequest { request: Some(request), epoch, ..ShardRequest::default() };
    context.ask::<ShardProtocol>(member, request, &call).await
}
