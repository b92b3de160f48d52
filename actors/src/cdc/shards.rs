//! What the change stream knows of each shard, and how it reads them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use dosql_proto::{
    AckWal, CdcShardStatus, Error, ErrorCode, LakePositions, ReadWal, RouterProtocol, RouterReply, RouterRequest,
    ShardProtocol, ShardReply, ShardRequest, ShardStatusRequest, TopologyRequest, WalBatch, WalRecord, router_reply,
    router_request, shard_reply, shard_request,
};
use futures_util::{StreamExt, stream};
use prost::Message;

use crate::news::News;
use crate::runtime::{Call, Context};

/// Bytes of recent records kept for subscribers, all shards together.
const RECENT_BYTES: usize = 16 << 20;

/// Shards asked at a time.
const PARALLEL: usize = 32;

/// The consumer under which the lake's progress is acknowledged to the shards.
const CONSUMER: &str = "lake";

/// How long the router may take to say which members are primaries, in milliseconds.
const TOPOLOGY_TIMEOUT_MS: u64 = 2_000;

/// One shard as the change stream knows it.
#[derive(Default)]
struct ShardState {
    /// Its primary, where the router has said which; "": the member that has the shard's name.
    primary: String,
    /// Whether the shard itself has said where it stands.
    known: bool,
    last_lsn: u64,
    delivered_lsn: u64,
    durable_lsn: u64,
    /// What the shard has acknowledged to have been told of `durable_lsn`.
    acked_lsn: Option<u64>,
    recent: Recent,
    /// Why the delivery to the lake does not move.
    trouble: Option<Error>,
}

/// Everything the change stream's futures share.
pub(super) struct Shards {
    pub(super) context: Context,
    shards: RefCell<BTreeMap<String, ShardState>>,
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
}

