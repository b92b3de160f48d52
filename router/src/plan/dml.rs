//! Planning of INSERT, UPDATE and DELETE.

use std::collections::BTreeSet;

use dosql_proto::Error;
use sqlparser::ast::{self, Expr, FromTable, Query, SetExpr, Statement as Ast, TableObject};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

use super::predicate::{self, FromClause};
use super::{KeySource, Keys, Read, Step, Target, parse, select};
use crate::catalog::{Catalog, Placement, Prepared, Table, unsupported};
use crate::sql_text;

/// An INSERT whose rows are routed one by one.
#[derive(Debug)]
pub(crate) struct Insert {
    /// The statement as it came; sent where all rows go to one shard.
    pub(crate) sql: String,
    /// The same with numbered parameters, parsed.
    pub(crate) tree: ast::Insert,
    /// Where the rows come from.
    pub(crate) source: InsertSource,
    /// Of the target; its values are those of the rows, in order. `None`: every row goes to every shard, or to one.
    pub(crate) keys: Option<Keys>,
    /// Where the rows go when `keys` is `None`.
    pub(crate) target: Target,
    /// Whether the key is the INTEGER PRIMARY KEY, which SQLite would choose where it is NULL.
    pub(crate) key_is_rowid: bool,
}

/// Where an INSERT's rows come from.
#[derive(Debug)]
pub(crate) enum InsertSource {
    /// VALUES.
    Values,
    /// A SELECT of so many columns; the key's place among them.
    Select { read: Read, width: usize, key: Option<usize> },
}

/// Plans a statement that SQLite has compiled and that writes.
pub(super) fn plan(sql: &str, catalog: &Catalog, prepared: &Prepared) -> Result<Step, Error> {
    let uses = &prepared.uses;
    let everywhere = |shard| Step::Write { target: Target::Shard(shard), sql: sql.to_owned(), reference: false };
    let written: BTreeSet<&String> = uses.inserts.iter().chain(uses.updates.keys()).chain(&uses.deletes).collect();
    let mut changed = Vec::new();
    for name in written {
        match catalog.table(name) {
            Some(table) => changed.push(table),
            None => return Err(unsupported(format!("writing to {name} is not supported"))),
        }
    }
    let Some(target) = changed.first().copied() else {
        return Err(unsupported("this statement is not supported: it neither reads nor writes a table"));
    };
    if catalog.shards.len() == 1 {
        return Ok(everywhere(0));
    }
    let read: Vec<&Table> = uses.reads.keys().filter_map(|name| catalog.table(name)).collect();
    // One shard has everything the statement touches.
    if let Placement::Unsharded(shard) = target.placement {
        let here = |table: &&Table| table.placement == target.placement || table.placement == Placement::Reference;
        if changed.iter().all(|table| table.placement == target.placement) && read.iter().all(here) {
            return Ok(everywhere(shard));
        }
    }
    if let Some(other) = changed.iter().find(|table| table.shape.name != target.shape.name) {
        return Err(unsupported(format!(
            "writing to tables {} and {} in one statement is not supported: they are not on one shard",
            target.shape.name, other.shape.name
        )));
    }
    if let Placement::Sharded(column) = target.placement {
        let column = &target.shape.columns[column].name;
        if uses.updates.values().any(|columns| columns.iter().any(|updated| updated.eq_ignore_ascii_case(column))) {
            return Err(unsupported(format!(
                "updating {column} is not supported: table {} is sharded by it; delete the row and insert it anew",
                target.shape.name
            )));
        }
    }
    let numbered = sql_text::number_parameters(sql);
    let tree = parse(&numbered);
    if uses.inserts.is_empty() {
        change(sql, catalog, prepared, target, &read, tree.as_ref())
    } else {
        insert(sql, catalog, prepared, target, tree)
    }
}

