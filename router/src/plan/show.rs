//! `SHOW SHARDS`, `SHOW VSCHEMA ...` and `SHOW LAKE OPTIONS`.

use dosql_proto::{Column, Error};

use super::alter_vschema::Words;

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Show {
    /// `SHOW SHARDS`
    Shards,
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
            return Err(
                words.expected("SHARDS, LAKE OPTIONS, VSCHEMA, VSCHEMA TABLES, VSCHEMA VINDEXES or VSCHEMA KEYSPACES")
            );
        };
        words.end()?;
        Ok(show)
    }

    /// The columns of its rows.
    pub(crate) fn columns(&self) -> Vec<Column> {
        let names: &[&str] = match self {
            Self::Shards => &["name", "region", "weight", "keyspace", "state"],
            Self::VSchema => &["version", "vschema"],
            Self::Tables => &["table", "type", "column", "vindex", "shards"],
            Self::Vindexes { table: None } => &["name", "type", "params"],
            Self::Vindexes { table: Some(_) } => &["column", "name", "type", "params"],
            Self::Keyspaces => &["shard", "from", "to"],
            Self::LakeOptions { .. } => &["table", "option", "value", "is_set"],
        };
        names.iter().map(|name| Column { name: (*name).to_owned(), declared_type: String::new() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::ErrorCode;

    use super::*;

    #[test]
    fn every_form_is_read() {
        for (sql, expected) in [
            ("show shards;", Show::Shards),
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
}
