//! Both sides' manners in the change stream, the same on every host: what a subscriber may be sent and when, what it may say, where it
//! stands. No input or output happens here; a host carries frames and messages.

mod frames;
mod terms;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

pub use self::frames::Frames;
pub use self::terms::Terms;
use crate::json::{ErrorBody, StreamParameters, messages_from_json};
use crate::v1::{
    AcknowledgeChanges, ChangeBatch, Error, ErrorCode, FrameFormat, SubscribeRequest, SubscriberMessage,
    SubscriberState,
};

/// About how many bytes of log records a subscriber is sent at a time.
pub const BATCH_BYTES: u32 = 256 << 10;
/// Longest message of a subscriber's, in bytes; a position in it may be that of many shards.
pub const LONGEST_MESSAGE: usize = 1 << 20;
/// How long to wait for changes before the subscriber gets a sign of life, where it does not say, and the least it may say.
const HEARTBEAT: Duration = Duration::from_secs(15);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(50);
/// How often in a row the change stream is asked again while it is restarting or overloaded, and the pauses between.
const RETRIES: u32 = 10;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest text that the WebSocket protocol lets a close frame carry, in bytes.
const LONGEST_REASON: usize = 123;

/// How long a subscriber waits for changes before it gets a heartbeat.
#[must_use]
pub fn heartbeat(subscription: &SubscribeRequest) -> Duration {
    match subscription.heartbeat_ms {
        0 => HEARTBEAT,
        milliseconds => Duration::from_millis(milliseconds).max(SHORTEST_HEARTBEAT),
    }
}

/// Whether there is nothing for the subscriber in a batch: it tells where it stands.
#[must_use]
pub fn is_heartbeat(batch: &ChangeBatch) -> bool {
    batch.shards.iter().all(|shard| shard.records.is_empty())
}

/// Failures in a row of the change stream to answer one subscriber.
#[derive(Debug, Default)]
pub struct Failures(u32);

impl Failures {
    /// How long to pause after another failure before asking again.
    ///
    /// # Errors
    /// The failure, where asking again does not help, or has not.
    pub fn pause(&mut self, error: Error) -> Result<Duration, Error> {
        if !error.retryable || self.0 >= RETRIES {
            return Err(error);
        }
        self.0 += 1;
        Ok(Duration::from_millis(error.retry_after_ms).clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
    }
}

/// A message on a WebSocket, from either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text frame.
    Text(String),
    /// A binary frame.
    Binary(Vec<u8>),
}

impl Message {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// A subscriber on a WebSocket, whose host carries messages as `C`.
#[derive(Debug)]
pub struct Subscriber<C = Vec<Message>> {
    terms: Terms,
    format: FrameFormat,
    subscription: SubscribeRequest,
    /// What is still to be sent of the last batch, from which of its messages on.
    pending: Option<(Arc<Frames<C>>, usize)>,
    /// Whether the last message sent was not within what can only be resumed as a whole.
    at_rest: bool,
}

impl<C> Subscriber<C> {
    /// A subscriber that asked for `parameters`, whose subscription the change stream has `opened`.
    #[must_use]
    pub fn new(parameters: &StreamParameters, opened: SubscribeRequest) -> Self {
        Self {
            terms: Terms::new(&parameters.subscription.name, parameters.credit),
            format: parameters.format,
            subscription: opened,
            pending: None,
            at_rest: true,
        }
    }

    /// A subscriber as it was when [`state`](Self::state) was called.
    #[must_use]
    pub fn restore(state: SubscriberState) -> Self {
        let SubscriberState { name, limited, messages_left: messages, bytes_left: bytes, .. } = state;
        Self {
            terms: Terms { name, limited, messages, bytes },
            format: FrameFormat::try_from(state.format).unwrap_or_default(),
            subscription: state.subscription.unwrap_or_default(),
            pending: None,
            at_rest: true,
        }
    }

