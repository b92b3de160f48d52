//! Rows that move because of a schema change: to the one shard where a constraint can be enforced, or into a table that is made
//! of others' rows.

use std::cell::Cell;

use dosql_proto::{Error, ErrorCode, Row, Statement};

use super::shard_rows::Asked;
use super::{Scope, Shared, staged};
use crate::catalog::{Change, Fill, Placement};
use crate::plan::{Home, keys};
use crate::sql_text::quote;

/// The most that CREATE TABLE ... AS SELECT carries, in bytes of encoded rows.
const MAX_FILL_BYTES: usize = 64 << 20;
/// How often rows are looked for anew that were written meanwhile.
const MAX_ROUNDS: usize = 20;

/// Has requests wait until it is dropped.
pub(super) struct Collecting<'a>(&'a Cell<bool>);

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Shared {
    /// Moves the tables that the change names to the default shard; the other shards lose them.
    pub(super) async fn collect(
        &self,
        version: i64,
        change: &Change,
        call: &Scope,
    ) -> Result<Option<Collecting<'_>>, Error> {
        if change.collected.is_empty() {
            return Ok(None);
        }
        self.collecting.set(true);
        let guard = Collecting(&self.collecting);
        let (home, others) = {
            let catalog = self.catalog.borrow();
            let home = catalog.default_shard;
            (home, (0..catalog.shards.len()).filter(|shard| *shard != home).collect::<Vec<_>>())
        };
        // Children first, so that no foreign key is in the way.
        let mut names = change.collected.clone();
        {
            let catalog = self.catalog.borrow();
            names.sort_by_key(|name| catalog.table(name).map_or(0, |table| table.shape.foreign_keys.len()));
            names.reverse();
        }
        for shard in others {
            for round in 0.. {
                self.empty(version, round, shard, home, &names, call).await?;
                let mut statements = Vec::new();
                for name in &names {
                    let name = quote(name);
                    // Fails where a row has come meanwhile: it must not be lost.
                    let guard =
                        format!("SELECT CASE WHEN EXISTS (SELECT 1 FROM {name}) THEN abs(-9223372036854775808) END");
                    statements.push(Statement { sql: guard, params: Vec::new() });
                    statements.push(Statement { sql: format!("DROP TABLE {name}"), params: Vec::new() });
                }
                let id = format!("ddl-{version}-retire-{round}");
                match self.execute_on(shard, statements, id, call).await {
                    Ok(_) => break,
                    // It is gone already: this was done before the last incarnation ended.
                    Err(error) if error.code() == ErrorCode::UnknownTable => break,
                    Err(error) if error.message.contains("integer overflow") && round < MAX_ROUNDS => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Some(guard))
    }

    /// Moves one shard's rows of some tables.
    async fn empty(
        &self,
        version: i64,
        round: usize,
        shard: usize,
        home: usize,
        names: &[String],
        call: &Scope,
    ) -> Result<(), Error> {
        let mut arriving = Vec::new();
        let mut leaving = Vec::new();
        for name in names {
            let (shape, columns) = {
                let catalog = self.catalog.borrow();
                let table = catalog.table(name).ok_or_else(|| Error::internal("a table to be moved is gone"))?;
                let shape = table.shape.clone();
                let mut columns: Vec<String> = shape.hidden_rowid().map(str::to_owned).into_iter().collect();
                columns.extend(shape.given().into_iter().map(|index| quote(&shape.columns[index].name)));
                (shape, columns)
            };
            let table = quote(&shape.name);
            let select = Statement { sql: format!("SELECT {} FROM {table}", columns.join(", ")), params: Vec::new() };
            let rows = match self.rows_on(shard, select, call).await {
                Ok(rows) => rows,
                Err(error) if error.code() == ErrorCode::UnknownTable => continue,
                Err(error) => return Err(error),
            };
            if rows.is_empty() {
                continue;
            }
            // Parents first.
            arriving.splice(0..0, staged::inserts(&shape.name, &columns, rows));
            leaving.push(Statement { sql: format!("DELETE FROM {table}"), params: Vec::new() });
        }
        if arriving.is_empty() {
            return Ok(());
        }
        let id = format!("ddl-{version}-move-{shard}-{round}");
        self.atomically(vec![(home, arriving), (shard, leaving)], &id, call).await.map(|_| ())
    }

    /// All rows of a statement on one shard.
    async fn rows_on(&self, shard: usize, statement: Statement, call: &Scope) -> Result<Vec<Row>, Error> {
        let asked = Asked { shard, statement, max_bytes: 1 << 20, max_rows: 0, step: "move", table: "" };
        let (mut rows, mut rest) = self.read_shard(asked, call).await?;
        while rest.is_open() {
            rows.extend(self.more_of(&mut rest, call).await?);
        }
        Ok(rows)
    }

    /// Fills a table that was made by AS SELECT.
    pub(super) async fn fill_table(&self, version: i64, fill: &Fill, call: &Scope) -> Result<(), Error> {
        let plan = self.plan(&fill.select, call)?;
        let read = plan.read().ok_or_else(|| Error::internal("AS SELECT does not read"))?;
        let mut rows = self.read_all(read, plan.columns.len(), MAX_FILL_BYTES, call).await?;
        let shape = &fill.table.shape;
        let mut columns: Vec<String> = shape.columns.iter().map(|column| quote(&column.name)).collect();
        if let Some(rowid) = shape.hidden_rowid() {
            columns.insert(0, rowid.to_owned());
            for (place, row) in rows.iter_mut().enumerate() {
                row.values.insert(0, (place as i64 + 1).into());
            }
        }
        let shards = self.catalog.borrow().shards.len();
        let mut split: Vec<Vec<Row>> = vec![Vec::new(); shards];
        let home = match fill.table.placement {
            Placement::Unsharded(shard) => Home::Shard(shard),
            Placement::Reference => Home::Everywhere,
            Placement::Sharded(index) => {
                let keys = keys(&fill.table, index, Vec::new())
                    .ok_or_else(|| Error::internal("a sharded table without its vindex"))?;
                Home::Keyed { keys, place: columns.len() - shape.columns.len() + index }
            }
        };
        for row in rows {
            for shard in self.home(&home, &row.values, shards)? {
                split[shard].push(row.clone());
            }
        }
        let parts: Vec<_> = split
            .into_iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(shard, rows)| (shard, staged::inserts(&shape.name, &columns, rows)))
            .collect();
        self.atomically(parts, &format!("ddl-{version}-rows"), call).await.map(|_| ())
    }
}
