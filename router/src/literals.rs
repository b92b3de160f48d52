//! Lifting literals out of a statement, so that statements which differ in them alone share one plan.
//!
//! A literal becomes a parameter only where neither the answer nor the plan can tell the difference: as the operand of a
//! comparison, in the list of IN, in a row of VALUES, as LIMIT and OFFSET. Not in a result column (whose name is its text), not
//! after GROUP BY and ORDER BY (where 1 means the first column), not in function arguments and arithmetic (which an index on an
//! expression matches by their text), not beside another literal (which folds), not after LIKE (whose pattern chooses the index).

use std::collections::HashMap;
use std::fmt::Write;

use dosql_proto::Value;

use crate::sql_text::{Token, tokens};

/// Longer statements are left as they are.
const LONGEST_TEXT: usize = 16 << 10;
/// With more literals than this a statement is unlikely to come again with as many.
const MOST_LITERALS: usize = 64;

/// A statement without its literals.
#[derive(Debug, PartialEq)]
pub(crate) struct Lifted {
    /// Its text; all parameters are numbered.
    pub(crate) text: String,
    /// Parameters it had before.
    pub(crate) given: usize,
    /// What follows them.
    pub(crate) values: Vec<Value>,
}

/// What may be done with literals at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Region {
    /// Operands may be lifted.
    Open,
    /// Nothing is lifted here, but clauses that follow may open.
    Closed,
    /// A result column or a term of GROUP BY or ORDER BY: nothing is lifted here, nor in parentheses within.
    Text,
    /// In parentheses within a text.
    Within,
}

/// A pair of parentheses.
#[derive(Debug, Clone, Copy)]
struct Level {
    region: Region,
    /// A list of IN or a row of VALUES, whose elements may be lifted.
    list: bool,
    /// A BETWEEN whose AND has not come.
    between: bool,
    /// Whether the parentheses that closed last on this level were a list.
    after_list: bool,
}

const START: Level = Level { region: Region::Closed, list: false, between: false, after_list: false };

