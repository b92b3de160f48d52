//! One value of a row, where it lies.

use dosql_proto::value::Kind;

/// A value that is not NULL.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'a> {
    Integer(i64),
    Real(f64),
    Text(&'a str),
    /// Text that is not UTF-8.
    RawText(&'a [u8]),
    Blob(&'a [u8]),
}

impl<'a> From<&'a Kind> for Cell<'a> {
    fn from(kind: &'a Kind) -> Self {
        match kind {
            Kind::Integer(integer) => Self::Integer(*integer),
            Kind::Real(real) => Self::Real(*real),
            Kind::Text(text) => Self::Text(text),
            Kind::RawText(bytes) => Self::RawText(bytes),
            Kind::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

impl Cell<'_> {
    /// A text or a finite number as SQL writes it; of anything else nothing.
    pub(crate) fn in_sql(self) -> String {
        match self {
            Self::Text(text) => text.to_owned(),
            Self::Integer(integer) => integer.to_string(),
            Self::Real(real) => format!("{real:?}"),
            Self::RawText(_) | Self::Blob(_) => String::new(),
        }
    }

    /// As a message tells it.
    pub(crate) fn in_short(self) -> String {
        match self {
            Self::Integer(integer) => format!("the integer {integer}"),
            Self::Real(real) => format!("the real {real:?}"),
            Self::Text(text) => {
                let short: String = text.chars().take(40).collect();
                format!("the text {short:?}{}", if short.len() < text.len() { "..." } else { "" })
            }
            Self::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
            Self::RawText(bytes) => format!("{} bytes of text that is not UTF-8", bytes.len()),
        }
    }
}
