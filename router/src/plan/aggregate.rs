//! Partial aggregates: each shard groups its own rows, and the groups are merged in the scratch database.
//!
//! The merging statement is the original with every aggregate replaced by one over the partial results, and every grouping
//! expression by the column that carries it. Whatever does not fit that pattern is left to the general plan.

use std::ops::ControlFlow;

use dosql_actors::sql_sum;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, OrderByKind,
    Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, VisitMut, VisitorMut, visit_expressions_mut,
};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

use super::predicate::{self, FromClause};
use super::select::{aggregate_name, aliased, any_expression, item_parts, plain_distinct};
use super::{Gather, GatherKind, Input, Target};
use crate::affinity::{Affinity, Collation};

/// The scratch table of partial results.
const PARTIAL: &str = "_dosql_partial";

/// What `sum`, `total` and `avg` are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// The one aggregate that shards have for them all.
    OfParts,
    /// Those of the rows' own, and `count`, which everything has.
    OfSums,
}

struct Merge<'a> {
    sums: Sums,
    from: &'a FromClause<'a>,
    select: &'a Select,
    /// Grouping expressions, normalised.
    groups: Vec<String>,
    /// Partial aggregates as they are pushed, with the collation of what they carry.
    partials: Vec<(String, Collation)>,
}

/// The plan, where the statement fits the pattern.
pub(super) fn plan(
    query: &Query,
    select: &Select,
    from: &FromClause<'_>,
    target: Target,
    sums: Sums,
) -> Option<Gather> {
    let distinct = select.distinct.is_some();
    if distinct && !plain_distinct(select) {
        return None;
    }
    let mut terms: Vec<Expr> = match &select.group_by {
        GroupByExpr::Expressions(terms, modifiers) if modifiers.is_empty() => {
            terms.iter().map(|term| group_term(term, select, from)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    let items: Vec<(&Expr, Option<&Ident>)> = select.projection.iter().map(item_parts).collect::<Option<_>>()?;
    let mut pushed_distinct = "";
    if distinct && terms.is_empty() && select.having.is_none() && !has_aggregate(select) {
        terms =
            items.iter().filter(|(expr, _)| !matches!(expr, Expr::Value(_))).map(|(expr, _)| (*expr).clone()).collect();
        if terms.is_empty() {
            return None;
        }
        pushed_distinct = "DISTINCT ";
    }
    let mut merge = Merge { sums, from, select, groups: Vec::new(), partials: Vec::new() };
    let mut definitions = Vec::new();
    let mut pushed = Vec::new();
    for (index, term) in terms.iter().enumerate() {
        let definition = group_column(term, from)?;
        definitions.push(format!("_dosql_g{index}{definition}"));
        let text = normalised(term, from);
        pushed.push(text.clone());
        merge.groups.push(text);
    }

    let mut finish = query.clone();
    let SetExpr::Select(merged) = finish.body.as_mut() else { return None };
    merged.from = vec![partial_table()];
    merged.selection = None;
    for item in &mut merged.projection {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => merge.rewrite(expr)?,
            _ => return None,
        }
    }
    if let Some(having) = &mut merged.having {
        merge.rewrite(having)?;
    }
    if pushed_distinct.is_empty() {
        let columns = (0..terms.len()).map(|index| Expr::Identifier(Ident::new(format!("_dosql_g{index}")))).collect();
        merged.group_by = GroupByExpr::Expressions(columns, Vec::new());
    }
    if let Some(order_by) = &mut finish.order_by {
        let OrderByKind::Expressions(terms) = &mut order_by.kind else { return None };
        for term in terms {
            let named = matches!(&term.expr, Expr::Identifier(name) if aliased(select, name).is_some());
            if named || matches!(term.expr, Expr::Value(_)) {
                continue;
            }
            let ambiguous = any_expression(
                &term.expr,
                |part| matches!(part, Expr::Identifier(name) if aliased(select, name).is_some()),
            );
            if ambiguous {
                return None;
            }
            merge.rewrite(&mut term.expr)?;
        }
    }

    for (index, (text, collation)) in merge.partials.iter().enumerate() {
        definitions.push(format!("_dosql_a{index} COLLATE {}", collation.name()));
        pushed.push(text.clone());
    }
    if definitions.is_empty() {
        // SELECT 1 ... HAVING: no column carries anything.
        return None;
    }
    let filter = select.selection.as_ref().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
    let grouping = match pushed_distinct.is_empty() && !merge.groups.is_empty() {
        true => format!(" GROUP BY {}", merge.groups.join(", ")),
        false => String::new(),
    };
    let source = match from.tables.as_slice() {
        [table] if table.alias == table.table.shape.name => crate::sql_text::quote(&table.alias),
        [table] => {
            format!("{} AS {}", crate::sql_text::quote(&table.table.shape.name), crate::sql_text::quote(&table.alias))
        }
        _ => select.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let names: Vec<&str> = from.tables.iter().map(|table| table.table.shape.name.as_str()).collect();
    let places = vec!["?"; definitions.len()].join(", ");
    let input = Input {
        table: names.join(", "),
        target,
        sql: format!("SELECT {pushed_distinct}{} FROM {source}{filter}{grouping}", pushed.join(", ")),
        create: format!("CREATE TABLE {PARTIAL} ({})", definitions.join(", ")),
        insert: format!("INSERT INTO {PARTIAL} VALUES ({places})"),
        has_rowid: false,
    };
    Some(Gather {
        kind: GatherKind::Aggregate,
        inputs: vec![input],
        views: Vec::new(),
        finish: finish.to_string(),
        fallback: None,
    })
}

fn has_aggregate(select: &Select) -> bool {
    any_expression(select, |expr| matches!(expr, Expr::Function(function) if aggregate_name(function).is_some()))
}

fn partial_table() -> TableWithJoins {
    let relation = TableFactor::Table {
        name: ObjectName::from(vec![Ident::new(PARTIAL)]),
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    };
    TableWithJoins { relation, joins: Vec::new() }
}

/// What a GROUP BY term groups by: an ordinal's expression, a column, an alias's expression, or itself.
fn group_term(term: &Expr, select: &Select, from: &FromClause<'_>) -> Option<Expr> {
    let expression = match term {
        Expr::Value(_) => super::select::resolve_term(term, select, from)?,
        Expr::Identifier(name) if predicate::column_of(term, &from.tables).is_none() => aliased(select, name)?.clone(),
        other => other.clone(),
    };
    (!matches!(expression, Expr::Value(_))).then_some(expression)
}

/// How the scratch column of a grouping expression is declared, so that it compares as the expression does.
fn group_column(term: &Expr, from: &FromClause<'_>) -> Option<String> {
    if let Some((table, index)) = predicate::column_of(term, &from.tables) {
        let column = &from.tables[table].table.shape.columns[index];
        let declared = match column.affinity {
            Affinity::Blob => "",
            Affinity::Text => " TEXT",
            Affinity::Numeric => " NUMERIC",
            Affinity::Real => " REAL",
        };
        return Some(format!("{declared} COLLATE {}", column.collation.name()));
    }
    // Casts have an affinity and COLLATE and single columns within have a collation that a plain column would not carry.
    let plain = match term {
        Expr::Function(function) => aggregate_name(function).is_none(),
        Expr::BinaryOp { .. } | Expr::Case { .. } => true,
        _ => false,
    };
    let collated = any_expression(term, |part| matches!(part, Expr::Collate { .. }));
    (plain && !collated && predicate::is_local(term, &from.tables)).then(String::new)
}

/// The expression as text with every column in one spelling.
fn normalised(expression: &Expr, from: &FromClause<'_>) -> String {
    let mut expression = match expression {
        Expr::Nested(inner) => inner.as_ref().clone(),
        other => other.clone(),
    };
    let _: ControlFlow<()> = visit_expressions_mut(&mut expression, |part| {
        if let Some((table, index)) = predicate::column_of(part, &from.tables) {
            let item = &from.tables[table];
            let name = Ident::with_quote('"', item.table.shape.columns[index].name.clone());
            *part = match from.tables.len() {
                1 => Expr::Identifier(name),
                _ => Expr::CompoundIdentifier(vec![Ident::with_quote('"', item.alias.clone()), name]),
            };
        }
        ControlFlow::Continue(())
    });
    expression.to_string()
}

impl Merge<'_> {
    /// Rewrites an expression for the merge; `None` where it reads something the shards do not send.
    fn rewrite(&mut self, expression: &mut Expr) -> Option<()> {
        match expression.visit(self) {
            ControlFlow::Continue(()) => Some(()),
            ControlFlow::Break(()) => None,
        }
    }

    fn partial(&mut self, text: String, collation: Collation) -> String {
        let index = match self.partials.iter().position(|(known, _)| *known == text) {
            Some(index) => index,
            None => {
                self.partials.push((text, collation));
                self.partials.len() - 1
            }
        };
        format!("_dosql_a{index}")
    }

    /// The aggregate over partial results that stands for an aggregate over rows.
    fn merged(&mut self, name: &str, function: &Function) -> Option<String> {
        let FunctionArguments::List(list) = &function.args else { return None };
        if list.duplicate_treatment.is_some() || !list.clauses.is_empty() || !function.within_group.is_empty() {
            return None;
        }
        let argument = match list.args.as_slice() {
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] => Some(argument),
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if name == "count" => None,
            [] if name == "count" => None,
            _ => return None,
        };
        if let Some(argument) = argument
            && (!predicate::is_local(argument, &self.from.tables)
                || any_expression(argument, |part| {
                    matches!(part, Expr::Collate { .. })
                        || matches!(part, Expr::Function(inner) if aggregate_name(inner).is_some())
                }))
        {
            return None;
        }
        let text = function.to_string();
        let over =
            |name: &str| Function { name: ObjectName::from(vec![Ident::new(name)]), ..function.clone() }.to_string();
        let whole = match (self.sums, name) {
            (Sums::OfParts, "sum") => Some(sql_sum::SUM),
            (Sums::OfParts, "total") => Some(sql_sum::TOTAL),
            (Sums::OfParts, "avg") => Some(sql_sum::MEAN),
            _ => None,
        };
        if let Some(whole) = whole {
            return Some(format!("{whole}({})", self.partial(over(sql_sum::PART), Collation::Binary)));
        }
        Some(match name {
            "count" => format!("COALESCE(SUM({}), 0)", self.partial(text, Collation::Binary)),
            "sum" => format!("SUM({})", self.partial(text, Collation::Binary)),
            "total" => format!("TOTAL({})", self.partial(text, Collation::Binary)),
            "avg" => {
                let sum = self.partial(over("SUM"), Collation::Binary);
                let count = self.partial(over("COUNT"), Collation::Binary);
                format!("(CAST(SUM({sum}) AS REAL) / SUM({count}))")
            }
            "min" | "max" => {
                let column = argument.and_then(|argument| predicate::column_of(argument, &self.from.tables));
                let collation = column.map_or(Collation::Binary, |(table, index)| {
                    self.from.tables[table].table.shape.columns[index].collation
                });
                // An expression over a column with a collation of its own may carry that along.
                let carried = column.is_none()
                    && self
                        .from
                        .tables
                        .iter()
                        .flat_map(|table| &table.table.shape.columns)
                        .any(|column| column.collation != Collation::Binary);
                if carried {
                    return None;
                }
                format!("{}({})", name.to_ascii_uppercase(), self.partial(text, collation))
            }
            _ => return None,
        })
    }
}

impl VisitorMut for Merge<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        let own = |name: &Ident| name.value.starts_with("_dosql_");
        match expression {
            Expr::Value(_) => return ControlFlow::Continue(()),
            Expr::Identifier(name) if own(name) => return ControlFlow::Continue(()),
            // An aggregate that was put here a moment ago: its argument is a partial result.
            Expr::Function(function)
                if matches!(&function.args, FunctionArguments::List(list) if matches!(
                    list.args.first(),
                    Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(name)))) if own(name)
                )) =>
            {
                return ControlFlow::Continue(());
            }
            _ => {}
        }
        let text = normalised(expression, self.from);
        if let Some(index) = self.groups.iter().position(|group| *group == text) {
            *expression = Expr::Identifier(Ident::new(format!("_dosql_g{index}")));
            return ControlFlow::Continue(());
        }
        match expression {
            Expr::Identifier(name) => {
                // An alias, in HAVING: what it stands for is rewritten where it is defined.
                let alias = predicate::column_of(&Expr::Identifier(name.clone()), &self.from.tables).is_none()
                    && aliased(self.select, name).is_some();
                if alias { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }
            Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
            Expr::Function(function) => {
                let Some(name) = aggregate_name(function) else { return ControlFlow::Continue(()) };
                let merged = self
                    .merged(&name, function)
                    .and_then(|text| Parser::new(&SQLiteDialect {}).try_with_sql(&text).ok()?.parse_expr().ok());
                match merged {
                    Some(merged) => {
                        *expression = merged;
                        ControlFlow::Continue(())
                    }
                    None => ControlFlow::Break(()),
                }
            }
            _ => ControlFlow::Continue(()),
        }
    }
}
