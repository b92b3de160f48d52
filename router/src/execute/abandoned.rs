//! What an earlier incarnation of the router left prepared on shards and never decided.

use dosql_actors::Call;
use dosql_proto::{Ending, Error, ShardStatusRequest, shard_reply::Reply, shard_request::Request};

use super::Shared;
use super::endings::ROLLBACK_TIMEOUT_MS;

impl Shared {
    /// Rolls back, on all shards that can be reached, what is prepared there and was never decided. Shards ask by themselves what
    /// became of their transactions, but a router hears that only once it has started; and it cannot start while such a
    /// transaction's lock is in the way of a schema change that has to be finished first. Only before there are transactions of
    /// this incarnation.
    pub(super) async fn end_abandoned(&self) {
        let shards: Vec<usize> = (0..self.catalog.borrow().shards.len()).collect();
        self.on_each(shards, |shard| async move {
            if let Err(error) = self.end_abandoned_on(shard).await {
                tracing::debug!(%error, shard, "an abandoned transaction was not looked for or not ended");
            }
        })
        .await;
    }

    async fn end_abandoned_on(&self, shard: usize) -> Result<(), Error> {
        let scope = self.scope(&Call::system(), ROLLBACK_TIMEOUT_MS, None);
        let Reply::Status(status) = self.ask_primary(shard, &Request::Status(ShardStatusRequest {}), &scope).await?
        else {
            return Err(Error::internal("a shard answered something else than its status"));
        };
        if !status.prepared || self.catalog.borrow().decision(&status.transaction)?.is_some() {
            return Ok(());
        }
        let name = self.catalog.borrow().shards[shard].clone();
        self.end_on(&name, &status.transaction, Ending::Rollback, ROLLBACK_TIMEOUT_MS).await.map(|_| ())
    }
}
