//! How much a subscriber may be sent, and what it says.

use super::frames::Mark;
use crate::v1::subscriber_message::Message;
use crate::v1::{AcknowledgeChanges, Credit, Error};

/// What is left of what a subscriber has granted, and which durable subscription it is. What it has never granted any of, messages
/// or bytes, does not count.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The name of the durable subscription; "" for one that is not.
    pub(super) name: String,
    pub(super) limited: bool,
    pub(super) messages: Option<u64>,
    /// Below zero where the last message was longer than what was left.
    pub(super) bytes: Option<i64>,
}

impl Terms {
    /// For a subscriber that is sent nothing before it grants something, or, without `credit`, sets no limit.
    #[must_use]
    pub fn new(name: &str, credit: Option<Credit>) -> Self {
        let mut terms = Self { name: name.to_owned(), ..Self::default() };
        if let Some(credit) = credit {
            terms.grant(credit);
        }
        terms
    }

    /// Adds to what may be sent; limits a subscriber that had set no limit.
    fn grant(&mut self, credit: Credit) {
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
    #[must_use]
    pub fn allow(&self) -> bool {
        let granted = self.messages.is_some() || self.bytes.is_some();
        !self.limited
            || (granted && self.messages.is_none_or(|left| left > 0) && self.bytes.is_none_or(|left| left > 0))
    }

    /// How many messages may be sent of those whose ends are `marks`, `sent` bytes from where the first one begins.
    pub(super) fn cover(&self, marks: &[Mark], sent: u64) -> usize {
        if !self.allow() {
            return 0;
        }
        let within =
            |left: i64| marks.partition_point(|mark| i64::try_from(mark.end - sent).is_ok_and(|end| end < left));
        // The message that takes the last of the bytes may be longer than they are.
        let by_bytes = self.bytes.map_or(usize::MAX, |left| within(left).saturating_add(1));
        let by_messages = self.messages.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        marks.len().min(by_bytes).min(by_messages)
    }

    /// Notes that so many messages were sent, of so many bytes together.
    pub fn spend(&mut self, messages: usize, bytes: u64) {
        if let Some(left) = &mut self.messages {
            *left = left.saturating_sub(messages as u64);
        }
        if let Some(left) = &mut self.bytes {
            *left = left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Takes what the subscriber says; what the change stream is to be told of it.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where it may not be said.
    pub fn hear(&mut self, message: Message) -> Result<Option<AcknowledgeChanges>, Error> {
        match message {
            Message::Credit(credit) => {
                self.grant(credit);
                Ok(None)
            }
            Message::Acknowledge(_) if self.name.is_empty() => {
                Err(Error::invalid("only a subscription with a name can be acknowledged"))
            }
            Message::Acknowledge(position) => Ok(Some(AcknowledgeChanges { name: self.name.clone(), position })),
            Message::Subscribe(_) => Err(Error::invalid("the stream has its subscription already")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_granted_and_spent() {
        let mut terms = Terms::default();
        terms.spend(1, 1 << 40);
        assert!(terms.allow());
        let mut terms = Terms::new("", Some(Credit { messages: 0, bytes: 0 }));
        assert!(!terms.allow());
        terms.grant(Credit { messages: 2, bytes: 0 });
        terms.spend(1, 1_000);
        assert!(terms.allow());
        terms.spend(1, 1_000);
        assert!(!terms.allow());
        terms.grant(Credit { messages: 5, bytes: 100 });
        terms.spend(1, 150);
        assert!(!terms.allow());
        terms.grant(Credit { messages: 0, bytes: 50 });
        assert!(!terms.allow());
        terms.grant(Credit { messages: 0, bytes: 1 });
        assert!(terms.allow());
    }

    #[test]
    fn credit_covers_what_would_be_sent_one_by_one() {
        let ends = [10, 30, 35, 100];
        let marks = ends.map(|end| Mark { end, position: None });
        for first in 0..ends.len() {
            let sent = first.checked_sub(1).map_or(0, |last| ends[last]);
            for (messages, bytes) in (0..6).flat_map(|messages| (0..110).map(move |bytes| (messages, bytes))) {
                let terms = Terms::new("", Some(Credit { messages, bytes }));
                let mut left = terms.clone();
                let one_by_one = (first..ends.len()).take_while(|place| {
                    let allowed = left.allow();
                    left.spend(1, ends[*place] - place.checked_sub(1).map_or(0, |last| ends[last]));
                    allowed
                });
                assert_eq!(terms.cover(&marks[first..], sent), one_by_one.count(), "{messages} {bytes} from {first}");
            }
        }
        assert_eq!(Terms::default().cover(&marks, 0), 4);
    }

    #[test]
    fn only_a_durable_subscription_is_acknowledged() {
        let ack = || Message::Acknowledge("a:1".to_owned());
        assert!(Terms::default().hear(ack()).is_err());
        let told = AcknowledgeChanges { name: "n".to_owned(), position: "a:1".to_owned() };
        assert_eq!(Terms::new("n", None).hear(ack()), Ok(Some(told)));
        assert!(Terms::new("n", None).hear(Message::Subscribe(Default::default())).is_err());
    }
}
