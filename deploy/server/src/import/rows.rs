//! The rows of a CSV file, in requests.

use std::fs::File;
use std::path::Path;

use csv::{ByteRecord, Position, Reader, ReaderBuilder};
use dosql_proto::value::Kind;
use dosql_proto::{LoadRequest, Row, Value};

use super::infer::{ColumnType, integer, real};
use super::{ImportError, Source};

/// Rows of one request. Each becomes one transaction on each shard: large enough that a commit costs little, small enough that a
/// few of them are no load on memory.
const ROWS_OF_A_REQUEST: usize = 4000;
/// Bytes of fields after which a request is cut, also where it has few rows.
const BYTES_OF_A_REQUEST: usize = 1 << 20;

/// Opens a CSV file with a header line.
pub(super) fn reader(path: &Path) -> Result<Reader<File>, ImportError> {
    ReaderBuilder::new()
        .buffer_capacity(256 << 10)
        .from_path(path)
        .map_err(|source| ImportError::Csv { path: path.to_owned(), source })
}

/// Where a request's rows are in the file.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) rows: u64,
    pub(super) first_line: u64,
    pub(super) last_line: u64,
    /// Where the next request begins.
    pub(super) next: Place,
}

/// Where a request begins.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// `None`: after the header.
    position: Option<Position>,
    /// The number of the request, from 0.
    pub(super) number: u64,
}

impl Place {
    /// The first request's.
    pub(super) const START: Self = Self { position: None, number: 0 };

    /// Bytes of the file before it.
    pub(super) fn bytes(&self) -> u64 {
        self.position.as_ref().map_or(0, Position::byte)
    }
}

/// Makes requests of a file's rows; from the same place in the file always the same ones.
pub(super) struct Requests<'a> {
    source: &'a Source,
    table: &'a str,
    /// What the names of all requests begin with.
    import_id: &'a str,
    reader: Reader<File>,
    record: ByteRecord,
    number: u64,
    /// What to add to the reader's line numbers: where lines end in CR LF it counts the LF as part of the next record.
    line_offset: u64,
}

impl<'a> Requests<'a> {
    /// The requests from `place` on.
    pub(super) fn from(
        source: &'a Source,
        table: &'a str,
        import_id: &'a str,
        place: &Place,
    ) -> Result<Self, ImportError> {
        let mut reader = reader(&source.path)?;
        // Also where the file is continued further on: seeking turns off reading the header.
        reader.byte_headers().map_err(|error| csv_error(source, error))?;
        let line_offset = u64::from(reader.position().line() == 1);
        if let Some(position) = &place.position {
            reader.seek(position.clone()).map_err(|error| csv_error(source, error))?;
        }
        Ok(Self { source, table, import_id, reader, record: ByteRecord::new(), number: place.number, line_offset })
    }

    /// The next request; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<(Span, LoadRequest)>, ImportError> {
        let (mut first_line, mut last_line) = (0, 0);
        let mut rows = Vec::with_capacity(ROWS_OF_A_REQUEST);
        let mut bytes = 0;
        while rows.len() < ROWS_OF_A_REQUEST && bytes < BYTES_OF_A_REQUEST {
            if !self.reader.read_byte_record(&mut self.record).map_err(|error| csv_error(self.source, error))? {
                break;
            }
            last_line = self.record.position().map_or(0, Position::line) + self.line_offset;
            if rows.is_empty() {
                first_line = last_line;
            }
            bytes += self.record.as_slice().len();
            rows.push(self.row()?);
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let request = LoadRequest {
            table: self.table.to_owned(),
            columns: self.source.names.clone(),
            rows,
            request_id: request_id(self.import_id, self.number),
            ..LoadRequest::default()
        };
        self.number += 1;
        let next = Place { position: Some(self.reader.position().clone()), number: self.number };
        Ok(Some((Span { rows: request.rows.len() as u64, first_line, last_line, next }, request)))
    }

