//! Working out a write in a scratch database, and writing what it changed to the shards.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

use dosql_actors::sql_hooks;
use dosql_actors::sql_value::{self, Param, sql_error};
use dosql_proto::{Column, Error, ErrorCode, ExecuteResponse, Row, Statement, StatementResult, Value, value::Kind};
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use prost::Message;
use rusqlite::Connection;
use rusqlite::hooks::{Action, PreUpdateCase};

use super::scope::encoded;
use super::shard_rows::Asked;
use super::{Scope, Shared};
use crate::plan::{Home, Plan, Staged, StagedTable};
use crate::sql_text::{self, quote};

/// The most rows that the working out needs, in bytes of encoded rows.
const MAX_STAGED_BYTES: u64 = 256 << 20;
/// The batches that are asked for, in bytes.
const BATCH_BYTES: u32 = 1 << 20;
/// The most that such a statement returns, in bytes.
const MAX_RESULT_BYTES: usize = 8 << 20;
/// Parameters in one statement, as SQLite limits them.
const MAX_PARAMETERS: usize = 32_766;
/// Rows in one INSERT.
const ROWS_AT_ONCE: usize = 500;

/// What the pre-update hook saw: the table, the row's identity before, its values before, and its identity afterwards.
struct Touched {
    table: String,
    before: Option<(i64, Vec<Value>)>,
    after: Option<(i64, Vec<Value>)>,
}

/// A row that changed.
struct ChangedRow {
    before: Option<Vec<Value>>,
    after: Option<Vec<Value>>,
}

impl Shared {
    /// Runs a write that is worked out here. One at a time.
    pub(super) async fn write_staged(
        &self,
        staged: &Staged,
        plan: &Plan,
        params: &[Value],
        request_id: &str,
        call: &Scope,
    ) -> Result<ExecuteResponse, Error> {
        let _alone = self.copying.lock().await;
        let (mut scratch, moved) = self.stage(staged, params, call).await?;
        let touched = watch(&mut scratch)?;
        let result = run(&scratch, staged, plan.columns.clone(), params)?;
        let mut changes = read_changes(&scratch, staged, touched)?;
        // Rows whose rowids are taken on another shard were given others here.
        for (table, rows) in &mut changes {
            for row in rows {
                if let Some(before) = &mut row.before
                    && let Some(rowid) = before.first().and_then(integer).and_then(|rowid| moved.get(&(*table, rowid)))
                {
                    before[0] = (*rowid).into();
                    if let Some(after) = &mut row.after {
                        after[0] = (*rowid).into();
                    }
                }
            }
        }
        let parts = self.parts_of(staged, &changes)?;
        for (table, rows) in &changes {
            let table = &staged.tables[*table];
            if table.hidden_rowid {
                let highest = rows.iter().filter_map(|row| row.after.as_ref()?.first().and_then(integer)).max();
                self.note_rowid(&table.name, highest.unwrap_or_default());
            }
        }
        let bookmark = match parts.is_empty() {
            true => String::new(),
            false => {
                let done = self.write_keeping(parts, &plan.kept, request_id, call).await?;
                self.bookmark(done.iter().map(|(shard, executed)| (*shard, executed.lsn)))
            }
        };
        Ok(ExecuteResponse { result: Some(result), bookmark })
    }

    /// The scratch database with all rows that are needed, and the rowids of rows that have others there.
    async fn stage(
        &self,
        staged: &Staged,
        params: &[Value],
        call: &Scope,
    ) -> Result<(Connection, HashMap<(usize, i64), i64>), Error> {
        let mut scratch = self.context.open_scratch()?;
        let deadline_ms = call.deadline_ms;
        sql_hooks::end_statements(&mut scratch, &self.context, move |context| {
            sql_hooks::is_past(deadline_ms, context)
        })?;
        scratch
            .execute_batch(
                "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA journal_mode = MEMORY; BEGIN",
            )
            .map_err(sql_error)?;
        let gathered = Cell::new(0);
        for input in &staged.inputs {
            scratch.execute_batch(&input.create).map_err(sql_error)?;
            let (sql, used) = sql_text::compact_parameters(&input.sql, params);
            for shard in self.resolve_in(&input.target, params, call).await? {
                let statement = Statement { sql: sql.clone(), params: used.clone() };
                let asked =
                    Asked { shard, statement, max_bytes: BATCH_BYTES, max_rows: 0, step: "read", table: &input.table };
                self.fill(&scratch, input, asked, &gathered, call).await?;
            }
        }
        let mut moved = HashMap::new();
        for (place, table) in staged.tables.iter().enumerate() {
            scratch.execute_batch(&table.create).map_err(sql_error)?;
            let (sql, used) = sql_text::compact_parameters(&table.select, params);
            for shard in self.resolve_in(&table.target, params, call).await? {
                let statement = Statement { sql: sql.clone(), params: used.clone() };
                let asked =
                    Asked { shard, statement, max_bytes: BATCH_BYTES, max_rows: 0, step: "read", table: &table.name };
                let (mut rows, mut rest) = self.read_shard(asked, call).await?;
                loop {
                    gathered.set(gathered.get() + encoded(&rows));
                    if gathered.get() > MAX_STAGED_BYTES {
                        let message = format!(
                            "the statement needs more than {MAX_STAGED_BYTES} bytes of rows of several shards to work out"
                        );
                        return Err(Error::new(ErrorCode::TooLarge, message));
                    }
                    put(&scratch, place, table, &rows, &mut moved).map_err(sql_error)?;
                    if !rest.is_open() {
                        break;
                    }
                    rows = self.more_of(&mut rest, call).await?;
                }
            }
        }
        for object in &staged.objects {
            scratch.execute_batch(object).map_err(sql_error)?;
        }
        scratch.execute_batch("COMMIT; PRAGMA ignore_check_constraints = OFF").map_err(sql_error)?;
        if staged.foreign_keys {
            scratch.execute_batch("PRAGMA foreign_keys = ON").map_err(sql_error)?;
        }
        Ok((scratch, moved))
    }

