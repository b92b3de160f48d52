//! Writes that no shard can work out by itself: their tables' rows are brought into a scratch SQLite that has the tables'
//! constraints and triggers, the statement runs there, and what it changed is written to the shards by key.

use std::collections::BTreeSet;

use dosql_proto::Error;

use super::{Input, Keys, Target, predicate, select};
use crate::catalog::{Catalog, Placement, Prepared, Table, unsupported};
use crate::sql_text::{self, quote};

/// A write that is worked out in a scratch database.
#[derive(Debug)]
pub(crate) struct Staged {
    /// The statement; its parameters are numbered.
    pub(crate) sql: String,
    /// What it only reads.
    pub(crate) inputs: Vec<Input>,
    /// What it may change.
    pub(crate) tables: Vec<StagedTable>,
    /// Indexes, views and triggers, made when the rows are there.
    pub(crate) objects: Vec<String>,
    /// Whether foreign keys are to be enforced.
    pub(crate) foreign_keys: bool,
}

/// A table with its constraints.
#[derive(Debug)]
pub(crate) struct StagedTable {
    pub(crate) name: String,
    /// As it was declared.
    pub(crate) create: String,
    /// Which of its rows are needed.
    pub(crate) target: Target,
    /// Reads them: the rowid first where no column shows it, then every column that is given values.
    pub(crate) select: String,
    pub(crate) columns: Vec<String>,
    /// Tells rows apart: places among `columns`.
    pub(crate) identity: Vec<usize>,
    /// Whether the first of `columns` is a rowid that no column shows.
    pub(crate) hidden_rowid: bool,
    pub(crate) home: Home,
    /// Whether a changed row may be deleted and inserted anew: no foreign key would act on that.
    pub(crate) replaceable: bool,
}

/// Where a row belongs.
#[derive(Debug)]
pub(crate) enum Home {
    Shard(usize),
    Everywhere,
    /// By the value at this place.
    Keyed {
        keys: Keys,
        place: usize,
    },
}

/// Which rows of the table that is changed are needed.
pub(super) enum Needed {
    All,
    /// Those of a condition (empty: all), on these shards.
    Matching(Target, String),
    /// The last one of each shard, from which SQLite counts on: nothing else is looked at.
    Last,
}

/// Plans a write so. `needed` says what is needed of `target`, of the other tables all rows are.
pub(super) fn plan(
    sql: &str,
    catalog: &Catalog,
    prepared: &Prepared,
    target: Option<&str>,
    needed: &Needed,
) -> Result<Staged, Error> {
    let uses = &prepared.uses;
    let mut written = written(catalog, prepared);
    let foreign_keys = follow_foreign_keys(catalog, &mut written);
    let mut staged = Staged {
        sql: sql_text::number_parameters(sql),
        inputs: Vec::new(),
        tables: Vec::new(),
        objects: Vec::new(),
        foreign_keys,
    };
    for name in &written {
        let Some(table) = catalog.table(name) else { continue };
        let needed = if target.is_some_and(|target| target.eq_ignore_ascii_case(name)) { needed } else { &Needed::All };
        staged.tables.push(staged_table(catalog, table, needed)?);
        staged.objects.extend(catalog.objects_of("index", name)?);
    }
    for (name, used) in &uses.reads {
        let Some(table) = catalog.table(name) else { continue };
        if written.contains(&name.to_ascii_lowercase()) {
            continue;
        }
        let target = match table.placement {
            Placement::Unsharded(shard) => Target::Shard(shard),
            Placement::Reference => Target::Any,
            Placement::Sharded(_) => Target::All,
        };
        staged.inputs.push(select::input(table, &table.shape.name, used, target, "")?);
    }
    staged.objects.extend(catalog.views()?);
    for name in &written {
        staged.objects.extend(catalog.objects_of("trigger", name)?);
    }
    for view in uses.through.iter().chain(&uses.inserts).chain(uses.updates.keys()).chain(&uses.deletes) {
        if catalog.table(view).is_none() {
            for trigger in catalog.objects_of("trigger", view)? {
                if !staged.objects.contains(&trigger) {
                    staged.objects.push(trigger);
                }
            }
        }
    }
    Ok(staged)
}

/// The tables that a statement writes, in lower case.
pub(super) fn written(catalog: &Catalog, prepared: &Prepared) -> BTreeSet<String> {
    let uses = &prepared.uses;
    let names = uses.inserts.iter().chain(uses.updates.keys()).chain(&uses.deletes);
    names.map(|name| name.to_ascii_lowercase()).filter(|name| catalog.table(name).is_some()).collect()
}

