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
    CdcProtocol, CdcRequest, Closed, Committed, Error, ErrorCode, ShardProtocol, ShardReply, ShardRequest, WalAcked,
    cdc_request, shard_reply, shard_request,
};

use self::cursors::{Cursors, IDLE_MS};
use self::store::{Failure, Store};
use crate::runtime::{Actor, Call, Context, Handled};

/// How long the change stream may take to note a commit before the next commit is told, in milliseconds.
const TELL_TIMEOUT_MS: u64 = 1_000;

/// One shard. See the [module](self).
pub struct Shard {
    context: Context,
    store: Store,
    cursors: Cursors,
    told: Rc<Told>,
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
        Ok(Self { context, store, cursors: Cursors::default(), told })
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
        Ok(())
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        self.expire_cursors();
        Ok(())
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
                let batch = self.store.query(&mut self.cursors, &request)?;
                if batch.cursor != 0 {
                    self.context.set_alarm(self.context.now_ms() + IDLE_MS);
                }
                Reply::Rows(batch)
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
            Request::Validate(_) | Request::Finish(_) | Request::RollbackTo(_) => {
                let message = "transactions over several messages are not supported by this shard";
                return Err(Error::new(ErrorCode::Unsupported, message).into());
            }
        })
    }

    fn expire_cursors(&mut self) {
        if let Some(due_ms) = self.cursors.expire(self.context.now_ms()) {
            self.context.set_alarm(due_ms);
        }
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
