//! The tables that AUTO_SHARD placed: nobody has said where their rows are to be, so they may be moved to where their
//! constraints can be enforced.

use std::collections::BTreeSet;

use rusqlite::Connection;

pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS _dosql_automatic (name TEXT PRIMARY KEY) WITHOUT ROWID;";

/// Reads them.
pub(super) fn read(storage: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    storage.prepare("SELECT name FROM _dosql_automatic")?.query_map([], |row| row.get(0))?.collect()
}

/// Writes them, within the caller's transaction.
pub(super) fn save(storage: &Connection, names: &BTreeSet<String>) -> rusqlite::Result<()> {
    storage.execute("DELETE FROM _dosql_automatic", [])?;
    for name in names {
        storage.prepare_cached("INSERT INTO _dosql_automatic VALUES (?1)")?.execute([name])?;
    }
    Ok(())
}
