//! Planning of statements that only read.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use dosql_proto::Error;
use sqlparser::ast::{
    Distinct, Expr, Function, FunctionArguments, GroupByExpr, Ident, LimitClause, OrderByExpr, OrderByKind, Query,
    Select, SelectItem, SetExpr, Statement as Ast, Value as Literal, visit_expressions,
};

use super::predicate::{self, FromClause};
use super::{Gather, GatherKind, Input, Plan, Read, Step, Target, aggregate, check, merge, never, parse, placements};
use crate::affinity::Affinity;
use crate::catalog::{Catalog, ColumnInfo, Placement, Prepared, Shape, Table, unsupported};
use crate::sql_text::{self, quote};

/// Plans a statement that SQLite has compiled and that only reads.
pub(super) fn plan(sql: &str, catalog: &Catalog, prepared: &Prepared) -> Result<Step, Error> {
    let tables = placements(catalog, prepared);
    if let Some(check) = prepared.uses.reads.keys().find_map(|name| check::of_table(name)) {
        let message = format!("pragma_{check} as a table is not supported; PRAGMA {check} checks every shard");
        return Err(unsupported(message));
    }
    if let Some(schema_table) = prepared.uses.reads.keys().find(|name| of_schema(name)) {
        if let Some((name, _)) = tables.first() {
            return Err(unsupported(format!(
                "reading {schema_table} and table {name} in one statement is not supported"
            )));
        }
        return Ok(Step::Catalog { sql: sql.to_owned() });
    }
    Ok(Step::Read(read(sql, catalog, prepared)?))
}

/// The route of a SELECT over tables.
pub(super) fn read(sql: &str, catalog: &Catalog, prepared: &Prepared) -> Result<Read, Error> {
    let whole = |target: Target| Read::Pinned { pins: vec![target], sql: sql.to_owned(), otherwise: None };
    // A view of the router's own is on no shard.
    let temporary = prepared.uses.through.iter().any(|view| catalog.temporary.contains(view));
    if catalog.shards.len() == 1 && !temporary {
        return Ok(whole(Target::Shard(0)));
    }
    let tables = placements(catalog, prepared);
    let mut shards = BTreeSet::new();
    let mut sharded = 0;
    for (_, placement) in &tables {
        match placement {
            Placement::Unsharded(shard) => {
                shards.insert(*shard);
            }
            Placement::Sharded(_) => sharded += 1,
            Placement::Reference => {}
        }
    }
    if sharded == 0 && shards.len() <= 1 && !temporary {
        return Ok(whole(shards.first().map_or(Target::Any, |shard| Target::Shard(*shard))));
    }
    let numbered = sql_text::number_parameters(sql);
    // Scratch tables have no indexes.
    let numbered = sql_text::without_index_hints(&numbered).into_owned();
    let tree = parse(&numbered);
    if let Some(Ast::Query(query)) = &tree
        && let Some(select) = plain_select(query)
        && let Some(from) = predicate::from_clause(select, catalog)
        && predicate::queries(query.as_ref()) == 1
        && from.tables.len() == mentioned(&tables, &from)
    {
        if shards.is_empty() && never::is_never_true(&from, catalog) {
            return Ok(Read::Pinned { pins: Vec::new(), sql: sql.to_owned(), otherwise: None });
        }
        if shards.is_empty()
            && let Some(keys) = predicate::pin_all(&from)
        {
            let otherwise = match keys.as_slice() {
                [_] => None,
                _ => Some(Box::new(gather(&numbered, catalog, prepared, Some(query))?)),
            };
            return Ok(Read::Pinned {
                pins: keys.into_iter().map(Target::Keys).collect(),
                sql: sql.to_owned(),
                otherwise,
            });
        }
        if let Some(keys) = predicate::pinned_by_lookup(&from) {
            // Where the vindex is dropped meanwhile.
            let otherwise = Some(Box::new(gather(&numbered, catalog, prepared, Some(query))?));
            return Ok(Read::Pinned { pins: vec![Target::Lookup(keys)], sql: sql.to_owned(), otherwise });
        }
        if let Some(lead) = predicate::co_located(&from)
            && !has_windows(query)
        {
            let target = predicate::target(&from.tables, lead, &from.conjuncts);
            let aggregated = is_aggregate(query, select);
            if !aggregated && query.order_by.is_none() && query.limit_clause.is_none() && select.distinct.is_none() {
                return Ok(Read::Concatenate { target, sql: sql.to_owned() });
            }
            if !prepared.uses.volatile() {
                let pushed = if aggregated || select.distinct.is_some() {
                    aggregate::plan(query, select, &from, target, aggregate::Sums::OfParts)
                } else {
                    let otherwise = || {
                        top(&numbered, query, select, &from, target.clone(), prepared)
                            .or_else(|| gather(&numbered, catalog, prepared, Some(query)).ok())
                    };
                    if let Some(merge) = merge::plan(query, select, &from, &target, catalog, prepared, otherwise) {
                        return Ok(Read::Merge(Box::new(merge)));
                    }
                    top(&numbered, query, select, &from, target, prepared)
                };
                if let Some(mut pushed) = pushed {
                    if pushed.kind == GatherKind::Aggregate {
                        pushed.fallback = Some(Box::new(gather(&numbered, catalog, prepared, Some(query))?));
                    }
                    return Ok(Read::Gather(Box::new(pushed)));
                }
            }
        }
    }
    let query = match &tree {
        Some(Ast::Query(query)) => Some(query.as_ref()),
        _ => None,
    };
    Ok(Read::Gather(Box::new(gather(&numbered, catalog, prepared, query)?)))
}

