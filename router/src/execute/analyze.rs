//! `EXPLAIN ANALYZE`: runs a statement and tells what its steps took.

use std::fmt::Write;

use dosql_proto::{Error, QueryStats, Statement, StepStats, Value};

use super::{MAX_BATCH_BYTES, Scope, Shared};

impl Shared {
    /// Runs a statement, whose rows are counted and dropped, and describes its plan and what it took.
    pub(super) async fn analyze(&self, sql: &str, params: Vec<Value>, scope: &Scope) -> Result<String, Error> {
        let scope = scope.analyzed();
        let explained = self.explained(sql, &params, Some(&scope))?;
        let (plan, statement) = self.prepare(Statement { sql: sql.to_owned(), params }, &scope)?;
        if plan.writes() {
            let began_ns = self.context.timer_ns();
            let done = Box::pin(self.write(&plan, statement, String::new(), &scope)).await?;
            let result = done.result.unwrap_or_default();
            scope.step(StepStats {
                step: "write".to_owned(),
                rows: result.rows_affected,
                elapsed_us: self.since(began_ns),
                ..StepStats::default()
            });
            self.count(&result.rows, &scope);
        } else {
            let (rows, mut cursor) = Box::pin(self.rows(&plan, statement, MAX_BATCH_BYTES, &scope)).await?;
            let mut dropped = scope.resumed((*scope).clone(), self.context.timer_ns());
            self.count(&rows, &scope);
            while let Some(open) = &mut cursor {
                dropped = dropped.resumed((*scope).clone(), self.context.timer_ns());
                let (rows, done) = self.advance(open, &dropped).await?;
                self.count(&rows, &dropped);
                if done {
                    cursor = None;
                }
            }
        }
        let mut text = explained.plan;
        describe(&scope.stats().unwrap_or_default(), &mut text);
        Ok(text)
    }
}

/// What a statement took, as people read it.
fn describe(stats: &QueryStats, text: &mut String) {
    let cached = if stats.plan_cached { "plan at hand" } else { "planned" };
    let _ = writeln!(
        text,
        "took {} ms ({cached} in {:.3} ms): {}, {} bytes",
        milliseconds(stats.elapsed_us),
        stats.planning_ns as f64 / 1e6,
        counted(stats.rows, "row"),
        stats.bytes
    );
    if stats.gathered_rows > 0 {
        let _ = writeln!(
            text,
            "  gathered: {}, {} bytes; scratch database: {} bytes of memory, {} bytes written to disk",
            counted(stats.gathered_rows, "row"),
            stats.gathered_bytes,
            stats.scratch_memory_bytes,
            stats.scratch_disk_bytes
        );
    }
    for step in &stats.steps {
        let mut name = step.step.clone();
        for part in [&step.table, &step.shard] {
            if !part.is_empty() {
                let _ = write!(name, " {part}");
            }
        }
        let _ = writeln!(
            text,
            "  {name}: {}, {} bytes, {} in {} ms",
            counted(step.rows, "row"),
            step.bytes,
            counted(step.batches, "answer"),
            milliseconds(step.elapsed_us)
        );
        if let Some(lake) = &step.lake {
            let _ = writeln!(
                text,
                "    skipped {} of {} and {} of {}; {} left out; {} bytes read",
                lake.files_skipped,
                counted(lake.files, "file"),
                lake.row_groups_skipped,
                counted(lake.row_groups, "row group"),
                counted(lake.rows_deleted, "deleted row"),
                lake.bytes_read
            );
        }
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn milliseconds(microseconds: u64) -> String {
    format!("{:.3}", microseconds as f64 / 1e3)
}
