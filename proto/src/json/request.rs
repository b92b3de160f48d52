//! Requests.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::value_from_json;
use crate::v1::{Error, Statement};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest<'a> {
    sql: String,
    #[serde(default)]
    #[serde(borrow)]
    params: Vec<&'a RawValue>,
}

/// Reads the body of `POST /sql`: `{"sql": "...", "params": [...]}`, of which `params` may be missing.
///
/// # Errors
/// `INVALID_REQUEST` where it is not that.
pub fn statement_from_json(body: &[u8]) -> Result<Statement, Error> {
    let request: SqlRequest<'_> = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("expected {{\"sql\": \"...\", \"params\": [...]}}: {error}")))?;
    let params = request
        .params
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            value_from_json(value)
                .map_err(|error| Error { message: format!("parameter {}: {}", index + 1, error.message), ..error })
        })
        .collect::<Result<_, _>>()?;
    Ok(Statement { sql: request.sql, params })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ErrorCode, Value};

    #[test]
    fn a_statement_is_read() {
        let statement = statement_from_json(br#"{"sql": "SELECT ?", "params": [1, 2.0, null, true]}"#).unwrap();
        assert_eq!(statement.sql, "SELECT ?");
        assert_eq!(statement.params, [Value::from(1), Value::from(2.0), Value::NULL, Value::from(1)]);
        assert_eq!(statement_from_json(br#"{"sql": "SELECT 1"}"#).unwrap().params, []);
    }

    #[test]
    fn a_bad_body_says_what_is_wrong() {
        for (body, part) in [
            (r#"{"params": []}"#, "missing field `sql`"),
            (r#"{"sql": 1}"#, "expected a string"),
            (r#"{"sql": "", "parms": []}"#, "unknown field `parms`"),
            (r#"{"sql": "", "params": [1, [2]]}"#, "parameter 2: a value cannot be a JSON array"),
            ("{", "EOF"),
            ("", "EOF"),
        ] {
            let error = statement_from_json(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest);
            assert!(error.message.contains(part), "{body}: {}", error.message);
        }
    }
}
