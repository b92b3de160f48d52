//! The lake actor.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use dosql_actors::{Actor, Call, Context, Handled, ObjectStore};
use dosql_proto::{
    Error, ErrorCode, LakeAppend, LakePosition, LakePositions, LakeProtocol, LakeReply, LakeRequest, LakeStatus,
    LakeTable, lake_reply, lake_request,
};

use crate::LakeError;
use crate::authority::Authority;
use crate::buffer::Buffer;
use crate::configure;
use crate::flush::Writer;
use crate::index::Index;
use crate::maintenance::Schedule;

/// First pause after a flush that failed, in milliseconds; doubles up to [`LONGEST_PAUSE_MS`].
const SHORTEST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 60_000;

/// Readers and shards are told of what was committed after this part of the flush interval, and [`LONGEST_SETTLING_MS`], at the
/// latest: where one flush follows the other, telling of each would cost more than the flush.
const SETTLING_PART: u64 = 10;
const LONGEST_SETTLING_MS: u64 = 1_000;

/// The actor `lake/default`: takes change records in and commits them to Iceberg tables.
///
/// What is buffered is lost with the incarnation, and delivered again: the shards keep their records until they are durable
/// here.
pub struct Lake {
    pub(crate) context: Context,
    pub(crate) writer: Writer,
    pub(crate) schedule: Schedule,
    buffer: Buffer,
    shards: BTreeMap<Rc<str>, Progress>,
    last_flush_ms: u64,
    /// Not before this are readers and shards told again of what was committed.
    settle_from_ms: u64,
    /// Flushes that failed in a row.
    failures: u32,
    /// Why the last one failed.
    flush_error: String,
    /// Not before this is a flush tried again that nobody asked for.
    retry_at_ms: u64,
    /// When the alarm will ring.
    armed_ms: Option<u64>,
}

/// The object that tells how far each shard is in every table.
const POSITIONS: &str = "lake-positions.json";

/// How far each shard is in every table; `None` where no flush was ever complete.
async fn read_positions(objects: &dyn ObjectStore) -> Result<Option<BTreeMap<String, u64>>, LakeError> {
    let Some(bytes) = objects.get(POSITIONS).await? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| malformed_positions(&error))
}

fn positions_object(positions: &BTreeMap<String, u64>) -> Result<Bytes, LakeError> {
    Ok(serde_json::to_vec(positions).map_err(|error| malformed_positions(&error))?.into())
}

fn malformed_positions(error: &serde_json::Error) -> LakeError {
    LakeError::Malformed { path: POSITIONS.to_owned(), reason: error.to_string() }
}

/// How far one shard's records have come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    accepted: u64,
    /// What every table has.
    committed: u64,
    /// What every table has even where the actor's database is lost: the shard may forget it.
    durable: u64,
}

impl Progress {
    /// Whether what was committed is durable, too.
    fn is_known(&self) -> bool {
        self.committed == self.durable
    }
}

