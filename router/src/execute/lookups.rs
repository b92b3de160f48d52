//! Lookup vindexes: finding the shards of rows by their entries, and keeping the entries with the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, ImagesOf, Row, RowImage, ShardExecuted, Statement, Value};
use prost::Message;

use super::shard_rows::Asked;
use super::staged::inserts;
use super::transact::Part;
use super::{Scope, Shared, some_of};
use crate::catalog::{Definition, Entry, Lookup, OWNER_ROW};
use crate::plan::{LookupKeys, Target};
use crate::sql_text::quote;

/// Values that are looked up with one statement.
const VALUES_AT_ONCE: usize = 1_000;
/// The batches that are asked for, in bytes.
const BATCH_BYTES: u32 = 1 << 20;

/// How an entry's row changes the number of such entries, by the entry encoded. One that goes and comes stays.
type Net = BTreeMap<Vec<u8>, (i64, Entry)>;

impl Shared {
    /// Like [`resolve`](Self::resolve), but lookup tables are read as this request reads, and what any shard has is read where
    /// its transaction is already.
    pub(super) async fn resolve_in(
        &self,
        target: &Target,
        params: &[Value],
        scope: &Scope,
    ) -> Result<Vec<usize>, Error> {
        match (target, scope.transaction().and_then(|transaction| transaction.somewhere())) {
            (Target::Any, Some(shard)) => Ok(vec![shard]),
            (Target::Lookup(keys), _) => Box::pin(self.look_up(keys, params, scope)).await,
            _ => self.resolve(target, params),
        }
    }

    /// The shards that any of these targets means, each once and in order.
    pub(super) async fn resolve_each(
        &self,
        targets: impl IntoIterator<Item = &Target>,
        params: &[Value],
        scope: &Scope,
    ) -> Result<Vec<usize>, Error> {
        let mut targets = targets.into_iter();
        let Some(first) = targets.next() else { return Ok(Vec::new()) };
        let first = self.resolve_in(first, params, scope).await?;
        let Some(second) = targets.next() else { return Ok(first) };
        let mut shards: BTreeSet<usize> = first.into_iter().collect();
        for target in std::iter::once(second).chain(targets) {
            shards.extend(self.resolve_in(target, params, scope).await?);
        }
        Ok(shards.into_iter().collect())
    }

    /// The shards that have rows with one of these values.
    async fn look_up(&self, keys: &LookupKeys, params: &[Value], scope: &Scope) -> Result<Vec<usize>, Error> {
        let lookup = &keys.lookup;
        let Definition { owner, table, from, to, unique, .. } = &lookup.definition;
        let everywhere = || Ok(lookup.rows.shards().to_vec());
        let stands = self.catalog.borrow().table(owner).is_some_and(|owner| {
            owner.lookups.iter().any(|known| known.filled && known.definition == lookup.definition)
        });
        if !stands {
            return everywhere();
        }
        let mut wanted: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
        for key in &keys.values {
            let value = self.key_value(key, params)?;
            // NULL equals nothing.
            if !value.is_null()
                && let Some(shard) = lookup.entries.shard(&value, &self.converter)?
            {
                wanted.entry(shard).or_default().push(value);
            }
        }
        let mut work = Vec::new();
        for (shard, values) in wanted {
            work.extend(values.chunks(VALUES_AT_ONCE).map(|values| (shard, values.to_vec())));
        }
        let scope = &scope.unlimited();
        let answers = self
            .on_each(work, |(shard, params)| {
                let places = vec!["?"; params.len()].join(", ");
                let distinct = if *unique { "" } else { "DISTINCT " };
                let (to, from, name) = (quote(to), quote(from), quote(table));
                let sql = format!("SELECT {distinct}{to} FROM {name} WHERE {from} IN ({places})");
                let statement = Statement { sql, params };
                let asked = Asked { shard, statement, max_bytes: BATCH_BYTES, max_rows: 0, step: "look up", table };
                async move { self.all_of(asked, scope).await }
            })
            .await;
        let mut shards = Vec::new();
        for answer in answers {
            let rows = match answer {
                Ok(rows) => rows,
                // The vindex was dropped meanwhile.
                Err(error) if error.code() == ErrorCode::UnknownTable => return everywhere(),
                Err(error) => return Err(error),
            };
            for key in rows.iter().filter_map(|row| row.values.first()) {
                shards.extend(lookup.rows.shard(key, &self.converter)?);
            }
        }
        Ok(some_of(shards, lookup.rows.shards()))
    }

