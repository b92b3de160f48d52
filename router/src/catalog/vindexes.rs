//! Vindexes of tables that are yet to be created. A table takes its vindex when it is created, and its placement is the
//! catalog's from then on.

use dosql_actors::sql_value::sql_error;
use dosql_proto::{Error, ErrorCode};
use rusqlite::OptionalExtension;

use super::{Catalog, Placement, unsupported};
use crate::vschema::{TableEntry, VSchema};

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS _dosql_vindexes (name TEXT PRIMARY KEY, vindex_column TEXT NOT NULL) WITHOUT ROWID;
";

impl Catalog {
    /// Has the table be sharded by the hash of `column` when it is created. Where it is already, nothing changes.
    ///
    /// # Errors
    /// `CONFLICT` where the VSchema says otherwise; `UNSUPPORTED` where the table exists and its rows would have to move.
    pub(crate) fn add_vindex(&self, table: &str, column: &str, vschema: &VSchema) -> Result<(), Error> {
        if let Some(known) = self.table(table) {
            return match known.placement {
                Placement::Sharded(index) if known.shape.columns[index].name.eq_ignore_ascii_case(column) => Ok(()),
                Placement::Sharded(index) => Err(unsupported(format!(
                    "sharding {table} by {column} is not supported: it exists, sharded by {}",
                    known.shape.columns[index].name
                ))),
                _ => Err(unsupported(format!("sharding {table} by {column} is not supported: it exists, unsharded"))),
            };
        }
        match vschema.table(table) {
            Some(TableEntry::Sharded { column: other, .. }) if other.eq_ignore_ascii_case(column) => Ok(()),
            Some(_) => {
                let message = format!("the VSchema says of table {table} something else than a vindex on {column}");
                Err(Error::new(ErrorCode::Conflict, message))
            }
            None => self
                .storage
                .execute(
                    "INSERT INTO _dosql_vindexes VALUES (?1, ?2)
                     ON CONFLICT (name) DO UPDATE SET vindex_column = excluded.vindex_column",
                    (table.to_ascii_lowercase(), column),
                )
                .map(drop)
                .map_err(sql_error),
        }
    }

    /// The column that a table which is about to be created shall be sharded by.
    pub(super) fn added_vindex(&self, table: &str) -> Result<Option<String>, Error> {
        self.storage
            .query_row(
                "SELECT vindex_column FROM _dosql_vindexes WHERE name = ?1",
                [table.to_ascii_lowercase()],
                |row| row.get(0),
            )
            .optional()
            .map_err(sql_error)
    }
}
