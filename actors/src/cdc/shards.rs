//! What the change stream knows of each shard, and how it reads them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{
    AckWal, CdcShardStatus, Error, ErrorCode, LakePositions, ReadWal, RouterProtocol, RouterReply, RouterRequest,
    ShardProtocol, ShardReply, ShardRequest, ShardStatusRequest, TopologyRequest, WalBatch, WalRecord, router_reply,
    router_request, shard_reply, shard_request,
};
use futures_util::{StreamExt, stream};

use super::durable::Durable;
use super::fallback::Fallback;
use super::filter::Filter;
use super::recent::Recent;
use crate::news::News;
use crate::runtime::{Call, Context};

/// Bytes of recent records kept for subscribers, all shards together.
const RECENT_BYTES: usize = 16 << 20;

/// Row filters kept for the next poll.
const FILTERS: usize = 64;

/// Shards asked at a time.
const PARALLEL: usize = 32;

/// The consumer under which the lake's progress, and that of durable subscriptions, is acknowledged to the shards.
const CONSUMER: &str = "lake";

/// How long the router may take to say which members are primaries, in milliseconds.
const TOPOLOGY_TIMEOUT_MS: u64 = 2_000;

/// One shard as the change stream knows it.
#[derive(Default)]
struct ShardState {
    /// Its primary, where the router has said which; "": the member that has the shard's name.
    primary: String,
    /// Its epoch, as far as it is known: in another one a shard answers no query.
    epoch: u64,
    /// Whether the shard itself has said where it stands.
    known: bool,
    last_lsn: u64,
    delivered_lsn: u64,
    durable_lsn: u64,
    /// What the shard has acknowledged to have been told of `durable_lsn`.
    acked_lsn: Option<u64>,
    /// Records after this one are kept for durable subscriptions.
    held_lsn: Option<u64>,
    recent: Recent,
    /// Why the delivery to the lake does not move.
    trouble: Option<Error>,
}

/// What a shard keeps of its log.
pub(super) struct Retained {
    /// The lowest LSN.
    pub(super) oldest_lsn: u64,
    /// The highest LSN that is seen: a replica has it, too.
    pub(super) last_lsn: u64,
    /// The highest LSN. After a restart the shard may take a while to learn that a replica has it.
    pub(super) written_lsn: u64,
}

impl Retained {
    /// Fails where an LSN of the shard is in the future.
    ///
    /// # Errors
    /// `UNKNOWN_POSITION`; `UNAVAILABLE` where it is not known whether a replica has it.
    pub(super) fn check(&self, name: &str, lsn: u64) -> Result<(), Error> {
        let Self { oldest_lsn, last_lsn, written_lsn } = *self;
        if lsn > written_lsn {
            let message = format!("LSN {lsn} of {name} is in the future; retained are LSN {oldest_lsn} to {last_lsn}");
            return Err(Error::new(ErrorCode::UnknownPosition, message));
        }
        if lsn > last_lsn { Err(not_replicated(name)) } else { Ok(()) }
    }
}

/// A shard that has restarted does not know, until a replica says so, that what it has is on a replica, too.
pub(super) fn not_replicated(shard: &str) -> Error {
    let message = format!("no replica of {shard} has said that it has the next records");
    Error::retryable(ErrorCode::Unavailable, message, 0)
}

/// Everything the change stream's futures share.
pub(super) struct Shards {
    pub(super) context: Context,
    shards: RefCell<BTreeMap<String, ShardState>>,
    pub(super) durable: RefCell<Durable>,
    pub(super) fallback: RefCell<Fallback>,
    /// Row filters of late, by their text.
    filters: RefCell<BTreeMap<String, Rc<Filter>>>,
    recent_bytes: usize,
    /// A shard has committed something.
    pub(super) commits: News,
    /// The delivery to the lake has moved.
    pub(super) progress: News,
    /// It is time to try again what failed.
    pub(super) ticks: News,
    /// Whether the lake has said where it stands.
    pub(super) lake_known: Cell<bool>,
    topology_asked_ms: Cell<u64>,
    /// Whether the router has ever said which members are primaries.
    topology_known: Cell<bool>,
}

