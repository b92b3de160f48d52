//! What SQLite makes of a value that is stored into a column or compared with it, so that a key is hashed as it is stored.

use std::borrow::Cow;

use dosql_actors::sql_value;
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
    fn name(self) -> &'static str {
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

    /// What a column of this affinity stores when given `value`. Integers given to a REAL column stay integers here: they
    /// compare equal to what is stored.
    ///
    /// # Errors
    /// `STORAGE` where SQLite fails.
    pub(crate) fn store<'a>(&self, value: &'a Value, affinity: Affinity) -> Result<Cow<'a, Value>, Error> {
        match (affinity, &value.kind) {
            (Affinity::Blob, _)
            | (_, None | Some(Kind::Blob(_)))
            | (Affinity::Text, Some(Kind::Text(_) | Kind::RawText(_)))
            | (Affinity::Numeric | Affinity::Real, Some(Kind::Integer(_) | Kind::Real(_))) => Ok(Cow::Borrowed(value)),
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
