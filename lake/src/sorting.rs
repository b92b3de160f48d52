//! The order of rows in files.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices};
use iceberg::spec::{NullOrder, SortDirection};

use crate::LakeError;

/// How one column is sorted.
pub(crate) type How = (SortDirection, NullOrder);

fn options((direction, nulls): How) -> SortOptions {
    SortOptions { descending: direction == SortDirection::Descending, nulls_first: nulls == NullOrder::First }
}

/// The rows in the order of the first columns, each sorted as said. Rows that are equal stay in their order.
pub(crate) fn sorted(columns: &RecordBatch, how: &[How]) -> Result<UInt32Array, LakeError> {
    let place = |values| SortColumn { values, options: None };
    let mut keys: Vec<SortColumn> = columns
        .columns()
        .iter()
        .zip(how)
        .map(|(values, how)| SortColumn { values: values.clone(), options: Some(options(*how)) })
        .collect();
    let rows = u32::try_from(columns.num_rows()).unwrap_or(u32::MAX);
    keys.push(place(std::sync::Arc::new(UInt32Array::from_iter_values(0..rows))));
    Ok(lexsort_to_indices(&keys, None)?)
}

/// The rows in Z order of the first columns: neighbours in each of them are near each other. What is interleaved are the ranks of
/// the values among those of the column, so that columns of all types weigh the same.
pub(crate) fn z_ordered(columns: &RecordBatch, how: &[How]) -> Result<UInt32Array, LakeError> {
    let rows = columns.num_rows();
    let width = how.len().min(columns.num_columns());
    let mut ranks: Vec<Vec<u32>> = Vec::with_capacity(width);
    for (values, how) in columns.columns().iter().zip(how) {
        let order = lexsort_to_indices(&[SortColumn { values: values.clone(), options: Some(options(*how)) }], None)?;
        let same = arrow::compute::partition(&[arrow::compute::take(values, &order, None)?])?;
        let mut of = vec![0; rows];
        for (rank, range) in (0_u32..).zip(same.ranges()) {
            order.values()[range].iter().for_each(|row| of[*row as usize] = rank);
        }
        ranks.push(of);
    }
    let mut keyed: Vec<(Vec<u8>, u32)> = (0..rows)
        .map(|row| {
            let mut key = vec![0_u8; width * 4];
            for bit in 0..32 {
                for (place, ranks) in ranks.iter().enumerate() {
                    let at = bit * width + place;
                    key[at / 8] |= ((ranks[row] >> (31 - bit) & 1) as u8) << (7 - at % 8);
                }
            }
            (key, row as u32)
        })
        .collect();
    keyed.sort_unstable();
    Ok(keyed.into_iter().map(|(_, row)| row).collect::<Vec<u32>>().into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn batch() -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(2), None, Some(1), Some(2)]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["b", "x", "c", "a"]));
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("t", texts, true)]).unwrap()
    }

    #[test]
    fn rows_are_sorted_as_said() {
        let ascending = (SortDirection::Ascending, NullOrder::First);
        let descending = (SortDirection::Descending, NullOrder::Last);
        assert_eq!(sorted(&batch(), &[ascending]).unwrap().values(), &[1, 2, 0, 3]);
        assert_eq!(sorted(&batch(), &[ascending, ascending]).unwrap().values(), &[1, 2, 3, 0]);
        assert_eq!(sorted(&batch(), &[descending]).unwrap().values(), &[0, 3, 2, 1]);
    }

    #[test]
    fn neighbours_in_every_column_are_near_each_other() {
        let side = 16_i64;
        let x: ArrayRef = Arc::new(Int64Array::from_iter_values((0..side * side).map(|at| at % side)));
        let y: ArrayRef = Arc::new(Int64Array::from_iter_values((0..side * side).map(|at| at / side)));
        let grid = RecordBatch::try_from_iter([("x", x), ("y", y)]).unwrap();
        let how = [(SortDirection::Ascending, NullOrder::First); 2];
        let order = z_ordered(&grid, &how).unwrap();
        // Each quarter of a quarter is a square of a quarter of the side.
        for quarter in order.values().chunks(16) {
            let (columns, rows): (Vec<i64>, Vec<i64>) =
                quarter.iter().map(|at| (i64::from(*at) % side, i64::from(*at) / side)).unzip();
            let spread = |values: &[i64]| values.iter().max().unwrap() - values.iter().min().unwrap();
            assert_eq!((spread(&columns), spread(&rows)), (3, 3));
        }
    }
}
