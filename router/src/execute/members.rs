//! Asking the members of a shard: its primary, told its role before anything else, and whichever member a read may use.

use std::time::Duration;

use dosql_proto::{
    CloseRequest, Configure, Durability, Ending, Error, ErrorCode, Position, ReadPreference, RowBatch, ShardProtocol,
    ShardQuery, ShardReply, ShardRequest, shard_reply::Reply, shard_request::Request,
};
use futures_util::future::{Either, select};

use super::{Scope, Shared, shards};

/// How long a read waits for a replica that is fresh enough, in milliseconds.
const PATIENCE_MS: u64 = 1_000;
/// Pauses meanwhile.
const PAUSE_MS: u64 = 20;
/// How long a member may take to learn who the primary is, in milliseconds.
const CONFIGURE_TIMEOUT_MS: u64 = 2_000;
/// Pauses between attempts to tell a member who the primary is.
const SHORTEST_TELL_MS: u64 = 50;
const LONGEST_TELL_MS: u64 = 2_000;

/// Whether a member that gave this answer is well all the same.
fn is_well(error: &Error) -> bool {
    !shards::transient(error)
}

impl Shared {
    /// Asks a shard's primary once.
    pub(super) async fn ask_primary(&self, shard: usize, request: &Request, scope: &Scope) -> Result<Reply, Error> {
        let replicated = match request {
            // Its parts were replicated before they were prepared: after a promotion, too, it is to be seen once it is
            // acknowledged.
            Request::Finish(finish) if finish.ending() == Ending::CommitPrepared => {
                self.replicas.of(shard).borrow().members.len() > 1
            }
            Request::Execute(_) | Request::Load(_) | Request::Finish(_) => self.must_replicate(shard, scope)?,
            _ => false,
        };
        self.configure_primary(shard).await?;
        let (name, epoch) = self.primary(shard);
        let request = ShardRequest { request: Some(request.clone()), epoch, replicated };
        let reply = self.context.ask_within::<ShardProtocol>(&name, request, scope, self.shard_timeout_ms).await;
        if self.replicas.of(shard).borrow().placed.epoch != epoch {
            // What it says may not have happened, as far as its successor knows.
            let message = format!("{name} was the primary of its shard when it was asked, and is no longer");
            return Err(Error::retryable(ErrorCode::NotPrimary, message, 0));
        }
        match reply {
            Ok(reply) => answer_of(&name, reply),
            Err(error) => {
                if error.code() == ErrorCode::NotPrimary {
                    self.replicas.of(shard).borrow_mut().configured = false;
                }
                Err(error)
            }
        }
    }

    /// The primary of a shard, and its epoch.
    pub(super) fn primary(&self, shard: usize) -> (String, u64) {
        let members = self.replicas.of(shard).borrow();
        (members.placed.primary.clone(), members.placed.epoch)
    }

