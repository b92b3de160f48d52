//! Answers of `SHOW`.

use dosql_proto::{Error, ErrorCode, MemberHealth, Row, ShardTopology, Value};

use super::{Scope, Shared};
use crate::catalog::{Placement, versions};
use crate::plan::Show;
use crate::vschema::{TableEntry, VindexChoice, VindexEntry};

impl Shared {
    /// The rows of a SHOW statement.
    pub(super) async fn show(&self, show: &Show, call: &Scope) -> Result<Vec<Row>, Error> {
        match show {
            Show::Shards => Ok(self.show_shards().await),
            Show::Replicas => Ok(self.show_replicas().await),
            Show::LakeOptions { table } => self.show_lake_options(table.as_deref(), call).await,
            Show::VSchema => {
                let catalog = self.catalog.borrow();
                let version = &catalog.version;
                Ok(vec![row([version.version.into(), versions::write(&version.vschema)?.into()])])
            }
            Show::Tables => Ok(self.show_tables()),
            Show::Vindexes { table: None } => {
                let catalog = self.catalog.borrow();
                let rows = catalog.version.vschema.vindexes.iter();
                rows.map(|(name, vindex)| Ok(row([name.as_str().into(), vindex.kind().into(), params(vindex)?])))
                    .collect()
            }
            Show::Vindexes { table: Some(table) } => self.show_vindexes_of(table),
            Show::Keyspaces => {
                let catalog = self.catalog.borrow();
                let hashed: Vec<_> = catalog.shard_list.iter().filter(|shard| shard.hashed).collect();
                let bound = |place: usize| ((place as u128) << 64).div_ceil(hashed.len() as u128);
                let hex = |bound: u128| Value::from(format!("{bound:016x}"));
                Ok((0..hashed.len())
                    .map(|place| {
                        let end = if place + 1 == hashed.len() { Value::NULL } else { hex(bound(place + 1)) };
                        row([hashed[place].name.as_str().into(), hex(bound(place)), end])
                    })
                    .collect())
            }
        }
    }

    async fn show_shards(&self) -> Vec<Row> {
        let topology = self.topology(true).await;
        let catalog = self.catalog.borrow();
        let shards = catalog.shard_list.iter().zip(&topology.shards);
        shards
            .map(|(shard, found)| {
                let ShardTopology { epoch, primary, members, promoting, .. } = found;
                let state = match members.iter().find(|member| member.name == *primary) {
                    _ if *promoting => "promoting",
                    Some(member) if member.healthy => "serving",
                    _ => "not serving",
                };
                let lag_ms = members.iter().filter(|member| member.healthy).map(|member| member.lag_ms).max();
                row([
                    shard.name.as_str().into(),
                    shard.region.as_deref().map_or(Value::NULL, Value::from),
                    i64::from(shard.weight).into(),
                    i64::from(shard.hashed).into(),
                    state.into(),
                    primary.as_str().into(),
                    number(*epoch),
                    number(members.len() as u64),
                    lag_ms.map_or(Value::NULL, number),
                ])
            })
            .collect()
    }

    async fn show_replicas(&self) -> Vec<Row> {
        let topology = self.topology(true).await;
        let member_of = |shard: &str, member: &MemberHealth| {
            let state = match (member.healthy, member.ejected) {
                (true, false) => "healthy".to_owned(),
                (true, true) => "healthy, left out of reads".to_owned(),
                (false, _) => format!("not answering: {}", member.error),
            };
            let known = |value| if member.healthy { number(value) } else { Value::NULL };
            row([
                shard.into(),
                member.name.as_str().into(),
                member.role.as_str().into(),
                state.into(),
                if member.region.is_empty() { Value::NULL } else { member.region.as_str().into() },
                member.purpose.as_str().into(),
                number(member.epoch),
                known(member.last_lsn),
                known(member.lag_records),
                known(member.lag_ms),
            ])
        };
        let shards = topology.shards.iter();
        shards.flat_map(|found| found.members.iter().map(|member| member_of(&found.shard, member))).collect()
    }

