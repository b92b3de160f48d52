//! Rows of several shards, one shard after the other.

use std::collections::VecDeque;

use dosql_proto::{Error, Row, Statement, Value};

use super::scope::encoded;
use super::shard_rows::{Asked, ShardRows};
use super::{Scope, Shared};

/// The least that a shard is asked for at a time, in bytes.
const LEAST_BATCH_BYTES: u32 = 1 << 10;

/// What is left of a statement that runs on several shards.
pub(super) struct Chain {
    statement: Statement,
    max_bytes: u32,
    /// The shard being read.
    open: Option<ShardRows>,
    /// Those not asked yet.
    todo: VecDeque<usize>,
    /// How many are asked together next: with a limit, the first ones may have enough.
    wave: usize,
    quota: Option<Quota>,
}

/// How many rows of a result are still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    /// Rows to be skipped before.
    pub(super) skip: u64,
    /// Rows wanted; `u64::MAX` for all.
    pub(super) left: u64,
}

impl Quota {
    /// How many rows of one shard may be of use, as a LIMIT has it.
    pub(super) fn wanted(self) -> i64 {
        i64::try_from(self.skip.saturating_add(self.left)).unwrap_or(-1)
    }

    /// Takes from `rows` what the quota allows.
    fn take(&mut self, rows: &mut Vec<Row>) {
        let skipped = self.skip.min(rows.len() as u64);
        rows.drain(..usize::try_from(skipped).unwrap_or(rows.len()));
        rows.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.skip -= skipped;
        self.left -= rows.len() as u64;
    }
}

impl Chain {
    /// A chain over these shards. With a quota, the statement's last parameter is how many rows are wanted of a shard.
    pub(super) fn new(statement: Statement, max_bytes: u32, shards: Vec<usize>, quota: Option<Quota>) -> Self {
        let wave = if quota.is_some() { 1 } else { usize::MAX };
        Self { statement, max_bytes, open: None, todo: shards.into(), wave, quota }
    }

    /// What is left of a statement on one shard.
    pub(super) fn of_one(open: ShardRows, max_bytes: u32) -> Self {
        Self { open: Some(open), ..Self::new(Statement::default(), max_bytes, Vec::new(), None) }
    }

    fn done(&self) -> bool {
        let enough = self.quota.is_some_and(|quota| quota.left == 0);
        enough || (self.open.is_none() && self.todo.is_empty())
    }
}

impl Shared {
    /// The next rows, and whether they are the last.
    pub(super) async fn advance_chain(&self, chain: &mut Chain, scope: &Scope) -> Result<(Vec<Row>, bool), Error> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while !chain.done() && bytes < u64::from(chain.max_bytes) {
            let mut more = match chain.open.take() {
                Some(mut open) => {
                    let more = self.more_of(&mut open, scope).await?;
                    chain.open = open.is_open().then_some(open);
                    more
                }
                None => self.ask_next(chain, scope).await?,
            };
            if let Some(quota) = &mut chain.quota {
                quota.take(&mut more);
            }
            bytes += encoded(&more);
            rows.append(&mut more);
        }
        let done = chain.done();
        if done {
            chain.open = None;
        }
        Ok((rows, done))
    }

    /// Asks the next shards together. Where more than one has a long result, only the first stays open: the others are asked
    /// again when it is read, so that none holds a result that nobody reads yet.
    async fn ask_next(&self, chain: &mut Chain, scope: &Scope) -> Result<Vec<Row>, Error> {
        if let Some(quota) = chain.quota
            && let Some(last) = chain.statement.params.last_mut()
        {
            *last = Value::from(quota.wanted());
        }
        let wave: Vec<usize> = chain.todo.drain(..chain.todo.len().min(self.max_parallel).min(chain.wave)).collect();
        chain.wave = chain.wave.saturating_mul(2);
        let share = match wave.len() {
            0 | 1 => chain.max_bytes,
            many => (chain.max_bytes / u32::try_from(many).unwrap_or(u32::MAX)).max(LEAST_BATCH_BYTES),
        };
        let statement = &chain.statement;
        let answers = self
            .on_each(wave, |shard| {
                let statement = statement.clone();
                let asked = Asked { shard, statement, max_bytes: share, max_rows: 0, step: "read", table: "" };
                async move { (shard, self.read_shard(asked, scope).await) }
            })
            .await;
        let mut rows = Vec::new();
        let mut again = Vec::new();
        for (shard, answer) in answers {
            let (found, open) = answer?;
            if !open.is_open() {
                rows.extend(found);
            } else if chain.open.is_none() {
                chain.open = Some(open);
                rows.extend(found);
            } else {
                again.push(shard);
            }
        }
        for shard in again.into_iter().rev() {
            chain.todo.push_front(shard);
        }
        Ok(rows)
    }
}
