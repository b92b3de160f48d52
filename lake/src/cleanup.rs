//! Clean-up: old snapshots, old metadata versions, and objects that nothing refers to.
//!
//! A snapshot is retained while a branch or tag names it, while it is among the newest, and while it is young. What a retained
//! snapshot refers to is never deleted: its files are looked up in the metadata as it is after the objects were listed, and an
//! object that nothing refers to is an orphan only when it is older than any commit can last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use dosql_actors::ObjectMeta;
use iceberg::spec::{SnapshotRef, TableMetadataBuilder};

use crate::LakeError;
use crate::flush::Writer;
use crate::table::{LakeTable, METADATA_VERSIONS, metadata_version};

/// What is kept, and how thoroughly is looked.
#[derive(Debug, Clone)]
pub(crate) struct CleanupPolicy {
    /// Also look through all objects for orphans.
    pub(crate) deep: bool,
    /// Say what would be done, and do nothing.
    pub(crate) dry_run: bool,
    pub(crate) snapshot_retention_ms: u64,
    /// Snapshots kept however old they are.
    pub(crate) keep_snapshots: usize,
    /// Metadata versions kept beside the newest.
    pub(crate) keep_metadata: u64,
    /// Age in milliseconds that an old metadata version and an orphan must have: longer than any commit is under way.
    pub(crate) orphan_age_ms: u64,
}

/// Why an object is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Expired,
    OldMetadata,
    Orphan,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::OldMetadata => "old_metadata",
            Self::Orphan => "orphan",
        }
    }
}

/// What was done, or would be.
#[derive(Debug, Default)]
pub(crate) struct Cleaned {
    pub(crate) expired_snapshots: Vec<i64>,
    pub(crate) objects: Vec<(ObjectMeta, Reason)>,
    /// Objects that could not be deleted, and why. They are tried again by the next deep clean-up.
    pub(crate) failures: Vec<(String, String)>,
}

impl Writer {
    /// Cleans one table up. `None` where there is no such table.
    pub(crate) async fn clean_up(&mut self, name: &str, policy: &CleanupPolicy) -> Result<Option<Cleaned>, LakeError> {
        self.resolve_pending().await?;
        let Some(directory) = self.authority.directory(name).await? else { return Ok(None) };
        let listed = self.objects.list(&format!("{directory}/")).await?;
        // As it is now, so that whatever of the listed objects has been committed is known.
        self.tables.remove(name);
        let Some(mut table) = self.open_existing(name).await? else { return Ok(None) };
        let sizes: HashMap<&str, &ObjectMeta> = listed.iter().map(|object| (object.path.as_str(), object)).collect();

        let (expired, retained) = self.expired(&table, policy)?;
        let kept = self.referenced(&table, &retained).await?;
        let mut cleaned = Cleaned {
            expired_snapshots: expired.iter().map(|snapshot| snapshot.snapshot_id()).collect(),
            ..Cleaned::default()
        };
        let mut chosen: HashSet<String> = HashSet::new();
        let mut choose = |object: &ObjectMeta, reason: Reason| {
            if chosen.insert(object.path.clone()) {
                cleaned.objects.push((object.clone(), reason));
            }
        };
        for path in self.referenced(&table, &expired).await?.difference(&kept) {
            // One that is not listed is gone already.
            if let Some(object) = sizes.get(path.as_str()) {
                choose(object, Reason::Expired);
            }
        }
        let last_old = table.version.saturating_sub(policy.keep_metadata + 1);
        let is_old =
            |object: &ObjectMeta| object.modified_ms.saturating_add(policy.orphan_age_ms) <= self.context.now_ms();
        for object in listed.iter().filter(|object| is_old(object)) {
            match metadata_version(&object.path) {
                _ if self.authority.keeps(&object.path) => {}
                // A writer that is under way since before this version must still find it taken.
                Some(version) if version <= last_old => choose(object, Reason::OldMetadata),
                Some(_) => {}
                None if policy.deep && !kept.contains(&object.path) => choose(object, Reason::Orphan),
                None => {}
            }
        }
        if !policy.dry_run {
            if policy.deep {
                self.index.forget_unused_runs(self.index.table(name)?.id)?;
            }
            if !expired.is_empty() {
                self.expire(&mut table, &cleaned.expired_snapshots, policy).await?;
            }
            if cleaned.objects.iter().any(|(_, reason)| *reason == Reason::OldMetadata) {
                // A reader must not be led to a version that is about to go.
                table.try_put_hint(&*self.objects).await?;
            }
            let mut deleted = Vec::with_capacity(cleaned.objects.len());
            for (object, reason) in cleaned.objects {
                match self.objects.delete(&object.path).await {
                    Ok(()) => deleted.push((object, reason)),
                    Err(error) => cleaned.failures.push((object.path, error.to_string())),
                }
            }
            cleaned.objects = deleted;
        }
        self.tables.insert(name.to_owned(), table);
        Ok(Some(cleaned))
    }

    /// The snapshots that are to go, and those that stay.
    fn expired(
        &self,
        table: &LakeTable,
        policy: &CleanupPolicy,
    ) -> Result<(Vec<SnapshotRef>, Vec<SnapshotRef>), LakeError> {
        let metadata = &table.metadata;
        let oldest_ms = self.context.now_ms().saturating_sub(policy.snapshot_retention_ms);
        let mut kept = table.named_snapshots()?;
        kept.extend(metadata.current_snapshot_id());
        // Where the shards' LSNs stand, which another program's snapshots do not say.
        kept.extend(table.watermark_snapshot());
        let mut newest: Vec<&SnapshotRef> = metadata.snapshots().collect();
        newest.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.sequence_number()));
        kept.extend(newest.iter().take(policy.keep_snapshots).map(|snapshot| snapshot.snapshot_id()));
        let is_young = |snapshot: &SnapshotRef| u64::try_from(snapshot.timestamp_ms()).unwrap_or(0) >= oldest_ms;
        Ok(newest
            .into_iter()
            .cloned()
            .partition(|snapshot| !kept.contains(&snapshot.snapshot_id()) && !is_young(snapshot)))
    }

    /// The paths of everything that these snapshots consist of.
    pub(crate) async fn referenced(
        &self,
        table: &LakeTable,
        snapshots: &[SnapshotRef],
    ) -> Result<BTreeSet<String>, LakeError> {
        let mut paths = BTreeSet::new();
        for snapshot in snapshots {
            paths.insert(table.path_of(snapshot.manifest_list())?);
            for manifest in table.manifests_of(&*self.objects, snapshot).await? {
                if paths.insert(table.path_of(&manifest.manifest_path)?) {
                    for entry in table.entries_of(&*self.objects, &manifest).await? {
                        paths.insert(table.path_of(entry.file_path())?);
                    }
                }
            }
        }
        Ok(paths)
    }

    /// Commits the table without these snapshots.
    async fn expire(&self, table: &mut LakeTable, snapshots: &[i64], policy: &CleanupPolicy) -> Result<(), LakeError> {
        let versions = BTreeMap::from([(METADATA_VERSIONS.to_owned(), policy.keep_metadata.max(1).to_string())]);
        let metadata = TableMetadataBuilder::new_from_metadata(table.metadata.clone(), Some(table.metadata_url()))
            .remove_snapshots(snapshots)
            .set_properties(versions.into_iter().collect())?
            .build()?
            .metadata;
        let metadata = table.updated_at(metadata, self.context.now_ms())?;
        self.authority.commit(table, metadata).await
    }
}