impl Actor for Lake {
    type Protocol = LakeProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let (index, is_new) = Index::open(context.open_storage()?)?;
        let authority = Authority::of(&context);
        if is_new {
            // There may be a lake already, whose index was lost. Its tables say what they hold; the index of each is made
            // anew when it is used first.
            let names = authority.names().await?;
            // Even where no table is listed: a listing may be late.
            let positions = match (read_positions(&*context.objects()).await?, names.first()) {
                (Some(positions), _) => positions,
                (None, None) => BTreeMap::new(),
                (None, Some(name)) => {
                    let (table, positions) = (authority.place(name), POSITIONS.to_owned());
                    return Err(LakeError::PositionsLost { table, positions }.into());
                }
            };
            index.initialise(&positions)?;
            for name in names {
                index.table(&name)?;
            }
            configure::restore(&*context.objects(), &index).await?;
        } else {
            index.initialise(&BTreeMap::new())?;
        }
        let shards = index
            .durable()?
            .into_iter()
            .map(|(shard, lsn)| (shard.into(), Progress { accepted: lsn, committed: lsn, durable: lsn }))
            .collect();
        let writer = Writer::new(&context, authority, index)?;
        let buffer = Buffer::default();
        let schedule = Schedule::new(context.now_ms());
        let mut lake = Self {
            context,
            writer,
            schedule,
            buffer,
            shards,
            last_flush_ms: 0,
            settle_from_ms: 0,
            armed_ms: None,
            failures: 0,
            flush_error: String::new(),
            retry_at_ms: 0,
        };
        lake.arm();
        Ok(lake)
    }

    async fn handle(&mut self, request: LakeRequest, _call: &Call) -> Handled<LakeReply> {
        use lake_request::Request;
        // What these ask for tells nobody of a commit, and takes away nothing that readers may still be pointed at.
        let may_wait = matches!(
            request.request,
            Some(Request::Append(_) | Request::Positions(_) | Request::Status(_) | Request::Options(_))
        );
        let outcome = match request.request {
            Some(Request::Append(append)) => self.append(append).await.map(|()| self.positions()),
            Some(Request::Flush(_)) => self.flush().await.map(|()| self.positions()).map_err(Failure::from),
            Some(Request::Positions(_)) => Ok(self.positions()),
            Some(Request::Status(_)) => self.status().map_err(Failure::from),
            Some(Request::Compact(compact)) => self.compact(compact).await,
            Some(Request::Cleanup(cleanup)) => self.clean_up(cleanup).await,
            Some(Request::Configure(configure)) => self.configure(configure).await,
            Some(Request::Options(options)) => Ok(self.options(&options)),
            None => Err(Failure::Answer(Error::invalid("the lake request is empty"))),
        };
        let outcome = if may_wait { outcome } else { self.try_settle().await.and(outcome) };
        match outcome {
            Ok(reply) => Handled::Reply(Ok(LakeReply { reply: Some(reply) })),
            Err(Failure::Answer(error)) => Handled::Reply(Err(error)),
            Err(Failure::Crash(error)) => Handled::Crash(error),
        }
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        self.armed_ms = None;
        let is_due = self.flush_at_ms().is_some_and(|at_ms| at_ms <= self.context.now_ms());
        let mut outcome = if is_due { self.try_commit().await } else { Ok(()) };
        if !matches!(outcome, Err(Failure::Crash(_))) {
            outcome = self.maintain().await;
        }
        if !matches!(outcome, Err(Failure::Crash(_))) && self.is_settling_due() {
            outcome = self.try_settle().await.and(outcome);
        }
        self.arm();
        match outcome {
            Err(Failure::Crash(error)) => Err(error),
            Ok(()) | Err(Failure::Answer(_)) => Ok(()),
        }
    }
}

/// What an error means for the actor.
pub(crate) enum Failure {
    /// The asker is told; the actor goes on.
    Answer(Error),
    /// The actor's own database cannot be trusted.
    Crash(Error),
}

impl From<LakeError> for Failure {
    fn from(error: LakeError) -> Self {
        match error {
            LakeError::Database(_) => Self::Crash(error.into()),
            _ => Self::Answer(error.into()),
        }
    }
}

