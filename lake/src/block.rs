//! Neighbouring entries of the index in one blob: a few bytes for each instead of a row of SQLite.
//!
//! Keys ascend and are stored as the differences between them, and so are places: rows that were written one after the other
//! differ by nothing.

use prost::encoding::{decode_varint, encode_varint};

use crate::index::{Key, Position};

/// Entries of one block at most: whoever looks one up reads all of them.
pub(crate) const BLOCK_ENTRIES: usize = 256;

/// A key, and where its row stands.
pub(crate) type Entry = (Key, Position);

/// The entries, whose keys must ascend, as a blob. Rows are numbered below 2^60.
pub(crate) fn encoded(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 3 + 16);
    let integers = entries.iter().take_while(|(key, _)| matches!(key, Key::Integer(_))).count();
    encode_varint(integers as u64, &mut bytes);
    let (mut last_integer, mut last_encoded) = (0_i64, &[][..]);
    let mut next = Position { file: 0, row: 0 };
    for (key, position) in entries {
        match key {
            Key::Integer(integer) => {
                encode_varint(integer.wrapping_sub(last_integer).cast_unsigned(), &mut bytes);
                last_integer = *integer;
            }
            Key::Encoded(encoded) => {
                let common = encoded.iter().zip(last_encoded).take_while(|(one, other)| one == other).count();
                encode_varint(common as u64, &mut bytes);
                encode_varint((encoded.len() - common) as u64, &mut bytes);
                bytes.extend_from_slice(&encoded[common..]);
                last_encoded = encoded;
            }
        }
        let same_file = position.file == next.file;
        encode_varint(zigzag(position.row - next.row) << 1 | u64::from(!same_file), &mut bytes);
        if !same_file {
            encode_varint(zigzag(position.file - next.file), &mut bytes);
        }
        next = Position { file: position.file, row: position.row + 1 };
    }
    bytes
}

/// The entries again; `None` where the bytes are of something else.
pub(crate) fn decoded(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let bytes = &mut bytes;
    let integers = decode_varint(bytes).ok()?;
    let mut entries: Vec<Entry> = Vec::with_capacity(BLOCK_ENTRIES);
    let mut last = 0_i64;
    let mut next = Position { file: 0, row: 0 };
    while !bytes.is_empty() {
        let key = if (entries.len() as u64) < integers {
            last = last.wrapping_add(decode_varint(bytes).ok()?.cast_signed());
            Key::Integer(last)
        } else {
            let common = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let mut key = match entries.last() {
                Some((Key::Encoded(last), _)) => last.get(..common)?.to_vec(),
                _ if common == 0 => Vec::new(),
                _ => return None,
            };
            key.extend_from_slice(bytes.split_off(..length)?);
            Key::Encoded(key)
        };
        let place = decode_varint(bytes).ok()?;
        if place & 1 == 1 {
            next.file = next.file.checked_add(unzigzag(decode_varint(bytes).ok()?))?;
        }
        let row = next.row.checked_add(unzigzag(place >> 1))?;
        entries.push((key, Position { file: next.file, row }));
        next.row = row.checked_add(1)?;
    }
    Some(entries)
}

/// Small numbers of either sign as small ones without.
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: i64, row: i64) -> Position {
        Position { file, row }
    }

    #[test]
    fn entries_are_packed() {
        let integer = Key::Integer;
        let encoded_key = |bytes: &[u8]| Key::Encoded(bytes.to_vec());
        let mixed = [
            (integer(i64::MIN), at(7, (1 << 60) - 1)),
            (integer(-1), at(7, 0)),
            (integer(0), at(7, 1)),
            (integer(i64::MAX), at(i64::MAX, 2)),
            (encoded_key(b""), at(1, 3)),
            (encoded_key(b"\x01\x02"), at(1, 4)),
            (encoded_key(b"\x01\x02\x03"), at(1, 9)),
            (encoded_key(b"\x01\x03"), at(2, 8)),
        ];
        for entries in [&mixed[..], &mixed[..4], &mixed[4..], &mixed[..0]] {
            assert_eq!(decoded(&encoded(entries)).as_deref(), Some(entries));
        }
        let many: Vec<Entry> = (0..256).map(|number| (integer(number * 4), at(3, 1000 + number))).collect();
        assert!(encoded(&many).len() < 2 * many.len() + 8, "{} bytes", encoded(&many).len());
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let entries = vec![(Key::Encoded(b"abc".to_vec()), at(1, 3)), (Key::Encoded(b"abd".to_vec()), at(1, 4))];
        let bytes = encoded(&entries);
        for length in 0..bytes.len() {
            assert_ne!(decoded(&bytes[..length]).as_deref(), Some(&entries[..]), "cut at {length}");
        }
        assert_eq!(decoded(&[]), None);
        // A key that shares bytes with none before it.
        assert_eq!(decoded(&[0, 1, 1, b'x', 0]), None);
    }
}
