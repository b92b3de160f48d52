//! The settings every host reads from its environment, under the names of the operator's guide.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::CatalogSettings;

/// How a table created without a VSchema entry is sharded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoShard {
    /// It lives unsharded on the default shard.
    #[default]
    Off,
    /// By hash of its (first) primary key column.
    PrimaryKey,
    /// By hash of its first column.
    FirstColumn,
}

impl FromStr for AutoShard {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "primary-key" => Ok(Self::PrimaryKey),
            "first-column" => Ok(Self::FirstColumn),
            _ => Err("expected off, primary-key or first-column"),
        }
    }
}

/// What a transaction over several shards may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionMode {
    /// Nothing: it is refused.
    Single,
    /// It commits on one shard after the other; a crash in between leaves it half done.
    Multi,
    /// It takes effect on all of them or on none (two-phase commit).
    #[default]
    TwoPhase,
}

impl FromStr for TransactionMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "single" => Ok(Self::Single),
            "multi" => Ok(Self::Multi),
            "twopc" => Ok(Self::TwoPhase),
            _ => Err("expected single, multi or twopc"),
        }
    }
}

/// Which of the members that a read may use is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadStrategy {
    /// The one that has answered soonest of late.
    #[default]
    Nearest,
    /// Each as often as its weight says.
    Weighted,
    /// One after the other.
    RoundRobin,
}

impl FromStr for ReadStrategy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nearest" => Ok(Self::Nearest),
            "weighted" => Ok(Self::Weighted),
            "round-robin" => Ok(Self::RoundRobin),
            _ => Err("expected nearest, weighted or round-robin"),
        }
    }
}

/// Hours of the day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hours(u32);

impl Hours {
    /// These hours, of which those beyond 23 do not count.
    pub const fn of(hours: &[u32]) -> Self {
        let (mut set, mut place) = (0, 0);
        while place < hours.len() {
            if hours[place] < 24 {
                set |= 1 << hours[place];
            }
            place += 1;
        }
        Self(set)
    }

    /// Whether this hour is one of them.
    pub const fn contains(self, hour: u32) -> bool {
        hour < 24 && self.0 >> hour & 1 == 1
    }
}

impl FromStr for Hours {
    type Err = &'static str;

    /// `off`, or a list as `2,3,4`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected off, or hours from 0 to 23 separated by commas";
        if text == "off" {
            return Ok(Self::default());
        }
        let hours: Vec<u32> =
            text.split(',').map(|hour| hour.trim().parse()).collect::<Result<_, _>>().map_err(|_| EXPECTED)?;
        if hours.iter().any(|hour| *hour > 23) { Err(EXPECTED) } else { Ok(Self::of(&hours)) }
    }
}

