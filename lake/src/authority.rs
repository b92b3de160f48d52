//! Who says which metadata of a table is current, and decides between writers that commit at once.
//!
//! Without a catalog it is object storage: metadata versions are numbered, and whoever creates the next number has committed. With
//! one (`DOLAKE_CATALOG_URI`) it is the catalog; data files, manifests and manifest lists go through object storage all the same.
//!
//! A commit whose answer got lost may still be on its way. Object storage is fenced: the number that the commit would create is
//! taken. A catalog is asked to make each commit only where `main` is at the snapshot that it was built on, and every commit of
//! rows or columns moves `main`. So one that is late fails as soon as anything else was committed, and until then what it wrote
//! is kept.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use dosql_actors::{Context, ObjectStore};
use iceberg::spec::TableMetadata;

use crate::LakeError;
use crate::index::Pending;
use crate::rest::RestCatalog;
use crate::table::{LakeTable, NAMESPACE, hint, table_directory};

/// Who says which metadata of a table is current.
pub(crate) enum Authority {
    /// The numbers of metadata versions. By directory, those whose version hints are still to be written.
    Versions(Rc<dyn ObjectStore>, RefCell<BTreeMap<String, u64>>),
    /// A REST catalog.
    Catalog(Box<RestCatalog>),
}

/// What became of a commit that was interrupted.
pub(crate) enum Fate {
    Happened,
    /// It has not happened and never will; here is the table where others went on since.
    Never {
        table: Option<Box<LakeTable>>,
    },
    /// It has not happened, but may.
    Open,
}

impl Authority {
    /// The one that the settings name.
    pub(crate) fn of(context: &Context) -> Self {
        match &context.settings().lake_catalog {
            Some(settings) => Self::Catalog(Box::new(RestCatalog::new(context, settings))),
            None => Self::Versions(context.objects(), RefCell::default()),
        }
    }

    /// Where all files but those of current metadata are.
    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        match self {
            Self::Versions(objects, _) => &**objects,
            Self::Catalog(catalog) => catalog.objects(),
        }
    }

    /// Whether the tables are in a catalog, where others may look after them, too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Catalog(_))
    }

    /// The namespace of the tables.
    pub(crate) fn namespace(&self) -> String {
        match self {
            Self::Versions(..) => NAMESPACE.to_owned(),
            Self::Catalog(catalog) => catalog.namespace(),
        }
    }

    /// Where a new table is to stand; empty where the catalog chooses.
    pub(crate) fn new_location(&self, name: &str) -> String {
        match self {
            Self::Versions(objects, _) => objects.url(&table_directory(name)),
            Self::Catalog(_) => String::new(),
        }
    }

    /// Where a table is to be looked for, in words.
    pub(crate) fn place(&self, name: &str) -> String {
        match self {
            Self::Versions(..) => table_directory(name),
            Self::Catalog(catalog) => catalog.place(name),
        }
    }

    /// The names of the lake's tables that there are.
    pub(crate) async fn names(&self) -> Result<BTreeSet<String>, LakeError> {
        match self {
            Self::Versions(objects, _) => {
                let prefix = table_directory("");
                let listed = objects.list(&prefix).await?;
                let names = listed.iter().filter_map(|object| object.path[prefix.len()..].split('/').next());
                Ok(names.map(str::to_owned).collect())
            }
            Self::Catalog(catalog) => catalog.names().await,
        }
    }

    /// The directory of a table; `None` where a catalog has none of this name.
    pub(crate) async fn directory(&self, name: &str) -> Result<Option<String>, LakeError> {
        match self {
            Self::Versions(..) => Ok(Some(table_directory(name))),
            Self::Catalog(catalog) => Ok(catalog.load(name).await?.map(|table| table.directory)),
        }
    }

    /// Whether an object of a table's directory is none that clean-up may think of as an orphan.
    pub(crate) fn keeps(&self, path: &str) -> bool {
        match self {
            Self::Versions(..) => path.ends_with("/metadata/version-hint.text"),
            // What the catalog and others who work on the table write there.
            Self::Catalog(_) => {
                path.contains(".metadata.json") || path.ends_with(".stats") || path.ends_with(".puffin")
            }
        }
    }

    /// A table as it is now, unless there is none.
    pub(crate) async fn load(&self, name: &str) -> Result<Option<LakeTable>, LakeError> {
        match self {
            Self::Versions(objects, _) => LakeTable::load(&**objects, &table_directory(name)).await,
            Self::Catalog(catalog) => catalog.load(name).await,
        }
    }

    /// Makes a table, or loads the one that is there already.
    pub(crate) async fn create(&self, name: &str, metadata: TableMetadata) -> Result<LakeTable, LakeError> {
        match self {
            Self::Versions(objects, _) => LakeTable::create(&**objects, &table_directory(name), metadata).await,
            Self::Catalog(catalog) => catalog.create(name, &metadata).await,
        }
    }

    /// Makes this the table's current metadata. On an error the table's state is unknown: it must be loaded anew.
    pub(crate) async fn commit(&self, table: &mut LakeTable, metadata: TableMetadata) -> Result<(), LakeError> {
        match self {
            Self::Versions(objects, _) => {
                table.commit_version(&**objects, metadata).await?;
                self.renew_hint(table);
                Ok(())
            }
            Self::Catalog(catalog) => {
                *table = catalog.commit(table, &metadata).await?;
                Ok(())
            }
        }
    }

    /// Has readers pointed at a table's version with the next hints, as those before may have been lost.
    pub(crate) fn renew_hint(&self, table: &LakeTable) {
        if let Self::Versions(_, hints) = self {
            hints.borrow_mut().insert(table.directory.clone(), table.version);
        }
    }

    /// Whether versions were committed that readers are not yet pointed at.
    pub(crate) fn has_hints(&self) -> bool {
        matches!(self, Self::Versions(_, hints) if !hints.borrow().is_empty())
    }

    /// Points readers at the versions that were committed since the last time, and writes these objects with them. After an error
    /// the next time does it.
    pub(crate) async fn put_with_hints(&self, mut objects: Vec<(String, Bytes)>) -> Result<(), LakeError> {
        if let Self::Versions(_, hints) = self {
            objects.extend(hints.borrow().iter().map(|(directory, version)| hint(directory, *version)));
        }
        if !objects.is_empty() {
            self.objects().put_all(objects).await?;
        }
        if let Self::Versions(_, hints) = self {
            hints.borrow_mut().clear();
        }
        Ok(())
    }

    /// What became of a commit that was built on this snapshot (0: none).
    pub(crate) async fn fate(&self, pending: &Pending, built_on: i64) -> Result<Fate, LakeError> {
        let has_it = |table: &LakeTable| table.metadata.snapshot_by_id(pending.snapshot_id).is_some();
        match (self, self.load(&pending.table).await?) {
            (_, Some(table)) if has_it(&table) => Ok(Fate::Happened),
            (Self::Versions(objects, _), Some(table)) => {
                let version = pending.version.cast_unsigned();
                let table = table.fence(&**objects, version).await?;
                if has_it(&table) {
                    return Ok(Fate::Happened);
                }
                Ok(Fate::Never { table: (table.version > version).then(|| Box::new(table)) })
            }
            (Self::Versions(..), None) => Ok(Fate::Never { table: None }),
            (Self::Catalog(_), Some(table)) if table.metadata.current_snapshot_id().unwrap_or(0) != built_on => {
                Ok(Fate::Never { table: Some(Box::new(table)) })
            }
            (Self::Catalog(_), _) => Ok(Fate::Open),
        }
    }
}
