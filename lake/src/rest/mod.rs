//! The lake's tables in an Iceberg REST catalog.

mod changes;
mod session;

use std::collections::BTreeSet;
use std::rc::Rc;

use dosql_actors::{CatalogSettings, Context, HttpMethod, ObjectStore};
use iceberg::spec::{FormatVersion, PartitionSpec, Schema, SortOrder, TableMetadata};
use serde::Deserialize;
use serde_json::json;

use crate::LakeError;
use crate::table::{LakeTable, is_table_name, source_of};
use changes::{requirements, updates};
use session::{Session, escaped};

/// A catalog, and the object storage that its tables' files must be in.
pub(crate) struct RestCatalog {
    session: Session,
    objects: Rc<dyn ObjectStore>,
}

/// What the catalog says of a table.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Loaded {
    #[serde(default)]
    metadata_location: Option<String>,
    metadata: TableMetadata,
}

/// One page of the tables of a namespace.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Page {
    identifiers: Vec<Identifier>,
    #[serde(default)]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Identifier {
    name: String,
}

impl RestCatalog {
    pub(crate) fn new(context: &Context, settings: &CatalogSettings) -> Self {
        Self { session: Session::new(context, settings), objects: context.objects() }
    }

    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    pub(crate) fn namespace(&self) -> String {
        self.session.settings.namespace.join(".")
    }

    /// A table's name, and the catalog's.
    pub(crate) fn place(&self, name: &str) -> String {
        format!("{}.{name} in {}", self.namespace(), self.session.settings.uri)
    }

    /// The path of the namespace's tables.
    fn tables_path(&self) -> String {
        // Levels are separated by a unit separator.
        let levels: Vec<String> = self.session.settings.namespace.iter().map(|level| escaped(level)).collect();
        format!("namespaces/{}/tables", levels.join("%1F"))
    }

    fn table_path(&self, name: &str) -> String {
        format!("{}/{}", self.tables_path(), escaped(name))
    }

    /// The tables of the namespace that are the lake's.
    pub(crate) async fn names(&self) -> Result<BTreeSet<String>, LakeError> {
        let (mut listed, mut path) = (Vec::new(), self.tables_path());
        loop {
            let answer = self.session.call(HttpMethod::Get, &path, None).await?;
            if answer.says_missing() {
                break;
            }
            let page: Page = answer.read()?;
            listed.extend(page.identifiers.into_iter().map(|Identifier { name }| name));
            match page.next_page_token.filter(|token| !token.is_empty()) {
                Some(token) => path = format!("{}?pageToken={}", self.tables_path(), escaped(&token)),
                None => break,
            }
        }
        let mut names = BTreeSet::new();
        for name in listed.into_iter().filter(|name| is_table_name(name)) {
            // Others may keep tables there, which need not even be ones that the lake could read.
            match self.find(&name).await {
                Ok(Some(found)) if source_of(&found.metadata).is_some() => {
                    names.insert(name);
                }
                Ok(_) | Err(LakeError::Malformed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    pub(crate) async fn load(&self, name: &str) -> Result<Option<LakeTable>, LakeError> {
        self.find(name).await?.map(|loaded| self.table(name, loaded)).transpose()
    }

    async fn find(&self, name: &str) -> Result<Option<Loaded>, LakeError> {
        let answer = self.session.call(HttpMethod::Get, &self.table_path(name), None).await?;
        if answer.says_missing() { Ok(None) } else { answer.read().map(Some) }
    }

    /// Makes a table with the columns, spec, order and properties of this metadata, or loads the one that is there already.
    pub(crate) async fn create(&self, name: &str, metadata: &TableMetadata) -> Result<LakeTable, LakeError> {
        let wanted: &Schema = metadata.current_schema();
        let spec: &PartitionSpec = metadata.default_partition_spec();
        let order: &SortOrder = metadata.default_sort_order();
        let body = json!({
            "name": name,
            "schema": wanted,
            "partition-spec": spec,
            "write-order": order,
            "stage-create": false,
            "properties": metadata.properties(),
        });
        let mut answer = self.session.call(HttpMethod::Post, &self.tables_path(), Some(&body)).await;
        if answer.as_ref().is_ok_and(|answer| answer.says_missing()) {
            self.create_namespace().await?;
            answer = self.session.call(HttpMethod::Post, &self.tables_path(), Some(&body)).await;
        }
        let loaded = match answer.and_then(|answer| answer.read()) {
            Ok(loaded) => loaded,
            // It is there already, or was made and the answer got lost. A table without rows is the same whoever made it.
            Err(error) => self.find(name).await?.ok_or(error)?,
        };
        if loaded.metadata.current_schema().as_struct() != wanted.as_struct() {
            let reason = "its columns, or their numbers, are not those that the catalog was told".to_owned();
            return Err(LakeError::Malformed { path: self.place(name), reason });
        }
        self.table(name, loaded)
    }

    async fn create_namespace(&self) -> Result<(), LakeError> {
        let body = json!({ "namespace": self.session.settings.namespace, "properties": {} });
        let answer = self.session.call(HttpMethod::Post, "namespaces", Some(&body)).await?;
        // Somebody else may have made it meanwhile.
        if answer.status == 409 { Ok(()) } else { answer.accepted().map(drop) }
    }

    /// Has the catalog make of a table what this metadata has; returns what the table then is.
    pub(crate) async fn commit(&self, table: &LakeTable, metadata: &TableMetadata) -> Result<LakeTable, LakeError> {
        let old = &table.metadata;
        let malformed = |error: serde_json::Error| LakeError::Malformed {
            path: self.place(&table.name),
            reason: error.to_string(),
        };
        let body = json!({
            "identifier": { "namespace": self.session.settings.namespace, "name": table.name },
            "requirements": requirements(old),
            "updates": updates(old, metadata).map_err(malformed)?,
        });
        let answer = self.session.call(HttpMethod::Post, &self.table_path(&table.name), Some(&body)).await;
        match answer.and_then(|answer| answer.read()) {
            Ok(loaded) => self.table(&table.name, loaded),
            Err(LakeError::CatalogRefused { status: 409, reason, .. }) => {
                Err(LakeError::Conflict { table: self.place(&table.name), reason })
            }
            Err(error @ LakeError::CatalogRefused { .. }) => Err(error),
            Err(error) => {
                // Whether it took effect is not known. A snapshot's id is its writer's.
                let made = metadata.current_snapshot_id().filter(|id| old.current_snapshot_id() != Some(*id));
                match (made, self.load(&table.name).await) {
                    (Some(made), Ok(Some(found))) if found.metadata.snapshot_by_id(made).is_some() => Ok(found),
                    _ => Err(error),
                }
            }
        }
    }

    fn table(&self, name: &str, loaded: Loaded) -> Result<LakeTable, LakeError> {
        let Loaded { metadata_location, metadata } = loaded;
        if metadata.format_version() != FormatVersion::V2 {
            let reason = "it is not of format version 2, which the lake writes".to_owned();
            return Err(LakeError::Malformed { path: self.place(name), reason });
        }
        let root = self.objects.url("");
        let inside = metadata.location().strip_prefix(&root).map(|rest| rest.trim_end_matches('/'));
        let is_plain = |path: &&str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let Some(directory) = inside.filter(is_plain).map(str::to_owned) else {
            let location = metadata.location().to_owned();
            return Err(LakeError::OutsideStore { table: self.place(name), location, root });
        };
        LakeTable::in_catalog(name, &directory, metadata_location.unwrap_or_default(), metadata)
    }
}
