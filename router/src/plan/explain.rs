//! Plans as text.

use std::fmt::Write;
use std::rc::Rc;

use super::{
    Gather, GatherKind, Generate, Insert, InsertSource, KeyBound, KeySource, Keys, LakeRead, Limit, LookupKeys, Plan,
    Read, Staged, Step, Target,
};
use crate::catalog::{Definition, Lookup};
use dosql_proto::value::Kind;

/// A plan as people read it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Explained {
    pub(crate) route: &'static str,
    pub(crate) plan: String,
    /// What the plan touches; resolved into shards where parameters are there.
    pub(crate) targets: Vec<usize>,
}

/// Describes a plan. `shards` resolves a target into shard indexes; `name` tells a shard's name.
pub(crate) fn explain(
    plan: &Plan,
    shards: &dyn Fn(&Target) -> Option<Vec<usize>>,
    name: &dyn Fn(usize) -> String,
) -> Explained {
    let mut text = Text { out: String::new(), shards, name, touched: Vec::new() };
    let route = text.step(&plan.step);
    text.kept(&plan.kept);
    text.touched.sort_unstable();
    text.touched.dedup();
    Explained { route, plan: text.out, targets: text.touched }
}

struct Text<'a> {
    out: String,
    shards: &'a dyn Fn(&Target) -> Option<Vec<usize>>,
    name: &'a dyn Fn(usize) -> String,
    touched: Vec<usize>,
}

