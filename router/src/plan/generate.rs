//! INSERTs into tables one of whose columns a sequence fills.

use dosql_proto::{Error, Value};
use sqlparser::ast::{self, Expr, Ident, ObjectName, SetExpr, Statement as Ast, Value as Literal};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;

use super::{KeySource, Plan, Read, dml, parse, predicate, rows_of};
use crate::catalog::{Catalog, Prepared, Table, unsupported};
use crate::sql_text;

/// An INSERT that a sequence may have to give values.
#[derive(Debug)]
pub(crate) struct Generate {
    pub(crate) table: String,
    pub(crate) column: String,
    pub(crate) sequence: String,
    pub(crate) source: GenerateSource,
    /// The statement as it is, where every row has a value.
    pub(crate) given: Box<Plan>,
    tree: ast::Insert,
    place: Option<usize>,
    parameters: usize,
}

/// Where its rows come from.
#[derive(Debug)]
pub(crate) enum GenerateSource {
    /// VALUES: what each row has in the column.
    Values(Vec<Slot>),
    /// A SELECT of so many columns.
    Select { read: Read, width: usize },
}

/// What a row has in the column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Slot {
    /// Nothing: it is not among the statement's columns.
    Missing,
    Value(KeySource),
}

impl Generate {
    /// The plan of an INSERT whose plan without a sequence is `given`; that one where no sequence is concerned.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the statement is not understood.
    pub(super) fn plan(
        sql: &str,
        catalog: &Catalog,
        prepared: &Prepared,
        given: Plan,
    ) -> Result<Result<Self, Plan>, Error> {
        let mut inserted = prepared.uses.inserts.iter();
        let (Some(name), None) = (inserted.next(), inserted.next()) else { return Ok(Err(given)) };
        let Some(increment) = catalog.increment(name) else { return Ok(Err(given)) };
        let Some(table) = catalog.table(name) else { return Ok(Err(given)) };
        let Some(column) = table.shape.column(&increment.column) else { return Ok(Err(given)) };
        let refused = || {
            unsupported(format!(
                "this form of INSERT into table {name} is not supported: a sequence fills {}",
                increment.column
            ))
        };
        let Some(Ast::Insert(tree)) = parse(&sql_text::number_parameters(sql)) else { return Err(refused()) };
        let place = place_of(&tree, table, column).ok_or_else(refused)?;
        let source = match tree.source.as_deref() {
            None => GenerateSource::Values(vec![Slot::Missing]),
            Some(query) => match rows_of(query) {
                Some(rows) => {
                    let slot = |row: &ast::Parens<Vec<Expr>>| match place.and_then(|place| row.content.get(place)) {
                        None => Slot::Missing,
                        Some(expression) => {
                            let source = predicate::key_source(expression);
                            Slot::Value(source.unwrap_or_else(|| KeySource::Expression(expression.to_string())))
                        }
                    };
                    GenerateSource::Values(rows.iter().map(slot).collect())
                }
                None => GenerateSource::Select {
                    read: dml::source_read(query, catalog, prepared)?,
                    width: match tree.columns.len() {
                        0 => table.shape.given().len(),
                        named => named,
                    },
                },
            },
        };
        Ok(Ok(Self {
            table: table.shape.name.clone(),
            column: table.shape.columns[column].name.clone(),
            sequence: increment.sequence.clone(),
            source,
            parameters: given.parameter_count,
            given: Box::new(given),
            tree,
            place,
        }))
    }

    /// The statement with these values in the column, row by row. They become parameters after the statement's own.
    ///
    /// # Errors
    /// `INTERNAL` where the statement is not what it was.
    pub(crate) fn with_values(
        &self,
        mut params: Vec<Value>,
        values: Vec<Value>,
    ) -> Result<(String, Vec<Value>), Error> {
        let mut tree = self.tree.clone();
        let first = self.parameters + 1;
        let placeholder = |row: usize| Expr::value(Literal::Placeholder(format!("?{}", first + row)));
        if self.place.is_none() && tree.source.is_some() && tree.columns.is_empty() {
            return Err(Error::internal("a row of every column lacks one"));
        }
        if tree.source.is_none() {
            let query = Parser::new(&SQLiteDialect {})
                .try_with_sql(&format!("VALUES (?{first})"))
                .and_then(|mut parser| parser.parse_query())
                .map_err(|error| Error::internal(error.to_string()))?;
            tree.source = Some(query);
        } else {
            let Some(SetExpr::Values(rows)) = tree.source.as_mut().map(|source| source.body.as_mut()) else {
                return Err(Error::internal("VALUES without rows"));
            };
            for (row, values) in rows.rows.iter_mut().enumerate() {
                match self.place.and_then(|place| values.content.get_mut(place)) {
                    Some(expression) => *expression = placeholder(row),
                    None => values.content.insert(0, placeholder(row)),
                }
            }
        }
        if self.place.is_none() {
            tree.columns.insert(0, self.column_name());
        }
        params.truncate(self.parameters);
        params.extend(values);
        // A parameter that only the column had is used no more.
        Ok(sql_text::compact_parameters(&tree.to_string(), &params))
    }

    /// The INSERT that takes selected rows with the column among their values, and the column's place there.
    pub(crate) fn of_rows(&self) -> (ast::Insert, usize) {
        let mut tree = self.tree.clone();
        if let Some(place) = self.place {
            return (tree, place);
        }
        tree.columns.insert(0, self.column_name());
        (tree, 0)
    }

    /// Whether the column is not among the statement's.
    pub(crate) fn is_missing(&self) -> bool {
        self.place.is_none()
    }

    fn column_name(&self) -> ObjectName {
        ObjectName::from(vec![Ident::with_quote('"', &self.column)])
    }
}

/// The place of a column among the values; `Some(None)` where it is not there, `None` where that cannot be told.
fn place_of(tree: &ast::Insert, table: &Table, column: usize) -> Option<Option<usize>> {
    let shape = &table.shape;
    if tree.source.is_none() {
        return Some(None);
    }
    if tree.columns.is_empty() {
        return Some(
            (0..shape.columns.len()).filter(|index| !shape.columns[*index].generated).position(|index| index == column),
        );
    }
    let mut place = None;
    for (at, name) in tree.columns.iter().enumerate() {
        let name = predicate::table_name(name)?;
        let rowid = ["rowid", "oid", "_rowid_"].iter().any(|known| name.eq_ignore_ascii_case(known));
        let index = shape.column(&name).or(if rowid { shape.rowid_alias } else { None });
        if index == Some(column) {
            place = Some(at);
        }
    }
    Some(place)
}
