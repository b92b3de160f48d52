//! A shard's last records, kept for subscribers, of whom there may be many near the end.

use std::collections::VecDeque;
use std::rc::Rc;

use dosql_proto::WalRecord;
use prost::Message;

/// The last records of a shard, without gaps.
#[derive(Default)]
pub(super) struct Recent {
    records: VecDeque<(Rc<WalRecord>, usize)>,
    bytes: usize,
}

impl Recent {
    /// The records after an LSN up to about `max_bytes`, at least one, where they are kept.
    pub(super) fn after(&self, after: u64, max_bytes: usize) -> Option<Vec<Rc<WalRecord>>> {
        let first = self.records.front()?.0.lsn;
        let skip = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for (record, size) in self.records.iter().skip(skip) {
            bytes += size;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(Rc::clone(record));
        }
        (!found.is_empty()).then_some(found)
    }

    /// Keeps records that follow, and of all the last ones, up to `max_bytes`.
    pub(super) fn keep(&mut self, records: &[Rc<WalRecord>], max_bytes: usize) {
        let last = self.records.back().map_or(0, |(record, _)| record.lsn);
        for record in records.iter().filter(|record| record.lsn > last) {
            let follows = self.records.back().is_none_or(|(kept, _)| kept.lsn + 1 == record.lsn);
            if !follows {
                self.records.clear();
                self.bytes = 0;
            }
            let size = record.encoded_len();
            self.bytes += size;
            self.records.push_back((Rc::clone(record), size));
        }
        while self.bytes > max_bytes {
            let Some((_, size)) = self.records.pop_front() else { break };
            self.bytes -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lsn: u64) -> Rc<WalRecord> {
        Rc::new(WalRecord { lsn, ..WalRecord::default() })
    }

    fn lsns(found: Option<Vec<Rc<WalRecord>>>) -> Vec<u64> {
        found.unwrap_or_default().iter().map(|record| record.lsn).collect()
    }

    #[test]
    fn recent_records_are_bounded_and_without_gaps() {
        let mut recent = Recent::default();
        let size = record(1).encoded_len();
        recent.keep(&[record(3), record(4), record(5)], 100 * size);
        recent.keep(&[record(4), record(5), record(6)], 100 * size);
        assert_eq!(lsns(recent.after(2, 100 * size)), [3, 4, 5, 6]);
        assert_eq!(lsns(recent.after(4, size)), [5]);
        assert_eq!(lsns(recent.after(4, 0)), [5]);
        assert!(recent.after(1, 100).is_none());
        assert!(recent.after(6, 100).is_none());
        recent.keep(&[record(7)], 2 * size);
        assert_eq!(lsns(recent.after(5, 100)), [6, 7]);
        assert!(recent.after(4, 100).is_none());
        recent.keep(&[record(20)], 100 * size);
        assert_eq!(lsns(recent.after(19, 100)), [20]);
        assert!(recent.after(6, 100).is_none());
    }
}
