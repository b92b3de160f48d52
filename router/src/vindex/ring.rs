//! The `consistent_hash` vindex: shards own many points of a ring each, and a key belongs to the next point after it.

use std::hash::{Hash, Hasher};

use consistent_hash::{Node, RingHash, StaticHashRing};
use twox_hash::XxHash64;

/// The most points on one ring.
pub(crate) const MAX_POINTS: u64 = 1 << 20;

/// A ring of shards.
#[derive(Debug)]
pub(crate) struct Ring {
    points: StaticHashRing<'static, u64, usize, PointHash>,
}

impl Ring {
    /// A ring of shards, each with its name, its index and how many points it has. What a shard is called decides where its
    /// points are, so that they stay when other shards come and go.
    pub(crate) fn new<'a>(shards: impl Iterator<Item = (&'a str, usize, usize)>) -> Self {
        let nodes = shards.map(|(name, index, points)| {
            Node::new(XxHash64::oneshot(0, name.as_bytes())).value(index).quantity(points)
        });
        Self { points: StaticHashRing::new(PointHash, nodes) }
    }

    /// The shard of a keyspace id; `None` on an empty ring.
    pub(crate) fn shard(&self, keyspace_id: u64) -> Option<usize> {
        self.points.calc_candidates(&keyspace_id).next().map(|node| node.value)
    }
}

/// Hashes numbers alike on every host: the standard library's `Hash` writes numbers in the machine's own size and order.
#[derive(Debug, Clone, Copy)]
struct PointHash;

impl RingHash for PointHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut number = Number(0);
        item.hash(&mut number);
        XxHash64::oneshot(0, &number.0.to_be_bytes())
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut number = Number(0);
        node_key.hash(&mut number);
        XxHash64::oneshot(vnode_seq as u64, &number.0.to_be_bytes())
    }
}

/// Takes the one `u64` that is hashed.
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash64::oneshot(self.0, bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(shards: &[(&str, usize)]) -> Ring {
        Ring::new(shards.iter().enumerate().map(|(index, (name, points))| (*name, index, *points)))
    }

    fn counts(ring: &Ring, shards: usize) -> Vec<usize> {
        let mut counts = vec![0; shards];
        for key in 0..40_000_u64 {
            counts[ring.shard(XxHash64::oneshot(7, &key.to_be_bytes())).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let even = counts(&ring(&[("shard-0", 128), ("shard-1", 128), ("shard-2", 128), ("shard-3", 128)]), 4);
        assert!(even.iter().all(|count| (7_500..12_500).contains(count)), "{even:?}");
        let heavy = counts(&ring(&[("shard-0", 128), ("shard-1", 384)]), 2);
        assert!((8_000..12_000).contains(&heavy[0]), "{heavy:?}");
    }

    #[test]
    fn a_new_shard_takes_keys_and_moves_no_others() {
        let before = ring(&[("a", 100), ("b", 100), ("c", 100)]);
        let after = ring(&[("a", 100), ("b", 100), ("c", 100), ("d", 100)]);
        let mut moved = 0;
        for key in 0..10_000_u64 {
            let id = XxHash64::oneshot(1, &key.to_be_bytes());
            let (old, new) = (before.shard(id).unwrap(), after.shard(id).unwrap());
            if old != new {
                assert_eq!(new, 3);
                moved += 1;
            }
        }
        assert!((1_500..3_500).contains(&moved), "{moved}");
    }

    /// Rows are found again only where every host, every build and every version says the same.
    #[test]
    fn points_are_where_they_always_were() {
        let ring = ring(&[("shard-0", 128), ("shard-1", 128), ("shard-2", 64)]);
        let places: Vec<usize> = (0..24_u64).map(|key| ring.shard(key << 59).unwrap()).collect();
        assert_eq!(places, [0, 1, 0, 1, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 2, 2, 1, 2, 0, 0, 2, 1, 1, 0]);
        assert_eq!(Ring::new(std::iter::empty()).shard(1), None);
    }
}
