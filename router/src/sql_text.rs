//! SQL as text: where its tokens are, without parsing it. Numbers its parameters, finds its first keyword and its end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

pub(crate) use dosql_actors::sql_name::quote;
use dosql_proto::Value;

/// A piece of SQL text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Spaces and comments.
    Space,
    /// A keyword, a name without quotes, or a number.
    Word,
    /// `?`, `?N`, `:name`, `@name`, `$name`.
    Parameter,
    /// A string, blob literal or quoted name.
    Quoted,
    /// Anything else, one character at a time.
    Symbol,
}

/// Splits SQL as SQLite's tokenizer does, as far as the router cares.
pub(crate) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (Token, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.text[self.at..];
        let bytes = rest.as_bytes();
        let first = *bytes.first()?;
        let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'$' || *byte >= 0x80;
        let (token, length) = match first {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0c => (Token::Space, run(bytes, 1, u8::is_ascii_whitespace)),
            b'-' if bytes.get(1) == Some(&b'-') => (Token::Space, run(bytes, 2, |byte| *byte != b'\n')),
            b'/' if bytes.get(1) == Some(&b'*') => {
                (Token::Space, rest[2..].find("*/").map_or(rest.len(), |end| end + 4))
            }
            b'\'' | b'"' | b'`' => (Token::Quoted, quoted(bytes, first)),
            b'[' => (Token::Quoted, rest.find(']').map_or(rest.len(), |end| end + 1)),
            b'?' => (Token::Parameter, run(bytes, 1, u8::is_ascii_digit)),
            b':' | b'@' | b'$' | b'#' if bytes.get(1).is_some_and(word) => (Token::Parameter, run(bytes, 1, word)),
            _ if word(&first) => (Token::Word, run(bytes, 1, word)),
            _ => (Token::Symbol, 1),
        };
        self.at += length;
        Some((token, &rest[..length]))
    }
}

/// Where the bytes from `from` on are first not such.
fn run(bytes: &[u8], from: usize, are_such: impl Fn(&u8) -> bool) -> usize {
    bytes[from..].iter().position(|byte| !are_such(byte)).map_or(bytes.len(), |length| from + length)
}

fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == quote) {
        at += found + 1;
        if bytes.get(at) != Some(&quote) {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

pub(crate) fn tokens(text: &str) -> Tokens<'_> {
    Tokens { text, at: 0 }
}

/// The first `count` keywords or names, in upper case.
pub(crate) fn leading_words(sql: &str, count: usize) -> Vec<String> {
    tokens(sql)
        .filter(|(token, _)| *token != Token::Space)
        .take(count)
        .map_while(|(token, text)| (token == Token::Word).then(|| text.to_ascii_uppercase()))
        .collect()
}

/// The names and words after the first `count` words, without quotes.
pub(crate) fn names_after(sql: &str, count: usize) -> Vec<String> {
    tokens(sql)
        .filter(|(token, _)| matches!(token, Token::Word | Token::Quoted))
        .skip(count)
        .map(|(token, text)| match token {
            Token::Quoted => text.get(1..text.len().saturating_sub(1)).unwrap_or_default().to_owned(),
            _ => text.to_owned(),
        })
        .collect()
}

/// What follows the first `count` keywords.
pub(crate) fn after_words(sql: &str, count: usize) -> &str {
    let mut left = count;
    let mut at = 0;
    for (token, text) in tokens(sql) {
        if left == 0 {
            break;
        }
        at += text.len();
        if token != Token::Space {
            left -= 1;
        }
    }
    &sql[at..]
}

/// The SELECT of CREATE TABLE ... AS SELECT.
pub(crate) fn as_select(sql: &str) -> Option<&str> {
    let mut at = 0;
    for (token, text) in tokens(sql) {
        at += text.len();
        if token == Token::Word && text.eq_ignore_ascii_case("AS") {
            return Some(sql[at..].trim());
        }
    }
    None
}

/// The statement without INDEXED BY and NOT INDEXED.
pub(crate) fn without_index_hints(sql: &str) -> Cow<'_, str> {
    if !has_word(sql, |word| word.eq_ignore_ascii_case("INDEXED")) {
        return Cow::Borrowed(sql);
    }
    let parts: Vec<(Token, &str)> = tokens(sql).collect();
    let significant = |from: usize| (from..parts.len()).find(|place| parts[*place].0 != Token::Space);
    let is = |place: Option<usize>, word: &str| place.is_some_and(|place| parts[place].1.eq_ignore_ascii_case(word));
    let mut kept = String::with_capacity(sql.len());
    let mut place = 0;
    while place < parts.len() {
        let next = significant(place + 1);
        let after = next.and_then(|next| significant(next + 1));
        if is(Some(place), "NOT") && is(next, "INDEXED") {
            place = next.map_or(parts.len(), |next| next + 1);
        } else if is(Some(place), "INDEXED") && is(next, "BY") {
            place = after.map_or(parts.len(), |after| after + 1);
        } else {
            kept.push_str(parts[place].1);
            place += 1;
        }
    }
    Cow::Owned(kept)
}

