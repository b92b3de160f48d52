//! The index of a mirror made anew from the mirror itself: after the lake actor's database was lost, or another program has
//! committed to the table.

use std::collections::{BTreeMap, HashMap};

use crate::LakeError;
use crate::block::Entry;
use crate::columns::TableKind;
use crate::flush::Writer;
use crate::index::Position;
use crate::key::KeyReader;
use crate::live_files::LiveRows;
use crate::table::{LakeTable, kind_of};

impl Writer {
    /// Makes the index describe the table as it is. One file is in memory at a time. Interrupted, it is begun again.
    pub(crate) async fn rebuild_index(&self, name: &str, table: &LakeTable) -> Result<(), LakeError> {
        let known = self.index.table(name)?;
        self.index.clear_table(known.id)?;
        let mut rows = 0_i64;
        let live = table.live_files(&*self.objects).await?;
        if kind_of(name) != TableKind::Mirror {
            rows = live.data.iter().map(|file| file.file.record_count().cast_signed()).sum();
        } else {
            let mut deleted = table.deleted_rows(&*self.objects, live.deletes.iter()).await?;
            for file in &live.data {
                let url = file.file.file_path();
                let partition = table.partition_text(&file.partition)?;
                let bytes = table.read(&*self.objects, url).await?;
                let deleted = deleted.remove(url).unwrap_or_default();
                let added = self.index.transaction(|| {
                    let id = self.index.add_file(known.id, url, &partition)?;
                    let mut shards: HashMap<String, i64> = HashMap::new();
                    let (mut entries, mut added) = (self.index.entries(known.id)?, 0_i64);
                    for batch in LiveRows::new(&table.columns, bytes, &deleted)? {
                        let (batch, positions) = batch?;
                        let keys = KeyReader::new(&table.columns, &batch)?;
                        let mut by_shard: BTreeMap<i64, Vec<Entry>> = BTreeMap::new();
                        for (row, position) in positions.iter().enumerate() {
                            let Some((shard, key)) = keys.read(row)? else { continue };
                            let shard_id = match shards.get(shard) {
                                Some(id) => *id,
                                None => {
                                    let id = self.index.shard_id(shard)?;
                                    shards.insert(shard.to_owned(), id);
                                    id
                                }
                            };
                            let position = Position { file: id, row: *position };
                            by_shard.entry(shard_id).or_default().push((key, position));
                            added += 1;
                        }
                        for (shard_id, mut found) in by_shard {
                            found.sort_unstable();
                            if let Some((_, position)) = entries.first_known(shard_id, &found)? {
                                return Err(LakeError::Malformed {
                                    path: url.to_owned(),
                                    reason: format!("row {} has the key of another row", position.row),
                                });
                            }
                            entries.add(shard_id, &found)?;
                        }
                    }
                    entries.finish()?;
                    Ok(added)
                })?;
                rows += added;
            }
        }
        let snapshot_id = table.metadata.current_snapshot_id().unwrap_or(0);
        tracing::warn!(table = name, snapshot_id, rows, "the index was made anew from the table");
        self.index.describe(known.id, snapshot_id, rows)
    }
}
