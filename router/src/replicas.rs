//! The members of the shards as the router knows them, and which of them a read asks.

use std::cell::RefCell;

use dosql_actors::Settings;
use dosql_actors::runtime::ReadStrategy;
use dosql_proto::{Error, ErrorCode, ReadPreference};

use crate::catalog::{Catalog, Placed};
use crate::vschema::{Purpose, ReplicaEntry, ShardEntry};

/// Failures in a row after which reads leave a member out.
const FAILURES: u32 = 2;
/// For how long, in milliseconds; doubles each time.
const SHORTEST_EJECTION_MS: u64 = 500;
const LONGEST_EJECTION_MS: u64 = 60_000;
/// How much of a member's known latency a new one leaves.
const OLD_LATENCY: f64 = 0.8;
/// A member whose latency was not measured for so long, in milliseconds, is asked to have it measured.
const STALE_LATENCY_MS: u64 = 10_000;

/// A member of a shard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) purpose: Purpose,
    weight: u32,
    /// A moving average, in nanoseconds.
    latency: Option<f64>,
    measured_ms: u64,
    failures: u32,
    ejections: u32,
    ejected_until_ms: u64,
    /// For smooth weighted round robin.
    credit: i64,
    /// Whether it is being told who the primary is.
    pub(crate) telling: bool,
}

/// The members of one shard.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) shard: String,
    pub(crate) placed: Placed,
    pub(crate) members: Vec<Member>,
    /// Whether it has, or had, replicas: members must be told the epoch.
    pub(crate) replicated: bool,
    /// Whether the primary knows its role, as far as this incarnation of the router does.
    pub(crate) configured: bool,
    pub(crate) promoting: bool,
    turn: usize,
}

/// Those of all shards.
pub(crate) struct Replicas {
    shards: Vec<RefCell<Members>>,
    strategy: ReadStrategy,
    region: String,
}

impl Replicas {
    /// What the catalog and the VSchema say.
    ///
    /// # Errors
    /// `STORAGE`.
    pub(crate) fn load(catalog: &Catalog, settings: &Settings) -> Result<Self, Error> {
        catalog.open_topology()?;
        let entries = &catalog.wanted.as_ref().unwrap_or(&catalog.version.vschema).shards;
        let mut shards = Vec::new();
        for shard in &catalog.shards {
            let entry = entries.iter().find(|entry| entry.id.eq_ignore_ascii_case(shard));
            let stored = catalog.placed(shard)?;
            let members = Members::of(shard, entry, settings.replicas_per_shard as usize, stored);
            if members.replicated {
                catalog.put_topology(shard, &members.placed)?;
            }
            shards.push(RefCell::new(members));
        }
        Ok(Self { shards, strategy: settings.read_strategy, region: settings.region.clone() })
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether a shard has a replica that is kept for analytics.
    pub(crate) fn have_analytics(&self) -> bool {
        self.shards.iter().any(|shard| shard.borrow().members.iter().any(|member| member.purpose == Purpose::Analytics))
    }

    /// The members of a shard.
    pub(crate) fn of(&self, shard: usize) -> &RefCell<Members> {
        &self.shards[shard]
    }

    /// The members that a read may ask, the one to be asked first at the front.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the shard has none of the kind.
    pub(crate) fn candidates(
        &self,
        shard: usize,
        preference: ReadPreference,
        region: &str,
        now_ms: u64,
    ) -> Result<Vec<String>, Error> {
        let region = if region.is_empty() { &self.region } else { region };
        let mut members = self.shards[shard].borrow_mut();
        members.candidates(preference, region, self.strategy, now_ms)
    }

    /// Notes that a member answered, after so long.
    pub(crate) fn answered(&self, shard: usize, member: &str, took_ns: u64, now_ms: u64) {
        if let Some(member) = self.shards[shard].borrow_mut().get(member) {
            let took = took_ns as f64;
            member.latency = Some(member.latency.map_or(took, |old| old * OLD_LATENCY + took * (1.0 - OLD_LATENCY)));
            member.measured_ms = now_ms;
            (member.failures, member.ejections, member.ejected_until_ms) = (0, 0, 0);
        }
    }

    /// Notes that a member did not answer.
    pub(crate) fn failed(&self, shard: usize, member: &str, now_ms: u64) {
        if let Some(member) = self.shards[shard].borrow_mut().get(member) {
            member.failures += 1;
            if member.failures >= FAILURES {
                let pause = SHORTEST_EJECTION_MS.saturating_mul(1 << member.ejections.min(16));
                member.ejected_until_ms = now_ms + pause.min(LONGEST_EJECTION_MS);
                member.ejections += 1;
                // Back again, one failure is enough.
                member.failures = FAILURES - 1;
            }
        }
    }
}

impl Members {
    fn of(shard: &str, entry: Option<&ShardEntry>, replicas: usize, stored: Option<Placed>) -> Self {
        let listed: &[ReplicaEntry] = entry.map_or(&[], |entry| &entry.metadata.replicas);
        let own = Member {
            name: shard.to_owned(),
            region: entry.and_then(|entry| entry.metadata.region.clone()).unwrap_or_default(),
            weight: entry.and_then(|entry| entry.metadata.weight).unwrap_or(1),
            ..Member::default()
        };
        let mut members = vec![own];
        for number in 1..=replicas.max(listed.len()) {
            let listed = listed.get(number - 1);
            members.push(Member {
                name: format!("{shard}-r{number}"),
                region: listed.and_then(|replica| replica.region.clone()).unwrap_or_default(),
                purpose: listed.map_or(Purpose::General, |replica| replica.role),
                weight: listed.and_then(|replica| replica.weight).unwrap_or(1),
                ..Member::default()
            });
        }
        let replicated = stored.is_some() || members.len() > 1;
        let placed =
            stored.unwrap_or_else(|| Placed { epoch: 0, attempted: 0, primary: shard.to_owned(), schema_lsn: 0 });
        if !members.iter().any(|member| member.name == placed.primary) {
            members.push(Member { name: placed.primary.clone(), weight: 1, ..Member::default() });
        }
        Self { shard: shard.to_owned(), placed, members, replicated, configured: false, promoting: false, turn: 0 }
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> Vec<String> {
        self.members.iter().map(|member| member.name.clone()).collect()
    }

    pub(crate) fn get(&mut self, name: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.name == name)
    }

