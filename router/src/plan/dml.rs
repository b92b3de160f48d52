//! Planning of INSERT, UPDATE and DELETE.

use std::collections::BTreeSet;

use dosql_proto::Error;
use sqlparser::ast::{self, Expr, FromTable, Query, SetExpr, Statement as Ast, TableObject};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

use super::lookups::declares_conflicts;
use super::predicate::{self, FromClause};
use super::staged::{self, Needed, Staged};
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
    /// Where the router gives rows their rowids.
    pub(crate) rowids: Option<Rowids>,
    /// The INTEGER PRIMARY KEY of each row, where the table is sharded by something else: SQLite would choose one for NULL.
    pub(crate) given_rowids: Vec<KeySource>,
    /// What is done instead where the key is to be chosen or rows of several shards are returned.
    pub(crate) otherwise: Option<Staged>,
}

/// How rows of an INSERT get rowids that no column shows.
#[derive(Debug)]
pub(crate) struct Rowids {
    pub(crate) table: String,
    /// The first of the statement's columns is the rowid, and of each row's values a parameter after the statement's own.
    pub(crate) tree: ast::Insert,
    pub(crate) sql: String,
    /// The statement's own parameters.
    pub(crate) parameters: usize,
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
    let stage = |target: Option<&str>, needed: &Needed| {
        Ok(Step::Staged(Box::new(staged::plan(sql, catalog, prepared, target, needed)?)))
    };
    let written: BTreeSet<&String> = uses.inserts.iter().chain(uses.updates.keys()).chain(&uses.deletes).collect();
    if written.is_empty() {
        return Err(unsupported("this statement is not supported: it neither reads nor writes a table"));
    }
    for name in &written {
        catalog.check_own(name)?;
    }
    let through_temporary = uses.through.iter().any(|view| catalog.temporary.contains(view));
    if catalog.shards.len() == 1 && !through_temporary {
        return Ok(everywhere(0));
    }
    let changed: Vec<&Table> = written.iter().filter_map(|name| catalog.table(name)).collect();
    // A view's INSTEAD OF triggers, and those that are not on the shards, fire where the statement is worked out.
    let fires = uses.through.iter().any(|trigger| catalog.own_triggers.contains(trigger));
    let Some(target) = changed.first().copied() else { return stage(None, &Needed::All) };
    if fires || through_temporary || changed.len() < written.len() {
        return stage(None, &Needed::All);
    }
    // Triggers that foreign keys' actions fire.
    let mut tied = staged::written(catalog, prepared);
    let named = tied.clone();
    if staged::follow_foreign_keys(catalog, &mut tied) {
        for name in tied.difference(&named) {
            if !catalog.objects_of("trigger", name)?.is_empty() {
                return stage(None, &Needed::All);
            }
        }
    }
    let updates = !uses.updates.is_empty();
    let deletes = !uses.deletes.is_empty()
        || sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("REPLACE"))
        || changed.iter().any(|table| declares_conflicts(catalog, table));
    if staged::foreign_keys_move(catalog, &named, updates, deletes) {
        return stage(None, &Needed::All);
    }
    let read: Vec<&Table> = uses.reads.keys().filter_map(|name| catalog.table(name)).collect();
    // One shard has everything the statement touches.
    if let Placement::Unsharded(shard) = target.placement {
        let here = |table: &&Table| table.placement == target.placement || table.placement == Placement::Reference;
        if changed.iter().all(|table| table.placement == target.placement) && read.iter().all(here) {
            return Ok(everywhere(shard));
        }
    }
    if changed.len() > 1 {
        return stage(None, &Needed::All);
    }
    let numbered = sql_text::number_parameters(sql);
    let tree = parse(&sql_text::without_index_hints(&numbered));
    let routed = if uses.inserts.is_empty() {
        change(sql, catalog, prepared, target, &read, tree.as_ref())?
    } else {
        insert(sql, catalog, prepared, target, tree.clone())?
    };
    match routed {
        Some(step) => Ok(step),
        None => stage(Some(&target.shape.name), &needed(catalog, prepared, target, tree.as_ref())),
    }
}

