//! The tables of a shard, and how a copy finds their rows.

use dosql_proto::value::Kind;
use dosql_proto::{
    CloseRequest, Column, Error, ErrorCode, Row, RowBatch, ShardQuery, SnapshotCursor, Statement, Value, WalTable,
    shard_reply, shard_request,
};

use super::super::choice::Choice;
use super::super::shards::Shards;
use super::PART_ROWS;
use super::copied::remade;
use crate::sql_name::quote;

/// A table and how its rows are found.
pub(in crate::cdc) struct Shape {
    pub(in crate::cdc) table: WalTable,
    pub(super) has_rowid: bool,
    pub(super) rowid_is_key: bool,
}

impl Shape {
    /// The statement that reads the rows after a cursor, by key: the rowid (0 where there is none), then the columns.
    pub(super) fn statement(&self, cursor: &SnapshotCursor) -> Result<(String, Vec<Value>), Error> {
        let Self { table, .. } = self;
        let columns: Vec<String> = table.columns.iter().map(|column| quote(&column.name)).collect();
        let rowid = if self.has_rowid {
            let taken = |name: &str| table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            let name = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name));
            name.ok_or_else(|| {
                let message =
                    format!("the rows of {} cannot be told apart: columns have all names of the rowid", table.name);
                Error::new(ErrorCode::Unsupported, message)
            })?
        } else {
            "0"
        };
        let key: Vec<String> = if self.has_rowid {
            vec![rowid.to_owned()]
        } else {
            let names = table.primary_key.iter().filter_map(|at| columns.get(*at as usize));
            // The order of the bytes, whatever the column's own collation: it is compared here, too.
            names.map(|name| format!("{name} COLLATE BINARY")).collect()
        };
        let after = cursor.after.as_ref().map(|row| row.values.clone()).unwrap_or_default();
        let filter = if after.is_empty() {
            String::new()
        } else if after.len() == key.len() {
            format!("WHERE {} ", beyond(&key))
        } else {
            return Err(remade(&table.name));
        };
        let sql = format!(
            "SELECT {rowid}, {} FROM {} {filter}ORDER BY {} LIMIT {PART_ROWS}",
            columns.join(", "),
            quote(&table.name),
            key.join(", ")
        );
        Ok((sql, after))
    }

    pub(super) fn key(&self, rowid: &Value, row: &Row) -> Row {
        if self.has_rowid { Row { values: vec![rowid.clone()] } } else { primary_key(&self.table, row) }
    }
}

/// The condition that a key of these parts is greater than ?1, ?2, ... The first part stands alone as well, for the index.
fn beyond(key: &[String]) -> String {
    let [first, ..] = key else { return "1".to_owned() };
    let alternatives = (0..key.len()).map(|at| {
        let equal = (0..at).map(|before| format!("{} = ?{}", key[before], before + 1));
        equal.chain([format!("{} > ?{}", key[at], at + 1)]).collect::<Vec<_>>().join(" AND ")
    });
    match key.len() {
        1 => format!("{first} > ?1"),
        _ => format!("{first} >= ?1 AND ({})", alternatives.collect::<Vec<_>>().join(" OR ")),
    }
}

/// The values of a row in its table's primary key.
pub(super) fn primary_key(table: &WalTable, row: &Row) -> Row {
    table.primary_key.iter().filter_map(|at| row.values.get(*at as usize).cloned()).collect()
}

