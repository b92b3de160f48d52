//! One simulated file: what is durable, and what was written since.

use super::random::Random;

/// What a disk writes at once or not at all, in bytes.
const SECTOR: usize = 512;

/// A file as its process sees it, and as a power failure would find it.
#[derive(Default)]
pub(super) struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// In the order they were made.
    unsynced: Vec<Change>,
    /// Whether a power failure finds its name in the directory.
    pub(super) named_durably: bool,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { size: usize },
}

impl File {
    pub(super) fn size(&self) -> usize {
        self.content.len()
    }

    /// Reads what there is, and says how many bytes that were.
    pub(super) fn read(&self, buffer: &mut [u8], offset: usize) -> usize {
        let found = self.content.get(offset..).unwrap_or_default();
        let length = found.len().min(buffer.len());
        buffer[..length].copy_from_slice(&found[..length]);
        length
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        write_at(&mut self.content, offset, bytes);
        self.unsynced.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub(super) fn truncate(&mut self, size: usize) {
        self.content.truncate(size);
        self.unsynced.push(Change::Truncate { size });
    }

    /// Makes every change durable.
    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, bytes } => write_at(&mut self.durable, offset, &bytes),
                Change::Truncate { size } => self.durable.truncate(size),
            }
        }
        self.named_durably = true;
    }

    /// A power failure: each change since the last sync is kept, lost, kept in some of its sectors, or torn within one. A later
    /// change may be kept where an earlier one is lost.
    pub(super) fn lose_unsynced(&mut self, random: &Random) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, bytes } => match random.below(4) {
                    0 => {}
                    1 => write_at(&mut self.durable, offset, &bytes),
                    2 => {
                        let mut start = 0;
                        while start < bytes.len() {
                            // Sectors lie where they lie on the disk, not where the write begins.
                            let end = bytes.len().min((offset + start) / SECTOR * SECTOR + SECTOR - offset);
                            if random.chance(0.5) {
                                write_at(&mut self.durable, offset + start, &bytes[start..end]);
                            }
                            start = end;
                        }
                    }
                    _ => write_at(&mut self.durable, offset, &bytes[..random.index(bytes.len() + 1)]),
                },
                Change::Truncate { size } => {
                    if random.chance(0.5) {
                        self.durable.truncate(size);
                    }
                }
            }
        }
        self.content.clone_from(&self.durable);
    }
}

fn write_at(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut file = File::default();
            file.write(&[1; 4096], 0);
            file.sync();
            file.write(&[2; 4096], 4096);
            file.lose_unsynced(&Random::new(seed));
            let mut content = vec![0; file.size()];
            file.read(&mut content, 0);
            assert_eq!(content[..4096], [1; 4096]);
            match content[4096..].iter().filter(|byte| **byte == 2).count() {
                4096 => kept += 1,
                0 => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
    }
}
