//! What a batch is for those who take it in one format; they may share it.

use prost::Message as _;

use super::{Message, is_heartbeat};
use crate::json::{change_frames, debezium_frames, debezium_heartbeat, heartbeat_frame};
use crate::v1::{ChangeBatch, Error, FrameFormat};

/// The messages of one batch, as a host carries them.
#[derive(Debug)]
pub struct Frames<M = Message> {
    pub(super) messages: Vec<Framed<M>>,
    /// Where a subscriber stands that was sent all of them.
    pub(super) position: String,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Framed<M> {
    pub(super) message: M,
    /// Its length.
    pub(super) bytes: usize,
    /// Where the stream can go on from after it; `None` within what can only be resumed as a whole.
    pub(super) position: Option<String>,
}

impl Frames {
    /// The messages of a batch. `now_ms` is the time, in milliseconds since the epoch.
    ///
    /// # Errors
    /// `INTERNAL` where the batch contradicts itself.
    pub fn of(batch: &ChangeBatch, format: FrameFormat, now_ms: u64) -> Result<Self, Error> {
        let framed = |message: Message, position| Framed { bytes: message.bytes(), message, position };
        let texts = match format {
            FrameFormat::Json if !is_heartbeat(batch) => change_frames(batch)?,
            FrameFormat::Debezium if !is_heartbeat(batch) => debezium_frames(batch, now_ms)?,
            _ => Vec::new(),
        };
        let mut messages: Vec<_> =
            texts.into_iter().map(|frame| framed(Message::Text(frame.text), frame.position)).collect();
        let whole = match format {
            FrameFormat::Protobuf => Some(Message::Binary(batch.encode_to_vec())),
            FrameFormat::Json if is_heartbeat(batch) => Some(Message::Text(heartbeat_frame(&batch.position, now_ms))),
            FrameFormat::Debezium if is_heartbeat(batch) => {
                Some(Message::Text(debezium_heartbeat(&batch.position, now_ms)))
            }
            FrameFormat::Json | FrameFormat::Debezium => None,
        };
        messages.extend(whole.map(|message| framed(message, None)));
        // What follows the last record was of no interest to the subscriber.
        if let Some(last) = messages.last_mut() {
            last.position = Some(batch.position.clone());
        }
        Ok(Self { messages, position: batch.position.clone() })
    }

    /// The same as a host's own messages.
    #[must_use]
    pub fn map<M>(self, carried: impl Fn(Message) -> M) -> Frames<M> {
        let messages = self.messages.into_iter().map(|Framed { message, bytes, position }| Framed {
            message: carried(message),
            bytes,
            position,
        });
        Frames { messages: messages.collect(), position: self.position }
    }
}
