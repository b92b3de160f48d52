//! Reads answered by the lake: what is asked of each table there, and what is left to be finished in a scratch database. See
//! docs/decisions/analytics.md for why the answers are SQLite's.

use dosql_proto::{Error, LakeAffinity, LakeAggregate, LakeAggregateCall, LakeFunction, LakeOperator, LakeScanColumn};
use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Query, SelectItem, SetExpr,
    Statement as Ast, UnaryOperator,
};

use super::predicate::{self, FromClause, FromTable};
use super::select::{
    aggregate_name, has_windows, is_aggregate, local_conditions, mentioned, plain_select, scratch_table,
};
use super::{Input, KeySource, Plan, Read, Step, Target, aggregate, parse, placements};
use crate::affinity::{Affinity, Collation};
use crate::catalog::{Catalog, Placement, Prepared, Table, unsupported};
use crate::sql_text::{self, quote};

/// A read of tables in the lake.
#[derive(Debug)]
pub(crate) struct LakeRead {
    pub(crate) inputs: Vec<LakeInput>,
    /// Views the finishing statement needs.
    pub(crate) views: Vec<String>,
    /// Runs in the scratch database; its parameters are numbered.
    pub(crate) finish: String,
    /// What to do where the lake declines the aggregates.
    pub(crate) rows: Option<Box<LakeRead>>,
}

/// One scratch table, and what the lake is asked to fill it.
#[derive(Debug)]
pub(crate) struct LakeInput {
    pub(crate) table: String,
    pub(crate) columns: Vec<LakeScanColumn>,
    pub(crate) output: Vec<u32>,
    pub(crate) filter: Vec<Condition>,
    pub(crate) aggregate: Option<LakeAggregate>,
    /// Whether every shard has all rows, so that those of one are enough.
    pub(crate) reference: bool,
    pub(crate) create: String,
    pub(crate) insert: String,
}

/// A condition on columns, by their places among the columns asked for.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    Compare { column: u32, operator: LakeOperator, affinity: Affinity, value: KeySource },
    Null { column: u32, is_null: bool },
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

impl Plan {
    /// The same read, answered by the lake; `None` where it reads no table.
    ///
    /// # Errors
    /// `UNSUPPORTED` naming what the lake does not have.
    pub(crate) fn over_lake(&self, sql: &str, catalog: &mut Catalog) -> Result<Option<Self>, Error> {
        let prepared = Self::compile(sql, catalog)?;
        let read = plan(sql, catalog, &prepared)?;
        Ok((!read.inputs.is_empty()).then(|| Self {
            columns: self.columns.clone(),
            parameter_count: self.parameter_count,
            step: Step::Read(Read::Lake(Box::new(read))),
            kept: Vec::new(),
        }))
    }
}

fn plan(sql: &str, catalog: &Catalog, prepared: &Prepared) -> Result<LakeRead, Error> {
    let numbered = sql_text::number_parameters(sql);
    // Scratch tables have no indexes.
    let numbered = sql_text::without_index_hints(&numbered).into_owned();
    let tree = parse(&numbered);
    let query = match &tree {
        Some(Ast::Query(query)) => Some(query.as_ref()),
        _ => None,
    };
    let rows = rows(&numbered, query, catalog, prepared)?;
    let aggregates = query.and_then(|query| aggregates(query, catalog, prepared));
    Ok(match aggregates {
        Some((input, finish)) => {
            LakeRead { inputs: vec![input], views: Vec::new(), finish, rows: Some(Box::new(rows)) }
        }
        None => rows,
    })
}

/// Every table's rows that the statement needs, then the statement itself.
fn rows(numbered: &str, query: Option<&Query>, catalog: &Catalog, prepared: &Prepared) -> Result<LakeRead, Error> {
    let plain = !prepared.uses.volatile() && prepared.uses.through.is_empty();
    let query = query.filter(|_| plain);
    let from = query.and_then(plain_select).and_then(|select| predicate::from_clause(select, catalog));
    let mut inputs = Vec::new();
    for (name, used) in &prepared.uses.reads {
        let Some(table) = catalog.table(name) else { continue };
        let mut columns = Columns::new(table);
        for index in 0..table.shape.columns.len() {
            if used.iter().any(|used| used.eq_ignore_ascii_case(&table.shape.columns[index].name)) {
                columns.output(index);
            }
        }
        if let Some(rowid) = table.shape.hidden_rowid()
            && used.iter().any(|used| used.eq_ignore_ascii_case(rowid))
        {
            return Err(unsupported(format!("the lake does not have the {rowid} of {}", table.shape.name)));
        }
        let mut filter = Vec::new();
        if let (Some(query), Some(from)) = (query, &from)
            && let Some((place, conditions)) = local_conditions(query, from, table)
        {
            for condition in conditions {
                let known = columns.columns.len();
                match translate(condition, &from.tables, place, &mut columns, false) {
                    Some(condition) => filter.push(condition),
                    None => columns.columns.truncate(known),
                }
            }
        }
        inputs.push(columns.rows(filter));
    }
    Ok(LakeRead { inputs, views: catalog.views()?, finish: numbered.to_owned(), rows: None })
}