/// What of the table that is changed is needed to work a statement out.
fn needed(catalog: &Catalog, prepared: &Prepared, target: &Table, tree: Option<&Ast>) -> Needed {
    let Some(tree) = tree else { return Needed::All };
    let tied = !target.shape.foreign_keys.is_empty() || catalog.is_referred_to(&target.shape.name);
    let conflicts = declares_conflicts(catalog, target);
    if tied || conflicts || !prepared.uses.through.is_empty() || predicate::mentions(tree, &target.shape.name) > 1 {
        return Needed::All;
    }
    match tree {
        Ast::Insert(insert)
            if insert.on.is_none()
                && insert.or.is_none()
                && !insert.replace_into
                && (target.shape.hidden_rowid().is_some() || target.shape.rowid_alias.is_some())
                && !prepared.uses.reads.keys().any(|name| name.eq_ignore_ascii_case(&target.shape.name)) =>
        {
            Needed::Last
        }
        Ast::Update(update) if update.or.is_none() && update.from.is_none() => {
            matching(catalog, &update.table, update.selection.as_ref())
        }
        Ast::Delete(delete) => match &delete.from {
            FromTable::WithFromKeyword(items) | FromTable::WithoutKeyword(items) => match items.as_slice() {
                [item] => matching(catalog, item, delete.selection.as_ref()),
                _ => Needed::All,
            },
        },
        _ => Needed::All,
    }
}

/// The rows that a condition of their own table picks.
fn matching(catalog: &Catalog, item: &ast::TableWithJoins, selection: Option<&Expr>) -> Needed {
    if !item.joins.is_empty() {
        return Needed::All;
    }
    let Some(table) = predicate::base_table(&item.relation, catalog) else { return Needed::All };
    let renamed = match table.alias == table.table.shape.name {
        true => String::new(),
        false => format!(" AS {}", sql_text::quote(&table.alias)),
    };
    let mut from = FromClause { tables: vec![table], conjuncts: Vec::new() };
    if let Some(selection) = selection {
        predicate::split(selection, &mut from.conjuncts);
    }
    let conditions: Vec<String> = from
        .conjuncts
        .iter()
        .filter(|conjunct| predicate::belongs_to(conjunct, &from.tables, 0))
        .map(|conjunct| format!("({conjunct})"))
        .collect();
    let target = match from.tables[0].table.placement {
        Placement::Unsharded(shard) => Target::Shard(shard),
        Placement::Reference => Target::Any,
        Placement::Sharded(_) => predicate::target(&from.tables, 0, &from.conjuncts),
    };
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    Needed::Matching(target, format!("{renamed}{filter}"))
}

/// UPDATE and DELETE.
fn change(
    sql: &str,
    catalog: &Catalog,
    prepared: &Prepared,
    target: &Table,
    read: &[&Table],
    tree: Option<&Ast>,
) -> Result<Option<Step>, Error> {
    let name = &target.shape.name;
    // A view may read the table itself, or others.
    if !prepared.uses.through.is_empty() {
        return Ok(None);
    }
    if read.iter().any(|table| table.shape.name != *name && table.placement != Placement::Reference) {
        return Ok(None);
    }
    // The row may have to go to another shard; rowids that are hidden are unique across shards.
    let moves = |updated: &String| match target.placement {
        Placement::Sharded(column) => {
            updated.eq_ignore_ascii_case(&target.shape.columns[column].name)
                || (updated == "ROWID" && target.shape.column("ROWID").is_none())
        }
        _ => false,
    };
    if prepared.uses.updates.values().flatten().any(moves) {
        return Ok(None);
    }
    // Whether a value is taken while its row changes depends on the order of the rows of all shards.
    let looked_up = |updated: &String| {
        let mut unique = target.lookups.iter().filter(|lookup| lookup.definition.unique);
        unique.any(|lookup| updated.eq_ignore_ascii_case(&lookup.definition.column))
    };
    if prepared.uses.updates.values().flatten().any(looked_up) {
        return Ok(None);
    }
    let times = match tree {
        Some(tree) => predicate::mentions(tree, name),
        None => 1 + usize::from(sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("SELECT"))),
    };
    if target.placement == Placement::Reference {
        if prepared.uses.volatile() || tells_time(prepared, sql) {
            return Ok(None);
        }
        return Ok(Some(Step::Write { target: Target::All, sql: sql.to_owned(), reference: true }));
    }
    if times > 1 && matches!(target.placement, Placement::Sharded(_)) {
        return Ok(None);
    }
    let target = match target.placement {
        Placement::Unsharded(shard) => Target::Shard(shard),
        _ => tree.and_then(|tree| pinned(tree, catalog)).unwrap_or_else(|| predicate::everywhere(target)),
    };
    Ok(Some(Step::Write { target, sql: sql.to_owned(), reference: false }))
}

