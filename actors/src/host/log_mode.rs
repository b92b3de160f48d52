//! Switching a database to its write-ahead log.

use rusqlite::Connection;

/// Switches to WAL mode and makes sure of it. Changes `synchronous`, which is to be set afterwards.
///
/// The pragma answers its row before it commits the switch, so it is run to its end: where the commit fails, the connection
/// stays in rollback mode though it calls itself `wal`, and there, with `synchronous=FULL`, a power failure may bring a deleted
/// journal back and undo a commit that was acknowledged. The journal of the switch itself is therefore deleted with
/// `synchronous=EXTRA`: were it to come back, it would empty the database, and SQLite would then delete the log, too.
pub(super) fn use_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "EXTRA")?;
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode == "wal" {
        return Ok(());
    }
    Err(rusqlite::Error::InvalidParameterName(format!("WAL mode was refused: {mode}")))
}