/// Aggregates, groups and DISTINCT over one table, where the lake may compute them, and what is left to do then.
fn aggregates(query: &Query, catalog: &Catalog, prepared: &Prepared) -> Option<(LakeInput, String)> {
    let select = plain_select(query)?;
    let from = predicate::from_clause(select, catalog)?;
    let [table] = from.tables.as_slice() else { return None };
    let fits = predicate::queries(query) == 1
        && mentioned(&placements(catalog, prepared), &from) == 1
        && !prepared.uses.volatile()
        && !has_windows(query)
        && (is_aggregate(query, select) || select.distinct.is_some());
    if !fits {
        return None;
    }
    let gather = aggregate::plan(query, select, &from, Target::All, aggregate::Sums::OfSums)?;
    let [input] = gather.inputs.as_slice() else { return None };
    Some((aggregate_input(input, table, &from)?, gather.finish))
}

/// The partial results that a shard would be asked for, as the lake is asked for them.
fn aggregate_input(input: &Input, table: &FromTable<'_>, from: &FromClause<'_>) -> Option<LakeInput> {
    let Some(Ast::Query(query)) = parse(&input.sql) else { return None };
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let mut columns = Columns::new(table.table);
    let (mut groups, mut calls) = (Vec::new(), Vec::new());
    for item in &select.projection {
        let SelectItem::UnnamedExpr(expression) = item else { return None };
        if let Expr::Function(function) = expression {
            calls.push(call(function, from, &mut columns)?);
        } else if calls.is_empty() {
            groups.push(columns.ordinary(expression, from)?);
        } else {
            return None;
        }
    }
    let mut conjuncts = Vec::new();
    if let Some(condition) = &select.selection {
        predicate::split(condition, &mut conjuncts);
    }
    let filter = conjuncts
        .iter()
        .map(|conjunct| translate(conjunct, &from.tables, 0, &mut columns, false))
        .collect::<Option<_>>()?;
    Some(LakeInput {
        table: table.table.shape.name.clone(),
        columns: columns.columns.into_iter().map(|(_, column)| column).collect(),
        output: Vec::new(),
        filter,
        aggregate: Some(LakeAggregate { groups, calls }),
        reference: table.table.placement == Placement::Reference,
        create: input.create.clone(),
        insert: input.insert.clone(),
    })
}

fn call(function: &Function, from: &FromClause<'_>, columns: &mut Columns<'_>) -> Option<LakeAggregateCall> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let column = match list.args.as_slice() {
        [] | [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] => None,
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] => Some(columns.ordinary(argument, from)?),
        _ => return None,
    };
    let function = match (aggregate_name(function)?.as_str(), column) {
        ("count", None) => LakeFunction::CountRows,
        ("count", Some(_)) => LakeFunction::Count,
        // The total of an integer sum is that sum as a real.
        ("sum" | "total", Some(_)) => LakeFunction::Sum,
        ("min", Some(_)) => LakeFunction::Min,
        ("max", Some(_)) => LakeFunction::Max,
        _ => return None,
    };
    Some(LakeAggregateCall { function: function.into(), column })
}

/// The columns that a table is asked for, each once.
struct Columns<'a> {
    table: &'a Table,
    /// With their places in the table.
    columns: Vec<(usize, LakeScanColumn)>,
    output: Vec<u32>,
}

impl<'a> Columns<'a> {
    fn new(table: &'a Table) -> Self {
        Self { table, columns: Vec::new(), output: Vec::new() }
    }

