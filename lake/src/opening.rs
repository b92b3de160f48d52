//! Tables as the writer finds them: what became of commits that were interrupted, and an index that is of the current snapshot.

use std::collections::BTreeSet;

use crate::LakeError;
use crate::authority::Fate;
use crate::flush::Writer;
use crate::table::LakeTable;

impl Writer {
    /// Finds out what became of commits that were interrupted.
    pub(crate) async fn resolve_pending(&mut self) -> Result<(), LakeError> {
        for pending in self.index.pending()? {
            self.tables.remove(&pending.table);
            let built_on = self.index.table(&pending.table)?.snapshot_id;
            match self.authority.fate(&pending, built_on).await? {
                Fate::Happened => {
                    self.index.confirm(&pending)?;
                    continue;
                }
                // What it wrote is left to a deep clean-up, which knows what the table then refers to.
                Fate::Open => {}
                Fate::Never { table } => {
                    let mut kept = BTreeSet::new();
                    if let Some(table) = table {
                        // Another program went on, perhaps from our snapshot, and may have expired it since.
                        let snapshots: Vec<_> = table.metadata.snapshots().cloned().collect();
                        kept = self.referenced(&table, &snapshots).await?;
                    }
                    for path in pending.paths.iter().filter(|path| !kept.contains(*path)) {
                        self.objects.delete(path).await?;
                    }
                }
            }
            self.index.take_back(&pending)?;
        }
        Ok(())
    }

    /// A table, unless it was never made. It must be put back into `tables` while its state is certain.
    pub(crate) async fn open_existing(&mut self, name: &str) -> Result<Option<LakeTable>, LakeError> {
        if let Some(table) = self.tables.remove(name)
            && self.index.table(name)?.snapshot_id == table.metadata.current_snapshot_id().unwrap_or(0)
        {
            return Ok(Some(table));
        }
        match self.authority.load(name).await? {
            Some(table) => {
                self.authority.renew_hint(&table);
                self.checked(name, table).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Makes sure that the index is of the table's snapshot. Where another program has committed, the index is made anew.
    pub(crate) async fn checked(&self, name: &str, table: LakeTable) -> Result<LakeTable, LakeError> {
        let known = self.index.table(name)?.snapshot_id;
        let found = table.metadata.current_snapshot_id().unwrap_or(0);
        if known != found {
            if found == 0 && known > 0 {
                let reason = format!("it has no snapshot, the index is of snapshot {known}");
                return Err(LakeError::Conflict { table: table.directory, reason });
            }
            self.rebuild_index(name, &table).await?;
        }
        Ok(table)
    }

    /// Where a table stands; empty where a catalog has it and it was not used yet.
    pub(crate) fn location(&self, name: &str) -> String {
        let known = self.tables.get(name);
        known.map_or_else(|| self.authority.new_location(name), |table| table.location().to_owned())
    }
}
