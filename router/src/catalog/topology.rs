//! Which member of each shard is the primary, and since which epoch.

use dosql_actors::sql_value::sql_error;
use dosql_proto::Error;
use rusqlite::OptionalExtension;

use super::Catalog;

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS _dosql_topology (
  shard TEXT PRIMARY KEY, epoch INTEGER NOT NULL, attempted INTEGER NOT NULL, member TEXT NOT NULL, schema_lsn INTEGER NOT NULL
) WITHOUT ROWID;
";

/// What is stored of a shard that has, or had, replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) epoch: u64,
    /// The last epoch that a promotion has asked members to follow; above `epoch` where it was not decided.
    pub(crate) attempted: u64,
    pub(crate) primary: String,
    /// Where the last change of the schema is in the shard's log.
    pub(crate) schema_lsn: u64,
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Catalog {
    /// Makes room for the topology.
    pub(crate) fn open_topology(&self) -> Result<(), Error> {
        self.storage.execute_batch(TABLE).map_err(sql_error)
    }

    /// What is stored of a shard.
    pub(crate) fn placed(&self, shard: &str) -> Result<Option<Placed>, Error> {
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        self.storage
            .query_row(
                "SELECT epoch, attempted, member, schema_lsn FROM _dosql_topology WHERE shard = ?1",
                [shard],
                |row| {
                    Ok(Placed {
                        epoch: unsigned(row.get(0)?),
                        attempted: unsigned(row.get(1)?),
                        primary: row.get(2)?,
                        schema_lsn: unsigned(row.get(3)?),
                    })
                },
            )
            .optional()
            .map_err(sql_error)
    }

    /// Stores what is decided of a shard.
    pub(crate) fn put_topology(&self, shard: &str, placed: &Placed) -> Result<(), Error> {
        self.storage
            .execute(
                "INSERT OR REPLACE INTO _dosql_topology VALUES (?1, ?2, ?3, ?4, ?5)",
                (shard, signed(placed.epoch), signed(placed.attempted), &placed.primary, signed(placed.schema_lsn)),
            )
            .map(|_| ())
            .map_err(sql_error)
    }
}
