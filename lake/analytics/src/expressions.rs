//! A scan's predicate and aggregates as expressions of DataFusion.

use arrow::datatypes::Field;
use datafusion::common::{Column, ScalarValue};
use datafusion::functions_aggregate::expr_fn::{count, max, min, sum};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, lit};
use dosql_lake::scan::{Comparison, Literal, Predicate, ScanColumn, TableScan};
use dosql_proto::{Error, LakeAggregate, LakeAggregateCall, LakeFunction};

/// Equalities with one column at which they become one IN.
const LIST: usize = 4;

/// A scan's column; NULL where the table lacks it.
pub(crate) fn column(column: &ScanColumn) -> Expr {
    match &column.field {
        Some(field) => Expr::Column(Column::from_name(Field::name(field))),
        None => lit(ScalarValue::Null),
    }
}

/// What every row that is wanted meets; `None` where all are.
pub(crate) fn predicate(scan: &TableScan) -> Option<Expr> {
    match &scan.predicate {
        Predicate::All(parts) if parts.is_empty() => None,
        predicate => Some(expression(predicate, &scan.columns)),
    }
}

fn expression(predicate: &Predicate, columns: &[ScanColumn]) -> Expr {
    let parts = |parts: &[Predicate]| parts.iter().map(|part| expression(part, columns)).collect::<Vec<_>>();
    match predicate {
        Predicate::All(all) => conjunction(parts(all)).unwrap_or_else(|| lit(true)),
        Predicate::Any(any) => match list(any) {
            Some((place, values)) => column(&columns[place]).in_list(values, false),
            None => disjunction(parts(any)).unwrap_or_else(|| lit(false)),
        },
        Predicate::Null(place) => column(&columns[*place]).is_null(),
        Predicate::NotNull(place) => column(&columns[*place]).is_not_null(),
        Predicate::Compare(place, comparison, literal) => {
            let (left, right) = (column(&columns[*place]), scalar(literal));
            match comparison {
                Comparison::Equal => left.eq(right),
                Comparison::NotEqual => left.not_eq(right),
                Comparison::Less => left.lt(right),
                Comparison::LessOrEqual => left.lt_eq(right),
                Comparison::Greater => left.gt(right),
                Comparison::GreaterOrEqual => left.gt_eq(right),
            }
        }
    }
}

/// Equalities of one column with several values.
fn list(any: &[Predicate]) -> Option<(usize, Vec<Expr>)> {
    let value = |part: &Predicate| match part {
        Predicate::Compare(place, Comparison::Equal, literal) => Some((*place, scalar(literal))),
        _ => None,
    };
    let (places, values): (Vec<usize>, Vec<Expr>) =
        any.iter().map(value).collect::<Option<Vec<_>>>()?.into_iter().unzip();
    let first = *places.first()?;
    (places.len() >= LIST && places.iter().all(|place| *place == first)).then_some((first, values))
}

fn scalar(literal: &Literal) -> Expr {
    lit(match literal {
        Literal::Long(value) => ScalarValue::Int64(Some(*value)),
        Literal::Double(value) => ScalarValue::Float64(Some(*value)),
        Literal::String(value) => ScalarValue::Utf8(Some(value.clone())),
        Literal::Binary(value) => ScalarValue::Binary(Some(value.clone())),
    })
}

/// The groups and the calls of an aggregate, each under a name of its own.
pub(crate) fn aggregate(scan: &TableScan, aggregate: &LakeAggregate) -> Result<(Vec<Expr>, Vec<Expr>), Error> {
    let groups = aggregate.groups.iter().map(|place| column(&scan.columns[*place as usize])).collect();
    let call = |(number, call): (usize, &LakeAggregateCall)| {
        let argument = call.column.map(|place| column(&scan.columns[place as usize]));
        let value = match (call.function(), argument) {
            (LakeFunction::CountRows, _) => count(lit(1_i64)),
            (LakeFunction::Count, Some(argument)) => count(argument),
            (LakeFunction::Sum, Some(argument)) => sum(argument),
            (LakeFunction::Min, Some(argument)) => min(argument),
            (LakeFunction::Max, Some(argument)) => max(argument),
            (function, None) => return Err(Error::invalid(format!("{} is of no column", function.as_str_name()))),
        };
        Ok(value.alias(format!("_aggregate_{number}")))
    };
    let calls = aggregate.calls.iter().enumerate().map(call).collect::<Result<_, _>>()?;
    Ok((groups, calls))
}
