//! PRAGMAs that check the data: each shard checks its own, and what they find is put together.

use dosql_proto::Error;

use super::{Gather, GatherKind, Input, Plan, Read, Step, Target};
use crate::catalog::{Catalog, Placement, Prepared};
use crate::sql_text;

/// Their names; as tables of SQLite's they begin with `pragma_`.
const CHECKS: [&str; 3] = ["integrity_check", "quick_check", "foreign_key_check"];
/// How many faults SQLite tells of where it is not told how many.
const MOST_FAULTS: u32 = 100;

/// Whether a statement that starts with these words, in upper case, is meant to be one.
pub(super) fn begins(words: &[String]) -> bool {
    matches!(words, [pragma, name, ..] if pragma == "PRAGMA" && is_check(name))
}

fn is_check(name: &str) -> bool {
    CHECKS.iter().any(|check| check.eq_ignore_ascii_case(name))
}

/// The check that a table of SQLite's runs, if it is one.
pub(super) fn of_table(name: &str) -> Option<&str> {
    let (head, check) = name.split_at_checked("pragma_".len())?;
    (head.eq_ignore_ascii_case("pragma_") && is_check(check)).then_some(check)
}

/// Plans one.
///
/// # Errors
/// What SQLite finds wrong with it.
pub(super) fn plan(sql: &str, catalog: &mut Catalog) -> Result<Plan, Error> {
    let Prepared { columns, parameter_count, .. } = catalog.mirror.prepare(sql)?;
    let read = match catalog.shards.len() {
        1 => Read::Pinned { pins: vec![Target::Shard(0)], sql: sql.to_owned(), otherwise: None },
        _ => Read::Gather(Box::new(gather(sql, catalog))),
    };
    Ok(Plan { columns, parameter_count, step: Step::Read(read), kept: Vec::new() })
}

fn gather(sql: &str, catalog: &Catalog) -> Gather {
    let mut words = sql_text::names_after(sql, 1).into_iter();
    let check = words.next().unwrap_or_default().to_lowercase();
    // A table, or a number of faults.
    let argument = words.next();
    let table = argument.as_deref().and_then(|name| catalog.table(name));
    let shard = match table.map(|table| &table.placement) {
        Some(Placement::Unsharded(shard)) => Some(*shard),
        _ => None,
    };
    let (inputs, finish) = if check == "foreign_key_check" {
        let input = Input {
            table: check,
            target: shard.map_or(Target::All, Target::Shard),
            sql: sql.to_owned(),
            create: "CREATE TABLE found (\"table\", rowid, parent, fkid)".to_owned(),
            insert: "INSERT INTO found VALUES (?, ?, ?, ?)".to_owned(),
            has_rowid: false,
        };
        // Each shard has the rows of a reference table.
        (vec![input], "SELECT DISTINCT * FROM found".to_owned())
    } else {
        let most = argument.and_then(|number| number.parse().ok()).filter(|most| *most > 0).unwrap_or(MOST_FAULTS);
        let shards = (0..).zip(&catalog.shards).filter(|(place, _)| shard.is_none_or(|only| only == *place));
        let inputs = shards.map(|(place, name)| Input {
            table: check.clone(),
            target: Target::Shard(place),
            sql: sql.to_owned(),
            create: "CREATE TABLE IF NOT EXISTS found (fault)".to_owned(),
            insert: format!("INSERT INTO found SELECT {} || ?1 WHERE ?1 <> 'ok'", literal(&format!("{name}: "))),
            has_rowid: false,
        });
        let faults = format!(
            "SELECT fault FROM found UNION ALL SELECT 'ok' WHERE NOT EXISTS (SELECT 1 FROM found) LIMIT {most}"
        );
        (inputs.collect(), faults)
    };
    Gather { kind: GatherKind::Rows, inputs, views: Vec::new(), finish, fallback: None }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
