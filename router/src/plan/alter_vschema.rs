//! `ALTER VSCHEMA ...`, in Vitess's syntax: says how tables are sharded, before or after they are made.

use dosql_proto::{Error, ErrorCode};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::tokenizer::{Token, Tokenizer};

use crate::catalog::unsupported;

/// A change of the VSchema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AlterVSchema {
    /// `CREATE VINDEX name USING type [WITH ...]`
    CreateVindex { name: String, using: Using },
    /// `DROP VINDEX name`
    DropVindex { name: String },
    /// `ADD TABLE name [USING unsharded|reference] [WITH shard=...]`
    AddTable { table: String, using: Option<Using> },
    /// `DROP TABLE name`
    DropTable { table: String },
    /// `ON table ADD VINDEX name(column) [USING type [WITH ...]]`
    AddColumnVindex { table: String, vindex: String, column: String, using: Option<Using> },
    /// `ON table DROP VINDEX name`
    DropColumnVindex { table: String, vindex: String },
    /// `ADD SEQUENCE name [WITH start=..., cache=...]`
    AddSequence { name: String, params: Vec<(String, String)> },
    /// `DROP SEQUENCE name`
    DropSequence { name: String },
    /// `ON table ADD AUTO_INCREMENT column USING sequence`
    AddAutoIncrement { table: String, column: String, sequence: String },
    /// `ON table DROP AUTO_INCREMENT`
    DropAutoIncrement { table: String },
}

/// A vindex's type and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Using {
    pub(crate) kind: String,
    pub(crate) params: Vec<(String, String)>,
}

impl AlterVSchema {
    /// Whether a statement that starts with these words, in upper case, is meant to be one.
    pub(crate) fn begins(words: &[String]) -> bool {
        matches!(words, [alter, vschema, ..] if alter == "ALTER" && vschema == "VSCHEMA")
    }

    /// Reads the statement.
    ///
    /// # Errors
    /// `SYNTAX_ERROR` saying what was expected; `UNSUPPORTED` for a vindex of several columns.
    pub(crate) fn parse(sql: &str) -> Result<Self, Error> {
        let mut words = Words::new(sql)?;
        words.keywords(&["ALTER", "VSCHEMA"])?;
        let statement = if words.accept("CREATE") {
            words.keywords(&["VINDEX"])?;
            Self::CreateVindex {
                name: words.name("a vindex")?,
                using: words.using()?.ok_or_else(|| words.expected("USING"))?,
            }
        } else if words.accept("DROP") {
            if words.accept("TABLE") {
                Self::DropTable { table: words.name("a table")? }
            } else if words.accept("SEQUENCE") {
                Self::DropSequence { name: words.name("a sequence")? }
            } else {
                words.keywords(&["VINDEX"])?;
                Self::DropVindex { name: words.name("a vindex")? }
            }
        } else if words.accept("ADD") {
            if words.accept("SEQUENCE") {
                Self::AddSequence { name: words.name("a sequence")?, params: words.with()? }
            } else {
                words.keywords(&["TABLE"])?;
                Self::AddTable { table: words.name("a table")?, using: words.using()? }
            }
        } else if words.accept("ON") {
            let table = words.name("a table")?;
            if words.accept("ADD") {
                if words.accept("AUTO_INCREMENT") {
                    let column = words.name("a column")?;
                    words.keywords(&["USING"])?;
                    let sequence = words.name("a sequence")?;
                    words.end()?;
                    return Ok(Self::AddAutoIncrement { table, column, sequence });
                }
                words.keywords(&["VINDEX"])?;
                let vindex = words.name("a vindex")?;
                let column = words.column()?;
                Self::AddColumnVindex { table, vindex, column, using: words.using()? }
            } else {
                words.keywords(&["DROP"])?;
                if words.accept("AUTO_INCREMENT") {
                    words.end()?;
                    return Ok(Self::DropAutoIncrement { table });
                }
                words.keywords(&["VINDEX"])?;
                Self::DropColumnVindex { table, vindex: words.name("a vindex")? }
            }
        } else {
            return Err(words.expected("CREATE VINDEX, DROP VINDEX, ADD TABLE, DROP TABLE or ON"));
        };
        words.end()?;
        Ok(statement)
    }
}

