//! What a simulation leaves to chance.

use std::time::Duration;

use crate::runtime::Settings;

/// What may go wrong, and how often. Probabilities are from 0 to 1.
#[derive(Debug, Clone)]
pub struct SimulationConfig {
    /// The system's settings.
    pub settings: Settings,
    /// Messages that one actor's mailbox holds before it answers `OVERLOADED`.
    pub mailbox_capacity: usize,
    /// Longest time that a message or an answer travels. Each takes its own time, so that they overtake one another.
    pub longest_delay: Duration,
    /// How likely a message, and how likely an answer, is lost.
    pub message_loss: f64,
    /// After what time whoever waits for a lost message is told `UNAVAILABLE`.
    pub loss_noticed_after: Duration,
    /// How likely a message is delivered twice.
    pub message_duplication: f64,
    /// Mean time between the deaths of actors; `None`: none dies unless told to.
    pub crash_interval: Option<Duration>,
    /// Longest time that a dead actor is away.
    pub longest_restart: Duration,
    /// How likely a read, write or sync of a file fails.
    pub io_errors: f64,
    /// How likely an operation on an object fails; of those that write, half take effect all the same.
    pub object_errors: f64,
    /// How likely an operation on an object is slow: it takes effect late, and is answered late, each by up to `longest_slowness`.
    /// It goes on all the same when the actor that asked for it dies meanwhile.
    pub object_slowness: f64,
    /// See `object_slowness`.
    pub longest_slowness: Duration,
    /// How likely a request of a service outside fails; half of those take effect all the same.
    pub service_errors: f64,
    /// How likely a request of a service outside is slow: it takes effect late, and is answered late, each by up to
    /// `longest_service_slowness`. It goes on all the same when whoever asked waits no longer.
    pub service_slowness: f64,
    /// See `service_slowness`.
    pub longest_service_slowness: Duration,
    /// For how long a listing may lack an object that is new, and show one that is gone.
    pub listing_lag: Duration,
    /// The exclusive creation of an object replaces what is there. A test that is to notice lost commits must fail with it.
    pub careless_creation: bool,
    /// Syncs report success and do nothing. A test that is to notice lost acknowledged writes must fail with it.
    pub lying_sync: bool,
    /// How much virtual time one `block_on` may take before it panics.
    pub time_limit: Duration,
}

impl SimulationConfig {
    /// Nothing goes wrong; messages still take different times and tasks run in any order.
    #[must_use]
    pub fn calm(settings: Settings) -> Self {
        Self {
            settings,
            mailbox_capacity: 1024,
            longest_delay: Duration::from_millis(5),
            message_loss: 0.0,
            loss_noticed_after: Duration::from_secs(2),
            message_duplication: 0.0,
            crash_interval: None,
            longest_restart: Duration::from_secs(1),
            io_errors: 0.0,
            object_errors: 0.0,
            object_slowness: 0.0,
            longest_slowness: Duration::from_secs(1),
            service_errors: 0.0,
            service_slowness: 0.0,
            longest_service_slowness: Duration::from_secs(1),
            listing_lag: Duration::ZERO,
            careless_creation: false,
            lying_sync: false,
            time_limit: Duration::from_secs(7 * 24 * 3600),
        }
    }

    /// Everything goes wrong now and then.
    #[must_use]
    pub fn stormy(settings: Settings) -> Self {
        Self {
            longest_delay: Duration::from_millis(50),
            message_loss: 0.02,
            message_duplication: 0.02,
            crash_interval: Some(Duration::from_secs(2)),
            io_errors: 0.0005,
            object_errors: 0.03,
            ..Self::calm(settings)
        }
    }
}
