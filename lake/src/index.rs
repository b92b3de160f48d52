//! The lake actor's own database: how far each shard was taken in, the index from keys to rows, and commits under way.
//!
//! A commit to a table is prepared in one transaction: the index moves to what it will be after the commit, the places that it
//! overwrites are kept in `_dosql_undo`, and `_dosql_pending` names the snapshot and its files. After the commit the pending
//! entry is dropped; where it did not happen, the index is taken back. A compaction, which moves many rows, notes the files they
//! leave in `_dosql_replaced`, and in `_dosql_runs` where their rows go (`moved.rs`); those of rows that it sorts go to
//! `_dosql_moves`, and the index takes them over after the commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use crate::LakeError;
use crate::entries::Entries;
use crate::moved::{Run, packed, unpacked};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _dosql_shards (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, lsn INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS _dosql_tables (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, snapshot_id INTEGER NOT NULL, rows INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS _dosql_files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, table_id INTEGER NOT NULL, url TEXT NOT NULL, partition TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS _dosql_index (
    table_id INTEGER NOT NULL, shard_id INTEGER NOT NULL, key NOT NULL, file INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (table_id, shard_id, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_blocks (
    id INTEGER PRIMARY KEY, table_id INTEGER NOT NULL, shard_id INTEGER NOT NULL, first NOT NULL, last NOT NULL,
    file INTEGER NOT NULL, entries BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS _dosql_blocks_by_key ON _dosql_blocks (table_id, shard_id, first);
CREATE TABLE IF NOT EXISTS _dosql_undo (
    table_id INTEGER NOT NULL, shard_id INTEGER NOT NULL, key NOT NULL, file INTEGER NOT NULL, position INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS _dosql_pending (
    table_id INTEGER PRIMARY KEY, snapshot_id INTEGER NOT NULL, version INTEGER NOT NULL, first_file INTEGER NOT NULL,
    rows INTEGER NOT NULL, paths TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS _dosql_moves (
    table_id INTEGER NOT NULL, shard_id INTEGER NOT NULL, key NOT NULL, file INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (table_id, shard_id, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_replaced (
    table_id INTEGER NOT NULL, file INTEGER NOT NULL, PRIMARY KEY (table_id, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_runs (
    file INTEGER NOT NULL, first INTEGER NOT NULL, table_id INTEGER NOT NULL, to_file INTEGER NOT NULL, to_first INTEGER NOT NULL,
    gone BLOB NOT NULL, PRIMARY KEY (file, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_options (
    source TEXT PRIMARY KEY, options TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _dosql_maintenance (
    task TEXT PRIMARY KEY, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
";
/// Stands for a snapshot that no table has: the index is to be made anew.
const NO_SNAPSHOT: i64 = -1;

/// A row's key within its table and shard: a single integer as it is, anything else encoded.
/// They are ordered as SQLite orders them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Integer(i64),
    Encoded(Vec<u8>),
}

impl ToSql for Key {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Integer(integer) => ToSqlOutput::Owned(SqlValue::Integer(*integer)),
            Self::Encoded(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

impl Key {
    pub(crate) fn read(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        Ok(match row.get_ref(column)? {
            ValueRef::Integer(integer) => Self::Integer(integer),
            other => Self::Encoded(other.as_bytes()?.to_vec()),
        })
    }
}

/// Where a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) file: i64,
    pub(crate) row: i64,
}

/// What is known of a lake table.
#[derive(Debug, Clone)]
pub(crate) struct KnownTable {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// The snapshot that the index describes; 0 before the first.
    pub(crate) snapshot_id: i64,
    pub(crate) rows: i64,
}

/// A commit that was prepared and of which it is not yet known whether it happened.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) table_id: i64,
    pub(crate) table: String,
    pub(crate) snapshot_id: i64,
    /// The metadata version it creates.
    pub(crate) version: i64,
    /// The first of its data files; later ones are its own, too.
    pub(crate) first_file: i64,
    /// By how many rows the table grows.
    pub(crate) rows: i64,
    /// Every object it may write.
    pub(crate) paths: Vec<String>,
}

/// The database.
pub(crate) struct Index {
    database: Connection,
}

impl Index {
    /// Opens it; says whether it is new.
    pub(crate) fn open(database: Connection) -> Result<(Self, bool), LakeError> {
        let known: Option<i64> = database
            .query_row("SELECT 1 FROM sqlite_schema WHERE name = '_dosql_pending'", [], |row| row.get(0))
            .optional()?;
        database.set_prepared_statement_cache_capacity(96);
        Ok((Self { database }, known.is_none()))
    }

    /// Makes what tables the database lacks. In a new one, notes how far the shards are in a lake that is there already.
    pub(crate) fn initialise(&self, durable: &BTreeMap<String, u64>) -> Result<(), LakeError> {
        self.transaction(|| {
            self.database.execute_batch(TABLES)?;
            self.note_durable(durable)
        })
    }

    /// Runs `work` as one transaction.
    pub(crate) fn transaction<T>(&self, work: impl FnOnce() -> Result<T, LakeError>) -> Result<T, LakeError> {
        let transaction = self.database.unchecked_transaction()?;
        let outcome = work()?;
        transaction.commit()?;
        Ok(outcome)
    }

    /// Each shard's last LSN that every table has taken in.
    pub(crate) fn durable(&self) -> Result<BTreeMap<String, u64>, LakeError> {
        let mut statement = self.database.prepare_cached("SELECT name, lsn FROM _dosql_shards")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Sets the shards' durable LSNs.
    pub(crate) fn set_durable(&self, shards: &BTreeMap<String, u64>) -> Result<(), LakeError> {
        self.transaction(|| self.note_durable(shards))
    }

    fn note_durable(&self, shards: &BTreeMap<String, u64>) -> Result<(), LakeError> {
        let mut statement = self.database.prepare_cached(
            "INSERT INTO _dosql_shards (name, lsn) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET lsn = excluded.lsn",
        )?;
        for (shard, lsn) in shards {
            statement.execute(params![shard, lsn.cast_signed()])?;
        }
        Ok(())
    }

    /// The number that stands for a shard in the index.
    pub(crate) fn shard_id(&self, shard: &str) -> Result<i64, LakeError> {
        self.database
            .prepare_cached("INSERT INTO _dosql_shards (name, lsn) VALUES (?1, 0) ON CONFLICT (name) DO NOTHING")?
            .execute([shard])?;
        let mut statement = self.database.prepare_cached("SELECT id FROM _dosql_shards WHERE name = ?1")?;
        Ok(statement.query_row([shard], |row| row.get(0))?)
    }

    /// What is known of every lake table.
    pub(crate) fn tables(&self) -> Result<Vec<KnownTable>, LakeError> {
        let mut statement =
            self.database.prepare_cached("SELECT id, name, snapshot_id, rows FROM _dosql_tables ORDER BY name")?;
        Ok(statement.query_map([], known_table)?.collect::<Result<_, _>>()?)
    }

    /// What is known of a lake table, from now on.
    pub(crate) fn table(&self, name: &str) -> Result<KnownTable, LakeError> {
        self.database
            .prepare_cached(
                "INSERT INTO _dosql_tables (name, snapshot_id, rows) VALUES (?1, 0, 0) ON CONFLICT (name) DO NOTHING",
            )?
            .execute([name])?;
        let mut statement =
            self.database.prepare_cached("SELECT id, name, snapshot_id, rows FROM _dosql_tables WHERE name = ?1")?;
        Ok(statement.query_row([name], known_table)?)
    }

    /// Registers a data file; returns its number, higher than every one before.
    pub(crate) fn add_file(&self, table_id: i64, url: &str, partition: &str) -> Result<i64, LakeError> {
        self.database
            .prepare_cached("INSERT INTO _dosql_files (table_id, url, partition) VALUES (?1, ?2, ?3)")?
            .execute(params![table_id, url, partition])?;
        Ok(self.database.last_insert_rowid())
    }

    /// The number that the next data file will at least have.
    pub(crate) fn next_file(&self) -> Result<i64, LakeError> {
        let mut statement =
            self.database.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = '_dosql_files'")?;
        Ok(statement.query_row([], |row| row.get::<_, i64>(0)).optional()?.unwrap_or(0) + 1)
    }

    /// A data file's URL and partition, as [`LakeTable`](crate::table::LakeTable) writes it.
    pub(crate) fn file(&self, id: i64) -> Result<(Arc<str>, Arc<str>), LakeError> {
        let mut statement = self.database.prepare_cached("SELECT url, partition FROM _dosql_files WHERE id = ?1")?;
        Ok(statement.query_row([id], |row| Ok((row.get::<_, String>(0)?.into(), row.get::<_, String>(1)?.into())))?)
    }

    /// Prepares a commit.
    pub(crate) fn add_pending(&self, pending: &Pending) -> Result<(), LakeError> {
        let Pending { table_id, snapshot_id, version, first_file, rows, paths, .. } = pending;
        let paths = paths.join("\n");
        self.database
            .prepare_cached("INSERT INTO _dosql_pending VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![table_id, snapshot_id, version, first_file, rows, paths])?;
        Ok(())
    }

    /// The commits of which it is not known whether they happened.
    pub(crate) fn pending(&self) -> Result<Vec<Pending>, LakeError> {
        let mut statement = self.database.prepare_cached(
            "SELECT table_id, name, p.snapshot_id, version, first_file, p.rows, paths
             FROM _dosql_pending p JOIN _dosql_tables t ON t.id = table_id ORDER BY table_id",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(Pending {
                table_id: row.get(0)?,
                table: row.get(1)?,
                snapshot_id: row.get(2)?,
                version: row.get(3)?,
                first_file: row.get(4)?,
                rows: row.get(5)?,
                paths: row.get::<_, String>(6)?.lines().map(str::to_owned).collect(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A pending commit has happened.
    pub(crate) fn confirm(&self, pending: &Pending) -> Result<(), LakeError> {
        self.transaction(|| {
            self.database
                .prepare_cached("UPDATE _dosql_tables SET snapshot_id = ?2, rows = rows + ?3 WHERE id = ?1")?
                .execute(params![pending.table_id, pending.snapshot_id, pending.rows])?;
            self.unpack_moved(pending.table_id)?;
            for statement in [
                "INSERT OR REPLACE INTO _dosql_index SELECT * FROM _dosql_moves WHERE table_id = ?1",
                "DELETE FROM _dosql_files WHERE id IN (SELECT file FROM _dosql_replaced WHERE table_id = ?1)",
            ] {
                self.database.prepare_cached(statement)?.execute([pending.table_id])?;
            }
            self.forget(pending.table_id)
        })
    }

    /// Takes the keys whose rows a compaction has sorted out of their blocks.
    fn unpack_moved(&self, table_id: i64) -> Result<(), LakeError> {
        let mut statement = self
            .database
            .prepare_cached("SELECT shard_id, key FROM _dosql_moves WHERE table_id = ?1 ORDER BY shard_id, key")?;
        let (mut moved, mut entries) = (statement.query([table_id])?, self.entries(table_id)?);
        while let Some(row) = moved.next()? {
            entries.unpack(row.get(0)?, &Key::read(row, 1)?)?;
        }
        entries.finish()
    }

    /// A pending commit has not happened and never will.
    pub(crate) fn take_back(&self, pending: &Pending) -> Result<(), LakeError> {
        let Pending { table_id, first_file, .. } = pending;
        self.transaction(|| {
            for statement in [
                "DELETE FROM _dosql_index WHERE table_id = ?1 AND file >= ?2",
                "DELETE FROM _dosql_blocks WHERE table_id = ?1 AND file >= ?2",
            ] {
                self.database.prepare_cached(statement)?.execute([table_id, first_file])?;
            }
            self.database
                .prepare_cached(
                    "INSERT INTO _dosql_index (table_id, shard_id, key, file, position)
                     SELECT table_id, shard_id, key, file, position FROM _dosql_undo WHERE table_id = ?1",
                )?
                .execute([table_id])?;
            for statement in [
                "DELETE FROM _dosql_files WHERE table_id = ?1 AND id >= ?2",
                "DELETE FROM _dosql_runs WHERE table_id = ?1 AND to_file >= ?2",
            ] {
                self.database.prepare_cached(statement)?.execute([table_id, first_file])?;
            }
            self.forget(*table_id)
        })
    }

    fn forget(&self, table_id: i64) -> Result<(), LakeError> {
        for statement in [
            "DELETE FROM _dosql_undo WHERE table_id = ?1",
            "DELETE FROM _dosql_moves WHERE table_id = ?1",
            "DELETE FROM _dosql_replaced WHERE table_id = ?1",
            "DELETE FROM _dosql_pending WHERE table_id = ?1",
        ] {
            self.database.prepare_cached(statement)?.execute([table_id])?;
        }
        Ok(())
    }

    /// Forgets everything about a table but that it is there.
    pub(crate) fn clear_table(&self, table_id: i64) -> Result<(), LakeError> {
        self.transaction(|| {
            self.mark_stale(table_id)?;
            for statement in [
                "DELETE FROM _dosql_index WHERE table_id = ?1",
                "DELETE FROM _dosql_blocks WHERE table_id = ?1",
                "DELETE FROM _dosql_files WHERE table_id = ?1",
                "DELETE FROM _dosql_runs WHERE table_id = ?1",
            ] {
                self.database.prepare_cached(statement)?.execute([table_id])?;
            }
            self.forget(table_id)
        })
    }

    /// Has the index of a table made anew before it is used next.
    pub(crate) fn mark_stale(&self, table_id: i64) -> Result<(), LakeError> {
        self.describe(table_id, NO_SNAPSHOT, 0)
    }

    /// The index of a table is of this snapshot.
    pub(crate) fn describe(&self, table_id: i64, snapshot_id: i64, rows: i64) -> Result<(), LakeError> {
        self.database
            .prepare_cached("UPDATE _dosql_tables SET snapshot_id = ?2, rows = ?3 WHERE id = ?1")?
            .execute([table_id, snapshot_id, rows])?;
        Ok(())
    }

    /// The number of a data file, which must be registered.
    pub(crate) fn file_id(&self, table_id: i64, url: &str) -> Result<Option<i64>, LakeError> {
        let mut statement =
            self.database.prepare_cached("SELECT id FROM _dosql_files WHERE table_id = ?1 AND url = ?2")?;
        Ok(statement.query_row(params![table_id, url], |row| row.get(0)).optional()?)
    }

    /// A pending commit takes this data file out of the table.
    pub(crate) fn add_replaced(&self, table_id: i64, file: i64) -> Result<(), LakeError> {
        self.database
            .prepare_cached("INSERT OR IGNORE INTO _dosql_replaced (table_id, file) VALUES (?1, ?2)")?
            .execute([table_id, file])?;
        Ok(())
    }

    /// A pending commit moves this run of a data file's rows.
    pub(crate) fn add_run(&self, table_id: i64, file: i64, run: &Run) -> Result<(), LakeError> {
        self.database.prepare_cached("INSERT INTO _dosql_runs VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            file,
            run.first,
            table_id,
            run.to.file,
            run.to.row,
            packed(&run.gone)
        ])?;
        Ok(())
    }

    /// The runs that a data file's rows have moved in, in order; none where they stand in it.
    pub(crate) fn runs(&self, file: i64) -> Result<Vec<Run>, LakeError> {
        let mut statement = self
            .database
            .prepare_cached("SELECT first, to_file, to_first, gone FROM _dosql_runs WHERE file = ?1 ORDER BY first")?;
        let runs = statement.query_map([file], |row| {
            let gone =
                unpacked(row.get_ref(3)?.as_bytes()?).ok_or(rusqlite::Error::IntegralValueOutOfRange(3, file))?;
            Ok(Run { first: row.get(0)?, to: Position { file: row.get(1)?, row: row.get(2)? }, gone })
        })?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    /// Forgets the runs of rows that no entry is looked up by any more, having read the table's whole index.
    pub(crate) fn forget_unused_runs(&self, table_id: i64) -> Result<(), LakeError> {
        let mut statement =
            self.database.prepare_cached("SELECT DISTINCT file, to_file FROM _dosql_runs WHERE table_id = ?1")?;
        let runs: Vec<(i64, i64)> =
            statement.query_map([table_id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        if runs.is_empty() {
            return Ok(());
        }
        let mut used = self.entries(table_id)?.files()?;
        // Files have higher numbers than those whose rows they took.
        let mut ascending = runs;
        ascending.sort_unstable();
        for (file, to_file) in &ascending {
            if used.contains(file) {
                used.insert(*to_file);
            }
        }
        self.transaction(|| {
            let mut forget =
                self.database.prepare_cached("DELETE FROM _dosql_runs WHERE table_id = ?1 AND file = ?2")?;
            for (file, _) in ascending.iter().filter(|(file, _)| !used.contains(file)) {
                forget.execute([table_id, *file])?;
            }
            Ok(())
        })
    }

    /// When a maintenance task was last begun; 0 where never.
    pub(crate) fn last_run_ms(&self, task: &str) -> Result<u64, LakeError> {
        let mut statement = self.database.prepare_cached("SELECT at_ms FROM _dosql_maintenance WHERE task = ?1")?;
        let at_ms: Option<i64> = statement.query_row([task], |row| row.get(0)).optional()?;
        Ok(at_ms.unwrap_or(0).cast_unsigned())
    }

    /// A maintenance task begins.
    pub(crate) fn set_last_run_ms(&self, task: &str, at_ms: u64) -> Result<(), LakeError> {
        self.database
            .prepare_cached("INSERT OR REPLACE INTO _dosql_maintenance (task, at_ms) VALUES (?1, ?2)")?
            .execute(params![task, at_ms.cast_signed()])?;
        Ok(())
    }

    /// The options of source tables, as documents.
    pub(crate) fn options(&self) -> Result<Vec<(String, String)>, LakeError> {
        let mut statement = self.database.prepare_cached("SELECT source, options FROM _dosql_options")?;
        Ok(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
    }

    /// Sets the options of a source table.
    pub(crate) fn set_options(&self, source: &str, options: &str) -> Result<(), LakeError> {
        self.database
            .prepare_cached("INSERT OR REPLACE INTO _dosql_options (source, options) VALUES (?1, ?2)")?
            .execute([source, options])?;
        Ok(())
    }

    /// The entries of one table.
    pub(crate) fn entries(&self, table_id: i64) -> Result<Entries<'_>, LakeError> {
        Entries::new(&self.database, table_id)
    }
}

fn known_table(row: &Row<'_>) -> rusqlite::Result<KnownTable> {
    Ok(KnownTable { id: row.get(0)?, name: row.get(1)?, snapshot_id: row.get(2)?, rows: row.get(3)? })
}