/// The tables of a shard that a subscriber wants, from a name on, and the LSN as of which they are so.
pub(in crate::cdc) async fn tables(
    shards: &Shards,
    choice: &Choice,
    shard: &str,
    from: &str,
) -> Result<(Vec<Shape>, u64), Error> {
    let mut params = vec![Value::from(from)];
    let named = if choice.tables().is_empty() {
        String::new()
    } else {
        params.extend(choice.tables().iter().map(|name| Value::from(name.to_ascii_lowercase().as_str())));
        let marks: Vec<String> = (2..=params.len()).map(|at| format!("?{at}")).collect();
        format!(" AND lower(l.name) IN ({})", marks.join(", "))
    };
    let sql = format!(
        "SELECT l.name, l.wr, x.name, x.type, x.pk, x.hidden, \
         EXISTS (SELECT 1 FROM pragma_index_list(l.name) WHERE origin = 'pk') \
         FROM pragma_table_list l JOIN pragma_table_xinfo(l.name) x \
         WHERE l.schema = 'main' AND l.type = 'table' AND l.name >= ?1{named} \
         AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND l.name NOT LIKE '\\_dosql\\_%' ESCAPE '\\' \
         ORDER BY l.name, x.cid"
    );
    let mut batch = query(shards, shard, sql, params, usize::MAX).await?;
    let lsn = batch.lsn;
    let mut rows = std::mem::take(&mut batch.rows);
    while batch.cursor != 0 {
        let fetch = dosql_proto::FetchRequest { cursor: batch.cursor };
        batch = rows_of(shards.ask(shard, shard_request::Request::Fetch(fetch)).await?)?;
        rows.append(&mut batch.rows);
    }
    let mut shapes: Vec<Shape> = Vec::new();
    let mut keys: Vec<(i64, u32)> = Vec::new();
    for row in &rows {
        let [name, without_rowid, column, declared, rank, hidden, key_index] = row.values.as_slice() else {
            return Err(Error::internal(format!("{shard} described its tables otherwise than asked")));
        };
        let text = |value: &Value| match &value.kind {
            Some(Kind::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let number = |value: &Value| match value.kind {
            Some(Kind::Integer(number)) => number,
            _ => 0,
        };
        let name = text(name);
        if shapes.last().is_none_or(|shape| shape.table.name != name) {
            finish(&mut shapes, &mut keys);
            shapes.push(Shape {
                table: WalTable { name, ..WalTable::default() },
                has_rowid: number(without_rowid) == 0,
                rowid_is_key: number(without_rowid) == 0 && number(key_index) == 0,
            });
        }
        // 2: a VIRTUAL generated column, which rows do not store.
        if number(hidden) != 2
            && let Some(shape) = shapes.last_mut()
        {
            if number(rank) > 0 {
                keys.push((number(rank), u32::try_from(shape.table.columns.len()).unwrap_or(u32::MAX)));
            }
            shape.table.columns.push(Column { name: text(column), declared_type: text(declared) });
        }
    }
    finish(&mut shapes, &mut keys);
    Ok((shapes, lsn))
}

/// Notes the primary key of the last table.
fn finish(shapes: &mut [Shape], keys: &mut Vec<(i64, u32)>) {
    keys.sort_unstable();
    if let Some(shape) = shapes.last_mut() {
        shape.table.primary_key = keys.iter().map(|(_, at)| *at).collect();
        shape.rowid_is_key &= !keys.is_empty();
    }
    keys.clear();
}

/// Runs a reading statement on a shard; of the result beyond `max_bytes`, nothing is wanted unless all is.
pub(super) async fn query(
    shards: &Shards,
    shard: &str,
    sql: String,
    params: Vec<Value>,
    max_bytes: usize,
) -> Result<RowBatch, Error> {
    let request = ShardQuery {
        statement: Some(Statement { sql, params }),
        max_batch_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
        ..ShardQuery::default()
    };
    let batch = rows_of(shards.ask(shard, shard_request::Request::Query(request)).await?)?;
    if batch.cursor != 0 && max_bytes != usize::MAX {
        // It expires where this does not arrive.
        let close = shard_request::Request::Close(CloseRequest { cursor: batch.cursor });
        if let Err(error) = shards.ask(shard, close).await {
            tracing::debug!(shard, %error, "a result was not closed");
        }
    }
    Ok(batch)
}

fn rows_of(reply: shard_reply::Reply) -> Result<RowBatch, Error> {
    match reply {
        shard_reply::Reply::Rows(batch) => Ok(batch),
        _ => Err(Error::internal("a shard answered something else than rows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_several_parts_are_compared_part_by_part() {
        let key = ["a".to_owned(), "b".to_owned()];
        assert_eq!(beyond(&key), "a >= ?1 AND (a > ?1 OR a = ?1 AND b > ?2)");
        assert_eq!(beyond(&key[..1]), "a > ?1");
    }
}
