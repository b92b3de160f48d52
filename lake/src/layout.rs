//! How the rows of a table are laid out in files, as an operator writes it: partition specs and sort orders.

use iceberg::spec::{NullOrder, PrimitiveType, SortDirection, Transform, Type};

/// One field of a partition spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PartitionBy {
    /// `dt`: the day of the commit; `dt(column)`: the date that a column's text begins with. The field is called `dt`.
    Dt { column: Option<String> },
    /// `identity(column)`, `bucket(16, column)`, `truncate(10, column)`, `year(column)`, `month`, `day`, `hour`.
    Column { how: How, column: String },
}

/// How a column's values make partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Identity,
    Bucket(u32),
    Truncate(u32),
    Year,
    Month,
    Day,
    Hour,
}

impl PartitionBy {
    /// Reads a list of fields; `none` is the empty one.
    pub(crate) fn read(text: &str) -> Result<Vec<Self>, String> {
        if text.is_empty() || text.eq_ignore_ascii_case("none") {
            return Ok(Vec::new());
        }
        let fields: Vec<Self> = items(text).into_iter().map(Self::read_one).collect::<Result<_, _>>()?;
        match fields.iter().enumerate().find(|(at, field)| fields[..*at].contains(field)) {
            Some((_, field)) => Err(format!("{field:?} stands there twice")),
            None => Ok(fields),
        }
    }

    fn read_one(text: &str) -> Result<Self, String> {
        let unreadable = |what: &str| format!("{text:?} is no partition field: {what}");
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => {
                let inner = rest.strip_suffix(')').ok_or_else(|| unreadable("it lacks the closing parenthesis"))?;
                (name.trim(), inner.split(',').map(str::trim).collect())
            }
            None => (text, Vec::new()),
        };
        let lower = name.to_ascii_lowercase();
        let column = |column: &str| match column {
            "" => Err(unreadable("it lacks the name of a column")),
            column => Ok(column.to_owned()),
        };
        let width = |text: &str| match text.parse::<u32>() {
            Ok(width) if (1..=1 << 20).contains(&width) => Ok(width),
            _ => Err(unreadable("its first argument must be a whole number from 1 to 1048576")),
        };
        let how = match (lower.as_str(), arguments.as_slice()) {
            ("dt", []) => return Ok(Self::Dt { column: None }),
            ("dt", [of]) => return Ok(Self::Dt { column: Some(column(of)?) }),
            ("identity", [_]) => How::Identity,
            ("year", [_]) => How::Year,
            ("month", [_]) => How::Month,
            ("day", [_]) => How::Day,
            ("hour", [_]) => How::Hour,
            ("bucket", [count, _]) => How::Bucket(width(count)?),
            ("truncate", [length, _]) => How::Truncate(width(length)?),
            _ => {
                return Err(unreadable(
                    "there are dt, dt(column), identity(column), bucket(count, column), truncate(width, column), \
                     year(column), month(column), day(column) and hour(column)",
                ));
            }
        };
        Ok(Self::Column { how, column: column(arguments.last().unwrap_or(&""))? })
    }

    /// The column it is made of: the commit's time where it names none.
    pub(crate) fn column(&self) -> &str {
        match self {
            Self::Dt { column: None } => "_committed_at",
            Self::Dt { column: Some(column) } | Self::Column { column, .. } => column,
        }
    }

    /// Iceberg's transform of a column of this type. The parts of a date that text begins with are prefixes of it:
    /// `2026-01-31 12:00` has the year `2026`, the month `2026-01` and the day `2026-01-31`.
    pub(crate) fn transform(&self, of: &Type) -> Result<Transform, String> {
        let is_text = matches!(of, Type::Primitive(PrimitiveType::String));
        let time = |transform: Transform, length: u32| if is_text { Transform::Truncate(length) } else { transform };
        let transform = match self {
            Self::Dt { .. } | Self::Column { how: How::Day, .. } => time(Transform::Day, 10),
            Self::Column { how, .. } => match how {
                How::Identity => Transform::Identity,
                How::Bucket(count) => Transform::Bucket(*count),
                How::Truncate(width) => Transform::Truncate(*width),
                How::Year => time(Transform::Year, 4),
                How::Month => time(Transform::Month, 7),
                How::Day => time(Transform::Day, 10),
                How::Hour => time(Transform::Hour, 13),
            },
        };
        match transform.result_type(of) {
            Ok(_) => Ok(transform),
            Err(_) => {
                Err(format!("the column {} is of type {of}, of which {transform} cannot be taken", self.column()))
            }
        }
    }

    /// What the field is called, by the column's name in the lake.
    pub(crate) fn name(&self, column: &str) -> String {
        let suffix = match self {
            Self::Dt { .. } => return "dt".to_owned(),
            Self::Column { how, .. } => match how {
                How::Identity => return column.to_owned(),
                How::Bucket(_) => "bucket",
                How::Truncate(_) => "trunc",
                How::Year => "year",
                How::Month => "month",
                How::Day => "day",
                How::Hour => "hour",
            },
        };
        format!("{column}_{suffix}")
    }
}

