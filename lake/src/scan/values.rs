//! Columns back into SQLite's values.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use dosql_proto::value::Kind;
use dosql_proto::{LakeAffinity, Row, Value};
use serde_json::value::RawValue;

use super::{ScanColumn, TableScan};
use crate::LakeError;
use crate::columns::ColumnType;

/// The values of a batch's columns, by row.
pub struct Values<'a> {
    columns: Vec<Option<Column<'a>>>,
    /// By column, where its values stand that it does not hold.
    variants: Vec<Vec<Column<'a>>>,
    names: Vec<&'a str>,
    misfit: Option<&'a ArrayRef>,
    rows: usize,
}

struct Column<'a> {
    array: &'a ArrayRef,
    /// Whether text may be a number.
    numbers: bool,
}

impl<'a> Values<'a> {
    /// Of a scan's output, in a batch that has its fields by their names.
    ///
    /// # Errors
    /// Where the batch has columns of other types.
    pub fn of_output(scan: &'a TableScan, batch: &'a RecordBatch) -> Result<Self, LakeError> {
        let chosen: Vec<&ScanColumn> = scan.output.iter().map(|place| &scan.columns[*place]).collect();
        let columns = chosen.iter().map(|column| column.in_batch(batch)).collect::<Result<_, _>>()?;
        let (mut misfit, mut beside) = (None, &scan.columns[scan.misfits.clone()]);
        if let Some((first, rest)) = beside.split_first() {
            misfit = first.field.as_ref().and_then(|field| batch.column_by_name(field.name()));
            beside = rest;
        }
        // They are read where there may be some.
        let beside: &[ScanColumn] = if scan.has_misfits { beside } else { &[] };
        let variants_of = |column: &&ScanColumn| {
            let of_it = beside.iter().filter(|variant| variant.name == column.name);
            of_it.filter_map(|variant| variant.in_batch(batch).transpose()).collect::<Result<Vec<_>, _>>()
        };
        let variants = chosen.iter().map(variants_of).collect::<Result<_, _>>()?;
        let names = chosen.iter().map(|column| column.name.as_str()).collect();
        Ok(Self { columns, variants, names, misfit, rows: batch.num_rows() })
    }

    /// Of all columns of a batch, just as they are.
    ///
    /// # Errors
    /// Where a column's type is none that the lake has.
    pub fn of_batch(batch: &'a RecordBatch) -> Result<Self, LakeError> {
        let columns = batch
            .columns()
            .iter()
            .map(|array| match is_known(array.data_type()) {
                true => Ok(Some(Column { array, numbers: false })),
                false => Err(unknown("a result", array.data_type())),
            })
            .collect::<Result<_, _>>()?;
        let (variants, names) = (Vec::new(), Vec::new());
        Ok(Self { columns, variants, names, misfit: None, rows: batch.num_rows() })
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// One of the rows.
    ///
    /// # Errors
    /// Where a row that does not fit its columns is not what the lake writes.
    pub fn row(&self, row: usize) -> Result<Row, LakeError> {
        let mut values: Vec<Value> = self
            .columns
            .iter()
            .map(|column| Value { kind: column.as_ref().and_then(|column| column.value(row)) })
            .collect();
        for (value, variants) in values.iter_mut().zip(&self.variants) {
            if value.is_null() {
                value.kind = variants.iter().find_map(|variant| variant.value(row));
            }
        }
        if let Some(misfit) = self.misfit.filter(|misfit| misfit.is_valid(row)) {
            let text = misfit.as_string_opt::<i32>().map_or("", |texts| texts.value(row));
            let malformed = |reason: String| LakeError::Malformed { path: "_misfit".to_owned(), reason };
            let members: HashMap<String, &RawValue> =
                serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
            for (value, name) in values.iter_mut().zip(&self.names) {
                let member = members.iter().find(|(member, _)| member.eq_ignore_ascii_case(name));
                // What the column shows stands there as well, and a double's text would have to be read back.
                if let (Some((_, member)), true) = (member, value.is_null()) {
                    *value = value_of_json(member.get())
                        .ok_or_else(|| malformed(format!("{} is no value", member.get())))?;
                }
            }
        }
        Ok(Row { values })
    }
}

impl ScanColumn {
    fn in_batch<'a>(&self, batch: &'a RecordBatch) -> Result<Option<Column<'a>>, LakeError> {
        let Some(field) = &self.field else { return Ok(None) };
        match batch.column_by_name(field.name()) {
            Some(array) if is_known(array.data_type()) => {
                let numbers = self.column_type == Some(ColumnType::String) && self.affinity == LakeAffinity::Numeric;
                Ok(Some(Column { array, numbers }))
            }
            Some(array) => Err(unknown(&self.name, array.data_type())),
            None => Err(unknown(&self.name, &DataType::Null)),
        }
    }
}

