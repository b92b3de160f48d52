//! Plans: what runs where. Made from the statement's text, the catalog and nothing else, so they can be cached; which shards a
//! key means is decided when parameters are there.

mod aggregate;
mod alter_lake;
mod alter_vschema;
mod analytics;
mod cache;
mod check;
mod dml;
mod explain;
mod generate;
mod lookups;
mod merge;
mod never;
mod predicate;
mod select;
mod show;
mod staged;

use std::ops::ControlFlow;

use std::rc::Rc;

use dosql_proto::{Column, Error, ErrorCode, Promote, Value};
use sqlparser::ast::{Expr, SetExpr, Statement as Ast, UnaryOperator, visit_expressions_mut};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

pub(crate) use alter_lake::AlterLake;
pub(crate) use alter_vschema::{AlterVSchema, Using};
pub(crate) use analytics::{Condition, LakeInput, LakeRead};
pub(crate) use cache::{Cached, PlanCache};
pub(crate) use dml::{Insert, InsertSource, column_default, rows_of};
pub(crate) use explain::{Explained, explain};
pub(crate) use generate::{Generate, GenerateSource, Slot};
pub(crate) use merge::{Limit, Merge, SortKey};
pub(crate) use predicate::keys;
pub(crate) use show::Show;
pub(crate) use staged::{Home, Staged, StagedTable};

use crate::affinity::{Affinity, Collation};
use crate::catalog::unsupported;
use crate::catalog::{Catalog, Lookup, Placement, Prepared};
use crate::sql_text;
use crate::vindex::Vindex;

/// The longest statement, in bytes.
pub(crate) const MAX_SQL_BYTES: usize = 1 << 20;
/// How deep sqlparser may recurse. What is nested deeper is gathered and left to SQLite.
const RECURSION_LIMIT: usize = 50;

/// A planned statement.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) columns: Vec<Column>,
    pub(crate) parameter_count: usize,
    pub(crate) step: Step,
    /// The lookup vindexes whose entries may change with the rows that it writes.
    pub(crate) kept: Vec<Rc<Lookup>>,
}

/// What a statement does.
#[derive(Debug)]
pub(crate) enum Step {
    /// Answered from the catalog: PRAGMA, sqlite_schema, EXPLAIN QUERY PLAN.
    Catalog {
        sql: String,
    },
    /// `EXPLAIN` of this statement, or `EXPLAIN ANALYZE`, which runs it.
    Explain {
        sql: String,
        analyze: bool,
    },
    /// A number that the router keeps for all shards (PRAGMA user_version, ...).
    Pragma {
        sql: String,
    },
    Read(Read),
    /// Sent as it is to the shards that hold what it changes.
    Write {
        target: Target,
        sql: String,
        reference: bool,
    },
    /// An INSERT whose rows go to different shards.
    Insert(Box<Insert>),
    /// Worked out in a scratch database.
    Staged(Box<Staged>),
    /// A schema change.
    Ddl {
        sql: String,
    },
    /// An INSERT into a table one of whose columns a sequence fills.
    Generate(Box<Generate>),
    /// A change of the VSchema.
    AlterVSchema(AlterVSchema),
    /// A change of what the lake makes of a table.
    AlterLake(AlterLake),
    /// What the router knows of shards and the VSchema.
    Show(Show),
    /// Makes another member of a shard its primary.
    Promote(Promote),
}

/// How rows are read.
#[derive(Debug)]
pub(crate) enum Read {
    /// Whole, on one shard: all of `pins` mean the same one. Otherwise `otherwise`. Without pins any shard will do, since no
    /// row can match.
    Pinned { pins: Vec<Target>, sql: String, otherwise: Option<Box<Gather>> },
    /// Shard after shard, with nothing left to do.
    Concatenate { target: Target, sql: String },
    /// Put together by their order, as far as a limit.
    Merge(Box<Merge>),
    /// Into a scratch database, and finished there.
    Gather(Box<Gather>),
    /// From the lake into a scratch database, and finished there.
    Lake(Box<LakeRead>),
}

/// Reading into scratch tables.
#[derive(Debug)]
pub(crate) struct Gather {
    pub(crate) kind: GatherKind,
    pub(crate) inputs: Vec<Input>,
    /// Views the finishing statement needs.
    pub(crate) views: Vec<String>,
    /// Runs in the scratch database; its parameters are numbered.
    pub(crate) finish: String,
    /// What to do where this fails on an integer overflow, which the rows in their own order may not have.
    pub(crate) fallback: Option<Box<Gather>>,
}

/// What was pushed down to the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatherKind {
    /// ORDER BY and LIMIT.
    Top,
    /// Partial aggregates or DISTINCT.
    Aggregate,
    /// Filters and columns.
    Rows,
}

