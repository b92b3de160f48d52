//! Which lookup tables change with the rows that a statement writes.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::staged;
use crate::catalog::{Catalog, Lookup, Prepared, Table};
use crate::sql_text;

/// The lookup vindexes whose entries may change.
pub(super) fn kept(sql: &str, catalog: &Catalog, prepared: &Prepared) -> Vec<Rc<Lookup>> {
    if catalog.tables.values().all(|table| table.lookups.is_empty()) {
        return Vec::new();
    }
    let uses = &prepared.uses;
    let named =
        |names: &BTreeSet<String>, table: &Table| names.iter().any(|name| name.eq_ignore_ascii_case(&table.shape.name));
    let written = staged::written(catalog, prepared);
    let mut tied = written.clone();
    // Foreign keys may change rows of tables that the statement does not name.
    let ties = staged::follow_foreign_keys(catalog, &mut tied);
    let replaces = sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("REPLACE"));
    let mut kept = Vec::new();
    for (name, table) in catalog.tables.iter().filter(|(name, table)| !table.lookups.is_empty() && tied.contains(*name))
    {
        let rows_come_or_go = named(&uses.inserts, table)
            || named(&uses.deletes, table)
            || replaces
            || declares_conflicts(catalog, table)
            || ties && (written.len() > 1 || !written.contains(name) || !table.shape.foreign_keys.is_empty());
        let updated = uses.updates.iter().find(|(name, _)| name.eq_ignore_ascii_case(&table.shape.name));
        let touches = |lookup: &&Rc<Lookup>| {
            updated.is_some_and(|(_, columns)| {
                let rowid = columns.iter().any(|column| column == "ROWID");
                let needed = lookup.definition.columns();
                rowid || needed.iter().any(|one| columns.iter().any(|column| column.eq_ignore_ascii_case(one)))
            })
        };
        kept.extend(table.lookups.iter().filter(|lookup| rows_come_or_go || touches(lookup)).cloned());
    }
    kept
}

/// Whether a constraint of a table says what becomes of rows that violate it.
pub(super) fn declares_conflicts(catalog: &Catalog, table: &Table) -> bool {
    let declared = |sql: &String| sql_text::has_word(sql, |word| word.eq_ignore_ascii_case("CONFLICT"));
    // Where that cannot be told, it may.
    catalog.objects_of("table", &table.shape.name).map_or(true, |create| create.iter().any(declared))
}
