//! A position in the change stream: the last LSN seen of each shard.

use std::collections::BTreeMap;

/// The last LSN seen of each shard, written `shard-0:17,shard-1:4`.
///
/// A shard that is not named stands at 0, before its first record. Also used as the bookmark of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position(pub BTreeMap<String, u64>);

/// Text that is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} is not a position: expected SHARD:LSN, such as shard-0:17")]
pub struct ParsePositionError {
    /// The part that could not be read.
    pub part: String,
}

impl Position {
    /// The last LSN seen of `shard`; 0 where none was.
    #[must_use]
    pub fn lsn(&self, shard: &str) -> u64 {
        self.0.get(shard).copied().unwrap_or(0)
    }

    /// The text of the position that names this shard alone.
    #[must_use]
    pub fn text_of(shard: &str, lsn: u64) -> String {
        let lsn = lsn.to_string();
        let mut text = String::with_capacity(shard.len() + 1 + lsn.len());
        text.extend([shard, ":", &lsn]);
        text
    }

    /// Moves `shard` forward to `lsn`; never back.
    pub fn advance(&mut self, shard: &str, lsn: u64) {
        match self.0.get_mut(shard) {
            Some(seen) => *seen = lsn.max(*seen),
            None => {
                self.0.insert(shard.to_owned(), lsn);
            }
        }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (shard, lsn)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{shard}:{lsn}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut shards = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let bad = || ParsePositionError { part: part.to_owned() };
            let (shard, lsn) = part.rsplit_once(':').ok_or_else(bad)?;
            if shard.is_empty() || shards.insert(shard.to_owned(), lsn.parse().map_err(|_| bad())?).is_some() {
                return Err(bad());
            }
        }
        Ok(Self(shards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_text() {
        let text = "shard-0:17,shard-1:4";
        let position: Position = text.parse().unwrap();
        assert_eq!(position.lsn("shard-0"), 17);
        assert_eq!(position.lsn("shard-9"), 0);
        assert_eq!(position.to_string(), text);
        assert_eq!(Position::text_of("shard-1", 4).parse(), Ok(Position([("shard-1".to_owned(), 4)].into())));
    }

    #[test]
    fn what_is_no_position_is_refused_by_name() {
        for bad in ["x", "a:b", ":4", "a:1,a:2", "a:-1"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