    /// What it takes to [`restore`](Self::restore) it; `None` within what can only be resumed as a whole. What was still to be sent
    /// is asked for again then.
    #[must_use]
    pub fn state(&self, heartbeat_at_ms: u64) -> Option<SubscriberState> {
        self.at_rest.then(|| SubscriberState {
            subscription: Some(self.subscription.clone()),
            name: self.terms.name.clone(),
            format: self.format.into(),
            limited: self.terms.limited,
            messages_left: self.terms.messages,
            bytes_left: self.terms.bytes,
            heartbeat_at_ms,
        })
    }

    /// What to ask the change stream for, from where the subscriber stands.
    #[must_use]
    pub fn subscription(&self) -> &SubscribeRequest {
        &self.subscription
    }

    /// Whether the change stream is to be asked for more: everything has been sent, and there is credit.
    #[must_use]
    pub fn wants_changes(&self) -> bool {
        self.pending.is_none() && self.terms.allow()
    }

    /// How it takes them.
    #[must_use]
    pub fn format(&self) -> FrameFormat {
        self.format
    }

    /// Takes the answer of the change stream, in the subscriber's format.
    pub fn take(&mut self, frames: Arc<Frames<C>>) {
        match frames.marks.is_empty() {
            true => self.subscription.from.clone_from(&frames.position),
            false => self.pending = Some((frames, 0)),
        }
    }

    /// What is to be sent now: which messages of a batch. `None` where there are none, or no credit for one.
    pub fn next_messages(&mut self) -> Option<(Arc<Frames<C>>, Range<usize>)> {
        let (frames, first) = self.pending.take()?;
        let sent = first.checked_sub(1).map_or(0, |last| frames.marks[last].end);
        let next = first + self.terms.cover(&frames.marks[first..], sent);
        if next < frames.marks.len() {
            self.pending = Some((Arc::clone(&frames), next));
        }
        let now = &frames.marks[first..next];
        let last = now.last()?;
        self.terms.spend(now.len(), last.end - sent);
        self.at_rest = last.position.is_some();
        if let Some(position) = now.iter().rev().find_map(|mark| mark.position.as_ref()) {
            self.subscription.from.clone_from(position);
        }
        Some((frames, first..next))
    }