impl Text<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.out, "{:width$}{text}", "", width = depth * 2);
    }

    fn step(&mut self, step: &Step) -> &'static str {
        match step {
            Step::Catalog { sql } => {
                self.line(0, "catalog: answered by the router from its copy of the schema");
                self.line(1, &format!("sql: {sql}"));
                "catalog"
            }
            Step::Explain { sql, analyze } => {
                let what = if *analyze {
                    "the plan of the statement that follows, and what it takes"
                } else {
                    "the plan of the statement that follows"
                };
                self.line(0, &format!("explain: {what}"));
                self.line(1, &format!("sql: {sql}"));
                "explain"
            }
            Step::Ddl { sql } => {
                self.line(0, "ddl: logged, sent to the shards that hold the object, then applied to the catalog");
                self.line(1, &format!("sql: {sql}"));
                "ddl"
            }
            Step::AlterVSchema(_) => {
                self.line(0, "vschema: logged, and in force when every table it concerns is where it says");
                "vschema"
            }
            Step::AlterLake(_) => {
                self.line(0, "lake: told to the lake writer, and in force with its next commit");
                "lake"
            }
            Step::Generate(generate) => {
                let Generate { table, column, sequence, .. } = generate.as_ref();
                self.line(0, &format!("where {table}.{column} has no value, sequence {sequence} gives it one"));
                let route = self.step(&generate.given.step);
                self.kept(&generate.given.kept);
                route
            }
            Step::Promote(promote) => {
                self.line(0, &format!("promote: another member of {} becomes its primary", promote.shard));
                "promote"
            }
            Step::Show(_) => {
                self.line(0, "show: answered by the router from its catalog");
                "catalog"
            }
            Step::Read(read) => self.read(0, read),
            Step::Write { target, sql, reference } => {
                let route = if *reference { "reference" } else { route_of(target) };
                self.line(0, &format!("write {route}"));
                self.target(1, target);
                self.line(1, &format!("sql: {sql}"));
                route
            }
            Step::Insert(insert) => self.insert(insert),
            Step::Pragma { sql } => {
                self.line(0, "pragma: the router keeps the number");
                self.line(1, &format!("sql: {sql}"));
                "catalog"
            }
            Step::Staged(staged) => self.staged(staged),
        }
    }

    fn kept(&mut self, lookups: &[Rc<Lookup>]) {
        let tables: Vec<&str> = lookups.iter().map(|lookup| lookup.definition.table.as_str()).collect();
        if !tables.is_empty() {
            self.line(0, &format!("and in the same transaction the entries of: {}", tables.join(", ")));
        }
    }

    fn staged(&mut self, staged: &Staged) -> &'static str {
        self.line(0, "work out, then write what changed to the shards of its rows");
        for input in &staged.inputs {
            self.line(1, &format!("read {} ({})", input.table, route_of(&input.target)));
            self.target(2, &input.target);
            self.line(2, &format!("sql: {}", input.sql));
        }
        for table in &staged.tables {
            self.line(1, &format!("change {} ({})", table.name, route_of(&table.target)));
            self.target(2, &table.target);
            self.line(2, &format!("sql: {}", table.select));
        }
        self.line(1, &format!("run: {}", staged.sql));
        "staged"
    }

    fn insert(&mut self, insert: &Insert) -> &'static str {
        let target = match &insert.keys {
            Some(keys) => Target::Keys(keys.clone()),
            None => insert.target.clone(),
        };
        match &insert.source {
            InsertSource::Values => {
                let route = route_of(&target);
                self.line(0, &format!("insert {route}: each row to the shard of its key"));
                self.target(1, &target);
                self.line(1, &format!("sql: {}", insert.sql));
                route
            }
            InsertSource::Select { read, .. } => {
                self.line(0, "insert rows of:");
                self.read(1, read);
                let to = match &insert.keys {
                    Some(keys) => {
                        format!("{}({}.{}) of each row", keys.vindex.definition().kind(), keys.table, keys.column)
                    }
                    None => self.names(&target),
                };
                self.line(1, &format!("to: {to}"));
                "insert-select"
            }
        }
    }

    fn read(&mut self, depth: usize, read: &Read) -> &'static str {
        match read {
            Read::Pinned { pins, sql, otherwise } => {
                let route = pins.first().map_or("none", route_of);
                let what = if pins.is_empty() {
                    "no row can match, so any shard will do"
                } else {
                    "the statement runs on one shard"
                };
                self.line(depth, &format!("{route}: {what}"));
                for pin in pins {
                    self.target(depth + 1, pin);
                }
                self.line(depth + 1, &format!("sql: {sql}"));
                let looked_up = matches!(pins.as_slice(), [Target::Lookup(_)]);
                if let Some(gather) = otherwise.as_ref().filter(|_| !looked_up) {
                    self.line(depth, "where the keys are on different shards:");
                    self.gather(depth + 1, gather);
                }
                route
            }
            Read::Concatenate { target, sql } => {
                let route = route_of(target);
                self.line(depth, &format!("{route}: rows of each shard, one shard after the other"));
                self.target(depth + 1, target);
                self.line(depth + 1, &format!("sql: {sql}"));
                route
            }
            Read::Merge(merge) => {
                self.line(
                    depth,
                    match (merge.order.is_empty(), &merge.limit) {
                        (true, _) => "rows of each shard, one shard after the other, until there are enough",
                        (false, None) => "merge the sorted rows of each shard",
                        (false, Some(_)) => "merge the sorted rows of each shard, until there are enough",
                    },
                );
                self.line(depth + 1, &format!("from {} ({})", merge.table, route_of(&merge.target)));
                self.target(depth + 2, &merge.target);
                self.line(depth + 2, &format!("sql: {}", merge.sql));
                if !merge.order.is_empty() {
                    self.line(depth + 1, &format!("order: {}", merge.order_text));
                }
                if let Some(Limit { count, offset, parameter }) = &merge.limit {
                    let limit = match offset {
                        None => format!("limit: {}, of which ?{parameter} is left", key_text(count)),
                        Some(offset) => {
                            format!(
                                "limit: {} after {}, of which ?{parameter} is left",
                                key_text(count),
                                key_text(offset)
                            )
                        }
                    };
                    self.line(depth + 1, &limit);
                }
                route_of(&merge.target)
            }
            Read::Gather(gather) => {
                self.gather(depth, gather);
                match gather.inputs.as_slice() {
                    [one] => route_of(&one.target),
                    _ => "scatter",
                }
            }
            Read::Lake(lake) => {
                self.lake(depth, lake);
                "lake"
            }
        }
    }

    fn gather(&mut self, depth: usize, gather: &Gather) {
        let what = match gather.kind {
            GatherKind::Top => "gather the first rows of each shard",
            GatherKind::Aggregate => "gather partial results of each shard",
            GatherKind::Rows => "gather rows",
        };
        self.line(depth, what);
        for input in &gather.inputs {
            self.line(depth + 1, &format!("from {} ({})", input.table, route_of(&input.target)));
            self.target(depth + 2, &input.target);
            self.line(depth + 2, &format!("sql: {}", input.sql));
        }
        self.line(depth + 1, &format!("finish: {}", gather.finish));
    }

    fn lake(&mut self, depth: usize, read: &LakeRead) {
        let what = if read.rows.is_some() { "read aggregates from the lake" } else { "read rows from the lake" };
        self.line(depth, what);
        for input in &read.inputs {
            self.line(depth + 1, &format!("from {}", input.table));
            for line in input.describe() {
                self.line(depth + 2, &line);
            }
        }
        self.line(depth + 1, &format!("finish: {}", read.finish));
        if let Some(rows) = &read.rows {
            self.line(depth, "where the lake cannot tell them exactly:");
            self.lake(depth + 1, rows);
        }
    }

    fn target(&mut self, depth: usize, target: &Target) {
        if let Target::Keys(keys) = target {
            let values: Vec<String> = keys.values.iter().map(key_text).collect();
            let kind = keys.vindex.definition().kind();
            self.line(depth, &format!("key: {kind}({}.{}) of {}", keys.table, keys.column, values.join(", ")));
        }
        if let Target::Range(range) = target {
            let end = |bound: &Option<KeyBound>, included: &'static str, excluded: &'static str| match bound {
                Some(bound) => {
                    format!(" {} {}", if bound.included { included } else { excluded }, key_text(&bound.value))
                }
                None => String::new(),
            };
            let (lower, upper) = (end(&range.lower, ">=", ">"), end(&range.upper, "<=", "<"));
            self.line(depth, &format!("keys: {}.{}{lower}{upper}", range.table, range.column));
        }
        if let Target::Lookup(LookupKeys { lookup, values }) = target {
            let Definition { name, unique, owner, column, table, .. } = &lookup.definition;
            let kind = if *unique { "lookup_unique" } else { "lookup" };
            let values: Vec<String> = values.iter().map(key_text).collect();
            self.line(depth, &format!("key: {kind} {name}({owner}.{column}) of {}", values.join(", ")));
            self.line(depth, &format!("shards: those that {table} names"));
            return;
        }
        let names = self.names(target);
        self.line(depth, &format!("shards: {names}"));
    }

    fn names(&mut self, target: &Target) -> String {
        let Some(shards) = (self.shards)(target) else { return "known when the parameters are".to_owned() };
        self.touched.extend(&shards);
        match target {
            Target::Any => "any one".to_owned(),
            _ => shards.iter().map(|shard| (self.name)(*shard)).collect::<Vec<_>>().join(", "),
        }
    }
}