/// UPDATE and DELETE.
fn change(
    sql: &str,
    catalog: &Catalog,
    prepared: &Prepared,
    target: &Table,
    read: &[&Table],
    tree: Option<&Ast>,
) -> Result<Step, Error> {
    let name = &target.shape.name;
    let elsewhere = read.iter().find(|table| table.shape.name != *name && table.placement != Placement::Reference);
    if let Some(other) = elsewhere {
        return Err(unsupported(format!(
            "changing table {name} by rows of table {} is not supported: they are not on one shard",
            other.shape.name
        )));
    }
    let times = match tree {
        Some(tree) => predicate::mentions(tree, name),
        None => 1 + usize::from(sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("SELECT"))),
    };
    if target.placement == Placement::Reference {
        if prepared.uses.volatile() {
            return Err(unsupported(format!(
                "random values in reference table {name} are not supported: its copies would differ"
            )));
        }
        return Ok(Step::Write { target: Target::All, sql: sql.to_owned(), reference: true });
    }
    if times > 1 && matches!(target.placement, Placement::Sharded(_)) {
        return Err(unsupported(format!(
            "changing table {name} by a subquery on itself is not supported: its rows are on several shards"
        )));
    }
    let target = match target.placement {
        Placement::Unsharded(shard) => Target::Shard(shard),
        _ => tree.and_then(|tree| pinned(tree, catalog)).unwrap_or_else(|| predicate::everywhere(target)),
    };
    Ok(Step::Write { target, sql: sql.to_owned(), reference: false })
}

/// The shards of the rows that an UPDATE's or DELETE's WHERE allows.
fn pinned(tree: &Ast, catalog: &Catalog) -> Option<Target> {
    let (item, selection) = match tree {
        Ast::Update(update) if update.from.is_none() => (&update.table, &update.selection),
        Ast::Delete(delete) => match &delete.from {
            FromTable::WithFromKeyword(items) | FromTable::WithoutKeyword(items) => match items.as_slice() {
                [item] => (item, &delete.selection),
                _ => return None,
            },
        },
        _ => return None,
    };
    if !item.joins.is_empty() {
        return None;
    }
    let mut from = FromClause { tables: vec![predicate::base_table(&item.relation, catalog)?], conjuncts: Vec::new() };
    predicate::split(selection.as_ref()?, &mut from.conjuncts);
    Some(predicate::target(&from.tables, 0, &from.conjuncts))
}

fn insert(sql: &str, catalog: &Catalog, prepared: &Prepared, target: &Table, tree: Option<Ast>) -> Result<Step, Error> {
    let name = &target.shape.name;
    let Some(Ast::Insert(tree)) = tree else {
        return Err(unsupported(format!("this form of INSERT into table {name} is not supported")));
    };
    if !matches!(tree.table, TableObject::TableName(_)) || tree.table_alias.is_some() && tree.on.is_none() {
        return Err(unsupported(format!("this form of INSERT into table {name} is not supported")));
    }
    let columns = inserted_columns(&tree, target)?;
    let key = match target.placement {
        Placement::Sharded(column) => Some((column, columns.iter().position(|inserted| *inserted == column))),
        _ => None,
    };
    let mut step = Insert {
        sql: sql.to_owned(),
        source: InsertSource::Values,
        keys: None,
        target: match target.placement {
            Placement::Unsharded(shard) => Target::Shard(shard),
            _ => Target::All,
        },
        key_is_rowid: key.is_some_and(|(column, _)| target.shape.rowid_alias == Some(column)),
        tree,
    };
    let source = step.tree.source.clone();
    match source.as_deref() {
        Some(query) if rows_of(query).is_none() => {
            let (read, width) = source_read(sql, query, catalog, prepared)?;
            let place = match key {
                None => None,
                Some((_, Some(place))) => Some(place),
                Some((column, None)) => {
                    return Err(unsupported(format!(
                        "INSERT ... SELECT into table {name} without its sharding column {} is not supported",
                        target.shape.columns[column].name
                    )));
                }
            };
            if let Some((column, _)) = key {
                step.keys = predicate::keys(target, column, Vec::new());
            }
            step.source = InsertSource::Select { read, width, key: place };
        }
        source => {
            if predicate::queries(&step.tree) > usize::from(source.is_some()) {
                return Err(unsupported(format!("subqueries in INSERT into table {name} are not supported")));
            }
            if target.placement == Placement::Reference && prepared.uses.volatile() {
                return Err(unsupported(format!(
                    "random values in reference table {name} are not supported: its copies would differ"
                )));
            }
            let Some((column, place)) = key else {
                let reference = target.placement == Placement::Reference;
                return Ok(Step::Write { target: step.target, sql: sql.to_owned(), reference });
            };
            let values = match (source.and_then(rows_of), place) {
                (Some(rows), Some(place)) => rows
                    .iter()
                    .map(|row| {
                        let expression =
                            row.content.get(place).ok_or_else(|| Error::internal("a row of VALUES is too short"))?;
                        Ok(predicate::key_source(expression)
                            .unwrap_or_else(|| KeySource::Expression(expression.to_string())))
                    })
                    .collect::<Result<_, Error>>()?,
                (Some(rows), None) => vec![column_default(target, column)?; rows.len()],
                (None, _) => vec![column_default(target, column)?],
            };
            step.keys = predicate::keys(target, column, values);
        }
    }
    Ok(Step::Insert(Box::new(step)))
}