/// One scratch table and where its rows come from.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) table: String,
    pub(crate) target: Target,
    /// Runs on each shard; its parameters are numbered.
    pub(crate) sql: String,
    pub(crate) create: String,
    pub(crate) insert: String,
    /// Whether the first value of a row is its rowid.
    pub(crate) has_rowid: bool,
}

/// Which shards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Target {
    Shard(usize),
    /// Any one: reference tables, and statements without tables.
    Any,
    All,
    /// These, in order.
    Shards(Rc<[usize]>),
    /// None has such rows. One is asked, whose answer is what there is to say of no rows.
    Nowhere,
    /// Those that these keys mean.
    Keys(Keys),
    /// Those that hold keys between these bounds.
    Range(KeyRange),
    /// Those that a lookup table names for these values.
    Lookup(LookupKeys),
}

/// Values of a column that has a lookup vindex.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LookupKeys {
    pub(crate) lookup: Rc<Lookup>,
    pub(crate) values: Vec<KeySource>,
}

/// Keys of a sharded table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Keys {
    pub(crate) table: String,
    pub(crate) column: String,
    pub(crate) affinity: Affinity,
    pub(crate) collation: Collation,
    /// Whether the column is NOT NULL.
    pub(crate) required: bool,
    pub(crate) vindex: Rc<Vindex>,
    pub(crate) values: Vec<KeySource>,
}

/// A range of a sharded table's keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeyRange {
    pub(crate) table: String,
    pub(crate) column: String,
    pub(crate) vindex: Rc<Vindex>,
    pub(crate) lower: Option<KeyBound>,
    pub(crate) upper: Option<KeyBound>,
}

/// An end of a range of keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeyBound {
    pub(crate) value: KeySource,
    /// Whether the range contains the bound itself.
    pub(crate) included: bool,
}

/// Where a key's value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum KeySource {
    Literal(Value),
    /// By index.
    Param(usize),
    /// A constant expression, evaluated by SQLite.
    Expression(String),
}

impl Plan {
    /// Plans a statement.
    ///
    /// # Errors
    /// What SQLite finds wrong with it; `UNSUPPORTED` naming a construct that cannot be routed.
    pub(crate) fn new(sql: &str, catalog: &mut Catalog) -> Result<Self, Error> {
        Self::made(sql, catalog, true)
    }

