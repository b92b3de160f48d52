//! Reading a VSchema document, JSON or TOML, so that everything wrong with it is named at once.

use std::collections::BTreeMap;

use dosql_proto::Error;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{RouterSettings, VSchema};

impl VSchema {
    /// Reads and validates a document; the empty text is the empty VSchema. One that begins with `{` is JSON, another TOML.
    ///
    /// # Errors
    /// `INVALID_REQUEST` naming the path of everything that is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let document = if text.starts_with('{') {
            serde_json::from_str(text).map_err(|error| Error::invalid(format!("VSchema: not JSON: {error}")))?
        } else {
            let table: toml::Table =
                text.parse().map_err(|error| Error::invalid(format!("VSchema: not TOML: {error}")))?;
            from_toml(toml::Value::Table(table))
        };
        let Json::Object(parts) = document else {
            return Err(Error::invalid("VSchema: the document is not an object"));
        };
        let mut faults = Vec::new();
        let mut vschema = Self::default();
        for (key, part) in parts {
            match key.as_str() {
                "shards" => match part {
                    Json::Array(list) => {
                        for (index, entry) in list.into_iter().enumerate() {
                            vschema.shards.extend(read(&format!("shards[{index}]"), entry, &mut faults));
                        }
                    }
                    _ => faults.push("shards: it must be a list".to_owned()),
                },
                "vindexes" => vschema.vindexes = read_map("vindexes", part, &mut faults),
                "sequences" => vschema.sequences = read_map("sequences", part, &mut faults),
                "tables" => vschema.tables = read_map("tables", part, &mut faults),
                "defaultShard" => vschema.default_shard = read("defaultShard", part, &mut faults),
                "settings" => vschema.settings = settings(part, &mut faults),
                "$schema" => {}
                _ => faults.push(format!(
                    "{key}: unknown; expected shards, vindexes, sequences, tables, defaultShard or settings"
                )),
            }
        }
        vschema.validate(&mut faults);
        if faults.is_empty() { Ok(vschema) } else { Err(refused(&faults)) }
    }
}

pub(super) fn refused(faults: &[String]) -> Error {
    Error::invalid(format!("VSchema: {}", faults.join("; ")))
}

fn read<T: DeserializeOwned>(path: &str, part: Json, faults: &mut Vec<String>) -> Option<T> {
    serde_json::from_value(part).map_err(|error| faults.push(format!("{path}: {error}"))).ok()
}

fn read_map<T: DeserializeOwned>(path: &str, part: Json, faults: &mut Vec<String>) -> BTreeMap<String, T> {
    let Json::Object(entries) = part else {
        faults.push(format!("{path}: it must be an object"));
        return BTreeMap::new();
    };
    entries
        .into_iter()
        .filter_map(|(name, entry)| read(&format!("{path}.{name}"), entry, faults).map(|entry| (name, entry)))
        .collect()
}

/// One setting at a time, so that each can be named.
fn settings(part: Json, faults: &mut Vec<String>) -> RouterSettings {
    let mut settings = RouterSettings::default();
    let Json::Object(entries) = part else {
        faults.push("settings: it must be an object".to_owned());
        return settings;
    };
    for (name, value) in entries {
        let one = Json::Object([(name.clone(), value)].into_iter().collect());
        let Some(one) = read::<RouterSettings>(&format!("settings.{name}"), one, faults) else { continue };
        settings.max_parallel_shards = one.max_parallel_shards.or(settings.max_parallel_shards);
        settings.shard_timeout_ms = one.shard_timeout_ms.or(settings.shard_timeout_ms);
        settings.enable_caching = one.enable_caching.or(settings.enable_caching);
    }
    settings
}

