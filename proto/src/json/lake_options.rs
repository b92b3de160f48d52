//! What the lake makes of a table: body and answers of `/admin/lake/options`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::v1::{Error, LakeConfigure, LakeOption, LakeOptions};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigureBody {
    table: String,
    #[serde(default)]
    set: BTreeMap<String, OptionValue>,
    #[serde(default)]
    reset: Vec<String>,
}

/// A value as JSON has it; the lake takes its text.
#[derive(Deserialize)]
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

/// Reads the body of `POST /admin/lake/options`.
///
/// # Errors
/// `INVALID_REQUEST`.
pub fn configure_from_json(body: &[u8]) -> Result<LakeConfigure, Error> {
    let body: Result<ConfigureBody, _> = serde_json::from_slice(body);
    let ConfigureBody { table, set, reset } =
        body.map_err(|error| Error::invalid(format!("the body is not as expected: {error}")))?;
    let option = |(name, value): (String, OptionValue)| LakeOption { name, value: value.into_text(), is_set: true };
    Ok(LakeConfigure { table, set: set.into_iter().map(option).collect(), reset })
}

/// By table, each option with its value and whether that was set.
#[must_use]
pub fn options_document(options: LakeOptions) -> Json {
    let tables = options.tables.into_iter().map(|of| {
        let options = of.options.into_iter();
        let options: serde_json::Map<String, Json> =
            options.map(|option| (option.name, json!({ "value": option.value, "set": option.is_set }))).collect();
        (of.table, Json::Object(options))
    });
    json!({ "tables": tables.collect::<serde_json::Map<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_text() {
        let body = br#"{"table": "t", "set": {"a": true, "b": 7, "c": "x", "d": ["y", "z"]}, "reset": ["e"]}"#;
        let configure = configure_from_json(body).unwrap();
        let values: Vec<&str> = configure.set.iter().map(|option| option.value.as_str()).collect();
        assert_eq!((values, configure.reset), (vec!["on", "7", "x", "y, z"], vec!["e".to_owned()]));
        assert!(configure_from_json(br#"{"set": {}}"#).unwrap_err().message.contains("table"));
    }
}
