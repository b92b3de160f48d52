//! The buffered rows of one layout, column by column.
//!
//! A row is taken apart when it is delivered, while it is in the processor's cache: what is written later are its columns. A value
//! that its column does not give back as it was is kept beside it. Rows are pushed first; once they are sealed, they are read.

use std::mem;

use arrow::array::ArrayRef;
use dosql_proto::value::Kind;
use dosql_proto::{Row, WalTable};

use crate::cell_column::{CellColumn, CellColumnBuilder};
use crate::cells::Cell;
use crate::columns::ColumnType;

/// Bytes beyond which a record finds them closed: Arrow counts a column's texts in 31 bits, and a shard's records are far smaller.
const FULL_BYTES: usize = 1 << 30;

/// Rows of one layout.
#[derive(Debug)]
pub(crate) struct Rows {
    columns: Vec<Column>,
    /// Once they are sealed, their values by column.
    sealed: Option<Vec<CellColumn>>,
    rows: u32,
    /// The memory they take, about.
    bytes: usize,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowRef<'a> {
    rows: &'a Rows,
    pub(crate) number: u32,
}

#[derive(Debug)]
struct Column {
    /// As the lake has a column of the declared type.
    column_type: ColumnType,
    /// Until they are sealed.
    cells: CellColumnBuilder,
    /// By row, the values that differ from what the column gives back.
    odd: Vec<(u32, Kind)>,
}

/// How many rows there were of a layout, and how many bytes of text in each column.
#[derive(Debug)]
pub(crate) struct Sizes {
    columns: Vec<(ColumnType, usize)>,
    rows: usize,
}

/// The types that a layout's columns have in the lake.
fn types(layout: &WalTable) -> impl Iterator<Item = ColumnType> {
    layout.columns.iter().map(|column| ColumnType::of_declared(&column.declared_type))
}

impl Rows {
    /// None yet, of this layout. There is memory for as many as there were before, where those had the same columns.
    pub(crate) fn new(layout: &WalTable, before: Option<Sizes>) -> Self {
        let column = |(column_type, bytes), rows| Column {
            column_type,
            cells: CellColumnBuilder::with_capacity(column_type, rows, bytes),
            odd: Vec::new(),
        };
        let known = before.filter(|before| before.columns.iter().map(|(of, _)| *of).eq(types(layout)));
        let columns = match known {
            Some(Sizes { columns, rows }) => columns.into_iter().map(|sizes| column(sizes, rows)).collect(),
            None => types(layout).map(|column_type| column((column_type, 0), 0)).collect(),
        };
        Self { columns, sealed: None, rows: 0, bytes: 0 }
    }

    /// `None` until they are sealed.
    pub(crate) fn sizes(&self) -> Option<Sizes> {
        let bytes = self.sealed.as_ref()?.iter().map(CellColumn::text_bytes);
        let columns = self.columns.iter().map(|column| column.column_type).zip(bytes).collect();
        Some(Sizes { columns, rows: self.rows as usize })
    }

    /// Whether it takes more rows.
    pub(crate) fn is_open(&self) -> bool {
        self.sealed.is_none() && self.rows < u32::MAX && self.bytes <= FULL_BYTES
    }

    /// Has the rows ready to be read.
    pub(crate) fn seal(&mut self) {
        if self.sealed.is_none() {
            self.sealed = Some(self.columns.iter_mut().map(|column| column.cells.finish()).collect());
        }
    }

    /// Takes in a row, which has as many values as there are columns, and tells the places of those that do not fit. Returns its
    /// number, and the memory that it takes, in bytes, about.
    pub(crate) fn push(&mut self, row: Row, mut misfit: impl FnMut(usize)) -> (u32, usize) {
        assert!(
            self.sealed.is_none() && row.values.len() == self.columns.len(),
            "a row is pushed where it does not belong"
        );
        let number = self.rows;
        self.rows += 1;
        let mut bytes = 0;
        for (place, (column, value)) in self.columns.iter_mut().zip(row.values).enumerate() {
            bytes += match value.kind {
                None => column.cells.append_null(),
                Some(kind) => {
                    let (taken, is_told) = column.cells.append(Cell::from(&kind));
                    if is_told {
                        taken
                    } else {
                        if !column.column_type.fits(Cell::from(&kind)) {
                            misfit(place);
                        }
                        let beside = mem::size_of::<(u32, Kind)>() + heap_bytes(&kind);
                        column.odd.push((number, kind));
                        taken + beside
                    }
                }
            };
        }
        self.bytes += bytes;
        (number, bytes)
    }

