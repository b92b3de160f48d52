//! Reads that see every transaction wholly or not at all: the shards are read, each with its last LSN noted, and then asked
//! whether that is still their last one and nothing is about to commit there.

use std::rc::Rc;
use std::time::Duration;

use dosql_actors::runtime::TransactionMode;
use dosql_actors::sql_value::{Param, sql_error};
use dosql_proto::{Consistency, Error, Row};
use rusqlite::Connection;

use super::cursor::Cursor;
use super::read::Reading;
use super::{Scope, Shared};
use crate::plan::Read;
use crate::transaction::contended;

/// After how many attempts in vain the shards are locked before they are read.
const OPTIMISTIC_ATTEMPTS: u32 = 3;

impl Scope {
    /// Whether a read is to see one state of all shards.
    pub(super) fn strict(&self) -> bool {
        self.options.consistency() == Consistency::Strict
    }
}

impl Shared {
    /// The first rows of a read, and a cursor where there are more. What belongs to a transaction, or is to see one state of
    /// all shards, is read to its end at once.
    pub(super) async fn open_consistently(
        &self,
        read: &Read,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        if call.transaction().is_some() {
            return Box::pin(self.open_whole(read, reading, call)).await;
        }
        if !call.strict() {
            return self.open(read, reading, call).await;
        }
        Box::pin(self.open_strictly(read, reading, call)).await
    }

    async fn open_strictly(
        &self,
        read: &Read,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let mut touched = Vec::new();
        let mut attempt = 0;
        loop {
            let locking = attempt >= OPTIMISTIC_ATTEMPTS;
            let transaction = self.begin("read", TransactionMode::TwoPhase, locking);
            let scope = call.within(Some(Rc::clone(&transaction)));
            let attempted = async {
                if locking {
                    // In one order, so that those who lock do not wait for each other.
                    for shard in &touched {
                        self.lock(&transaction, *shard, &scope).await?;
                    }
                }
                let found = self.open_whole(read, reading, &scope).await?;
                if !locking {
                    self.commit(&transaction, None, &scope).await?;
                }
                Ok(found)
            };
            let outcome = attempted.await;
            touched = transaction.parts().into_iter().map(|(shard, _)| shard).collect();
            self.roll_back(&transaction);
            let pause = 1 + self.context.random_u64() % (8 << attempt.min(4));
            match outcome {
                Err(error)
                    if contended(&error)
                        && (call.deadline_ms == 0 || self.context.now_ms() + pause < call.deadline_ms) =>
                {
                    tracing::debug!(%error, attempt, "reading again");
                    self.context.sleep(Duration::from_millis(pause)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn open_whole(
        &self,
        read: &Read,
        reading: Reading<'_>,
        call: &Scope,
    ) -> Result<(Vec<Row>, Option<Cursor>), Error> {
        let Reading { width, max_bytes, .. } = reading;
        let (rows, cursor) = self.open(read, reading, call).await?;
        let mut cursor = match cursor {
            Some(Cursor::Scratch { .. }) | None => return Ok((rows, cursor)),
            Some(cursor) => cursor,
        };
        let scratch = self.context.open_scratch()?;
        let columns: Vec<String> = (0..width).map(|index| format!("c{index}")).collect();
        scratch
            .execute_batch(&format!("CREATE TABLE _dosql_result ({}); BEGIN", columns.join(", ")))
            .map_err(sql_error)?;
        loop {
            let (more, done) = self.advance(&mut cursor, call).await?;
            keep(&scratch, &more, width).map_err(sql_error)?;
            if done {
                break;
            }
        }
        scratch.execute_batch("COMMIT").map_err(sql_error)?;
        Ok((rows, Some(Cursor::Scratch { connection: scratch, last: 0, width, max_bytes })))
    }
}

fn keep(scratch: &Connection, rows: &[Row], width: usize) -> rusqlite::Result<()> {
    let places = vec!["?"; width].join(", ");
    let mut insert = scratch.prepare_cached(&format!("INSERT INTO _dosql_result VALUES ({places})"))?;
    for row in rows {
        for (index, value) in row.values.iter().enumerate() {
            insert.raw_bind_parameter(index + 1, Param(value))?;
        }
        insert.raw_execute()?;
    }
    Ok(())
}