/// Tables whose rows are SQLite's own.
fn of_schema(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.starts_with("sqlite_") || lower.starts_with("pragma_")
}

/// How many FROM items there are if every table the statement reads is one of them; a view would bring others.
pub(super) fn mentioned(tables: &[(&str, &Placement)], from: &FromClause<'_>) -> usize {
    let all =
        tables.iter().all(|(name, _)| from.tables.iter().any(|item| item.table.shape.name.eq_ignore_ascii_case(name)));
    if all { from.tables.len() } else { usize::MAX }
}

/// The one SELECT of a query without WITH and compounds.
pub(super) fn plain_select(query: &Query) -> Option<&Select> {
    match query.body.as_ref() {
        SetExpr::Select(select)
            if query.with.is_none()
                && query.fetch.is_none()
                && query.locks.is_empty()
                && query.pipe_operators.is_empty()
                && select.top.is_none()
                && select.qualify.is_none() =>
        {
            Some(select)
        }
        _ => None,
    }
}

/// Whether a function call is an aggregate's.
pub(super) fn aggregate_name(function: &Function) -> Option<String> {
    const AGGREGATES: [&str; 16] = [
        "count",
        "sum",
        "total",
        "avg",
        "min",
        "max",
        "group_concat",
        "string_agg",
        "json_group_array",
        "json_group_object",
        "jsonb_group_array",
        "jsonb_group_object",
        "median",
        "percentile",
        "percentile_cont",
        "percentile_disc",
    ];
    let name = function.name.to_string().to_ascii_lowercase();
    let arguments = match &function.args {
        FunctionArguments::List(list) => list.args.len(),
        FunctionArguments::None | FunctionArguments::Subquery(_) => 0,
    };
    let scalar = matches!(name.as_str(), "min" | "max") && arguments > 1;
    (AGGREGATES.contains(&name.as_str()) && !scalar).then_some(name)
}

pub(super) fn is_aggregate(query: &Query, select: &Select) -> bool {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(terms, _) if terms.is_empty());
    grouped
        || select.having.is_some()
        || any_expression(
            query,
            |expression| matches!(expression, Expr::Function(function) if aggregate_name(function).is_some()),
        )
}

pub(super) fn has_windows(query: &Query) -> bool {
    any_expression(query, |expression| matches!(expression, Expr::Function(function) if function.over.is_some()))
}