    /// What each shard is to do: first the deletes, children before their parents, and then, parents before their children, each
    /// table's updates and inserts, so that no row is in another's way and no foreign key's action finds anything left to do.
    fn parts_of(
        &self,
        staged: &Staged,
        changes: &BTreeMap<usize, Vec<ChangedRow>>,
    ) -> Result<Vec<(usize, Vec<Statement>)>, Error> {
        let shards = self.catalog.borrow().shards.len();
        let mut order: Vec<usize> = changes.keys().copied().collect();
        order.sort_by_key(|place| !staged.tables[*place].is_parent());
        // By shard; the deletes in the opposite order.
        let mut deletes: Vec<Vec<Statement>> = vec![Vec::new(); shards];
        let mut others: Vec<Vec<Statement>> = vec![Vec::new(); shards];
        for place in order {
            let table = &staged.tables[place];
            let mut inserted: Vec<Vec<Row>> = vec![Vec::new(); shards];
            for row in &changes[&place] {
                let from = match &row.before {
                    Some(before) => self.home(&table.home, before, shards)?,
                    None => Vec::new(),
                };
                let to = match &row.after {
                    Some(after) => self.home(&table.home, after, shards)?,
                    None => Vec::new(),
                };
                for shard in &from {
                    if let Some(before) = &row.before
                        && (table.replaceable || !to.contains(shard))
                    {
                        deletes[*shard].push(delete(table, before));
                    }
                }
                for shard in to {
                    let Some(after) = &row.after else { continue };
                    match &row.before {
                        Some(before) if !table.replaceable && from.contains(&shard) => {
                            others[shard].push(update(table, before, after));
                        }
                        _ => inserted[shard].push(Row { values: after.clone() }),
                    }
                }
            }
            for (shard, rows) in inserted.into_iter().enumerate() {
                others[shard].extend(inserts(&table.name, &table.columns, rows));
            }
        }
        let parts = deletes.into_iter().zip(others).map(|(deletes, others)| deletes.into_iter().rev().chain(others));
        Ok(parts.map(Iterator::collect).enumerate().filter(|(_, part): &(usize, Vec<_>)| !part.is_empty()).collect())
    }

    /// The shards a row belongs to.
    pub(super) fn home(&self, home: &Home, values: &[Value], shards: usize) -> Result<Vec<usize>, Error> {
        Ok(match home {
            Home::Shard(shard) => vec![*shard],
            Home::Everywhere => (0..shards).collect(),
            Home::Keyed { keys, place } => {
                let value = values.get(*place).ok_or_else(|| Error::internal("a changed row is too short"))?;
                vec![self.shard_for(value, keys)?]
            }
        })
    }
}

