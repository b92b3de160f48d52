//! What SQLite makes of a value that is stored into a column or compared with it, so that a key is hashed as it is stored.

use std::borrow::Cow;
use std::cmp::Ordering;

use dosql_actors::{sql_order, sql_value};
use dosql_proto::{Error, Value, value::Kind};
use rusqlite::Connection;

/// A column's type affinity, by SQLite's rules for declared types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// BLOB or none: values stay as they are.
    Blob,
    /// TEXT.
    Text,
    /// INTEGER and NUMERIC, which store alike.
    Numeric,
    /// REAL.
    Real,
}

impl Affinity {
    /// The affinity of a declared type. In a STRICT table, ANY keeps values as they are.
    #[must_use]
    pub fn of(declared_type: &str, strict: bool) -> Self {
        let upper = declared_type.to_ascii_uppercase();
        let has = |part: &str| upper.contains(part);
        if has("INT") {
            Self::Numeric
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || upper.is_empty() || (strict && upper == "ANY") {
            Self::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// A declared type of this affinity.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blob => "BLOB",
            Self::Text => "TEXT",
            Self::Numeric => "NUMERIC",
            Self::Real => "REAL",
        }
    }
}

/// The built-in collating sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collation {
    /// `BINARY`.
    Binary,
    /// `NOCASE`: ASCII letters compare without case.
    NoCase,
    /// `RTRIM`: trailing spaces do not count.
    RightTrim,
}

impl Collation {
    /// By its SQL name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name.eq_ignore_ascii_case("NOCASE") {
            Self::NoCase
        } else if name.eq_ignore_ascii_case("RTRIM") {
            Self::RightTrim
        } else {
            Self::Binary
        }
    }

    /// How SQLite orders two stored values: NULL, numbers, text by this collation, blobs.
    #[must_use]
    pub fn compare(self, left: &Value, right: &Value) -> Ordering {
        sql_order::compare(left, right, |left, right| self.compare_text(left, right))
    }

    fn compare_text(self, left: &[u8], right: &[u8]) -> Ordering {
        match self {
            Self::Binary => left.cmp(right),
            Self::NoCase => {
                for (left_byte, right_byte) in left.iter().zip(right) {
                    let (a, b) = (left_byte.to_ascii_lowercase(), right_byte.to_ascii_lowercase());
                    // As in SQLite, what follows a NUL in both counts by its length alone.
                    if a != b || a == 0 {
                        return a.cmp(&b).then_with(|| left.len().cmp(&right.len()));
                    }
                }
                left.len().cmp(&right.len())
            }
            Self::RightTrim => without_spaces(left).cmp(without_spaces(right)),
        }
    }

    /// By its SQL name, where it is a built-in one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Binary, Self::NoCase, Self::RightTrim].into_iter().find(|known| known.name().eq_ignore_ascii_case(name))
    }

    /// Its SQL name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "BINARY",
            Self::NoCase => "NOCASE",
            Self::RightTrim => "RTRIM",
        }
    }
}

/// Text as `RTRIM` sees it.
pub(crate) fn without_spaces(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &text[..end]
}

/// Applies affinities. The cases that need no thought are decided here, the others by SQLite.
pub(crate) struct Converter {
    scratch: Connection,
}

impl Converter {
    /// A converter on an empty scratch database.
    ///
    /// # Errors
    /// `STORAGE` where its tables cannot be made.
    pub(crate) fn new(scratch: Connection) -> Result<Self, Error> {
        for affinity in [Affinity::Blob, Affinity::Text, Affinity::Numeric, Affinity::Real] {
            let name = affinity.name();
            scratch
                .execute_batch(&format!("CREATE TABLE as_{name} (value {name}); INSERT INTO as_{name} VALUES (NULL);"))
                .map_err(sql_value::sql_error)?;
        }
        Ok(Self { scratch })
    }

