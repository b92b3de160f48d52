//! The forms that a source table has had, and which field of the lake each column of each form is.
//!
//! Every shard runs the same schema changes in the same order, but the lake learns of them at different moments. So it keeps
//! the forms in that order, and for each shard which of them its rows have now. The first shard that tells of a change says what
//! the next form is; the others come to it by the same change. Fields are followed by their ids: a renamed column keeps its
//! id, a dropped one's is never used again, and one that is made again has a new one.

use std::collections::BTreeMap;

use dosql_proto::{Column, WalTable};
use serde::{Deserialize, Serialize};

use crate::columns::{ColumnType, LakeColumns, Source};

/// A column of a form: the source's name, the type it has in the lake by its declared type, and its field's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FormColumn(pub(crate) String, pub(crate) ColumnType, pub(crate) i32);

/// The columns of a source table's rows, in their order.
pub(crate) type Form = Vec<FormColumn>;

/// Where a shard is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The number of the form that its rows have.
    form: u64,
    /// The LSN of the schema change that was taken in last.
    lsn: u64,
    /// Whether it has dropped the table.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dropped: bool,
}

/// The forms that matter still, and where each shard is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forms {
    /// The number of the first form that is kept.
    first: u64,
    forms: Vec<Form>,
    shards: BTreeMap<String, Place>,
}

/// Whether rows of this layout have this form.
fn fits(form: &Form, layout: &WalTable) -> bool {
    form.len() == layout.columns.len()
        && form.iter().zip(&layout.columns).all(|(FormColumn(name, column_type, _), column)| {
            *name == column.name && *column_type == ColumnType::of_declared(&column.declared_type)
        })
}

impl Forms {
    /// Of a new table, whose first form this is.
    pub(crate) fn beginning_with(form: Form) -> Self {
        let forms = if form.is_empty() { Vec::new() } else { vec![form] };
        Self { first: 0, forms, shards: BTreeMap::new() }
    }

    /// The newest form.
    fn newest(&self) -> Option<&Form> {
        self.forms.last()
    }

