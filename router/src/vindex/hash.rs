//! The hash vindexes: a key's keyspace id, and the shard whose even part of the keyspace holds it.

use des::Des;
use des::cipher::{BlockEncrypt, KeyInit};
use dosql_proto::{Value, value::Kind};
use twox_hash::XxHash64;

use crate::affinity::{Collation, without_spaces};

/// Where NULL keys go.
const NULL_KEYSPACE_ID: u64 = 0;

/// Vitess's `hash` vindex: the 64-bit key encrypted by DES under the null key.
#[derive(Clone)]
pub struct HashVindex {
    cipher: Des,
}

impl std::fmt::Debug for HashVindex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("HashVindex")
    }
}

impl Default for HashVindex {
    fn default() -> Self {
        Self { cipher: Des::new(&[0; 8].into()) }
    }
}

impl HashVindex {
    /// The keyspace id of an integer key, as in Vitess.
    #[must_use]
    pub fn of_integer(&self, key: i64) -> u64 {
        let mut block = key.to_be_bytes().into();
        self.cipher.encrypt_block(&mut block);
        u64::from_be_bytes(block.into())
    }

    /// The keyspace id of a key as its column stores it (see [`Affinity`](crate::affinity::Affinity)): values that compare
    /// equal under the column's collation share one.
    #[must_use]
    pub fn keyspace_id(&self, key: &Value, collation: Collation) -> u64 {
        match &key.kind {
            None => NULL_KEYSPACE_ID,
            Some(Kind::Integer(integer)) => self.of_integer(*integer),
            Some(Kind::Real(real)) => match exact_integer(*real) {
                Some(integer) => self.of_integer(integer),
                None => XxHash64::oneshot(0, &real.to_bits().to_be_bytes()),
            },
            Some(Kind::Text(text)) => of_text(text.as_bytes(), collation),
            Some(Kind::RawText(text)) => of_text(text, collation),
            Some(Kind::Blob(bytes)) => XxHash64::oneshot(0, bytes),
        }
    }
}

/// The keyspace id of Vitess's `xxhash` vindex: xxHash64 of the value's text, its bytes in reverse order. `key` is as its column
/// stores it; values that compare equal under the column's collation share an id.
#[must_use]
pub fn xxhash_id(key: &Value, collation: Collation) -> u64 {
    let hash = match &key.kind {
        None => XxHash64::oneshot(0, b""),
        Some(Kind::Integer(integer)) => XxHash64::oneshot(0, integer.to_string().as_bytes()),
        Some(Kind::Real(real)) => match exact_integer(*real) {
            Some(integer) => XxHash64::oneshot(0, integer.to_string().as_bytes()),
            None => XxHash64::oneshot(0, real.to_string().as_bytes()),
        },
        Some(Kind::Text(text)) => of_text(text.as_bytes(), collation),
        Some(Kind::RawText(text)) => of_text(text, collation),
        Some(Kind::Blob(bytes)) => XxHash64::oneshot(0, bytes),
    };
    hash.swap_bytes()
}

/// The integer a real equals, where there is one.
fn exact_integer(real: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
    (real.trunc() == real && (-LIMIT..LIMIT).contains(&real)).then_some(real as i64)
}

fn of_text(text: &[u8], collation: Collation) -> u64 {
    match collation {
        Collation::Binary => XxHash64::oneshot(0, text),
        Collation::NoCase => XxHash64::oneshot(0, &text.to_ascii_lowercase()),
        Collation::RightTrim => XxHash64::oneshot(0, without_spaces(text)),
    }
}

/// The shard, of `shards` that split the keyspace evenly, whose range holds `keyspace_id`.
#[must_use]
pub fn shard_of(keyspace_id: u64, shards: usize) -> usize {
    ((u128::from(keyspace_id) * shards as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_hash_as_in_vitess() {
        let vindex = HashVindex::default();
        for (key, expected) in [
            (1, 0x166b_40b4_4aba_4bd6),
            (2, 0x06e7_ea22_ce92_708f),
            (3, 0x4eb1_90c9_a2fa_169c),
            (4, 0xd2fd_8867_d50d_2dfe),
            (5, 0x70bb_023c_810c_a87a),
        ] {
            assert_eq!(vindex.of_integer(key), expected, "{key}");
        }
    }

    #[test]
    fn xxhash_is_vitess_s() {
        for (key, expected) in [
            (Value::from("test1"), 0xd01a_b7e4_d697_8f0b),
            ("test2".into(), 0x87eb_1171_4c0a_0e89),
            ("testaverylongvaluetomakesurethisworks".into(), 0x81d8_c38e_0d85_0e6a),
            (1.into(), 0xd464_0536_7612_b4b7),
            (Value::NULL, 0x99e9_d851_37db_46ef),
            ((-1).into(), 0xd8e2_a6a7_c8c7_623d),
            (i64::MAX.into(), 0xb37e_b01f_7bff_afd8),
            (i64::MIN.into(), 0x102c_27dd_b26a_609e),
        ] {
            assert_eq!(xxhash_id(&key, Collation::Binary), expected, "{key:?}");
        }
    }

    #[test]
    fn values_that_compare_equal_route_alike() {
        let vindex = HashVindex::default();
        equal_routes_alike(|value, collation| vindex.keyspace_id(&value, collation));
        equal_routes_alike(|value, collation| xxhash_id(&value, collation));
    }

    fn equal_routes_alike(id: impl Fn(Value, Collation) -> u64) {
        assert_eq!(id(1.into(), Collation::Binary), id(1.0.into(), Collation::Binary));
        assert_eq!(id(0.into(), Collation::Binary), id((-0.0).into(), Collation::Binary));
        assert_ne!(id(1.5.into(), Collation::Binary), id(1.into(), Collation::Binary));
        assert_eq!(id("aB".into(), Collation::NoCase), id("Ab".into(), Collation::NoCase));
        assert_ne!(id("aB".into(), Collation::Binary), id("Ab".into(), Collation::Binary));
        assert_eq!(id("a  ".into(), Collation::RightTrim), id("a".into(), Collation::RightTrim));
        let big = 9_007_199_254_740_993_i64;
        assert_ne!(id(big.into(), Collation::Binary), id((big as f64).into(), Collation::Binary));
    }

    #[test]
    fn ranges_split_the_keyspace_evenly() {
        assert_eq!(shard_of(0, 4), 0);
        assert_eq!(shard_of(0x3fff_ffff_ffff_ffff, 4), 0);
        assert_eq!(shard_of(0x4000_0000_0000_0000, 4), 1);
        assert_eq!(shard_of(0x8000_0000_0000_0000, 4), 2);
        assert_eq!(shard_of(u64::MAX, 4), 3);
        assert_eq!(shard_of(u64::MAX, 3), 2);
        assert_eq!(shard_of(u64::MAX, 1), 0);
    }
}