fn is_known(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::Float64 | DataType::Utf8 | DataType::Binary)
}

fn unknown(column: &str, data_type: &DataType) -> LakeError {
    LakeError::Malformed { path: column.to_owned(), reason: format!("a column of the type {data_type} was read") }
}

impl Column<'_> {
    fn value(&self, row: usize) -> Option<Kind> {
        if self.array.is_null(row) {
            return None;
        }
        Some(match self.array.data_type() {
            DataType::Int64 => Kind::Integer(self.array.as_primitive::<Int64Type>().value(row)),
            DataType::Float64 => Kind::Real(self.array.as_primitive::<Float64Type>().value(row)),
            DataType::Utf8 => {
                let text = self.array.as_string::<i32>().value(row);
                match self.numbers {
                    true => number(text).unwrap_or_else(|| Kind::Text(text.to_owned())),
                    false => Kind::Text(text.to_owned()),
                }
            }
            // `is_known` admits one more.
            _ => Kind::Blob(self.array.as_binary::<i32>().value(row).to_vec()),
        })
    }
}

/// A number that stands as text in a column of NUMERIC affinity, where text that looks like one is one.
fn number(text: &str) -> Option<Kind> {
    if let Ok(integer) = text.parse() {
        return Some(Kind::Integer(integer));
    }
    // Rust's parser takes words as well.
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_digit() || byte == b'-');
    text.parse::<f64>().ok().filter(|real| begins && real.is_finite()).map(Kind::Real)
}

/// A value as `_misfit` has it. Numbers are read off their text: JSON libraries may round a double.
fn value_of_json(text: &str) -> Option<Value> {
    if text == "null" {
        return Some(Value::NULL);
    }
    if text.starts_with('"') {
        return serde_json::from_str::<String>(text).ok().map(Value::from);
    }
    if !text.starts_with('{') {
        return match text.parse::<i64>() {
            Ok(integer) => Some(integer.into()),
            Err(_) => text.parse::<f64>().ok().map(Value::from),
        };
    }
    let object: HashMap<String, String> = serde_json::from_str(text).ok()?;
    let (word, content) = object.iter().next()?;
    Some(match word.as_str() {
        "blob" => Value::blob(bytes_of(content)?),
        "raw_text" => Value { kind: Some(Kind::RawText(bytes_of(content)?)) },
        "real" => content.parse::<f64>().ok()?.into(),
        _ => return None,
    })
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_are_read_back_exactly() {
        let of = |text: &str| value_of_json(text).unwrap();
        assert_eq!(of("9007199254740993"), 9_007_199_254_740_993.into());
        assert_eq!(of("0.1"), 0.1.into());
        assert_eq!(of("5.0"), 5.0.into());
        assert_eq!(of("\"a\\u0000b\""), "a\0b".into());
        assert_eq!(of("{\"blob\":\"00FF\"}"), Value::blob([0, 255]));
        assert_eq!(of("{\"raw_text\":\"FF\"}"), Value { kind: Some(Kind::RawText(vec![255])) });
        assert_eq!(of("{\"real\":\"-inf\"}"), f64::NEG_INFINITY.into());
        assert_eq!(of("null"), Value::NULL);
        assert_eq!(value_of_json("{\"blob\":\"0\"}"), None);
    }

    #[test]
    fn text_that_is_a_number_was_one() {
        assert_eq!(number("20240131"), Some(Kind::Integer(20_240_131)));
        assert_eq!(number("2460340.5"), Some(Kind::Real(2_460_340.5)));
        assert_eq!(number("-1e-7"), Some(Kind::Real(-1e-7)));
        assert_eq!(number("2024-01-31"), None);
        assert_eq!(number("infinity"), None);
        assert_eq!(number(""), None);
    }
}
