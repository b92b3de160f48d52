//! Where tables are, and what their places allow of constraints.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_actors::runtime::AutoShard;
use dosql_proto::{Error, ErrorCode};

use super::Catalog;
use super::change::unsupported;
use super::table::{Placement, Shape, Table};
use crate::vindex::Vindex;
use crate::vschema::{TableEntry, VSchema, VindexEntry};

/// Where a table's rows are, without the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    pub(crate) placement: Placement,
    pub(crate) vindex: Option<Rc<Vindex>>,
}

impl Place {
    /// The place of a table that is not sharded.
    pub(super) fn unmapped(placement: Placement) -> Self {
        Self { placement, vindex: None }
    }

    /// The table there.
    pub(super) fn table(self, shape: Shape) -> Table {
        Table { shape, placement: self.placement, vindex: self.vindex, lookups: Vec::new() }
    }
}

impl Catalog {
    /// The place of a table that is sharded by `column`.
    ///
    /// # Errors
    /// `UNKNOWN_COLUMN`; `UNSUPPORTED` for a generated one; what is wrong with the vindex for this column.
    pub(super) fn sharded_by(&self, shape: &Shape, column: &str, vindex: &VindexEntry) -> Result<Place, Error> {
        let index = shape.column(column).ok_or_else(|| {
            Error::new(
                ErrorCode::UnknownColumn,
                format!("no such column: {column}, by which the VSchema shards table {}", shape.name),
            )
        })?;
        let info = &shape.columns[index];
        if info.generated {
            return Err(unsupported(format!(
                "sharding {} by the generated column {column} is not supported",
                shape.name
            )));
        }
        let vindex = self.vindex(info, vindex).map_err(|error| {
            let message = format!("table {}, column {column}: {}", shape.name, error.message);
            Error { message, ..error }
        })?;
        Ok(Place { placement: Placement::Sharded(index), vindex: Some(vindex) })
    }

    /// Where the VSchema has a table.
    pub(super) fn place_by(&self, shape: &Shape, entry: &TableEntry, vschema: &VSchema) -> Result<Place, Error> {
        match entry {
            TableEntry::Sharded { column, vindex, .. } => {
                let vindex = vschema
                    .vindex(vindex)
                    .ok_or_else(|| Error::internal(format!("the vindex of table {} is not there", shape.name)))?;
                self.sharded_by(shape, column, vindex)
            }
            TableEntry::Unsharded { shard: None } => Ok(Place::unmapped(Placement::Unsharded(self.default_shard))),
            TableEntry::Unsharded { shard: Some(id) } => {
                let shard = self.shard_named(id).ok_or_else(|| {
                    Error::invalid(format!("VSchema: tables.{}.shard: there is no shard {id:?}", shape.name))
                })?;
                Ok(Place::unmapped(Placement::Unsharded(shard)))
            }
            TableEntry::Reference {} => Ok(Place::unmapped(Placement::Reference)),
        }
    }

    /// Where a new table goes, and whether nobody but AUTO_SHARD has said so.
    pub(super) fn place(&self, shape: &Shape, auto_shard: AutoShard) -> Result<(Place, bool), Error> {
        let column = match (self.version.vschema.table(&shape.name), auto_shard) {
            (Some(entry), _) => return Ok((self.place_by(shape, entry, &self.version.vschema)?, false)),
            (None, AutoShard::Off) => None,
            (None, AutoShard::PrimaryKey) => shape.columns.iter().find(|column| column.key_place == 1),
            (None, AutoShard::FirstColumn) => shape.columns.first(),
        };
        // Nobody asked for this table to be sharded, so one whose constraints would not allow it is not.
        match column {
            Some(column)
                if !column.generated
                    && shape.column(&column.name).is_some_and(|index| shape.unenforceable(index, &[]).is_none())
                    && shape.foreign_keys.is_empty() =>
            {
                Ok((self.sharded_by(shape, &column.name, &VindexEntry::default())?, true))
            }
            _ => Ok((Place::unmapped(Placement::Unsharded(self.default_shard)), true)),
        }
    }

    /// Refuses constraints that no shard alone can enforce, and defaults that would differ between copies.
    pub(super) fn check_table(
        &self,
        shape: &Shape,
        covered: &[usize],
        shapes: &BTreeMap<String, Shape>,
        places: &BTreeMap<String, Place>,
    ) -> Result<(), Error> {
        if self.shards.len() == 1 {
            return Ok(());
        }
        let Place { placement, vindex } = &places[&shape.name.to_ascii_lowercase()];
        match placement {
            Placement::Sharded(index) => {
                if let Some(constraint) = shape.unenforceable(*index, covered) {
                    return Err(unsupported(format!(
                        "{constraint} of table {} cannot be enforced across shards: it includes neither the sharding column {} nor a column with a lookup_unique vindex",
                        shape.name, shape.columns[*index].name
                    )));
                }
            }
            Placement::Reference => {
                let changing = |text: &String| {
                    let upper = text.to_ascii_uppercase();
                    upper.contains("CURRENT_") || upper.contains("RANDOM") || upper.contains("'NOW'")
                };
                if let Some(bad) = shape.columns.iter().find(|column| column.default.as_ref().is_some_and(changing)) {
                    return Err(unsupported(format!(
                        "DEFAULT {} of column {}.{} is not supported: the copies of a reference table would differ",
                        bad.default.as_deref().unwrap_or_default(),
                        shape.name,
                        bad.name
                    )));
                }
            }
            Placement::Unsharded(_) => {}
        }
        for key in &shape.foreign_keys {
            let parent_name = key.parent.to_ascii_lowercase();
            let parent = places.get(&parent_name);
            let enforceable = match (placement, parent.map(|parent| &parent.placement)) {
                (_, Some(Placement::Reference)) => true,
                (Placement::Unsharded(here), Some(Placement::Unsharded(there))) => here == there,
                (Placement::Unsharded(_), None) => true,
                (Placement::Sharded(column), Some(Placement::Sharded(parent_column))) => {
                    let column = &shape.columns[*column].name;
                    let parent_column = &shapes[&parent_name].columns[*parent_column].name;
                    let same_vindex = parent.is_some_and(|parent| parent.vindex == *vindex);
                    same_vindex
                        && key.columns.iter().any(|(child, referred)| {
                            column.eq_ignore_ascii_case(child)
                                && match referred {
                                    Some(name) => name.eq_ignore_ascii_case(parent_column),
                                    None => key.columns.len() == 1,
                                }
                        })
                }
                _ => false,
            };
            if !enforceable {
                return Err(unsupported(format!(
                    "the foreign key of table {} to {} cannot be enforced across shards",
                    shape.name, key.parent
                )));
            }
        }
        Ok(())
    }
}

/// The place of a table that was altered or renamed.
pub(super) fn moved(table: &Table, shape: &Shape) -> Result<Place, Error> {
    let Placement::Sharded(index) = table.placement else { return Ok(Place::unmapped(table.placement.clone())) };
    let name = &table.shape.columns[index].name;
    let same = shape.column(name);
    // A renamed column keeps its place.
    let kept = same.or_else(|| (shape.columns.len() == table.shape.columns.len()).then_some(index));
    match kept {
        Some(index) => Ok(Place { placement: Placement::Sharded(index), vindex: table.vindex.clone() }),
        None => {
            Err(unsupported(format!("dropping {name} is not supported: table {} is sharded by it", table.shape.name)))
        }
    }
}
