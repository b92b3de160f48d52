//! ALTER TABLE ... RENAME: the VSchema goes with the table, or the column.

use std::collections::BTreeMap;

use dosql_proto::Error;

use super::change::unsupported;
use super::place::Place;
use super::table::{Shape, Table};
use super::{Catalog, Ddl};
use crate::vschema::{TableEntry, VSchema};

/// What a schema change has renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renaming {
    old_table: String,
    /// The table's name afterwards.
    pub(super) table: String,
    /// A column's name before and afterwards.
    pub(super) column: Option<(String, String)>,
}

impl Renaming {
    /// What a statement about a table has renamed, if anything.
    pub(super) fn of(ddl: &Ddl, old: &Table, after: &BTreeMap<String, Shape>, created: &[String]) -> Option<Self> {
        if !matches!(ddl, Ddl::OfTable(_)) {
            return None;
        }
        let before = &old.shape;
        let shape = after.get(created.first().unwrap_or(&before.name.to_ascii_lowercase()))?;
        let mut columns = before.columns.iter().zip(&shape.columns).filter(|(old, new)| old.name != new.name);
        let column = match (columns.next(), columns.next()) {
            (Some((old, new)), None) if before.columns.len() == shape.columns.len() => {
                Some((old.name.clone(), new.name.clone()))
            }
            _ => None,
        };
        let renamed = Self { old_table: before.name.clone(), table: shape.name.clone(), column };
        (renamed.old_table != renamed.table || renamed.column.is_some()).then_some(renamed)
    }
}

impl Catalog {
    /// The VSchema after something was renamed.
    ///
    /// # Errors
    /// `UNSUPPORTED` where it says something else of the new name than the table is.
    pub(super) fn follow(&self, renaming: &Renaming, table: &Table, shape: &Shape) -> Result<VSchema, Error> {
        let now = &self.version.vschema;
        let Renaming { old_table: old, table: new, column } = renaming;
        if let Some((from, to)) = column {
            return Ok(now.with_column_renamed(new, from, to));
        }
        let Some(waiting) = now.table(new).filter(|_| !old.eq_ignore_ascii_case(new)) else {
            return Ok(now.with_table_renamed(old, new));
        };
        // A table that was made anew beside the old one takes its place.
        let looks_up = [Some(waiting), now.table(old)]
            .into_iter()
            .flatten()
            .any(|entry| matches!(entry, TableEntry::Sharded { lookups, .. } if !lookups.is_empty()));
        let here = Place { placement: table.placement.clone(), vindex: table.vindex.clone() };
        if looks_up || !self.stays(&here, &self.place_by(shape, waiting, now)?) {
            return Err(unsupported(format!(
                "renaming table {old} to {new} is not supported: the VSchema has another place or lookup vindexes for {new}; \
                 ALTER VSCHEMA DROP TABLE {new} first"
            )));
        }
        Ok(now.without_table(old))
    }

    /// Fails where a column that a sequence fills is gone.
    pub(super) fn check_increments(vschema: &VSchema, after: &BTreeMap<String, Shape>) -> Result<(), Error> {
        for shape in after.values() {
            if let Some(TableEntry::Sharded { auto_increment: Some(increment), .. }) = vschema.table(&shape.name)
                && shape.column(&increment.column).is_none()
            {
                return Err(unsupported(format!(
                    "dropping {} is not supported: a sequence fills it in table {}; ALTER VSCHEMA ON {1} DROP AUTO_INCREMENT first",
                    increment.column, shape.name
                )));
            }
        }
        Ok(())
    }
}