    /// Whether reads leave a member out now.
    pub(crate) fn is_ejected(&self, name: &str, now_ms: u64) -> bool {
        self.members.iter().any(|member| member.name == name && member.ejected_until_ms > now_ms)
    }

    fn candidates(
        &mut self,
        preference: ReadPreference,
        region: &str,
        strategy: ReadStrategy,
        now_ms: u64,
    ) -> Result<Vec<String>, Error> {
        let primary = self.placed.primary.clone();
        let admits = |member: &Member| match preference {
            ReadPreference::Unspecified | ReadPreference::Primary => member.name == primary,
            ReadPreference::Analytics => member.name != primary && member.purpose == Purpose::Analytics,
            ReadPreference::Replica | ReadPreference::ReplicaPreferred => {
                member.name != primary && member.purpose == Purpose::General
            }
            ReadPreference::Nearest => member.name == primary || member.purpose == Purpose::General,
        };
        let mut found: Vec<usize> = (0..self.members.len()).filter(|at| admits(&self.members[*at])).collect();
        let kind = match preference {
            ReadPreference::Analytics => "analytics replica",
            _ => "replica",
        };
        if found.is_empty() && preference != ReadPreference::ReplicaPreferred {
            let message = format!("{} has no {kind} that a read could use", self.shard);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        self.order(&mut found, strategy, now_ms);
        // Whoever is near, and whoever is well, comes first; beyond that the strategy's order stays.
        found.sort_by_key(|at| !region.is_empty() && self.members[*at].region != region);
        found.sort_by_key(|at| self.members[*at].ejected_until_ms > now_ms);
        let well = found.iter().filter(|at| self.members[**at].ejected_until_ms <= now_ms).count();
        let falls_back = preference == ReadPreference::ReplicaPreferred;
        // Where all are ejected the first one is asked all the same: somebody must find out whether it is back.
        found.truncate(if falls_back { well } else { well.max(1) });
        let mut names: Vec<String> = found.into_iter().map(|at| self.members[at].name.clone()).collect();
        if falls_back {
            names.push(primary);
        }
        Ok(names)
    }

    fn order(&mut self, found: &mut [usize], strategy: ReadStrategy, now_ms: u64) {
        match strategy {
            ReadStrategy::Nearest => {
                let members = &self.members;
                let unknown = |at: &usize| {
                    members[*at].latency.filter(|_| members[*at].measured_ms + STALE_LATENCY_MS > now_ms).is_none()
                };
                let rank = |at: &usize| if unknown(at) { 0.0 } else { members[*at].latency.unwrap_or(0.0) };
                found.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
            }
            ReadStrategy::Weighted => {
                let total: i64 = found.iter().map(|at| i64::from(self.members[*at].weight)).sum();
                for at in found.iter() {
                    self.members[*at].credit += i64::from(self.members[*at].weight);
                }
                found.sort_by_key(|at| std::cmp::Reverse(self.members[*at].credit));
                if let Some(first) = found.first() {
                    self.members[*first].credit -= total;
                }
            }
            ReadStrategy::RoundRobin => {
                let turn = self.turn % found.len().max(1);
                found.rotate_left(turn);
                self.turn = self.turn.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(strategy_weights: &[u32]) -> Members {
        let replicas = strategy_weights
            .iter()
            .map(|weight| ReplicaEntry { weight: Some(*weight), ..ReplicaEntry::default() })
            .collect();
        let mut entry = ShardEntry { id: "s".to_owned(), ..ShardEntry::default() };
        entry.metadata.replicas = replicas;
        Members::of("s", Some(&entry), 0, None)
    }

    fn first(members: &mut Members, preference: ReadPreference, strategy: ReadStrategy) -> String {
        members.candidates(preference, "", strategy, 0).unwrap().remove(0)
    }

    #[test]
    fn weights_are_kept_smoothly() {
        let mut members = members(&[3, 1]);
        let asked: Vec<String> =
            (0..8).map(|_| first(&mut members, ReadPreference::Replica, ReadStrategy::Weighted)).collect();
        assert_eq!(asked.iter().filter(|name| *name == "s-r1").count(), 6);
        assert_eq!(asked.iter().filter(|name| *name == "s-r2").count(), 2);
        assert_ne!(asked[..4].iter().position(|name| name == "s-r2"), None);
    }

    #[test]
    fn round_robin_takes_turns() {
        let mut members = members(&[1, 1]);
        let mut next = || first(&mut members, ReadPreference::Nearest, ReadStrategy::RoundRobin);
        assert_eq!([next(), next(), next(), next()], ["s", "s-r1", "s-r2", "s"]);
    }

    #[test]
    fn the_nearest_is_asked_and_one_that_fails_is_ejected_and_returns() {
        let replicas = Replicas {
            shards: vec![RefCell::new(members(&[1, 1]))],
            strategy: ReadStrategy::Nearest,
            region: String::new(),
        };
        let order = |now_ms| replicas.candidates(0, ReadPreference::Replica, "", now_ms).unwrap();
        replicas.answered(0, "s-r1", 2_000, 1);
        replicas.answered(0, "s-r2", 1_000, 1);
        assert_eq!(order(1), ["s-r2", "s-r1"]);
        replicas.failed(0, "s-r2", 1);
        replicas.failed(0, "s-r2", 1);
        assert_eq!(order(2), ["s-r1"]);
        assert_eq!(order(502), ["s-r2", "s-r1"]);
        // Back again, it fails again: longer.
        replicas.failed(0, "s-r2", 502);
        assert_eq!(order(1_400), ["s-r1"]);
        assert_eq!(order(1_503), ["s-r2", "s-r1"]);
        let preferred = replicas.candidates(0, ReadPreference::ReplicaPreferred, "", 1_400).unwrap();
        assert_eq!(preferred, ["s-r1", "s"]);
        let error = replicas.candidates(0, ReadPreference::Analytics, "", 1).unwrap_err();
        assert!(error.message.contains("no analytics replica"), "{error}");
    }

    #[test]
    fn the_own_region_comes_first() {
        let mut members = members(&[1, 1]);
        members.members[2].region = "eu".to_owned();
        let found = members.candidates(ReadPreference::Nearest, "eu", ReadStrategy::Nearest, 0).unwrap();
        assert_eq!(found[0], "s-r2");
    }
}
