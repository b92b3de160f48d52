//! One Iceberg table in object storage: where its objects stand, how it is found and made.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use dosql_actors::ObjectStore;
use dosql_proto::WalTable;
use iceberg::spec::{ManifestFile, TableMetadata};
use serde_json::json;
use uuid::Uuid;

use crate::LakeError;
use crate::columns::{
    ColumnType, LakeColumn, LakeColumns, Source, TableKind, Variant, new_schema, partition_field_name, with_columns,
};
use crate::forms::{Form, FormColumn, Forms};

/// The warehouse's default namespace.
pub(crate) const NAMESPACE: &str = "default";
/// The table property that says how many earlier metadata versions the newest one's log names, and its first value.
pub(crate) const METADATA_VERSIONS: &str = "write.metadata.previous-versions-max";
const METADATA_VERSIONS_LOGGED: &str = "100";
/// In a snapshot's summary, before a shard's name: the last LSN of that shard the table has taken in.
pub(crate) const WATERMARK: &str = "dosql.lsn.";
/// The table property that lists the ids of a mirror's key columns.
const KEY: &str = "dosql.key";
/// The table property that holds the source's [`Forms`].
pub(crate) const FORMS: &str = "dosql.forms";
/// The table property that lists the columns for values that do not fit others.
pub(crate) const VARIANTS: &str = "dosql.variants";
/// The table property that names the source table.
const SOURCE: &str = "dosql.source";
/// Suffix of a change log's name.
const CHANGES: &str = "__changes";
/// Suffix of a dead-letter table's name.
const DEAD_LETTERS: &str = "__dead_letters";

/// The name of a source table's lake table, and of its directory. Bytes other than ASCII letters, digits, `_` and `-` are
/// written `.HH`, and so is the last byte of a source name that ends as change logs or dead letters do: different tables stay
/// apart.
pub(crate) fn table_name(source: &str, kind: TableKind) -> String {
    let mut name = String::with_capacity(source.len() + DEAD_LETTERS.len());
    let ends_as_ours = source.ends_with(CHANGES) || source.ends_with(DEAD_LETTERS);
    for (place, byte) in source.bytes().enumerate() {
        let disguised = place + 1 == source.len() && ends_as_ours;
        if !disguised && (byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!(".{byte:02x}"));
        }
    }
    name.push_str(match kind {
        TableKind::Mirror => "",
        TableKind::Changes => CHANGES,
        TableKind::DeadLetters => DEAD_LETTERS,
    });
    name
}

/// Whether a lake table may have this name.
pub(crate) fn is_table_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    // What follows a point are the two digits of a byte, so that no name leads to another directory.
    let mut parts = name.split('.');
    !name.is_empty()
        && parts.next().is_some_and(|first| first.bytes().all(plain))
        && parts.all(|part| part.len() >= 2 && part.bytes().all(plain))
}

/// Which of a source table's lake tables has this name.
pub(crate) fn kind_of(name: &str) -> TableKind {
    if name.ends_with(CHANGES) {
        TableKind::Changes
    } else if name.ends_with(DEAD_LETTERS) {
        TableKind::DeadLetters
    } else {
        TableKind::Mirror
    }
}

/// The directory of a lake table.
pub(crate) fn table_directory(name: &str) -> String {
    format!("warehouse/{NAMESPACE}/{name}")
}

/// The path of a metadata version.
pub(crate) fn metadata_path(directory: &str, version: u64) -> String {
    format!("{directory}/metadata/v{version}.metadata.json")
}

/// A table as of its newest metadata.
pub(crate) struct LakeTable {
    pub(crate) name: String,
    pub(crate) directory: String,
    /// The number of its metadata version; 0 where a catalog says which metadata is current.
    pub(crate) version: u64,
    /// Where a catalog keeps the current metadata.
    catalog_url: Option<String>,
    pub(crate) metadata: TableMetadata,
    pub(crate) columns: LakeColumns,
    /// The forms that the source has had.
    pub(crate) forms: Forms,
    /// Its columns for values that do not fit others.
    pub(crate) variants: Vec<Variant>,
    /// Whether forms or variants have changed since they were committed.
    pub(crate) reshaped: bool,
    /// The metadata with the schema, spec and order that the next commit makes the table's.
    pub(crate) staged: Option<TableMetadata>,
    /// The current snapshot's manifests, once they were read.
    pub(crate) manifests: Option<Vec<ManifestFile>>,
}