/// Whether a word without quotes occurs (ASCII case does not matter).
pub(crate) fn has_word(sql: &str, accept: impl Fn(&str) -> bool) -> bool {
    tokens(sql).any(|(token, text)| token == Token::Word && accept(text))
}

/// Whether a name occurs, quoted or not (ASCII case does not matter).
pub(crate) fn has_name(sql: &str, name: &str) -> bool {
    tokens(sql).any(|(token, text)| match token {
        Token::Word => text.eq_ignore_ascii_case(name),
        Token::Quoted => {
            let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
            inner.replace("\"\"", "\"").eq_ignore_ascii_case(name)
        }
        _ => false,
    })
}

/// Writes every parameter as `?N`, N as SQLite numbers it.
pub(crate) fn number_parameters(sql: &str) -> String {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut last = 0;
    let mut numbered = String::with_capacity(sql.len() + 8);
    for (token, text) in tokens(sql) {
        if token != Token::Parameter {
            numbered.push_str(text);
            continue;
        }
        let number = match text.strip_prefix('?') {
            Some("") => last + 1,
            Some(digits) => digits.parse().unwrap_or(0),
            None => *names.entry(text).or_insert(last + 1),
        };
        last = last.max(number);
        let _ = write!(numbered, "?{number}");
    }
    numbered
}

/// Renumbers `?N` parameters without gaps, and takes along the values that are still used.
pub(crate) fn compact_parameters(sql: &str, params: &[Value]) -> (String, Vec<Value>) {
    let mut used: HashMap<usize, usize> = HashMap::new();
    let mut values = Vec::new();
    let mut compact = String::with_capacity(sql.len());
    for (token, text) in tokens(sql) {
        let number = match text.strip_prefix('?') {
            Some(digits) if token == Token::Parameter => digits.parse::<usize>().unwrap_or(0),
            _ => {
                compact.push_str(text);
                continue;
            }
        };
        let place = *used.entry(number).or_insert_with(|| {
            values.push(number.checked_sub(1).and_then(|index| params.get(index)).cloned().unwrap_or_default());
            values.len()
        });
        let _ = write!(compact, "?{place}");
    }
    (compact, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_as_sqlite_does() {
        assert_eq!(
            number_parameters("SELECT ?, '?', ?5, :a, ?, :a -- ?\n, \"?\" /* ? */, @b, [?]"),
            "SELECT ?1, '?', ?5, ?6, ?7, ?6 -- ?\n, \"?\" /* ? */, ?8, [?]"
        );
    }

    #[test]
    fn unused_parameters_are_dropped() {
        let (sql, params) = compact_parameters("SELECT ?3, ?2, ?3, '?1'", &[1.into(), 2.into(), 3.into()]);
        assert_eq!(sql, "SELECT ?1, ?2, ?1, '?1'");
        assert_eq!(params, vec![3.into(), 2.into()]);
    }

    #[test]
    fn index_hints_are_dropped() {
        assert_eq!(
            without_index_hints("SELECT 1 FROM t NOT INDEXED, u indexed by i WHERE NOT x"),
            "SELECT 1 FROM t , u  WHERE NOT x"
        );
        assert_eq!(without_index_hints("SELECT 'INDEXED BY x'"), "SELECT 'INDEXED BY x'");
    }

    #[test]
    fn keywords_are_found_behind_comments() {
        assert_eq!(leading_words("/* a */ Begin -- b\n immediate;", 2), ["BEGIN", "IMMEDIATE"]);
        assert_eq!(after_words("explain  select 1", 1).trim(), "select 1");
    }
}
