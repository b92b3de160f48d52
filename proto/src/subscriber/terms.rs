//! How much a subscriber may be sent, and what it says.

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

    /// Notes that a message of so many bytes was sent.
    pub fn spend(&mut self, bytes: usize) {
        if let Some(messages) = &mut self.messages {
            *messages = messages.saturating_sub(1);
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
        terms.spend(1 << 40);
        assert!(terms.allow());
        let mut terms = Terms::new("", Some(Credit { messages: 0, bytes: 0 }));
        assert!(!terms.allow());
        terms.grant(Credit { messages: 2, bytes: 0 });
        terms.spend(1_000);
        assert!(terms.allow());
        terms.spend(1_000);
        assert!(!terms.allow());
        terms.grant(Credit { messages: 5, bytes: 100 });
        terms.spend(150);
        assert!(!terms.allow());
        terms.grant(Credit { messages: 0, bytes: 50 });
        assert!(!terms.allow());
        terms.grant(Credit { messages: 0, bytes: 1 });
        assert!(terms.allow());
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