    fn place(&mut self, index: usize) -> u32 {
        let known = self.columns.iter().position(|(known, _)| *known == index);
        let place = known.unwrap_or_else(|| {
            let column = &self.table.shape.columns[index];
            let affinity = match column.affinity {
                Affinity::Blob => LakeAffinity::Blob,
                Affinity::Text => LakeAffinity::Text,
                Affinity::Numeric => LakeAffinity::Numeric,
                Affinity::Real => LakeAffinity::Real,
            };
            let asked =
                LakeScanColumn { name: column.name.clone(), affinity: affinity.into(), generated: column.generated };
            self.columns.push((index, asked));
            self.columns.len() - 1
        });
        // A table has at most 32,767 columns.
        place as u32
    }

    fn output(&mut self, index: usize) {
        let place = self.place(index);
        self.output.push(place);
    }

    /// The place of a column whose text compares byte by byte.
    fn ordinary(&mut self, expression: &Expr, from: &FromClause<'_>) -> Option<u32> {
        let (_, index) = predicate::column_of(expression, &from.tables)?;
        (self.table.shape.columns[index].collation == Collation::Binary).then(|| self.place(index))
    }

    fn rows(self, filter: Vec<Condition>) -> LakeInput {
        let shape = &self.table.shape;
        let names: Vec<String> =
            self.output.iter().map(|place| quote(&shape.columns[self.columns[*place as usize].0].name)).collect();
        let (names, places) = match names.len() {
            // Only the number of rows counts.
            0 => (quote(&shape.columns[0].name), "NULL".to_owned()),
            count => (names.join(", "), vec!["?"; count].join(", ")),
        };
        let name = quote(&shape.name);
        LakeInput {
            table: shape.name.clone(),
            columns: self.columns.into_iter().map(|(_, column)| column).collect(),
            output: self.output,
            filter,
            aggregate: None,
            reference: self.table.placement == Placement::Reference,
            create: scratch_table(shape),
            // A row that has moved may be there twice for a moment, as its shards are not read as of one moment.
            insert: format!("INSERT OR REPLACE INTO {name} ({names}) VALUES ({places})"),
        }
    }
}

/// A condition in terms that the lake knows; `negated` stands for NOT before it.
fn translate(
    condition: &Expr,
    tables: &[FromTable<'_>],
    place: usize,
    columns: &mut Columns<'_>,
    negated: bool,
) -> Option<Condition> {
    let column = |expression: &Expr| match predicate::column_of(expression, tables) {
        Some((table, index)) if table == place => Some(index),
        _ => None,
    };
    let both = |left: &Expr, right: &Expr, columns: &mut Columns<'_>| {
        Some(vec![
            translate(left, tables, place, columns, negated)?,
            translate(right, tables, place, columns, negated)?,
        ])
    };
    match condition {
        Expr::Nested(inner) => translate(inner, tables, place, columns, negated),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => translate(expr, tables, place, columns, !negated),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let parts = both(left, right, columns)?;
            Some(if negated { Condition::Any(parts) } else { Condition::All(parts) })
        }
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
            let parts = both(left, right, columns)?;
            Some(if negated { Condition::All(parts) } else { Condition::Any(parts) })
        }
        Expr::BinaryOp { left, op, right } => {
            let operator = operator(op)?;
            let (index, value, operator) = match (column(left), column(right)) {
                (Some(index), None) => (index, right, operator),
                (None, Some(index)) => (index, left, mirrored(operator)),
                _ => return None,
            };
            compare(index, if negated { opposite(operator) } else { operator }, value, columns)
        }
        Expr::Between { expr, negated: not, low, high } => {
            let index = column(expr)?;
            let outside = negated != *not;
            let (low_operator, high_operator) = match outside {
                true => (LakeOperator::Less, LakeOperator::Greater),
                false => (LakeOperator::GreaterOrEqual, LakeOperator::LessOrEqual),
            };
            let parts =
                vec![compare(index, low_operator, low, columns)?, compare(index, high_operator, high, columns)?];
            Some(if outside { Condition::Any(parts) } else { Condition::All(parts) })
        }
        Expr::InList { expr, list, negated: not } => {
            let index = column(expr)?;
            let outside = negated != *not;
            let operator = if outside { LakeOperator::NotEqual } else { LakeOperator::Equal };
            let parts = list.iter().map(|value| compare(index, operator, value, columns)).collect::<Option<_>>()?;
            Some(if outside { Condition::All(parts) } else { Condition::Any(parts) })
        }
        Expr::IsNull(expr) => Some(Condition::Null { column: columns.place(column(expr)?), is_null: !negated }),
        Expr::IsNotNull(expr) => Some(Condition::Null { column: columns.place(column(expr)?), is_null: negated }),
        _ => None,
    }
}

