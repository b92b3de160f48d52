//! What a batch is for those who take it in one format; they may share it.

use prost::Message as _;

use super::{Message, is_heartbeat};
use crate::json::{change_frames, debezium_frames, debezium_heartbeat, heartbeat_frame};
use crate::v1::{ChangeBatch, Error, FrameFormat};

/// The messages of one batch, all of them as `C`: what a host makes of them to carry them.
#[derive(Debug)]
pub struct Frames<C = Vec<Message>> {
    carried: C,
    /// One for each message.
    pub(super) marks: Vec<Mark>,
    /// Where a subscriber stands that was sent all of them.
    pub(super) position: String,
}

/// What a subscriber needs to know of a message.
#[derive(Debug)]
pub(super) struct Mark {
    /// The length of the messages up to its end, in bytes.
    pub(super) end: u64,
    /// Where the stream can go on from after it; `None` within what can only be resumed as a whole.
    pub(super) position: Option<String>,
}

impl Frames {
    /// The messages of a batch. `now_ms` is the time, in milliseconds since the epoch.
    ///
    /// # Errors
    /// `INTERNAL` where the batch contradicts itself.
    pub fn of(batch: &ChangeBatch, format: FrameFormat, now_ms: u64) -> Result<Self, Error> {
        let frames = match format {
            FrameFormat::Json if !is_heartbeat(batch) => change_frames(batch)?,
            FrameFormat::Debezium if !is_heartbeat(batch) => debezium_frames(batch, now_ms)?,
            _ => Vec::new(),
        };
        let framed = frames.into_iter().map(|frame| (Message::Text(frame.text), frame.position));
        let (mut messages, mut positions): (Vec<_>, Vec<_>) = framed.unzip();
        let whole = match format {
            FrameFormat::Protobuf => Some(Message::Binary(batch.encode_to_vec())),
            FrameFormat::Json if is_heartbeat(batch) => Some(Message::Text(heartbeat_frame(&batch.position, now_ms))),
            FrameFormat::Debezium if is_heartbeat(batch) => {
                Some(Message::Text(debezium_heartbeat(&batch.position, now_ms)))
            }
            FrameFormat::Json | FrameFormat::Debezium => None,
        };
        positions.extend(whole.is_some().then_some(None));
        messages.extend(whole);
        // What follows the last record was of no interest to the subscriber.
        if let Some(last) = positions.last_mut() {
            *last = Some(batch.position.clone());
        }
        let mut end = 0;
        let marks = messages.iter().zip(positions).map(|(message, position)| {
            end += message.bytes() as u64;
            Mark { end, position }
        });
        Ok(Self { marks: marks.collect(), carried: messages, position: batch.position.clone() })
    }

    /// The same as a host carries them.
    #[must_use]
    pub fn carried_as<C>(self, make: impl FnOnce(Vec<Message>) -> C) -> Frames<C> {
        Frames { carried: make(self.carried), marks: self.marks, position: self.position }
    }
}

impl<C> Frames<C> {
    /// The messages.
    #[must_use]
    pub fn carried(&self) -> &C {
        &self.carried
    }
}