/// The system's settings. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `SHARD_COUNT`: number of shards, named `shard-0`, `shard-1`, ..., where the VSchema lists none.
    pub shard_count: u32,
    /// The names of all shards, where the VSchema says more of them than `shard_count` does; otherwise empty.
    pub shards: Vec<String>,
    /// `SHARD_TIMEOUT_MS`: how long the router waits for one shard.
    pub shard_timeout_ms: u64,
    /// `MAX_PARALLEL_SHARDS`: shards one query asks at a time.
    pub max_parallel_shards: u32,
    /// `DOSQL_QUERY_TIMEOUT_MS`: how long a statement may take.
    pub query_timeout_ms: u64,
    /// `DOSQL_QUERY_MEMORY`: bytes of memory that a statement may use to finish rows of several shards.
    pub query_memory: u64,
    /// `DOSQL_QUERY_DISK`: bytes of disk that it may use beyond that, where the host has a disk.
    pub query_disk: u64,
    /// `DOSQL_MAX_RESULT_ROWS`: most rows of a result; 0 sets no limit.
    pub max_result_rows: u64,
    /// `DOSQL_MAX_RESULT_BYTES`: most bytes of a result; 0 sets no limit.
    pub max_result_bytes: u64,
    /// `TRANSACTION_MODE`: see [`TransactionMode`].
    pub transaction_mode: TransactionMode,
    /// `LOCK_TIMEOUT_MS`: how long a write waits for a lock that another transaction holds.
    pub lock_timeout_ms: u64,
    /// `SESSION_IDLE_TIMEOUT_MS`: how long a session may be idle before it is closed.
    pub session_idle_timeout_ms: u64,
    /// `TRANSACTION_TIMEOUT_MS`: how long a session's transaction may take from BEGIN to COMMIT.
    pub transaction_timeout_ms: u64,
    /// `DOSQL_WAL_SEGMENT_SIZE`: bytes of log records in a sealed segment.
    pub wal_segment_size: u64,
    /// `DOLAKE_FLUSH_INTERVAL_MS`: longest time an event waits in the lake's buffer.
    pub lake_flush_interval_ms: u64,
    /// `DOLAKE_MAX_BUFFER_SIZE`: bytes the lake buffers before it refuses more.
    pub lake_max_buffer_size: u64,
    /// `DOLAKE_EVENT_THRESHOLD`: buffered events that trigger a flush.
    pub lake_event_threshold: u64,
    /// `DOLAKE_PARQUET_ROW_GROUP_SIZE`: rows in a Parquet row group.
    pub lake_parquet_row_group_size: u64,
    /// `DOLAKE_COMPACTION_MIN_FILES`: small data files and delete files that make a partition worth compacting.
    pub lake_compaction_min_files: u64,
    /// `DOLAKE_COMPACTION_MAX_FILES`: data files compacted at a time.
    pub lake_compaction_max_files: u64,
    /// `DOLAKE_COMPACTION_MIN_AGE_MS`: how long a partition's day must be over before it is compacted.
    pub lake_compaction_min_age_ms: u64,
    /// `DOLAKE_COMPACTION_HOURS`: hours, in UTC, in which the lake compacts by itself.
    pub lake_compaction_hours: Hours,
    /// `DOLAKE_TARGET_FILE_SIZE`: bytes at which compaction finishes a file.
    pub lake_target_file_size: u64,
    /// `DOLAKE_SNAPSHOT_RETENTION_MS`: age at which a snapshot expires.
    pub lake_snapshot_retention_ms: u64,
    /// `DOLAKE_KEEP_SNAPSHOTS`: snapshots kept however old they are.
    pub lake_keep_snapshots: u64,
    /// `DOLAKE_KEEP_METADATA`: metadata versions kept beside the current one.
    pub lake_keep_metadata: u64,
    /// `DOLAKE_ORPHAN_AGE_MS`: age at which an object that nothing refers to may be deleted.
    pub lake_orphan_age_ms: u64,
    /// `DOLAKE_CLEANUP_HOURS`: hours, in UTC, in which the lake cleans up by itself.
    pub lake_cleanup_hours: Hours,
    /// `DOLAKE_DEEP_CLEANUP_HOURS`: hours of a Sunday, in UTC, in which it looks for orphans, too.
    pub lake_deep_cleanup_hours: Hours,
    /// `DOLAKE_CATALOG_...`: the catalog that keeps the lake's tables; without one the lake keeps them itself.
    pub lake_catalog: Option<CatalogSettings>,
    /// `CDC_BATCH_SIZE`: records delivered to the lake at a time.
    pub cdc_batch_size: u64,
    /// `CDC_BATCH_TIMEOUT_MS`: how long the stream waits before it looks for records it was not told of.
    pub cdc_batch_timeout_ms: u64,
    /// `CDC_MAX_RETRY_COUNT`: retries of one delivery before it rests until the next batch.
    pub cdc_max_retry_count: u32,
    /// `CDC_RETRY_DELAY_MS`: first pause between retries; doubles.
    pub cdc_retry_delay_ms: u64,
    /// `CDC_FALLBACK_SIZE`: bytes of records that the change stream keeps where the lake takes none; 0: the shards keep them.
    pub cdc_fallback_size: u64,
    /// `CDC_SUBSCRIPTION_EXPIRY_MS`: after what time a durable subscription is removed that was neither opened nor acknowledged.
    pub cdc_subscription_expiry_ms: u64,
    /// `CDC_SUBSCRIPTION_MAX_RECORDS`: records of a shard that are kept for a durable subscription at most.
    pub cdc_subscription_max_records: u64,
    /// `AUTO_SHARD`: see [`AutoShard`].
    pub auto_shard: AutoShard,
    /// `REPLICAS_PER_SHARD`: replicas of each shard for which the VSchema lists fewer.
    pub replicas_per_shard: u32,
    /// `REPLICA_POLL_MS`: how long a replica waits, where nothing is written, before it makes sure that it is up to date.
    pub replica_poll_ms: u64,
    /// `REPLICA_LOG_SIZE`: bytes of log that a shard keeps for a replica which is away, before that one must start over.
    pub replica_log_size: u64,
    /// `REPLICA_BATCH_SIZE`: bytes of records or rows that a replica fetches at a time.
    pub replica_batch_size: u32,
    /// `READ_STRATEGY`: see [`ReadStrategy`].
    pub read_strategy: ReadStrategy,
    /// `HEDGE_AFTER_MS`: after what time a read also asks another member that may answer it; 0: never.
    pub hedge_after_ms: u64,
    /// `DOSQL_REGION`: where the router is; "" where regions do not matter.
    pub region: String,
    /// `VSCHEMA`: the VSchema document itself, JSON; empty where there is none.
    pub vschema: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shard_count: 16,
            shards: Vec::new(),
            shard_timeout_ms: 10_000,
            max_parallel_shards: 8,
            query_timeout_ms: 30_000,
            query_memory: 32 << 20,
            query_disk: 1 << 30,
            max_result_rows: 0,
            max_result_bytes: 0,
            transaction_mode: TransactionMode::TwoPhase,
            lock_timeout_ms: 5_000,
            session_idle_timeout_ms: 60_000,
            transaction_timeout_ms: 60_000,
            wal_segment_size: 10_485_760,
            lake_flush_interval_ms: 60_000,
            lake_max_buffer_size: 67_108_864,
            lake_event_threshold: 10_000,
            lake_parquet_row_group_size: 100_000,
            lake_compaction_min_files: 10,
            lake_compaction_max_files: 50,
            lake_compaction_min_age_ms: 86_400_000,
            lake_compaction_hours: Hours::of(&[2, 3, 4, 5]),
            lake_target_file_size: 134_217_728,
            lake_snapshot_retention_ms: 604_800_000,
            lake_keep_snapshots: 10,
            lake_keep_metadata: 10,
            lake_orphan_age_ms: 259_200_000,
            lake_cleanup_hours: Hours::of(&[4]),
            lake_deep_cleanup_hours: Hours::of(&[3]),
            lake_catalog: None,
            cdc_batch_size: 100,
            cdc_batch_timeout_ms: 5_000,
            cdc_max_retry_count: 5,
            cdc_retry_delay_ms: 1_000,
            cdc_fallback_size: 1 << 30,
            cdc_subscription_expiry_ms: 604_800_000,
            cdc_subscription_max_records: 1_000_000,
            auto_shard: AutoShard::Off,
            replicas_per_shard: 0,
            replica_poll_ms: 250,
            replica_log_size: 1 << 30,
            replica_batch_size: 1 << 20,
            read_strategy: ReadStrategy::Nearest,
            hedge_after_ms: 0,
            region: String::new(),
            vschema: String::new(),
        }
    }
}