impl LakeTable {
    /// A table that a catalog keeps, with the URL of its current metadata.
    pub(crate) fn in_catalog(
        name: &str,
        directory: &str,
        metadata_url: String,
        metadata: TableMetadata,
    ) -> Result<Self, LakeError> {
        let table = Self::new(directory, 0, metadata)?;
        Ok(Self { name: name.to_owned(), catalog_url: Some(metadata_url), ..table })
    }

    fn new(directory: &str, version: u64, metadata: TableMetadata) -> Result<Self, LakeError> {
        let key = metadata.properties().get(KEY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let malformed = |property: &str, error: serde_json::Error| LakeError::Malformed {
            path: metadata_path(directory, version),
            reason: format!("its property {property}: {error}"),
        };
        let variants: Vec<Variant> = match metadata.properties().get(VARIANTS) {
            Some(text) => serde_json::from_str(text).map_err(|error| malformed(VARIANTS, error))?,
            None => Vec::new(),
        };
        let columns = LakeColumns::of_schema(metadata.current_schema(), key, &variants)?;
        let forms = match metadata.properties().get(FORMS) {
            Some(text) => serde_json::from_str(text).map_err(|error| malformed(FORMS, error))?,
            // Made by somebody else: its columns are the source's of the same names.
            None => Forms::beginning_with(columns.columns.iter().filter_map(form_column).collect()),
        };
        // A catalog may have the table elsewhere.
        let name = directory.rsplit('/').next().unwrap_or_default().to_owned();
        let directory = directory.to_owned();
        let (catalog_url, reshaped, staged, manifests) = (None, false, None, None);
        Ok(Self {
            name,
            directory,
            version,
            catalog_url,
            metadata,
            columns,
            forms,
            variants,
            reshaped,
            staged,
            manifests,
        })
    }

    /// The table with this as its next version's metadata.
    pub(crate) fn as_successor(&self, metadata: TableMetadata) -> Result<Self, LakeError> {
        Self::new(&self.directory, self.version + 1, metadata)
    }

    /// The newest version of the table, or `None` where there is none. The version hint may be stale, or gone: newer versions
    /// are looked for.
    pub(crate) async fn load(objects: &dyn ObjectStore, directory: &str) -> Result<Option<Self>, LakeError> {
        let hint = objects.get(&hint_path(directory)).await?;
        let named = hint.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()?.trim().parse::<u64>().ok());
        let mut version = named.unwrap_or(1).max(1);
        let mut found = objects.get(&metadata_path(directory, version)).await?;
        if found.is_none() {
            // The version that the hint names may have been cleaned up. A listing may be late, and show others that have.
            for listed in versions(objects, directory).await? {
                found = objects.get(&metadata_path(directory, listed)).await?;
                if found.is_some() {
                    version = listed;
                    break;
                }
            }
        }
        let Some(mut bytes) = found else {
            if hint.is_none() {
                return Ok(None);
            }
            let reason =
                format!("version {version}, which its version hint names, is gone, and no other one is listed");
            return Err(LakeError::Conflict { table: directory.to_owned(), reason });
        };
        while let Some(newer) = objects.get(&metadata_path(directory, version + 1)).await? {
            bytes = newer;
            version += 1;
        }
        let path = metadata_path(directory, version);
        let metadata =
            serde_json::from_slice(&bytes).map_err(|error| LakeError::Malformed { path, reason: error.to_string() })?;
        Self::new(directory, version, metadata).map(Some)
    }