pub(super) fn any_expression(tree: &impl sqlparser::ast::Visit, accept: impl Fn(&Expr) -> bool) -> bool {
    visit_expressions(
        tree,
        |expression| {
            if accept(expression) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )
    .is_break()
}

/// ORDER BY and LIMIT over one sharded table: each shard sends its first rows, of the columns used.
fn top(
    numbered: &str,
    query: &Query,
    select: &Select,
    from: &FromClause<'_>,
    target: Target,
    prepared: &Prepared,
) -> Option<Gather> {
    let [table] = from.tables.as_slice() else { return None };
    let used = prepared.uses.reads.get(&table.table.shape.name)?;
    let mut tail = String::new();
    if let Some(limit) = pushed_limit(query) {
        let terms = match &query.order_by {
            None => Vec::new(),
            Some(order_by) => match &order_by.kind {
                OrderByKind::Expressions(terms) => {
                    terms.iter().map(|term| order_term(term, select, from)).collect::<Option<Vec<_>>>()?
                }
                OrderByKind::All(_) => return None,
            },
        };
        if !terms.is_empty() {
            tail = format!(" ORDER BY {}", terms.join(", "));
        }
        tail.push_str(&format!(" LIMIT {limit}"));
    }
    let filter = select.selection.as_ref().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
    let input = input(table.table, &table.alias, used, target, &format!("{filter}{tail}")).ok()?;
    Some(Gather {
        kind: GatherKind::Top,
        inputs: vec![input],
        views: Vec::new(),
        finish: numbered.to_owned(),
        fallback: None,
    })
}

/// How many rows a shard must send at most: the limit and the rows skipped before it.
fn pushed_limit(query: &Query) -> Option<String> {
    let (limit, offset) = match query.limit_clause.as_ref()? {
        LimitClause::LimitOffset { limit: Some(limit), offset, limit_by } if limit_by.is_empty() => {
            (limit, offset.as_ref().map(|offset| &offset.value))
        }
        LimitClause::OffsetCommaLimit { offset, limit } => (limit, Some(offset)),
        LimitClause::LimitOffset { .. } => return None,
    };
    let plain = |expression: &Expr| predicate::key_source(expression).is_some();
    if !plain(limit) || offset.is_some_and(|offset| !plain(offset)) {
        return None;
    }
    Some(match offset {
        None => limit.to_string(),
        Some(offset) => format!("CASE WHEN ({limit}) < 0 THEN -1 ELSE ({limit}) + max(0, ({offset})) END"),
    })
}

/// An ORDER BY term in terms of the table; `None` where it is not certain what it means.
fn order_term(term: &OrderByExpr, select: &Select, from: &FromClause<'_>) -> Option<String> {
    let expression = resolve_term(&term.expr, select, from)?;
    Some(OrderByExpr { expr: expression, ..term.clone() }.to_string())
}

/// What an ORDER BY term sorts by: an ordinal's or alias's expression, or itself.
pub(super) fn resolve_term(term: &Expr, select: &Select, from: &FromClause<'_>) -> Option<Expr> {
    let expression = match term {
        Expr::Value(value) => match &value.value {
            Literal::Number(text, _) => {
                let place: usize = text.parse().ok()?;
                match select.projection.get(place.checked_sub(1)?)? {
                    SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                        // A wildcard before it would shift the count.
                        if select.projection[..place].iter().any(|item| item_parts(item).is_none()) {
                            return None;
                        }
                        expr.clone()
                    }
                    _ => return None,
                }
            }
            _ => term.clone(),
        },
        Expr::Identifier(name) => match aliased(select, name) {
            Some(expression) => expression.clone(),
            None => term.clone(),
        },
        Expr::Collate { expr, collation } if matches!(**expr, Expr::Value(_)) => {
            Expr::Collate { expr: Box::new(resolve_term(expr, select, from)?), collation: collation.clone() }
        }
        _ => {
            let ambiguous = any_expression(term, |part| match part {
                Expr::Identifier(name) => aliased(select, name).is_some(),
                _ => false,
            });
            if ambiguous {
                return None;
            }
            term.clone()
        }
    };
    let literal = matches!(expression, Expr::Value(_));
    (!literal && predicate::is_local(&expression, &from.tables)).then_some(expression)
}

/// The expression a column alias stands for.
pub(super) fn aliased<'a>(select: &'a Select, name: &Ident) -> Option<&'a Expr> {
    select.projection.iter().find_map(|item| match item {
        SelectItem::ExprWithAlias { expr, alias } if alias.value.eq_ignore_ascii_case(&name.value) => Some(expr),
        _ => None,
    })
}

/// A projected expression and its alias; `None` for a wildcard.
pub(super) fn item_parts(item: &SelectItem) -> Option<(&Expr, Option<&Ident>)> {
    match item {
        SelectItem::UnnamedExpr(expr) => Some((expr, None)),
        SelectItem::ExprWithAlias { expr, alias } => Some((expr, Some(alias))),
        _ => None,
    }
}