/// Whether the statement may ask what time it is, which copies of a row must not be told differently.
fn tells_time(prepared: &Prepared, sql: &str) -> bool {
    const CLOCKS: [&str; 9] = [
        "date",
        "time",
        "datetime",
        "julianday",
        "unixepoch",
        "strftime",
        "timediff",
        "current_timestamp",
        "current_date",
    ];
    prepared.uses.functions.iter().any(|function| CLOCKS.contains(&function.as_str()) || function == "current_time")
        || sql_text::has_word(sql, |word| word.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("CURRENT_")))
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

fn insert(
    sql: &str,
    catalog: &Catalog,
    prepared: &Prepared,
    target: &Table,
    tree: Option<Ast>,
) -> Result<Option<Step>, Error> {
    let Some(Ast::Insert(tree)) = tree else { return Ok(None) };
    if !matches!(tree.table, TableObject::TableName(_)) || tree.table_alias.is_some() && tree.on.is_none() {
        return Ok(None);
    }
    let Some(columns) = inserted_columns(&tree, target) else { return Ok(None) };
    // An UPSERT that moves rows to other shards.
    if let Placement::Sharded(column) = target.placement
        && let Some(updated) = prepared.uses.updates.values().next()
        && updated.iter().any(|updated| updated.eq_ignore_ascii_case(&target.shape.columns[column].name))
    {
        return Ok(None);
    }
    let key = match target.placement {
        Placement::Sharded(column) => Some((column, columns.iter().position(|inserted| *inserted == column))),
        _ => None,
    };
    let resolves =
        || tree.or.is_some() || tree.replace_into || tree.on.is_some() || declares_conflicts(catalog, target);
    if has_unique_lookup(target) && resolves() {
        return Ok(None);
    }
    // A NULL that REPLACE makes the column's default goes where that belongs.
    if let Some((column, _)) = key
        && target.shape.columns[column].required
        && target.shape.columns[column].default.is_some()
        && (sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("REPLACE")) || declares_conflicts(catalog, target))
    {
        return Ok(None);
    }
    // The INTEGER PRIMARY KEY, where the table is sharded by something else.
    let alias = target.shape.rowid_alias.filter(|alias| key.is_some_and(|(column, _)| column != *alias));
    let alias = match alias.map(|alias| columns.iter().position(|inserted| *inserted == alias)) {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => return Ok(None),
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
        rowids: None,
        given_rowids: Vec::new(),
        otherwise: None,
        tree,
    };
    if key.is_some() && columns.contains(&usize::MAX) {
        // Rowids are unique across shards.
        return Ok(None);
    }
    let source = step.tree.source.clone();
    match source.as_deref() {
        Some(query) if rows_of(query).is_none() => {
            if alias.is_some() {
                return Ok(None);
            }
            // What a conflict clause or RETURNING reads may be on other shards.
            if predicate::queries(&step.tree) > predicate::queries(query) {
                return Ok(None);
            }
            if target.placement == Placement::Reference && (prepared.uses.volatile() || tells_time(prepared, sql)) {
                return Ok(None);
            }
            let read = source_read(query, catalog, prepared)?;
            let width = columns.len();
            let place = match key {
                None => None,
                Some((_, Some(place))) => Some(place),
                Some((_, None)) => return Ok(None),
            };
            if step.tree.returning.is_some() && key.is_some() || step.key_is_rowid {
                step.otherwise = Some(staged::plan(
                    sql,
                    catalog,
                    prepared,
                    Some(&target.shape.name),
                    &needed(catalog, prepared, target, Some(&Ast::Insert(step.tree.clone()))),
                )?);
            }
            if let Some((column, _)) = key {
                step.keys = predicate::keys(target, column, Vec::new());
                step.rowids = rowids(&step.tree, target, prepared.parameter_count);
            }
            step.source = InsertSource::Select { read, width, key: place };
        }
        source => {
            if predicate::queries(&step.tree) > usize::from(source.is_some()) {
                return Ok(None);
            }
            if target.placement == Placement::Reference && (prepared.uses.volatile() || tells_time(prepared, sql)) {
                return Ok(None);
            }
            let Some((column, place)) = key else {
                let reference = target.placement == Placement::Reference;
                return Ok(Some(Step::Write { target: step.target, sql: sql.to_owned(), reference }));
            };
            if let Some(alias) = alias {
                let Some(rows) = source.and_then(rows_of) else { return Ok(None) };
                let given = |row: &ast::Parens<Vec<Expr>>| predicate::key_source(row.content.get(alias)?);
                let Some(given) = rows.iter().map(given).collect() else { return Ok(None) };
                step.given_rowids = given;
            }
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
                // A DEFAULT that is no constant is evaluated once, here.
                (Some(rows), None) => match column_default(target, column) {
                    Ok(key) => vec![key; rows.len()],
                    Err(_) => return Ok(None),
                },
                (None, _) => match column_default(target, column) {
                    Ok(key) => vec![key],
                    Err(_) => return Ok(None),
                },
            };
            if step.tree.returning.is_some() && values.len() > 1 || step.key_is_rowid || alias.is_some() {
                step.otherwise = Some(staged::plan(
                    sql,
                    catalog,
                    prepared,
                    Some(&target.shape.name),
                    &needed(catalog, prepared, target, Some(&Ast::Insert(step.tree.clone()))),
                )?);
            }
            step.keys = predicate::keys(target, column, values);
            step.rowids = rowids(&step.tree, target, prepared.parameter_count);
        }
    }
    Ok(Some(Step::Insert(Box::new(step))))
}

