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
mod schema;
mod store;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use dosql_proto::{
    CdcProtocol, CdcRequest, Closed, Committed, Error, ErrorCode, InDoubt, RouterProtocol, RouterRequest,
    ShardProtocol, ShardReply, ShardRequest, WalAcked, cdc_request, router_request, shard_reply, shard_request,
};

use self::cursors::Cursors;
use self::store::{Doubt, Failure, Store};
use crate::runtime::{Actor, Call, Context, Handled};

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
        told.committed.set(store.log.last_lsn);
        let mut shard = Self { context, store, cursors: Cursors::default(), told, alarm_ms: 0 };
        shard.set_alarm();
        Ok(shard)
    }

    async fn handle(&mut self, request: ShardRequest, call: &Call) -> Handled<ShardReply> {
        let Some(request) = request.request else {
            return Handled::Reply(Err(Error::invalid("an empty request to a shard")));
        };
        self.store.set_deadline(call.deadline_ms);
        match self.answer(request) {
            Ok(reply) => Handled::Reply(Ok(ShardReply { reply: Some(reply), ..ShardReply::default() })),
            Err(Failure::Refused(error)) => Handled::Reply(Err(error)),
            Err(Failure::Crash(error)) => Handled::Crash(error),
        }
    }

    async fn settle(&mut self) -> Result<(), Error> {
        self.store.commit()?;
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

impl Shard {
    fn answer(&mut self, request: shard_request::Request) -> Result<shard_reply::Reply, Failure> {
        use shard_reply::Reply;
        use shard_request::Request;
        Ok(match request {
            Request::Execute(request) => Reply::Executed(self.store.execute(&request)?),
            Request::Load(request) => Reply::Executed(self.store.load(&request)?),
            Request::Query(request) => {
                self.cursors.expire(self.context.now_ms());
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
            Request::ReadWal(request) => Reply::Wal(self.store.read_wal(&request)?),
            Request::AckWal(request) => Reply::Acked(WalAcked { lsn: self.store.acknowledge(&request)? }),
            Request::Status(_) => Reply::Status(self.store.status()?),
            Request::Fence(_) | Request::Configure(_) | Request::ReadSnapshot(_) | Request::Replicate(_) => {
                return Err(Error::new(ErrorCode::Unsupported, "replicas are not supported by this shard").into());
            }
            Request::Validate(request) => Reply::Transaction(self.store.validate(&request)?),
            Request::Finish(request) => Reply::Transaction(self.store.finish_transaction(&request)?),
            Request::RollbackTo(request) => Reply::Transaction(self.store.rollback_to(&request)?),
        })
    }

    /// Has the alarm ring when something is due. One that is set already and rings sooner is left alone.
    fn set_alarm(&mut self) {
        let Some(due_ms) = self.cursors.due().into_iter().chain(self.store.doubt_due()).min() else { return };
        let now_ms = self.context.now_ms();
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
        let lsn = self.store.log.last_lsn;
        if self.told.committed.replace(lsn) == lsn || self.told.telling.replace(true) {
            return;
        }
        let (context, told) = (self.context.clone(), Rc::clone(&self.told));
        self.context.spawn(async move {
            loop {
                let lsn = told.committed.get();
                let committed = Committed { shard: context.address().name.clone(), lsn };
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