    /// What a column of this affinity stores when given `value`.
    ///
    /// # Errors
    /// `STORAGE` where SQLite fails.
    pub(crate) fn store<'a>(&self, value: &'a Value, affinity: Affinity) -> Result<Cow<'a, Value>, Error> {
        match (affinity, &value.kind) {
            (Affinity::Blob, _)
            | (_, None | Some(Kind::Blob(_)))
            | (Affinity::Text, Some(Kind::Text(_) | Kind::RawText(_)))
            | (Affinity::Numeric, Some(Kind::Integer(_) | Kind::Real(_)))
            | (Affinity::Real, Some(Kind::Real(_))) => Ok(Cow::Borrowed(value)),
            // Integers of more than 53 bits become others.
            (Affinity::Real, Some(Kind::Integer(integer))) => Ok(Cow::Owned((*integer as f64).into())),
            (Affinity::Text, Some(Kind::Integer(integer))) => Ok(Cow::Owned(integer.to_string().into())),
            _ => self.ask(value, affinity).map(Cow::Owned).map_err(sql_value::sql_error),
        }
    }

    fn ask(&self, value: &Value, affinity: Affinity) -> rusqlite::Result<Value> {
        let name = affinity.name();
        self.scratch.prepare_cached(&format!("UPDATE as_{name} SET value = ?1"))?.execute([sql_value::Param(value)])?;
        self.scratch
            .prepare_cached(&format!("SELECT value FROM as_{name}"))?
            .query_row([], |row| Ok(sql_value::to_value(row.get_ref(0)?)))
    }

    /// Evaluates a constant expression with the statement's parameters.
    ///
    /// # Errors
    /// What SQLite says.
    pub(crate) fn evaluate(&self, expression: &str, params: &[Value]) -> Result<Value, Error> {
        let run = || -> rusqlite::Result<Value> {
            let mut statement = self.scratch.prepare(&format!("SELECT {expression}"))?;
            for (index, value) in params.iter().take(statement.parameter_count()).enumerate() {
                statement.raw_bind_parameter(index + 1, sql_value::Param(value))?;
            }
            let mut rows = statement.raw_query();
            match rows.next()? {
                Some(row) => Ok(sql_value::to_value(row.get_ref(0)?)),
                None => Ok(Value::NULL),
            }
        };
        run().map_err(sql_value::sql_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
    fn values_are_ordered_as_in_sqlite() {
        let scratch = Connection::open_in_memory().unwrap();
        let big = 9_007_199_254_740_993_i64;
        let values: Vec<Value> = vec![
            Value::NULL,
            i64::MIN.into(),
            (-9.3e18).into(),
            (-1).into(),
            (-0.5).into(),
            0.into(),
            0.5.into(),
            1.into(),
            1.0.into(),
            big.into(),
            (big as f64).into(),
            i64::MAX.into(),
            9.3e18.into(),
            "".into(),
            "2025-01-01".into(),
            "A".into(),
            "a".into(),
            "a  ".into(),
            "a\0b".into(),
            "A\0aa".into(),
            "B".into(),
            "\u{e9}".into(),
            Value { kind: Some(Kind::RawText(vec![0xff, 0x41])) },
            Value { kind: Some(Kind::Blob(vec![0x41])) },
        ];
        for collation in [Collation::Binary, Collation::NoCase, Collation::RightTrim] {
            let sql = format!(
                "SELECT CASE WHEN ?1 IS NULL OR ?2 IS NULL THEN (?1 IS NOT NULL) - (?2 IS NOT NULL) ELSE (?1 > ?2 COLLATE {0}) - (?1 < ?2 COLLATE {0}) END",
                collation.name()
            );
            let mut statement = scratch.prepare(&sql).unwrap();
            for left in &values {
                for right in &values {
                    let expected: i64 = statement
                        .query_row([sql_value::Param(left), sql_value::Param(right)], |row| row.get(0))
                        .unwrap();
                    assert_eq!(collation.compare(left, right) as i64, expected, "{left:?} {right:?} {collation:?}");
                }
            }
        }
    }
}