    /// The metadata that a table is made with.
    pub(crate) fn new_metadata(
        location: &str,
        source: &str,
        kind: TableKind,
        layouts: &[WalTable],
        uuid: Uuid,
        now_ms: u64,
    ) -> Result<TableMetadata, LakeError> {
        let partition_field = partition_field_name(layouts);
        // Dead letters have none of its columns.
        let layout = layouts.iter().find(|layout| !layout.columns.is_empty() && kind != TableKind::DeadLetters);
        let columns = layout.map_or(&[][..], |layout| &layout.columns);
        // Ids in the order of the columns: catalogs number those of a new table so, whatever they are told.
        let form: Form = (1..)
            .zip(columns)
            .map(|(id, column)| FormColumn(column.name.clone(), ColumnType::of_declared(&column.declared_type), id))
            .collect();
        let bare = new_schema(kind, form.len())?;
        let key = layout.map_or(&[][..], |layout| &layout.primary_key);
        let key: Option<Vec<i32>> = key.iter().map(|place| Some(form.get(*place as usize)?.2)).collect();
        let schema = with_columns(&bare, &form, &[], &[], &[partition_field.to_owned()])?;
        let committed_at = schema.field_by_name("_committed_at").map(|field| field.id);
        let document = json!({
            "format-version": 2,
            "table-uuid": uuid,
            "location": location,
            "last-sequence-number": 0,
            "last-updated-ms": now_ms,
            "last-column-id": schema.highest_field_id(),
            "schemas": [schema],
            "current-schema-id": 0,
            "partition-specs": [{
                "spec-id": 0,
                "fields": [{
                    "source-id": committed_at,
                    "field-id": 1000,
                    "name": partition_field,
                    "transform": "day"
                }]
            }],
            "default-spec-id": 0,
            "last-partition-id": 1000,
            "sort-orders": [{ "order-id": 0, "fields": [] }],
            "default-sort-order-id": 0,
            "properties": {
                SOURCE: source,
                KEY: json!(key.unwrap_or_default()).to_string(),
                FORMS: json!(Forms::beginning_with(form)).to_string(),
                METADATA_VERSIONS: METADATA_VERSIONS_LOGGED,
                "write.parquet.compression-codec": "zstd"
            },
            "snapshots": [],
            "snapshot-log": [],
            "metadata-log": [],
            "refs": {}
        });
        let malformed =
            |error: serde_json::Error| LakeError::Malformed { path: location.to_owned(), reason: error.to_string() };
        serde_json::from_value(document).map_err(malformed)
    }

    /// Makes the table, or loads the one that is there already.
    pub(crate) async fn create(
        objects: &dyn ObjectStore,
        directory: &str,
        metadata: TableMetadata,
    ) -> Result<Self, LakeError> {
        let path = metadata_path(directory, 1);
        let bytes = serde_json::to_vec(&metadata)
            .map_err(|error| LakeError::Malformed { path: path.clone(), reason: error.to_string() })?;
        if let Err(error) = objects.create(&path, bytes.into()).await {
            // Either it is there already or the failed write took effect; a table without rows is the same whoever made it.
            return Self::load(objects, directory).await?.ok_or_else(|| error.into());
        }
        let table = Self::new(directory, 1, metadata)?;
        table.put_hint(objects).await;
        Ok(table)
    }

    /// The source table that it is of.
    pub(crate) fn source(&self) -> &str {
        source_of(&self.metadata).unwrap_or_default()
    }

    /// The URL of its current metadata.
    pub(crate) fn metadata_url(&self) -> String {
        match &self.catalog_url {
            Some(url) => url.clone(),
            None => format!("{}/metadata/v{}.metadata.json", self.location(), self.version),
        }
    }

    /// The URL of its directory.
    pub(crate) fn location(&self) -> &str {
        self.metadata.location().trim_end_matches('/')
    }

    /// The object's path for a URL in the table's metadata.
    pub(crate) fn path_of(&self, url: &str) -> Result<String, LakeError> {
        match url.strip_prefix(self.location()) {
            Some(rest) => Ok(format!("{}{rest}", self.directory)),
            None => Err(LakeError::Malformed {
                path: url.to_owned(),
                reason: format!("it lies outside the table's location {}", self.metadata.location()),
            }),
        }
    }

    /// The URL of an object of the table.
    pub(crate) fn url_of(&self, path: &str) -> String {
        format!("{}{}", self.location(), path.strip_prefix(&self.directory).unwrap_or(path))
    }

    /// The metadata that the next commit begins with.
    pub(crate) fn next(&self) -> &TableMetadata {
        self.staged.as_ref().unwrap_or(&self.metadata)
    }

    /// The snapshots that branches and tags name. Read off the document, since the type keeps them to itself.
    pub(crate) fn named_snapshots(&self) -> Result<HashSet<i64>, LakeError> {
        let document = serde_json::to_value(&self.metadata).map_err(|error| LakeError::Malformed {
            path: metadata_path(&self.directory, self.version),
            reason: error.to_string(),
        })?;
        let references = document["refs"].as_object().into_iter().flat_map(|references| references.values());
        Ok(references.filter_map(|reference| reference["snapshot-id"].as_i64()).collect())
    }

    /// The newest snapshot that says how far the shards were taken in: one that another program committed does not.
    pub(crate) fn watermark_snapshot(&self) -> Option<i64> {
        let mut snapshot = self.metadata.current_snapshot();
        while let Some(current) = snapshot {
            if current.summary().additional_properties.keys().any(|name| name.starts_with(WATERMARK)) {
                return Some(current.snapshot_id());
            }
            snapshot = current.parent_snapshot_id().and_then(|id| self.metadata.snapshot_by_id(id));
        }
        None
    }