    pub(crate) fn get(&self, number: u32) -> RowRef<'_> {
        RowRef { rows: self, number }
    }

    /// The columns, once they are sealed, as the lake has those of their declared types: a value that does not fit is null.
    pub(crate) fn arrays(&self) -> Vec<ArrayRef> {
        self.sealed.iter().flatten().map(CellColumn::array).collect()
    }

    /// The type that the column at a place has in the lake.
    pub(crate) fn column_type(&self, place: usize) -> Option<ColumnType> {
        Some(self.columns.get(place)?.column_type)
    }
}

impl<'a> RowRef<'a> {
    /// Its value at a place; `None` for NULL, and where the row has none.
    pub(crate) fn cell(self, place: usize) -> Option<Cell<'a>> {
        let column = self.rows.columns.get(place)?;
        debug_assert!(self.rows.sealed.is_some(), "rows are read once they are sealed");
        if !column.odd.is_empty()
            && let Ok(found) = column.odd.binary_search_by_key(&self.number, |(row, _)| *row)
        {
            return Some(Cell::from(&column.odd[found].1));
        }
        self.rows.sealed.as_ref()?.get(place)?.get(self.number as usize)
    }

    /// Its values, in order.
    pub(crate) fn cells(self) -> impl Iterator<Item = Option<Cell<'a>>> {
        (0..self.rows.columns.len()).map(move |place| self.cell(place))
    }
}

/// Memory of a value beside the value itself.
fn heap_bytes(kind: &Kind) -> usize {
    match kind {
        Kind::Text(text) => text.capacity(),
        Kind::Blob(bytes) | Kind::RawText(bytes) => bytes.capacity(),
        Kind::Integer(_) | Kind::Real(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Float64Type;
    use dosql_proto::{Column as SourceColumn, Value};

    use super::*;

    fn layout() -> WalTable {
        let column =
            |declared: &str| SourceColumn { name: declared.to_lowercase(), declared_type: declared.to_owned() };
        WalTable { columns: ["INTEGER", "DECIMAL", "TEXT", "BLOB"].map(column).into(), ..WalTable::default() }
    }

    fn kinds() -> [Option<Kind>; 7] {
        [
            None,
            Some(Kind::Integer(7)),
            Some(Kind::Integer(i64::MAX)),
            Some(Kind::Real(0.5)),
            Some(Kind::Text("text".into())),
            Some(Kind::RawText(vec![0xFF])),
            Some(Kind::Blob(vec![1, 2])),
        ]
    }

    #[test]
    fn every_value_comes_back_as_it_was() {
        let mut rows = Rows::new(&layout(), None);
        let mut misfits = Vec::new();
        for (number, kind) in (0..).zip(kinds()) {
            let row: Row = std::iter::repeat_n(Value { kind }, 4).collect();
            assert_eq!(rows.push(row, |place| misfits.push((number, place))).0, number);
        }
        rows.seal();
        assert!(!rows.is_open());
        for (number, kind) in (0..).zip(&kinds()) {
            for cell in rows.get(number).cells() {
                assert_eq!(cell, kind.as_ref().map(Cell::from), "row {number}");
            }
        }
        for (number, kind) in (0..).zip(&kinds()) {
            for (place, column_type) in types(&layout()).enumerate() {
                let fits = kind.as_ref().is_none_or(|kind| column_type.fits(Cell::from(kind)));
                assert_eq!(fits, !misfits.contains(&(number, place)), "row {number}, column {place}");
                assert_eq!(fits && kind.is_some(), rows.arrays()[place].is_valid(number as usize));
            }
        }
        let doubles: Vec<f64> = rows.arrays()[1].as_primitive::<Float64Type>().iter().flatten().collect();
        assert_eq!(doubles, [7.0, 0.5]);
        let texts: Vec<String> = rows.arrays()[2].as_string::<i32>().iter().flatten().map(str::to_owned).collect();
        assert_eq!(texts, ["7", &i64::MAX.to_string(), "0.5", "text"]);
        assert!(Rows::new(&layout(), rows.sizes()).is_open());
    }
}
