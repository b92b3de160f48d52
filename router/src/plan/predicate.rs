//! What can be told from a FROM clause and a WHERE clause: which column a name means, which conjuncts pin a shard, which ones
//! a single table can answer.

use std::ops::ControlFlow;
use std::rc::Rc;

use dosql_proto::{Value, value::Kind};
use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArguments, Ident, JoinConstraint, JoinOperator, ObjectName, Query, Select,
    TableFactor, UnaryOperator, Value as Literal, Visit, Visitor, visit_expressions, visit_relations,
};

use super::{KeyBound, KeyRange, KeySource, Keys, LookupKeys, Target};
use crate::catalog::{Catalog, Placement, Table};

/// A base table in a FROM clause.
pub(super) struct FromTable<'a> {
    pub(super) table: &'a Table,
    /// What columns are qualified with.
    pub(super) alias: String,
    /// Whether an outer join may replace its rows by NULLs.
    pub(super) nullable: bool,
}

/// A FROM clause of base tables alone.
pub(super) struct FromClause<'a> {
    pub(super) tables: Vec<FromTable<'a>>,
    /// The conjuncts every row of the result satisfies.
    pub(super) conjuncts: Vec<Expr>,
}

/// A SELECT's FROM and WHERE; `None` where something other than base tables is read from.
pub(super) fn from_clause<'a>(select: &Select, catalog: &'a Catalog) -> Option<FromClause<'a>> {
    let mut from = FromClause { tables: Vec::new(), conjuncts: Vec::new() };
    // Whether a RIGHT or FULL join may keep rows that no other condition of ON holds for; WHERE always does.
    let mut outer = false;
    for item in &select.from {
        from.tables.push(base_table(&item.relation, catalog)?);
        for join in &item.joins {
            let mut table = base_table(&join.relation, catalog)?;
            let constraint = match &join.join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::CrossJoin(constraint) => Some(constraint),
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => {
                    table.nullable = true;
                    None
                }
                _ => {
                    from.tables.iter_mut().for_each(|table| table.nullable = true);
                    table.nullable = true;
                    outer = true;
                    None
                }
            };
            from.tables.push(table);
            if let Some(JoinConstraint::On(condition)) = constraint {
                split(condition, &mut from.conjuncts);
            }
        }
    }
    if outer {
        from.conjuncts.clear();
    }
    if let Some(condition) = &select.selection {
        split(condition, &mut from.conjuncts);
    }
    Some(from)
}

/// A base table; `None` for anything else.
pub(super) fn base_table<'a>(factor: &TableFactor, catalog: &'a Catalog) -> Option<FromTable<'a>> {
    let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
    let table = catalog.table(&table_name(name)?)?;
    let alias = match alias {
        Some(alias) if alias.columns.is_empty() => alias.name.value.clone(),
        Some(_) => return None,
        None => table.shape.name.clone(),
    };
    Some(FromTable { table, alias, nullable: false })
}

/// `t` or `main.t`.
pub(super) fn table_name(name: &ObjectName) -> Option<String> {
    let parts: Vec<&Ident> = name.0.iter().map(|part| part.as_ident()).collect::<Option<_>>()?;
    match parts.as_slice() {
        [table] => Some(table.value.clone()),
        [schema, table] if schema.value.eq_ignore_ascii_case("main") => Some(table.value.clone()),
        _ => None,
    }
}

/// The conjuncts of a condition.
pub(super) fn split(condition: &Expr, conjuncts: &mut Vec<Expr>) {
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(left, conjuncts);
            split(right, conjuncts);
        }
        Expr::Nested(inner) => split(inner, conjuncts),
        other => conjuncts.push(other.clone()),
    }
}

