//! The VSchema's versions. Each keeps the document it came from, so that a changed one is told from one that SQL has changed.

use dosql_actors::sql_value::sql_error;
use dosql_proto::Error;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::vschema::VSchema;

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS _dosql_vschema (
  version INTEGER PRIMARY KEY, document TEXT NOT NULL, vschema TEXT NOT NULL, since_ms INTEGER NOT NULL
);
";

/// A version of the VSchema.
#[derive(Debug, Clone, Default)]
pub(crate) struct Version {
    /// 0 where there has been none yet.
    pub(crate) version: i64,
    /// The document as it was given.
    pub(crate) document: String,
    pub(crate) vschema: VSchema,
}

/// The version in force.
pub(super) fn current(storage: &Connection) -> Result<Version, Error> {
    let row: Option<(i64, String, String)> = storage
        .query_row("SELECT version, document, vschema FROM _dosql_vschema ORDER BY version DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()
        .map_err(sql_error)?;
    match row {
        Some((version, document, text)) => Ok(Version { version, document, vschema: read(&text)? }),
        None => Ok(Version::default()),
    }
}

/// A change of the VSchema as the log of schema changes has it: a JSON object, which no statement is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Logged {
    pub(crate) vschema: VSchema,
    /// The document that asks for it, where one does.
    pub(crate) document: Option<String>,
}

impl Logged {
    /// The logged change, where this text is one.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Error> {
        if !text.starts_with('{') {
            return Ok(None);
        }
        let unreadable = |error| Error::internal(format!("the logged change of the VSchema: {error}"));
        serde_json::from_str(text).map(Some).map_err(unreadable)
    }

    /// The text that [`parse`](Self::parse) reads.
    pub(crate) fn text(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|error| Error::internal(format!("the VSchema: {error}")))
    }
}

fn read(text: &str) -> Result<VSchema, Error> {
    serde_json::from_str(text).map_err(|error| Error::internal(format!("the stored VSchema: {error}")))
}

/// A VSchema as JSON.
///
/// # Errors
/// `INTERNAL` where it cannot be written.
pub(crate) fn write(vschema: &VSchema) -> Result<String, Error> {
    serde_json::to_string(vschema).map_err(|error| Error::internal(format!("the VSchema: {error}")))
}

/// The VSchema that this document makes of the version in force; `None` where the document is that version's own, or empty.
///
/// # Errors
/// What is wrong with the document.
pub(crate) fn under_document(now: &Version, document: &str) -> Result<Option<VSchema>, Error> {
    if document.trim().is_empty() || document == now.document {
        return Ok(None);
    }
    let before = VSchema::parse(&now.document)?;
    Ok(Some(now.vschema.merged(&before, VSchema::parse(document)?)))
}
