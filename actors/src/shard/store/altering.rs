//! What a statement does to the schema, and to rows that no hook tells of.

use dosql_proto::{Error, Operation};
use rusqlite::types::ValueRef;

use super::super::capture::Capture;
use super::super::log::OWN_TABLES;
use super::super::schema::{Difference, Schema, TableShape, UnseenRows, check_names};
use super::{Store, member};
use crate::sql_name::quote;
use crate::sql_value::sql_error;

impl Store {
    /// Reads the schema anew: what ran may have changed it, and was taken back.
    pub(super) fn reload_schema(&mut self) -> Result<(), Error> {
        let schema = {
            let _own = self.guard.own();
            Schema::load(&self.connection)?
        };
        self.replace_schema(schema);
        Ok(())
    }

    pub(super) fn replace_schema(&mut self, schema: Schema) {
        self.schema_touched = true;
        self.capture.borrow_mut().set_shapes(schema.shapes());
        self.schema = schema;
        // A cached statement would tell the columns it was prepared with.
        self.connection.flush_prepared_statement_cache();
    }

    /// Records what a statement did to the schema.
    pub(super) fn schema_may_have_changed(&mut self, sql: &str) -> Result<(), Error> {
        let after = {
            let _own = self.guard.own();
            check_names(&self.connection, OWN_TABLES + member::OWN_TABLES)?;
            Schema::load(&self.connection)?
        };
        let Some(Difference { change, rows }) = self.schema.difference(&after, sql) else { return Ok(()) };
        self.replace_schema(after);
        let mut capture = self.capture.borrow_mut();
        capture.schema_changed(change);
        match rows {
            UnseenRows::None => Ok(()),
            UnseenRows::Inserted(shape) => self.record_rows(&mut capture, &shape, None),
            UnseenRows::Updated(shape, added) => self.record_rows(&mut capture, &shape, Some(&added)),
            UnseenRows::Renamed(shape, renamed) => {
                self.record_rows(&mut capture, &shape, Some(&[renamed]))?;
                capture.were_renaming();
                Ok(())
            }
        }
    }

    /// Records all rows of a table as inserted, or, where `added` columns are given, those that have values there as updated.
    fn record_rows(&self, capture: &mut Capture, shape: &TableShape, added: Option<&[usize]>) -> Result<(), Error> {
        let _own = self.guard.own();
        let names: Vec<String> = shape.table.columns.iter().map(|column| quote(&column.name)).collect();
        let taken = |name: &str| shape.table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        let rowid = ["rowid", "_rowid_", "oid"].into_iter().find(|name| shape.has_rowid && !taken(name)).unwrap_or("0");
        let filter = added.map_or(String::new(), |added| {
            let set: Vec<String> = added.iter().map(|at| format!("{} IS NOT NULL", names[*at])).collect();
            format!(" WHERE {}", set.join(" OR "))
        });
        let sql = format!("/*_dosql_*/ SELECT {rowid}, {} FROM {}{filter}", names.join(", "), quote(&shape.table.name));
        let mut statement = self.connection.prepare(&sql).map_err(sql_error)?;
        let mut rows = statement.query([]).map_err(sql_error)?;
        while let Some(row) = rows.next().map_err(sql_error)? {
            let key = row.get(0).map_err(sql_error)?;
            let after: Vec<ValueRef<'_>> =
                (0..names.len()).map(|at| row.get_ref(at + 1)).collect::<Result<_, _>>().map_err(sql_error)?;
            match added {
                None => capture.row_outside_hook(shape, Operation::Insert, key, None, &after)?,
                Some(added) => {
                    let mut before = after.clone();
                    for at in added {
                        before[*at] = ValueRef::Null;
                    }
                    capture.row_outside_hook(shape, Operation::Update, key, Some(&before), &after)?;
                }
            }
        }
        Ok(())
    }
}
