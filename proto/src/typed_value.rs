//! Constructors for typed values.

use crate::v1::{Row, Value, value::Kind};

impl Value {
    /// SQL NULL.
    pub const NULL: Self = Self { kind: None };

    /// TEXT of any bytes: kept as `text` where they are valid UTF-8, else as `raw_text`.
    #[must_use]
    pub fn from_text_bytes(bytes: &[u8]) -> Self {
        Self {
            kind: Some(match std::str::from_utf8(bytes) {
                Ok(text) => Kind::Text(text.to_owned()),
                Err(_) => Kind::RawText(bytes.to_vec()),
            }),
        }
    }

    /// A BLOB.
    #[must_use]
    pub fn blob(bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind: Some(Kind::Blob(bytes.into())) }
    }

    /// Whether this is NULL.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.kind.is_none()
    }
}

impl From<i64> for Value {
    fn from(integer: i64) -> Self {
        Self { kind: Some(Kind::Integer(integer)) }
    }
}

impl From<f64> for Value {
    fn from(real: f64) -> Self {
        Self { kind: Some(Kind::Real(real)) }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self { kind: Some(Kind::Text(text.to_owned())) }
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self { kind: Some(Kind::Text(text)) }
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::NULL, Into::into)
    }
}

impl FromIterator<Value> for Row {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        Self { values: values.into_iter().collect() }
    }
}
