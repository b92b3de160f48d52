//! New shards: before one serves it has every table that is on all shards, and the rows of reference tables.

use dosql_actors::Call;
use dosql_proto::{Error, ShardLoad, Statement, shard_request::Request};

use super::chain::Chain;
use super::{MAX_BATCH_BYTES, Scope, Shared};
use crate::catalog::Placement;
use crate::sql_text::{has_name, quote};

/// How long it may take, in milliseconds.
const LONGEST_MS: u64 = 3_600_000;

impl Shared {
    /// Brings shards that the VSchema has added up to the others. Interrupted, it begins anew: what a new shard has is dropped
    /// first. Nothing is served meanwhile.
    pub(super) async fn join_shards(&self) -> Result<(), Error> {
        let call = &self.scope(&Call::system(), LONGEST_MS, None);
        let joining = self.catalog.borrow().joining.clone();
        if joining.is_empty() {
            return Ok(());
        }
        let (create, drop, references) = self.shared_objects()?;
        let joined: Vec<usize> =
            (0..self.catalog.borrow().shards.len()).filter(|shard| !joining.contains(shard)).collect();
        for shard in joining {
            let statements = drop.iter().chain(&create);
            let statements = statements.map(|sql| Statement { sql: sql.clone(), params: Vec::new() }).collect();
            self.execute_on(shard, statements, self.request_id(String::new()), call).await?;
            if let Some(source) = joined.first() {
                for (table, columns) in &references {
                    self.copy_rows(table, columns, *source, shard, call).await?;
                }
            }
            tracing::info!(shard = self.catalog.borrow().shards[shard], "a new shard has joined");
        }
        self.catalog.borrow_mut().set_shards()
    }

    /// What makes the tables and views that all shards have, what drops them, and the reference tables with their columns.
    #[expect(clippy::type_complexity, reason = "three lists that belong together, used once")]
    fn shared_objects(&self) -> Result<(Vec<String>, Vec<String>, Vec<(String, Vec<String>)>), Error> {
        let catalog = self.catalog.borrow();
        let (mut create, mut drop, mut references) = (Vec::new(), Vec::new(), Vec::new());
        let mut elsewhere = Vec::new();
        for (key, table) in &catalog.tables {
            let name = &table.shape.name;
            match table.placement {
                Placement::Unsharded(_) => {
                    elsewhere.push(name.clone());
                    continue;
                }
                Placement::Sharded(_) => {}
                Placement::Reference => {
                    let rowid = table.shape.hidden_rowid().map(str::to_owned);
                    let given = table.shape.given().into_iter().map(|index| table.shape.columns[index].name.clone());
                    references.push((name.clone(), rowid.into_iter().chain(given).collect()));
                }
            }
            create.extend(catalog.definition_of(key)?);
            drop.push(format!("DROP TABLE IF EXISTS {}", quote(name)));
        }
        for (name, sql) in catalog.named_views()? {
            if !elsewhere.iter().any(|table| has_name(&sql, table)) {
                create.push(sql);
                drop.insert(0, format!("DROP VIEW IF EXISTS {}", quote(&name)));
            }
        }
        Ok((create, drop, references))
    }

    async fn copy_rows(
        &self,
        table: &str,
        columns: &[String],
        source: usize,
        shard: usize,
        call: &Scope,
    ) -> Result<(), Error> {
        let names: Vec<String> = columns.iter().map(|column| quote(column)).collect();
        let sql = format!("SELECT {} FROM {}", names.join(", "), quote(table));
        let statement = Statement { sql, params: Vec::new() };
        let mut chain = Chain::new(statement, MAX_BATCH_BYTES, vec![source], None);
        loop {
            let (rows, done) = self.advance_chain(&mut chain, call).await?;
            if !rows.is_empty() {
                let load = ShardLoad {
                    table: table.to_owned(),
                    columns: columns.to_vec(),
                    rows,
                    request_id: self.request_id(String::new()),
                    ..ShardLoad::default()
                };
                self.ask(shard, Request::Load(load), call).await?;
            }
            if done {
                return Ok(());
            }
        }
    }
}
