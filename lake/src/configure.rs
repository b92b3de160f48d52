//! Keeping and changing the options of tables.
//!
//! They stand in the actor's database. An object beside the tables repeats them, for an actor whose database was lost.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_actors::ObjectStore;
use dosql_proto::{LakeConfigure, LakeOption, LakeOptions, LakeOptionsRequest, LakeTableOptions, lake_reply};
use serde::{Deserialize, Serialize};

use crate::LakeError;
use crate::actor::{Failure, Lake};
use crate::columns::TableKind;
use crate::flush::Writer;
use crate::index::Index;
use crate::options::{OptionTexts, TableOptions};
use crate::table::table_name;

/// The object that repeats the options.
const OPTIONS: &str = "lake-options.json";

/// What is kept for one source table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    /// The options that were set.
    options: OptionTexts,
    /// Whether rows were changed while the mirror was off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    mirror_lacks_changes: bool,
}

/// The options of all source tables that have some, by name; SQLite's names are the same in upper and lower case.
#[derive(Debug, Default)]
pub(crate) struct Configuration {
    tables: BTreeMap<String, (Kept, Rc<TableOptions>)>,
    defaults: Rc<TableOptions>,
}

impl Configuration {
    /// Reads them from the actor's database.
    pub(crate) fn load(index: &Index) -> Result<Self, LakeError> {
        let mut configuration = Self::default();
        for (source, document) in index.options()? {
            let kept: Kept = serde_json::from_str(&document).map_err(malformed)?;
            let options = TableOptions::read(&source, &kept.options)?;
            configuration.tables.insert(source, (kept, Rc::new(options)));
        }
        Ok(configuration)
    }

    /// The options of a source table.
    pub(crate) fn of(&self, source: &str) -> Rc<TableOptions> {
        let known = self.tables.get(&source.to_ascii_lowercase());
        Rc::clone(known.map_or(&self.defaults, |(_, options)| options))
    }

    fn kept(&self, source: &str) -> Kept {
        self.tables.get(&source.to_ascii_lowercase()).map(|(kept, _)| kept.clone()).unwrap_or_default()
    }

    fn document(&self, source: &str) -> LakeTableOptions {
        let kept = self.kept(source);
        let option = |(name, default): &(&str, &str)| {
            let set = kept.options.get(*name);
            LakeOption {
                name: (*name).to_owned(),
                value: set.map_or((*default).to_owned(), Clone::clone),
                is_set: set.is_some(),
            }
        };
        LakeTableOptions { table: source.to_owned(), options: TableOptions::DEFAULTS.iter().map(option).collect() }
    }
}

fn malformed(error: serde_json::Error) -> LakeError {
    LakeError::Malformed { path: OPTIONS.to_owned(), reason: error.to_string() }
}

/// Puts what the object says into a new database.
pub(crate) async fn restore(objects: &dyn ObjectStore, index: &Index) -> Result<(), LakeError> {
    let Some(bytes) = objects.get(OPTIONS).await? else { return Ok(()) };
    let tables: BTreeMap<String, Kept> = serde_json::from_slice(&bytes).map_err(malformed)?;
    for (source, kept) in tables {
        index.set_options(&source, &serde_json::to_string(&kept).map_err(malformed)?)?;
    }
    Ok(())
}

impl Writer {
    /// Notes durably that a table's mirror lacks changes.
    pub(crate) async fn mirror_lacks_changes(&mut self, source: &str) -> Result<(), LakeError> {
        let mut kept = self.configuration.kept(source);
        if kept.mirror_lacks_changes {
            return Ok(());
        }
        kept.mirror_lacks_changes = true;
        self.keep(source, kept).await
    }

    /// Refuses options that the source's lake tables, as far as they are there, cannot have.
    async fn check_options(&mut self, source: &str, options: &TableOptions) -> Result<(), LakeError> {
        self.resolve_pending().await?;
        for kind in [TableKind::Mirror, TableKind::Changes] {
            let wanted = table_name(source, kind);
            let known = self.index.tables()?.into_iter().find(|table| table.name.eq_ignore_ascii_case(&wanted));
            let Some(known) = known else { continue };
            let Some(table) = self.open_existing(&known.name).await? else { continue };
            let outcome = table.check_options(options);
            self.tables.insert(known.name, table);
            outcome?;
        }
        Ok(())
    }

    async fn keep(&mut self, source: &str, kept: Kept) -> Result<(), LakeError> {
        let options = TableOptions::read(source, &kept.options)?;
        let source = source.to_ascii_lowercase();
        let mut all: BTreeMap<&String, &Kept> =
            self.configuration.tables.iter().map(|(source, (kept, _))| (source, kept)).collect();
        all.insert(&source, &kept);
        let bytes = serde_json::to_vec(&all).map_err(malformed)?;
        self.objects.put(OPTIONS, bytes.into()).await?;
        self.index.set_options(&source, &serde_json::to_string(&kept).map_err(malformed)?)?;
        self.configuration.tables.insert(source, (kept, Rc::new(options)));
        Ok(())
    }
}

impl Lake {
    /// Changes options. What is committed from now on goes by them.
    pub(crate) async fn configure(&mut self, request: LakeConfigure) -> Result<lake_reply::Reply, Failure> {
        let LakeConfigure { table, set, reset } = request;
        let refused = |name: &str, reason: &str| LakeError::Option {
            table: table.clone(),
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        if table.is_empty() {
            return Err(Failure::Answer(dosql_proto::Error::invalid("the options name no table")));
        }
        let mut kept = self.writer.configuration.kept(&table);
        for name in reset {
            let name = name.to_ascii_lowercase();
            if !TableOptions::DEFAULTS.iter().any(|(known, _)| *known == name) {
                return Err(refused(&name, "there is no such option").into());
            }
            kept.options.remove(&name);
        }
        for LakeOption { name, value, .. } in set {
            kept.options.insert(name.to_ascii_lowercase(), value);
        }
        let options = TableOptions::read(&table, &kept.options)?;
        if options.mirror && kept.mirror_lacks_changes {
            let reason = "rows were changed while it was off, which the mirror lacks; copy the table into one of another name, \
                          whose mirror begins with all rows";
            return Err(refused("mirror", reason).into());
        }
        self.writer.check_options(&table, &options).await?;
        self.writer.keep(&table, kept).await?;
        // A table that was stopped may go on.
        self.flush_again();
        Ok(lake_reply::Reply::Options(LakeOptions { tables: vec![self.writer.configuration.document(&table)] }))
    }

    /// What the options are.
    pub(crate) fn options(&self, request: &LakeOptionsRequest) -> lake_reply::Reply {
        let configuration = &self.writer.configuration;
        let tables = match request.table.as_str() {
            "" => configuration.tables.keys().map(|source| configuration.document(source)).collect(),
            table => vec![configuration.document(table)],
        };
        lake_reply::Reply::Options(LakeOptions { tables })
    }
}