/// The statement without its literals; `None` where none is to be lifted.
pub(crate) fn lift(sql: &str) -> Option<Lifted> {
    const LIFTABLE: [&str; 7] = ["SELECT", "WITH", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"];
    if sql.len() > LONGEST_TEXT {
        return None;
    }
    // Room for short tokens, so that it seldom grows.
    let mut all: Vec<(Token, &str)> = Vec::with_capacity(sql.len() / 2);
    all.extend(tokens(sql));
    let mut significant: Vec<usize> = Vec::with_capacity(all.len());
    significant.extend((0..all.len()).filter(|index| all[*index].0 != Token::Space));
    let (first, word) = all[*significant.first()?];
    if first != Token::Word || !LIFTABLE.iter().any(|known| word.eq_ignore_ascii_case(known)) {
        return None;
    }
    let numbers = numbers(&all);
    let given = numbers.iter().flatten().max().copied().unwrap_or(0);
    let mut text = String::with_capacity(sql.len() + 8);
    let mut lifted: Vec<(&str, Value)> = Vec::new();
    let mut levels = vec![START];
    let mut place = 0;
    for (index, (token, part)) in all.iter().enumerate() {
        if *token == Token::Space {
            text.push_str(part);
            continue;
        }
        let before = &significant[..place];
        let after = significant.get(place + 1).map(|index| all[*index]);
        place += 1;
        if let Some(number) = numbers.get(index).copied().flatten() {
            let _ = write!(text, "?{number}");
            continue;
        }
        let previous = before.last().map(|index| all[*index]);
        match token {
            Token::Symbol if *part == "(" => open(&mut levels, previous),
            Token::Symbol if *part == ")" => {
                let closed = if levels.len() > 1 { levels.pop() } else { None };
                if let Some(level) = levels.last_mut() {
                    level.after_list = closed.is_some_and(|closed| closed.list);
                }
            }
            Token::Word => {
                if let Some(level) = levels.last_mut() {
                    clause(level, part, previous);
                }
            }
            _ => {}
        }
        let level = levels.last().copied().unwrap_or(START);
        let value = (level.region == Region::Open && operand(&all, before, level) && ends(after))
            .then(|| literal(*token, part, index, &all))
            .flatten();
        if let Some(value) = value {
            // Equal literals are one parameter, so that expressions which were equal stay so.
            let number = match lifted.iter().position(|(known, _)| known == part) {
                Some(known) => known,
                None => {
                    lifted.push((part, value));
                    lifted.len() - 1
                }
            };
            if lifted.len() > MOST_LITERALS {
                return None;
            }
            let _ = write!(text, "?{}", given + number + 1);
            if let Some(level) = levels.last_mut()
                && level.between
                && previous.is_some_and(|(_, word)| word.eq_ignore_ascii_case("AND"))
            {
                level.between = false;
            }
        } else {
            text.push_str(part);
        }
    }
    let values: Vec<Value> = lifted.into_iter().map(|(_, value)| value).collect();
    (!values.is_empty()).then_some(Lifted { text, given, values })
}

/// Each token's parameter number, as SQLite counts; nothing where there are no parameters.
fn numbers(all: &[(Token, &str)]) -> Vec<Option<usize>> {
    if all.iter().all(|(token, _)| *token != Token::Parameter) {
        return Vec::new();
    }
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut last = 0;
    all.iter()
        .map(|(token, text)| {
            if *token != Token::Parameter {
                return None;
            }
            let number = match text.strip_prefix('?') {
                Some("") => last + 1,
                Some(digits) => digits.parse().unwrap_or(0),
                None => *names.entry(text).or_insert(last + 1),
            };
            last = last.max(number);
            Some(number)
        })
        .collect()
}

/// Enters parentheses.
fn open(levels: &mut Vec<Level>, previous: Option<(Token, &str)>) {
    const GROUPING: [&str; 22] = [
        "WHERE", "AND", "OR", "NOT", "ON", "IN", "VALUES", "BETWEEN", "WHEN", "THEN", "ELSE", "CASE", "IS", "LIKE",
        "GLOB", "EXISTS", "LIMIT", "OFFSET", "SET", "FROM", "JOIN", "AS",
    ];
    let outer = levels.last().copied().unwrap_or(START);
    let word =
        |text: &str| previous.is_some_and(|(token, word)| token == Token::Word && word.eq_ignore_ascii_case(text));
    let call = previous.is_some_and(|(token, word)| {
        matches!(token, Token::Word | Token::Quoted) && !GROUPING.iter().any(|known| word.eq_ignore_ascii_case(known))
    });
    let list = word("IN") || word("VALUES") || (outer.after_list && previous.is_some_and(|(_, text)| text == ","));
    let region = match outer.region {
        Region::Text | Region::Within => Region::Within,
        Region::Open if !call => Region::Open,
        _ => Region::Closed,
    };
    levels.push(Level { region, list, between: false, after_list: false });
}

/// Notes what a keyword begins.
fn clause(level: &mut Level, word: &str, previous: Option<(Token, &str)>) {
    if level.region == Region::Within || previous.is_some_and(|(_, text)| text == ".") {
        return;
    }
    let is = |words: &[&str]| words.iter().any(|known| word.eq_ignore_ascii_case(known));
    if is(&["SELECT", "RETURNING", "GROUP", "ORDER", "PARTITION", "WINDOW", "HAVING"]) {
        level.region = Region::Text;
        // A subquery, and no list of values.
        level.list = false;
    } else if is(&["FROM", "JOIN", "UNION", "EXCEPT", "INTERSECT", "INTO", "WITH"]) {
        level.region = Region::Closed;
    } else if is(&["WHERE", "ON", "VALUES", "SET", "LIMIT", "OFFSET"]) {
        level.region = Region::Open;
    } else if is(&["AS"]) && level.region == Region::Open {
        level.region = Region::Closed;
    } else if is(&["BETWEEN"]) {
        level.between = true;
    }
}

/// Whether what follows `before` is an operand of the kinds that are lifted.
fn operand(all: &[(Token, &str)], before: &[usize], level: Level) -> bool {
    let at = |back: usize| before.len().checked_sub(back).map(|place| all[before[place]]);
    let Some((token, text)) = at(1) else { return false };
    match token {
        Token::Word => {
            let is = |known: &str| text.eq_ignore_ascii_case(known);
            is("BETWEEN") || is("LIMIT") || is("OFFSET") || (is("AND") && level.between)
        }
        Token::Symbol if matches!(text, "(" | ",") => level.list,
        Token::Symbol if matches!(text, "=" | "<" | ">") => {
            // The operator, and what it compares with: two literals fold.
            let mut back = 1;
            while let Some((Token::Symbol, "=" | "<" | ">" | "!" | "-")) = at(back) {
                back += 1;
            }
            let symbol = |back: usize| at(back).map_or("", |(_, symbol)| symbol);
            let comparison = match back {
                2 => matches!(symbol(1), "=" | "<" | ">"),
                3 => matches!((symbol(2), symbol(1)), ("=" | "<" | ">" | "!", "=") | ("<", ">")),
                _ => false,
            };
            let literal = match at(back) {
                Some((Token::Quoted, text)) => text.starts_with('\''),
                Some((Token::Word, text)) => {
                    text.starts_with(|first: char| first.is_ascii_digit()) || text.eq_ignore_ascii_case("NULL")
                }
                Some(_) => false,
                None => true,
            };
            comparison && !literal
        }
        _ => false,
    }
}

/// Whether an operand may end before this.
fn ends(after: Option<(Token, &str)>) -> bool {
    match after {
        None => true,
        Some((Token::Word, _)) => true,
        Some((Token::Symbol, text)) => matches!(text, ")" | "," | ";"),
        Some(_) => false,
    }
}

/// The value of a token that is a plain integer or a string.
fn literal(token: Token, text: &str, index: usize, all: &[(Token, &str)]) -> Option<Value> {
    match token {
        // With more digits it might be a REAL.
        Token::Word if text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            let point = |neighbour: Option<&(Token, &str)>| neighbour.is_some_and(|(_, text)| *text == ".");
            let part = point(all.get(index + 1)) || index.checked_sub(1).is_some_and(|before| point(all.get(before)));
            if part { None } else { text.parse::<i64>().ok().map(Value::from) }
        }
        Token::Quoted => {
            // x'00' is a blob.
            let blob = index.checked_sub(1).is_some_and(|before| all[before].0 == Token::Word);
            let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
            (!blob).then(|| Value::from(inner.replace("''", "'").as_str()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_lifted_where_nothing_can_tell() {
        for (sql, text) in [
            ("SELECT a FROM t WHERE id = 5", "SELECT a FROM t WHERE id = ?1"),
            ("SELECT ? FROM t WHERE id = 5 AND b = :x", "SELECT ?1 FROM t WHERE id = ?3 AND b = ?2"),
            ("SELECT a FROM t WHERE id IN (1, 'x', 1)", "SELECT a FROM t WHERE id IN (?1, ?2, ?1)"),
            ("SELECT a FROM t WHERE a BETWEEN 1 AND 9 AND 1", "SELECT a FROM t WHERE a BETWEEN ?1 AND ?2 AND 1"),
            ("SELECT 1 FROM t WHERE a >= 2 ORDER BY 1 LIMIT 3", "SELECT 1 FROM t WHERE a >= ?1 ORDER BY 1 LIMIT ?2"),
            ("INSERT INTO t (a, b) VALUES (1, 'it''s'), (2, 3)", "INSERT INTO t (a, b) VALUES (?1, ?2), (?3, ?4)"),
            ("UPDATE t SET a = 5, b = b + 1 WHERE (c = 6)", "UPDATE t SET a = ?1, b = b + 1 WHERE (c = ?2)"),
            (
                "SELECT a FROM t WHERE a IN (SELECT b + 1 FROM u WHERE c = 7 GROUP BY 1)",
                "SELECT a FROM t WHERE a IN (SELECT b + 1 FROM u WHERE c = ?1 GROUP BY 1)",
            ),
            ("SELECT a FROM t WHERE CAST(a AS CHAR(9)) = '1'", "SELECT a FROM t WHERE CAST(a AS CHAR(9)) = ?1"),
        ] {
            assert_eq!(lift(sql).unwrap_or_else(|| panic!("{sql}")).text, text);
        }
        let lifted = lift("SELECT a FROM t WHERE b = ?2 AND c = 'it''s' AND d = 12").unwrap();
        assert_eq!((lifted.given, lifted.values), (2, vec!["it's".into(), 12.into()]));
    }

    #[test]
    fn other_literals_stay() {
        for sql in [
            "SELECT 1, 'x', a = 5 FROM t",
            "SELECT count(*) FILTER (WHERE a = 5) FROM t",
            "SELECT a FROM t GROUP BY 1 HAVING count(*) > 5 ORDER BY 1",
            "SELECT a FROM t WHERE 1 = 0",
            "SELECT a FROM t WHERE 'a' = 'b' OR 1",
            "SELECT a FROM t WHERE a = -5 OR a = 1.5 OR a = 0x10 OR a = x'00' OR a = 1e3",
            "SELECT a FROM t WHERE a + 1 > b AND json_extract(a, '$.x') IS NULL AND a ->> 'x' < b",
            "SELECT a FROM t WHERE a = 1 + b OR a LIKE 'x%'",
            "SELECT a FROM t WHERE a = 1234567890123456789",
            "SELECT * FROM (SELECT a, (SELECT 1 FROM u WHERE b = 5) FROM t)",
            "CREATE TABLE t (a CHECK (a = 5))",
            "PRAGMA table_info('t')",
        ] {
            assert_eq!(lift(sql), None, "{sql}");
        }
    }
}
