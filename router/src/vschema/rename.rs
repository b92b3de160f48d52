//! The VSchema after a table or one of its columns was renamed.

use super::{AutoIncrement, TableEntry, VSchema, VindexChoice, VindexEntry};

impl VSchema {
    /// What is said of table `old` is said of table `new` now.
    pub(crate) fn with_table_renamed(&self, old: &str, new: &str) -> Self {
        let mut after = self.clone();
        let known = after.tables.keys().find(|known| known.eq_ignore_ascii_case(old)).cloned();
        let Some(mut entry) = known.and_then(|known| after.tables.remove(&known)) else { return after };
        after.each_lookup(&mut entry, |_, owner, _| {
            if owner.is_some() {
                *owner = Some(new.to_owned());
            }
        });
        after.tables.insert(new.to_owned(), entry);
        after
    }

    /// Nothing is said of a table any more.
    pub(crate) fn without_table(&self, table: &str) -> Self {
        let mut after = self.clone();
        after.tables.retain(|known, _| !known.eq_ignore_ascii_case(table));
        after
    }

    /// What is said of column `old` of a table is said of column `new` now. Lookup tables keep the columns that they have.
    pub(crate) fn with_column_renamed(&self, table: &str, old: &str, new: &str) -> Self {
        let mut after = self.clone();
        let known = after.tables.keys().find(|known| known.eq_ignore_ascii_case(table)).cloned();
        let Some((known, mut entry)) = known.and_then(|known| after.tables.remove_entry(&known)) else { return after };
        after.each_lookup(&mut entry, |column, _, from| {
            if column.eq_ignore_ascii_case(old) {
                from.get_or_insert_with(|| column.to_owned());
            }
        });
        let rename = |column: &mut String| {
            if column.eq_ignore_ascii_case(old) {
                new.clone_into(column);
            }
        };
        if let TableEntry::Sharded { column, auto_increment, lookups, .. } = &mut entry {
            rename(column);
            if let Some(AutoIncrement { column, .. }) = auto_increment {
                rename(column);
            }
            lookups.iter_mut().for_each(|lookup| rename(&mut lookup.column));
        }
        after.tables.insert(known, entry);
        after
    }

    /// Changes owner and column of values (`from`) of each of a table's lookup vindexes; the column that has it comes first.
    fn each_lookup(&mut self, entry: &mut TableEntry, change: impl Fn(&str, &mut Option<String>, &mut Option<String>)) {
        let TableEntry::Sharded { lookups, .. } = entry else { return };
        for lookup in lookups {
            let vindex = match &mut lookup.vindex {
                VindexChoice::Own(vindex) => Some(vindex),
                VindexChoice::Named(name) => {
                    let mut named = self.vindexes.iter_mut();
                    named.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, vindex)| vindex)
                }
            };
            if let Some(VindexEntry::Lookup { owner, from, .. } | VindexEntry::LookupUnique { owner, from, .. }) =
                vindex
            {
                change(&lookup.column, owner, from);
            }
        }
    }
}
