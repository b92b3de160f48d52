//! The change stream: pulls committed records from the shards' logs, serves subscribers, and drives delivery to the lake.
//!
//! Where a subscriber stands, the subscriber says, unless it has a durable subscription. Where the lake stands, the lake says; and
//! the shards keep what the lake has not committed or a durable subscription needs. In storage are the durable subscriptions,
//! and the records that the lake could not be given for a while.

mod choice;
mod delivery;
mod durable;
mod fallback;
mod filter;
mod recent;
mod shards;
mod snapshot;
mod start;
mod subscription;
#[cfg(test)]
mod subscription_tests;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use dosql_proto::{
    CdcNoted, CdcProtocol, CdcReply, CdcRequest, CdcStatus, Error, SubscriptionNoted, cdc_reply::Reply,
    cdc_request::Request,
};

use self::durable::Durable;
use self::fallback::Fallback;
use self::shards::Shards;
use crate::runtime::{Actor, Call, Context, Handled, ToTheEnd};

/// The actor `cdc/default`. See the [module](self).
pub struct Cdc {
    shards: Rc<Shards>,
    ticking: Rc<Cell<bool>>,
}

impl Actor for Cdc {
    type Protocol = CdcProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let storage = Rc::new(context.open_storage()?);
        let durable = Durable::open(Rc::clone(&storage))?;
        let fallback = Fallback::open(storage, context.settings().cdc_fallback_size)?;
        let shards = Rc::new(Shards::new(context.clone(), durable, fallback));
        // Before anything is acknowledged: what durable subscriptions need must be kept.
        shards.durable.borrow_mut().tend(&shards)?;
        context.spawn(delivery::run(Rc::clone(&shards)));
        let cdc = Self { shards, ticking: Rc::default() };
        cdc.tick();
        Ok(cdc)
    }

    async fn handle(&mut self, request: CdcRequest, call: &Call) -> Handled<CdcReply> {
        let answer = |reply| Ok(CdcReply { reply: Some(reply) });
        let shards = Rc::clone(&self.shards);
        match request.request {
            None => Handled::Reply(Err(Error::invalid("an empty request to the change stream"))),
            Some(Request::Committed(committed)) => {
                if !shards.is_shard(&committed.shard) {
                    return Handled::Reply(Err(Error::invalid(format!("{} is no shard", committed.shard))));
                }
                shards.committed(&committed.shard, committed.lsn);
                Handled::Reply(answer(Reply::Noted(CdcNoted {})))
            }
            Some(Request::Status(_)) => Handled::Reply(answer(Reply::Status(CdcStatus { shards: shards.status() }))),
            Some(Request::Poll(poll)) => {
                let call = call.clone();
                let polled = async move {
                    subscription::poll(shards, poll, &call).await.and_then(|batch| answer(Reply::Changes(batch)))
                };
                Handled::WhileAsked(Box::pin(polled), ToTheEnd::default())
            }
            Some(Request::Open(subscription)) => Handled::Later(Box::pin(async move {
                durable::open(&shards, subscription).await.and_then(|opened| answer(Reply::Opened(opened)))
            })),
            Some(Request::Acknowledge(request)) => Handled::Later(Box::pin(async move {
                let noted = durable::acknowledge(&shards, request).await;
                noted.and_then(|subscription| answer(noted_reply(subscription)))
            })),
            Some(Request::List(_)) => {
                let listed = shards.durable.borrow().list(&shards);
                Handled::Reply(listed.and_then(|list| answer(Reply::Subscriptions(list))))
            }
            Some(Request::Drop(request)) => {
                let noted = shards.durable.borrow_mut().drop_one(&shards, &request.name);
                Handled::Reply(noted.and_then(|subscription| answer(noted_reply(subscription))))
            }
            Some(Request::FlushLake(_)) => {
                let call = call.clone();
                Handled::Later(Box::pin(async move {
                    delivery::flush(shards, call).await.and_then(|flushed| answer(Reply::Flushed(flushed)))
                }))
            }
        }
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        self.tick();
        Ok(())
    }
}

fn noted_reply(subscription: dosql_proto::DurableSubscription) -> Reply {
    Reply::Subscription(SubscriptionNoted { subscription: Some(subscription) })
}

impl Cdc {
    /// Looks for news, beside whatever goes on, and sees to it that the next look comes.
    fn tick(&self) {
        let context = &self.shards.context;
        context.set_alarm(context.now_ms() + context.settings().cdc_batch_timeout_ms);
        if self.ticking.replace(true) {
            return;
        }
        let (shards, ticking) = (Rc::clone(&self.shards), Rc::clone(&self.ticking));
        context.spawn(async move {
            delivery::tick(&shards).await;
            if let Err(error) = shards.durable.borrow_mut().tend(&shards) {
                tracing::warn!(%error, "durable subscriptions could not be looked after");
            }
            ticking.set(false);
        });
    }
}
