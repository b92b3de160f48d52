//! The shard actor: one SQLite database, its LSNs and its log of row images.
//!
//! Writes are grouped: each request is a savepoint within one transaction, which [`Actor::settle`] commits for all of them, and
//! only then are they answered. Every request that changes something becomes one record of the log, in the same transaction.

mod apply;
mod capture;
mod cursors;
mod encoding;
mod guard;
mod log;
mod replication;
mod schema;
mod store;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use dosql_proto::shard_reply::Reply;
use dosql_proto::shard_request::Request;
use dosql_proto::{
    CdcProtocol, CdcRequest, Closed, Committed, Error, ErrorCode, InDoubt, ReadWal, RouterProtocol, RouterRequest,
    ShardProtocol, ShardReply, ShardRequest, ShardStatus, WalAcked, WalBatch, cdc_request, router_request,
};

use self::cursors::Cursors;
use self::replication::Replication;
use self::store::{Doubt, Failure, Store};
use crate::runtime::{Actor, Call, Context, Handled};

/// A replica is woken at least so often, in milliseconds, to go on following its primary.
const WAKE_REPLICA_MS: u64 = 5_000;

/// How long the change stream may take to note a commit before the next commit is told, in milliseconds.
const TELL_TIMEOUT_MS: u64 = 1_000;

/// How long a coordinator may take to answer, in milliseconds.
const ENQUIRY_TIMEOUT_MS: u64 = 5_000;

/// One shard. See the [module](self).
pub struct Shard {
    context: Context,
    store: Store,
    cursors: Cursors,
    told: Rc<Told>,
    replication: Rc<Replication>,
    /// When the alarm is set to; 0: it is not.
    alarm_ms: u64,
}

/// What the change stream has been told of.
#[derive(Default)]
struct Told {
    committed: Cell<u64>,
    telling: Cell<bool>,
}

impl Actor for Shard {
    type Protocol = ShardProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let store = Store::open(&context)?;
        let told = Rc::new(Told::default());
        let replication = Rc::<Replication>::default();
        let mut shard = Self { context, store, cursors: Cursors::default(), told, replication, alarm_ms: 0 };
        shard.refresh_replication()?;
        shard.told.committed.set(shard.replication.replicated_lsn().unwrap_or(0));
        shard.set_alarm();
        Ok(shard)
    }

    async fn handle(&mut self, request: ShardRequest, call: &Call) -> Handled<ShardReply> {
        let ShardRequest { request: Some(request), epoch, replicated } = request else {
            return Handled::Reply(Err(Error::invalid("an empty request to a shard")));
        };
        if let Err(error) = self.check_role(&request, epoch) {
            return Handled::Reply(Err(error));
        }
        let reads = matches!(request, Request::Query(_) | Request::Fetch(_));
        if reads && self.context.is_abandoned() {
            return Handled::Reply(Err(Error::retryable(ErrorCode::DeadlineExceeded, "nobody waits for the rows", 0)));
        }
        self.store.set_limits(call.deadline_ms, reads);
        let prepares = prepares(&request);
        let reads_log = match &request {
            Request::ReadWal(request) if !request.replica.is_empty() => {
                Some((request.prepared.clone(), request.wait_ms))
            }
            _ => None,
        };
        let reply = match self.answer(request) {
            Ok(reply) => reply,
            Err(Failure::Refused(error)) => return Handled::Reply(Err(error)),
            Err(Failure::Crash(error)) => return Handled::Crash(error),
        };
        let epoch = self.store.member.state.epoch;
        let reply_of = move |reply: Reply| ShardReply { reply: Some(reply), epoch };
        let (context, shared) = (self.context.clone(), Rc::clone(&self.replication));
        let needed = match (&reply, prepares) {
            _ if !self.store.member.has_replicas() => None,
            // Its record is the last one.
            (_, true) => Some(self.store.log.last_lsn),
            (Reply::Executed(executed), false) if replicated => Some(executed.lsn),
            (Reply::Transaction(noted), false) if replicated => Some(noted.lsn),
            _ => None,
        };
        if let Some(needed) = needed {
            let waiting = shared.wait(context, needed, call.clone());
            return Handled::Later(Box::pin(async move { waiting.await.map(|()| reply_of(reply)) }));
        }
        match (reply, reads_log) {
            (Reply::Wal(batch), Some((prepared, wait_ms)))
                if wait_ms > 0 && !replication::brings(&batch, &prepared) =>
            {
                let waiting = shared.wait_for_news(context, batch, prepared, wait_ms);
                Handled::Later(Box::pin(async move { Ok(reply_of(Reply::Wal(waiting.await))) }))
            }
            (reply, _) => Handled::Reply(Ok(reply_of(reply))),
        }
    }

    async fn settle(&mut self) -> Result<(), Error> {
        self.store.commit()?;
        self.refresh_replication()?;
        self.tell_change_stream();
        self.set_alarm();
        Ok(())
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        self.alarm_ms = 0;
        self.cursors.expire(self.context.now_ms());
        match self.store.doubt() {
            Ok(doubt) => {
                if let Some(doubt) = doubt {
                    self.enquire(doubt);
                }
                Ok(())
            }
            Err(Failure::Refused(error) | Failure::Crash(error)) => Err(error),
        }
    }
}