impl Shards {
    pub(super) fn new(context: Context, durable: Durable, fallback: Fallback) -> Self {
        let shards: BTreeMap<_, _> =
            context.settings().shard_names().map(|name| (name, ShardState::default())).collect();
        let recent_bytes = RECENT_BYTES / shards.len().max(1);
        Self {
            context,
            shards: RefCell::new(shards),
            durable: RefCell::new(durable),
            fallback: RefCell::new(fallback),
            filters: RefCell::default(),
            recent_bytes,
            commits: News::default(),
            progress: News::default(),
            ticks: News::default(),
            lake_known: Cell::new(false),
            topology_asked_ms: Cell::new(0),
            topology_known: Cell::new(false),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.shards.borrow().keys().cloned().collect()
    }

    pub(super) fn is_shard(&self, name: &str) -> bool {
        self.shards.borrow().contains_key(name)
    }

    /// The filter of a text; kept for the next poll of whoever has it.
    pub(super) fn filter(&self, text: &str) -> Result<Rc<Filter>, Error> {
        if let Some(filter) = self.filters.borrow().get(text) {
            return Ok(Rc::clone(filter));
        }
        let filter = Rc::new(Filter::new(&self.context, text)?);
        let mut filters = self.filters.borrow_mut();
        if filters.len() >= FILTERS {
            filters.clear();
        }
        filters.insert(text.to_owned(), Rc::clone(&filter));
        Ok(filter)
    }

    /// Reads from one shard's state; a name that is no shard's has the state of an empty one.
    fn get<T>(&self, name: &str, read: impl FnOnce(&ShardState) -> T) -> T {
        match self.shards.borrow().get(name) {
            Some(state) => read(state),
            None => read(&ShardState::default()),
        }
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut ShardState)) {
        if let Some(state) = self.shards.borrow_mut().get_mut(name) {
            change(state);
        }
    }

    pub(super) fn last_lsn(&self, name: &str) -> u64 {
        self.get(name, |state| state.last_lsn)
    }

    pub(super) fn delivered_lsn(&self, name: &str) -> u64 {
        self.get(name, |state| state.delivered_lsn)
    }

    pub(super) fn durable_lsn(&self, name: &str) -> u64 {
        self.get(name, |state| state.durable_lsn)
    }

    pub(super) fn trouble(&self, name: &str) -> Option<Error> {
        self.get(name, |state| state.trouble.clone())
    }

    pub(super) fn set_trouble(&self, name: &str, trouble: Option<Error>) {
        self.with(name, |state| state.trouble = trouble);
    }

    pub(super) fn status(&self) -> Vec<CdcShardStatus> {
        self.shards
            .borrow()
            .iter()
            .map(|(name, state)| {
                let (fallback_records, fallback_bytes) = self.fallback.borrow().size(name);
                CdcShardStatus {
                    shard: name.clone(),
                    last_lsn: state.last_lsn,
                    delivered_lsn: state.delivered_lsn,
                    durable_lsn: state.durable_lsn,
                    fallback_records,
                    fallback_bytes,
                }
            })
            .collect()
    }

    /// Notes that a shard has committed up to `lsn`.
    pub(super) fn committed(&self, name: &str, lsn: u64) {
        let mut news = false;
        self.with(name, |state| {
            news = lsn > state.last_lsn;
            state.last_lsn = lsn.max(state.last_lsn);
        });
        if news {
            self.commits.announce();
        }
    }

    /// Notes how far a shard has been delivered to the lake's buffer; it may go back, where the lake has lost its buffer.
    pub(super) fn set_delivered(&self, name: &str, lsn: u64) {
        self.with(name, |state| state.delivered_lsn = lsn);
        self.progress.announce();
    }

    /// The member that is the primary, and its epoch, as far as is known.
    fn primary(&self, name: &str) -> (String, u64) {
        self.get(name, |state| {
            let member = if state.primary.is_empty() { name.to_owned() } else { state.primary.clone() };
            (member, state.epoch)
        })
    }

    /// The shard's epoch, as far as is known: it is another one after each promotion.
    pub(super) fn epoch(&self, name: &str) -> u64 {
        self.get(name, |state| state.epoch)
    }

    /// Asks a shard's primary.
    pub(super) async fn ask(&self, name: &str, request: shard_request::Request) -> Result<shard_reply::Reply, Error> {
        let asked = self.primary(name);
        match self.ask_member(name, &asked, request.clone()).await {
            Err(error) if error.retryable => {
                self.find_primaries().await;
                let found = self.primary(name);
                // It was refused, and so not done.
                if error.code() == ErrorCode::NotPrimary && found != asked {
                    return self.ask_member(name, &found, request).await;
                }
                Err(error)
            }
            answer => answer,
        }
    }

