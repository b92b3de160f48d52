//! The catalog: the schema of all tables, where their rows are, and the log of schema changes, kept in the router's own
//! storage so that a change interrupted by a crash is finished by the next incarnation.

mod automatic;
mod change;
mod decisions;
mod lookup;
mod mirror;
mod place;
mod reconcile;
mod renaming;
mod sequences;
mod table;
mod topology;
pub(crate) mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dosql_actors::Context;
use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};
use prost::Message;
use rusqlite::{Connection, OptionalExtension};

pub(crate) use change::{COLLECT, Change, Fill, Outcome, Part, unsupported};
pub(crate) use decisions::Decision;
pub(crate) use lookup::{Definition, Entry, Filled, Lookup, OWNER_ROW};
pub(crate) use mirror::{Ddl, Mirror, Prepared};
pub(crate) use table::{ColumnInfo, Placement, Shape, Table};
pub(crate) use topology::Placed;

use crate::affinity::Converter;
use crate::vindex::{Shard, Vindex};
use crate::vschema::{self, AutoIncrement, VSchema, VindexEntry};
use place::Place;
use versions::Version;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _dosql_shards (place INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS _dosql_objects (place INTEGER PRIMARY KEY, sql TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS _dosql_places (
  name TEXT PRIMARY KEY, placement TEXT NOT NULL, shard TEXT NOT NULL, vindex_column TEXT NOT NULL, vindex TEXT NOT NULL,
  layout TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_ddl (
  version INTEGER PRIMARY KEY, sql TEXT NOT NULL, request_id TEXT NOT NULL, status TEXT NOT NULL, error BLOB
);
";

/// A schema change that was interrupted.
pub(crate) struct PendingChange {
    pub(crate) version: i64,
    pub(crate) sql: String,
    /// Whether a shard has refused it, so that it is to be taken back from the others.
    pub(crate) undoing: bool,
}

/// The schema and where everything is.
pub(crate) struct Catalog {
    storage: Connection,
    pub(crate) mirror: Mirror,
    /// By name in lower case.
    pub(crate) tables: BTreeMap<String, Table>,
    /// Those that AUTO_SHARD placed.
    automatic: BTreeSet<String>,
    /// Views of this incarnation's, by name in lower case.
    pub(crate) temporary: BTreeSet<String>,
    /// Triggers that are not on the shards, by name in lower case.
    pub(crate) own_triggers: BTreeSet<String>,
    /// The shards' names. Those with a part of the keyspace come first, in its order.
    pub(crate) shards: Vec<String>,
    /// The shards as vindexes see them, in the same order.
    pub(crate) shard_list: Vec<Shard>,
    /// The VSchema in force.
    pub(crate) version: Version,
    /// The columns that sequences fill, by table.
    increments: BTreeMap<String, AutoIncrement>,
    /// Lookup tables that do not have all entries, by name in lower case.
    filling: BTreeSet<String>,
    blocks: sequences::Blocks,
    /// The VSchema that a changed document asks for.
    pub(crate) wanted: Option<VSchema>,
    /// Shards that are new, by index: they have none of the tables yet.
    pub(crate) joining: Vec<usize>,
    converter: Rc<Converter>,
    /// Where unsharded tables live by default.
    pub(crate) default_shard: usize,
}

impl Catalog {
    /// Reads the catalog from storage.
    ///
    /// # Errors
    /// `STORAGE`; what is wrong with the VSchema; `UNSUPPORTED` naming a table whose rows would have to move to other shards.
    pub(crate) fn open(context: &Context, converter: Rc<Converter>) -> Result<Self, Error> {
        let settings = context.settings();
        let storage = context.open_storage()?;
        for tables in [TABLES, versions::TABLE, sequences::TABLES, automatic::TABLE, decisions::TABLE, lookup::TABLE] {
            storage.execute_batch(tables).map_err(sql_error)?;
        }
        let automatic = automatic::read(&storage).map_err(sql_error)?;
        let filling = lookup::filling(&storage).map_err(sql_error)?;
        let version = versions::current(&storage)?;
        let wanted = versions::under_document(&version, &settings.vschema)?;
        let vschema = wanted.as_ref().unwrap_or(&version.vschema);
        let shard_list = vschema.resolve_shards(settings.numbered_shards())?;
        let served: Vec<String> = settings.shard_names().collect();
        if let Some(shard) = shard_list.iter().find(|shard| !served.contains(&shard.name)) {
            return Err(Error::invalid(format!(
                "the VSchema in force has a shard {:?} that this server was not started with; give it that VSchema",
                shard.name
            )));
        }
        let default_shard =
            vschema.default_shard.as_ref().and_then(|id| vschema::place(&shard_list, id)).unwrap_or_default();
        let shards: Vec<String> = shard_list.iter().map(|shard| shard.name.clone()).collect();
        let known = strings(&storage, "SELECT name FROM _dosql_shards ORDER BY place").map_err(sql_error)?;
        let objects = strings(&storage, "SELECT sql FROM _dosql_objects ORDER BY place").map_err(sql_error)?;
        let joining = match objects.is_empty() {
            true => Vec::new(),
            false => (0..shards.len()).filter(|index| !known.contains(&shards[*index])).collect(),
        };
        let mirror = Mirror::new(context.open_scratch()?, &objects)?;
        let mut catalog = Self {
            storage,
            mirror,
            tables: BTreeMap::new(),
            automatic,
            temporary: BTreeSet::new(),
            own_triggers: BTreeSet::new(),
            shards,
            shard_list,
            increments: sequences::increments(&version.vschema),
            filling,
            blocks: sequences::Blocks::default(),
            version,
            wanted,
            joining,
            converter,
            default_shard,
        };
        catalog.tables = catalog.read_tables()?;
        catalog.own_triggers = catalog.read_own_triggers()?;
        if catalog.joining.is_empty() && known != catalog.shards {
            catalog.set_shards()?;
        }
        Ok(catalog)
    }

    /// Notes that all shards have all tables.
    pub(crate) fn set_shards(&mut self) -> Result<(), Error> {
        let replace = || -> rusqlite::Result<()> {
            let transaction = self.storage.unchecked_transaction()?;
            transaction.execute("DELETE FROM _dosql_shards", [])?;
            for (place, name) in self.shards.iter().enumerate() {
                transaction.execute("INSERT INTO _dosql_shards VALUES (?1, ?2)", (place as i64, name))?;
            }
            transaction.commit()
        };
        replace().map_err(sql_error)?;
        self.joining.clear();
        Ok(())
    }

    fn read_tables(&self) -> Result<BTreeMap<String, Table>, Error> {
        let mut tables = BTreeMap::new();
        for (key, shape) in table::shapes(&self.mirror.connection).map_err(sql_error)? {
            let stored = self
                .storage
                .query_row(
                    "SELECT placement, shard, vindex_column, vindex, layout FROM _dosql_places WHERE name = ?1",
                    [&key],
                    |row| {
                        Ok(StoredPlace {
                            placement: row.get(0)?,
                            shard: row.get(1)?,
                            column: row.get(2)?,
                            vindex: row.get(3)?,
                            layout: row.get(4)?,
                        })
                    },
                )
                .map_err(sql_error)?;
            let place = self.stored_place(&shape, stored)?;
            tables.insert(key, place.table(shape));
        }
        Self::attach(&self.version.vschema, &mut tables, &self.filling)?;
        Ok(tables)
    }

    /// A table's place among the shards there are now.
    fn stored_place(&self, shape: &Shape, stored: StoredPlace) -> Result<Place, Error> {
        match stored.placement.as_str() {
            "reference" => Ok(Place::unmapped(Placement::Reference)),
            "sharded" => {
                let read = |error: serde_json::Error| Error::internal(format!("the vindex of {}: {error}", shape.name));
                let vindex: VindexEntry = serde_json::from_str(&stored.vindex).map_err(read)?;
                let layout: Vec<String> = serde_json::from_str(&stored.layout).map_err(read)?;
                let place = self.sharded_by(shape, &stored.column, &vindex)?;
                match &place.vindex {
                    Some(vindex) if vindex.layout() == layout => Ok(place),
                    other => Err(unsupported(format!(
                        "the rows of table {} are spread over shards {}, and moving them to {} is not supported",
                        shape.name,
                        layout.join(", "),
                        other.as_ref().map(|vindex| vindex.layout().join(", ")).unwrap_or_default()
                    ))),
                }
            }
            _ => match self.shard_named(&stored.shard) {
                Some(shard) => Ok(Place::unmapped(Placement::Unsharded(shard))),
                None => Err(unsupported(format!(
                    "table {} is on shard {}, which is not there; moving its rows is not supported",
                    shape.name, stored.shard
                ))),
            },
        }
    }

    /// The column of a table that a sequence fills.
    pub(crate) fn increment(&self, table: &str) -> Option<&AutoIncrement> {
        if self.increments.is_empty() { None } else { self.increments.get(&table.to_ascii_lowercase()) }
    }

    /// A shard's index.
    pub(crate) fn shard_named(&self, name: &str) -> Option<usize> {
        vschema::place(&self.shard_list, name)
    }

    /// The vindex of a column of these shards.
    fn vindex(&self, column: &table::ColumnInfo, definition: &VindexEntry) -> Result<Rc<Vindex>, Error> {
        Ok(Rc::new(Vindex::new(definition.clone(), column.as_key(), &self.shard_list, &self.converter)?))
    }

    /// Whether foreign keys refer to a table, its own among them.
    pub(crate) fn is_referred_to(&self, name: &str) -> bool {
        let refers = |table: &Table| table.shape.foreign_keys.iter().any(|key| key.parent.eq_ignore_ascii_case(name));
        self.tables.values().any(refers)
    }

    /// A table by its name, whose case does not matter.
    pub(crate) fn table(&self, name: &str) -> Option<&Table> {
        match self.tables.get(name) {
            Some(table) => Some(table),
            None => self.tables.get(&name.to_ascii_lowercase()),
        }
    }

    /// The views' CREATE statements; a temporary one hides one of its name.
    pub(crate) fn views(&self) -> Result<Vec<String>, Error> {
        strings(
            &self.mirror.connection,
            "SELECT sql FROM sqlite_schema WHERE type = 'view'
               AND name COLLATE NOCASE NOT IN (SELECT name FROM sqlite_temp_schema)
             UNION ALL SELECT sql FROM sqlite_temp_schema WHERE type = 'view'",
        )
        .map_err(sql_error)
    }

    /// The CREATE statements of a table's (or view's) objects of a kind.
    pub(crate) fn objects_of(&self, kind: &str, table: &str) -> Result<Vec<String>, Error> {
        let read = || -> rusqlite::Result<Vec<String>> {
            self.mirror
                .connection
                .prepare_cached(
                    "SELECT sql FROM sqlite_schema
                     WHERE type = ?1 AND tbl_name = ?2 COLLATE NOCASE AND sql IS NOT NULL ORDER BY rowid",
                )?
                .query_map([kind, table], |row| row.get(0))?
                .collect()
        };
        read().map_err(sql_error)
    }

    /// The table that an index is of.
    pub(crate) fn table_of_index(&self, index: &str) -> Result<Option<String>, Error> {
        self.mirror
            .connection
            .query_row(
                "SELECT tbl_name FROM sqlite_schema WHERE type = 'index' AND name = ?1 COLLATE NOCASE",
                [index],
                |row| row.get(0),
            )
            .optional()
            .map_err(sql_error)
    }

    /// Whether there is an index with a condition.
    pub(crate) fn has_partial_index(&self) -> bool {
        let sql = "SELECT 1 FROM sqlite_schema, pragma_index_list(tbl_name) AS list
                   WHERE type = 'index' AND list.name = sqlite_schema.name AND list.partial LIMIT 1";
        // Where that cannot be told, plans are made with the literals.
        self.mirror.connection.prepare_cached(sql).and_then(|mut statement| statement.exists([])).unwrap_or(true)
    }

    /// A number that a PRAGMA keeps for the application, and that the router keeps for all shards.
    pub(crate) fn pragma(&self, sql: &str) -> Result<Option<i64>, Error> {
        self.storage.query_row(sql, [], |row| row.get(0)).optional().map_err(sql_error)
    }

    fn read_own_triggers(&mut self) -> Result<BTreeSet<String>, Error> {
        let triggers: Vec<(String, String)> = {
            let connection = &self.mirror.connection;
            let read = || -> rusqlite::Result<Vec<(String, String)>> {
                connection
                    .prepare("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger'")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            };
            read().map_err(sql_error)?
        };
        let mut own = BTreeSet::new();
        for (trigger, table) in triggers {
            if !self.fires_on_shard(&table)? {
                own.insert(trigger.to_ascii_lowercase());
            }
        }
        Ok(own)
    }

    /// The views' names and CREATE statements.
    pub(crate) fn named_views(&self) -> Result<Vec<(String, String)>, Error> {
        self.mirror
            .connection
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'view' ORDER BY rowid")
            .and_then(|mut statement| {
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<Vec<_>>>()
            })
            .map_err(sql_error)
    }

    /// Notes that a schema change is about to go to the shards; returns its version.
    pub(crate) fn begin_change(&self, sql: &str, request_id: &str) -> Result<i64, Error> {
        self.storage
            .execute("INSERT INTO _dosql_ddl (sql, request_id, status) VALUES (?1, ?2, 'pending')", (sql, request_id))
            .map_err(sql_error)?;
        Ok(self.storage.last_insert_rowid())
    }

    /// The schema change that is not finished, if one is.
    pub(crate) fn pending_change(&self) -> Result<Option<PendingChange>, Error> {
        self.storage
            .query_row(
                "SELECT version, sql, status = 'undoing' FROM _dosql_ddl WHERE status IN ('pending', 'undoing')
                 ORDER BY version LIMIT 1",
                [],
                |row| Ok(PendingChange { version: row.get(0)?, sql: row.get(1)?, undoing: row.get(2)? }),
            )
            .optional()
            .map_err(sql_error)
    }

    /// What came of the schema change of this request, where it was applied or refused before.
    pub(crate) fn outcome(&self, request_id: &str) -> Result<Option<Result<(), Error>>, Error> {
        let error: Option<Option<Vec<u8>>> = self
            .storage
            .query_row(
                "SELECT error FROM _dosql_ddl WHERE request_id = ?1 AND status IN ('applied', 'failed')
                 ORDER BY version DESC LIMIT 1",
                [request_id],
                |row| row.get(0),
            )
            .optional()
            .map_err(sql_error)?;
        let bytes = match error {
            None => return Ok(None),
            Some(None) => return Ok(Some(Ok(()))),
            Some(Some(bytes)) => bytes,
        };
        let error = Error::decode(bytes.as_slice())
            .map_err(|error| Error::internal(format!("the log of schema changes: {error}")))?;
        Ok((!Self::is_passing(&error)).then_some(Err(error)))
    }

    /// Whether a schema change failed for a lock that was held then, and is held no more when it is sent again.
    pub(crate) fn is_passing(error: &Error) -> bool {
        matches!(error.code(), ErrorCode::LockTimeout | ErrorCode::TransactionAborted)
    }

    /// Notes that what a request has changed was taken back, and why.
    pub(crate) fn fail_request(&self, request_id: &str, error: &Error) -> Result<(), Error> {
        let sql = "UPDATE _dosql_ddl SET status = 'failed', error = ?2 WHERE request_id = ?1 AND status = 'applied'";
        self.storage.execute(sql, (request_id, error.encode_to_vec())).map_err(sql_error)?;
        Ok(())
    }

    /// Notes that a shard refused a schema change: from now on it is taken back from the others, whatever happens meanwhile.
    pub(crate) fn begin_undo(&self, version: i64, error: &Error) -> Result<(), Error> {
        self.set_status(version, "undoing", error)
    }

    /// Notes that a schema change was refused and is nowhere any more.
    pub(crate) fn fail_change(&self, version: i64, error: &Error) -> Result<(), Error> {
        self.set_status(version, "failed", error)
    }

    /// Notes that a schema change is nowhere any more which was being taken back. It stays refused for what it was refused for.
    pub(crate) fn end_undo(&self, version: i64) -> Result<(), Error> {
        let sql = "UPDATE _dosql_ddl SET status = 'failed' WHERE version = ?1";
        self.storage.execute(sql, [version]).map_err(sql_error)?;
        Ok(())
    }

    fn set_status(&self, version: i64, status: &str, error: &Error) -> Result<(), Error> {
        self.storage
            .execute(
                "UPDATE _dosql_ddl SET status = ?2, error = ?3 WHERE version = ?1",
                (version, status, error.encode_to_vec()),
            )
            .map_err(sql_error)?;
        Ok(())
    }

    /// Takes over a schema change that every shard has applied; `sql` is what the mirror runs, if anything. Where it cannot be
    /// stored nothing changes here, and it is still pending.
    pub(crate) fn finish_change(
        &mut self,
        version: i64,
        sql: Option<&str>,
        change: &Change,
        now_ms: u64,
    ) -> Result<(), Error> {
        self.mirror.connection.execute_batch("SAVEPOINT _dosql_change").map_err(sql_error)?;
        let taken = self.take_over(version, sql, change, now_ms);
        let end = match taken {
            Ok(_) => "RELEASE _dosql_change",
            Err(_) => "ROLLBACK TO _dosql_change; RELEASE _dosql_change",
        };
        self.mirror.connection.execute_batch(end).map_err(sql_error)?;
        self.tables = taken?;
        self.filling = self.filling_after(change);
        self.automatic = self.automatic_after(change);
        self.own_triggers = self.read_own_triggers()?;
        if let Some(version) = &change.vschema {
            self.increments = sequences::increments(&version.vschema);
            self.version = version.clone();
        }
        Ok(())
    }

    fn automatic_after(&self, change: &Change) -> BTreeSet<String> {
        let mut automatic = self.automatic.clone();
        automatic.extend(change.auto.clone());
        // A renamed table is left where it is, and so is one that the VSchema has a place for.
        automatic.retain(|name| {
            let placed = change.vschema.as_ref().is_some_and(|version| version.vschema.table(name).is_some());
            change.places.contains_key(name) && !placed
        });
        automatic
    }

    fn filling_after(&self, change: &Change) -> BTreeSet<String> {
        let mut filling = self.filling.clone();
        filling.extend(change.filling.iter().map(|name| name.to_ascii_lowercase()));
        filling.retain(|name| change.places.contains_key(name));
        filling
    }

    fn take_over(
        &self,
        version: i64,
        sql: Option<&str>,
        change: &Change,
        now_ms: u64,
    ) -> Result<BTreeMap<String, Table>, Error> {
        if let Some(sql) = sql.filter(|_| change.collected.is_empty()) {
            self.mirror.connection.execute_batch(sql).map_err(sql_error)?;
        }
        for sql in &change.also {
            self.mirror.connection.execute_batch(sql).map_err(sql_error)?;
        }
        let mut tables = BTreeMap::new();
        for (name, shape) in table::shapes(&self.mirror.connection).map_err(sql_error)? {
            let place = change
                .places
                .get(&name)
                .ok_or_else(|| Error::internal(format!("the schema change says nothing of table {name}")))?;
            tables.insert(name, place.clone().table(shape));
        }
        let now = change.vschema.as_ref().map_or(&self.version.vschema, |version| &version.vschema);
        Self::attach(now, &mut tables, &self.filling_after(change))?;
        let vschema = match &change.vschema {
            Some(version) => Some((version, versions::write(&version.vschema)?)),
            None => None,
        };
        // The last thing that may fail.
        self.save(version, &tables, change, vschema, now_ms).map_err(sql_error)?;
        Ok(tables)
    }

    fn save(
        &self,
        version: i64,
        tables: &BTreeMap<String, Table>,
        change: &Change,
        vschema: Option<(&Version, String)>,
        now_ms: u64,
    ) -> rusqlite::Result<()> {
        let objects = strings(
            &self.mirror.connection,
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid",
        )?;
        let json = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
        let transaction = self.storage.unchecked_transaction()?;
        transaction.execute_batch("DELETE FROM _dosql_objects; DELETE FROM _dosql_places")?;
        for sql in objects {
            transaction.prepare_cached("INSERT INTO _dosql_objects (sql) VALUES (?1)")?.execute([sql])?;
        }
        automatic::save(&transaction, &self.automatic_after(change))?;
        lookup::save(&transaction, &self.filling, &self.filling_after(change))?;
        for (name, table) in tables {
            let (kind, shard, column) = match table.placement {
                Placement::Unsharded(shard) => ("unsharded", self.shards[shard].as_str(), ""),
                Placement::Reference => ("reference", "", ""),
                Placement::Sharded(column) => ("sharded", "", table.shape.columns[column].name.as_str()),
            };
            let (vindex, layout) = match &table.vindex {
                Some(vindex) => (
                    serde_json::to_string(vindex.definition()).map_err(json)?,
                    serde_json::to_string(vindex.layout()).map_err(json)?,
                ),
                None => (String::new(), String::new()),
            };
            transaction
                .prepare_cached("INSERT INTO _dosql_places VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute((name, kind, shard, column, vindex, layout))?;
        }
        if let Some((version, text)) = vschema {
            transaction.execute(
                "INSERT INTO _dosql_vschema VALUES (?1, ?2, ?3, ?4)",
                (version.version, &version.document, text, now_ms as i64),
            )?;
        }
        transaction.execute("UPDATE _dosql_ddl SET status = 'applied' WHERE version = ?1", [version])?;
        transaction.commit()
    }
}

/// A table's place as it is stored; texts that do not apply are empty.
struct StoredPlace {
    placement: String,
    shard: String,
    column: String,
    vindex: String,
    layout: String,
}

fn strings(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}
