//! The type of a column, from all of its values.

/// What a column is declared as, and its fields are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnType {
    Integer,
    Real,
    Text,
}

impl ColumnType {
    pub(super) fn declared(self) -> &'static str {
        match self {
            Self::Integer => "INTEGER",
            Self::Real => "REAL",
            Self::Text => "TEXT",
        }
    }
}

/// What has been seen of a column. An empty field fits every type: it is NULL among numbers, and the empty text in TEXT.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inference {
    integers: bool,
    reals: bool,
    texts: bool,
    /// There are integers that a REAL cannot hold exactly.
    large_integers: bool,
}

/// Above this not every integer is a REAL.
const EXACT_IN_REAL: u64 = 1 << 53;

impl Inference {
    pub(super) fn see(&mut self, field: &[u8]) {
        // Nothing changes the type any more.
        if self.texts || field.is_empty() {
            return;
        }
        if let Some(integer) = integer(field) {
            self.integers = true;
            self.large_integers |= integer.unsigned_abs() > EXACT_IN_REAL;
        } else if real(field).is_some() {
            self.reals = true;
        } else {
            self.texts = true;
        }
    }

    pub(super) fn result(self) -> ColumnType {
        match self {
            Self { texts: true, .. } | Self { reals: true, large_integers: true, .. } => ColumnType::Text,
            Self { reals: true, .. } => ColumnType::Real,
            Self { integers: true, .. } => ColumnType::Integer,
            _ => ColumnType::Text,
        }
    }
}

/// The integer that a field is, written as an integer is printed: without leading zeros, a plus sign or space.
pub(super) fn integer(field: &[u8]) -> Option<i64> {
    let (negative, digits) = match field {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    // Downwards, where there is room for one more.
    let mut value = 0_i64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(digit.into())?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// The number that a field is: digits with a fraction or an exponent, without leading zeros, a plus sign or space.
pub(super) fn real(field: &[u8]) -> Option<f64> {
    let unsigned = field.strip_prefix(b"-").unwrap_or(field);
    match unsigned {
        [b'0', b'0'..=b'9', ..] => return None,
        [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..] => {}
        _ => return None,
    }
    if !unsigned.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'-' | b'+')) {
        return None;
    }
    // An integer beyond 64 bits would lose digits.
    if unsigned.iter().all(u8::is_ascii_digit) && unsigned != b"0" {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok().filter(|real: &f64| real.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inferred(fields: &[&str]) -> ColumnType {
        let mut column = Inference::default();
        for field in fields {
            column.see(field.as_bytes());
        }
        column.result()
    }

    #[test]
    fn integers_are_exact() {
        for text in ["0", "7", "-1", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(integer(text.as_bytes()).map(|integer| integer.to_string()).as_deref(), Some(text));
        }
        for text in ["", "-", "-0", "007", "+1", " 1", "1 ", "9223372036854775808", "1.0", "0x1", "1:", "/1"] {
            assert_eq!(integer(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn types_fit_every_value() {
        assert_eq!(inferred(&["1", "", "-2"]), ColumnType::Integer);
        assert_eq!(inferred(&["1", "2.5", "1e3", "-.5", "-0"]), ColumnType::Real);
        assert_eq!(inferred(&["1", "x"]), ColumnType::Text);
        assert_eq!(inferred(&["1", "007"]), ColumnType::Text);
        assert_eq!(inferred(&["0.5", "00.5"]), ColumnType::Text);
        assert_eq!(inferred(&["inf"]), ColumnType::Text);
        assert_eq!(inferred(&["nan"]), ColumnType::Text);
        assert_eq!(inferred(&["1e999"]), ColumnType::Text);
        assert_eq!(inferred(&["9223372036854775808"]), ColumnType::Text);
        assert_eq!(inferred(&["9223372036854775807", "0.5"]), ColumnType::Text);
        assert_eq!(inferred(&["", ""]), ColumnType::Text);
        assert_eq!(inferred(&[]), ColumnType::Text);
    }
}
