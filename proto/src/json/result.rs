//! Results, written piece by piece so that no result has to fit memory.

use super::JsonRow;
use super::error::ErrorFields;
use super::plan::{JsonPlan, JsonStats};
use crate::v1::{Column, Error, Row, RowBatch};

/// Writes `{"columns": [...], "rows": [[...]], "rows_affected": n, "bookmark": "..."}` as its parts arrive, and with it
/// `"queryPlan": {...}` and `"stats": {...}` where the request asked for them.
///
/// Call [`columns`](Self::columns) once, [`rows`](Self::rows) any number of times, then [`finish`](Self::finish) or
/// [`fail`](Self::fail).
#[derive(Debug, Default)]
pub struct ResultWriter {
    rows_written: bool,
}

impl ResultWriter {
    /// A writer at the start of a result.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the names of the columns.
    pub fn columns(&mut self, columns: &[Column], out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"columns\":[");
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_json(out, &column.name);
        }
        out.extend_from_slice(b"],\"rows\":[");
    }

    /// Writes some rows.
    pub fn rows(&mut self, rows: &[Row], out: &mut Vec<u8>) {
        for row in rows {
            if std::mem::replace(&mut self.rows_written, true) {
                out.push(b',');
            }
            write_json(out, &JsonRow(row));
        }
    }

    /// Writes what comes after the rows: what the last batch says of the whole.
    pub fn finish(self, last: &RowBatch, out: &mut Vec<u8>) {
        out.extend_from_slice(b"],\"rows_affected\":");
        write_json(out, &last.rows_affected);
        out.extend_from_slice(b",\"bookmark\":");
        write_json(out, &last.bookmark);
        if let Some(plan) = &last.query_plan {
            out.extend_from_slice(b",\"queryPlan\":");
            write_json(out, &JsonPlan(plan));
        }
        if let Some(stats) = &last.stats {
            out.extend_from_slice(b",\"stats\":");
            write_json(out, &JsonStats(stats));
        }
        out.push(b'}');
    }

    /// Ends a result that broke off: the object has an `error` in place of `rows_affected` and `bookmark`.
    pub fn fail(self, error: &Error, out: &mut Vec<u8>) {
        out.extend_from_slice(b"],\"error\":");
        write_json(out, &ErrorFields(error));
        out.push(b'}');
    }
}

pub(super) fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // A Vec takes every byte, and what is written here (text, numbers, arrays, maps keyed by text) always has a JSON form.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ExplainResponse, QueryStats, StepStats, Value};

    fn columns() -> Vec<Column> {
        vec![Column { name: "a".into(), ..Column::default() }, Column { name: "b\"".into(), ..Column::default() }]
    }

    #[test]
    fn a_result_comes_in_pieces() {
        let mut writer = ResultWriter::new();
        let mut out = Vec::new();
        writer.columns(&columns(), &mut out);
        writer.rows(&[[Value::from(1), Value::NULL].into_iter().collect()], &mut out);
        writer.rows(&[], &mut out);
        writer.rows(&[[Value::from("x"), Value::from(1.0)].into_iter().collect()], &mut out);
        let last = RowBatch { rows_affected: 2, bookmark: "shard-0:3".into(), ..RowBatch::default() };
        writer.finish(&last, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"columns":["a","b\""],"rows":[[1,null],["x",1.0]],"rows_affected":2,"bookmark":"shard-0:3"}"#
        );
    }

    #[test]
    fn a_result_carries_its_plan_and_its_stats() {
        let mut out = Vec::new();
        let mut writer = ResultWriter::new();
        writer.columns(&columns(), &mut out);
        let step = StepStats { step: "read".into(), shard: "shard-1".into(), rows: 2, ..StepStats::default() };
        let last = RowBatch {
            query_plan: Some(ExplainResponse {
                route: "scatter".into(),
                plan: "a\n b".into(),
                shards: vec!["shard-1".into()],
            }),
            stats: Some(QueryStats { elapsed_us: 1_500, rows: 2, steps: vec![step], ..QueryStats::default() }),
            ..RowBatch::default()
        };
        writer.finish(&last, &mut out);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["queryPlan"]["route"], "scatter");
        assert_eq!(json["queryPlan"]["text"], "a\n b");
        assert_eq!(json["stats"]["elapsedMs"], 1.5);
        assert_eq!(json["stats"]["steps"][0]["shard"], "shard-1");
        assert_eq!(json["stats"]["steps"][0]["table"], serde_json::Value::Null);
    }

    #[test]
    fn a_result_that_breaks_off_says_why() {
        let mut writer = ResultWriter::new();
        let mut out = Vec::new();
        writer.columns(&columns(), &mut out);
        writer.fail(&Error::internal("gone"), &mut out);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["error"]["code"], "INTERNAL");
    }
}
