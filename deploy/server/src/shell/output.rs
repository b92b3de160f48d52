//! Results as a person or a program wants them. None of the formats holds a whole result.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use dosql_proto::json::JsonValue;
use dosql_proto::value::Kind;
use dosql_proto::{Column, QueryResponse, Row, Value};
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

/// Rows whose widths a table is fitted to; a longer result is several tables.
const ROWS_OF_A_TABLE: usize = 1000;
/// Bytes of a BLOB that a table shows.
const BYTES_SHOWN: usize = 32;
/// How a table shows NULL, so that it cannot be taken for the text 'NULL'.
const NULL: &str = "∅";

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// An array of objects for each statement with rows
    Json,
    /// With a header line; NULL is an empty field, a BLOB is x'...'
    Csv,
}

/// Writes one result.
pub(super) struct Printer<'a, W: Write> {
    out: &'a mut W,
    format: Format,
    columns: Vec<Column>,
    /// Rows that wait for their table to be full.
    waiting: Vec<Row>,
    rows: u64,
    affected: u64,
}

/// Columns narrower than this, borders included, cannot be read.
const NARROWEST_CELL: usize = 10;

impl<'a, W: Write> Printer<'a, W> {
    pub(super) fn new(format: Format, out: &'a mut W) -> Self {
        Self { out, format, columns: Vec::new(), waiting: Vec::new(), rows: 0, affected: 0 }
    }

    /// Writes a part of the result.
    pub(super) fn print(&mut self, response: QueryResponse) -> io::Result<()> {
        if !response.columns.is_empty() {
            self.columns = response.columns;
            match self.format {
                Format::Json => self.out.write_all(b"[")?,
                Format::Csv => write_csv(self.out, self.columns.iter().map(|column| column.name.as_bytes().into()))?,
                Format::Table => {}
            }
        }
        self.affected += response.rows_affected;
        match self.format {
            Format::Json => {
                for row in &response.rows {
                    self.out.write_all(if self.rows == 0 { b"\n" } else { b",\n" })?;
                    serde_json::to_writer(&mut *self.out, &Object { columns: &self.columns, row })?;
                    self.rows += 1;
                }
            }
            Format::Csv => {
                for row in &response.rows {
                    write_csv(self.out, row.values.iter().map(csv_field))?;
                }
            }
            Format::Table => {
                self.rows += response.rows.len() as u64;
                self.waiting.extend(response.rows);
                while self.waiting.len() > ROWS_OF_A_TABLE {
                    let rest = self.waiting.split_off(ROWS_OF_A_TABLE);
                    self.print_table()?;
                    self.waiting = rest;
                }
            }
        }
        Ok(())
    }

    /// Writes what comes after the rows.
    pub(super) fn finish(mut self) -> io::Result<()> {
        match self.format {
            Format::Json if !self.columns.is_empty() => {
                self.out.write_all(if self.rows == 0 { b"]\n" } else { b"\n]\n" })
            }
            Format::Json | Format::Csv => Ok(()),
            Format::Table if self.columns.is_empty() => {
                writeln!(self.out, "{}", count(self.affected, "row affected", "rows affected"))
            }
            Format::Table => {
                if !self.waiting.is_empty() || self.rows == 0 {
                    self.print_table()?;
                }
                writeln!(self.out, "{}", count(self.rows, "row", "rows"))
            }
        }
    }