    async fn ask_member(
        &self,
        name: &str,
        (member, epoch): &(String, u64),
        request: shard_request::Request,
    ) -> Result<shard_reply::Reply, Error> {
        let call = Call::system().within(self.context.now_ms(), self.context.settings().shard_timeout_ms);
        let request = ShardRequest { request: Some(request), epoch: *epoch, ..ShardRequest::default() };
        let ShardReply { reply, epoch } = self.context.ask::<ShardProtocol>(member, request, &call).await?;
        self.with(name, |state| state.epoch = state.epoch.max(epoch));
        match reply {
            Some(shard_reply::Reply::Status(status)) => {
                let state = status.member.clone().unwrap_or_default();
                if state.members.len() > 1 && !self.topology_known.get() {
                    // It may have been replaced without having heard of it.
                    self.find_primaries().await;
                    if !self.topology_known.get() {
                        let message = format!("the router has not said which member of {name} is the primary");
                        return Err(Error::retryable(ErrorCode::Unavailable, message, 0));
                    }
                }
                if (!state.primary.is_empty() && state.primary != *member) || self.primary(name).0 != *member {
                    return Err(Error::retryable(ErrorCode::NotPrimary, format!("{member} is a replica"), 0));
                }
                Ok(shard_reply::Reply::Status(status))
            }
            reply => reply.ok_or_else(|| Error::internal(format!("{member} gave an empty answer"))),
        }
    }

    /// Has the router say which members are the shards' primaries; not more often than delivery is retried.
    async fn find_primaries(&self) {
        let now_ms = self.context.now_ms();
        let settings = self.context.settings();
        if now_ms < self.topology_asked_ms.get() + settings.cdc_retry_delay_ms {
            return;
        }
        self.topology_asked_ms.set(now_ms);
        let request = RouterRequest { request: Some(router_request::Request::Topology(TopologyRequest {})) };
        let call = Call::system().within(now_ms, TOPOLOGY_TIMEOUT_MS);
        match self.context.ask::<RouterProtocol>("default", request, &call).await {
            Ok(RouterReply { reply: Some(router_reply::Reply::Topology(topology)) }) => {
                self.topology_known.set(true);
                for shard in topology.shards {
                    self.with(&shard.shard, |state| {
                        if shard.epoch >= state.epoch {
                            (state.primary, state.epoch) = (shard.primary, shard.epoch);
                        }
                    });
                }
            }
            Ok(_) => tracing::warn!("the router answered something else than the topology"),
            Err(error) => tracing::debug!(%error, "the router does not say which members are primaries"),
        }
    }

