//! Conditions of a read in terms of a lake table's columns: what each means for the values that the files hold, and which files
//! and row groups cannot hold a row that meets them.
//!
//! A row that does not fit its columns (`_misfit`) holds values that its columns do not show; such rows are left to whoever
//! finishes the statement, so nothing here speaks of them.

use std::cmp::Ordering;

use dosql_proto::value::Kind;
use dosql_proto::{LakeAffinity, LakeComparison, LakeCondition, LakeNullTest, LakeOperator, lake_condition};
use iceberg::spec::{Datum, PrimitiveLiteral};

use crate::columns::ColumnType;

/// A value of a column's own type.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Literal {
    /// A 64-bit integer.
    Long(i64),
    /// A number that is not NaN.
    Double(f64),
    /// Text.
    String(String),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Literal {
    /// Doubles in IEEE 754's total order, in which Arrow compares them: -0.0 comes before 0.0.
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Double(one), Self::Double(other)) => Some(one.total_cmp(other)),
            _ => self.partial_cmp(other),
        }
    }

    fn of_datum(datum: &Datum) -> Option<Self> {
        Some(match datum.literal() {
            PrimitiveLiteral::Long(value) => Self::Long(*value),
            PrimitiveLiteral::Int(value) => Self::Long(i64::from(*value)),
            PrimitiveLiteral::Double(value) => Self::Double(value.0),
            PrimitiveLiteral::Float(value) => Self::Double(f64::from(value.0)),
            PrimitiveLiteral::String(value) => Self::String(value.clone()),
            PrimitiveLiteral::Binary(value) => Self::Binary(value.clone()),
            _ => return None,
        })
    }
}

/// How a column compares with a literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a row's columns must be like, by their places among the columns of the scan.
#[derive(Debug, Clone, PartialEq)]
pub enum Predicate {
    /// The column is not null and compares so, doubles in total order.
    Compare(usize, Comparison, Literal),
    /// The column is null.
    Null(usize),
    /// The column is not null.
    NotNull(usize),
    /// All of them; without any, every row.
    All(Vec<Predicate>),
    /// One of them at least; without any, no row.
    Any(Vec<Predicate>),
}

impl Predicate {
    const NEVER: Self = Self::Any(Vec::new());

    /// Adds the columns that it reads.
    pub(crate) fn columns(&self, columns: &mut Vec<usize>) {
        match self {
            Self::Compare(column, ..) | Self::Null(column) | Self::NotNull(column) => columns.push(*column),
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.columns(columns)),
        }
    }

    /// Whether rows of these bounds may meet it.
    pub(crate) fn may_match(&self, bounds: &dyn Bounds) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.may_match(bounds)),
            Self::Any(parts) => parts.iter().any(|part| part.may_match(bounds)),
            Self::Null(column) => bounds.nulls(*column) != Nulls::None,
            Self::NotNull(column) => bounds.nulls(*column) != Nulls::All,
            Self::Compare(column, comparison, literal) => {
                if bounds.nulls(*column) == Nulls::All {
                    return false;
                }
                let lower = bounds.lower(*column).and_then(|lower| lower.compare(literal));
                let upper = bounds.upper(*column).and_then(|upper| upper.compare(literal));
                match comparison {
                    Comparison::Equal => lower != Some(Ordering::Greater) && upper != Some(Ordering::Less),
                    Comparison::NotEqual => lower != Some(Ordering::Equal) || upper != Some(Ordering::Equal),
                    Comparison::Less => !matches!(lower, Some(Ordering::Equal | Ordering::Greater)),
                    Comparison::LessOrEqual => lower != Some(Ordering::Greater),
                    Comparison::Greater => !matches!(upper, Some(Ordering::Equal | Ordering::Less)),
                    Comparison::GreaterOrEqual => upper != Some(Ordering::Less),
                }
            }
        }
    }
}

/// What is known of how many of a column's values are null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nulls {
    None,
    All,
    Unknown,
}

impl Nulls {
    pub(crate) fn of(nulls: Option<u64>, rows: u64) -> Self {
        match nulls {
            Some(0) if rows > 0 => Self::None,
            Some(nulls) if nulls >= rows => Self::All,
            _ => Self::Unknown,
        }
    }
}