    fn row(&self) -> Result<Row, ImportError> {
        let null = self.source.null.as_deref();
        let mut values = Vec::with_capacity(self.source.types.len());
        for (field, column_type) in self.record.iter().zip(&self.source.types) {
            let kind = if null == Some(field) {
                None
            } else {
                let number = match column_type {
                    ColumnType::Text => {
                        values.push(Value::from_text_bytes(field));
                        continue;
                    }
                    _ if field.is_empty() => None,
                    ColumnType::Integer => Some(integer(field).map(Kind::Integer)),
                    ColumnType::Real => {
                        #[expect(clippy::cast_precision_loss, reason = "larger integers made the column TEXT")]
                        let real = real(field).or_else(|| integer(field).map(|integer| integer as f64));
                        Some(real.map(Kind::Real))
                    }
                };
                // A field that no longer has the type that the whole file had.
                match number {
                    Some(None) => return Err(ImportError::Changed(self.source.path.clone())),
                    number => number.flatten(),
                }
            };
            values.push(Value { kind });
        }
        Ok(Row { values })
    }
}

/// The name of a request of an import.
pub(super) fn request_id(import_id: &str, number: u64) -> String {
    format!("{import_id}-{number}")
}

fn csv_error(source: &Source, error: csv::Error) -> ImportError {
    ImportError::Csv { path: source.path.clone(), source: error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str, null: Option<&str>) -> Vec<(Span, LoadRequest)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        std::fs::write(&path, text).unwrap();
        let null = null.map(|null| null.as_bytes().to_vec());
        let source = super::super::survey(&path, null, &indicatif::ProgressBar::hidden()).unwrap();
        let mut requests = Requests::from(&source, "t", "import", &Place::START).unwrap();
        let mut all = Vec::new();
        let mut place = Place::START;
        while let Some((span, request)) = requests.next().unwrap() {
            // Whoever continues here makes the same request.
            let mut again = Requests::from(&source, "t", "import", &place).unwrap();
            assert_eq!(again.next().unwrap().unwrap().1, request, "request {}", place.number);
            place = span.next.clone();
            all.push((span, request));
        }
        assert!(Requests::from(&source, "t", "import", &place).unwrap().next().unwrap().is_none());
        all
    }

    #[test]
    fn fields_become_values_of_their_columns_type() {
        let all = requests("\u{feff}i,r,t\r\n1,2,x\r\n,NA,\r\nNA,-0.5,\"a,\"\"b\"\"\n\"\n", Some("NA"));
        let (span, request) = &all[0];
        assert_eq!((all.len(), span.first_line, span.last_line), (1, 2, 4));
        assert_eq!(request.columns, ["i", "r", "t"]);
        let expected = [
            vec![Value::from(1), Value::from(2.0), Value::from("x")],
            vec![Value::NULL, Value::NULL, Value::from("")],
            vec![Value::NULL, Value::from(-0.5), Value::from("a,\"b\"\n")],
        ];
        assert_eq!(request.rows, expected.map(|values| Row { values }));
    }

    #[test]
    fn a_file_is_cut_into_requests() {
        let mut text = "n\n".to_owned();
        for number in 0..(2 * ROWS_OF_A_REQUEST + 1) {
            text += &format!("{number}\n");
        }
        let all = requests(&text, None);
        let lines: Vec<_> = all.iter().map(|(span, _)| (span.first_line, span.last_line)).collect();
        assert_eq!(lines, [(2, 4001), (4002, 8001), (8002, 8002)]);
        assert_eq!(all[2].1.request_id, "import-2");
    }

    #[test]
    fn text_that_is_not_utf8_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("latin1.csv");
        std::fs::write(&path, b"t\nZo\xeb\n").unwrap();
        let source = super::super::survey(&path, None, &indicatif::ProgressBar::hidden()).unwrap();
        let (_, request) = Requests::from(&source, "t", "import", &Place::START).unwrap().next().unwrap().unwrap();
        assert_eq!(request.rows[0].values[0].kind, Some(Kind::RawText(b"Zo\xeb".to_vec())));
    }
}