/// The column an expression is, as (table, column) indexes.
pub(super) fn column_of(expression: &Expr, tables: &[FromTable<'_>]) -> Option<(usize, usize)> {
    match expression {
        Expr::Nested(inner) => column_of(inner, tables),
        Expr::Identifier(name) => {
            let mut found = tables
                .iter()
                .enumerate()
                .filter_map(|(index, from)| Some((index, column_named(from.table, &name.value)?)));
            let first = found.next()?;
            found.next().is_none().then_some(first)
        }
        Expr::CompoundIdentifier(parts) => {
            let [qualifier, name] = parts.as_slice() else { return None };
            let mut found =
                tables.iter().enumerate().filter(|(_, from)| from.alias.eq_ignore_ascii_case(&qualifier.value));
            let (index, from) = found.next()?;
            if found.next().is_some() {
                return None;
            }
            Some((index, column_named(from.table, &name.value)?))
        }
        _ => None,
    }
}

/// A column by its name, or the INTEGER PRIMARY KEY by one of the rowid's.
fn column_named(table: &Table, name: &str) -> Option<usize> {
    table.shape.column(name).or_else(|| {
        let rowid = ["rowid", "oid", "_rowid_"].iter().any(|known| name.eq_ignore_ascii_case(known));
        if rowid { table.shape.rowid_alias } else { None }
    })
}

/// A literal or parameter as a key's value.
pub(super) fn key_source(expression: &Expr) -> Option<KeySource> {
    match expression {
        Expr::Nested(inner) => key_source(inner),
        Expr::Value(value) => match &value.value {
            Literal::Number(text, _) => number(text, false).map(KeySource::Literal),
            Literal::SingleQuotedString(text) => Some(KeySource::Literal(text.as_str().into())),
            Literal::Null => Some(KeySource::Literal(Value::NULL)),
            Literal::Placeholder(text) => {
                let index: usize = text.strip_prefix('?')?.parse().ok()?;
                index.checked_sub(1).map(KeySource::Param)
            }
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Literal::Number(text, _) => number(text, true).map(KeySource::Literal),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// Plain decimal numbers; what SQLite might read otherwise is left to it.
fn number(text: &str, negative: bool) -> Option<Value> {
    let signed = if negative { format!("-{text}") } else { text.to_owned() };
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return signed.parse::<i64>().ok().map(Value::from);
    }
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        .then(|| signed.parse::<f64>().ok().map(Value::from))?
}

/// The keys that the conjuncts allow a sharded table, where they do.
pub(super) fn pin(tables: &[FromTable<'_>], table: usize, conjuncts: &[Expr]) -> Option<Keys> {
    let Placement::Sharded(column) = tables[table].table.placement else { return None };
    keys(tables[table].table, column, values_of(tables, table, column, conjuncts)?)
}

/// The values that the conjuncts allow a column, where they do; the fewest of what they say.
fn values_of(tables: &[FromTable<'_>], table: usize, column: usize, conjuncts: &[Expr]) -> Option<Vec<KeySource>> {
    let mut best: Option<Vec<KeySource>> = None;
    for conjunct in conjuncts {
        let found = match conjunct {
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                if column_of(left, tables) == Some((table, column)) {
                    key_source(right).map(|key| vec![key])
                } else if column_of(right, tables) == Some((table, column)) {
                    key_source(left).map(|key| vec![key])
                } else {
                    None
                }
            }
            Expr::InList { expr, list, negated: false } if column_of(expr, tables) == Some((table, column)) => {
                list.iter().map(key_source).collect()
            }
            _ => None,
        };
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| found.len() < best.len())
        {
            best = Some(found);
        }
    }
    best
}

/// The values that the conjuncts allow a column with a lookup vindex: a unique one where there is one, and the fewest.
fn looked_up(tables: &[FromTable<'_>], table: usize, conjuncts: &[Expr]) -> Option<LookupKeys> {
    let owner = tables[table].table;
    let found = owner.lookups.iter().filter(|lookup| lookup.filled).filter_map(|lookup| {
        let column = owner.shape.column(&lookup.definition.column)?;
        let values = values_of(tables, table, column, conjuncts)?;
        Some(LookupKeys { lookup: Rc::clone(lookup), values })
    });
    found.min_by_key(|keys| (!keys.lookup.definition.unique, keys.values.len()))
}

/// A value of a unique lookup vindex that, by itself, says on which shard the rows of a join are that every shard can do.
pub(super) fn pinned_by_lookup(from: &FromClause<'_>) -> Option<LookupKeys> {
    co_located(from)?;
    (0..from.tables.len()).find_map(|table| {
        let keys = looked_up(&from.tables, table, &from.conjuncts)?;
        (keys.lookup.definition.unique && keys.values.len() == 1).then_some(keys)
    })
}

/// Keys of a table sharded by `column`.
pub(crate) fn keys(table: &Table, column: usize, values: Vec<KeySource>) -> Option<Keys> {
    let info = &table.shape.columns[column];
    Some(Keys {
        table: table.shape.name.clone(),
        column: info.name.clone(),
        affinity: info.affinity,
        collation: info.collation,
        required: info.required,
        vindex: Rc::clone(table.vindex.as_ref()?),
        values,
    })
}

/// The shards that may hold rows of a sharded table that satisfy the conjuncts.
pub(super) fn target(tables: &[FromTable<'_>], table: usize, conjuncts: &[Expr]) -> Target {
    if impossible(conjuncts) {
        return Target::Nowhere;
    }
    pin(tables, table, conjuncts)
        .map(Target::Keys)
        .or_else(|| looked_up(tables, table, conjuncts).map(Target::Lookup))
        .or_else(|| range(tables, table, conjuncts).map(Target::Range))
        .unwrap_or_else(|| everywhere(tables[table].table))
}

/// Whether it is plain that no row satisfies all of the conjuncts.
pub(super) fn impossible(conjuncts: &[Expr]) -> bool {
    let literal = |expression: &Expr| match key_source(expression)? {
        KeySource::Literal(value) => Some(value),
        _ => None,
    };
    let integer = |value: &Value| match value.kind {
        Some(Kind::Integer(integer)) => Some(integer),
        _ => None,
    };
    // What columns, as they are written, are said to equal, and which are said to be NULL.
    let mut equal: Vec<(&Expr, Value)> = Vec::new();
    let mut null: Vec<&Expr> = Vec::new();
    for conjunct in conjuncts {
        match conjunct {
            Expr::Value(_) if literal(conjunct).is_some_and(|value| value.is_null() || integer(&value) == Some(0)) => {
                return true;
            }
            Expr::IsNull(column) => null.push(column),
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => match (literal(left), literal(right)) {
                (Some(one), Some(other)) => {
                    let differ = integer(&one).zip(integer(&other)).is_some_and(|(one, other)| one != other);
                    if differ || one.is_null() || other.is_null() {
                        return true;
                    }
                }
                (None, Some(value)) | (Some(value), None) if value.is_null() => return true,
                (None, Some(value)) => equal.push((left, value)),
                (Some(value), None) => equal.push((right, value)),
                (None, None) => {}
            },
            _ => {}
        }
    }
    let column = |expression: &Expr| matches!(expression, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
    equal.retain(|(expression, _)| column(expression));
    equal.iter().enumerate().any(|(place, (expression, value))| {
        null.contains(expression)
            || equal[place + 1..].iter().any(|(other, another)| {
                other == expression && integer(value).zip(integer(another)).is_some_and(|(one, other)| one != other)
            })
    })
}

/// A sharded table of a join that every shard can do by itself: all sharded tables are tied together by their sharding columns,
/// and the others are on every shard. `None` where it is not so.
pub(super) fn co_located(from: &FromClause<'_>) -> Option<usize> {
    let mut sharded = Vec::new();
    for (index, item) in from.tables.iter().enumerate() {
        match item.table.placement {
            Placement::Sharded(_) if item.nullable => return None,
            Placement::Sharded(column) => sharded.push((index, column)),
            Placement::Reference => {}
            Placement::Unsharded(_) => return None,
        }
    }
    let mut tied = vec![false; sharded.len()];
    *tied.first_mut()? = true;
    // Each round ties one more table or is the last.
    loop {
        let before = tied.iter().filter(|tied| **tied).count();
        for conjunct in &from.conjuncts {
            if let Some((a, b)) = tie(conjunct, from, &sharded)
                && (tied[a] || tied[b])
            {
                (tied[a], tied[b]) = (true, true);
            }
        }
        let after = tied.iter().filter(|tied| **tied).count();
        if after == sharded.len() {
            return Some(sharded[0].0);
        }
        if after == before {
            return None;
        }
    }
}

/// The two sharded tables, by their places, whose sharding columns a conjunct equates, where equal keys are on the same shard.
fn tie(conjunct: &Expr, from: &FromClause<'_>, sharded: &[(usize, usize)]) -> Option<(usize, usize)> {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = conjunct else { return None };
    let place = |side: &Expr| {
        let column = column_of(side, &from.tables)?;
        sharded.iter().position(|known| *known == column)
    };
    let (a, b) = (place(left)?, place(right)?);
    let table = |place: usize| from.tables[sharded[place].0].table;
    table(a).is_colocated(table(b)).then_some((a, b))
}

/// All shards that may hold rows of a table.
pub(super) fn everywhere(table: &Table) -> Target {
    match &table.vindex {
        Some(vindex) if !vindex.covers_all() => Target::Shards(Rc::clone(vindex.shards())),
        _ => Target::All,
    }
}

/// The range of keys that the conjuncts allow a table whose vindex is ordered. Of several bounds on one side the first counts.
fn range(tables: &[FromTable<'_>], table: usize, conjuncts: &[Expr]) -> Option<KeyRange> {
    let Placement::Sharded(column) = tables[table].table.placement else { return None };
    let vindex = tables[table].table.vindex.as_ref().filter(|vindex| vindex.is_ordered())?;
    let is_key = |expression: &Expr| column_of(expression, tables) == Some((table, column));
    let (mut lower, mut upper) = (None, None);
    for conjunct in conjuncts {
        match conjunct {
            Expr::BinaryOp { left, op, right } => {
                let (key_left, other) = match (is_key(left), is_key(right)) {
                    (true, false) => (true, right),
                    (false, true) => (false, left),
                    _ => continue,
                };
                let (below, included) = match op {
                    BinaryOperator::Lt => (key_left, false),
                    BinaryOperator::LtEq => (key_left, true),
                    BinaryOperator::Gt => (!key_left, false),
                    BinaryOperator::GtEq => (!key_left, true),
                    _ => continue,
                };
                let Some(value) = key_source(other) else { continue };
                let side = if below { &mut upper } else { &mut lower };
                side.get_or_insert(KeyBound { value, included });
            }
            Expr::Between { expr, negated: false, low, high } if is_key(expr) => {
                let bound = |side| key_source(side).map(|value| KeyBound { value, included: true });
                lower = lower.or(bound(low));
                upper = upper.or(bound(high));
            }
            _ => {}
        }
    }
    if lower.is_none() && upper.is_none() {
        return None;
    }
    let shape = &tables[table].table.shape;
    Some(KeyRange {
        table: shape.name.clone(),
        column: shape.columns[column].name.clone(),
        vindex: Rc::clone(vindex),
        lower,
        upper,
    })
}

/// Every sharded table's keys, where equalities pin each to one: through a constant, or through an equality with the sharding
/// column of a table that is pinned.
pub(super) fn pin_all(from: &FromClause<'_>) -> Option<Vec<Keys>> {
    let sharded: Vec<(usize, usize)> = from
        .tables
        .iter()
        .enumerate()
        .filter_map(|(index, table)| match table.table.placement {
            Placement::Sharded(column) => Some((index, column)),
            _ => None,
        })
        .collect();
    let mut pins: Vec<Option<Keys>> = sharded
        .iter()
        .map(|(table, _)| pin(&from.tables, *table, &from.conjuncts).filter(|keys| keys.values.len() == 1))
        .collect();
    // Each round pins one more table or is the last.
    loop {
        let mut progress = false;
        for conjunct in &from.conjuncts {
            let Some((a, b)) = tie(conjunct, from, &sharded) else { continue };
            for (known, unknown) in [(a, b), (b, a)] {
                if let (Some(keys), None) = (&pins[known], &pins[unknown]) {
                    let (table, column) = sharded[unknown];
                    pins[unknown] = self::keys(from.tables[table].table, column, keys.values.clone());
                    progress |= pins[unknown].is_some();
                }
            }
        }
        if !progress {
            break;
        }
    }
    pins.into_iter().collect()
}

/// Whether an expression reads columns of this table alone, and could be evaluated where that table is.
pub(super) fn belongs_to(expression: &Expr, tables: &[FromTable<'_>], table: usize) -> bool {
    reads_only(expression, tables, |owner| owner == table)
}

/// Whether an expression reads columns of these tables alone, and could be evaluated where they all are.
pub(super) fn is_local(expression: &Expr, tables: &[FromTable<'_>]) -> bool {
    reads_only(expression, tables, |_| true)
}

fn reads_only(expression: &Expr, tables: &[FromTable<'_>], accept: impl Fn(usize) -> bool) -> bool {
    if queries(expression) > 0 {
        return false;
    }
    let outcome = visit_expressions(expression, |part| {
        let fits = match part {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                column_of(part, tables).is_some_and(|(owner, _)| accept(owner))
            }
            Expr::Function(function) => {
                function.over.is_none() && !matches!(function.parameters, FunctionArguments::List(_))
            }
            _ => true,
        };
        if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    outcome.is_continue()
}

struct CountQueries(usize);

impl Visitor for CountQueries {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.0 += 1;
        ControlFlow::Continue(())
    }
}

/// How many SELECTs, VALUES or compounds are in a syntax tree.
pub(super) fn queries(tree: &impl Visit) -> usize {
    let mut count = CountQueries(0);
    let _: ControlFlow<()> = tree.visit(&mut count);
    count.0
}

/// How often a table is named in a syntax tree.
pub(super) fn mentions(tree: &impl Visit, table: &str) -> usize {
    let mut count = 0;
    let _: ControlFlow<()> = visit_relations(tree, |name| {
        if table_name(name).is_some_and(|name| name.eq_ignore_ascii_case(table)) {
            count += 1;
        }
        ControlFlow::Continue(())
    });
    count
}