/// What is known of the values of some rows, by the columns' places in the scan. Bounds need not be values.
pub(crate) trait Bounds {
    fn lower(&self, column: usize) -> Option<Literal>;
    fn upper(&self, column: usize) -> Option<Literal>;
    fn nulls(&self, column: usize) -> Nulls;
}

/// What a manifest says of a file.
pub(crate) fn datum_bound(datum: Option<&Datum>) -> Option<Literal> {
    datum.and_then(Literal::of_datum)
}

/// A column as conditions see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Typed {
    /// `None`: the table does not have it, so it is null.
    pub(crate) column_type: Option<ColumnType>,
    pub(crate) affinity: LakeAffinity,
}

/// Translates conditions. What every row that meets a condition also meets is found for each of them, though it may be met by
/// others.
pub(crate) struct Translator<'a> {
    pub(crate) columns: &'a [Typed],
    /// Whether everything translated so far is met by no other rows than the condition.
    pub(crate) exact: bool,
}

impl Translator<'_> {
    /// All of the conditions.
    pub(crate) fn all(&mut self, conditions: &[LakeCondition]) -> Predicate {
        let parts = conditions.iter().filter_map(|condition| {
            let part = self.one(condition);
            self.exact &= part.is_some();
            part
        });
        Predicate::All(parts.collect())
    }

    /// `None` where nothing can be told.
    fn one(&mut self, condition: &LakeCondition) -> Option<Predicate> {
        match condition.condition.as_ref()? {
            lake_condition::Condition::All(all) => Some(self.all(&all.conditions)),
            lake_condition::Condition::Any(any) => {
                any.conditions.iter().map(|part| self.one(part)).collect::<Option<_>>().map(Predicate::Any)
            }
            lake_condition::Condition::Null(LakeNullTest { column, is_null }) => {
                let column = *column as usize;
                let missing = self.columns.get(column)?.column_type.is_none();
                Some(match (missing, is_null) {
                    (true, true) => Predicate::All(Vec::new()),
                    (true, false) => Predicate::NEVER,
                    (false, true) => Predicate::Null(column),
                    (false, false) => Predicate::NotNull(column),
                })
            }
            lake_condition::Condition::Comparison(comparison) => self.comparison(comparison),
        }
    }

    fn comparison(&mut self, condition: &LakeComparison) -> Option<Predicate> {
        let comparison = match condition.operator() {
            LakeOperator::Unspecified => return None,
            LakeOperator::Equal => Comparison::Equal,
            LakeOperator::NotEqual => Comparison::NotEqual,
            LakeOperator::Less => Comparison::Less,
            LakeOperator::LessOrEqual => Comparison::LessOrEqual,
            LakeOperator::Greater => Comparison::Greater,
            LakeOperator::GreaterOrEqual => Comparison::GreaterOrEqual,
        };
        let column = condition.column as usize;
        let Typed { column_type, affinity } = *self.columns.get(column)?;
        // NULL compares with nothing, and nothing with NULL.
        let Some(value) = condition.value.as_ref().and_then(|value| value.kind.as_ref()) else {
            return Some(Predicate::NEVER);
        };
        let Some(column_type) = column_type else { return Some(Predicate::NEVER) };
        let holds = |literal| Some(Predicate::Compare(column, comparison, literal));
        match (column_type, affinity, value) {
            (ColumnType::Long, LakeAffinity::Numeric, Kind::Integer(integer)) => holds(Literal::Long(*integer)),
            (ColumnType::Long, LakeAffinity::Numeric, Kind::Real(real)) => long_against_real(column, comparison, *real),
            (ColumnType::Double, LakeAffinity::Numeric | LakeAffinity::Real, Kind::Integer(integer)) => {
                double_against(column, comparison, exact_double(*integer)?)
            }
            (ColumnType::Double, LakeAffinity::Numeric | LakeAffinity::Real, Kind::Real(real)) => {
                double_against(column, comparison, *real)
            }
            // Numbers come before text, and text before blobs.
            (ColumnType::Long, LakeAffinity::Numeric, Kind::Text(_) | Kind::RawText(_) | Kind::Blob(_))
            | (
                ColumnType::Double,
                LakeAffinity::Numeric | LakeAffinity::Real,
                Kind::Text(_) | Kind::RawText(_) | Kind::Blob(_),
            )
            | (ColumnType::String, LakeAffinity::Text, Kind::Blob(_)) => {
                Some(by_class(column, comparison, Ordering::Less))
            }
            (ColumnType::String, LakeAffinity::Text, Kind::Text(text)) => holds(Literal::String(text.clone())),
            // Dates, say. Numbers stand there as text, too, which come before all text: where they are wanted nothing can
            // be told, and elsewhere some may be found that are not wanted.
            (ColumnType::String, LakeAffinity::Numeric, Kind::Text(text)) => {
                match comparison {
                    Comparison::Less | Comparison::LessOrEqual => return None,
                    Comparison::Greater | Comparison::GreaterOrEqual => self.exact = false,
                    Comparison::Equal | Comparison::NotEqual => {}
                }
                holds(Literal::String(text.clone()))
            }
            (ColumnType::Binary, LakeAffinity::Blob, Kind::Blob(bytes)) => holds(Literal::Binary(bytes.clone())),
            (ColumnType::Binary, LakeAffinity::Blob, _) => Some(by_class(column, comparison, Ordering::Greater)),
            _ => None,
        }
    }
}

