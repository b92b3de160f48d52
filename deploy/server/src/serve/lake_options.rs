//! `GET` and `POST /admin/lake/options`: what the lake makes of a table.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use dosql_proto::{Error, LakeConfigure, LakeOption, LakeOptions, LakeOptionsRequest};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::backend::Backend;
use super::http::HttpError;
use super::maintenance::answer;

/// The body of `POST /admin/lake/options`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigureBody {
    table: String,
    #[serde(default)]
    set: BTreeMap<String, OptionValue>,
    #[serde(default)]
    reset: Vec<String>,
}

/// A value as JSON has it; the lake takes its text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OptionValue {
    Switch(bool),
    Number(u64),
    Text(String),
    List(Vec<String>),
}

impl OptionValue {
    fn into_text(self) -> String {
        match self {
            Self::Switch(on) => if on { "on" } else { "off" }.to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
            Self::List(parts) => parts.join(", "),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptionsQuery {
    /// Left out: all tables that have options of their own.
    #[serde(default)]
    table: String,
}

/// What the options are.
pub(super) async fn show(
    State(backend): State<Backend>,
    query: Result<Query<OptionsQuery>, QueryRejection>,
) -> Result<Response, HttpError> {
    let Query(OptionsQuery { table }) = query.map_err(|error| Error::invalid(error.body_text()))?;
    Ok(answer(&document(backend.lake_options(LakeOptionsRequest { table }).await?)))
}

/// Changes options.
pub(super) async fn change(State(backend): State<Backend>, bytes: Bytes) -> Result<Response, HttpError> {
    let body: Result<ConfigureBody, _> = serde_json::from_slice(&bytes);
    let body = body.map_err(|error| Error::invalid(format!("the body is not as expected: {error}")))?;
    let ConfigureBody { table, set, reset } = body;
    let option = |(name, value): (String, OptionValue)| LakeOption { name, value: value.into_text(), is_set: true };
    let configure = LakeConfigure { table, set: set.into_iter().map(option).collect(), reset };
    Ok(answer(&document(backend.configure_lake(configure).await?)))
}

/// By table, each option with its value and whether that was set.
fn document(options: LakeOptions) -> Json {
    let tables = options.tables.into_iter().map(|of| {
        let options = of.options.into_iter();
        let options: serde_json::Map<String, Json> =
            options.map(|option| (option.name, json!({ "value": option.value, "set": option.is_set }))).collect();
        (of.table, Json::Object(options))
    });
    json!({ "tables": tables.collect::<serde_json::Map<_, _>>() })
}
