//! Requests.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::value_from_json;
use crate::v1::{Consistency, Durability, Error, QueryOptions, QueryRequest, ReadPreference, Statement, Value};

/// An object's fields in their order, unread.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<'a>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Read<'a> {
            type Value = Fields<'a>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Read(std::marker::PhantomData))
    }
}

/// Reads the body of `POST /sql`: `{"sql": "...", "params": [...], "options": {...}}`, of which all but `sql` may be missing.
///
/// Options may stand in `options` or beside `sql`: `timeout` (in milliseconds), `requestId`, `readPreference`
/// (`primary`, `replica`, `replicaPreferred`, `analytics`, `nearest`), `maxStalenessMs`, `bookmark`, `consistency`
/// (`shard`, `strict`), `durability` (`primary`, `replica`), `explain`, `profile`, `maxRows`, `maxBytes`, `region` and
/// `maxBatchBytes`. One that is `null` counts as left out.
///
/// # Errors
/// `INVALID_REQUEST` where it is not that.
pub fn query_from_json(body: &[u8]) -> Result<QueryRequest, Error> {
    let Fields(fields) = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("expected {{\"sql\": \"...\", \"params\": [...]}}: {error}")))?;
    let mut sql = None;
    let mut params = Vec::new();
    let mut request = QueryRequest::default();
    for (name, value) in fields {
        match name.as_str() {
            "sql" => sql = Some(read("sql", value)?),
            "params" => params = read_params(value)?,
            "options" => {
                let Fields(options) = read("options", value)?;
                for (name, value) in options {
                    set(&mut request, &name, value)?;
                }
            }
            _ => set(&mut request, &name, value)?,
        }
    }
    let Some(sql) = sql else { return Err(Error::invalid("missing field `sql`")) };
    request.statement = Some(Statement { sql, params });
    Ok(request)
}

fn read<'a, T: Deserialize<'a>>(name: &str, value: &'a RawValue) -> Result<T, Error> {
    serde_json::from_str(value.get()).map_err(|error| Error::invalid(format!("{name}: {error}")))
}

fn read_params(value: &RawValue) -> Result<Vec<Value>, Error> {
    let values: Vec<&RawValue> = read("params", value)?;
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            value_from_json(value)
                .map_err(|error| Error { message: format!("parameter {}: {}", index + 1, error.message), ..error })
        })
        .collect()
}

/// Sets one option.
fn set(request: &mut QueryRequest, name: &str, value: &RawValue) -> Result<(), Error> {
    if value.get() == "null" {
        return Ok(());
    }
    let options = request.options.get_or_insert_with(QueryOptions::default);
    match name {
        "timeout" => request.timeout_ms = read(name, value)?,
        "requestId" => request.request_id = read(name, value)?,
        "maxBatchBytes" => request.max_batch_bytes = read(name, value)?,
        "maxStalenessMs" => options.max_staleness_ms = read(name, value)?,
        "bookmark" => options.bookmark = read(name, value)?,
        "explain" => options.explain = read(name, value)?,
        "profile" => options.profile = read(name, value)?,
        "maxRows" => options.max_rows = read(name, value)?,
        "maxBytes" => options.max_bytes = read(name, value)?,
        "region" => options.region = read(name, value)?,
        "readPreference" => options.set_read_preference(word(
            name,
            value,
            &[
                ("primary", ReadPreference::Primary),
                ("replica", ReadPreference::Replica),
                ("replicaPreferred", ReadPreference::ReplicaPreferred),
                ("analytics", ReadPreference::Analytics),
                ("nearest", ReadPreference::Nearest),
            ],
        )?),
        "consistency" => options.set_consistency(word(
            name,
            value,
            &[("shard", Consistency::Unspecified), ("strict", Consistency::Strict)],
        )?),
        "durability" => options.set_durability(word(
            name,
            value,
            &[("primary", Durability::Unspecified), ("replica", Durability::Replicated)],
        )?),
        _ => return Err(Error::invalid(format!("unknown field `{name}`"))),
    }
    Ok(())
}

/// One of some words.
fn word<T: Copy>(name: &str, value: &RawValue, words: &[(&str, T)]) -> Result<T, Error> {
    let given: String = read(name, value)?;
    words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Error::invalid(format!("{name}: {given:?} is none of {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ErrorCode;

    #[test]
    fn a_statement_is_read() {
        let request = query_from_json(br#"{"sql": "SELECT ?", "params": [1, 2.0, null, true]}"#).unwrap();
        let statement = request.statement.clone().unwrap();
        assert_eq!(statement.sql, "SELECT ?");
        assert_eq!(statement.params, [Value::from(1), Value::from(2.0), Value::NULL, Value::from(1)]);
        assert_eq!(request, QueryRequest { statement: Some(statement), ..QueryRequest::default() });
        assert_eq!(query_from_json(br#"{"sql": "SELECT 1"}"#).unwrap().statement.unwrap().params, []);
    }

    #[test]
    fn every_option_is_read_in_both_places() {
        const OPTIONS: &str = r#""timeout": 5, "requestId": "a", "readPreference": "replicaPreferred", "maxStalenessMs": 9,
            "bookmark": "shard-0:1", "consistency": "strict", "durability": "replica", "explain": true, "profile": true,
            "maxRows": 3, "maxBytes": 4, "maxBatchBytes": 6"#;
        let mut options = QueryOptions {
            max_staleness_ms: 9,
            bookmark: "shard-0:1".into(),
            explain: true,
            profile: true,
            max_rows: 3,
            max_bytes: 4,
            ..QueryOptions::default()
        };
        options.set_read_preference(ReadPreference::ReplicaPreferred);
        options.set_consistency(Consistency::Strict);
        options.set_durability(Durability::Replicated);
        let expected = QueryRequest {
            statement: Some(Statement { sql: "x".into(), params: Vec::new() }),
            timeout_ms: 5,
            request_id: "a".into(),
            max_batch_bytes: 6,
            options: Some(options),
            ..QueryRequest::default()
        };
        for body in [format!(r#"{{"sql": "x", {OPTIONS}}}"#), format!(r#"{{"sql": "x", "options": {{{OPTIONS}}}}}"#)] {
            assert_eq!(query_from_json(body.as_bytes()).unwrap(), expected);
        }
        let nulls = query_from_json(br#"{"sql": "x", "timeout": null, "options": {"bookmark": null}}"#).unwrap();
        assert_eq!(nulls.options, None);
    }

    #[test]
    fn a_bad_body_says_what_is_wrong() {
        for (body, part) in [
            (r#"{"params": []}"#, "missing field `sql`"),
            (r#"{"sql": 1}"#, "expected a string"),
            (r#"{"sql": "", "parms": []}"#, "unknown field `parms`"),
            (r#"{"sql": "", "options": {"profil": true}}"#, "unknown field `profil`"),
            (r#"{"sql": "", "options": {"profile": 1}}"#, "profile: invalid type"),
            (r#"{"sql": "", "readPreference": "any"}"#, "\"any\" is none of primary, replica, replicaPreferred"),
            (r#"{"sql": "", "timeout": -1}"#, "timeout: invalid"),
            (r#"{"sql": "", "params": [1, [2]]}"#, "parameter 2: a value cannot be a JSON array"),
            ("[]", "expected an object"),
            ("{", "EOF"),
            ("", "EOF"),
        ] {
            let error = query_from_json(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest);
            assert!(error.message.contains(part), "{body}: {}", error.message);
        }
    }
}
