//! How much a subscriber may be sent.

use dosql_proto::Credit;

/// What is left of what a subscriber has granted. What it has never granted any of, messages or bytes, does not count.
#[derive(Debug, Default)]
pub(super) struct Credits {
    limited: bool,
    messages: Option<u64>,
    /// Below zero where the last message was longer than what was left.
    bytes: Option<i64>,
}

impl Credits {
    /// For a subscriber that sets no limit.
    pub(super) fn unlimited() -> Self {
        Self::default()
    }

    /// For one that is sent nothing before it grants something.
    pub(super) fn limited(first: Credit) -> Self {
        let mut credits = Self { limited: true, ..Self::default() };
        credits.grant(first);
        credits
    }

    /// Adds to what may be sent; limits a subscriber that had set no limit.
    pub(super) fn grant(&mut self, credit: Credit) {
        self.limited = true;
        if credit.messages > 0 {
            self.messages = Some(self.messages.unwrap_or(0).saturating_add(credit.messages));
        }
        if credit.bytes > 0 {
            let bytes = i64::try_from(credit.bytes).unwrap_or(i64::MAX);
            self.bytes = Some(self.bytes.unwrap_or(0).saturating_add(bytes));
        }
    }

    /// Whether one more message may be sent.
    pub(super) fn allow(&self) -> bool {
        let granted = self.messages.is_some() || self.bytes.is_some();
        !self.limited
            || (granted && self.messages.is_none_or(|left| left > 0) && self.bytes.is_none_or(|left| left > 0))
    }

    /// Notes that a message was sent.
    pub(super) fn spend(&mut self, bytes: usize) {
        if let Some(messages) = &mut self.messages {
            *messages = messages.saturating_sub(1);
        }
        if let Some(left) = &mut self.bytes {
            *left = left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_granted_and_spent() {
        let mut credits = Credits::unlimited();
        credits.spend(1 << 40);
        assert!(credits.allow());
        let mut credits = Credits::limited(Credit { messages: 0, bytes: 0 });
        assert!(!credits.allow());
        credits.grant(Credit { messages: 2, bytes: 0 });
        credits.spend(1_000);
        assert!(credits.allow());
        credits.spend(1_000);
        assert!(!credits.allow());
        credits.grant(Credit { messages: 5, bytes: 100 });
        credits.spend(150);
        assert!(!credits.allow());
        credits.grant(Credit { messages: 0, bytes: 50 });
        assert!(!credits.allow());
        credits.grant(Credit { messages: 0, bytes: 1 });
        assert!(credits.allow());
    }
}