/// One column of a sort order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SortBy {
    pub(crate) column: String,
    pub(crate) direction: SortDirection,
    pub(crate) nulls: NullOrder,
}

impl SortBy {
    /// Reads `column [ASC|DESC] [NULLS FIRST|LAST], ...`. NULLs come where SQLite has them: before all else, or last where the order
    /// descends.
    pub(crate) fn read(text: &str) -> Result<Vec<Self>, String> {
        if text.is_empty() || text.eq_ignore_ascii_case("none") {
            return Ok(Vec::new());
        }
        items(text).into_iter().map(Self::read_one).collect()
    }

    fn read_one(text: &str) -> Result<Self, String> {
        let unreadable =
            |word: &str| format!("{text:?} is no sort column: {word:?} is not ASC, DESC, NULLS FIRST or NULLS LAST");
        let mut words = text.split_ascii_whitespace();
        let column = words.next().ok_or("the name of a column is missing")?.to_owned();
        let mut rest: Vec<String> = words.map(str::to_ascii_uppercase).collect();
        let direction = match rest.first().map(String::as_str) {
            Some("DESC") => SortDirection::Descending,
            _ => SortDirection::Ascending,
        };
        if matches!(rest.first().map(String::as_str), Some("ASC" | "DESC")) {
            rest.remove(0);
        }
        let nulls = match rest.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] if direction == SortDirection::Ascending => NullOrder::First,
            [] => NullOrder::Last,
            ["NULLS", "FIRST"] => NullOrder::First,
            ["NULLS", "LAST"] => NullOrder::Last,
            [word, ..] => return Err(unreadable(word)),
        };
        Ok(Self { column, direction, nulls })
    }
}

/// The parts of a list between commas that stand in no parentheses.
fn items(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let split = text.split(move |character: char| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    split.map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_fields_are_read() {
        let column = |how, column: &str| PartitionBy::Column { how, column: column.to_owned() };
        let read =
            PartitionBy::read("dt(made), bucket(16, id) ,truncate(2,name), identity(a), hour(_committed_at)").unwrap();
        let expected = [
            PartitionBy::Dt { column: Some("made".to_owned()) },
            column(How::Bucket(16), "id"),
            column(How::Truncate(2), "name"),
            column(How::Identity, "a"),
            column(How::Hour, "_committed_at"),
        ];
        assert_eq!(read, expected);
        let names: Vec<String> = read.iter().map(|field| field.name(field.column())).collect();
        assert_eq!(names, ["dt", "id_bucket", "name_trunc", "a", "_committed_at_hour"]);
        assert_eq!(PartitionBy::read("none"), Ok(Vec::new()));
        for wrong in ["bucket(id)", "bucket(0, id)", "dt(", "month", "x(a)", "identity()", "dt, dt", "a"] {
            assert!(PartitionBy::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_in_text_are_truncated() {
        let transform = |text: &str, of: PrimitiveType| {
            PartitionBy::read(text).unwrap()[0].transform(&Type::Primitive(of)).map(|transform| transform.to_string())
        };
        assert_eq!(transform("dt(a)", PrimitiveType::String), Ok("truncate[10]".to_owned()));
        assert_eq!(transform("month(a)", PrimitiveType::String), Ok("truncate[7]".to_owned()));
        assert_eq!(transform("month(a)", PrimitiveType::Timestamptz), Ok("month".to_owned()));
        assert!(transform("month(a)", PrimitiveType::Long).is_err());
        assert!(transform("bucket(2, a)", PrimitiveType::Double).is_err());
    }

    #[test]
    fn sort_columns_are_read() {
        let read = SortBy::read("a, b desc, c ASC NULLS LAST").unwrap();
        let seen: Vec<_> = read.iter().map(|by| (by.column.as_str(), by.direction, by.nulls)).collect();
        assert_eq!(
            seen,
            [
                ("a", SortDirection::Ascending, NullOrder::First),
                ("b", SortDirection::Descending, NullOrder::Last),
                ("c", SortDirection::Ascending, NullOrder::Last),
            ]
        );
        assert!(SortBy::read("a,,b").is_err() && SortBy::read("a NULLS").is_err());
    }
}