    /// The id of the column that has this name in the newest form.
    pub(crate) fn id_named(&self, name: &str) -> Option<i32> {
        self.newest()?.iter().find(|column| column.0.eq_ignore_ascii_case(name)).map(|column| column.2)
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Form> {
        self.forms.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Whether the schema change at this LSN was taken in before.
    pub(crate) fn has(&self, shard: &str, lsn: u64) -> bool {
        self.shards.get(shard).is_some_and(|place| lsn <= place.lsn)
    }

    /// The shard has dropped the table.
    pub(crate) fn dropped(&mut self, shard: &str, lsn: u64) {
        if let Some(place) = self.shards.get_mut(shard) {
            *place = Place { lsn, dropped: true, ..*place };
        }
    }

    /// The shard's rows have this layout from this LSN on. `new_id` gives ids that no field has had. Returns the form's number.
    pub(crate) fn moved(&mut self, shard: &str, lsn: u64, layout: &WalTable, new_id: &mut impl FnMut() -> i32) -> u64 {
        let place = self.shards.get(shard);
        let numbered = || (self.first..).zip(&self.forms).filter(|(_, form)| fits(form, layout));
        let known = match place {
            // What others have gone through before it, in that order.
            Some(place) => numbered().find(|(number, _)| *number >= place.form),
            None => numbered().last(),
        };
        let form = match known {
            Some((number, _)) => number,
            None => {
                let before = place.and_then(|place| self.get(place.form));
                let made_anew = place.is_none_or(|place| place.dropped);
                let form = successor(before.or(self.newest()).map_or(&[], Vec::as_slice), layout, made_anew, new_id);
                self.forms.push(form);
                self.first + self.forms.len() as u64 - 1
            }
        };
        self.shards.insert(shard.to_owned(), Place { form, lsn, dropped: false });
        form
    }

    /// The form of a row of this layout. It is the one that the shard's last schema change has led to; where the layout is
    /// another, the change was not told of.
    pub(crate) fn of_row(&mut self, shard: &str, lsn: u64, layout: &WalTable, new_id: &mut impl FnMut() -> i32) -> u64 {
        match self.shards.get(shard) {
            Some(place) if self.get(place.form).is_some_and(|form| fits(form, layout)) => place.form,
            place => {
                let lsn = place.map_or(lsn.saturating_sub(1), |place| place.lsn);
                self.moved(shard, lsn, layout, new_id)
            }
        }
    }

    /// Forgets forms that no shard has any more.
    pub(crate) fn forget_old(&mut self) {
        if let Some(oldest) = self.shards.values().map(|place| place.form).min()
            && oldest > self.first
        {
            let gone = usize::try_from(oldest - self.first).unwrap_or(0).min(self.forms.len());
            self.forms.drain(..gone);
            self.first += gone as u64;
        }
    }

    /// The columns that the lake's table has: those of the newest form, and those that other shards' rows still have.
    pub(crate) fn columns(&self) -> Form {
        let mut columns = self.newest().cloned().unwrap_or_default();
        let places: Vec<u64> = self.shards.values().filter(|place| !place.dropped).map(|place| place.form).collect();
        for (at, form) in self.forms.iter().enumerate().rev() {
            if !places.contains(&(self.first + at as u64)) {
                continue;
            }
            for column in form {
                let FormColumn(name, _, id) = column;
                let taken = |known: &FormColumn| known.2 == *id || known.0.eq_ignore_ascii_case(name);
                if !columns.iter().any(taken) {
                    columns.push(column.clone());
                }
            }
        }
        columns
    }

    /// For each lake column, the place in rows of this form of the value that fills it.
    pub(crate) fn sources(&self, number: u64, columns: &LakeColumns) -> Vec<Option<usize>> {
        let form = self.get(number).map_or(&[][..], Vec::as_slice);
        let place = |id: i32| form.iter().position(|FormColumn(.., of)| *of == id);
        let sources = columns.columns.iter().map(|column| match column.source {
            Source::Meta(_) => None,
            Source::Column(_) => place(column.id),
            Source::Variant { of, .. } => place(of),
        });
        sources.collect()
    }
}

/// The form that a schema change makes of `before`. Only one that makes the table anew goes by names alone.
fn successor(before: &[FormColumn], layout: &WalTable, made_anew: bool, new_id: &mut impl FnMut() -> i32) -> Form {
    let after = &layout.columns;
    let same = |known: &FormColumn, column: &Column| known.0 == column.name;
    let differing: Vec<usize> =
        (0..after.len().min(before.len())).filter(|at| !same(&before[*at], &after[*at])).collect();
    let is_renamed = |at: usize| {
        // Of the same length, and no other column bears the name that is gone or the new one.
        before.len() == after.len()
            && !after.iter().any(|column| same(&before[at], column))
            && !before.iter().any(|known| same(known, &after[at]))
    };
    let renamed = match (made_anew, differing.as_slice()) {
        (false, [at]) if is_renamed(*at) => Some(*at),
        _ => None,
    };
    let mut form = Form::with_capacity(after.len());
    for (at, column) in after.iter().enumerate() {
        let column_type = ColumnType::of_declared(&column.declared_type);
        let known = match renamed {
            Some(renamed) if renamed == at => before.get(at),
            _ => before.iter().find(|known| same(known, column)),
        };
        // A column of another type is another column.
        let id = known.filter(|known| known.1 == column_type).map_or_else(&mut *new_id, |known| known.2);
        form.push(FormColumn(column.name.clone(), column_type, id));
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: &str) -> WalTable {
        let column = |text: &str| {
            let (name, declared) = text.split_once(' ').unwrap_or((text, "INTEGER"));
            Column { name: name.to_owned(), declared_type: declared.to_owned() }
        };
        WalTable { columns: columns.split(',').map(column).collect(), ..WalTable::default() }
    }

    fn ids(forms: &Forms, number: u64) -> Vec<i32> {
        forms.get(number).map_or(Vec::new(), |form| form.iter().map(|column| column.2).collect())
    }

    fn names(forms: &Forms) -> Vec<String> {
        forms.columns().into_iter().map(|FormColumn(name, ..)| name).collect()
    }

    #[test]
    fn shards_go_through_the_same_forms() {
        let mut last = 0;
        let mut new_id = || {
            last += 1;
            last
        };
        let mut forms = Forms::default();
        let steps = ["id,a", "id,b", "id", "id,b", "b,id", "id TEXT,b"];
        let mut numbers = Vec::new();
        for (lsn, step) in (1..).zip(steps) {
            if step == "id TEXT,b" {
                forms.dropped("shard-0", lsn);
            }
            numbers.push(forms.moved("shard-0", lsn, &layout(step), &mut new_id));
            if lsn == 1 {
                assert_eq!(forms.moved("shard-1", 1, &layout(step), &mut new_id), numbers[0]);
            }
        }
        let seen: Vec<Vec<i32>> = numbers.iter().map(|number| ids(&forms, *number)).collect();
        // Renamed: the same id. Dropped and made again: another. Made anew with another type: another.
        assert_eq!(seen, [vec![1, 2], vec![1, 2], vec![1], vec![1, 3], vec![3, 1], vec![4, 3]]);
        assert_eq!(names(&forms), ["id", "b", "a"], "shard-1's rows have it still");
        // A row of the shard that lags is of the form that it has, although a later form has the same columns.
        assert_eq!(forms.of_row("shard-1", 2, &layout("id,a"), &mut new_id), numbers[0]);
        let caught_up: Vec<u64> =
            steps[1..5].iter().map(|step| forms.moved("shard-1", 9, &layout(step), &mut new_id)).collect();
        assert_eq!(caught_up, numbers[1..5]);
        forms.dropped("shard-1", 10);
        assert_eq!(forms.moved("shard-1", 11, &layout(steps[5]), &mut new_id), numbers[5]);
        forms.forget_old();
        assert_eq!((forms.forms.len(), forms.first), (1, 5), "what nobody has is forgotten");
        assert_eq!(last, 4, "no other id was used");
    }
}