impl Lake {
    async fn append(&mut self, append: LakeAppend) -> Result<(), Failure> {
        let LakeAppend { shard, after_lsn, records } = append;
        if shard.is_empty() {
            return Err(Failure::Answer(Error::invalid("the records name no shard")));
        }
        let shard = match self.shards.get_key_value(shard.as_str()) {
            Some((name, _)) => Rc::clone(name),
            None => shard.into(),
        };
        let accepted = self.shards.entry(Rc::clone(&shard)).or_default().accepted;
        if after_lsn > accepted {
            let message =
                format!("records of {shard} after {after_lsn} were delivered; the lake has it up to {accepted}");
            let mut error = Error::retryable(ErrorCode::OutOfOrder, message, 0);
            error.expected_lsn = accepted + 1;
            return Err(Failure::Answer(error));
        }
        let mut previous = after_lsn;
        for record in records {
            let lsn = record.lsn;
            if lsn <= previous {
                let reason = format!("it follows {previous}");
                return Err(LakeError::Record { shard: shard.to_string(), lsn, reason }.into());
            }
            previous = lsn;
            if lsn <= accepted {
                continue;
            }
            if self.buffer.bytes >= self.context.settings().lake_max_buffer_size {
                return Err(Failure::Answer(self.buffer_full()));
            }
            let first = self.buffer.since_ms.is_none();
            self.buffer.push(&shard, record, self.context.now_ms())?;
            self.shards.entry(Rc::clone(&shard)).or_default().accepted = lsn;
            if first {
                self.arm();
            }
            if self.is_full() && self.retry_at_ms <= self.context.now_ms() {
                self.try_commit().await.or_else(|failure| match failure {
                    // The records stay buffered; the flush is tried again.
                    Failure::Answer(_) => Ok(()),
                    Failure::Crash(_) => Err(failure),
                })?;
            }
        }
        if self.is_settling_due() { self.try_settle().await } else { Ok(()) }
    }

    /// Whether the buffer holds enough for a flush. By size at half its limit, so that records still fit in while object
    /// storage is slow.
    fn is_full(&self) -> bool {
        let settings = self.context.settings();
        self.buffer.events >= settings.lake_event_threshold || self.buffer.bytes >= settings.lake_max_buffer_size / 2
    }

    fn buffer_full(&self) -> Error {
        let message = format!("buffer_full: {} bytes are buffered and could not be flushed yet", self.buffer.bytes);
        let wait_ms = self.retry_at_ms.saturating_sub(self.context.now_ms()).max(SHORTEST_PAUSE_MS);
        Error::retryable(ErrorCode::BufferFull, message, wait_ms)
    }

    /// When the buffer is to be flushed; `None` while it is empty.
    fn flush_at_ms(&self) -> Option<u64> {
        let since_ms = self.buffer.since_ms?;
        Some(since_ms.saturating_add(self.context.settings().lake_flush_interval_ms).max(self.retry_at_ms))
    }

    /// When readers and shards are to be told of what was committed; `None` where they know.
    fn settle_at_ms(&self) -> Option<u64> {
        let is_known = self.shards.values().all(Progress::is_known) && !self.writer.authority.has_hints();
        (!is_known).then_some(self.settle_from_ms)
    }

    fn is_settling_due(&self) -> bool {
        self.settle_at_ms().is_some_and(|at_ms| at_ms <= self.context.now_ms())
    }

    /// Has the actor called when there is something to do.
    fn arm(&mut self) {
        let due = [self.flush_at_ms(), self.settle_at_ms()].into_iter().flatten();
        let at_ms = due.fold(self.schedule.next_ms, u64::min);
        if self.armed_ms.replace(at_ms) != Some(at_ms) {
            self.context.set_alarm(at_ms);
        }
    }

    /// The next flush need not wait for the pause after a failure.
    pub(crate) fn flush_again(&mut self) {
        self.retry_at_ms = 0;
        self.failures = 0;
        self.arm();
    }

    /// A commit that nobody asked for: when it fails it is tried again later.
    async fn try_commit(&mut self) -> Result<(), Failure> {
        let outcome = self.commit().await;
        if let Err(error) = &outcome {
            tracing::warn!(%error, failures = self.failures, "flush failed");
        }
        self.arm();
        outcome.map_err(Failure::from)
    }

    /// Tells readers and shards; when that fails it is tried again later.
    async fn try_settle(&mut self) -> Result<(), Failure> {
        let Err(error) = self.settle().await else { return Ok(()) };
        tracing::warn!(%error, failures = self.failures, "what was committed is not told of");
        self.arm();
        match Failure::from(error) {
            Failure::Answer(_) => Ok(()),
            crash @ Failure::Crash(_) => Err(crash),
        }
    }