/// Whether a request prepares its transaction.
fn prepares(request: &Request) -> bool {
    let transaction = match request {
        Request::Execute(request) => request.transaction.as_ref(),
        Request::Load(request) => request.transaction.as_ref(),
        _ => None,
    };
    transaction.is_some_and(|transaction| transaction.prepare)
}

impl Shard {
    /// Fails where a request asks for what only a primary may do, or one of another epoch.
    fn check_role(&self, request: &Request, epoch: u64) -> Result<(), Error> {
        let member = &self.store.member;
        match request {
            Request::Query(query) if query.replica && member.is_replica() => member.check_follows(epoch),
            Request::Execute(_)
            | Request::Query(_)
            | Request::Load(_)
            | Request::Validate(_)
            | Request::Finish(_)
            | Request::RollbackTo(_)
            | Request::ReadSnapshot(_) => member.check_epoch(epoch),
            Request::ReadWal(request) if !request.replica.is_empty() => member.check_epoch(epoch),
            Request::ReadWal(ReadWal { replicated: true, .. }) | Request::AckWal(_) => member.check_primary(),
            Request::ReadWal(_)
            | Request::Fetch(_)
            | Request::Close(_)
            | Request::Status(_)
            | Request::Fence(_)
            | Request::Configure(_)
            | Request::Replicate(_) => Ok(()),
        }
    }

    /// Takes note of what is in storage now, for replicas and for following a primary.
    fn refresh_replication(&mut self) -> Result<(), Error> {
        let follows = self.replication.refresh(&self.store)?;
        self.store.fresh_at_ms = self.store.fresh_at_ms.max(self.replication.fresh_at_ms());
        if follows && !self.replication.following.replace(true) {
            self.context.spawn(replication::follow(self.context.clone(), Rc::clone(&self.replication)));
        }
        Ok(())
    }