    fn print_table(&mut self) -> io::Result<()> {
        let rows: Vec<Vec<Cell>> = self.waiting.drain(..).map(|row| row.values.iter().map(cell).collect()).collect();
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(self.columns.iter().map(|column| column.name.as_str()));
        // Into a file or a pipe a row stays one line, however long.
        if let Some((_, width)) = console::Term::stdout().size_checked() {
            if self.columns.len() * NARROWEST_CELL > usize::from(width) {
                table.add_rows(rows.iter().cloned());
                if table.lines().any(|line| console::measure_text_width(&line) > usize::from(width)) {
                    return self.print_records(&rows);
                }
                return writeln!(self.out, "{table}");
            }
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        table.add_rows(rows);
        writeln!(self.out, "{table}")
    }

    /// A line a value, for rows of too many columns to stand side by side.
    fn print_records(&mut self, rows: &[Vec<Cell>]) -> io::Result<()> {
        let names = self.columns.iter().map(|column| console::measure_text_width(&column.name)).max().unwrap_or(0);
        for row in rows {
            writeln!(self.out, "{}", "─".repeat(names + 1))?;
            for (column, cell) in self.columns.iter().zip(row) {
                let name = console::pad_str(&column.name, names, console::Alignment::Left, None);
                writeln!(self.out, "{name}  {}", cell.content())?;
            }
        }
        Ok(())
    }
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn cell(value: &Value) -> Cell {
    match &value.kind {
        None => Cell::new(NULL).set_alignment(CellAlignment::Center),
        Some(Kind::Integer(_) | Kind::Real(_)) => Cell::new(number(value)).set_alignment(CellAlignment::Right),
        Some(Kind::Text(text)) => Cell::new(printable(text)),
        Some(Kind::RawText(bytes)) => Cell::new(printable(&String::from_utf8_lossy(bytes))),
        Some(Kind::Blob(bytes)) if bytes.len() > BYTES_SHOWN => {
            Cell::new(format!("{}… {} bytes", hex(&bytes[..BYTES_SHOWN]), bytes.len()))
        }
        Some(Kind::Blob(bytes)) => Cell::new(hex(bytes)),
    }
}

/// The text without what would move the cursor or change the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' => '\n',
            '\t' => ' ',
            control if control.is_control() => '\u{FFFD}',
            character => character,
        })
        .collect()
}

/// A number as JSON writes it, so that a REAL shows a fraction or an exponent.
fn number(value: &Value) -> String {
    match &value.kind {
        Some(Kind::Real(real)) if !real.is_finite() => real.to_string(),
        _ => serde_json::to_string(&JsonValue(value)).unwrap_or_default(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "x'".to_owned();
    for byte in bytes {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text + "'"
}

fn csv_field(value: &Value) -> std::borrow::Cow<'_, [u8]> {
    match &value.kind {
        None => [].as_slice().into(),
        Some(Kind::Integer(_) | Kind::Real(_)) => number(value).into_bytes().into(),
        Some(Kind::Text(text)) => text.as_bytes().into(),
        Some(Kind::RawText(bytes)) => bytes.into(),
        Some(Kind::Blob(bytes)) => hex(bytes).into_bytes().into(),
    }
}

fn write_csv<'v>(out: &mut impl Write, fields: impl Iterator<Item = Bytes<'v>>) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().buffer_capacity(512).from_writer(out);
    for field in fields {
        writer.write_field(field)?;
    }
    writer.write_record(None::<&[u8]>)?;
    writer.flush()
}

type Bytes<'v> = std::borrow::Cow<'v, [u8]>;

/// A row as an object of its columns.
struct Object<'a> {
    columns: &'a [Column],
    row: &'a Row,
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(Some(self.columns.len()))?;
        for (column, value) in self.columns.iter().zip(&self.row.values) {
            fields.serialize_entry(&column.name, &JsonValue(value))?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format, rows: Vec<Row>) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(format, &mut out);
        let column = |name: &str| Column { name: name.into(), ..Column::default() };
        let columns = vec![column("n"), column("x")];
        printer.print(QueryResponse { columns, rows: rows.clone(), ..QueryResponse::default() }).unwrap();
        printer.print(QueryResponse { rows, ..QueryResponse::default() }).unwrap();
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    fn row(x: Value) -> Row {
        [Value::from(1), x].into_iter().collect()
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let text =
            printed(Format::Csv, vec![row(Value::from("a,\"b\"")), row(Value::NULL), row(Value::blob([1, 255]))]);
        assert!(text.starts_with("n,x\n1,\"a,\"\"b\"\"\"\n1,\n1,x'01ff'\n1,\"a"), "{text}");
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let json: serde_json::Value =
            serde_json::from_str(&printed(Format::Json, vec![row(Value::from(1.0))])).unwrap();
        assert_eq!(json, serde_json::json!([{"n": 1, "x": 1.0}, {"n": 1, "x": 1.0}]));
        assert_eq!(printed(Format::Json, vec![]), "[]\n");
    }

    #[test]
    fn a_table_tells_null_from_text() {
        let text = printed(Format::Table, vec![row(Value::NULL), row(Value::from("NULL"))]);
        assert!(text.contains(NULL) && text.contains("NULL") && text.ends_with("4 rows\n"), "{text}");
    }

    #[test]
    fn a_long_result_is_several_tables() {
        let text = printed(Format::Table, vec![row(Value::NULL); 1500]);
        assert_eq!(text.matches(" n ").count(), 3, "{text}");
        assert!(text.ends_with("3000 rows\n"));
    }
}
