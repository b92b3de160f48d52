//! The entries of a table against a map, over random commits of which some are taken back.

#![allow(clippy::disallowed_methods, reason = "a test is no actor")]

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::Block;
use crate::index::{Index, Key, Pending, Position};
use crate::moved::Run;

const SHARDS: i64 = 3;

type Model = BTreeMap<(i64, Key), Position>;

/// Numbers that look like chance.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A key by its number: of every kind, in the order of the numbers or not.
fn key(kind: u64, number: i64) -> Key {
    match kind {
        0 => Key::Integer(number),
        1 => Key::Encoded(format!("key {number:06}").into_bytes()),
        // In another order, and of another length.
        2 => Key::Encoded(number.to_string().into_bytes()),
        _ if number % 2 == 0 => Key::Integer(-number),
        _ => Key::Encoded(number.to_be_bytes().to_vec()),
    }
}

struct History {
    random: Random,
    index: Index,
    table: i64,
    model: Model,
    kind: u64,
    next_number: i64,
}

impl History {
    fn new(seed: u64) -> Self {
        let (index, _) = Index::open(Connection::open_in_memory().unwrap()).unwrap();
        index.initialise(&BTreeMap::new()).unwrap();
        let table = index.table("t").unwrap().id;
        // Another table, of the same keys: they must not meet.
        assert_ne!(index.table("other").unwrap().id, table);
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let kind = random.below(4);
        Self { random, index, table, model: Model::new(), kind, next_number: 0 }
    }

    /// What a commit does: by key, whether it has a row afterwards.
    fn touched(&mut self) -> BTreeMap<(i64, Key), bool> {
        let mut touched = BTreeMap::new();
        let most = [3, 40, 1500][self.random.below(3) as usize];
        for _ in 0..self.random.below(most) {
            let number = match self.random.below(4) {
                0 => self.random.below(self.next_number.cast_unsigned() + 1).cast_signed(),
                _ => {
                    self.next_number += 1 + self.random.below(3).cast_signed();
                    self.next_number
                }
            };
            let shard = 1 + self.random.below(SHARDS as u64).cast_signed();
            touched.insert((shard, key(self.kind, number)), self.random.below(5) > 0);
        }
        touched
    }

    /// Moves the index as a flush does; returns what the map is then.
    fn flush(&mut self, first_file: i64) -> Model {
        let (touched, drops) = (self.touched(), self.random.below(12) == 0);
        let mut model = self.model.clone();
        let mut entries = self.index.entries(self.table).unwrap();
        for shard in 1..=SHARDS {
            if drops && shard == 2 {
                loop {
                    let taken = entries.take_some(shard, 7).unwrap();
                    if taken.is_empty() {
                        break;
                    }
                    for (key, position) in taken {
                        assert_eq!(model.remove(&(shard, key.clone())), Some(position), "{key:?} is dropped");
                        entries.keep_for_undo(shard, &key, position).unwrap();
                    }
                }
                assert!(model.keys().all(|(of, _)| *of != shard), "a dropped shard keeps entries");
            }
            let mut added = Vec::new();
            let of_shard = touched.iter().filter(|((of, _), _)| *of == shard);
            for (row, ((_, key), is_written)) in (0..).zip(of_shard) {
                let known = entries.get(shard, key).unwrap();
                let expected = model.get(&(shard, key.clone())).copied();
                assert_eq!(known, expected, "{key:?} of shard {shard}");
                if entries.is_free(shard, key, key).unwrap() {
                    assert_eq!(known, None, "{key:?} of shard {shard} is not free");
                }
                if let Some(position) = known {
                    entries.keep_for_undo(shard, key, position).unwrap();
                }
                let position = Position { file: first_file + row % 2, row };
                match (is_written, known) {
                    (true, Some(_)) => entries.set(shard, key, position).unwrap(),
                    (true, None) => added.push((key.clone(), position)),
                    (false, Some(_)) => entries.remove(shard, key).unwrap(),
                    (false, None) => {}
                }
                if *is_written {
                    model.insert((shard, key.clone()), position);
                } else {
                    model.remove(&(shard, key.clone()));
                }
            }
            entries.add(shard, &added).unwrap();
        }
        entries.finish().unwrap();
        model
    }

    /// Notes new places of some rows, as a compaction that sorts does; returns what the map is when it is committed.
    fn sort(&mut self, first_file: i64) -> Model {
        let mut model = self.model.clone();
        let mut entries = self.index.entries(self.table).unwrap();
        for (row, ((shard, key), position)) in (0..).zip(&mut model) {
            if self.random.below(3) == 0 {
                *position = Position { file: first_file, row };
                entries.move_to(*shard, key, *position).unwrap();
            }
        }
        entries.finish().unwrap();
        model
    }

