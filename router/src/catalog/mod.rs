//! The catalog: the schema of all tables, where their rows are, and the log of schema changes, kept in the router's own
//! storage so that a change interrupted by a crash is finished by the next incarnation.

mod automatic;
mod change;
mod mirror;
mod table;
mod vindexes;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dosql_actors::Context;
use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};
use prost::Message;
use rusqlite::{Connection, OptionalExtension};

pub(crate) use change::{COLLECT, Change, Fill, Outcome, unsupported};
pub(crate) use mirror::{Ddl, Mirror, Prepared};
pub(crate) use table::{Placement, Table};

use crate::affinity::Converter;
use crate::vindex::{Shard, Vindex};
use crate::vschema::VindexEntry;
use change::Place;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _dosql_shards (place INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS _dosql_objects (place INTEGER PRIMARY KEY, sql TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS _dosql_tables (
  name TEXT PRIMARY KEY, placement TEXT NOT NULL, shard INTEGER, vindex_column TEXT, vindex TEXT
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
    shard_list: Vec<Shard>,
    converter: Rc<Converter>,
    /// Where unsharded tables live by default.
    pub(crate) default_shard: usize,
}

impl Catalog {
    /// Reads the catalog from storage.
    ///
    /// # Errors
    /// `STORAGE`; `UNSUPPORTED` where the shards are not those its tables were created on.
    pub(crate) fn open(
        context: &Context,
        shard_list: Vec<Shard>,
        default_shard: usize,
        converter: Rc<Converter>,
    ) -> Result<Self, Error> {
        let shards: Vec<String> = shard_list.iter().map(|shard| shard.name.clone()).collect();
        let storage = context.open_storage()?;
        storage.execute_batch(TABLES).and_then(|()| storage.execute_batch(vindexes::TABLE)).map_err(sql_error)?;
        storage.execute_batch(automatic::TABLE).map_err(sql_error)?;
        let automatic = automatic::read(&storage).map_err(sql_error)?;
        let known = strings(&storage, "SELECT name FROM _dosql_shards ORDER BY place").map_err(sql_error)?;
        let objects = strings(&storage, "SELECT sql FROM _dosql_objects ORDER BY place").map_err(sql_error)?;
        if known != shards {
            if !objects.is_empty() {
                let message = format!(
                    "the tables were created on {} shards ({}), and moving them to {} ({}) is not supported",
                    known.len(),
                    known.join(", "),
                    shards.len(),
                    shards.join(", ")
                );
                return Err(Error::new(ErrorCode::Unsupported, message));
            }
            let replace = || -> rusqlite::Result<()> {
                let transaction = storage.unchecked_transaction()?;
                transaction.execute("DELETE FROM _dosql_shards", [])?;
                for (place, name) in shards.iter().enumerate() {
                    transaction.execute("INSERT INTO _dosql_shards VALUES (?1, ?2)", (place as i64, name))?;
                }
                transaction.commit()
            };
            replace().map_err(sql_error)?;
        }
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
            converter,
            default_shard,
        };
        catalog.tables = catalog.read_tables()?;
        catalog.own_triggers = catalog.read_own_triggers()?;
        Ok(catalog)
    }

    fn read_tables(&self) -> Result<BTreeMap<String, Table>, Error> {
        let mut tables = BTreeMap::new();
        for (key, shape) in table::shapes(&self.mirror.connection).map_err(sql_error)? {
            let (placement, shard, column, vindex): (String, Option<u32>, Option<String>, Option<String>) = self
                .storage
                .query_row(
                    "SELECT placement, shard, vindex_column, vindex FROM _dosql_tables WHERE name = ?1",
                    [&key],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
                )
                .map_err(sql_error)?;
            let place = match placement.as_str() {
                "reference" => Place::unmapped(Placement::Reference),
                "sharded" => {
                    let vindex: VindexEntry = serde_json::from_str(&vindex.unwrap_or_default())
                        .map_err(|error| Error::internal(format!("the vindex of table {key}: {error}")))?;
                    self.sharded_by(&shape, &column.unwrap_or_default(), &vindex)?
                }
                _ => Place::unmapped(Placement::Unsharded(shard.unwrap_or_default() as usize)),
            };
            tables.insert(key, place.table(shape));
        }
        Ok(tables)
    }

    /// The vindex of a column of these shards.
    fn vindex(&self, column: &table::ColumnInfo, definition: &VindexEntry) -> Result<Rc<Vindex>, Error> {
        Ok(Rc::new(Vindex::new(definition.clone(), column.as_key(), &self.shard_list, &self.converter)?))
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
                 ORDER BY version LIMIT 1",
                [request_id],
                |row| row.get(0),
            )
            .optional()
            .map_err(sql_error)?;
        Ok(match error {
            None => None,
            Some(None) => Some(Ok(())),
            Some(Some(bytes)) => Some(Err(Error::decode(bytes.as_slice())
                .map_err(|error| Error::internal(format!("the log of schema changes: {error}")))?)),
        })
    }

    /// Notes that a shard refused a schema change: from now on it is taken back from the others, whatever happens meanwhile.
    pub(crate) fn begin_undo(&self, version: i64, error: &Error) -> Result<(), Error> {
        self.set_status(version, "undoing", error)
    }

    /// Notes that a schema change was refused and is nowhere any more.
    pub(crate) fn fail_change(&self, version: i64, error: &Error) -> Result<(), Error> {
        self.set_status(version, "failed", error)
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

    /// Takes over a schema change that every shard has applied. Where it cannot be stored nothing changes here, and it is
    /// still pending.
    pub(crate) fn finish_change(&mut self, version: i64, sql: &str, change: &Change) -> Result<(), Error> {
        self.mirror.connection.execute_batch("SAVEPOINT _dosql_change").map_err(sql_error)?;
        let taken = self.take_over(version, sql, change);
        let end = match taken {
            Ok(_) => "RELEASE _dosql_change",
            Err(_) => "ROLLBACK TO _dosql_change; RELEASE _dosql_change",
        };
        self.mirror.connection.execute_batch(end).map_err(sql_error)?;
        self.tables = taken?;
        self.automatic = self.automatic_after(change);
        self.own_triggers = self.read_own_triggers()?;
        Ok(())
    }

    fn automatic_after(&self, change: &Change) -> BTreeSet<String> {
        let mut automatic = self.automatic.clone();
        automatic.extend(change.auto.clone());
        // A renamed table is left where it is.
        automatic.retain(|name| change.places.contains_key(name));
        automatic
    }

    fn take_over(&self, version: i64, sql: &str, change: &Change) -> Result<BTreeMap<String, Table>, Error> {
        if change.collected.is_empty() {
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
        // The last thing that may fail.
        self.save(version, &tables, change).map_err(sql_error)?;
        Ok(tables)
    }

    fn save(&self, version: i64, tables: &BTreeMap<String, Table>, change: &Change) -> rusqlite::Result<()> {
        let objects = strings(
            &self.mirror.connection,
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid",
        )?;
        let transaction = self.storage.unchecked_transaction()?;
        transaction.execute_batch("DELETE FROM _dosql_objects; DELETE FROM _dosql_tables")?;
        for sql in objects {
            transaction.prepare_cached("INSERT INTO _dosql_objects (sql) VALUES (?1)")?.execute([sql])?;
        }
        automatic::save(&transaction, &self.automatic_after(change))?;
        for (name, table) in tables {
            let (kind, shard, column) = match table.placement {
                Placement::Unsharded(shard) => ("unsharded", Some(shard as i64), None),
                Placement::Reference => ("reference", None, None),
                Placement::Sharded(column) => ("sharded", None, Some(&table.shape.columns[column].name)),
            };
            let vindex = match &table.vindex {
                Some(vindex) => Some(
                    serde_json::to_string(vindex.definition())
                        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?,
                ),
                None => None,
            };
            transaction
                .prepare_cached("INSERT INTO _dosql_tables VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute((name, kind, shard, column, vindex))?;
            transaction.prepare_cached("DELETE FROM _dosql_vindexes WHERE name = ?1")?.execute([name])?;
        }
        transaction.execute("UPDATE _dosql_ddl SET status = 'applied' WHERE version = ?1", [version])?;
        transaction.commit()
    }
}

fn strings(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}
