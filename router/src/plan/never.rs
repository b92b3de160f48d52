//! Conditions that no row satisfies, told without looking at rows.

use sqlparser::ast::{Expr, Value as Literal};

use super::predicate::{self, FromClause};
use super::select::any_expression;
use crate::catalog::Catalog;

/// Whether the conjuncts contradict each other, or one is constant, and false or NULL.
pub(super) fn is_never_true(from: &FromClause<'_>, catalog: &Catalog) -> bool {
    predicate::impossible(&from.conjuncts)
        || from.conjuncts.iter().filter(|conjunct| constant(conjunct)).any(|conjunct| {
            let sql = format!("SELECT ({conjunct}) IS NOT TRUE");
            // What SQLite does not take is left for the shards to judge.
            catalog.mirror.connection.query_row(&sql, [], |row| row.get(0)).unwrap_or(false)
        })
}

fn constant(expression: &Expr) -> bool {
    predicate::queries(expression) == 0
        && !any_expression(expression, |part| match part {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Function(_) => true,
            Expr::Value(value) => matches!(value.value, Literal::Placeholder(_)),
            _ => false,
        })
}
