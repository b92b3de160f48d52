//! `ALTER VSCHEMA ON table ADD VINDEX hash(column) [USING hash]`: says how a table that is yet to be created is sharded. The
//! syntax is Vitess's.

use dosql_proto::{Error, ErrorCode};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::tokenizer::{Token, Tokenizer};

use crate::catalog::unsupported;

/// A vindex for a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddVindex {
    pub(crate) table: String,
    pub(crate) column: String,
}

impl AddVindex {
    /// Whether a statement that starts with these words, in upper case, is meant to be one.
    pub(super) fn begins(words: &[String]) -> bool {
        matches!(words, [alter, vschema, ..] if alter == "ALTER" && vschema == "VSCHEMA")
    }

    /// Reads the statement.
    ///
    /// # Errors
    /// `SYNTAX_ERROR`; `UNSUPPORTED` naming a vindex other than `hash`.
    pub(super) fn parse(sql: &str) -> Result<Self, Error> {
        let tokens = Tokenizer::new(&SQLiteDialect {}, sql)
            .tokenize()
            .map_err(|error| Error::new(ErrorCode::SyntaxError, error.to_string()))?;
        let mut tokens: Vec<Token> =
            tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::SemiColon)).collect();
        let using = match tokens.as_slice() {
            [.., using, Token::Word(kind)] if is(using, "USING") => Some(kind.value.clone()),
            _ => None,
        };
        if using.is_some() {
            tokens.truncate(tokens.len() - 2);
        }
        let [
            alter,
            vschema,
            on,
            Token::Word(table),
            add,
            vindex,
            Token::Word(name),
            Token::LParen,
            Token::Word(column),
            Token::RParen,
        ] = tokens.as_slice()
        else {
            return Err(malformed());
        };
        let keywords = [(alter, "ALTER"), (vschema, "VSCHEMA"), (on, "ON"), (add, "ADD"), (vindex, "VINDEX")];
        if !keywords.iter().all(|(token, keyword)| is(token, keyword)) {
            return Err(malformed());
        }
        let kind = using.as_ref().unwrap_or(&name.value);
        if !kind.eq_ignore_ascii_case("hash") {
            return Err(unsupported(format!("the vindex {kind} is not supported; use hash")));
        }
        Ok(Self { table: table.value.clone(), column: column.value.clone() })
    }
}

fn is(token: &Token, keyword: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(keyword))
}

fn malformed() -> Error {
    Error::new(ErrorCode::SyntaxError, "expected ALTER VSCHEMA ON table ADD VINDEX hash(column) USING hash")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vindex_is_read() {
        for sql in [
            "alter vschema on \"my table\" add vindex hash(\"a \"\"b\") using hash;",
            "ALTER VSCHEMA ON [my table] ADD VINDEX hash (\"a \"\"b\")",
            "ALTER /* x */ VSCHEMA ON `my table` ADD VINDEX by_a(\"a \"\"b\") USING Hash",
        ] {
            let expected = AddVindex { table: "my table".to_owned(), column: "a \"b".to_owned() };
            assert_eq!(AddVindex::parse(sql).unwrap(), expected, "{sql}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (sql, code) in [
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a, b)", ErrorCode::SyntaxError),
            ("ALTER VSCHEMA ON t DROP VINDEX hash", ErrorCode::SyntaxError),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING", ErrorCode::SyntaxError),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING hash extra", ErrorCode::SyntaxError),
            ("ALTER VSCHEMA ON 't", ErrorCode::SyntaxError),
            ("ALTER VSCHEMA ON t ADD VINDEX lookup(a)", ErrorCode::Unsupported),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING numeric", ErrorCode::Unsupported),
        ] {
            assert_eq!(AddVindex::parse(sql).unwrap_err().code(), code, "{sql}");
        }
    }
}
