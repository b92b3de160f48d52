//! Making another member of a shard its primary, so that nothing is lost that a replica had acknowledged.
//!
//! A write that was acknowledged with durability REPLICATED is on the primary and on one replica at least. So all members but
//! one, or the primary itself, know of it. They are asked to follow no earlier epoch; after that none of them takes part in
//! acknowledging anything of an earlier one. Of those that answer, the one with the last record is chosen, and the choice is
//! stored before it is told. An attempt that does not come that far is taken up again with a higher epoch.

use std::time::Duration;

use dosql_proto::{
    Error, ErrorCode, Fence, Fenced, MemberHealth, Promote, Promoted, ShardStatus, ShardStatusRequest, ShardTopology,
    Topology, shard_reply::Reply, shard_request::Request,
};

use super::Shared;
use crate::catalog::{Placed, unsupported};
use crate::vschema::Purpose;

/// How long a member may take to answer, in milliseconds.
const MEMBER_TIMEOUT_MS: u64 = 2_000;
/// How long a replica may take to catch up before it takes over, in milliseconds.
const CATCH_UP_MS: u64 = 5_000;
/// Pause between attempts to finish a promotion.
const RETRY_MS: u64 = 500;
/// How often the new primary is told in one go.
const TELLINGS: usize = 5;

/// Of one promotion at a time.
struct Promoting<'s> {
    shared: &'s Shared,
    shard: usize,
}

impl Drop for Promoting<'_> {
    fn drop(&mut self) {
        self.shared.replicas.of(self.shard).borrow_mut().promoting = false;
    }
}

impl Shared {
    /// Makes another member the primary.
    pub(super) async fn promote(&self, request: Promote) -> Result<Promoted, Error> {
        let Promote { shard: name, member } = request;
        let shard = self.catalog.borrow().shards.iter().position(|shard| *shard == name);
        let Some(shard) = shard else {
            return Err(Error::new(ErrorCode::NotFound, format!("there is no shard {name:?}")));
        };
        let names = self.replicas.of(shard).borrow().names();
        if names.len() < 2 {
            return Err(unsupported(format!("{name} has no replica that could be promoted (REPLICAS_PER_SHARD)")));
        }
        if !member.is_empty() && !names.contains(&member) {
            let message = format!("{name} has no member {member:?}; it has {}", names.join(", "));
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        let _alone = self.begin_promoting(shard)?;
        self.check_reachable(shard, &member).await?;
        self.choose_primary(shard, &member).await
    }

    fn begin_promoting(&self, shard: usize) -> Result<Promoting<'_>, Error> {
        let mut members = self.replicas.of(shard).borrow_mut();
        if std::mem::replace(&mut members.promoting, true) {
            let message = format!("a promotion in {} is under way", members.shard);
            return Err(Error::retryable(ErrorCode::Conflict, message, RETRY_MS));
        }
        Ok(Promoting { shared: self, shard })
    }

    /// What the members say of themselves.
    async fn statuses(&self, shard: usize) -> Vec<(String, u64, Result<ShardStatus, Error>)> {
        let names = self.replicas.of(shard).borrow().names();
        self.on_each(names, |name| async move {
            let began_ns = self.context.timer_ns();
            let asked = self.ask_member(&name, Request::Status(ShardStatusRequest {}), 0, MEMBER_TIMEOUT_MS).await;
            let status = asked.and_then(|reply| match reply {
                Reply::Status(status) => Ok(status),
                _ => Err(Error::internal(format!("{name} answered something else than its status"))),
            });
            (name, self.context.timer_ns().saturating_sub(began_ns) / 1_000, status)
        })
        .await
    }

    /// Fails, before anything is changed, where too few members answer; waits for the one that is to take over.
    async fn check_reachable(&self, shard: usize, wanted: &str) -> Result<(), Error> {
        let until_ms = self.context.now_ms() + CATCH_UP_MS;
        loop {
            let statuses = self.statuses(shard).await;
            let (primary, _) = self.primary(shard);
            let whole: Vec<(String, u64)> = statuses
                .iter()
                .filter_map(|(name, _, status)| status.as_ref().ok().map(|status| (name, status)))
                .filter(|(_, status)| status.member.as_ref().is_none_or(|member| member.snapshot.is_none()))
                .map(|(name, status)| (name.clone(), status.last_lsn))
                .collect();
            self.check_enough(shard, whole.iter().map(|(name, _)| name.as_str()), statuses.len())?;
            let lsn = |name: &str| whole.iter().find(|(known, _)| known == name).map(|(_, lsn)| *lsn);
            let most = lsn(&primary).unwrap_or(0);
            if wanted.is_empty() || lsn(wanted).is_some_and(|lsn| lsn >= most) {
                return Ok(());
            }
            if self.context.now_ms() >= until_ms {
                let message = match lsn(wanted) {
                    Some(lsn) => format!("{wanted} has come to LSN {lsn}, not to LSN {most} as {primary} has"),
                    None => format!("{wanted} does not answer, or is copying everything from its primary"),
                };
                return Err(Error::retryable(ErrorCode::ReplicaLagging, message, RETRY_MS));
            }
            self.context.sleep(Duration::from_millis(MEMBER_TIMEOUT_MS / 20)).await;
        }
    }