    /// All rows of a statement on one shard.
    pub(super) async fn all_of(&self, asked: Asked<'_>, scope: &Scope) -> Result<Vec<Row>, Error> {
        let (mut rows, mut rest) = self.read_shard(asked, scope).await?;
        while rest.is_open() {
            rows.extend(self.more_of(&mut rest, scope).await?);
        }
        Ok(rows)
    }

    /// Like [`atomically`](Self::atomically), and the entries of lookup tables change with the rows. Where there are such, it must
    /// be part of a transaction that undoes all of it where this fails.
    ///
    /// # Errors
    /// As [`atomically`](Self::atomically); that a value which is to be unique is another row's.
    pub(super) async fn write_keeping(
        &self,
        parts: Vec<Part>,
        kept: &[Rc<Lookup>],
        request_id: &str,
        call: &Scope,
    ) -> Result<Vec<(usize, ShardExecuted)>, Error> {
        if kept.is_empty() {
            return self.atomically(parts, request_id, call).await;
        }
        let transaction =
            call.transaction().ok_or_else(|| Error::internal("lookup tables are written outside a transaction"))?;
        let images_of: Vec<ImagesOf> = kept
            .iter()
            .map(|lookup| ImagesOf { table: lookup.definition.owner.clone(), columns: lookup.definition.columns() })
            .collect();
        let mut done = self.write_all(transaction, parts, &images_of, call).await?;
        let images = done.iter_mut().flat_map(|(_, executed)| std::mem::take(&mut executed.images));
        let entries = self.entry_parts(kept, images)?;
        if !entries.is_empty() {
            let written = self.write_all(transaction, entries, &[], call).await;
            written.map_err(|error| kept.iter().fold(error, |error, lookup| lookup.definition.of_owner(error)))?;
        }
        Ok(done)
    }

    /// What the shards of lookup tables are to do where rows of their owners have changed so.
    fn entry_parts(&self, kept: &[Rc<Lookup>], images: impl Iterator<Item = RowImage>) -> Result<Vec<Part>, Error> {
        let mut changes: Vec<Net> = vec![Net::new(); kept.len()];
        for image in images {
            let of = image.of as usize;
            let (Some(lookup), Some(net)) = (kept.get(of), changes.get_mut(of)) else {
                return Err(Error::internal("a shard told of a row that it was not asked for"));
            };
            for (side, step) in [(&image.before, -1), (&image.after, 1)] {
                let values = side.as_ref().map(|row| row.values.as_slice());
                if let Some(entry) = values.and_then(|values| lookup.definition.entry(values, image.rowid)) {
                    net.entry(entry.key()).or_insert((0, entry)).0 += step;
                }
            }
        }
        // Whatever goes makes room for what comes.
        let mut parts: BTreeMap<usize, (Vec<Statement>, Vec<Statement>)> = BTreeMap::new();
        for (lookup, net) in kept.iter().zip(changes) {
            let mut new: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
            for (count, entry) in net.into_values().filter(|(count, _)| *count != 0) {
                let shard = self.shard_of_entry(lookup, &entry)?;
                match count > 0 {
                    true => new.entry(shard).or_default().push(entry.into_row()),
                    false => parts.entry(shard).or_default().0.push(delete(&lookup.definition, entry)),
                }
            }
            let columns = lookup.definition.entry_columns();
            for (shard, rows) in new {
                parts.entry(shard).or_default().1.extend(inserts(&lookup.definition.table, &columns, rows));
            }
        }
        let ordered = |(shard, (mut deletes, inserts)): (usize, (Vec<Statement>, Vec<Statement>))| {
            deletes.extend(inserts);
            (shard, deletes)
        };
        Ok(parts.into_iter().map(ordered).collect())
    }

    /// The shard of an entry.
    pub(super) fn shard_of_entry(&self, lookup: &Lookup, entry: &Entry) -> Result<usize, Error> {
        let shard = lookup.entries.shard(&entry.from, &self.converter)?;
        shard.ok_or_else(|| lookup.entries.outside(&lookup.definition.table, &lookup.definition.from, &entry.from))
    }
}

impl Entry {
    /// Tells entries apart.
    fn key(&self) -> Vec<u8> {
        self.clone().into_row().encode_to_vec()
    }

    /// The values of the lookup table's columns.
    pub(super) fn into_row(self) -> Row {
        Row { values: vec![self.from, self.to, self.owner_row] }
    }
}

fn delete(definition: &Definition, entry: Entry) -> Statement {
    let [from, to, _] = definition.entry_columns();
    let table = quote(&definition.table);
    let sql = format!("DELETE FROM {table} WHERE {from} = ? AND {to} IS ? AND {OWNER_ROW} IS ?");
    Statement { sql, params: entry.into_row().values }
}