    /// Tables that exist as they are, and those that the VSchema has a place for.
    fn show_tables(&self) -> Vec<Row> {
        let catalog = self.catalog.borrow();
        let vschema = &catalog.version.vschema;
        let mut rows: Vec<(String, Row)> = Vec::new();
        for table in catalog.tables.values() {
            let name = table.shape.name.as_str();
            let (kind, column, vindex) = match table.placement {
                Placement::Unsharded(_) => ("unsharded", Value::NULL, Value::NULL),
                Placement::Reference => ("reference", Value::NULL, Value::NULL),
                Placement::Sharded(column) => {
                    let named = match vschema.table(name) {
                        Some(TableEntry::Sharded { vindex: VindexChoice::Named(vindex), .. }) => vindex.as_str().into(),
                        _ => table.vindex.as_ref().map_or(Value::NULL, |vindex| vindex.definition().kind().into()),
                    };
                    ("sharded", table.shape.columns[column].name.as_str().into(), named)
                }
            };
            let shards = match &table.vindex {
                Some(vindex) => vindex.shards().to_vec(),
                None => catalog.shards_of(&table.placement),
            };
            let shards: Vec<&str> = shards.iter().map(|shard| catalog.shards[*shard].as_str()).collect();
            rows.push((name.to_owned(), row([name.into(), kind.into(), column, vindex, shards.join(", ").into()])));
        }
        for (name, entry) in vschema.tables.iter().filter(|(name, _)| catalog.table(name).is_none()) {
            let (kind, column, vindex) = match entry {
                TableEntry::Unsharded { .. } => ("unsharded", Value::NULL, Value::NULL),
                TableEntry::Reference {} => ("reference", Value::NULL, Value::NULL),
                TableEntry::Sharded { column, vindex, .. } => ("sharded", column.as_str().into(), vindex.name().into()),
            };
            // There are no rows on any shard yet.
            rows.push((name.clone(), row([name.as_str().into(), kind.into(), column, vindex, Value::NULL])));
        }
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn show_vindexes_of(&self, name: &str) -> Result<Vec<Row>, Error> {
        let catalog = self.catalog.borrow();
        let vschema = &catalog.version.vschema;
        if let Some(TableEntry::Sharded { column, vindex, .. }) = vschema.table(name) {
            let Some(entry) = vschema.vindex(vindex) else { return Ok(Vec::new()) };
            let named = vindex.name();
            let mut rows = vec![row([column.as_str().into(), named.into(), entry.kind().into(), params(entry)?])];
            for (lookup, _) in vschema.lookups(name) {
                let Some(entry) = vschema.vindex(&lookup.vindex) else { continue };
                let named = lookup.vindex.name();
                rows.push(row([lookup.column.as_str().into(), named.into(), entry.kind().into(), params(entry)?]));
            }
            return Ok(rows);
        }
        match catalog.table(name) {
            Some(table) => match (&table.vindex, &table.placement) {
                (Some(vindex), Placement::Sharded(column)) => {
                    let entry = vindex.definition();
                    let column = table.shape.columns[*column].name.as_str();
                    Ok(vec![row([column.into(), entry.kind().into(), entry.kind().into(), params(entry)?])])
                }
                _ => Ok(Vec::new()),
            },
            None if vschema.table(name).is_some() => Ok(Vec::new()),
            None => Err(Error::new(ErrorCode::UnknownTable, format!("no such table: {name}"))),
        }
    }
}

fn row<const WIDTH: usize>(values: [Value; WIDTH]) -> Row {
    Row { values: values.into() }
}

fn number(value: u64) -> Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

/// A vindex's parameters as JSON; NULL where it has none.
fn params(vindex: &VindexEntry) -> Result<Value, Error> {
    let mut value = serde_json::to_value(vindex).map_err(|error| Error::internal(format!("the vindex: {error}")))?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("type");
        if fields.is_empty() {
            return Ok(Value::NULL);
        }
    }
    Ok(value.to_string().into())
}