    /// Fails where those that answer may not know of everything that was acknowledged.
    fn check_enough<'n>(&self, shard: usize, whole: impl Iterator<Item = &'n str>, count: usize) -> Result<(), Error> {
        let members = self.replicas.of(shard).borrow();
        let whole: Vec<&str> = whole.collect();
        if whole.contains(&members.placed.primary.as_str()) || whole.len() + 1 >= count {
            return Ok(());
        }
        let message = format!(
            "of the {count} members of {} only {} can be asked ({}); all but one, or the primary {}, must answer, lest what was acknowledged be lost",
            members.shard,
            whole.len(),
            whole.join(", "),
            members.placed.primary
        );
        Err(Error::retryable(ErrorCode::Unavailable, message, RETRY_MS))
    }

    /// Chooses a primary and tells it.
    async fn choose_primary(&self, shard: usize, wanted: &str) -> Result<Promoted, Error> {
        let (name, names, placed) = {
            let members = self.replicas.of(shard).borrow();
            (members.shard.clone(), members.names(), members.placed.clone())
        };
        let epoch = placed.attempted.max(placed.epoch) + 1;
        let primary = match self.decide_primary(shard, &names, epoch, wanted, placed).await {
            Ok(primary) => primary,
            Err(error) => {
                // Members that have heard of the epoch take no writes until it, or a later one, has a primary.
                self.resume_promotion(shard);
                return Err(error);
            }
        };
        tracing::info!(shard = name, epoch, primary, "another member is the primary");
        let mut told = Ok(());
        for _ in 0..TELLINGS {
            told = self.configure(shard, &primary).await;
            if told.is_ok() {
                break;
            }
            self.context.sleep(Duration::from_millis(RETRY_MS / 10)).await;
        }
        self.tell_replicas(shard);
        told.map_err(|error| {
            let message =
                format!("{primary} is the primary of {name} in epoch {epoch}, but was not told yet: {}", error.message);
            Error { message, ..error }
        })?;
        if !wanted.is_empty() && wanted != primary {
            let message =
                format!("{primary} is the primary of {name} in epoch {epoch}: {wanted} lacks records that it has");
            return Err(Error::new(ErrorCode::Conflict, message));
        }
        let status = self.ask_member(&primary, Request::Status(ShardStatusRequest {}), epoch, MEMBER_TIMEOUT_MS).await;
        let lsn = if let Ok(Reply::Status(status)) = status { status.last_lsn } else { 0 };
        Ok(Promoted { shard: name, primary, epoch, lsn })
    }

    /// Has the members follow no earlier epoch, and stores which of them is its primary.
    async fn decide_primary(
        &self,
        shard: usize,
        names: &[String],
        epoch: u64,
        wanted: &str,
        placed: Placed,
    ) -> Result<String, Error> {
        // Never twice the same epoch, whatever becomes of this attempt.
        self.replace(shard, Placed { attempted: epoch, ..placed.clone() })?;
        let primary = self.choose(shard, names, epoch, wanted, &placed.primary).await?;
        let schema_lsn = self.replicas.of(shard).borrow().placed.schema_lsn;
        self.replace(shard, Placed { epoch, attempted: epoch, primary: primary.clone(), schema_lsn })?;
        Ok(primary)
    }

    /// Asks the members to follow no earlier epoch, and chooses the one that has most.
    async fn choose(
        &self,
        shard: usize,
        names: &[String],
        epoch: u64,
        wanted: &str,
        primary: &str,
    ) -> Result<String, Error> {
        let fence = |name: String| async move {
            for _ in 0..2 {
                let asked = self.ask_member(&name, Request::Fence(Fence { epoch }), epoch, MEMBER_TIMEOUT_MS).await;
                if let Ok(Reply::Fenced(fenced)) = asked {
                    return Some((name, fenced));
                }
            }
            None
        };
        let fenced: Vec<(String, Fenced)> = self
            .on_each(names.to_vec(), fence)
            .await
            .into_iter()
            .flatten()
            .filter(|(_, fenced)| fenced.whole)
            .collect();
        self.check_enough(shard, fenced.iter().map(|(name, _)| name.as_str()), names.len())?;
        let most = fenced.iter().map(|(_, fenced)| (fenced.last_epoch, fenced.last_lsn)).max().unwrap_or_default();
        let members = self.replicas.of(shard).borrow();
        let for_analytics = |name: &str| {
            members.members.iter().any(|member| member.name == name && member.purpose == Purpose::Analytics)
        };
        let best = fenced
            .iter()
            .filter(|(_, fenced)| (fenced.last_epoch, fenced.last_lsn) == most)
            .min_by_key(|(name, _)| (*name != wanted, for_analytics(name), wanted.is_empty() && *name == primary));
        let best = best.map(|(name, _)| name.clone());
        best.ok_or_else(|| Error::retryable(ErrorCode::Unavailable, "no member answers", RETRY_MS))
    }

    /// Stores what is decided, then goes by it.
    fn replace(&self, shard: usize, placed: Placed) -> Result<(), Error> {
        let mut members = self.replicas.of(shard).borrow_mut();
        self.catalog.borrow().put_topology(&members.shard, &placed)?;
        members.placed = placed;
        members.configured = false;
        Ok(())
    }

    /// Notes where a shard's schema has changed: replicas that have not come so far would read another one.
    pub(super) fn note_schema(&self, shard: usize, lsn: u64) -> Result<(), Error> {
        let placed = {
            let members = self.replicas.of(shard).borrow();
            if !members.replicated {
                return Ok(());
            }
            Placed { schema_lsn: lsn.max(members.placed.schema_lsn), ..members.placed.clone() }
        };
        let mut members = self.replicas.of(shard).borrow_mut();
        self.catalog.borrow().put_topology(&members.shard, &placed)?;
        members.placed = placed;
        Ok(())
    }

    /// Finishes a promotion that was begun, beside whatever goes on.
    fn resume_promotion(&self, shard: usize) {
        let Some(shared) = self.me.upgrade() else { return };
        self.context.spawn(async move {
            loop {
                shared.context.sleep(Duration::from_millis(RETRY_MS)).await;
                let open = {
                    let members = shared.replicas.of(shard).borrow();
                    members.placed.attempted > members.placed.epoch
                };
                if !open {
                    return;
                }
                let Ok(alone) = shared.begin_promoting(shard) else { continue };
                if shared.check_reachable(shard, "").await.is_ok() {
                    // A failure of this attempt has begun the next one.
                    if let Err(error) = shared.choose_primary(shard, "").await {
                        tracing::warn!(shard, %error, "a promotion could not be finished");
                    }
                    return;
                }
                drop(alone);
            }
        });
    }

    /// Tells the members who the primaries are, and finishes what was begun.
    pub(super) fn start_replicas(&self) {
        for shard in 0..self.replicas.len() {
            let (replicated, open) = {
                let members = self.replicas.of(shard).borrow();
                (members.replicated, members.placed.attempted > members.placed.epoch)
            };
            if open {
                self.resume_promotion(shard);
            } else if replicated {
                self.tell_replicas(shard);
            }
        }
    }

    /// The members of the shards; with what they say of themselves where that is asked for.
    pub(super) async fn topology(&self, health: bool) -> Topology {
        let shards: Vec<usize> = (0..self.replicas.len()).collect();
        Topology { shards: self.on_each(shards, |shard| self.shard_topology(shard, health)).await }
    }

    async fn shard_topology(&self, shard: usize, health: bool) -> ShardTopology {
        let statuses = if health { self.statuses(shard).await } else { Vec::new() };
        let now_ms = self.context.now_ms();
        let members = self.replicas.of(shard).borrow();
        let placed = &members.placed;
        let known: u64 = statuses
            .iter()
            .filter_map(|(.., status)| status.as_ref().ok())
            .map(|status| status.last_lsn)
            .max()
            .unwrap_or(0);
        let of_primary = statuses.iter().find(|(name, ..)| *name == placed.primary);
        let primary_lsn =
            of_primary.and_then(|(.., status)| status.as_ref().ok()).map_or(known, |status| status.last_lsn);
        let describe = |at: usize| {
            let member = &members.members[at];
            let mut described = MemberHealth {
                name: member.name.clone(),
                region: member.region.clone(),
                purpose: if member.purpose == Purpose::Analytics { "analytics" } else { "general" }.to_owned(),
                ejected: members.is_ejected(&member.name, now_ms),
                role: if member.name == placed.primary { "primary" } else { "replica" }.to_owned(),
                epoch: placed.epoch,
                ..MemberHealth::default()
            };
            match statuses.iter().find(|(name, ..)| *name == member.name) {
                Some((_, latency_us, Ok(status))) => {
                    let state = status.member.clone().unwrap_or_default();
                    described.healthy = true;
                    described.latency_us = *latency_us;
                    described.last_lsn = status.last_lsn;
                    described.epoch = state.epoch;
                    let role = match (state.snapshot.is_some(), state.promised > state.epoch) {
                        (true, _) => "copying",
                        (_, true) => "fenced",
                        _ if state.primary == member.name => "primary",
                        _ => "replica",
                    };
                    role.clone_into(&mut described.role);
                    if member.name != placed.primary {
                        described.lag_records = primary_lsn.saturating_sub(status.last_lsn);
                        described.lag_ms = now_ms.saturating_sub(status.fresh_at_ms);
                    }
                }
                Some((.., Err(error))) => described.error = error.to_string(),
                None => {}
            }
            described
        };
        ShardTopology {
            shard: members.shard.clone(),
            epoch: placed.epoch,
            primary: placed.primary.clone(),
            members: (0..members.members.len()).map(describe).collect(),
            promoting: members.promoting || placed.attempted > placed.epoch,
        }
    }
}