/// A setting whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is not usable: {reason}")]
pub struct SettingsError {
    /// The setting's name.
    pub name: &'static str,
    /// What it was set to.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Settings {
    /// Reads every setting from `variable`, which gives the value of an environment variable; unset ones keep their defaults.
    ///
    /// # Errors
    /// The first setting that is malformed or out of range.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        read(&variable, "SHARD_COUNT", &mut settings.shard_count, 1..=4096)?;
        read(&variable, "SHARD_TIMEOUT_MS", &mut settings.shard_timeout_ms, 1..=3_600_000)?;
        read(&variable, "MAX_PARALLEL_SHARDS", &mut settings.max_parallel_shards, 1..=4096)?;
        read(&variable, "DOSQL_QUERY_TIMEOUT_MS", &mut settings.query_timeout_ms, 1..=3_600_000)?;
        read(&variable, "DOSQL_QUERY_MEMORY", &mut settings.query_memory, 8 << 20..=1 << 40)?;
        read(&variable, "DOSQL_QUERY_DISK", &mut settings.query_disk, 0..=1 << 46)?;
        read(&variable, "DOSQL_MAX_RESULT_ROWS", &mut settings.max_result_rows, 0..=u64::MAX)?;
        read(&variable, "DOSQL_MAX_RESULT_BYTES", &mut settings.max_result_bytes, 0..=u64::MAX)?;
        read(&variable, "LOCK_TIMEOUT_MS", &mut settings.lock_timeout_ms, 1..=3_600_000)?;
        read(&variable, "SESSION_IDLE_TIMEOUT_MS", &mut settings.session_idle_timeout_ms, 100..=86_400_000)?;
        read(&variable, "TRANSACTION_TIMEOUT_MS", &mut settings.transaction_timeout_ms, 100..=86_400_000)?;
        read(&variable, "DOSQL_WAL_SEGMENT_SIZE", &mut settings.wal_segment_size, 4_096..=1 << 30)?;
        read(&variable, "DOLAKE_FLUSH_INTERVAL_MS", &mut settings.lake_flush_interval_ms, 1..=86_400_000)?;
        read(&variable, "DOLAKE_MAX_BUFFER_SIZE", &mut settings.lake_max_buffer_size, 65_536..=1 << 40)?;
        read(&variable, "DOLAKE_EVENT_THRESHOLD", &mut settings.lake_event_threshold, 1..=1 << 40)?;
        read(&variable, "DOLAKE_PARQUET_ROW_GROUP_SIZE", &mut settings.lake_parquet_row_group_size, 1..=1 << 32)?;
        read(&variable, "DOLAKE_COMPACTION_MIN_FILES", &mut settings.lake_compaction_min_files, 2..=100_000)?;
        read(&variable, "DOLAKE_COMPACTION_MAX_FILES", &mut settings.lake_compaction_max_files, 2..=10_000)?;
        read(&variable, "DOLAKE_COMPACTION_MIN_AGE_MS", &mut settings.lake_compaction_min_age_ms, 0..=1 << 40)?;
        read_hours(&variable, "DOLAKE_COMPACTION_HOURS", &mut settings.lake_compaction_hours)?;
        read(&variable, "DOLAKE_TARGET_FILE_SIZE", &mut settings.lake_target_file_size, 1_024..=1 << 34)?;
        read(&variable, "DOLAKE_SNAPSHOT_RETENTION_MS", &mut settings.lake_snapshot_retention_ms, 0..=1 << 44)?;
        read(&variable, "DOLAKE_KEEP_SNAPSHOTS", &mut settings.lake_keep_snapshots, 1..=1_000_000)?;
        read(&variable, "DOLAKE_KEEP_METADATA", &mut settings.lake_keep_metadata, 1..=1_000_000)?;
        // An hour is longer than any commit is under way.
        read(&variable, "DOLAKE_ORPHAN_AGE_MS", &mut settings.lake_orphan_age_ms, 3_600_000..=1 << 44)?;
        read_hours(&variable, "DOLAKE_CLEANUP_HOURS", &mut settings.lake_cleanup_hours)?;
        read_hours(&variable, "DOLAKE_DEEP_CLEANUP_HOURS", &mut settings.lake_deep_cleanup_hours)?;
        settings.lake_catalog = CatalogSettings::from_variables(&variable)?;
        read(&variable, "CDC_BATCH_SIZE", &mut settings.cdc_batch_size, 1..=1_000_000)?;
        read(&variable, "CDC_BATCH_TIMEOUT_MS", &mut settings.cdc_batch_timeout_ms, 1..=86_400_000)?;
        read(&variable, "CDC_MAX_RETRY_COUNT", &mut settings.cdc_max_retry_count, 0..=1000)?;
        read(&variable, "CDC_RETRY_DELAY_MS", &mut settings.cdc_retry_delay_ms, 1..=3_600_000)?;
        read(&variable, "CDC_FALLBACK_SIZE", &mut settings.cdc_fallback_size, 0..=1 << 40)?;
        let expiry_ms = &mut settings.cdc_subscription_expiry_ms;
        read(&variable, "CDC_SUBSCRIPTION_EXPIRY_MS", expiry_ms, 1_000..=315_360_000_000)?;
        let max_records = &mut settings.cdc_subscription_max_records;
        read(&variable, "CDC_SUBSCRIPTION_MAX_RECORDS", max_records, 1..=1 << 40)?;
        parse(&variable, "AUTO_SHARD", &mut settings.auto_shard)?;
        read(&variable, "REPLICAS_PER_SHARD", &mut settings.replicas_per_shard, 0..=16)?;
        read(&variable, "REPLICA_POLL_MS", &mut settings.replica_poll_ms, 1..=60_000)?;
        read(&variable, "REPLICA_LOG_SIZE", &mut settings.replica_log_size, 65_536..=1 << 40)?;
        read(&variable, "REPLICA_BATCH_SIZE", &mut settings.replica_batch_size, 256..=16 << 20)?;
        read(&variable, "HEDGE_AFTER_MS", &mut settings.hedge_after_ms, 0..=3_600_000)?;
        parse(&variable, "READ_STRATEGY", &mut settings.read_strategy)?;
        if let Some(text) = variable("DOSQL_REGION") {
            settings.region = text;
        }
        parse(&variable, "TRANSACTION_MODE", &mut settings.transaction_mode)?;
        if let Some(text) = variable("VSCHEMA") {
            settings.vschema = text;
        }
        Ok(settings)
    }

    /// The names of all shards.
    pub fn shard_names(&self) -> impl Iterator<Item = String> + use<> {
        let numbered = self.shards.is_empty().then(|| self.numbered_shards());
        self.shards.clone().into_iter().chain(numbered.into_iter().flatten())
    }

    /// `shard-0`, `shard-1`, ..., as many as `shard_count` says.
    pub fn numbered_shards(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.shard_count).map(|index| format!("shard-{index}"))
    }
}

