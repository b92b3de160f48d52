//! SQLite's order of values.

use std::cmp::Ordering;

use dosql_proto::{Value, value::Kind};

/// How SQLite orders two stored values: NULL, numbers, text as `text` orders its bytes, blobs.
#[must_use]
pub fn compare(left: &Value, right: &Value, text: impl Fn(&[u8], &[u8]) -> Ordering) -> Ordering {
    let class = |value: &Value| match &value.kind {
        None => 0,
        Some(Kind::Integer(_) | Kind::Real(_)) => 1,
        Some(Kind::Text(_) | Kind::RawText(_)) => 2,
        Some(Kind::Blob(_)) => 3,
    };
    match (&left.kind, &right.kind) {
        (Some(Kind::Integer(left)), Some(Kind::Integer(right))) => left.cmp(right),
        (Some(Kind::Real(left)), Some(Kind::Real(right))) => left.partial_cmp(right).unwrap_or(Ordering::Equal),
        (Some(Kind::Integer(left)), Some(Kind::Real(right))) => integer_and_real(*left, *right),
        (Some(Kind::Real(left)), Some(Kind::Integer(right))) => integer_and_real(*right, *left).reverse(),
        (Some(Kind::Blob(left)), Some(Kind::Blob(right))) => left.cmp(right),
        _ => match (text_of(left), text_of(right)) {
            (Some(left), Some(right)) => text(left, right),
            _ => class(left).cmp(&class(right)),
        },
    }
}

fn text_of(value: &Value) -> Option<&[u8]> {
    match &value.kind {
        Some(Kind::Text(text)) => Some(text.as_bytes()),
        Some(Kind::RawText(text)) => Some(text),
        _ => None,
    }
}

/// Exact, where a cast of the integer would round.
fn integer_and_real(integer: i64, real: f64) -> Ordering {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if real >= LIMIT {
        return Ordering::Less;
    }
    if real < -LIMIT {
        return Ordering::Greater;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
    let whole = real.trunc() as i64;
    integer.cmp(&whole).then_with(|| 0.0.partial_cmp(&real.fract()).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytewise(left: &Value, right: &Value) -> Ordering {
        compare(left, right, <[u8]>::cmp)
    }

    #[test]
    fn values_are_ordered_as_sqlite_orders_them() {
        let raw = Value { kind: Some(Kind::RawText(vec![0xff])) };
        let ascending = [
            Value::NULL,
            f64::NEG_INFINITY.into(),
            i64::MIN.into(),
            Value::from(-2),
            Value::from(-1.5),
            Value::from(-1),
            Value::from(0),
            Value::from(0.5),
            Value::from(1),
            Value::from(9_007_199_254_740_992.0),
            Value::from(9_007_199_254_740_993_i64),
            i64::MAX.into(),
            Value::from(9.3e18),
            "".into(),
            "A".into(),
            "a".into(),
            "ab".into(),
            raw,
            Value::blob([]),
            Value::blob([0]),
        ];
        for (left_at, left) in ascending.iter().enumerate() {
            for (right_at, right) in ascending.iter().enumerate() {
                assert_eq!(bytewise(left, right), left_at.cmp(&right_at), "{left:?} {right:?}");
            }
        }
        assert_eq!(bytewise(&Value::from(1), &Value::from(1.0)), Ordering::Equal);
    }
}
