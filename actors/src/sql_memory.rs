//! What a connection holds in memory and on disk.

use rusqlite::{Connection, ffi};

/// What a scratch database takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of page cache.
    pub memory: u64,
    /// Bytes written to its files and to those of sorters and temporary tables.
    pub written: u64,
}

/// What a connection takes now.
#[must_use]
pub fn footprint(connection: &Connection) -> Footprint {
    let pages = status(connection, ffi::SQLITE_DBSTATUS_CACHE_WRITE);
    let page_bytes: u64 = connection
        .prepare_cached("PRAGMA page_size")
        .and_then(|mut statement| statement.query_row([], |row| row.get::<_, u32>(0)))
        .map_or(4096, u64::from);
    Footprint {
        memory: status(connection, ffi::SQLITE_DBSTATUS_CACHE_USED),
        written: pages * page_bytes + status(connection, ffi::SQLITE_DBSTATUS_TEMPBUF_SPILL),
    }
}

fn status(connection: &Connection, what: i32) -> u64 {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the handle is open as long as the connection that is borrowed here, and SQLite writes only the two integers.
    let code = unsafe { ffi::sqlite3_db_status(connection.handle(), what, &mut current, &mut highest, 0) };
    if code == ffi::SQLITE_OK { u64::try_from(current).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_cache_is_written() {
        let connection = Connection::open("").unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA cache_size = -256; CREATE TABLE t (x); BEGIN")
            .unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                    INSERT INTO t SELECT zeroblob(4000) FROM n";
        assert_eq!(footprint(&connection).written, 0);
        connection.execute_batch(fill).unwrap();
        let after = footprint(&connection);
        assert!(after.written > 3_000_000, "{after:?}");
        assert!(after.memory < 600_000, "{after:?}");
    }
}