fn parse<T: FromStr<Err = &'static str>>(
    variable: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    target: &mut T,
) -> Result<(), SettingsError> {
    if let Some(value) = variable(name) {
        *target = value.parse().map_err(|reason: &str| SettingsError { name, value, reason: reason.to_owned() })?;
    }
    Ok(())
}

fn read_hours(
    variable: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    target: &mut Hours,
) -> Result<(), SettingsError> {
    let Some(text) = variable(name) else { return Ok(()) };
    *target = text.trim().parse().map_err(|reason: &str| SettingsError {
        name,
        value: text.clone(),
        reason: reason.to_owned(),
    })?;
    Ok(())
}

fn read<T: FromStr<Err: Display> + PartialOrd + Display>(
    variable: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    target: &mut T,
    range: RangeInclusive<T>,
) -> Result<(), SettingsError> {
    let Some(text) = variable(name) else { return Ok(()) };
    let bad = |reason: String| SettingsError { name, value: text.clone(), reason };
    let value: T = text.trim().parse().map_err(|error: T::Err| bad(error.to_string()))?;
    if !range.contains(&value) {
        return Err(bad(format!("it must be {} to {}", range.start(), range.end())));
    }
    *target = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_is_named() {
        let error = Settings::from_variables(|name| (name == "SHARD_COUNT").then(|| "0".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "SHARD_COUNT=\"0\" is not usable: it must be 1 to 4096");
    }

    #[test]
    fn hours_are_listed() {
        let hours =
            |text: &str| Settings::from_variables(|name| (name == "DOLAKE_CLEANUP_HOURS").then(|| text.to_owned()));
        let chosen = hours("0, 23").unwrap().lake_cleanup_hours;
        assert!(chosen.contains(0) && chosen.contains(23) && !chosen.contains(22) && !chosen.contains(24));
        assert_eq!(hours("off").unwrap().lake_cleanup_hours, Hours::default());
        assert!(hours("24").unwrap_err().to_string().contains("DOLAKE_CLEANUP_HOURS"));
    }

    #[test]
    fn unset_settings_keep_their_defaults() {
        let settings = Settings::from_variables(|_| None).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.shard_names().count(), 16);
    }
}
