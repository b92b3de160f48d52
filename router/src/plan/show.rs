//! `SHOW SHARDS`, `SHOW REPLICAS`, `SHOW VSCHEMA ...` and `SHOW LAKE OPTIONS`, and `PROMOTE SHARD`.

use dosql_proto::{Column, Error, Promote};

use super::alter_vschema::Words;

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Show {
    /// `SHOW SHARDS`
    Shards,
    /// `SHOW REPLICAS`: the members of all shards.
    Replicas,
    /// `SHOW VSCHEMA`: the document in force.
    VSchema,
    /// `SHOW VSCHEMA TABLES`
    Tables,
    /// `SHOW VSCHEMA VINDEXES [ON table]`
    Vindexes { table: Option<String> },
    /// `SHOW VSCHEMA KEYSPACES`
    Keyspaces,
    /// `SHOW LAKE OPTIONS [ON table]`
    LakeOptions { table: Option<String> },
}

impl Show {
    /// Reads the statement.
    ///
    /// # Errors
    /// `SYNTAX_ERROR` saying what was expected.
    pub(super) fn parse(sql: &str) -> Result<Self, Error> {
        let mut words = Words::new(sql)?;
        words.keywords(&["SHOW"])?;
        let show = if words.accept("SHARDS") {
            Self::Shards
        } else if words.accept("REPLICAS") {
            Self::Replicas
        } else if words.accept("VSCHEMA") {
            if words.accept("TABLES") {
                Self::Tables
            } else if words.accept("VINDEXES") {
                let of_table = words.accept("ON") || words.accept("FROM");
                Self::Vindexes { table: if of_table { Some(words.name("a table")?) } else { None } }
            } else if words.accept("KEYSPACES") {
                Self::Keyspaces
            } else {
                Self::VSchema
            }
        } else if words.accept("LAKE") {
            words.keywords(&["OPTIONS"])?;
            let of_table = words.accept("ON") || words.accept("FROM");
            Self::LakeOptions { table: if of_table { Some(words.name("a table")?) } else { None } }
        } else {
            return Err(words.expected(
                "SHARDS, REPLICAS, LAKE OPTIONS, VSCHEMA, VSCHEMA TABLES, VSCHEMA VINDEXES or VSCHEMA KEYSPACES",
            ));
        };
        words.end()?;
        Ok(show)
    }

    /// The columns of its rows.
    pub(crate) fn columns(&self) -> Vec<Column> {
        let names: &[&str] = match self {
            Self::Shards => &["name", "region", "weight", "keyspace", "state", "primary", "epoch", "members", "lag_ms"],
            Self::Replicas => {
                &["shard", "member", "role", "state", "region", "purpose", "epoch", "last_lsn", "lag_records", "lag_ms"]
            }
            Self::VSchema => &["version", "vschema"],
            Self::Tables => &["table", "type", "column", "vindex", "shards"],
            Self::Vindexes { table: None } => &["name", "type", "params"],
            Self::Vindexes { table: Some(_) } => &["column", "name", "type", "params"],
            Self::Keyspaces => &["shard", "from", "to"],
            Self::LakeOptions { .. } => &["table", "option", "value", "is_set"],
        };
        columns(names)
    }
}

fn columns(names: &[&str]) -> Vec<Column> {
    names.iter().map(|name| Column { name: (*name).to_owned(), declared_type: String::new() }).collect()
}

/// Reads `PROMOTE SHARD name [TO member]`. Names may be quoted as strings.
///
/// # Errors
/// `SYNTAX_ERROR` saying what was expected.
pub(super) fn promote(sql: &str) -> Result<Promote, Error> {
    let mut words = Words::new(sql)?;
    words.keywords(&["PROMOTE", "SHARD"])?;
    let shard = words.value()?;
    let member = if words.accept("TO") { words.value()? } else { String::new() };
    words.end()?;
    Ok(Promote { shard, member })
}

/// The columns that it answers.
pub(super) fn promoted_columns() -> Vec<Column> {
    columns(&["shard", "primary", "epoch", "lsn"])
}

#[cfg(test)]
mod tests {
    use dosql_proto::ErrorCode;

    use super::*;

    #[test]
    fn every_form_is_read() {
        for (sql, expected) in [
            ("show shards;", Show::Shards),
            ("SHOW REPLICAS", Show::Replicas),
            ("SHOW VSCHEMA", Show::VSchema),
            ("SHOW VSCHEMA TABLES", Show::Tables),
            ("SHOW VSCHEMA VINDEXES", Show::Vindexes { table: None }),
            ("SHOW VSCHEMA VINDEXES ON \"a b\"", Show::Vindexes { table: Some("a b".to_owned()) }),
            ("SHOW /* all */ VSCHEMA KEYSPACES", Show::Keyspaces),
            ("SHOW LAKE OPTIONS", Show::LakeOptions { table: None }),
            ("SHOW LAKE OPTIONS ON t", Show::LakeOptions { table: Some("t".to_owned()) }),
        ] {
            assert_eq!(Show::parse(sql).unwrap(), expected, "{sql}");
        }
        for sql in ["SHOW", "SHOW LAKE", "SHOW TABLES", "SHOW VSCHEMA VINDEXES ON", "SHOW SHARDS x"] {
            assert_eq!(Show::parse(sql).unwrap_err().code(), ErrorCode::SyntaxError, "{sql}");
        }
    }

    #[test]
    fn a_promotion_names_a_shard_and_perhaps_a_member() {
        let read = |sql: &str| promote(sql).map(|promote| (promote.shard, promote.member));
        let names = |shard: &str, member: &str| (shard.to_owned(), member.to_owned());
        assert_eq!(read("promote shard shard-0;"), Ok(names("shard-0", "")));
        assert_eq!(read("PROMOTE SHARD 'eu west' TO 'eu west-r2'"), Ok(names("eu west", "eu west-r2")));
        assert_eq!(read("PROMOTE SHARD shard-10 TO shard-10-r1"), Ok(names("shard-10", "shard-10-r1")));
        for sql in ["PROMOTE", "PROMOTE SHARD", "PROMOTE SHARD a b", "PROMOTE SHARD a TO"] {
            assert_eq!(promote(sql).unwrap_err().code(), ErrorCode::SyntaxError, "{sql}");
        }
    }
}
