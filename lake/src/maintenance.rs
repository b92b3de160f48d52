//! What the lake does by itself and on request beside flushing: compaction and clean-up, in small steps between which the actor
//! takes other messages.

use std::collections::VecDeque;

use chrono::NaiveDate;
use dosql_actors::Settings;
use dosql_proto::{
    CompactionMode, Error, LakeCleaned, LakeCleanedObject, LakeCleanup, LakeCleanupFailure, LakeCompact, LakeCompacted,
    LakeCompaction, lake_reply,
};

use crate::LakeError;
use crate::actor::{Failure, Lake};
use crate::cleanup::{Cleaned, CleanupPolicy};
use crate::compaction::{Compacted, CompactionPolicy};

const HOUR_MS: u64 = 3_600_000;
/// After a start, before the schedule is looked at.
const FIRST_LOOK_MS: u64 = 60_000;
/// Between two steps, for messages to be taken.
const PAUSE_MS: u64 = 10;

/// One step's work.
#[derive(Debug)]
enum Job {
    Compact(String),
    CleanUp { table: String, deep: bool },
}

/// What is to be done, and when to look next.
#[derive(Debug)]
pub(crate) struct Schedule {
    jobs: VecDeque<Job>,
    pub(crate) next_ms: u64,
}

impl Schedule {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self { jobs: VecDeque::new(), next_ms: now_ms + FIRST_LOOK_MS }
    }
}

/// The hour of the day, and whether the day is a Sunday, in UTC.
fn hour_and_sunday(now_ms: u64) -> (u32, bool) {
    let hours = now_ms / HOUR_MS;
    // The epoch began on a Thursday.
    ((hours % 24) as u32, (hours / 24 + 4).is_multiple_of(7))
}

impl Lake {
    /// The next step of what the schedule asks for, if it is time.
    pub(crate) async fn maintain(&mut self) -> Result<(), Failure> {
        let now_ms = self.context.now_ms();
        if now_ms < self.schedule.next_ms {
            return Ok(());
        }
        if self.schedule.jobs.is_empty() {
            self.plan_jobs(now_ms)?;
        }
        let Some(job) = self.schedule.jobs.pop_front() else {
            self.schedule.next_ms = (now_ms / HOUR_MS + 1) * HOUR_MS;
            return Ok(());
        };
        self.schedule.next_ms = now_ms + PAUSE_MS;
        let outcome = match &job {
            Job::Compact(table) => {
                let policy = compaction_policy(self.context.settings(), CompactionMode::Auto, None);
                self.writer.compact(table, &policy).await.map(|compacted| compacted.is_some())
            }
            Job::CleanUp { table, deep } => {
                let policy = cleanup_policy(self.context.settings(), *deep, false);
                self.take_away(table, &policy).await.map(|_| false)
            }
        };
        match outcome.map_err(Failure::from) {
            Ok(true) => self.schedule.jobs.push_front(job),
            Ok(false) => {}
            Err(Failure::Answer(error)) => tracing::warn!(?job, %error, "maintenance failed"),
            Err(crash) => return Err(crash),
        }
        Ok(())
    }

    /// Cleans up a table. Before, readers are pointed at its newest version: it may take away what they are pointed at now.
    async fn take_away(&mut self, table: &str, policy: &CleanupPolicy) -> Result<Option<Cleaned>, LakeError> {
        self.settle().await?;
        self.writer.clean_up(table, policy).await
    }

    /// Begins each task once an hour that it is scheduled for.
    fn plan_jobs(&mut self, now_ms: u64) -> Result<(), Failure> {
        let (hour, is_sunday) = hour_and_sunday(now_ms);
        let settings = self.context.settings();
        let deep = is_sunday && settings.lake_deep_cleanup_hours.contains(hour);
        let clean_up = deep || settings.lake_cleanup_hours.contains(hour);
        let compact = settings.lake_compaction_hours.contains(hour);
        let begun = now_ms / HOUR_MS * HOUR_MS;
        for (task, is_due) in [("compact", compact), ("clean-up", clean_up)] {
            if !is_due || self.writer.index.last_run_ms(task)? >= begun {
                continue;
            }
            self.writer.index.set_last_run_ms(task, now_ms)?;
            let tables = self.writer.index.tables()?.into_iter().map(|table| table.name);
            self.schedule.jobs.extend(tables.map(|table| match task {
                "compact" => Job::Compact(table),
                _ => Job::CleanUp { table, deep },
            }));
        }
        Ok(())
    }

