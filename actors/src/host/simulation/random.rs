//! The one source of chance.

use std::cell::Cell;
use std::time::Duration;

/// SplitMix64 from a seed.
pub(super) struct Random {
    state: Cell<u64>,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: Cell::new(seed) }
    }

    pub(super) fn next(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, without, `end`; 0 where `end` is 0.
    pub(super) fn below(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// The same for indices.
    pub(super) fn index(&self, end: usize) -> usize {
        // Fits: it is below a usize.
        self.below(end as u64) as usize
    }

    /// True with this probability.
    pub(super) fn chance(&self, probability: f64) -> bool {
        // 53 bits make an even fraction of 1. Drawn even where nothing can come of it, so that a change of one probability
        // does not change the history of everything else.
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        fraction < probability
    }

    /// A time of at least a microsecond and at most `longest`.
    pub(super) fn duration(&self, longest: Duration) -> Duration {
        Duration::from_micros(1 + self.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A running hash of events.
#[derive(Default)]
pub(super) struct Trace {
    hash: Cell<u64>,
}

impl Trace {
    /// Adds an event of a kind, with whatever tells it from others.
    pub(super) fn record(&self, kind: &str, details: &[u64]) {
        self.bytes(kind.as_bytes());
        for detail in details {
            self.bytes(&detail.to_le_bytes());
        }
    }

    /// Adds bytes (FNV-1a).
    pub(super) fn bytes(&self, bytes: &[u8]) {
        let hash = bytes.iter().fold(self.hash.get(), |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3) ^ 0xcbf2_9ce4_8422_2325
        });
        self.hash.set(hash);
    }

    pub(super) fn value(&self) -> u64 {
        self.hash.get()
    }
}
