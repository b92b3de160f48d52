//! `ALTER LAKE ON table ...`: says what the lake makes of a table, before or after it is made.

use dosql_proto::Error;

use super::alter_vschema::Words;

/// A change of the options of a table's lake tables. What options there are, the lake knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlterLake {
    pub(crate) table: String,
    /// `SET name = value, ...`
    pub(crate) set: Vec<(String, String)>,
    /// `RESET name, ...`
    pub(crate) reset: Vec<String>,
}

impl AlterLake {
    /// Whether a statement that starts with these words, in upper case, is meant to be one.
    pub(crate) fn begins(words: &[String]) -> bool {
        matches!(words, [alter, lake, ..] if alter == "ALTER" && lake == "LAKE")
    }

    /// Reads the statement.
    ///
    /// # Errors
    /// `SYNTAX_ERROR` saying what was expected.
    pub(crate) fn parse(sql: &str) -> Result<Self, Error> {
        let mut words = Words::new(sql)?;
        words.keywords(&["ALTER", "LAKE", "ON"])?;
        let mut statement = Self { table: words.name("a table")?, set: Vec::new(), reset: Vec::new() };
        if words.accept("SET") {
            statement.set = words.pairs("an option")?;
        } else if words.accept("RESET") {
            statement.reset = words.names("an option")?;
        } else {
            return Err(words.expected("SET or RESET"));
        }
        words.end()?;
        Ok(statement)
    }
}

#[cfg(test)]
mod tests {
    use dosql_proto::ErrorCode;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let set =
            AlterLake::parse("alter lake on [my table] set misfits = widen, partition_by='dt(made), bucket(4, id)';");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = AlterLake {
            table: "my table".to_owned(),
            set: vec![pair("misfits", "widen"), pair("partition_by", "dt(made), bucket(4, id)")],
            reset: Vec::new(),
        };
        assert_eq!(set, Ok(expected));
        let reset = AlterLake::parse("ALTER LAKE ON t RESET misfits, sort_by").unwrap();
        assert_eq!((reset.set.len(), reset.reset), (0, vec!["misfits".to_owned(), "sort_by".to_owned()]));
        for (sql, expected) in [
            ("ALTER LAKE t SET a = 1", "ON"),
            ("ALTER LAKE ON t", "SET or RESET"),
            ("ALTER LAKE ON t SET a", "="),
            ("ALTER LAKE ON t SET a = ", "a value"),
            ("ALTER LAKE ON t RESET", "the name of an option"),
            ("ALTER LAKE ON t RESET a b", "the end"),
        ] {
            let error = AlterLake::parse(sql).unwrap_err();
            assert_eq!(error.code(), ErrorCode::SyntaxError, "{sql}");
            assert!(error.message.contains(expected), "{sql}: {}", error.message);
        }
    }
}
