//! Rowids of sharded tables that show them in no column. They are given out here, so that they are unique across shards and
//! grow in the order of insertion, as in one SQLite.

use dosql_proto::{Error, ErrorCode, Statement, value::Kind};

use super::shard_rows::Asked;
use super::{Scope, Shared};
use crate::catalog::Shape;
use crate::plan::Target;
use crate::sql_text::quote;

impl Shared {
    /// Takes `count` rowids of a table; the first one. They follow one another.
    pub(super) async fn take_rowids(&self, table: &str, count: usize, call: &Scope) -> Result<i64, Error> {
        let known = self.rowids.borrow().contains_key(table);
        if !known {
            let highest = self.highest_rowid(table, call).await?;
            // Somebody else may have asked meanwhile and given some out.
            self.rowids.borrow_mut().entry(table.to_owned()).or_insert(highest);
        }
        let mut rowids = self.rowids.borrow_mut();
        let last = rowids.entry(table.to_owned()).or_default();
        let first = last.saturating_add(1);
        *last = last.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(first)
    }

    /// Notes that rowids were given out otherwise.
    pub(super) fn note_rowid(&self, table: &str, rowid: i64) {
        if let Some(last) = self.rowids.borrow_mut().get_mut(table) {
            *last = rowid.max(*last);
        }
    }

    /// Whether a write failed since a rowid that was given out here is in use, by a row that an earlier incarnation sent on its
    /// way. If so, the next ones come after the highest that the shards have.
    pub(super) fn rowid_was_taken(&self, table: &str, error: &Error) -> bool {
        let taken = error.code() == ErrorCode::Constraint
            && self.catalog.borrow().table(table).is_some_and(|known| {
                let Shape { name, .. } = &known.shape;
                let told = |rowid| error.message.ends_with(&format!("UNIQUE constraint failed: {name}.{rowid}"));
                known.shape.hidden_rowid().is_some_and(told)
            });
        if taken {
            self.rowids.borrow_mut().remove(table);
        }
        taken
    }

    async fn highest_rowid(&self, table: &str, call: &Scope) -> Result<i64, Error> {
        let name = self.catalog.borrow().table(table).and_then(|table| table.shape.hidden_rowid());
        let Some(name) = name else { return Err(Error::internal("rowids are given out for a table that has none")) };
        let sql = format!("SELECT max({name}) FROM {}", quote(table));
        let shards = self.resolve(&Target::All, &[])?;
        let answers = self
            .on_each(shards, |shard| {
                let statement = Statement { sql: sql.clone(), params: Vec::new() };
                let asked = Asked { shard, statement, max_bytes: 0, max_rows: 0, step: "read", table };
                async move { self.read_shard(asked, call).await }
            })
            .await;
        let mut highest = 0;
        for answer in answers {
            for row in answer?.0 {
                if let Some(Kind::Integer(rowid)) = row.values.first().and_then(|value| value.kind.as_ref()) {
                    highest = highest.max(*rowid);
                }
            }
        }
        Ok(highest)
    }
}
