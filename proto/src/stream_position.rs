//! Where a subscriber of the change stream stands: LSNs, and how far the snapshots have come that are under way.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::position::{ParsePositionError, Position};
use crate::v1::{SnapshotCursor, SnapshotCursors};

/// What separates the LSNs from the snapshots, which follow as the hexadecimal digits of a `SnapshotCursors`.
const MARK: &str = ";snapshot=";

/// A position in the change stream, written `shard-0:17,shard-1:4`; while shards are being copied, `;snapshot=` and opaque
/// digits follow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamPosition {
    /// The last LSN seen of each shard.
    pub lsns: Position,
    /// The shards whose snapshot is not complete.
    pub snapshot: BTreeMap<String, SnapshotCursor>,
}

impl std::fmt::Display for StreamPosition {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lsns.fmt(out)?;
        if self.snapshot.is_empty() {
            return Ok(());
        }
        out.write_str(MARK)?;
        let cursors = SnapshotCursors { cursors: self.snapshot.values().cloned().collect() };
        for byte in cursors.encode_to_vec() {
            write!(out, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for StreamPosition {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((lsns, digits)) = text.split_once(MARK) else {
            return Ok(Self { lsns: text.parse()?, snapshot: BTreeMap::new() });
        };
        let bad = || ParsePositionError { part: MARK[1..].to_owned() + digits };
        let bytes = from_hex(digits).ok_or_else(bad)?;
        let cursors = SnapshotCursors::decode(bytes.as_slice()).map_err(|_| bad())?.cursors;
        let snapshot = cursors.into_iter().map(|cursor| (cursor.shard.clone(), cursor)).collect();
        Ok(Self { lsns: lsns.parse()?, snapshot })
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits.as_bytes().chunks_exact(2).map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Value;

    #[test]
    fn positions_survive_text() {
        let plain: StreamPosition = "a:1,b:2".parse().unwrap();
        assert_eq!((plain.to_string().as_str(), plain.snapshot.len()), ("a:1,b:2", 0));
        let cursor = SnapshotCursor {
            shard: "a".into(),
            table: "t;snapshot=,:".into(),
            after: Some([Value::from(-7), Value::from("é\0")].into_iter().collect()),
            has_rowid: true,
            rowid_is_key: false,
        };
        let position = StreamPosition { snapshot: [("a".into(), cursor)].into(), ..plain };
        assert_eq!(position.to_string().parse::<StreamPosition>().unwrap(), position);
    }

    #[test]
    fn what_is_no_position_is_refused_by_name() {
        for bad in ["a:1;snapshot=0", "a:1;snapshot=zz", "a:1;snapshot=ff", "x;snapshot=", "a:1;other"] {
            assert!(bad.parse::<StreamPosition>().is_err(), "{bad}");
        }
    }
}