impl StagedTable {
    fn is_parent(&self) -> bool {
        !self.create.to_ascii_uppercase().contains("REFERENCES")
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value.kind {
        Some(Kind::Integer(integer)) => Some(integer),
        _ => None,
    }
}

/// A value of a key as all that SQLite holds equal to it: 1 for 1.0.
fn canonical(value: &Value) -> Value {
    match value.kind {
        // An i64 reaches up to, and not to, 2^63.
        Some(Kind::Real(real)) if real as i64 as f64 == real && real < i64::MAX as f64 => (real as i64).into(),
        _ => value.clone(),
    }
}

/// Puts rows into a staged table. One whose rowid is taken gets another, which is noted.
fn put(
    scratch: &Connection,
    place: usize,
    table: &StagedTable,
    rows: &[Row],
    moved: &mut HashMap<(usize, i64), i64>,
) -> rusqlite::Result<()> {
    let places = vec!["?"; table.columns.len()].join(", ");
    let or = if table.hidden_rowid { " OR IGNORE" } else { "" };
    let sql = format!("INSERT{or} INTO {} ({}) VALUES ({places})", quote(&table.name), table.columns.join(", "));
    let mut statement = scratch.prepare_cached(&sql)?;
    for row in rows {
        for (index, value) in row.values.iter().enumerate() {
            statement.raw_bind_parameter(index + 1, Param(value))?;
        }
        if statement.raw_execute()? == 0
            && let Some(rowid) = row.values.first().and_then(integer)
        {
            statement.raw_bind_parameter(1, rusqlite::types::Null)?;
            if statement.raw_execute()? > 0 {
                moved.insert((place, scratch.last_insert_rowid()), rowid);
            }
        }
    }
    Ok(())
}

/// Has the connection report every row that changes.
fn watch(scratch: &mut Connection) -> Result<UnboundedReceiver<Touched>, Error> {
    let (sender, touched) = unbounded();
    let hook = move |_: Action, database: &str, table: &str, case: &PreUpdateCase| {
        if database != "main" || table.starts_with("sqlite_") {
            return;
        }
        let (before, after) = match case {
            PreUpdateCase::Insert(new) => {
                let values = collect(new.get_column_count(), |index| new.get_new_column_value(index));
                (None, Some((new.get_new_row_id(), values)))
            }
            PreUpdateCase::Delete(old) => {
                let values = collect(old.get_column_count(), |index| old.get_old_column_value(index));
                (Some((old.get_old_row_id(), values)), None)
            }
            PreUpdateCase::Update { old_value_accessor: old, new_value_accessor: new } => (
                Some((old.get_old_row_id(), collect(old.get_column_count(), |index| old.get_old_column_value(index)))),
                Some((new.get_new_row_id(), collect(new.get_column_count(), |index| new.get_new_column_value(index)))),
            ),
            PreUpdateCase::Unknown => return,
        };
        // The receiver lives as long as the statement.
        let _ = sender.unbounded_send(Touched { table: table.to_ascii_lowercase(), before, after });
    };
    scratch.preupdate_hook(Some(hook)).map_err(sql_error)?;
    Ok(touched)
}

fn collect<'v>(count: i32, value: impl Fn(i32) -> rusqlite::Result<rusqlite::types::ValueRef<'v>>) -> Vec<Value> {
    (0..count).map(|index| value(index).map(sql_value::to_value).unwrap_or_default()).collect()
}

/// Runs the statement.
fn run(
    scratch: &Connection,
    staged: &Staged,
    columns: Vec<Column>,
    params: &[Value],
) -> Result<StatementResult, Error> {
    scratch.execute_batch("BEGIN").map_err(sql_error)?;
    let (sql, params) = sql_text::compact_parameters(&staged.sql, params);
    let before = scratch.total_changes();
    let rowid = scratch.last_insert_rowid();
    let collected = {
        let mut statement = scratch.prepare(&sql).map_err(sql_error)?;
        sql_value::run(&mut statement, &params, MAX_RESULT_BYTES)?
    };
    let rows_affected = if scratch.total_changes() == before { 0 } else { scratch.changes() };
    let last = scratch.last_insert_rowid();
    scratch.execute_batch("COMMIT").map_err(sql_error)?;
    let last_insert_rowid = if last == rowid { 0 } else { last };
    Ok(StatementResult {
        columns,
        rows: collected.rows,
        rows_affected,
        last_insert_rowid,
        ..StatementResult::default()
    })
}