    /// Plans an INSERT that gives every column that a sequence fills a value.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn given(sql: &str, catalog: &mut Catalog) -> Result<Self, Error> {
        Self::made(sql, catalog, false)
    }

    fn made(sql: &str, catalog: &mut Catalog, generating: bool) -> Result<Self, Error> {
        if sql.len() > MAX_SQL_BYTES {
            let message = format!("the statement has {} bytes; the limit is {MAX_SQL_BYTES}", sql.len());
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        // SQLite would silently stop reading there.
        if let Some(at) = sql.find('\0') {
            return Err(Error::new(
                ErrorCode::SyntaxError,
                format!("the statement holds a NUL character at byte {at}"),
            ));
        }
        let words = sql_text::leading_words(sql, 3);
        let first = words.first().map_or("", String::as_str);
        if first == "EXPLAIN" && words.get(1).is_none_or(|word| word != "QUERY") {
            let analyze = words.get(1).is_some_and(|word| word == "ANALYZE");
            let inner = sql_text::after_words(sql, 1 + usize::from(analyze)).trim().to_owned();
            let parameter_count = Self::new(&inner, catalog)?.parameter_count;
            let columns = vec![Column { name: "plan".to_owned(), declared_type: String::new() }];
            let step = Step::Explain { sql: inner, analyze };
            return Ok(Self { columns, parameter_count, step, kept: Vec::new() });
        }
        if AlterVSchema::begins(&words) {
            let step = Step::AlterVSchema(AlterVSchema::parse(sql)?);
            return Ok(Self { columns: Vec::new(), parameter_count: 0, step, kept: Vec::new() });
        }
        if AlterLake::begins(&words) {
            let step = Step::AlterLake(AlterLake::parse(sql)?);
            return Ok(Self { columns: Vec::new(), parameter_count: 0, step, kept: Vec::new() });
        }
        if first == "SHOW" {
            let show = Show::parse(sql)?;
            let columns = show.columns();
            return Ok(Self { columns, parameter_count: 0, step: Step::Show(show), kept: Vec::new() });
        }
        if first == "PROMOTE" {
            let step = Step::Promote(show::promote(sql)?);
            return Ok(Self { columns: show::promoted_columns(), parameter_count: 0, step, kept: Vec::new() });
        }
        if first == "PRAGMA" && words.get(1).is_some_and(|name| name == "FOREIGN_KEYS") {
            return foreign_keys(sql, catalog);
        }
        if check::begins(&words) {
            return check::plan(sql, catalog);
        }
        refuse(first, &words)?;
        if first == "PRAGMA" && words.get(1).is_some_and(|name| KEPT_PRAGMAS.contains(&name.as_str())) {
            // Prepared so that it cannot be anything else; the mirror's own number is nobody's.
            let Prepared { columns, parameter_count, .. } = catalog.mirror.prepare(sql)?;
            let step = Step::Pragma { sql: sql.to_owned() };
            return Ok(Self { columns, parameter_count, step, kept: Vec::new() });
        }
        let prepared = Self::compile(sql, catalog)?;
        let step = if let Some(target) = maintained(first, sql, catalog)? {
            Step::Write { target, sql: sql.to_owned(), reference: true }
        } else if first == "EXPLAIN" || first == "PRAGMA" {
            Step::Catalog { sql: sql.to_owned() }
        } else if matches!(first, "CREATE" | "DROP" | "ALTER") {
            Step::Ddl { sql: sql.to_owned() }
        } else if prepared.readonly {
            select::plan(sql, catalog, &prepared)?
        } else {
            dml::plan(sql, catalog, &prepared)?
        };
        let generates = generating && prepared.uses.inserts.iter().any(|table| catalog.increment(table).is_some());
        let kept = match step {
            Step::Ddl { .. } | Step::Read(_) => Vec::new(),
            _ => lookups::kept(sql, catalog, &prepared),
        };
        let plan = Self { columns: prepared.columns.clone(), parameter_count: prepared.parameter_count, step, kept };
        if !generates {
            return Ok(plan);
        }
        Ok(match Generate::plan(sql, catalog, &prepared, plan)? {
            Ok(generate) => Self {
                columns: prepared.columns,
                parameter_count: prepared.parameter_count,
                step: Step::Generate(Box::new(generate)),
                kept: Vec::new(),
            },
            Err(plan) => plan,
        })
    }

    /// Has SQLite compile a statement, and says which tables it uses.
    fn compile(sql: &str, catalog: &mut Catalog) -> Result<Prepared, Error> {
        let mut prepared = catalog.mirror.prepare(sql)?;
        see_common_columns(sql, catalog, &mut prepared)?;
        if prepared.readonly {
            // SQLite does not tell of a table in a subquery of which it needs no column.
            for name in sql_text::names_after(sql, 1) {
                if let Some(table) = catalog.table(&name) {
                    prepared.uses.reads.entry(table.shape.name.clone()).or_default();
                }
            }
        }
        Ok(prepared)
    }

    /// Whether it may be kept for later.
    pub(crate) fn cacheable(&self) -> bool {
        !matches!(self.step, Step::Ddl { .. } | Step::AlterVSchema(_) | Step::AlterLake(_))
    }
}

/// SQLite does not tell of the columns that NATURAL and USING compare, nor of tables of which it reads nothing else: where those
/// words are, all columns of all tables count as read.
fn see_common_columns(sql: &str, catalog: &Catalog, prepared: &mut Prepared) -> Result<(), Error> {
    let common = |word: &str| word.eq_ignore_ascii_case("NATURAL") || word.eq_ignore_ascii_case("USING");
    let mut texts = vec![sql.to_owned()];
    if !prepared.uses.through.is_empty() {
        let uses = &prepared.uses;
        texts.extend(catalog.views()?);
        for table in uses.inserts.iter().chain(uses.updates.keys()).chain(&uses.deletes) {
            texts.extend(catalog.objects_of("trigger", table)?);
        }
    }
    texts.retain(|text| sql_text::has_word(text, common));
    if texts.is_empty() {
        return Ok(());
    }
    let reads = &mut prepared.uses.reads;
    for name in texts.iter().flat_map(|text| sql_text::names_after(text, 1)) {
        if let Some(table) = catalog.table(&name) {
            reads.entry(table.shape.name.clone()).or_default();
        }
    }
    for (name, columns) in reads {
        if let Some(table) = catalog.table(name) {
            columns.extend(table.shape.columns.iter().map(|column| column.name.clone()));
        }
    }
    Ok(())
}

/// `PRAGMA foreign_keys`: they are always enforced.
fn foreign_keys(sql: &str, catalog: &mut Catalog) -> Result<Plan, Error> {
    let Prepared { columns, parameter_count, .. } = catalog.mirror.prepare(sql)?;
    let value = sql_text::names_after(sql, 2).pop().map(|value| value.to_ascii_lowercase());
    let answer = match value.as_deref() {
        None => "SELECT 1",
        Some("1" | "on" | "true" | "yes") => "SELECT 1 WHERE 0",
        Some(_) => {
            return Err(unsupported("PRAGMA foreign_keys = OFF is not supported: foreign keys are always enforced"));
        }
    };
    let step = Step::Catalog { sql: answer.to_owned() };
    Ok(Plan { columns, parameter_count, step, kept: Vec::new() })
}