    /// One step of compaction.
    pub(crate) async fn compact(&mut self, request: LakeCompact) -> Result<lake_reply::Reply, Failure> {
        let mode = request.mode();
        let LakeCompact { table, partition, .. } = request;
        self.require_table(&table)?;
        let policy = compaction_policy(self.context.settings(), mode, partition_of(partition)?);
        let compacted = self.writer.compact(&table, &policy).await?;
        let compaction = compacted.map(|compacted| {
            let Compacted { partition, files_before, files_after, deletes_folded, bytes_before, bytes_after } =
                compacted;
            LakeCompaction {
                table,
                partition,
                files_before: files_before as u64,
                files_after: files_after as u64,
                deletes_folded,
                bytes_before,
                bytes_after,
            }
        });
        Ok(lake_reply::Reply::Compacted(LakeCompacted { compaction }))
    }

    /// Cleans one table up.
    pub(crate) async fn clean_up(&mut self, request: LakeCleanup) -> Result<lake_reply::Reply, Failure> {
        let LakeCleanup { table, deep, dry_run } = request;
        self.require_table(&table)?;
        let policy = cleanup_policy(self.context.settings(), deep, dry_run);
        let cleaned = self.take_away(&table, &policy).await?.unwrap_or_default();
        let Cleaned { expired_snapshots, objects, failures } = cleaned;
        let object = |(object, reason): (dosql_actors::ObjectMeta, crate::cleanup::Reason)| LakeCleanedObject {
            path: object.path,
            bytes: object.size,
            reason: reason.name().to_owned(),
        };
        Ok(lake_reply::Reply::Cleaned(LakeCleaned {
            expired_snapshots,
            objects: objects.into_iter().map(object).collect(),
            failures: failures.into_iter().map(|(path, reason)| LakeCleanupFailure { path, reason }).collect(),
        }))
    }

    fn require_table(&self, name: &str) -> Result<(), Failure> {
        if self.writer.index.tables()?.iter().any(|table| table.name == name) {
            return Ok(());
        }
        let message = format!("the lake has no table {name:?}");
        Err(Failure::Answer(Error::new(dosql_proto::ErrorCode::NotFound, message)))
    }
}

/// The partition that is named: by a date, or by its path.
fn partition_of(partition: String) -> Result<Option<String>, Failure> {
    if partition.is_empty() {
        return Ok(None);
    }
    let is_path = partition.split('/').all(|part| part.split_once('=').is_some_and(|(name, _)| !name.is_empty()));
    if is_path || partition.parse::<NaiveDate>().is_ok() {
        return Ok(Some(partition));
    }
    let message =
        format!("the partition {partition:?} is neither a day as 2026-01-31 nor a path as dt=2026-01-31/id_bucket=3");
    Err(Failure::Answer(Error::invalid(message)))
}

fn compaction_policy(settings: &Settings, mode: CompactionMode, partition: Option<String>) -> CompactionPolicy {
    let files = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (min_files, min_age_ms) = match mode {
        CompactionMode::Auto => (files(settings.lake_compaction_min_files), settings.lake_compaction_min_age_ms),
        CompactionMode::Full => (2, 0),
    };
    let max_files = files(settings.lake_compaction_max_files);
    CompactionPolicy { min_files, max_files, target_bytes: settings.lake_target_file_size, min_age_ms, partition }
}

fn cleanup_policy(settings: &Settings, deep: bool, dry_run: bool) -> CleanupPolicy {
    CleanupPolicy {
        deep,
        dry_run,
        snapshot_retention_ms: settings.lake_snapshot_retention_ms,
        keep_snapshots: usize::try_from(settings.lake_keep_snapshots).unwrap_or(usize::MAX),
        keep_metadata: settings.lake_keep_metadata,
        orphan_age_ms: settings.lake_orphan_age_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_week_is_known() {
        assert_eq!(hour_and_sunday(0), (0, false));
        // Sunday, 4 January 1970, 03:59:59.
        assert_eq!(hour_and_sunday(3 * 86_400_000 + 4 * HOUR_MS - 1), (3, true));
        assert_eq!(hour_and_sunday(4 * 86_400_000), (0, false));
    }
}