/// The rows that are not as they were, by table.
fn read_changes(
    scratch: &Connection,
    staged: &Staged,
    mut touched: UnboundedReceiver<Touched>,
) -> Result<BTreeMap<usize, Vec<ChangedRow>>, Error> {
    struct Seen {
        identity: Vec<Value>,
        before: Option<Vec<Value>>,
    }
    let places: HashMap<String, usize> =
        staged.tables.iter().enumerate().map(|(place, table)| (table.name.to_ascii_lowercase(), place)).collect();
    let mut seen: BTreeMap<usize, (HashSet<Vec<u8>>, Vec<Seen>)> = BTreeMap::new();
    let mut indexes: HashMap<usize, Vec<usize>> = HashMap::new();
    while let Ok(one) = touched.try_recv() {
        let Some(place) = places.get(&one.table) else {
            return Err(Error::internal(format!("rows of table {} changed unexpectedly", one.table)));
        };
        let table = &staged.tables[*place];
        if !indexes.contains_key(place) {
            indexes.insert(*place, given_indexes(scratch, &table.name).map_err(sql_error)?);
        }
        let image = |(rowid, values): &(i64, Vec<Value>)| -> Vec<Value> {
            let mut image: Vec<Value> =
                indexes[place].iter().map(|index| values.get(*index).cloned().unwrap_or_default()).collect();
            if table.hidden_rowid {
                image.insert(0, (*rowid).into());
            }
            image
        };
        let (known, rows) = seen.entry(*place).or_default();
        for (side, old) in [(&one.before, true), (&one.after, false)] {
            let Some(side) = side else { continue };
            let image = image(side);
            let identity: Vec<Value> = table.identity.iter().map(|index| image[*index].clone()).collect();
            let key = Row { values: identity.iter().map(canonical).collect() }.encode_to_vec();
            if known.insert(key) {
                rows.push(Seen { identity, before: old.then_some(image) });
            }
        }
    }
    let mut changes = BTreeMap::new();
    for (place, (_, rows)) in seen {
        let table = &staged.tables[place];
        let condition: Vec<String> = table
            .identity
            .iter()
            .enumerate()
            .map(|(number, column)| format!("{} IS ?{}", table.columns[*column], number + 1))
            .collect();
        let sql = format!(
            "SELECT {} FROM {} WHERE {}",
            table.columns.join(", "),
            quote(&table.name),
            condition.join(" AND ")
        );
        let mut statement = scratch.prepare(&sql).map_err(sql_error)?;
        let mut changed = Vec::new();
        for row in rows {
            sql_value::bind(&mut statement, &row.identity)?;
            let mut found = statement.raw_query();
            let after = match found.next().map_err(sql_error)? {
                Some(row) => Some(sql_value::to_row(row, table.columns.len()).map_err(sql_error)?.values),
                None => None,
            };
            // Under a collation, the key may have found another row that has replaced this one.
            let after = after.filter(|after| {
                table
                    .identity
                    .iter()
                    .zip(&row.identity)
                    .all(|(place, known)| canonical(&after[*place]) == canonical(known))
            });
            if row.before.is_some() || after.is_some() {
                changed.push(ChangedRow { before: row.before, after });
            }
        }
        // Rows in the order of their rowids, as they were inserted.
        if table.hidden_rowid {
            changed.sort_by_key(|row| row.after.as_ref().and_then(|after| after.first().and_then(integer)));
        }
        changes.insert(place, changed);
    }
    Ok(changes)
}

/// The places, among a table's columns, of those that are given values.
fn given_indexes(scratch: &Connection, table: &str) -> rusqlite::Result<Vec<usize>> {
    let hidden: Vec<i64> = scratch
        .prepare("SELECT hidden FROM pragma_table_xinfo(?1) ORDER BY cid")?
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(hidden.iter().enumerate().filter(|(_, hidden)| **hidden <= 1).map(|(index, _)| index).collect())
}

/// INSERTs of rows, each within SQLite's limit of parameters.
pub(super) fn inserts(table: &str, columns: &[String], rows: Vec<Row>) -> Vec<Statement> {
    let width = columns.len().max(1);
    let at_once = (MAX_PARAMETERS / width).clamp(1, ROWS_AT_ONCE);
    let mut statements = Vec::new();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let chunk: Vec<Row> = rows.by_ref().take(at_once).collect();
        let list = format!("({})", vec!["?"; width].join(", "));
        let lists = vec![list; chunk.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES {lists}", quote(table), columns.join(", "));
        statements.push(Statement { sql, params: chunk.into_iter().flat_map(|row| row.values).collect() });
    }
    statements
}

fn condition(table: &StagedTable, row: &[Value], params: &mut Vec<Value>) -> String {
    let parts: Vec<String> = table
        .identity
        .iter()
        .map(|place| {
            params.push(row[*place].clone());
            // IS finds NULLs in a primary key, but does not use the rowid.
            let operator = if row[*place].is_null() { "IS" } else { "=" };
            format!("{} {operator} ?", table.columns[*place])
        })
        .collect();
    parts.join(" AND ")
}

fn delete(table: &StagedTable, row: &[Value]) -> Statement {
    let mut params = Vec::new();
    let condition = condition(table, row, &mut params);
    Statement { sql: format!("DELETE FROM {} WHERE {condition}", quote(&table.name)), params }
}

fn update(table: &StagedTable, before: &[Value], after: &[Value]) -> Statement {
    let mut params = Vec::new();
    let set: Vec<String> = table
        .columns
        .iter()
        .zip(before.iter().zip(after))
        .filter(|(_, (before, after))| before != after)
        .map(|(column, (_, after))| {
            params.push(after.clone());
            format!("{column} = ?")
        })
        .collect();
    let set = match set.is_empty() {
        true => format!("{0} = {0}", table.columns[table.identity[0]]),
        false => set.join(", "),
    };
    let condition = condition(table, before, &mut params);
    Statement { sql: format!("UPDATE {} SET {set} WHERE {condition}", quote(&table.name)), params }
}