    /// Takes what the subscriber says; what the change stream is to be told of it.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where it is nothing that may be said.
    pub fn hear(&mut self, message: &Message) -> Result<Vec<AcknowledgeChanges>, Error> {
        if message.bytes() > LONGEST_MESSAGE {
            return Err(Error::invalid(format!("a subscriber's message has at most {LONGEST_MESSAGE} bytes")));
        }
        let said = match message {
            Message::Text(text) => messages_from_json(text)?,
            Message::Binary(bytes) => {
                let said = SubscriberMessage::decode(bytes.as_slice())
                    .map_err(|error| Error::invalid(format!("a subscriber's message is malformed: {error}")))?;
                said.message.into_iter().collect()
            }
        };
        said.into_iter().filter_map(|message| self.terms.hear(message).transpose()).collect()
    }
}

/// How a stream that cannot go on ends: a last message, and the code and reason of the close frame.
#[must_use]
pub fn farewell(error: &Error) -> (Message, u16, String) {
    const AWAY: u16 = 1001;
    const POLICY: u16 = 1008;
    const FAILED: u16 = 1011;
    let code = match error.code() {
        ErrorCode::Unavailable => AWAY,
        ErrorCode::UnknownPosition | ErrorCode::InvalidRequest => POLICY,
        _ => FAILED,
    };
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    (Message::Text(ErrorBody(error).to_json()), code, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Column, Credit, Operation, RowChange, ShardChanges, Value, WalRecord, WalTable};

    fn record(lsn: u64) -> WalRecord {
        let column = Column { name: "id".into(), declared_type: "INTEGER".into() };
        let row = |id: i64| [Value::from(id)].into_iter().collect();
        let insert = |rowid| RowChange {
            table: 0,
            operation: Operation::Insert.into(),
            rowid,
            before: None,
            after: Some(row(rowid)),
        };
        WalRecord {
            lsn,
            tables: vec![WalTable { name: "t".into(), columns: vec![column], primary_key: vec![0] }],
            changes: vec![insert(1), insert(2)],
            ..WalRecord::default()
        }
    }

    fn batch(from: u64, to: u64) -> ChangeBatch {
        let records = (from + 1..=to).map(record).collect();
        ChangeBatch {
            shards: vec![ShardChanges { shard: "a".into(), records, snapshot: None }],
            previous: format!("a:{from}"),
            position: format!("a:{}", to + 5),
        }
    }

    fn subscriber(format: FrameFormat, messages: u64) -> Subscriber {
        let credit = Some(Credit { messages, bytes: 0 });
        let parameters = StreamParameters { format, credit, ..StreamParameters::default() };
        Subscriber::new(&parameters, SubscribeRequest { from: "a:0".into(), ..SubscribeRequest::default() })
    }

    fn take(subscriber: &mut Subscriber, batch: &ChangeBatch) {
        let frames = Frames::of(batch, subscriber.format(), 0).unwrap();
        subscriber.take(Arc::new(frames));
    }

    fn sent(subscriber: &mut Subscriber) -> usize {
        std::iter::from_fn(|| subscriber.next_messages()).map(|(_, messages)| messages.len()).sum()
    }

    #[test]
    fn a_subscriber_stands_after_what_it_was_sent() {
        let mut one = subscriber(FrameFormat::Json, 2);
        assert!(one.wants_changes());
        take(&mut one, &batch(0, 3));
        assert!(!one.wants_changes());
        assert_eq!((sent(&mut one), one.subscription().from.as_str()), (2, "a:2"));
        let mut again = Subscriber::restore(one.state(7).unwrap());
        assert!(!again.wants_changes());
        assert!(again.hear(&Message::Text(r#"{"credit":{"messages":5}}"#.into())).unwrap().is_empty());
        assert!(again.wants_changes());
        take(&mut again, &batch(2, 3));
        assert_eq!((sent(&mut again), again.subscription().from.as_str()), (1, "a:8"));
        assert_eq!(again.state(0).unwrap().messages_left, Some(4));
    }

    #[test]
    fn a_transaction_in_parts_is_not_put_aside() {
        let mut one = subscriber(FrameFormat::Debezium, 3);
        take(&mut one, &batch(0, 2));
        assert_eq!((sent(&mut one), one.state(0)), (3, None));
        one.hear(&Message::Text(r#"{"credit":{"messages":1}}"#.into())).unwrap();
        assert_eq!(sent(&mut one), 1);
        let state = one.state(0).unwrap();
        assert_eq!(state.subscription.unwrap().from, "a:1");
    }

    #[test]
    fn a_heartbeat_moves_the_subscriber_and_takes_credit() {
        for format in [FrameFormat::Json, FrameFormat::Debezium, FrameFormat::Protobuf] {
            let mut one = subscriber(format, 1);
            let nothing = ChangeBatch { position: "a:9".into(), previous: "a:0".into(), ..ChangeBatch::default() };
            take(&mut one, &nothing);
            assert_eq!((sent(&mut one), one.subscription().from.as_str()), (1, "a:9"));
            assert!(!one.wants_changes());
        }
    }

    #[test]
    fn asking_again_has_an_end() {
        let mut failures = Failures::default();
        let away = |after| Error::retryable(ErrorCode::Unavailable, "away", after);
        assert_eq!(failures.pause(away(0)).unwrap(), SHORTEST_PAUSE);
        assert_eq!(failures.pause(away(5_000)).unwrap(), LONGEST_PAUSE);
        assert!((2..RETRIES).all(|_| failures.pause(away(0)).is_ok()));
        assert!(failures.pause(away(0)).is_err());
        assert!(Failures::default().pause(Error::invalid("no")).is_err());
    }

    #[test]
    fn a_farewell_fits_a_close_frame() {
        let (_, code, reason) = farewell(&Error::invalid("ä".repeat(200)));
        assert_eq!(code, 1008);
        assert!(reason.len() <= LONGEST_REASON && reason.len() > LONGEST_REASON - 2);
    }
}
