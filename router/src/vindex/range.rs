//! The `range` vindex: each shard holds the keys from a lower bound, included, to an upper one, excluded.

use std::cmp::Ordering;
use std::fmt;

use dosql_proto::{Value, value::Kind};

use crate::affinity::Collation;

/// A range of keys before it is checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bounds {
    /// The lowest key; `None`: no lower bound.
    pub(crate) min: Option<Value>,
    /// The lowest key after the range; `None`: no upper bound.
    pub(crate) max: Option<Value>,
    pub(crate) shard: usize,
}

/// Ranges that follow one another without a gap, in their keys' order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ranges {
    ranges: Vec<Bounds>,
    collation: Collation,
}

/// What is wrong with a list of ranges; ranges are numbered as they were given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RangeFault {
    /// Its lower bound is not below its upper one.
    Empty(usize),
    /// Between the end of one and the start of the other.
    Gap(usize, usize, Value, Value),
    /// Both hold these keys.
    Overlap(usize, usize, Option<Value>, Option<Value>),
    /// A bound is NULL, which no key equals.
    Null(usize),
    /// There are none.
    Missing,
}

impl fmt::Display for RangeFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(at) => write!(out, "ranges[{at}] is empty: its min is not below its max"),
            Self::Gap(one, other, from, to) => {
                write!(
                    out,
                    "there is a gap between ranges[{one}] and ranges[{other}], from {} to {}",
                    text(from),
                    text(to)
                )
            }
            Self::Overlap(one, other, from, to) => write!(
                out,
                "ranges[{one}] and ranges[{other}] overlap from {} to {}",
                from.as_ref().map_or("the lowest key".to_owned(), text),
                to.as_ref().map_or("the highest".to_owned(), text)
            ),
            Self::Null(at) => write!(out, "ranges[{at}] has NULL for a bound"),
            Self::Missing => out.write_str("there are no ranges"),
        }
    }
}

impl Ranges {
    /// Checks and orders ranges.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(crate) fn new(bounds: Vec<Bounds>, collation: Collation) -> Result<Self, Vec<RangeFault>> {
        if bounds.is_empty() {
            return Err(vec![RangeFault::Missing]);
        }
        let mut faults = Vec::new();
        for (at, bound) in bounds.iter().enumerate() {
            if [&bound.min, &bound.max].into_iter().flatten().any(Value::is_null) {
                faults.push(RangeFault::Null(at));
            } else if let (Some(min), Some(max)) = (&bound.min, &bound.max)
                && collation.compare(min, max) != Ordering::Less
            {
                faults.push(RangeFault::Empty(at));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut ordered: Vec<(usize, Bounds)> = bounds.into_iter().enumerate().collect();
        ordered.sort_by(|(_, left), (_, right)| match (&left.min, &right.min) {
            (Some(left), Some(right)) => collation.compare(left, right),
            (left, right) => left.is_some().cmp(&right.is_some()),
        });
        // The range that reaches furthest so far.
        let mut furthest = &ordered[0];
        for next in &ordered[1..] {
            let (_, last) = furthest;
            let gap = match (&last.max, &next.1.min) {
                (Some(end), Some(start)) => collation.compare(end, start),
                // No upper bound before, or no lower bound after.
                _ => Ordering::Greater,
            };
            match (gap, &last.max, &next.1.min) {
                (Ordering::Less, Some(end), Some(start)) => {
                    faults.push(RangeFault::Gap(furthest.0, next.0, end.clone(), start.clone()));
                }
                (Ordering::Greater, end, start) => {
                    let to = match (end, &next.1.max) {
                        (Some(end), Some(other)) if collation.compare(end, other) == Ordering::Greater => Some(other),
                        (Some(end), _) => Some(end),
                        (None, other) => other.as_ref(),
                    };
                    faults.push(RangeFault::Overlap(furthest.0, next.0, start.clone(), to.cloned()));
                }
                _ => {}
            }
            let further = match (&last.max, &next.1.max) {
                (Some(end), Some(other)) => collation.compare(end, other) == Ordering::Less,
                (end, _) => end.is_some(),
            };
            if further {
                furthest = next;
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self { ranges: ordered.into_iter().map(|(_, bounds)| bounds).collect(), collation })
    }

    /// The shard of a stored key; `None` where it is in none of the ranges. NULL never is.
    pub(crate) fn shard(&self, key: &Value) -> Option<usize> {
        if key.is_null() {
            return None;
        }
        let after = self.ranges.partition_point(|range| {
            range.min.as_ref().is_none_or(|min| self.collation.compare(min, key) != Ordering::Greater)
        });
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let below = range.max.as_ref().is_none_or(|max| self.collation.compare(key, max) == Ordering::Less);
        below.then_some(range.shard)
    }

    /// The shards of the keys between two bounds; a bound's flag says whether it is included.
    pub(crate) fn between(&self, lower: Option<(&Value, bool)>, upper: Option<(&Value, bool)>) -> Vec<usize> {
        if [lower, upper].into_iter().flatten().any(|(bound, _)| bound.is_null()) {
            return Vec::new();
        }
        let reaches = |range: &&Bounds| {
            let above = match (&range.max, lower) {
                (Some(max), Some((lower, _))) => self.collation.compare(max, lower) == Ordering::Greater,
                _ => true,
            };
            let below = match (&range.min, upper) {
                (Some(min), Some((upper, included))) => match self.collation.compare(min, upper) {
                    Ordering::Less => true,
                    Ordering::Equal => included,
                    Ordering::Greater => false,
                },
                _ => true,
            };
            above && below
        };
        self.ranges.iter().filter(reaches).map(|range| range.shard).collect()
    }

    /// Whether every key that `other` holds is on the same shard here.
    pub(crate) fn extends(&self, other: &Self) -> bool {
        let below = |min: &Option<Value>, other: &Option<Value>| match (min, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(min), Some(other)) => self.collation.compare(min, other) != Ordering::Greater,
        };
        let above = |max: &Option<Value>, other: &Option<Value>| match (max, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(max), Some(other)) => self.collation.compare(max, other) != Ordering::Less,
        };
        let (Some(first), Some(last)) = (self.ranges.first(), self.ranges.last()) else { return false };
        other.ranges.iter().all(|range| {
            let lower = range.min.as_ref().map(|min| (min, true));
            let upper = range.max.as_ref().map(|max| (max, false));
            below(&first.min, &range.min)
                && above(&last.max, &range.max)
                && self.between(lower, upper).iter().all(|shard| *shard == range.shard)
        })
    }

