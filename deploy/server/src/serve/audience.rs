//! What subscribers have in common.
//!
//! Subscribers with the same choices who stand at the same position are told the same: it is asked for once, and made into
//! frames once. The last answers are kept, so that who is a little late finds them and stays with the others. The more
//! subscribers there are, the longer is the pause between an answer and the next question, so that what happens meanwhile comes
//! in one piece: each of them costs a piece, not an event.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dosql_proto::subscriber::{Frames, heartbeat, is_heartbeat};
use dosql_proto::{ChangeBatch, Error, FrameFormat, SubscribeRequest};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use prost::Message as _;
use tokio::time::Instant;

use super::backend::Backend;
use super::socket::Wire;

/// Some ten times what it takes to send a piece to one subscriber, so that most of a core is left to those who write.
const PAUSE_A_SUBSCRIBER: Duration = Duration::from_micros(100);
/// Shorter pauses are not worth a timer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Answers that are kept, and the bytes that they may have together.
const ANSWERS: usize = 32;
const ANSWERS_BYTES: usize = 4 << 20;

/// An answer, and the frames that it was made into.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) batch: ChangeBatch,
    bytes: usize,
    frames: [OnceLock<Result<Arc<Frames<Wire>>, Error>>; 3],
}

impl Answer {
    fn new(batch: ChangeBatch) -> Self {
        let bytes = batch.encoded_len();
        Self { batch, bytes, frames: [const { OnceLock::new() }; 3] }
    }

    /// The answer as frames, which whoever needs them first makes.
    ///
    /// # Errors
    /// `INTERNAL` where the batch contradicts itself.
    pub(super) fn frames(&self, format: FrameFormat) -> Result<Arc<Frames<Wire>>, Error> {
        let place = match format {
            FrameFormat::Json => 0,
            FrameFormat::Debezium => 1,
            FrameFormat::Protobuf => 2,
        };
        let make = || Ok(Arc::new(Frames::of(&self.batch, format, now_ms())?.carried_as(Wire::of)));
        self.frames[place].get_or_init(make).clone()
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

type Asked = BoxFuture<'static, Result<Arc<Answer>, Error>>;
type Question = Shared<Asked>;

/// The audiences of a server, by their choices.
#[derive(Clone, Default)]
pub(super) struct Audiences {
    audiences: Arc<Mutex<HashMap<Vec<u8>, Weak<Audience>>>>,
}

impl Audiences {
    /// The audience of those who subscribe so. Who holds it belongs to it.
    pub(super) fn join(&self, subscription: &SubscribeRequest) -> Arc<Audience> {
        let choices = SubscribeRequest { from: String::new(), ..subscription.clone() }.encode_to_vec();
        let mut audiences = held(&self.audiences);
        audiences.retain(|_, audience| audience.strong_count() > 0);
        if let Some(audience) = audiences.get(&choices).and_then(Weak::upgrade) {
            return audience;
        }
        let audience = Arc::default();
        audiences.insert(choices, Arc::downgrade(&audience));
        audience
    }
}

/// Subscribers with the same choices.
#[derive(Default)]
pub(super) struct Audience {
    talk: Mutex<Talk>,
}

#[derive(Default)]
struct Talk {
    /// By position. They end when nobody waits for them any more.
    asked: HashMap<String, WeakShared<Asked>>,
    /// By position, the oldest first.
    answered: VecDeque<(String, Arc<Answer>)>,
    bytes: usize,
    /// When the next question may be asked.
    next: Option<Instant>,
}

/// What is known of what comes after a position.
enum Known {
    Answer(Arc<Answer>),
    Question(Question),
}

impl Audience {
    /// What comes after the subscription's position, or a heartbeat; it comes sooner where somebody waits already.
    ///
    /// # Errors
    /// What the change stream answers.
    pub(super) async fn next(
        self: &Arc<Self>,
        backend: &Backend,
        subscription: &SubscribeRequest,
    ) -> Result<Arc<Answer>, Error> {
        match self.known(backend, subscription) {
            Known::Answer(answer) => Ok(answer),
            Known::Question(question) => question.await,
        }
    }

    fn known(self: &Arc<Self>, backend: &Backend, subscription: &SubscribeRequest) -> Known {
        let mut talk = held(&self.talk);
        if let Some((_, answer)) = talk.answered.iter().find(|(from, _)| *from == subscription.from) {
            return Known::Answer(Arc::clone(answer));
        }
        if let Some(question) = talk.asked.get(&subscription.from).and_then(WeakShared::upgrade) {
            return Known::Question(question);
        }
        let (audience, backend, subscription) = (Arc::downgrade(self), backend.clone(), subscription.clone());
        let (from, not_before) = (subscription.from.clone(), talk.next);
        let question = async move {
            if let Some(at) = not_before.filter(|at| *at >= Instant::now() + SHORTEST_PAUSE) {
                tokio::time::sleep_until(at).await;
            }
            let from = subscription.from.clone();
            let wait = heartbeat(&subscription);
            let answer = backend.poll_changes(subscription, wait).await.map(|batch| Arc::new(Answer::new(batch)));
            if let Some(audience) = audience.upgrade() {
                audience.note(from, answer.as_ref().ok());
            }
            answer
        };
        let question = question.boxed().shared();
        talk.asked.retain(|_, asked| asked.upgrade().is_some());
        if let Some(asked) = question.downgrade() {
            talk.asked.insert(from, asked);
        }
        Known::Question(question)
    }

    /// A question was answered, or failed.
    fn note(self: &Arc<Self>, from: String, answer: Option<&Arc<Answer>>) {
        // One more is held by the question that is being answered.
        let others = Arc::strong_count(self).saturating_sub(2);
        let mut talk = held(&self.talk);
        talk.asked.remove(&from);
        let Some(answer) = answer.filter(|answer| !is_heartbeat(&answer.batch) && others > 0) else { return };
        let pause = PAUSE_A_SUBSCRIBER.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        talk.next = Some(Instant::now() + pause);
        talk.bytes += answer.bytes;
        talk.answered.push_back((from, Arc::clone(answer)));
        while talk.answered.len() > ANSWERS || talk.bytes > ANSWERS_BYTES {
            let Some((_, oldest)) = talk.answered.pop_front() else { break };
            talk.bytes -= oldest.bytes;
        }
    }
}

/// A panic elsewhere leaves nothing half done in what these hold.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