/// The tokens of a statement, spaces and comments left out.
pub(super) struct Words {
    tokens: Vec<Token>,
    at: usize,
}

impl Words {
    pub(super) fn new(sql: &str) -> Result<Self, Error> {
        let tokens = Tokenizer::new(&SQLiteDialect {}, sql)
            .tokenize()
            .map_err(|error| Error::new(ErrorCode::SyntaxError, error.to_string()))?;
        let mut tokens: Vec<Token> =
            tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
        while tokens.last() == Some(&Token::SemiColon) {
            tokens.pop();
        }
        Ok(Self { tokens, at: 0 })
    }

    pub(super) fn expected(&self, what: &str) -> Error {
        let found = self.tokens.get(self.at).map_or("the end".to_owned(), |token| format!("{:?}", token.to_string()));
        Error::new(ErrorCode::SyntaxError, format!("expected {what}, found {found}"))
    }

    pub(super) fn accept(&mut self, keyword: &str) -> bool {
        let found = matches!(
            self.tokens.get(self.at),
            Some(Token::Word(word)) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(keyword)
        );
        self.at += usize::from(found);
        found
    }

    pub(super) fn keywords(&mut self, keywords: &[&str]) -> Result<(), Error> {
        for keyword in keywords {
            if !self.accept(keyword) {
                return Err(self.expected(keyword));
            }
        }
        Ok(())
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self, of: &str) -> Result<String, Error> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => {
                let name = word.value.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.expected(&format!("the name of {of}"))),
        }
    }

    /// `(column)`.
    fn column(&mut self) -> Result<String, Error> {
        if !self.take(&Token::LParen) {
            return Err(self.expected("("));
        }
        let column = self.name("a column")?;
        if self.tokens.get(self.at) == Some(&Token::Comma) {
            return Err(unsupported("a vindex of several columns is not supported"));
        }
        if !self.take(&Token::RParen) {
            return Err(self.expected(")"));
        }
        Ok(column)
    }

    /// `USING type [WITH name=value, ...]`.
    fn using(&mut self) -> Result<Option<Using>, Error> {
        if !self.accept("USING") {
            return Ok(None);
        }
        let kind = self.name("a vindex's type")?;
        Ok(Some(Using { kind, params: self.with()? }))
    }

    /// `[WITH name=value, ...]`.
    fn with(&mut self) -> Result<Vec<(String, String)>, Error> {
        if self.accept("WITH") { self.pairs("a parameter") } else { Ok(Vec::new()) }
    }

    /// `name=value, ...`.
    pub(super) fn pairs(&mut self, of: &str) -> Result<Vec<(String, String)>, Error> {
        let mut pairs = Vec::new();
        loop {
            let name = self.name(of)?;
            if !self.take(&Token::Eq) {
                return Err(self.expected("="));
            }
            pairs.push((name, self.value()?));
            if !self.take(&Token::Comma) {
                return Ok(pairs);
            }
        }
    }

    /// `name, ...`.
    pub(super) fn names(&mut self, of: &str) -> Result<Vec<String>, Error> {
        let mut names = vec![self.name(of)?];
        while self.take(&Token::Comma) {
            names.push(self.name(of)?);
        }
        Ok(names)
    }

    /// A parameter's value: a string, or words, numbers, dots and minus signs without spaces.
    pub(super) fn value(&mut self) -> Result<String, Error> {
        let value = match self.tokens.get(self.at) {
            Some(Token::SingleQuotedString(text)) => {
                let text = text.clone();
                self.at += 1;
                return Ok(text);
            }
            Some(Token::Word(_) | Token::Number(..)) => {
                let mut text = String::new();
                while let Some(token @ (Token::Word(_) | Token::Number(..) | Token::Minus | Token::Period)) =
                    self.tokens.get(self.at)
                {
                    // `b` of `a, b = 1` and what follows a value are not part of it: no operator joins them.
                    let joins = |token: &Token| matches!(token, Token::Minus | Token::Period);
                    let adjoins = text.is_empty() || joins(token) || self.tokens.get(self.at - 1).is_some_and(joins);
                    if !adjoins {
                        break;
                    }
                    match token {
                        Token::Word(word) => text.push_str(&word.value),
                        other => text.push_str(&other.to_string()),
                    }
                    self.at += 1;
                }
                text
            }
            _ => return Err(self.expected("a value")),
        };
        Ok(value)
    }

    pub(super) fn end(&self) -> Result<(), Error> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(self.expected("the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn using(kind: &str, params: &[(&str, &str)]) -> Using {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Using { kind: kind.to_owned(), params }
    }

    #[test]
    fn every_form_is_read() {
        let owned = str::to_owned;
        let (table, vindex, column) = (owned("my table"), owned("by_a"), owned("a \"b"));
        for (sql, expected) in [
            (
                "alter vschema on \"my table\" add vindex by_a(\"a \"\"b\") using hash;",
                AlterVSchema::AddColumnVindex {
                    table: table.clone(),
                    vindex: vindex.clone(),
                    column: column.clone(),
                    using: Some(using("hash", &[])),
                },
            ),
            (
                "ALTER /* x */ VSCHEMA ON `my table` ADD VINDEX by_a ([a \"b])",
                AlterVSchema::AddColumnVindex { table: table.clone(), vindex: vindex.clone(), column, using: None },
            ),
            (
                "ALTER VSCHEMA CREATE VINDEX by_a USING consistent_hash WITH virtual_nodes=64, note='a, b'",
                AlterVSchema::CreateVindex {
                    name: vindex.clone(),
                    using: using("consistent_hash", &[("virtual_nodes", "64"), ("note", "a, b")]),
                },
            ),
            ("ALTER VSCHEMA DROP VINDEX by_a", AlterVSchema::DropVindex { name: vindex.clone() }),
            (
                "ALTER VSCHEMA ON [my table] DROP VINDEX by_a",
                AlterVSchema::DropColumnVindex { table: table.clone(), vindex },
            ),
            ("ALTER VSCHEMA ADD TABLE [my table]", AlterVSchema::AddTable { table: table.clone(), using: None }),
            (
                "ALTER VSCHEMA ADD TABLE [my table] USING unsharded WITH shard=shard-1",
                AlterVSchema::AddTable {
                    table: table.clone(),
                    using: Some(using("unsharded", &[("shard", "shard-1")])),
                },
            ),
            (
                "ALTER VSCHEMA ADD SEQUENCE ids WITH start = 5",
                AlterVSchema::AddSequence { name: owned("ids"), params: vec![(owned("start"), owned("5"))] },
            ),
            ("ALTER VSCHEMA DROP SEQUENCE ids", AlterVSchema::DropSequence { name: owned("ids") }),
            (
                "ALTER VSCHEMA ON [my table] ADD AUTO_INCREMENT id USING ids",
                AlterVSchema::AddAutoIncrement { table: table.clone(), column: owned("id"), sequence: owned("ids") },
            ),
            (
                "ALTER VSCHEMA ON [my table] DROP AUTO_INCREMENT",
                AlterVSchema::DropAutoIncrement { table: table.clone() },
            ),
            ("ALTER VSCHEMA DROP TABLE [my table]", AlterVSchema::DropTable { table }),
        ] {
            assert_eq!(AlterVSchema::parse(sql).unwrap(), expected, "{sql}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (sql, code, part) in [
            ("ALTER VSCHEMA", ErrorCode::SyntaxError, "the end"),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a, b)", ErrorCode::Unsupported, "several columns"),
            ("ALTER VSCHEMA ON t ADD VINDEX hash", ErrorCode::SyntaxError, "("),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING", ErrorCode::SyntaxError, "type"),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING hash extra", ErrorCode::SyntaxError, "\"extra\""),
            ("ALTER VSCHEMA ON t ADD VINDEX hash(a) USING hash WITH b", ErrorCode::SyntaxError, "="),
            ("ALTER VSCHEMA ON 't", ErrorCode::SyntaxError, ""),
            ("ALTER VSCHEMA CREATE VINDEX v", ErrorCode::SyntaxError, "USING"),
            ("ALTER VSCHEMA ADD VINDEX v", ErrorCode::SyntaxError, "TABLE"),
        ] {
            let error = AlterVSchema::parse(sql).unwrap_err();
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.message.contains(part), "{sql}: {error}");
        }
    }
}