    fn commit(&mut self) {
        let first_file = self.index.next_file().unwrap();
        let transaction = |history: &mut Self| {
            for name in ["one", "another"] {
                history.index.add_file(history.table, name, "").unwrap();
            }
            if history.random.below(6) == 0 { history.sort(first_file) } else { history.flush(first_file) }
        };
        let after = transaction(self);
        let pending = Pending {
            table_id: self.table,
            table: "t".to_owned(),
            snapshot_id: first_file,
            version: first_file,
            first_file,
            rows: 0,
            paths: Vec::new(),
        };
        self.index.add_pending(&pending).unwrap();
        if self.random.below(4) == 0 {
            self.index.take_back(&pending).unwrap();
        } else {
            self.index.confirm(&pending).unwrap();
            self.model = after;
        }
    }

    fn check(&mut self) {
        let mut entries = self.index.entries(self.table).unwrap();
        let numbers: Vec<i64> = match self.random.below(2) {
            0 => (0..self.next_number + 2).collect(),
            _ => (0..100).map(|_| self.random.below(self.next_number.cast_unsigned() + 2).cast_signed()).collect(),
        };
        for shard in 1..=SHARDS {
            for key in numbers.iter().map(|number| key(self.kind, *number)) {
                let expected = self.model.get(&(shard, key.clone())).copied();
                assert_eq!(entries.get(shard, &key).unwrap(), expected, "{key:?} of shard {shard}");
            }
        }
        let files = self.model.values().map(|position| position.file).collect();
        assert_eq!(entries.files().unwrap(), files);
    }
}

/// How many entries stand in blocks.
fn packed(history: &History) -> usize {
    let mut entries = history.index.entries(history.table).unwrap();
    let blocks = entries.blocks.query_map([history.table], |row| Ok(Block::read(row)?.entries.len())).unwrap();
    blocks.map(Result::unwrap).sum()
}

#[test]
fn entries_are_where_a_map_has_them() {
    let first = std::env::var("DOSQL_SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = first.map_or(0..8, |seed| seed..seed + 1);
    for seed in seeds {
        println!("DOSQL_SEED={seed}");
        let mut history = History::new(seed);
        for _ in 0..30 {
            history.commit();
            history.check();
        }
        println!("{} entries, of which {} are packed", history.model.len(), packed(&history));
    }
}

#[test]
fn keys_that_ascend_are_packed() {
    let history = History::new(1);
    let mut entries = history.index.entries(history.table).unwrap();
    for first in (0..10_000).step_by(1000) {
        let new: Vec<_> = (first..first + 1000).map(|row| (Key::Integer(row), Position { file: 1, row })).collect();
        assert!(entries.is_free(1, &new[0].0, &new[999].0).unwrap());
        entries.add(1, &new).unwrap();
        assert_eq!(entries.first_known(1, &new).unwrap(), Some(&new[0]));
    }
    assert_eq!(entries.first_known(2, &[(Key::Integer(5), Position { file: 1, row: 5 })]).unwrap(), None);
    // Of those between others only the changed ones become rows.
    entries.set(1, &Key::Integer(5), Position { file: 2, row: 0 }).unwrap();
    entries.add(1, &[(Key::Integer(-1), Position { file: 2, row: 1 })]).unwrap();
    entries.finish().unwrap();
    assert_eq!(packed(&history), 9_999);
}

#[test]
fn runs_that_no_entry_needs_are_forgotten() {
    let history = History::new(2);
    let files: Vec<i64> =
        ["a", "b", "c", "d", "e"].iter().map(|name| history.index.add_file(history.table, name, "").unwrap()).collect();
    let [a, b, c, d, e] = files[..] else { panic!("five files") };
    let run = |to: i64| Run { first: 0, to: Position { file: to, row: 0 }, gone: Vec::new() };
    for (from, to) in [(a, c), (b, d), (c, e), (d, e)] {
        history.index.add_run(history.table, from, &run(to)).unwrap();
    }
    let packed: Vec<_> = (0..9).map(|row| (Key::Integer(row), Position { file: a, row })).collect();
    let mut entries = history.index.entries(history.table).unwrap();
    entries.add(1, &packed).unwrap();
    entries.finish().unwrap();
    history.index.forget_unused_runs(history.table).unwrap();
    let kept = |file: i64| !history.index.runs(file).unwrap().is_empty();
    assert_eq!([a, b, c, d].map(kept), [true, false, true, false]);
}