/// A comparison that the storage classes decide: every value of the column is so against the literal.
fn by_class(column: usize, comparison: Comparison, order: Ordering) -> Predicate {
    let holds = match comparison {
        Comparison::Equal => false,
        Comparison::NotEqual => true,
        Comparison::Less | Comparison::LessOrEqual => order == Ordering::Less,
        Comparison::Greater | Comparison::GreaterOrEqual => order == Ordering::Greater,
    };
    if holds { Predicate::NotNull(column) } else { Predicate::NEVER }
}

/// Integers against a real, which SQLite compares without rounding.
fn long_against_real(column: usize, comparison: Comparison, real: f64) -> Option<Predicate> {
    /// 2^63, beyond every integer.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if real.is_nan() {
        return None;
    }
    if real >= BEYOND {
        return Some(by_class(column, comparison, Ordering::Less));
    }
    if real < -BEYOND {
        return Some(by_class(column, comparison, Ordering::Greater));
    }
    // Between the limits a double's integral part is an integer of 64 bits.
    let floor = real.floor();
    let (comparison, bound) = match comparison {
        _ if floor == real => (comparison, floor),
        Comparison::Equal => return Some(Predicate::NEVER),
        Comparison::NotEqual => return Some(Predicate::NotNull(column)),
        Comparison::Less | Comparison::LessOrEqual => (Comparison::LessOrEqual, floor),
        Comparison::Greater | Comparison::GreaterOrEqual => (Comparison::Greater, floor),
    };
    #[allow(clippy::cast_possible_truncation, reason = "it is integral and within the limits")]
    Some(Predicate::Compare(column, comparison, Literal::Long(bound as i64)))
}

/// Doubles against a double. SQLite takes -0.0 and 0.0 for the same, total order does not.
fn double_against(column: usize, comparison: Comparison, real: f64) -> Option<Predicate> {
    if real.is_nan() {
        return None;
    }
    let compare = |comparison, real| Predicate::Compare(column, comparison, Literal::Double(real));
    if real != 0.0 {
        return Some(compare(comparison, real));
    }
    Some(match comparison {
        Comparison::Equal => {
            Predicate::All(vec![compare(Comparison::GreaterOrEqual, -0.0), compare(Comparison::LessOrEqual, 0.0)])
        }
        Comparison::NotEqual => {
            Predicate::Any(vec![compare(Comparison::Less, -0.0), compare(Comparison::Greater, 0.0)])
        }
        Comparison::Less | Comparison::GreaterOrEqual => compare(comparison, -0.0),
        Comparison::LessOrEqual | Comparison::Greater => compare(comparison, 0.0),
    })
}

fn exact_double(integer: i64) -> Option<f64> {
    crate::misfits::is_exact(integer).then_some(integer as f64)
}

#[cfg(test)]
#[path = "predicate_tests.rs"]
mod tests;