    /// Every shard that has a range.
    pub(crate) fn shards(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges.iter().map(|range| range.shard)
    }

    /// From where to where the ranges reach, for messages.
    pub(crate) fn extent(&self) -> String {
        let first = self.ranges.first().and_then(|range| range.min.as_ref());
        let last = self.ranges.last().and_then(|range| range.max.as_ref());
        match (first, last) {
            (Some(first), Some(last)) => format!("from {} to below {}", text(first), text(last)),
            (Some(first), None) => format!("from {} on", text(first)),
            (None, Some(last)) => format!("below {}", text(last)),
            (None, None) => "every key but NULL".to_owned(),
        }
    }
}

/// A value as a message shows it.
pub(crate) fn text(value: &Value) -> String {
    match &value.kind {
        None => "NULL".to_owned(),
        Some(Kind::Integer(integer)) => integer.to_string(),
        Some(Kind::Real(real)) => format!("{real:?}"),
        Some(Kind::Text(text)) => format!("'{text}'"),
        Some(Kind::Blob(_) | Kind::RawText(_)) => "(bytes)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(list: &[(Option<i64>, Option<i64>)]) -> Vec<Bounds> {
        list.iter()
            .enumerate()
            .map(|(shard, (min, max))| Bounds { min: min.map(Value::from), max: max.map(Value::from), shard })
            .collect()
    }

    fn faults(list: &[(Option<i64>, Option<i64>)]) -> String {
        let faults = Ranges::new(bounds(list), Collation::Binary).unwrap_err();
        faults.iter().map(RangeFault::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn gaps_and_overlaps_are_named() {
        assert_eq!(faults(&[]), "there are no ranges");
        assert_eq!(faults(&[(Some(5), Some(5))]), "ranges[0] is empty: its min is not below its max");
        assert_eq!(
            faults(&[(Some(10), Some(20)), (Some(0), Some(5))]),
            "there is a gap between ranges[1] and ranges[0], from 5 to 10"
        );
        assert_eq!(faults(&[(Some(0), Some(10)), (Some(9), Some(20))]), "ranges[0] and ranges[1] overlap from 9 to 10");
        assert_eq!(
            faults(&[(None, None), (None, Some(3))]),
            "ranges[0] and ranges[1] overlap from the lowest key to 3"
        );
        assert_eq!(
            faults(&[(Some(0), Some(100)), (Some(10), Some(20)), (Some(30), None)]),
            "ranges[0] and ranges[1] overlap from 10 to 20; ranges[0] and ranges[2] overlap from 30 to 100"
        );
    }

    #[test]
    fn dates_are_ranges_of_text() {
        let year = |year: &str, next: &str, shard| Bounds {
            min: Some(format!("{year}-01-01").into()),
            max: Some(format!("{next}-01-01").into()),
            shard,
        };
        let ranges = Ranges::new(vec![year("2026", "2027", 1), year("2025", "2026", 0)], Collation::Binary).unwrap();
        assert_eq!(ranges.shard(&"2025-12-31 23:59:59".into()), Some(0));
        assert_eq!(ranges.shard(&"2026-01-01".into()), Some(1));
        assert_eq!(ranges.shard(&"2027-01-01".into()), None);
        assert_eq!(ranges.shard(&"2024-12-31".into()), None);
        assert_eq!(ranges.shard(&7.into()), None);
        assert_eq!(ranges.shard(&Value::NULL), None);
        assert_eq!(ranges.extent(), "from '2025-01-01' to below '2027-01-01'");
        let from = |text: &str| Value::from(text);
        assert_eq!(ranges.between(Some((&from("2025-06-01"), true)), Some((&from("2026-01-01"), false))), [0]);
        assert_eq!(ranges.between(Some((&from("2025-06-01"), true)), Some((&from("2026-01-01"), true))), [0, 1]);
        assert_eq!(ranges.between(Some((&from("2026-01-01"), true)), None), [1]);
        assert!(ranges.between(Some((&from("2027-01-01"), true)), None).is_empty());
        assert!(ranges.between(Some((&Value::NULL, true)), None).is_empty());
    }

    #[test]
    fn ranges_grow_where_no_key_moves() {
        let ranges = |list: &[(Option<i64>, Option<i64>, usize)]| {
            let bounds = list
                .iter()
                .map(|(min, max, shard)| Bounds { min: min.map(Value::from), max: max.map(Value::from), shard: *shard })
                .collect();
            Ranges::new(bounds, Collation::Binary).unwrap()
        };
        let old = ranges(&[(Some(0), Some(10), 0), (Some(10), Some(20), 1)]);
        for (list, expected) in [
            (vec![(Some(0), Some(10), 0), (Some(10), Some(20), 1), (Some(20), None, 2)], true),
            (vec![(None, Some(0), 3), (Some(0), Some(5), 0), (Some(5), Some(10), 0), (Some(10), None, 1)], true),
            (vec![(Some(0), Some(10), 0), (Some(10), Some(15), 1)], false),
            (vec![(Some(0), Some(9), 0), (Some(9), Some(20), 1)], false),
            (vec![(Some(0), Some(10), 1), (Some(10), Some(20), 1)], false),
            (vec![(Some(1), Some(10), 0), (Some(10), Some(20), 1)], false),
        ] {
            assert_eq!(ranges(&list).extends(&old), expected, "{list:?}");
        }
    }

    /// Random lists: those that are accepted have exactly one range for each key within them, and `between` finds it; those that
    /// are refused leave a key out or give it to two.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the seed comes from outside")]
    fn accepted_ranges_hold_each_key_once() {
        let seed = std::env::var("DOSQL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125_u64);
        println!("DOSQL_SEED={seed}");
        let mut state = seed | 1;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let count = 1 + next(4);
            let mut list = Vec::new();
            let mut at = next(4) as i64;
            for place in 0..count {
                let start = at + i64::from(next(8) == 0) - i64::from(next(8) == 0);
                let end = start + 1 + next(4) as i64 - i64::from(next(12) == 0);
                let min = (place > 0 || next(3) > 0).then_some(start);
                let max = (place + 1 < count || next(3) > 0).then_some(end);
                list.push((min, max));
                at = end;
            }
            for place in (1..list.len()).rev() {
                list.swap(place, next(place as u64 + 1) as usize);
            }
            let holders = |key: i64| -> Vec<usize> {
                (0..list.len())
                    .filter(|at| list[*at].0.is_none_or(|min| min <= key) && list[*at].1.is_none_or(|max| key < max))
                    .collect()
            };
            let lowest = list.iter().map(|(min, _)| min.unwrap_or(-50)).min().unwrap();
            let highest = list.iter().map(|(_, max)| max.unwrap_or(50)).max().unwrap();
            let once = (lowest..highest).all(|key| holders(key).len() == 1);
            let proper = list.iter().all(|(min, max)| min.zip(*max).is_none_or(|(min, max)| min < max));
            match Ranges::new(bounds(&list), Collation::Binary) {
                Ok(ranges) => {
                    accepted += 1;
                    assert!(once && proper, "{list:?}");
                    for key in -10..40 {
                        assert_eq!(ranges.shard(&key.into()), holders(key).first().copied(), "{list:?} {key}");
                        for (other, included) in [(key, true), (key + 3, false), (key + 3, true)] {
                            let found = ranges.between(Some((&key.into(), true)), Some((&other.into(), included)));
                            for inside in key..other + i64::from(included) {
                                assert!(holders(inside).iter().all(|shard| found.contains(shard)), "{list:?} {inside}");
                            }
                        }
                    }
                }
                Err(faults) => {
                    refused += 1;
                    assert!(!once || !proper, "{list:?}: {faults:?}");
                }
            }
        }
        assert!(accepted > 1_000 && refused > 1_000, "{accepted} {refused}");
    }
}
