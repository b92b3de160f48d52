//! Which columns of a file a dictionary pays for.
//!
//! Looking every value up in a dictionary is among what costs most in writing Parquet, and all for nothing where nearly all values
//! differ: then the dictionary is the column once more. So it is asked of a sample beforehand.

use std::hash::{DefaultHasher, Hasher};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};

/// Values that are looked at: pairs of neighbours, all over the column. Neighbours are often the same where values come in runs.
const SAMPLE: usize = 256;

/// Whether about half of a column's values or more differ from all before them, of which a row group has `rows`. `array` is the
/// column's beginning.
pub(crate) fn mostly_differs(array: &dyn Array, rows: usize) -> bool {
    let looked_at = SAMPLE.min(array.len());
    let mut values = sample(array);
    let taken = values.len();
    values.sort_unstable();
    values.dedup();
    let same = taken - values.len();
    // Of n values out of d different ones, about n^2/2d are the same as another.
    values.len() * 2 > taken && same * rows < taken * looked_at
}

/// Some of the values, or hashes of them; NULLs are left out.
fn sample(array: &dyn Array) -> Vec<u64> {
    let rows = array.len();
    let place = |number: usize| match rows {
        ..=SAMPLE => number,
        _ => (number / 2) * 2 * rows / SAMPLE + number % 2,
    };
    let places = (0..SAMPLE.min(rows)).map(place).filter(|row| array.is_valid(*row));
    let hash = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        hasher.finish()
    };
    match array.data_type() {
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            places.map(|row| values.value(row).cast_unsigned()).collect()
        }
        DataType::Timestamp(..) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            places.map(|row| values.value(row).cast_unsigned()).collect()
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            places.map(|row| values.value(row).to_bits()).collect()
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            places.map(|row| hash(values.value(row).as_bytes())).collect()
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            places.map(|row| hash(values.value(row))).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    /// As many values as a flush may have, out of so many different ones.
    fn numbers(different: u64) -> Int64Array {
        let scattered = |row: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(row);
            hasher.finish() % different
        };
        (0..10_000).map(|row| Some(scattered(row).cast_signed())).collect()
    }

    #[test]
    fn columns_of_different_values_are_told_from_others() {
        for (different, expected) in [(4, false), (1000, false), (2000, false), (20_000, true), (u64::MAX, true)] {
            assert_eq!(mostly_differs(&numbers(different), 10_000), expected, "{different} different values");
        }
        let texts: StringArray = (0..10_000).map(|row| Some(format!("order {row}"))).collect();
        assert!(mostly_differs(&texts, 100_000));
        let sparse: StringArray = (0..10_000).map(|row| (row % 3 == 0).then(|| format!("order {row}"))).collect();
        assert!(mostly_differs(&sparse, 10_000));
        let few: StringArray = (0..10_000).map(|row| (row % 3 == 0).then(|| format!("dock {}", row % 7))).collect();
        assert!(!mostly_differs(&few, 10_000));
        let runs: Int64Array = (0..10_000).map(|row| Some(row / 10)).collect();
        assert!(!mostly_differs(&runs, 10_000), "values that come in runs");
    }

    #[test]
    fn small_columns_are_seen_whole() {
        let column = |values: &[i64]| Int64Array::from(values.to_vec());
        assert!(mostly_differs(&column(&[1, 2, 3, 4]), 4));
        assert!(!mostly_differs(&column(&[1, 1, 1, 2]), 4));
        assert!(!mostly_differs(&column(&[]), 0));
        assert!(!mostly_differs(&Int64Array::from(vec![None; 300]), 300));
    }
}
