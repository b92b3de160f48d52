//! Values and rows.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;

use crate::v1::value::Kind;
use crate::v1::{Error, ErrorCode, Row, Value};

/// A value as it is written in JSON.
#[derive(Debug, Clone, Copy)]
pub struct JsonValue<'a>(pub &'a Value);

/// A row as it is written in JSON: an array of values.
#[derive(Debug, Clone, Copy)]
pub struct JsonRow<'a>(pub &'a Row);

impl Serialize for JsonValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.kind {
            None => serializer.serialize_unit(),
            Some(Kind::Integer(integer)) => serializer.serialize_i64(*integer),
            Some(Kind::Real(real)) if real.is_finite() => serializer.serialize_f64(*real),
            Some(Kind::Real(real)) => one_field(serializer, "real", name_of_special(*real)),
            Some(Kind::Text(text)) => serializer.serialize_str(text),
            Some(Kind::Blob(bytes)) => one_field(serializer, "base64", &STANDARD.encode(bytes)),
            Some(Kind::RawText(bytes)) => one_field(serializer, "text_base64", &STANDARD.encode(bytes)),
        }
    }
}

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = serializer.serialize_seq(Some(self.0.values.len()))?;
        for value in &self.0.values {
            values.serialize_element(&JsonValue(value))?;
        }
        values.end()
    }
}

fn one_field<S: Serializer>(serializer: S, name: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(name, text)?;
    map.end()
}

fn name_of_special(real: f64) -> &'static str {
    if real.is_nan() {
        "NaN"
    } else if real > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// Reads a value from JSON. `true` and `false` are the integers 1 and 0, as in SQL; an integer too large for 64 bits is a
/// REAL, as SQLite reads such a literal.
///
/// # Errors
/// `INVALID_REQUEST` for an array, an object of no known form, or bad base64.
pub fn value_from_json(json: &RawValue) -> Result<Value, Error> {
    let text = json.get();
    let unreadable = |error: &dyn std::fmt::Display| Error::invalid(format!("{text} cannot be read: {error}"));
    let kind = match text.as_bytes().first() {
        Some(b'n') => return Ok(Value::NULL),
        Some(b't') => Kind::Integer(1),
        Some(b'f') => Kind::Integer(0),
        Some(b'"') => Kind::Text(serde_json::from_str(text).map_err(|error| unreadable(&error))?),
        Some(b'[') => return Err(Error::invalid("a value cannot be a JSON array")),
        Some(b'{') => {
            let fields: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| unknown_object())?;
            match fields.first_key_value() {
                Some((name, text)) if fields.len() == 1 => special_value(name, text)?,
                _ => return Err(unknown_object()),
            }
        }
        // Not through serde_json's own f64, whose last bit may be off.
        _ => match text.parse() {
            Ok(integer) => Kind::Integer(integer),
            Err(_) => Kind::Real(text.parse().map_err(|error: std::num::ParseFloatError| unreadable(&error))?),
        },
    };
    Ok(Value { kind: Some(kind) })
}

fn special_value(name: &str, text: &str) -> Result<Kind, Error> {
    let decode = || {
        STANDARD
            .decode(text)
            .map_err(|error| Error::new(ErrorCode::InvalidRequest, format!("{name:?} holds no valid base64: {error}")))
    };
    match name {
        "base64" => Ok(Kind::Blob(decode()?)),
        "text_base64" => Ok(Value::from_text_bytes(&decode()?).kind.unwrap_or_else(|| Kind::Text(String::new()))),
        "real" => match text {
            "Infinity" => Ok(Kind::Real(f64::INFINITY)),
            "-Infinity" => Ok(Kind::Real(f64::NEG_INFINITY)),
            "NaN" => Ok(Kind::Real(f64::NAN)),
            _ => Err(Error::invalid(format!("{text:?} is not one of \"Infinity\", \"-Infinity\" and \"NaN\""))),
        },
        _ => Err(unknown_object()),
    }
}

fn unknown_object() -> Error {
    Error::invalid(
        "a value that is a JSON object must be {\"base64\": \"...\"}, {\"text_base64\": \"...\"} or {\"real\": \"Infinity\"}",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(value: &Value) -> (String, Value) {
        let text = serde_json::to_string(&JsonValue(value)).unwrap();
        let back = value_from_json(serde_json::from_str(&text).unwrap()).unwrap();
        (text, back)
    }

    #[test]
    fn every_value_survives() {
        let raw = Value { kind: Some(Kind::RawText(vec![0x61, 0xff])) };
        for (value, expected) in [
            (Value::NULL, "null"),
            (Value::from(i64::MAX), "9223372036854775807"),
            (Value::from(i64::MIN), "-9223372036854775808"),
            (Value::from(9_007_199_254_740_993_i64), "9007199254740993"),
            (Value::from(1.0), "1.0"),
            (Value::from(-0.0), "-0.0"),
            (Value::from(0.1), "0.1"),
            (Value::from(1e300), "1e+300"),
            (Value::from(1e17), "1e+17"),
            (Value::from(5e-324), "5e-324"),
            (Value::from(f64::INFINITY), r#"{"real":"Infinity"}"#),
            (Value::from(f64::NEG_INFINITY), r#"{"real":"-Infinity"}"#),
            (Value::from("a\0\u{1F600}\""), "\"a\\u0000\u{1F600}\\\"\""),
            (Value::blob([0, 255]), r#"{"base64":"AP8="}"#),
            (raw, r#"{"text_base64":"Yf8="}"#),
        ] {
            let (text, back) = there_and_back(&value);
            assert_eq!(text, expected);
            assert_eq!(back, value, "{text}");
        }
    }

    #[test]
    fn reals_keep_every_bit() {
        for real in
            [f64::MAX, f64::MIN_POSITIVE, 1.0 / 3.0, 123_456_789.123_456_79, 9_007_199_254_740_993.0, 2f64.powi(80)]
        {
            let (text, back) = there_and_back(&Value::from(real));
            assert_eq!(back, Value::from(real), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in ["[]", "{}", r#"{"base64":1}"#, r#"{"base64":"?"}"#, r#"{"real":"1"}"#, r#"{"base64":"","x":1}"#] {
            let error = value_from_json(serde_json::from_str(text).unwrap()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest, "{text}");
        }
    }

    #[test]
    fn a_number_beyond_64_bits_is_a_real() {
        assert_eq!(
            value_from_json(serde_json::from_str("9223372036854775808").unwrap()).unwrap(),
            Value::from(9_223_372_036_854_775_808.0)
        );
    }
}
