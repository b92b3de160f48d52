//! Plans by statement text.

use std::collections::HashMap;
use std::rc::Rc;

use super::Plan;

/// Plans in each of the two generations.
const GENERATION: usize = 512;
/// Longer texts are planned anew each time.
const LONGEST_TEXT: usize = 16 << 10;

/// A bounded cache: plans not used while [`GENERATION`] others were are forgotten.
#[derive(Debug, Default)]
pub(crate) struct PlanCache {
    young: HashMap<String, Rc<Plan>>,
    old: HashMap<String, Rc<Plan>>,
}

impl PlanCache {
    pub(crate) fn get(&mut self, sql: &str) -> Option<Rc<Plan>> {
        if let Some(plan) = self.young.get(sql) {
            return Some(Rc::clone(plan));
        }
        let (text, plan) = self.old.remove_entry(sql)?;
        self.put(text, Rc::clone(&plan));
        Some(plan)
    }

    pub(crate) fn insert(&mut self, sql: &str, plan: &Rc<Plan>) {
        if sql.len() <= LONGEST_TEXT && plan.cacheable() {
            self.put(sql.to_owned(), Rc::clone(plan));
        }
    }

    fn put(&mut self, sql: String, plan: Rc<Plan>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(sql, plan);
    }

    /// Forgets everything: the schema has changed.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}