impl Shards {
    pub(super) fn new(context: Context) -> Self {
        let shards: BTreeMap<_, _> =
            context.settings().shard_names().map(|name| (name, ShardState::default())).collect();
        let recent_bytes = RECENT_BYTES / shards.len().max(1);
        Self {
            context,
            shards: RefCell::new(shards),
            recent_bytes,
            commits: News::default(),
            progress: News::default(),
            ticks: News::default(),
            lake_known: Cell::new(false),
            topology_asked_ms: Cell::new(0),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.shards.borrow().keys().cloned().collect()
    }

    pub(super) fn is_shard(&self, name: &str) -> bool {
        self.shards.borrow().contains_key(name)
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
            .map(|(name, state)| CdcShardStatus {
                shard: name.clone(),
                last_lsn: state.last_lsn,
                delivered_lsn: state.delivered_lsn,
                durable_lsn: state.durable_lsn,
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

    async fn ask(&self, name: &str, request: shard_request::Request) -> Result<shard_reply::Reply, Error> {
        let member =
            self.get(name, |state| if state.primary.is_empty() { name.to_owned() } else { state.primary.clone() });
        let call = Call::system().within(self.context.now_ms(), self.context.settings().shard_timeout_ms);
        let request = ShardRequest { request: Some(request), ..ShardRequest::default() };
        match self.context.ask::<ShardProtocol>(&member, request, &call).await {
            Ok(ShardReply { reply: Some(shard_reply::Reply::Status(status)), .. })
                if status.member.as_ref().is_some_and(|state| !state.primary.is_empty() && state.primary != member) =>
            {
                self.find_primaries().await;
                Err(Error::retryable(ErrorCode::NotPrimary, format!("{member} is a replica"), 0))
            }
            Ok(reply) => reply.reply.ok_or_else(|| Error::internal(format!("{member} gave an empty answer"))),
            Err(error) => {
                if error.retryable {
                    self.find_primaries().await;
                }
                Err(error)
            }
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
                for shard in topology.shards {
                    self.with(&shard.shard, |state| state.primary = shard.primary);
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

    /// The lowest and the highest LSN a shard keeps, as it says itself.
    pub(super) async fn retained(&self, name: &str) -> Result<(u64, u64), Error> {
        match self.ask(name, shard_request::Request::Status(ShardStatusRequest {})).await? {
            shard_reply::Reply::Status(status) => {
                let Some(last_lsn) = status.replicated_lsn else {
                    let message = format!("{name}: no replica has said how far it has come");
                    return Err(Error::retryable(ErrorCode::Unavailable, message, 0));
                };
                self.with(name, |state| state.known = true);
                self.committed(name, last_lsn);
                Ok((status.oldest_lsn, last_lsn))
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
    async fn refresh(&self, name: &str) -> Result<(), Error> {
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
        }
        self.progress.announce();
        let unacknowledged = self.shards.borrow().values().any(ShardState::is_unacknowledged);
        if unacknowledged {
            let shards = Rc::clone(self);
            self.context.spawn(async move { shards.acknowledge().await });
        }
    }

    /// Tells each shard how far the lake no longer needs its records; the first time, that it needs them at all.
    async fn acknowledge(&self) {
        let due: Vec<(String, u64)> = self
            .shards
            .borrow()
            .iter()
            .filter(|(_, state)| state.is_unacknowledged())
            .map(|(name, state)| (name.clone(), state.durable_lsn))
            .collect();
        let acknowledge = |(name, lsn): (String, u64)| async move {
            let request = AckWal { consumer: CONSUMER.to_owned(), lsn };
            match self.ask(&name, shard_request::Request::AckWal(request)).await {
                Ok(_) => self.with(&name, |state| state.acked_lsn = Some(lsn.max(state.acked_lsn.unwrap_or(0)))),
                // The next tick tries again.
                Err(error) => tracing::warn!(shard = name, %error, "the lake's progress could not be acknowledged"),
            }
        };
        stream::iter(due).for_each_concurrent(PARALLEL, acknowledge).await;
    }
}

impl ShardState {
    fn is_unacknowledged(&self) -> bool {
        self.acked_lsn.is_none_or(|acked| acked < self.durable_lsn)
    }
}

/// The last records of a shard, without gaps.
#[derive(Default)]
struct Recent {
    records: VecDeque<(Rc<WalRecord>, usize)>,
    bytes: usize,
}

impl Recent {
    /// The records after an LSN up to about `max_bytes`, at least one, where they are kept.
    fn after(&self, after: u64, max_bytes: usize) -> Option<Vec<Rc<WalRecord>>> {
        let first = self.records.front()?.0.lsn;
        let skip = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for (record, size) in self.records.iter().skip(skip) {
            bytes += size;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(Rc::clone(record));
        }
        (!found.is_empty()).then_some(found)
    }

    fn keep(&mut self, records: &[Rc<WalRecord>], max_bytes: usize) {
        let last = self.records.back().map_or(0, |(record, _)| record.lsn);
        for record in records.iter().filter(|record| record.lsn > last) {
            let follows = self.records.back().is_none_or(|(kept, _)| kept.lsn + 1 == record.lsn);
            if !follows {
                self.records.clear();
                self.bytes = 0;
            }
            let size = record.encoded_len();
            self.bytes += size;
            self.records.push_back((Rc::clone(record), size));
        }
        while self.bytes > max_bytes {
            let Some((_, size)) = self.records.pop_front() else { break };
            self.bytes -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lsn: u64) -> Rc<WalRecord> {
        Rc::new(WalRecord { lsn, ..WalRecord::default() })
    }

    fn lsns(found: Option<Vec<Rc<WalRecord>>>) -> Vec<u64> {
        found.unwrap_or_default().iter().map(|record| record.lsn).collect()
    }

    #[test]
    fn recent_records_are_bounded_and_without_gaps() {
        let mut recent = Recent::default();
        let size = record(1).encoded_len();
        recent.keep(&[record(3), record(4), record(5)], 100 * size);
        recent.keep(&[record(4), record(5), record(6)], 100 * size);
        assert_eq!(lsns(recent.after(2, 100 * size)), [3, 4, 5, 6]);
        assert_eq!(lsns(recent.after(4, size)), [5]);
        assert_eq!(lsns(recent.after(4, 0)), [5]);
        assert!(recent.after(1, 100).is_none());
        assert!(recent.after(6, 100).is_none());
        recent.keep(&[record(7)], 2 * size);
        assert_eq!(lsns(recent.after(5, 100)), [6, 7]);
        assert!(recent.after(4, 100).is_none());
        recent.keep(&[record(20)], 100 * size);
        assert_eq!(lsns(recent.after(19, 100)), [20]);
        assert!(recent.after(6, 100).is_none());
    }
}