/// PRAGMAs for the application's own use.
const KEPT_PRAGMAS: [&str; 2] = ["USER_VERSION", "APPLICATION_ID"];

/// The shards that ANALYZE and REINDEX go to.
fn maintained(first: &str, sql: &str, catalog: &Catalog) -> Result<Option<Target>, Error> {
    if !matches!(first, "ANALYZE" | "REINDEX") {
        return Ok(None);
    }
    let name = sql_text::names_after(sql, 1).pop();
    let table = match &name {
        Some(name) => {
            catalog.table_of_index(name)?.or_else(|| catalog.table(name).map(|table| table.shape.name.clone()))
        }
        None => None,
    };
    Ok(Some(match table.and_then(|name| catalog.table(&name)).map(|table| &table.placement) {
        Some(Placement::Unsharded(shard)) => Target::Shard(*shard),
        _ => Target::All,
    }))
}

/// Refuses statements by their first words.
fn refuse(first: &str, words: &[String]) -> Result<(), Error> {
    const READING_PRAGMAS: [&str; 11] = [
        "TABLE_INFO",
        "TABLE_XINFO",
        "TABLE_LIST",
        "INDEX_LIST",
        "INDEX_INFO",
        "INDEX_XINFO",
        "FOREIGN_KEY_LIST",
        "COLLATION_LIST",
        "FUNCTION_LIST",
        "COMPILE_OPTIONS",
        "PRAGMA_LIST",
    ];
    match first {
        "BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" => Err(unsupported(format!(
            "{first} is not supported outside a session: a statement is a transaction; send several as one Batch, or open a session"
        ))),
        "ATTACH" | "DETACH" | "VACUUM" => Err(unsupported(format!("{first} is not supported"))),
        "PRAGMA" => {
            let name = words.get(1).map_or("", String::as_str);
            if READING_PRAGMAS.contains(&name) || KEPT_PRAGMAS.contains(&name) {
                Ok(())
            } else {
                Err(unsupported(format!("PRAGMA {} is not supported", name.to_ascii_lowercase())))
            }
        }
        _ => Ok(()),
    }
}

/// The statement's syntax tree, its parameters numbered; `None` where sqlparser does not understand it as SQLite does.
fn parse(numbered: &str) -> Option<Ast> {
    // Hexadecimal integers would come back as blobs.
    if sql_text::has_word(numbered, |word| word.starts_with("0x") || word.starts_with("0X")) {
        return None;
    }
    let mut statements = Parser::new(&SQLiteDialect {})
        .with_recursion_limit(RECURSION_LIMIT)
        .try_with_sql(numbered)
        .ok()?
        .parse_statements()
        .ok()?;
    let mut statement = match statements.len() {
        1 => statements.pop()?,
        _ => return None,
    };
    // Written out again, one minus right after another would begin a comment.
    let _: ControlFlow<()> = visit_expressions_mut(&mut statement, |expression| {
        if let Expr::UnaryOp { op: UnaryOperator::Minus, expr } = expression
            && matches!(**expr, Expr::UnaryOp { op: UnaryOperator::Minus, .. })
        {
            **expr = Expr::Nested(Box::new((**expr).clone()));
        }
        ControlFlow::Continue(())
    });
    Some(with_inside(statement))
}

/// `WITH ... INSERT ... SELECT` as `INSERT ... WITH ... SELECT`, where nothing but that SELECT can name the tables of WITH.
fn with_inside(statement: Ast) -> Ast {
    let Ast::Query(query) = &statement else { return statement };
    let (Some(with), SetExpr::Insert(Ast::Insert(insert))) = (&query.with, query.body.as_ref()) else {
        return statement;
    };
    let mut insert = insert.clone();
    let source = insert.source.take();
    match source {
        Some(mut source) if source.with.is_none() && predicate::queries(&insert) == 0 => {
            source.with = Some(with.clone());
            insert.source = Some(source);
            Ast::Insert(insert)
        }
        _ => statement,
    }
}

/// The placements of the tables a statement reads.
fn placements<'a>(catalog: &'a Catalog, prepared: &'a Prepared) -> Vec<(&'a str, &'a Placement)> {
    prepared
        .uses
        .reads
        .keys()
        .filter_map(|name| catalog.table(name).map(|table| (name.as_str(), &table.placement)))
        .collect()
}