fn route_of(target: &Target) -> &'static str {
    match target {
        Target::Shard(_) => "unsharded",
        Target::Nowhere => "none",
        Target::Any => "reference",
        Target::All | Target::Shards(_) => "scatter",
        Target::Range(_) => "range",
        Target::Keys(Keys { values, .. }) if values.len() == 1 => "equal-unique",
        Target::Keys(_) => "in",
        Target::Lookup(keys) if keys.values.len() > 1 => "in",
        Target::Lookup(keys) if keys.lookup.definition.unique => "equal-unique",
        Target::Lookup(_) => "equal",
    }
}

pub(super) fn key_text(key: &KeySource) -> String {
    match key {
        KeySource::Param(index) => format!("?{}", index + 1),
        KeySource::Expression(text) => text.clone(),
        KeySource::Literal(value) => match &value.kind {
            None => "NULL".to_owned(),
            Some(Kind::Integer(integer)) => integer.to_string(),
            Some(Kind::Real(real)) => format!("{real:?}"),
            Some(Kind::Text(text)) => format!("'{text}'"),
            Some(Kind::Blob(_) | Kind::RawText(_)) => "(bytes)".to_owned(),
        },
    }
}

impl Target {
    /// Whether resolving it needs parameters.
    pub(crate) fn needs_parameters(&self) -> bool {
        match self {
            Self::Keys(keys) => keys.values.iter().any(|key| !matches!(key, KeySource::Literal(_))),
            Self::Range(range) => [&range.lower, &range.upper]
                .into_iter()
                .flatten()
                .any(|bound| !matches!(bound.value, KeySource::Literal(_))),
            _ => false,
        }
    }
}
