//! Merging the sorted rows of several shards as they come.

use std::cmp::Ordering;
use std::collections::VecDeque;

use dosql_proto::value::Kind;
use dosql_proto::{Error, Row, Statement, Value};
use futures_util::stream::{self, StreamExt};
use prost::Message;

use super::chain::{Chain, Quota};
use super::cursor::Cursor;
use super::read::Reading;
use super::shard_rows::{Asked, ShardRows};
use super::{Scope, Shared};
use crate::plan::{Limit, Merge, SortKey};
use crate::sql_text;

/// The least and the most that a shard is asked for at a time, in bytes.
const BATCH_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=256 << 10;

/// A merge under way.
pub(super) struct Merging {
    streams: Vec<Stream>,
    /// The streams that have a row, as a heap whose top has the row that comes first.
    heap: Vec<usize>,
    order: Vec<SortKey>,
    /// Columns of the result; those after them are only there to be sorted by.
    width: usize,
    quota: Quota,
    max_bytes: u32,
}

/// What one shard has sent, and will.
struct Stream {
    rows: VecDeque<Row>,
    rest: ShardRows,
}

impl Shared {
    /// The first rows of a merge, and a cursor where there are more.
    pub(super) async fn merge(
        &self,
        merge: &Merge,
        reading: Reading<'_>,
        scope: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let Reading { params, width, max_bytes } = reading;
        let Some(quota) = self.quota(merge.limit.as_ref(), params)? else {
            return self.gather(&merge.otherwise, reading, scope).await;
        };
        if quota.left == 0 {
            return Ok((Vec::new(), None));
        }
        let mut params = params.to_vec();
        if let Some(limit) = &merge.limit {
            params.truncate(limit.parameter - 1);
            params.push(Value::from(quota.wanted()));
        }
        let targets = self.resolve_in(&merge.target, &params, scope).await?;
        let (sql, params) = sql_text::compact_parameters(&merge.sql, &params);
        let statement = Statement { sql, params };
        let hidden = merge.order.iter().any(|key| key.column >= width);
        if merge.order.is_empty() || (targets.len() == 1 && !hidden) {
            let quota = merge.limit.is_some().then_some(quota);
            return self.first(Cursor::Chain(Chain::new(statement, max_bytes, targets, quota)), scope).await;
        }
        let mut attempt = 1;
        loop {
            let outcome = match self.open_streams(merge, &statement, &targets, scope).await {
                Ok(streams) => {
                    let mut merging =
                        Merging { streams, heap: Vec::new(), order: merge.order.clone(), width, quota, max_bytes };
                    merging.build();
                    self.first(Cursor::Merge(Box::new(merging)), scope).await
                }
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if self.begins_again(attempt, &error, scope) => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// How many rows are wanted; `None` where that is for SQLite to tell.
    fn quota(&self, limit: Option<&Limit>, params: &[Value]) -> Result<Option<Quota>, Error> {
        let Some(limit) = limit else { return Ok(Some(Quota { skip: 0, left: u64::MAX })) };
        let integer = |value: Value| match value.kind {
            Some(Kind::Integer(integer)) => Some(integer),
            _ => None,
        };
        let count = integer(self.key_value(&limit.count, params)?);
        let offset = match &limit.offset {
            Some(offset) => integer(self.key_value(offset, params)?),
            None => Some(0),
        };
        // A negative LIMIT is none, a negative OFFSET is 0.
        Ok(count.zip(offset).map(|(count, offset)| Quota {
            skip: u64::try_from(offset).unwrap_or(0),
            left: u64::try_from(count).unwrap_or(u64::MAX),
        }))
    }

    /// Asks every shard for its first rows.
    async fn open_streams(
        &self,
        merge: &Merge,
        statement: &Statement,
        targets: &[usize],
        scope: &Scope,
    ) -> Result<Vec<Stream>, Error> {
        let share = self.context.settings().query_memory / (8 * targets.len().max(1) as u64);
        let max_bytes = u32::try_from(share.clamp(*BATCH_BYTES.start(), *BATCH_BYTES.end())).unwrap_or(u32::MAX);
        let mut asking = stream::iter(targets.iter().map(|shard| {
            let asked = Asked {
                shard: *shard,
                statement: statement.clone(),
                max_bytes,
                max_rows: 0,
                step: "merge",
                table: &merge.table,
            };
            self.read_shard(asked, scope)
        }))
        .buffered(self.max_parallel);
        let mut streams = Vec::with_capacity(targets.len());
        while let Some(answer) = asking.next().await {
            let (rows, rest) = answer?;
            streams.push(Stream { rows: rows.into(), rest });
        }
        Ok(streams)
    }

    /// The next rows of a merge, and whether they are the last.
    pub(super) async fn advance_merge(&self, merging: &mut Merging, scope: &Scope) -> Result<(Vec<Row>, bool), Error> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while let Some(&top) = merging.heap.first() {
            if merging.quota.left == 0 {
                break;
            }
            if bytes >= merging.max_bytes as usize {
                return Ok((rows, false));
            }
            let stream = &mut merging.streams[top];
            let Some(mut row) = stream.rows.pop_front() else {
                return Err(Error::internal("a merged stream is in the heap without a row"));
            };
            if stream.rows.is_empty() && stream.rest.is_open() {
                // A batch may come empty only as the last one.
                stream.rows = self.more_of(&mut stream.rest, scope).await?.into();
            }
            merging.replace_top();
            if merging.quota.skip > 0 {
                merging.quota.skip -= 1;
                continue;
            }
            merging.quota.left -= 1;
            row.values.truncate(merging.width);
            bytes += row.encoded_len();
            rows.push(row);
        }
        // Whoever has more is told that it is not wanted.
        merging.heap.clear();
        merging.streams.clear();
        Ok((rows, true))
    }
}

impl Merging {
    /// Makes the heap of all streams that have a row.
    fn build(&mut self) {
        self.heap = (0..self.streams.len()).filter(|stream| !self.streams[*stream].rows.is_empty()).collect();
        for place in (0..self.heap.len() / 2).rev() {
            self.sift(place);
        }
    }

    /// Puts the heap in order after the top stream has moved to its next row, or has none.
    fn replace_top(&mut self) {
        let Some(&top) = self.heap.first() else { return };
        if self.streams[top].rows.is_empty() {
            self.heap.swap_remove(0);
        }
        self.sift(0);
    }

    fn sift(&mut self, mut place: usize) {
        loop {
            let mut first = place;
            for child in [2 * place + 1, 2 * place + 2] {
                if child < self.heap.len() && self.precedes(self.heap[child], self.heap[first]) {
                    first = child;
                }
            }
            if first == place {
                return;
            }
            self.heap.swap(place, first);
            place = first;
        }
    }

    /// Whether the next row of one stream comes before that of another; equal ones come in the order of the shards.
    fn precedes(&self, one: usize, other: usize) -> bool {
        let (Some(a), Some(b)) = (self.streams[one].rows.front(), self.streams[other].rows.front()) else {
            return false;
        };
        for key in &self.order {
            let (a, b) = (&a.values[key.column], &b.values[key.column]);
            let ordering = match (a.is_null(), b.is_null()) {
                (true, true) => Ordering::Equal,
                (true, false) if key.nulls_first => Ordering::Less,
                (true, false) => Ordering::Greater,
                (false, true) if key.nulls_first => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) if key.descending => key.collation.compare(b, a),
                (false, false) => key.collation.compare(a, b),
            };
            if ordering != Ordering::Equal {
                return ordering == Ordering::Less;
            }
        }
        one < other
    }
}