    /// The last LSN of each shard that the table has taken in, as it stands in a snapshot's summary. Where no snapshot says so any
    /// more, since others have expired those that did, the table's properties do.
    pub(crate) fn watermarks(&self) -> HashMap<String, String> {
        let snapshot = self.watermark_snapshot().and_then(|id| self.metadata.snapshot_by_id(id));
        let properties =
            snapshot.map_or(self.metadata.properties(), |snapshot| &snapshot.summary().additional_properties);
        let ours = properties.iter().filter(|(name, _)| name.starts_with(WATERMARK));
        ours.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Points readers at the newest version. That may fail: whoever finds a stale hint looks for newer versions.
    pub(crate) async fn put_hint(&self, objects: &dyn ObjectStore) {
        if let Err(error) = self.try_put_hint(objects).await {
            tracing::warn!(table = self.directory, version = self.version, %error, "version hint not written");
        }
    }

    /// Points readers at the newest version.
    pub(crate) async fn try_put_hint(&self, objects: &dyn ObjectStore) -> Result<(), LakeError> {
        let (path, bytes) = hint(&self.directory, self.version);
        Ok(objects.put(&path, bytes).await?)
    }

    /// Makes sure that a commit to `version`, which may still be on its way, can no longer happen: takes that version with the
    /// current metadata unchanged. Returns what the table then is.
    pub(crate) async fn fence(self, objects: &dyn ObjectStore, version: u64) -> Result<Self, LakeError> {
        if self.version >= version {
            return Ok(self);
        }
        let path = metadata_path(&self.directory, version);
        let bytes = serde_json::to_vec(&self.metadata)
            .map_err(|error| LakeError::Malformed { path: path.clone(), reason: error.to_string() })?;
        let created = objects.create(&path, bytes.into()).await;
        let table = Self::load(objects, &self.directory).await?;
        match (table, created) {
            (Some(table), _) if table.version >= version => Ok(table),
            (_, Err(error)) => Err(error.into()),
            (_, Ok(())) => Err(LakeError::Malformed { path, reason: "it was created and is gone".to_owned() }),
        }
    }
}

/// The source table of a table that is the lake's.
pub(crate) fn source_of(metadata: &TableMetadata) -> Option<&str> {
    metadata.properties().get(SOURCE).map(String::as_str)
}

fn form_column(column: &LakeColumn) -> Option<FormColumn> {
    match column.source {
        Source::Meta(_) | Source::Variant { .. } => None,
        Source::Column(column_type) => Some(FormColumn(column.name.clone(), column_type, column.id)),
    }
}

/// The versions that are listed, the newest first.
async fn versions(objects: &dyn ObjectStore, directory: &str) -> Result<Vec<u64>, LakeError> {
    let listed = objects.list(&format!("{directory}/metadata/v")).await?;
    let mut versions: Vec<u64> = listed.iter().filter_map(|object| metadata_version(&object.path)).collect();
    versions.sort_unstable_by_key(|version| std::cmp::Reverse(*version));
    Ok(versions)
}

/// The version that a metadata file is of.
pub(crate) fn metadata_version(path: &str) -> Option<u64> {
    path.rsplit_once("/metadata/v")?.1.strip_suffix(".metadata.json")?.parse().ok()
}

/// What points readers at this version of a table.
pub(crate) fn hint(directory: &str, version: u64) -> (String, Bytes) {
    (hint_path(directory), version.to_string().into())
}

fn hint_path(directory: &str) -> String {
    format!("{directory}/metadata/version-hint.text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stay_apart() {
        assert_eq!(table_name("orders", TableKind::Mirror), "orders");
        assert_eq!(table_name("orders", TableKind::Changes), "orders__changes");
        assert_eq!(table_name("orders__changes", TableKind::Mirror), "orders__change.73");
        assert_eq!(table_name("a/../b c", TableKind::Mirror), "a.2f.2e.2e.2fb.20c");
    }

    #[test]
    fn names_from_outside_stay_in_their_directory() {
        for source in ["orders", "orders__changes", "a/../b c", "..", "größe"] {
            for kind in [TableKind::Mirror, TableKind::Changes] {
                assert!(is_table_name(&table_name(source, kind)), "{source}");
            }
        }
        for name in ["", ".", "..", "a/b", "../a", "a..", "a%2f"] {
            assert!(!is_table_name(name), "{name}");
        }
    }
}
