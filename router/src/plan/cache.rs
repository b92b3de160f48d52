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
    young: HashMap<String, Cached>,
    old: HashMap<String, Cached>,
}

/// What is known of a text.
#[derive(Debug, Clone)]
pub(crate) enum Cached {
    Plan(Rc<Plan>),
    /// A text without literals that must not be run in place of the one with them.
    NeedsLiterals,
}

impl PlanCache {
    pub(crate) fn get(&mut self, sql: &str) -> Option<Cached> {
        if let Some(cached) = self.young.get(sql) {
            return Some(cached.clone());
        }
        if self.old.is_empty() {
            return None;
        }
        let (text, cached) = self.old.remove_entry(sql)?;
        self.put(text, cached.clone());
        Some(cached)
    }

    pub(crate) fn insert(&mut self, sql: &str, plan: &Rc<Plan>) {
        if sql.len() <= LONGEST_TEXT && plan.cacheable() {
            self.put(sql.to_owned(), Cached::Plan(Rc::clone(plan)));
        }
    }

    /// Notes that statements without their literals are not to be planned so.
    pub(crate) fn needs_literals(&mut self, text: String) {
        self.put(text, Cached::NeedsLiterals);
    }

    fn put(&mut self, sql: String, cached: Cached) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(sql, cached);
    }

    /// Forgets everything: the schema has changed.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}