/// A date is the text it is written as.
fn from_toml(value: toml::Value) -> Json {
    match value {
        toml::Value::String(text) => Json::String(text),
        toml::Value::Integer(integer) => integer.into(),
        toml::Value::Float(real) => real.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => Json::String(time.to_string()),
        toml::Value::Array(list) => Json::Array(list.into_iter().map(from_toml).collect()),
        toml::Value::Table(table) => {
            Json::Object(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::ErrorCode;

    use super::super::{KeyValue, RangeEntry, TableEntry, VindexChoice, VindexEntry};
    use super::*;

    const JSON: &str = r#"{
        "shards": [
            { "id": "shard-0", "metadata": { "region": "wnam" } },
            { "id": "shard-1", "metadata": { "region": "weur", "weight": 3 } }
        ],
        "vindexes": { "by_tenant": { "type": "xxhash" } },
        "tables": {
            "users": { "type": "sharded", "column": "tenant_id", "vindex": "by_tenant" },
            "events": { "type": "sharded", "column": "at", "vindex": { "type": "range", "ranges": [
                { "shard": "old", "max": "2026-01-01" }, { "shard": "shard-1", "min": "2026-01-01" }] } },
            "countries": { "type": "reference" },
            "jobs": { "type": "unsharded", "shard": "shard-1" }
        },
        "defaultShard": "shard-0",
        "settings": { "maxParallelShards": 4, "shardTimeoutMs": 500, "enableCaching": false }
    }"#;

    const TOML: &str = r#"
        defaultShard = "shard-0"
        shards = [
            { id = "shard-0", metadata = { region = "wnam" } },
            { id = "shard-1", metadata = { region = "weur", weight = 3 } },
        ]
        [vindexes]
        by_tenant = { type = "xxhash" }
        [tables]
        users = { type = "sharded", column = "tenant_id", vindex = "by_tenant" }
        countries = { type = "reference" }
        jobs = { type = "unsharded", shard = "shard-1" }
        [tables.events]
        type = "sharded"
        column = "at"
        vindex.type = "range"
        vindex.ranges = [{ shard = "old", max = 2026-01-01 }, { shard = "shard-1", min = 2026-01-01 }]
        [settings]
        maxParallelShards = 4
        shardTimeoutMs = 500
        enableCaching = false
    "#;

    #[test]
    fn json_and_toml_say_the_same() {
        let vschema = VSchema::parse(JSON).unwrap();
        assert_eq!(VSchema::parse(TOML).unwrap(), vschema);
        assert_eq!(vschema.shards[1].metadata.weight, Some(3));
        assert_eq!(
            vschema.table("USERS"),
            Some(&TableEntry::Sharded {
                column: "tenant_id".to_owned(),
                vindex: VindexChoice::Named("by_tenant".to_owned()),
                auto_increment: None,
                lookups: Vec::new(),
            })
        );
        let bound = || Some(KeyValue::Text("2026-01-01".to_owned()));
        assert_eq!(
            vschema.table("events"),
            Some(&TableEntry::Sharded {
                column: "at".to_owned(),
                vindex: VindexChoice::Own(VindexEntry::Range {
                    ranges: vec![
                        RangeEntry { shard: "old".to_owned(), min: None, max: bound() },
                        RangeEntry { shard: "shard-1".to_owned(), min: bound(), max: None },
                    ]
                }),
                auto_increment: None,
                lookups: Vec::new(),
            })
        );
        let shards = vschema.resolve_shards(std::iter::empty()).unwrap();
        let seen: Vec<_> = shards.iter().map(|shard| (shard.name.as_str(), shard.hashed)).collect();
        assert_eq!(seen, [("shard-0", true), ("shard-1", true), ("old", false)]);
        let text = serde_json::to_string(&vschema).unwrap();
        assert_eq!(VSchema::parse(&text).unwrap(), vschema);
    }

    #[test]
    fn errors_name_the_path() {
        for (text, expected) in [
            ("{", "not JSON"),
            ("shards = ", "not TOML"),
            (r#"{"shards":[{"id":"a"},{"id":"A"}]}"#, "shards[1].id"),
            (r#"{"shards":[{"id":"../a"}]}"#, "shards[0].id"),
            (r#"{"shards":[{"id":"shard-0-r1"}]}"#, "shards[0].id"),
            (r#"{"shards":[{"id":"a","metadata":{"weight":0}}]}"#, "shards[0].metadata.weight"),
            (r#"{"shards":[{"id":"a","dedicated":true}]}"#, "shards: "),
            (r#"{"shards":[{"id":"a"}],"defaultShard":"b"}"#, "defaultShard"),
            (r#"{"tables":{"t":{"type":"sharded"}}}"#, "tables.t"),
            (r#"{"tables":{"t":{"type":"split"}}}"#, "tables.t"),
            (r#"{"tables":{"t":{"type":"unsharded","shard":"x"}},"shards":[{"id":"a"}]}"#, "tables.t.shard"),
            (r#"{"tables":{"t":{"type":"reference"},"T":{"type":"reference"}}}"#, "twice"),
            (
                r#"{"tables":{"t":{"type":"sharded","column":"k","vindex":"v"}}}"#,
                "tables.t.vindex: there is no vindex \"v\"",
            ),
            (
                r#"{"tables":{"t":{"type":"sharded","column":"k","vindex":{"type":"nix"}}}}"#,
                "tables.t: vindex: unknown variant `nix`",
            ),
            (r#"{"tabels":{}}"#, "tabels"),
            (
                r#"{"tables":{"t":{"type":"sharded","column":"k","autoIncrement":{"column":"k","sequence":"s"}}}}"#,
                "tables.t.autoIncrement.sequence: there is no sequence \"s\"",
            ),
            (r#"{"sequences":{"s":{"cache":0}}}"#, "sequences.s.cache"),
            (r#"{"settings":{"maxParallelShards":0}}"#, "settings.maxParallelShards"),
            (
                r#"{"vindexes":{"v":{"type":"range","ranges":[{"shard":"a","max":5},{"shard":"b","min":6}]}}}"#,
                "vindexes.v: there is a gap between ranges[0] and ranges[1], from 5 to 6",
            ),
            (r#"{"vindexes":{"v":{"type":"consistent_hash","virtualNodes":0}}}"#, "vindexes.v: virtualNodes"),
        ] {
            let error = VSchema::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest, "{text}");
            assert!(error.message.contains(expected), "{text}: {}", error.message);
        }
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let text = r#"{"shards":[{"id":"a","metadata":{"weight":"x"}},{"id":"b/c"}],"defaultShard":"z",
            "tables":{"t":{"type":"nix"},"u":{"type":"unsharded","shard":"y"}},"settings":{"shardTimeoutMs":0,"nix":1}}"#;
        let message = VSchema::parse(text).unwrap_err().message;
        for path in [
            "shards[0]",
            "\"b/c\"",
            "defaultShard",
            "tables.t",
            "tables.u.shard",
            "settings.shardTimeoutMs",
            "settings.nix",
        ] {
            assert!(message.contains(path), "{path}: {message}");
        }
    }
}