    async fn flush(&mut self) -> Result<(), LakeError> {
        self.commit().await?;
        self.settle().await
    }

    /// Commits what is buffered to its tables.
    async fn commit(&mut self) -> Result<(), LakeError> {
        if self.buffer.since_ms.is_none() {
            return Ok(());
        }
        self.buffer.seal();
        if let Err(error) = self.writer.flush(&self.buffer).await {
            self.failed(&error);
            return Err(error);
        }
        self.shards.values_mut().for_each(|progress| progress.committed = progress.accepted);
        self.buffer.clear();
        self.succeeded();
        self.last_flush_ms = self.context.now_ms();
        Ok(())
    }

    /// Points readers at what was committed, and has the shards forget what every table has.
    pub(crate) async fn settle(&mut self) -> Result<(), LakeError> {
        if self.settle_at_ms().is_none() {
            return Ok(());
        }
        if let Err(error) = self.try_to_settle().await {
            self.failed(&error);
            self.settle_from_ms = self.retry_at_ms;
            return Err(error);
        }
        if self.buffer.since_ms.is_none() {
            self.succeeded();
        }
        let delay_ms = (self.context.settings().lake_flush_interval_ms / SETTLING_PART).min(LONGEST_SETTLING_MS);
        self.settle_from_ms = self.context.now_ms().saturating_add(delay_ms);
        Ok(())
    }

    async fn try_to_settle(&mut self) -> Result<(), LakeError> {
        let mut objects = Vec::new();
        let committed: BTreeMap<String, u64> =
            self.shards.iter().map(|(shard, progress)| (shard.to_string(), progress.committed)).collect();
        let is_known = self.shards.values().all(Progress::is_known);
        if !is_known {
            // Before the shards may forget their records: where the database is lost, this tells how far it was.
            objects.push((POSITIONS.to_owned(), positions_object(&committed)?));
        }
        self.writer.authority.put_with_hints(objects).await?;
        if !is_known {
            self.writer.index.set_durable(&committed)?;
            self.shards.values_mut().for_each(|progress| progress.durable = progress.committed);
        }
        Ok(())
    }

    fn failed(&mut self, error: &LakeError) {
        let pause_ms = SHORTEST_PAUSE_MS.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE_MS);
        self.failures = self.failures.saturating_add(1);
        self.retry_at_ms = self.context.now_ms().saturating_add(pause_ms);
        self.flush_error = error.to_string();
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.flush_error.clear();
        self.retry_at_ms = 0;
    }

    fn shard_positions(&self) -> Vec<LakePosition> {
        let position = |(shard, progress): (&Rc<str>, &Progress)| LakePosition {
            shard: shard.to_string(),
            buffered_lsn: progress.accepted,
            durable_lsn: progress.durable,
        };
        self.shards.iter().map(position).collect()
    }

    fn positions(&self) -> lake_reply::Reply {
        lake_reply::Reply::Positions(LakePositions { shards: self.shard_positions() })
    }

    fn status(&self) -> Result<lake_reply::Reply, LakeError> {
        let tables = self
            .writer
            .index
            .tables()?
            .into_iter()
            .map(|table| LakeTable {
                namespace: self.writer.authority.namespace(),
                location: self.writer.location(&table.name),
                name: table.name,
                snapshot_id: table.snapshot_id,
                rows: u64::try_from(table.rows).unwrap_or(0),
            })
            .collect();
        Ok(lake_reply::Reply::Status(LakeStatus {
            buffer_bytes: self.buffer.bytes,
            buffer_events: self.buffer.events,
            max_buffer_bytes: self.context.settings().lake_max_buffer_size,
            last_flush_ms: self.last_flush_ms,
            shards: self.shard_positions(),
            tables,
            flush_error: self.flush_error.clone(),
        }))
    }
}
