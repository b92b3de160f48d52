//! Rows of one table that shards sort or limit, and the router only puts together as they come.

use sqlparser::ast::{
    Expr, LimitClause, ObjectNamePart, Offset, OffsetRows, OrderByKind, Query, Select, SelectItem, SetExpr,
    UnaryOperator, Value as Literal,
};

use super::predicate::{self, FromClause};
use super::select::{any_expression, item_parts, resolve_term};
use super::{Gather, KeySource, Target};
use crate::affinity::Collation;
use crate::catalog::{Catalog, Prepared};

/// Rows of several shards, merged by their order or put one after the other, with one limit over all of them.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(crate) table: String,
    pub(crate) target: Target,
    /// Runs on each shard; its parameters are numbered. What rows are sorted by, where it is not in the result, follows the
    /// result's columns.
    pub(crate) sql: String,
    /// What rows are sorted by; empty where they come in any order.
    pub(crate) order: Vec<SortKey>,
    pub(crate) order_text: String,
    pub(crate) limit: Option<Limit>,
    /// What to do where the limit is no integer.
    pub(crate) otherwise: Box<Gather>,
}

/// One term of ORDER BY.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SortKey {
    /// The column of a shard's rows.
    pub(crate) column: usize,
    pub(crate) collation: Collation,
    pub(crate) descending: bool,
    pub(crate) nulls_first: bool,
}

/// LIMIT and OFFSET.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) count: KeySource,
    pub(crate) offset: Option<KeySource>,
    /// The number of the parameter that tells a shard how many rows are wanted of it.
    pub(crate) parameter: usize,
}

/// The plan, where it is certain how the rows of different shards compare.
pub(super) fn plan(
    query: &Query,
    select: &Select,
    from: &FromClause<'_>,
    target: &Target,
    catalog: &Catalog,
    prepared: &Prepared,
    otherwise: impl FnOnce() -> Option<Gather>,
) -> Option<Merge> {
    let mut pushed = query.clone();
    let SetExpr::Select(sent) = pushed.body.as_mut() else { return None };
    let width = prepared.columns.len();
    let mut order = Vec::new();
    let mut order_text = String::new();
    if let Some(order_by) = &query.order_by {
        let OrderByKind::Expressions(terms) = &order_by.kind else { return None };
        for term in terms {
            let expression = resolve_term(&term.expr, select, from)?;
            let descending = term.options.asc == Some(false);
            let column = match projected(&expression, select) {
                Some(column) => column,
                None => {
                    sent.projection.push(SelectItem::UnnamedExpr(expression.clone()));
                    width + sent.projection.len() - select.projection.len() - 1
                }
            };
            order.push(SortKey {
                column,
                collation: collation_of(&expression, from)?,
                descending,
                nulls_first: term.options.nulls_first.unwrap_or(!descending),
            });
        }
        let terms: Vec<String> = terms.iter().map(ToString::to_string).collect();
        order_text = terms.join(", ");
    }
    let limit = match &query.limit_clause {
        None => None,
        Some(clause) => {
            let (count, offset) = limit_of(clause)?;
            let parameter = prepared.parameter_count + 1;
            pushed.limit_clause = Some(LimitClause::LimitOffset {
                limit: Some(Expr::value(Literal::Placeholder(format!("?{parameter}")))),
                offset: None::<Offset>,
                limit_by: Vec::new(),
            });
            Some(Limit { count, offset, parameter })
        }
    };
    let sql = pushed.to_string();
    // The text went through a parser that is not SQLite's.
    let columns = catalog.mirror.connection.prepare(&sql).ok()?.column_count();
    let hidden = order.iter().map(|key| (key.column + 1).saturating_sub(width)).max().unwrap_or(0);
    if columns != width + hidden {
        return None;
    }
    Some(Merge {
        table: from.tables[0].table.shape.name.clone(),
        target: target.clone(),
        sql,
        order,
        order_text,
        limit,
        otherwise: Box::new(otherwise()?),
    })
}

/// LIMIT and OFFSET as values; `None` where they are expressions.
fn limit_of(clause: &LimitClause) -> Option<(KeySource, Option<KeySource>)> {
    let (count, offset) = match clause {
        LimitClause::LimitOffset { limit: Some(count), offset, limit_by } if limit_by.is_empty() => match offset {
            Some(Offset { value, rows: OffsetRows::None }) => (count, Some(value)),
            Some(_) => return None,
            None => (count, None),
        },
        LimitClause::OffsetCommaLimit { offset, limit } => (limit, Some(offset)),
        LimitClause::LimitOffset { .. } => return None,
    };
    let offset = match offset {
        Some(offset) => Some(predicate::key_source(offset)?),
        None => None,
    };
    Some((predicate::key_source(count)?, offset))
}

/// The column of the result that is this expression, where no wildcard before it shifts the count.
fn projected(expression: &Expr, select: &Select) -> Option<usize> {
    select.projection.iter().map_while(item_parts).position(|(item, _)| item == expression)
}

/// The collation that ORDER BY uses for an expression; `None` where it is not certain.
fn collation_of(expression: &Expr, from: &FromClause<'_>) -> Option<Collation> {
    if let Some((table, column)) = predicate::column_of(expression, &from.tables) {
        return Some(from.tables[table].table.shape.columns[column].collation);
    }
    match expression {
        Expr::Nested(inner)
        | Expr::Cast { expr: inner, .. }
        | Expr::UnaryOp { op: UnaryOperator::Plus, expr: inner } => collation_of(inner, from),
        Expr::Collate { collation, .. } => match collation.0.as_slice() {
            [ObjectNamePart::Identifier(name)] => Collation::named(&name.value),
            _ => None,
        },
        _ => (!any_expression(expression, |part| matches!(part, Expr::Collate { .. }))).then_some(Collation::Binary),
    }
}