    /// Whether a write is to be on a replica before it is answered.
    fn must_replicate(&self, shard: usize, scope: &Scope) -> Result<bool, Error> {
        if scope.options.durability() != Durability::Replicated {
            return Ok(false);
        }
        let members = self.replicas.of(shard).borrow();
        if members.members.len() < 2 {
            let message =
                format!("{} has no replica that could make a write durable (REPLICAS_PER_SHARD)", members.shard);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        Ok(true)
    }

    /// The scope of a write that no promotion may lose, whatever the request says of its durability: the catalog goes by it.
    pub(super) fn surely(&self, shard: usize, scope: &Scope) -> Scope {
        let has_replicas = self.replicas.of(shard).borrow().members.len() > 1;
        if has_replicas { scope.replicated() } else { scope.clone() }
    }

    /// Tells a shard's primary that it is, unless it knows.
    async fn configure_primary(&self, shard: usize) -> Result<(), Error> {
        let (primary, promoting) = {
            let members = self.replicas.of(shard).borrow();
            if !members.replicated || members.configured {
                return Ok(());
            }
            (members.placed.primary.clone(), members.placed.attempted > members.placed.epoch)
        };
        if promoting {
            let message = "another primary is being chosen for the shard";
            return Err(Error::retryable(ErrorCode::NotPrimary, message, PAUSE_MS));
        }
        Box::pin(self.configure(shard, &primary)).await
    }

    /// Tells a member who the primary is.
    pub(super) async fn configure(&self, shard: usize, member: &str) -> Result<(), Error> {
        let configure = {
            let members = self.replicas.of(shard).borrow();
            Configure {
                shard: members.shard.clone(),
                epoch: members.placed.epoch,
                primary: members.placed.primary.clone(),
                members: members.names(),
            }
        };
        let (epoch, is_primary) = (configure.epoch, configure.primary == member);
        self.ask_member(member, Request::Configure(configure), epoch, CONFIGURE_TIMEOUT_MS).await?;
        let mut members = self.replicas.of(shard).borrow_mut();
        if is_primary && members.placed.epoch == epoch {
            members.configured = true;
        }
        Ok(())
    }

    /// Tells the replicas of a shard who the primary is, beside whatever goes on, until each has heard it.
    pub(super) fn tell_replicas(&self, shard: usize) {
        let (replicated, names) = {
            let members = self.replicas.of(shard).borrow();
            (members.replicated, members.names())
        };
        if replicated {
            names.iter().for_each(|name| self.tell_member(shard, name));
        }
    }

    fn tell_member(&self, shard: usize, member: &str) {
        {
            let mut members = self.replicas.of(shard).borrow_mut();
            match members.get(member) {
                Some(member) if !member.telling => member.telling = true,
                _ => return,
            }
        }
        let Some(shared) = self.me.upgrade() else { return };
        let member = member.to_owned();
        self.context.spawn(async move {
            let mut pause_ms = SHORTEST_TELL_MS;
            loop {
                let epoch = shared.primary(shard).1;
                let told = shared.configure(shard, &member).await;
                let current = shared.primary(shard).1 == epoch;
                match told {
                    Ok(()) if current => break,
                    Err(error) if current => {
                        tracing::debug!(member, %error, "a member was not told who its primary is")
                    }
                    _ => {}
                }
                let pause = pause_ms / 2 + shared.context.random_u64() % (pause_ms / 2 + 1);
                shared.context.sleep(Duration::from_millis(pause)).await;
                pause_ms = (pause_ms * 2).min(LONGEST_TELL_MS);
            }
            if let Some(member) = shared.replicas.of(shard).borrow_mut().get(&member) {
                member.telling = false;
            }
        });
    }

    /// Asks one member.
    pub(super) async fn ask_member(
        &self,
        member: &str,
        request: Request,
        epoch: u64,
        timeout_ms: u64,
    ) -> Result<Reply, Error> {
        let call = dosql_actors::Call::system().within(self.context.now_ms(), timeout_ms);
        let request = ShardRequest { request: Some(request), epoch, ..ShardRequest::default() };
        answer_of(member, self.context.ask::<ShardProtocol>(member, request, &call).await?)
    }

    /// The next rows of a result that is open on a member. Not asked for again: a batch whose answer was lost would be skipped.
    pub(super) async fn ask_open(&self, member: &str, request: Request, scope: &Scope) -> Result<Reply, Error> {
        let request = ShardRequest { request: Some(request), ..ShardRequest::default() };
        let asked = self.context.ask_within::<ShardProtocol>(member, request, scope, self.shard_timeout_ms);
        answer_of(member, asked.await?)
    }

    /// Asks a member that the read may use, and says which.
    pub(super) async fn ask_reader(
        &self,
        shard: usize,
        mut query: ShardQuery,
        scope: &Scope,
    ) -> Result<(String, RowBatch), Error> {
        let preference = scope.options.read_preference();
        query.min_lsn = self.least_lsn(shard, scope)?;
        let of_primary = matches!(preference, ReadPreference::Unspecified | ReadPreference::Primary);
        if of_primary || query.transaction.is_some() || query.strict {
            return self.ask_primary_reader(shard, query, scope).await;
        }
        query.min_lsn = query.min_lsn.max(self.replicas.of(shard).borrow().placed.schema_lsn);
        query.max_staleness_ms = scope.options.max_staleness_ms;
        query.replica = true;
        let deadline_ms = scope.limited(self.context.now_ms(), PATIENCE_MS).deadline_ms;
        loop {
            let now_ms = self.context.now_ms();
            let names = self.replicas.candidates(shard, preference, &scope.options.region, now_ms)?;
            let mut refused = None;
            let mut next = names.iter().peekable();
            while let Some(name) = next.next() {
                if *name == self.primary(shard).0 && next.peek().is_none() && names.len() > 1 {
                    // The last resort: with the patience that a read of the primary has.
                    let query = ShardQuery { replica: false, ..query };
                    return Box::pin(self.ask_primary_reader(shard, query, scope)).await;
                }
                let hedge = next.peek().map(|name| name.as_str());
                match Box::pin(self.ask_hedged(shard, name, hedge, &query, scope)).await {
                    Ok(found) => return Ok(found),
                    Err(error) if shards::transient(&error) || error.code() == ErrorCode::ReplicaLagging => {
                        refused = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if self.context.now_ms() + PAUSE_MS >= deadline_ms {
                let reason = refused.map_or_else(String::new, |error| format!(": {}", error.message));
                let shard = &self.catalog.borrow().shards[shard];
                let message = format!("no replica of {shard} can answer as the read demands{reason}");
                return Err(Error::retryable(ErrorCode::ReplicaLagging, message, PAUSE_MS));
            }
            self.context.sleep(Duration::from_millis(PAUSE_MS)).await;
        }
    }

    async fn ask_primary_reader(
        &self,
        shard: usize,
        query: ShardQuery,
        scope: &Scope,
    ) -> Result<(String, RowBatch), Error> {
        let batch = shards::batch(self.ask(shard, Request::Query(query), scope).await?)?;
        Ok((self.primary(shard).0, batch))
    }

    /// The bookmark of a read: how far the shards had come, and whatever the request's own bookmark says.
    pub(super) fn seen(&self, scope: &Scope) -> String {
        let catalog = self.catalog.borrow();
        let seen = scope.seen();
        if let (true, 1, Some((shard, lsn))) = (scope.options.bookmark.is_empty(), seen.len(), seen.iter().next()) {
            return Position::text_of(&catalog.shards[*shard], *lsn);
        }
        let mut position: Position = scope.options.bookmark.parse().unwrap_or_default();
        for (shard, lsn) in seen.iter() {
            position.advance(&catalog.shards[*shard], *lsn);
        }
        position.to_string()
    }

    /// The LSN that a read must have reached.
    fn least_lsn(&self, shard: usize, scope: &Scope) -> Result<u64, Error> {
        if scope.options.bookmark.is_empty() {
            return Ok(0);
        }
        let position: Position = scope.options.bookmark.parse().map_err(|error: dosql_proto::ParsePositionError| {
            Error::new(ErrorCode::UnknownPosition, format!("the bookmark: {error}"))
        })?;
        Ok(position.lsn(&self.catalog.borrow().shards[shard]))
    }

    /// Asks a member, and where it has not answered after a while another one as well; the first good answer counts.
    async fn ask_hedged(
        &self,
        shard: usize,
        name: &str,
        hedge: Option<&str>,
        query: &ShardQuery,
        scope: &Scope,
    ) -> Result<(String, RowBatch), Error> {
        let after_ms = self.context.settings().hedge_after_ms;
        let first = self.ask_replica(shard, name, query, scope);
        let (Some(hedge), true) = (hedge, after_ms > 0) else {
            return first.await.map(|batch| (name.to_owned(), batch));
        };
        let first = Box::pin(first);
        let first = match select(first, Box::pin(self.context.sleep(Duration::from_millis(after_ms)))).await {
            Either::Left((answer, _)) => return answer.map(|batch| (name.to_owned(), batch)),
            Either::Right(((), first)) => first,
        };
        let second = Box::pin(self.ask_replica(shard, hedge, query, scope));
        let (answer, winner, loser) = match select(first, second).await {
            Either::Left((Ok(batch), _)) => (Ok(batch), name, hedge),
            Either::Right((Ok(batch), _)) => (Ok(batch), hedge, name),
            Either::Left((Err(_), second)) => (second.await, hedge, name),
            Either::Right((Err(_), first)) => (first.await, name, hedge),
        };
        // The other one may hold a result that nobody reads.
        let close = Request::Close(CloseRequest { cursor: query.cursor });
        self.context.tell::<ShardProtocol>(loser, ShardRequest { request: Some(close), ..ShardRequest::default() });
        answer.map(|batch| (winner.to_owned(), batch))
    }

    async fn ask_replica(
        &self,
        shard: usize,
        name: &str,
        query: &ShardQuery,
        scope: &Scope,
    ) -> Result<RowBatch, Error> {
        let (primary, epoch) = self.primary(shard);
        if primary == name {
            self.configure_primary(shard).await?;
        }
        let request = ShardRequest { request: Some(Request::Query(query.clone())), epoch, ..ShardRequest::default() };
        let began_ns = self.context.timer_ns();
        let reply = self.context.ask_within::<ShardProtocol>(name, request, scope, self.shard_timeout_ms).await;
        let now_ms = self.context.now_ms();
        if self.primary(shard).1 != epoch {
            let message = "the shard has another primary than when it was asked";
            return Err(Error::retryable(ErrorCode::NotPrimary, message, 0));
        }
        match &reply {
            Ok(_) => {
                self.replicas.answered(shard, name, self.context.timer_ns().saturating_sub(began_ns), now_ms);
            }
            Err(error) if error.code() == ErrorCode::NotPrimary => {
                if primary == name {
                    self.replicas.of(shard).borrow_mut().configured = false;
                }
                self.tell_member(shard, name);
            }
            Err(error) if is_well(error) => {}
            Err(_) => self.replicas.failed(shard, name, now_ms),
        }
        shards::batch(answer_of(name, reply?)?)
    }
}

fn answer_of(member: &str, reply: ShardReply) -> Result<Reply, Error> {
    reply.reply.ok_or_else(|| Error::internal(format!("{member} gave an empty reply")))
}