    /// Reads a shard's records after an LSN.
    pub(super) async fn read(&self, name: &str, after_lsn: u64, max_bytes: usize) -> Result<WalBatch, Error> {
        let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX);
        let known_lsn = self.last_lsn(name);
        match self
            .ask(
                name,
                shard_request::Request::ReadWal(ReadWal {
                    after_lsn,
                    max_bytes,
                    replicated: true,
                    ..ReadWal::default()
                }),
            )
            .await
        {
            Ok(shard_reply::Reply::Wal(batch)) if batch.last_lsn < known_lsn && !batch.replicated => {
                let now = batch.last_lsn;
                Err(Error::internal(format!(
                    "{name} has lost records: it had committed LSN {known_lsn}, now {now} is its last"
                )))
            }
            Ok(shard_reply::Reply::Wal(batch)) => {
                self.committed(name, batch.last_lsn);
                Ok(batch)
            }
            Ok(_) => Err(Error::internal(format!("{name} answered something else than its log"))),
            Err(error) => Err(Error { message: format!("{name}: {}", error.message), ..error }),
        }
    }

    /// What a shard keeps, as it says itself.
    pub(super) async fn retained(&self, name: &str) -> Result<Retained, Error> {
        match self.ask(name, shard_request::Request::Status(ShardStatusRequest {})).await? {
            shard_reply::Reply::Status(status) => {
                let Some(last_lsn) = status.replicated_lsn else {
                    let message = format!("{name}: no replica has said how far it has come");
                    return Err(Error::retryable(ErrorCode::Unavailable, message, 0));
                };
                self.with(name, |state| state.known = true);
                self.committed(name, last_lsn);
                Ok(Retained { oldest_lsn: status.oldest_lsn, last_lsn, written_lsn: status.last_lsn })
            }
            _ => Err(Error::internal(format!("{name} answered something else than its status"))),
        }
    }

    /// Has a shard that was never heard of say where it stands.
    pub(super) async fn make_known(&self, name: &str) -> Result<(), Error> {
        if !self.get(name, |state| state.known) {
            self.retained(name).await?;
        }
        Ok(())
    }

    /// Asks a shard whether it has committed what it did not tell.
    pub(super) async fn refresh(&self, name: &str) -> Result<(), Error> {
        if self.get(name, |state| state.known) {
            self.read(name, self.last_lsn(name), 1).await?;
        } else {
            self.retained(name).await?;
        }
        Ok(())
    }

    /// Asks every shard whether it has committed what it did not tell. All are asked, even where one fails.
    ///
    /// # Errors
    /// The first one.
    pub(super) async fn refresh_all(&self) -> Result<(), Error> {
        let names = self.names();
        let mut answers = stream::iter(&names).map(|name| self.refresh(name)).buffer_unordered(PARALLEL);
        let mut outcome = Ok(());
        while let Some(answer) = answers.next().await {
            outcome = outcome.and(answer);
        }
        outcome
    }

    /// Records for a subscriber, who is likely to be one of many near the end: they are kept for the others.
    pub(super) async fn recent(&self, name: &str, after: u64, max_bytes: usize) -> Result<Vec<Rc<WalRecord>>, Error> {
        if let Some(records) = self.get(name, |state| state.recent.after(after, max_bytes)) {
            return Ok(records);
        }
        let batch = self.read(name, after, max_bytes).await?;
        let records: Vec<Rc<WalRecord>> = batch.records.into_iter().map(Rc::new).collect();
        self.with(name, |state| state.recent.keep(&records, self.recent_bytes));
        Ok(records)
    }

    /// Notes what the lake has committed; acknowledges it to the shards, beside whatever goes on.
    pub(super) fn durable(self: &Rc<Self>, positions: &LakePositions) {
        for position in &positions.shards {
            self.with(&position.shard, |state| state.durable_lsn = state.durable_lsn.max(position.durable_lsn));
            if let Err(error) = self.fallback.borrow_mut().forget(&position.shard, position.durable_lsn) {
                tracing::warn!(shard = position.shard, %error, "what the lake has could not be deleted here");
            }
        }
        self.progress.announce();
        self.acknowledge_due();
    }

    /// Has the shards keep the records after these LSNs, for durable subscriptions, and of the other shards none.
    pub(super) fn hold(self: &Rc<Self>, held: &BTreeMap<String, u64>) {
        for (name, state) in self.shards.borrow_mut().iter_mut() {
            state.held_lsn = held.get(name).copied();
        }
        self.acknowledge_due();
    }

    /// Up to where the records are in the lake or in the fallback storage.
    pub(super) fn kept_lsn(&self, name: &str) -> u64 {
        self.durable_lsn(name).max(self.fallback.borrow().last_lsn(name))
    }

    /// Up to where nobody needs the shard's records.
    fn unneeded_lsn(&self, name: &str, state: &ShardState) -> u64 {
        let kept = state.durable_lsn.max(self.fallback.borrow().last_lsn(name));
        state.held_lsn.map_or(kept, |held| held.min(kept))
    }

    /// The shards that are to be told how far nobody needs their records, and how far that is.
    fn unacknowledged(&self) -> Vec<(String, u64)> {
        let shards = self.shards.borrow();
        let due = shards.iter().map(|(name, state)| (name, state, self.unneeded_lsn(name, state)));
        due.filter(|(_, state, unneeded)| state.acked_lsn.is_none_or(|acked| acked < *unneeded))
            .map(|(name, _, unneeded)| (name.clone(), unneeded))
            .collect()
    }

    pub(super) fn acknowledge_due(self: &Rc<Self>) {
        let unacknowledged = !self.unacknowledged().is_empty();
        if unacknowledged {
            let shards = Rc::clone(self);
            self.context.spawn(async move { shards.acknowledge().await });
        }
    }

    /// Tells each shard how far nobody needs its records any longer; the first time, that somebody needs them at all.
    async fn acknowledge(&self) {
        let due = self.unacknowledged();
        let acknowledge = |(name, lsn): (String, u64)| async move {
            let request = AckWal { consumer: CONSUMER.to_owned(), lsn };
            match self.ask(&name, shard_request::Request::AckWal(request)).await {
                Ok(_) => self.with(&name, |state| state.acked_lsn = Some(lsn.max(state.acked_lsn.unwrap_or(0)))),
                // The next tick tries again.
                Err(error) => {
                    tracing::warn!(shard = name, %error, "what is no longer needed could not be acknowledged")
                }
            }
        };
        stream::iter(due).for_each_concurrent(PARALLEL, acknowledge).await;
    }
}