/// The general plan: every table's rows that the statement needs, then the statement itself.
fn gather(numbered: &str, catalog: &Catalog, prepared: &Prepared, query: Option<&Query>) -> Result<Gather, Error> {
    // A view may read a table that the statement names once, and needs all of its rows.
    let plain = !prepared.uses.volatile() && prepared.uses.through.is_empty();
    let select = query.filter(|_| plain).and_then(plain_select);
    let from = select.and_then(|select| predicate::from_clause(select, catalog));
    let mut inputs = Vec::new();
    for (name, used) in &prepared.uses.reads {
        let Some(table) = catalog.table(name) else { continue };
        let mut target = match table.placement {
            Placement::Unsharded(shard) => Target::Shard(shard),
            Placement::Reference => Target::Any,
            Placement::Sharded(_) => predicate::everywhere(table),
        };
        let mut alias = table.shape.name.clone();
        let mut filter = String::new();
        if let (Some(query), Some(from)) = (query, &from)
            && let Some((place, conditions)) = local_conditions(query, from, table)
        {
            alias.clone_from(&from.tables[place].alias);
            let conditions: Vec<String> = conditions.iter().map(|conjunct| format!("({conjunct})")).collect();
            if !conditions.is_empty() {
                filter = format!(" WHERE {}", conditions.join(" AND "));
            }
            if let Placement::Sharded(_) = table.placement {
                target = predicate::target(&from.tables, place, &from.conjuncts);
            }
        }
        inputs.push(input(table, &alias, used, target, &filter)?);
    }
    Ok(Gather { kind: GatherKind::Rows, inputs, views: catalog.views()?, finish: numbered.to_owned(), fallback: None })
}

/// A table's place in a FROM clause, and the conditions that every row of it which the query needs meets; `None` where the query
/// reads it in several places, or needs rows that meet none.
pub(super) fn local_conditions<'a>(
    query: &Query,
    from: &'a FromClause<'_>,
    table: &Table,
) -> Option<(usize, Vec<&'a Expr>)> {
    if predicate::mentions(query, &table.shape.name) != 1 {
        return None;
    }
    let place = from.tables.iter().position(|item| item.table.shape.name == table.shape.name)?;
    if from.tables[place].nullable {
        return None;
    }
    let local = |conjunct: &&Expr| predicate::belongs_to(conjunct, &from.tables, place);
    Some((place, from.conjuncts.iter().filter(local).collect()))
}

/// A scratch table of the same columns as a table.
pub(super) fn scratch_table(shape: &Shape) -> String {
    let definition = |(index, column): (usize, &ColumnInfo)| {
        let declared = match column.affinity {
            _ if shape.rowid_alias == Some(index) => " INTEGER PRIMARY KEY",
            Affinity::Blob => "",
            Affinity::Text => " TEXT",
            Affinity::Numeric => " NUMERIC",
            Affinity::Real => " REAL",
        };
        format!("{}{declared} COLLATE {}", quote(&column.name), column.collation.name())
    };
    let definitions: Vec<String> = shape.columns.iter().enumerate().map(definition).collect();
    format!("CREATE TABLE {} ({})", quote(&shape.name), definitions.join(", "))
}

/// A scratch table of the same columns as `table`, and the SELECT that fills those used.
pub(super) fn input(
    table: &Table,
    alias: &str,
    used: &BTreeSet<String>,
    target: Target,
    tail: &str,
) -> Result<Input, Error> {
    let shape = &table.shape;
    let names = shape.columns.iter().map(|column| &column.name);
    let mut columns: Vec<String> =
        names.filter(|name| used.iter().any(|used| used.eq_ignore_ascii_case(name))).map(|name| quote(name)).collect();
    // Rows are in the order of their rowids there, too, which SQLite reads them in.
    let rowid = shape.hidden_rowid();
    if let Some(rowid) = rowid {
        columns.insert(0, rowid.to_owned());
    }
    let name = quote(&shape.name);
    let (selected, inserted) = match columns.is_empty() {
        // Only the number of rows counts.
        true => ("NULL".to_owned(), quote(&shape.columns[0].name)),
        false => (columns.join(", "), columns.join(", ")),
    };
    let places = vec!["?"; columns.len().max(1)].join(", ");
    let renamed = if alias == shape.name { String::new() } else { format!(" AS {}", quote(alias)) };
    Ok(Input {
        table: shape.name.clone(),
        target,
        sql: format!("SELECT {selected} FROM {name}{renamed}{tail}"),
        create: scratch_table(shape),
        insert: format!("INSERT INTO {name} ({inserted}) VALUES ({places})"),
        has_rowid: rowid.is_some(),
    })
}

impl Plan {
    /// Whether running it is a matter for `write`.
    pub(crate) fn writes(&self) -> bool {
        !matches!(
            self.step,
            Step::Read(_)
                | Step::Catalog { .. }
                | Step::Pragma { .. }
                | Step::Explain { .. }
                | Step::Show(_)
                | Step::Promote(_)
        )
    }

    /// The read a statement is, where it is one.
    pub(crate) fn read(&self) -> Option<&Read> {
        match &self.step {
            Step::Read(read) => Some(read),
            _ => None,
        }
    }
}

/// Whether DISTINCT is the plain one.
pub(super) fn plain_distinct(select: &Select) -> bool {
    matches!(select.distinct, Some(Distinct::Distinct))
}