/// The rows of VALUES; `None` for a SELECT.
pub(crate) fn rows_of(query: &Query) -> Option<&Vec<ast::Parens<Vec<Expr>>>> {
    match query.body.as_ref() {
        SetExpr::Values(values) if query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() => {
            Some(&values.rows)
        }
        _ => None,
    }
}

/// The columns an INSERT gives values for, in the order of the values.
fn inserted_columns(tree: &ast::Insert, target: &Table) -> Result<Vec<usize>, Error> {
    let shape = &target.shape;
    if tree.columns.is_empty() {
        return Ok((0..shape.columns.len()).filter(|index| !shape.columns[*index].generated).collect());
    }
    tree.columns
        .iter()
        .map(|column| {
            let name = predicate::table_name(column).unwrap_or_default();
            let rowid = ["rowid", "oid", "_rowid_"].iter().any(|known| name.eq_ignore_ascii_case(known));
            match shape.column(&name) {
                Some(index) => Ok(index),
                // A place that no column has.
                None if rowid => Ok(shape.rowid_alias.unwrap_or(usize::MAX)),
                None => Err(unsupported(format!("this form of INSERT into table {} is not supported", shape.name))),
            }
        })
        .collect()
}

/// The reading part of INSERT ... SELECT.
fn source_read(sql: &str, query: &Query, catalog: &Catalog, prepared: &Prepared) -> Result<(Read, usize), Error> {
    let mut source = prepared.clone();
    // Compiling the SELECT again would need the mirror; what it touches is what the INSERT reads.
    source.uses.inserts.clear();
    if sql_text::leading_words(sql, 1).first().is_some_and(|word| word == "WITH") {
        return Err(unsupported("WITH before INSERT is not supported on several shards: put it after INTO"));
    }
    let text = query.to_string();
    let width = match query.body.as_ref() {
        SetExpr::Select(select) if select.projection.iter().all(|item| select::item_parts(item).is_some()) => {
            select.projection.len()
        }
        _ => 0,
    };
    Ok((select::read(&text, catalog, &source)?, width))
}

/// What a column gets that is given no value; it must be a constant.
pub(crate) fn column_default(table: &Table, column: usize) -> Result<KeySource, Error> {
    let info = &table.shape.columns[column];
    match &info.default {
        None => Ok(KeySource::Literal(dosql_proto::Value::NULL)),
        Some(text) => constant(text).ok_or_else(|| {
            unsupported(format!(
                "the DEFAULT {text} of the sharding column {}.{} is not supported: give the value",
                table.shape.name, info.name
            ))
        }),
    }
}

/// A constant in a DEFAULT clause.
fn constant(text: &str) -> Option<KeySource> {
    let expression = Parser::new(&SQLiteDialect {}).try_with_sql(text).ok()?.parse_expr().ok()?;
    predicate::key_source(&expression)
}