/// Whether a column's values are kept unique over all shards.
fn has_unique_lookup(table: &Table) -> bool {
    table.lookups.iter().any(|lookup| lookup.definition.unique)
}

/// The INSERT with rowids, where the table's are hidden.
fn rowids(tree: &ast::Insert, target: &Table, parameters: usize) -> Option<Rowids> {
    let rowid = target.shape.hidden_rowid()?;
    let mut tree = tree.clone();
    let name = |name: &str| ast::ObjectName::from(vec![ast::Ident::new(name)]);
    if tree.columns.is_empty() && tree.source.is_some() {
        let quoted = |index: usize| name(&sql_text::quote(&target.shape.columns[index].name));
        tree.columns = target.shape.given().into_iter().map(quoted).collect();
    }
    match tree.source.as_mut().map(|source| source.body.as_mut()) {
        Some(SetExpr::Values(values)) => {
            for (row, values) in values.rows.iter_mut().enumerate() {
                values.content.insert(0, placeholder(parameters + row + 1));
            }
        }
        // The rows that are selected take its place.
        Some(_) => {}
        None => {
            let query = Parser::new(&SQLiteDialect {})
                .try_with_sql(&format!("VALUES (?{})", parameters + 1))
                .and_then(|mut parser| parser.parse_query())
                .ok()?;
            tree.source = Some(query);
        }
    }
    tree.columns.insert(0, name(rowid));
    Some(Rowids { table: target.shape.name.to_ascii_lowercase(), sql: tree.to_string(), tree, parameters })
}

fn placeholder(number: usize) -> Expr {
    Expr::value(ast::Value::Placeholder(format!("?{number}")))
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
fn inserted_columns(tree: &ast::Insert, target: &Table) -> Option<Vec<usize>> {
    let shape = &target.shape;
    if tree.columns.is_empty() {
        return Some(shape.given());
    }
    tree.columns
        .iter()
        .map(|column| {
            let name = predicate::table_name(column).unwrap_or_default();
            let rowid = ["rowid", "oid", "_rowid_"].iter().any(|known| name.eq_ignore_ascii_case(known));
            match shape.column(&name) {
                Some(index) => Some(index),
                // A place that no column has.
                None if rowid => Some(shape.rowid_alias.unwrap_or(usize::MAX)),
                None => None,
            }
        })
        .collect()
}

/// The reading part of INSERT ... SELECT.
pub(super) fn source_read(query: &Query, catalog: &Catalog, prepared: &Prepared) -> Result<Read, Error> {
    let mut source = prepared.clone();
    // Compiling the SELECT again would need the mirror; what it touches is what the INSERT reads.
    source.uses.inserts.clear();
    select::read(&query.to_string(), catalog, &source)
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