/// Adds the tables that foreign keys tie to those written, and what the triggers of those name, since SQLite does not tell what
/// the keys' actions fire; whether there are any.
pub(super) fn follow_foreign_keys(catalog: &Catalog, written: &mut BTreeSet<String>) -> bool {
    let named = written.clone();
    let mut tied = false;
    loop {
        let mut more = BTreeSet::new();
        for name in written.difference(&named) {
            for trigger in catalog.objects_of("trigger", name).unwrap_or_default() {
                let names = sql_text::names_after(&trigger, 1).into_iter().map(|name| name.to_ascii_lowercase());
                more.extend(names.filter(|name| catalog.table(name).is_some()));
            }
        }
        for (name, table) in &catalog.tables {
            for key in &table.shape.foreign_keys {
                let parent = key.parent.to_ascii_lowercase();
                if written.contains(name) || written.contains(&parent) {
                    tied = true;
                    more.insert(name.clone());
                    if catalog.table(&parent).is_some() {
                        more.insert(parent);
                    }
                }
            }
        }
        let before = written.len();
        written.extend(more);
        if written.len() == before {
            return tied;
        }
    }
}

/// Whether foreign keys' actions may set a column by which rows of other tables are sharded, where rows of `written` are updated
/// or deleted: those rows go to other shards then.
pub(super) fn foreign_keys_move(catalog: &Catalog, written: &BTreeSet<String>, updated: bool, deleted: bool) -> bool {
    let mut reached = written.clone();
    loop {
        let mut more = BTreeSet::new();
        for (name, table) in &catalog.tables {
            for key in &table.shape.foreign_keys {
                let parent = key.parent.to_ascii_lowercase();
                if !key.acts() || !reached.contains(&parent) {
                    continue;
                }
                // What actions do to children may be either.
                let (updated, deleted) = if written.contains(&parent) { (updated, deleted) } else { (true, true) };
                // A sharded parent whose key changes is on another shard itself, and the statement worked out for that.
                let follows = key.on_update == "CASCADE"
                    && catalog.table(&parent).is_some_and(|parent| !matches!(parent.placement, Placement::Sharded(_)));
                let sets = updated && (follows || key.on_update.starts_with("SET"))
                    || deleted && key.on_delete.starts_with("SET");
                if let Placement::Sharded(column) = table.placement
                    && sets
                    && key
                        .columns
                        .iter()
                        .any(|(child, _)| child.eq_ignore_ascii_case(&table.shape.columns[column].name))
                {
                    return true;
                }
                more.insert(name.clone());
            }
        }
        let before = reached.len();
        reached.extend(more);
        if reached.len() == before {
            return false;
        }
    }
}

fn staged_table(catalog: &Catalog, table: &Table, needed: &Needed) -> Result<StagedTable, Error> {
    let shape = &table.shape;
    let given = shape.given();
    let mut columns: Vec<String> = given.iter().map(|index| quote(&shape.columns[*index].name)).collect();
    let rowid = shape.hidden_rowid();
    if let Some(rowid) = rowid {
        columns.insert(0, rowid.to_owned());
    }
    let shift = usize::from(rowid.is_some());
    let place = |index: usize| given.iter().position(|known| *known == index).map(|place| place + shift);
    let identity: Option<Vec<usize>> = match (rowid, shape.rowid_alias) {
        (Some(_), _) => Some(vec![0]),
        (None, Some(alias)) => place(alias).map(|place| vec![place]),
        (None, None) => shape.primary_key().into_iter().map(place).collect(),
    };
    let Some(identity) = identity.filter(|identity| !identity.is_empty()) else {
        return Err(unsupported(format!(
            "this write is not supported: nothing tells rows of table {} apart",
            shape.name
        )));
    };
    let name = quote(&shape.name);
    let (target, tail) = match needed {
        Needed::All => (None, String::new()),
        Needed::Matching(target, condition) => (Some(target.clone()), condition.clone()),
        Needed::Last => {
            let order: Vec<String> = identity.iter().map(|place| format!("{} DESC", columns[*place])).collect();
            (None, format!(" ORDER BY {} LIMIT 1", order.join(", ")))
        }
    };
    let (home, everywhere) = match table.placement {
        Placement::Unsharded(shard) => (Home::Shard(shard), Target::Shard(shard)),
        Placement::Reference => (Home::Everywhere, Target::Any),
        Placement::Sharded(column) => {
            let place = place(column).ok_or_else(|| Error::internal("a generated sharding column"))?;
            let keys = predicate::keys(table, column, Vec::new())
                .ok_or_else(|| Error::internal("a table without its vindex"))?;
            (Home::Keyed { keys, place }, Target::All)
        }
    };
    let mut create = catalog.objects_of("table", &shape.name)?;
    let create = create.pop().ok_or_else(|| Error::internal("a table without its CREATE statement"))?;
    Ok(StagedTable {
        name: shape.name.clone(),
        create,
        target: target.unwrap_or(everywhere),
        select: format!("SELECT {} FROM {name}{tail}", columns.join(", ")),
        columns,
        identity,
        hidden_rowid: rowid.is_some(),
        home,
        replaceable: !catalog.is_referred_to(&shape.name),
    })
}
