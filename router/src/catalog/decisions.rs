//! The log of decisions: which transactions over several shards take effect. What is not here was rolled back.

use dosql_actors::sql_value::sql_error;
use dosql_proto::Error;
use rusqlite::{OptionalExtension, Row, params};

use super::Catalog;

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS _dosql_decisions (
  id TEXT PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, shards TEXT NOT NULL, outcome BLOB NOT NULL,
  applied INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS _dosql_decisions_at ON _dosql_decisions (at);
CREATE INDEX IF NOT EXISTS _dosql_decisions_open ON _dosql_decisions (id) WHERE NOT applied;
";

/// How long a decision is kept at least, in milliseconds: a request that is sent again is answered from it.
const MEMORY_MS: u64 = 600_000;

/// That a transaction takes effect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub(crate) id: String,
    /// Of the client's request that it is the outcome of.
    pub(crate) request_id: String,
    /// The shards' names.
    pub(crate) shards: Vec<String>,
    /// What the client is answered, encoded.
    pub(crate) outcome: Vec<u8>,
}

impl Catalog {
    /// Logs a decision, and that those of the ids in `applied` have been applied everywhere. Once this has returned, it stands.
    ///
    /// # Errors
    /// `STORAGE`: it may stand or not, which only the next incarnation finds out.
    pub(crate) fn decide(&self, decision: &Decision, applied: &[String], now_ms: u64) -> Result<(), Error> {
        let at = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let memory = i64::try_from(MEMORY_MS).unwrap_or(i64::MAX);
        let write = || -> rusqlite::Result<()> {
            let transaction = self.storage.unchecked_transaction()?;
            for id in applied {
                transaction.prepare_cached("UPDATE _dosql_decisions SET applied = 1 WHERE id = ?1")?.execute([id])?;
            }
            transaction
                .prepare_cached("DELETE FROM _dosql_decisions WHERE at < ?1 AND applied")?
                .execute([at.saturating_sub(memory)])?;
            transaction
                .prepare_cached(
                    "INSERT INTO _dosql_decisions (id, request_id, at, shards, outcome) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![decision.id, decision.request_id, at, decision.shards.join("\n"), decision.outcome])?;
            transaction.commit()
        };
        write().map_err(sql_error)
    }

    /// The decision on a transaction.
    pub(crate) fn decision(&self, id: &str) -> Result<Option<Decision>, Error> {
        self.find("SELECT id, request_id, shards, outcome FROM _dosql_decisions WHERE id = ?1", id)
    }

    /// The decision that came of a request.
    pub(crate) fn decided(&self, request_id: &str) -> Result<Option<Decision>, Error> {
        self.find("SELECT id, request_id, shards, outcome FROM _dosql_decisions WHERE request_id = ?1", request_id)
    }

    /// The decisions that may not have been applied everywhere.
    pub(crate) fn open_decisions(&self) -> Result<Vec<Decision>, Error> {
        let read = || -> rusqlite::Result<Vec<Decision>> {
            self.storage
                .prepare("SELECT id, request_id, shards, outcome FROM _dosql_decisions WHERE NOT applied")?
                .query_map([], decision)?
                .collect()
        };
        read().map_err(sql_error)
    }

    fn find(&self, sql: &str, key: &str) -> Result<Option<Decision>, Error> {
        self.storage
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([key], decision).optional())
            .map_err(sql_error)
    }
}

fn decision(row: &Row<'_>) -> rusqlite::Result<Decision> {
    let shards: String = row.get(2)?;
    Ok(Decision {
        id: row.get(0)?,
        request_id: row.get(1)?,
        shards: shards.split('\n').map(str::to_owned).collect(),
        outcome: row.get(3)?,
    })
}