    fn read_wal(&mut self, request: &ReadWal) -> Result<WalBatch, Error> {
        if !request.replica.is_empty() {
            let batch = self.store.read_for_replica(request)?;
            self.replication.acknowledged(request);
            return Ok(batch);
        }
        let mut batch = self.store.read_wal(request)?;
        for record in &mut batch.records {
            // What is not committed yet is nobody's business.
            record.prepared = None;
        }
        if request.replicated && self.store.member.has_replicas() {
            let replicated = self.replication.replicated_lsn().unwrap_or(0);
            batch.records.retain(|record| record.lsn <= replicated);
            batch.last_lsn = batch.last_lsn.min(replicated);
            batch.replicated = true;
        }
        Ok(batch)
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Execute(request) => Reply::Executed(self.store.execute(&request)?),
            Request::Load(request) => Reply::Executed(self.store.load(&request)?),
            Request::Query(request) => {
                self.cursors.expire(self.context.now_ms());
                self.store.fresh_at_ms = self.store.fresh_at_ms.max(self.replication.fresh_at_ms());
                Reply::Rows(self.store.query(&mut self.cursors, &request)?)
            }
            Request::Fetch(request) => {
                let now_ms = self.context.now_ms();
                self.cursors.expire(now_ms);
                Reply::Rows(self.cursors.fetch(request.cursor, now_ms)?)
            }
            Request::Close(request) => {
                self.cursors.close(request.cursor);
                Reply::Closed(Closed {})
            }
            Request::ReadWal(request) => Reply::Wal(self.read_wal(&request)?),
            Request::AckWal(request) => {
                self.store.log.held = self.replication.held(&self.store.member.state.members, self.store.name());
                Reply::Acked(WalAcked { lsn: self.store.acknowledge(&request)? })
            }
            Request::Status(_) => {
                self.store.fresh_at_ms = self.store.fresh_at_ms.max(self.replication.fresh_at_ms());
                let replicated_lsn = self.replication.replicated_lsn();
                Reply::Status(ShardStatus { replicated_lsn, ..self.store.status()? })
            }
            Request::Fence(request) => Reply::Fenced(self.store.fence(&request)?),
            Request::Configure(request) => Reply::Member(self.store.configure(request)?),
            Request::ReadSnapshot(request) => Reply::Snapshot(self.store.read_snapshot(&request)?),
            Request::Replicate(request) => Reply::Member(self.store.replicate(request)?),
            Request::Validate(request) => Reply::Transaction(self.store.validate(&request)?),
            Request::Finish(request) => Reply::Transaction(self.store.finish_transaction(&request)?),
            Request::RollbackTo(request) => Reply::Transaction(self.store.rollback_to(&request)?),
        })
    }

    /// Has the alarm ring when something is due. One that is set already and rings sooner is left alone.
    fn set_alarm(&mut self) {
        let now_ms = self.context.now_ms();
        let wake = self.store.member.is_replica().then(|| now_ms + WAKE_REPLICA_MS);
        let due = self.cursors.due().into_iter().chain(self.store.doubt_due()).chain(wake).min();
        let Some(due_ms) = due else { return };
        if self.alarm_ms < now_ms || due_ms < self.alarm_ms {
            self.alarm_ms = due_ms.max(now_ms);
            self.context.set_alarm(self.alarm_ms);
        }
    }

    /// Asks a coordinator about a transaction; it answers with a message of its own.
    fn enquire(&self, doubt: Doubt) {
        let shard = self.context.address().name.clone();
        let in_doubt = InDoubt { transaction: doubt.transaction, shard };
        let request = RouterRequest { request: Some(router_request::Request::InDoubt(in_doubt)) };
        let call = Call::system().within(self.context.now_ms(), ENQUIRY_TIMEOUT_MS);
        let asked = self.context.ask::<RouterProtocol>(&doubt.coordinator, request, &call);
        self.context.spawn(async move {
            if let Err(error) = asked.await {
                tracing::debug!(%error, "a coordinator did not answer");
            }
        });
    }

    /// Tells the change stream of new records, one message at a time; it looks for itself what it was not told of.
    fn tell_change_stream(&self) {
        // Of what a promotion may lose nobody hears.
        let Some(lsn) = self.replication.replicated_lsn().filter(|_| self.store.member.is_primary()) else { return };
        if self.told.committed.replace(lsn) == lsn || self.told.telling.replace(true) {
            return;
        }
        let (context, told) = (self.context.clone(), Rc::clone(&self.told));
        let shard = self.store.member.state.shard.clone();
        self.context.spawn(async move {
            loop {
                let lsn = told.committed.get();
                let committed = Committed { shard: shard.clone(), lsn };
                let request = CdcRequest { request: Some(cdc_request::Request::Committed(committed)) };
                let call = Call::system().within(context.now_ms(), TELL_TIMEOUT_MS);
                if let Err(error) = context.ask::<CdcProtocol>("default", request, &call).await {
                    tracing::debug!(%error, shard = %context.address(), "the change stream was not told of a commit");
                }
                if told.committed.get() == lsn {
                    told.telling.set(false);
                    return;
                }
            }
        });
    }
}