fn compare(index: usize, operator: LakeOperator, value: &Expr, columns: &mut Columns<'_>) -> Option<Condition> {
    let value = predicate::key_source(value)?;
    let info = &columns.table.shape.columns[index];
    let affinity = match info.affinity {
        // A comparison does not make a real of an integer.
        Affinity::Real => Affinity::Numeric,
        affinity => affinity,
    };
    (info.collation == Collation::Binary).then(|| Condition::Compare {
        column: columns.place(index),
        operator,
        affinity,
        value,
    })
}

fn operator(operator: &BinaryOperator) -> Option<LakeOperator> {
    Some(match operator {
        BinaryOperator::Eq => LakeOperator::Equal,
        BinaryOperator::NotEq => LakeOperator::NotEqual,
        BinaryOperator::Lt => LakeOperator::Less,
        BinaryOperator::LtEq => LakeOperator::LessOrEqual,
        BinaryOperator::Gt => LakeOperator::Greater,
        BinaryOperator::GtEq => LakeOperator::GreaterOrEqual,
        _ => return None,
    })
}

/// The operator with its sides exchanged.
fn mirrored(operator: LakeOperator) -> LakeOperator {
    match operator {
        LakeOperator::Less => LakeOperator::Greater,
        LakeOperator::LessOrEqual => LakeOperator::GreaterOrEqual,
        LakeOperator::Greater => LakeOperator::Less,
        LakeOperator::GreaterOrEqual => LakeOperator::LessOrEqual,
        same => same,
    }
}

/// What holds where the operator does not, and neither side is NULL.
fn opposite(operator: LakeOperator) -> LakeOperator {
    match operator {
        LakeOperator::Equal => LakeOperator::NotEqual,
        LakeOperator::NotEqual => LakeOperator::Equal,
        LakeOperator::Less => LakeOperator::GreaterOrEqual,
        LakeOperator::LessOrEqual => LakeOperator::Greater,
        LakeOperator::Greater => LakeOperator::LessOrEqual,
        LakeOperator::GreaterOrEqual => LakeOperator::Less,
        LakeOperator::Unspecified => LakeOperator::Unspecified,
    }
}

impl LakeInput {
    /// What is asked of the lake, as people read it.
    pub(crate) fn describe(&self) -> Vec<String> {
        let name = |place: &u32| self.columns[*place as usize].name.clone();
        let mut lines = Vec::new();
        if let Some(LakeAggregate { groups, calls }) = &self.aggregate {
            let calls = calls.iter().map(|call| {
                let argument = call.column.as_ref().map_or("*".to_owned(), name);
                format!("{}({argument})", call.function().as_str_name().trim_end_matches("_ROWS").to_lowercase())
            });
            let wanted: Vec<String> = groups.iter().map(name).chain(calls).collect();
            lines.push(format!("aggregate: {}", wanted.join(", ")));
        } else {
            let columns: Vec<String> = self.output.iter().map(name).collect();
            lines.push(format!("columns: {}", columns.join(", ")));
        }
        if !self.filter.is_empty() {
            let conditions: Vec<String> = self.filter.iter().map(|condition| self.text(condition)).collect();
            lines.push(format!("where: {}", conditions.join(" AND ")));
        }
        lines
    }

    fn text(&self, condition: &Condition) -> String {
        let name = |place: u32| &self.columns[place as usize].name;
        let joined = |parts: &[Condition], word: &str| {
            let parts: Vec<String> = parts.iter().map(|part| self.text(part)).collect();
            format!("({})", parts.join(word))
        };
        match condition {
            Condition::All(parts) => joined(parts, " AND "),
            Condition::Any(parts) => joined(parts, " OR "),
            Condition::Null { column, is_null: true } => format!("{} IS NULL", name(*column)),
            Condition::Null { column, is_null: false } => format!("{} IS NOT NULL", name(*column)),
            Condition::Compare { column, operator, value, .. } => {
                let operator = match operator {
                    LakeOperator::Unspecified | LakeOperator::Equal => "=",
                    LakeOperator::NotEqual => "<>",
                    LakeOperator::Less => "<",
                    LakeOperator::LessOrEqual => "<=",
                    LakeOperator::Greater => ">",
                    LakeOperator::GreaterOrEqual => ">=",
                };
                format!("{} {operator} {}", name(*column), super::explain::key_text(value))
            }
        }
    }
}
