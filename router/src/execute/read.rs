//! Opening results.

use dosql_actors::sql_value::{self, sql_error};
use dosql_proto::{Error, ErrorCode, Row, Statement, Value};

use super::chain::Chain;
use super::cursor::Cursor;
use super::scope::encoded;
use super::shard_rows::Asked;
use super::{Scope, Shared};
use crate::plan::{Read, Target};
use crate::sql_text;

/// What a result is opened with.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The statement's parameters.
    pub(super) params: &'a [Value],
    /// Columns of the result.
    pub(super) width: usize,
    /// Most bytes that are sent at once.
    pub(super) max_bytes: u32,
}

impl Shared {
    /// The first rows of a read, and a cursor where there are more.
    pub(super) async fn open(
        &self,
        read: &Read,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let Reading { params, max_bytes, .. } = reading;
        let (shards, sql) = match read {
            Read::Pinned { pins, sql, otherwise } => {
                let shards = self.resolve_each(pins, params, call).await?;
                match otherwise {
                    _ if pins.is_empty() => (self.resolve(&Target::Any, params)?, sql),
                    Some(gather) if shards.len() != 1 => {
                        return Box::pin(self.gather(gather, reading, call)).await;
                    }
                    _ => (shards, sql),
                }
            }
            Read::Concatenate { target, sql } => (self.resolve_in(target, params, call).await?, sql),
            Read::Merge(merge) => return Box::pin(self.merge(merge, reading, call)).await,
            Read::Gather(gather) => return Box::pin(self.gather(gather, reading, call)).await,
            Read::Lake(read) => return Box::pin(self.read_lake(read, reading, call)).await,
        };
        let statement = Statement { sql: sql.clone(), params: params.to_vec() };
        if let [shard] = shards[..] {
            let asked = Asked { shard, statement, max_bytes, max_rows: 0, step: "read", table: "" };
            let (rows, rest) = self.read_shard(asked, call).await?;
            return Ok((rows, rest.is_open().then(|| Cursor::Chain(Chain::of_one(rest, max_bytes)))));
        }
        let chain = Chain::new(statement, max_bytes, shards, None);
        self.first(Cursor::Chain(chain), call).await
    }

    /// The first rows of a cursor, and the cursor where there are more.
    pub(super) async fn first(&self, mut cursor: Cursor, scope: &Scope) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let (rows, done) = self.advance(&mut cursor, scope).await?;
        Ok((rows, (!done).then_some(cursor)))
    }

    /// The first rows of the SELECT of an INSERT, and a cursor where there are more. The limits of results do not concern them.
    pub(super) async fn open_selected(
        &self,
        read: &Read,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let params = reading.params;
        let call = &call.unlimited();
        let whole = match read {
            Read::Pinned { pins, sql, otherwise } => {
                let mut shards = self.resolve_each(pins, params, call).await?;
                if pins.is_empty() {
                    shards = self.resolve(&Target::Any, params)?;
                }
                (otherwise.is_none() || shards.len() == 1).then_some((shards, sql))
            }
            Read::Concatenate { target, sql } => Some((self.resolve_in(target, params, call).await?, sql)),
            Read::Merge(_) | Read::Gather(_) | Read::Lake(_) => None,
        };
        // The SELECT's text has the parameters' numbers in the whole statement.
        match whole {
            Some((shards, sql)) => {
                let (sql, params) = sql_text::compact_parameters(sql, params);
                let compact = Read::Concatenate { target: Target::Shards(shards.into()), sql };
                self.open_consistently(&compact, Reading { params: &params, ..reading }, call).await
            }
            None => self.open_consistently(read, reading, call).await,
        }
    }

    /// All rows of the SELECT that fills a new table, up to `limit` bytes.
    pub(super) async fn read_all(
        &self,
        read: &Read,
        width: usize,
        limit: usize,
        call: &Scope,
    ) -> Result<Vec<Row>, Error> {
        let reading = Reading { params: &[], width, max_bytes: super::MAX_BATCH_BYTES };
        let (mut rows, mut cursor) = self.open_selected(read, reading, call).await?;
        let mut bytes = encoded(&rows);
        while let Some(open) = &mut cursor {
            if bytes > limit as u64 {
                let message = format!(
                    "CREATE TABLE ... AS SELECT of more than {limit} bytes of rows: create the table, then INSERT ... SELECT"
                );
                return Err(Error::new(ErrorCode::TooLarge, message));
            }
            let (more, done) = self.advance(open, call).await?;
            bytes += encoded(&more);
            rows.extend(more);
            if done {
                cursor = None;
            }
        }
        Ok(rows)
    }

    /// Runs a statement on the router's copy of the schema.
    pub(super) fn read_catalog(&self, sql: &str, params: &[Value]) -> Result<Vec<Row>, Error> {
        let catalog = self.catalog.borrow();
        let mut statement = catalog.mirror.connection.prepare(sql).map_err(sql_error)?;
        Ok(sql_value::run(&mut statement, params, super::MAX_BATCH_BYTES as usize)?.rows)
    }
}
