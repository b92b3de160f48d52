//! Judges histories of transactions: is there one order of all of them, in keeping with when each began and ended, in which
//! every one saw what those before it left? That is strict serialisability, of every key and of all keys together. The search is
//! Wing and Gong's, with Lowe's memory of the states it has seen.

use std::collections::{BTreeMap, HashSet};

/// Something that a transaction did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It saw this value; `None`: no row.
    Read(i64, Option<i64>),
    /// It left this value.
    Write(i64, i64),
    /// It changed the value by so much.
    Add(i64, i64),
}

/// A transaction as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// When it was begun, on the clients' clock.
    pub began: u64,
    /// When the client heard that it had taken effect; `None`: it never heard, and it may have at any time, or not.
    pub ended: Option<u64>,
    /// What it did, in order.
    pub steps: Vec<Step>,
}

/// What came of judging a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Serialisable,
    /// There is none.
    Violation,
    /// The search was given up after so many states.
    Undecided,
}

/// Judges a history that began with these values.
#[must_use]
pub fn judge(initial: &BTreeMap<i64, i64>, operations: &[Operation], most_states: usize) -> Verdict {
    assert!(operations.len() <= 128, "a history of {} transactions is too long", operations.len());
    let mut seen: HashSet<(u128, Vec<i64>)> = HashSet::new();
    let mut stack = vec![(0_u128, initial.clone())];
    let needed = operations.iter().enumerate().filter(|(_, operation)| operation.ended.is_some());
    let needed: u128 = needed.map(|(place, _)| 1 << place).sum();
    while let Some((done, values)) = stack.pop() {
        if done & needed == needed {
            return Verdict::Serialisable;
        }
        let key = values.iter().flat_map(|(key, value)| [*key, *value]).collect();
        if !seen.insert((done, key)) {
            continue;
        }
        if seen.len() > most_states {
            return Verdict::Undecided;
        }
        let left = |place: &usize| done & (1 << place) == 0;
        // What began after another one had ended comes after it.
        let first_end = (0..operations.len()).filter(left).filter_map(|place| operations[place].ended).min();
        for place in (0..operations.len()).filter(left) {
            let operation = &operations[place];
            if first_end.is_some_and(|end| operation.began > end) {
                continue;
            }
            if let Some(after) = run(&values, &operation.steps) {
                stack.push((done | 1 << place, after));
            }
        }
    }
    Verdict::Violation
}

/// What a transaction leaves, where it would have seen what it saw.
fn run(values: &BTreeMap<i64, i64>, steps: &[Step]) -> Option<BTreeMap<i64, i64>> {
    let mut values = values.clone();
    for step in steps {
        match *step {
            Step::Read(key, seen) if values.get(&key).copied() != seen => return None,
            Step::Read(..) => {}
            Step::Write(key, value) => {
                values.insert(key, value);
            }
            Step::Add(key, amount) => *values.get_mut(&key)? += amount,
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(began: u64, ended: u64, steps: &[Step]) -> Operation {
        Operation { began, ended: (ended > 0).then_some(ended), steps: steps.to_vec() }
    }

    fn verdict(operations: &[Operation]) -> Verdict {
        judge(&BTreeMap::from([(1, 0), (2, 0)]), operations, 10_000)
    }

    use Step::{Add, Read, Write};

    #[test]
    fn honest_histories_pass() {
        let moved = [Add(1, -5), Add(2, 5)];
        assert_eq!(verdict(&[]), Verdict::Serialisable);
        // Whether a reader that runs beside a writer sees it or not.
        for seen in [0, 7] {
            let history = [operation(1, 10, &[Write(1, 7)]), operation(2, 9, &[Read(1, Some(seen))])];
            assert_eq!(verdict(&history), Verdict::Serialisable);
        }
        // One that was never acknowledged may take effect late, or never.
        for seen in [0, -5] {
            let history = [operation(1, 0, &moved), operation(50, 60, &[Read(1, Some(seen)), Read(2, Some(-seen))])];
            assert_eq!(verdict(&history), Verdict::Serialisable);
        }
    }

    #[test]
    fn every_kind_of_violation_is_found() {
        let read = |one, two| [Read(1, Some(one)), Read(2, Some(two))];
        let histories: [(&str, Vec<Operation>); 7] = [
            ("stale read", vec![operation(1, 2, &[Write(1, 7)]), operation(3, 4, &[Read(1, Some(0))])]),
            ("lost write", vec![operation(1, 2, &[Write(1, 7)]), operation(3, 4, &read(0, 0))]),
            ("half of a transaction", vec![operation(1, 9, &[Add(1, -5), Add(2, 5)]), operation(2, 3, &read(-5, 0))]),
            ("half, then nothing", vec![operation(1, 0, &[Add(1, -5), Add(2, 5)]), operation(2, 3, &read(0, 5))]),
            (
                "lost update",
                vec![
                    operation(1, 9, &[Read(1, Some(0)), Write(1, 1)]),
                    operation(1, 9, &[Read(1, Some(0)), Write(1, 2)]),
                ],
            ),
            (
                "write skew",
                vec![
                    operation(1, 9, &[Read(1, Some(0)), Write(2, 1)]),
                    operation(1, 9, &[Read(2, Some(0)), Write(1, 1)]),
                ],
            ),
            (
                "a value that comes back",
                vec![
                    operation(1, 2, &[Write(1, 7)]),
                    operation(3, 4, &[Write(1, 8)]),
                    operation(5, 6, &[Read(1, Some(7))]),
                ],
            ),
        ];
        for (what, history) in histories {
            assert_eq!(verdict(&history), Verdict::Violation, "{what}");
        }
    }
}
