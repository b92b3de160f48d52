//! Bulk loading: rows are split by their key.

use std::rc::Rc;

use dosql_actors::Call;
use dosql_actors::runtime::TransactionMode;
use dosql_proto::{Error, ErrorCode, ExecuteResponse, LoadRequest, LoadResponse, Row, Value};

use super::staged::inserts;
use super::transact::Work;
use super::{Scope, Shared};
use crate::catalog::{Lookup, Placement, unsupported};
use crate::plan::{KeySource, column_default, keys};
use crate::sql_text::quote;

impl Shared {
    /// Loads rows, in one transaction over all their shards; in a session's transaction where that has begun one.
    pub(super) async fn load(&self, request: LoadRequest, call: &Call) -> Result<LoadResponse, Error> {
        let scope = self.scope(call, 0, None);
        let Some(seat) = self.seat(&request.session).await? else { return self.load_in(request, scope).await };
        let done = self.load_in(request, seat.scope(&scope)).await;
        self.leave(&seat);
        done
    }

    async fn load_in(&self, request: LoadRequest, call: Scope) -> Result<LoadResponse, Error> {
        let LoadRequest { table, mut columns, mut rows, request_id, .. } = request;
        let chosen = !request_id.is_empty();
        let request_id = self.request_id(request_id);
        let (_inside, _) = self.gate.enter().await;
        let loaded = rows.len() as u64;
        self.catalog.borrow().check_own(&table)?;
        self.fill_rows(&table, &mut columns, &mut rows, chosen.then_some(&*request_id))?;
        let rowid = self.hidden_rowid_of(&table);
        let mut next = match &rowid {
            Some((known, _)) => self.take_rowids(known, rows.len(), &call).await?,
            None => 0,
        };
        let (name, split, reference) = {
            let catalog = self.catalog.borrow();
            let known = catalog
                .table(&table)
                .ok_or_else(|| Error::new(ErrorCode::UnknownTable, format!("no such table: {table}")))?;
            let shape = &known.shape;
            if columns.is_empty() {
                columns =
                    shape.columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()).collect();
            }
            for column in &columns {
                if shape.column(column).is_none() {
                    let message = format!("table {} has no column named {column}", shape.name);
                    return Err(Error::new(ErrorCode::UnknownColumn, message));
                }
            }
            if let Some(place) = rows.iter().position(|row| row.values.len() != columns.len()) {
                let message =
                    format!("row {} has {} values for {} columns", place + 1, rows[place].values.len(), columns.len());
                return Err(Error::invalid(message));
            }
            let count = catalog.shards.len();
            let mut split: Vec<(usize, Vec<Row>)> = (0..count).map(|shard| (shard, Vec::new())).collect();
            let mut reference = false;
            match known.placement {
                Placement::Unsharded(shard) => split[shard].1 = rows,
                Placement::Reference => {
                    reference = true;
                    for (_, copy) in &mut split {
                        copy.clone_from(&rows);
                    }
                }
                Placement::Sharded(index) => {
                    let info = &shape.columns[index];
                    let keys = keys(known, index, Vec::new())
                        .ok_or_else(|| Error::internal(format!("table {} has no vindex", shape.name)))?;
                    let place = columns.iter().position(|column| column.eq_ignore_ascii_case(&info.name));
                    let default = match place {
                        Some(_) => Value::NULL,
                        None => match column_default(known, index)? {
                            KeySource::Literal(value) => value,
                            _ => Value::NULL,
                        },
                    };
                    let generated = shape.rowid_alias == Some(index) && count > 1;
                    let alias = shape.rowid_alias.filter(|alias| *alias != index && count > 1);
                    let alias = alias.map(|alias| {
                        let name = &shape.columns[alias].name;
                        (name, columns.iter().position(|column| column.eq_ignore_ascii_case(name)))
                    });
                    for mut row in rows {
                        let key = place.map_or(&default, |place| &row.values[place]);
                        if generated && key.is_null() {
                            return Err(unsupported(format!(
                                "generating {}.{} is not supported: the table is sharded by it, so every row must give its value",
                                keys.table, keys.column
                            )));
                        }
                        if let Some((alias, place)) = &alias
                            && place.is_none_or(|place| row.values[place].is_null())
                        {
                            return Err(unsupported(format!(
                                "generating {}.{alias} is not supported in a load: every row must give its value",
                                keys.table
                            )));
                        }
                        let shard = self.shard_for(key, &keys)?;
                        if rowid.is_some() {
                            row.values.push(next.into());
                            next = next.saturating_add(1);
                        }
                        split[shard].1.push(row);
                    }
                }
            }
            if let Some((_, name)) = rowid {
                columns.push(name.to_owned());
            }
            (shape.name.clone(), split, reference)
        };
        let _in_order = match reference {
            true => Some(self.copying.lock().await),
            false => None,
        };
        let parts: Vec<_> = split.into_iter().filter(|(_, rows)| !rows.is_empty()).collect();
        let kept = self.catalog.borrow().table(&name).map(|table| table.lookups.clone()).unwrap_or_default();
        if !kept.is_empty() {
            self.load_keeping(&name, &columns, parts, &kept, (&request_id, &call)).await?;
            return Ok(LoadResponse { request_id, rows_loaded: loaded });
        }
        let (table, columns): (Rc<str>, Rc<[String]>) = (name.into(), columns.into());
        let work = |(shard, rows)| (shard, Work::Rows { table: Rc::clone(&table), columns: Rc::clone(&columns), rows });
        let parts: Vec<_> = parts.into_iter().map(work).collect();
        // Where it is not to be one transaction, each shard's rows are.
        if call.transaction().is_none() && self.context.settings().transaction_mode != TransactionMode::TwoPhase {
            self.write_parts(parts, &request_id, &call).await?;
        } else {
            // Loads come several at a time, and would be in each other's way.
            let _in_turn = match parts.len() {
                0 | 1 => None,
                _ => Some(self.loading.lock().await),
            };
            self.atomically(parts, &request_id, &call).await?;
        }
        Ok(LoadResponse { request_id, rows_loaded: loaded })
    }

    /// Loads rows whose lookup entries come with them: all in one transaction.
    async fn load_keeping(
        &self,
        table: &str,
        columns: &[String],
        rows: Vec<(usize, Vec<Row>)>,
        kept: &[Rc<Lookup>],
        (request_id, call): (&str, &Scope),
    ) -> Result<(), Error> {
        let columns: Vec<String> = columns.iter().map(|column| quote(column)).collect();
        let parts: Vec<_> = rows.into_iter().map(|(shard, rows)| (shard, inserts(table, &columns, rows))).collect();
        let parts = &parts;
        let load = |scope: Scope| async move {
            self.write_keeping(parts.clone(), kept, request_id, &scope).await?;
            Ok(ExecuteResponse::default())
        };
        self.transact(request_id, call, load).await.map(drop)
    }

    /// A table whose rows get their rowids here, and what the rowid is called: sharded ones that show it in no column.
    fn hidden_rowid_of(&self, table: &str) -> Option<(String, &'static str)> {
        let catalog = self.catalog.borrow();
        let known = catalog.table(table).filter(|known| matches!(known.placement, Placement::Sharded(_)))?;
        let name = known.shape.hidden_rowid().filter(|_| catalog.shards.len() > 1)?;
        Some((known.shape.name.to_ascii_lowercase(), name))
    }
}
