//! What simulations share that write through every actor: a client that remembers what it was told, and checks of the shards,
//! the change stream and the lake against it.

pub(crate) mod checks;
pub(crate) mod client;
#[path = "../../../lake/tests/lake/reading.rs"]
pub(crate) mod reading;

use std::collections::BTreeMap;
use std::fmt;

use dosql_actors::cdc::Cdc;
use dosql_actors::host::simulation::{Simulation, SimulationConfig};
use dosql_actors::shard::Shard;
use dosql_lake::Lake;
use dosql_proto::Error;
use dosql_router::Router;

/// What the reader of the lake's tables reads from.
pub(crate) mod support {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use futures_util::FutureExt;

    pub(crate) struct Objects {
        pub(crate) files: RefCell<BTreeMap<String, bytes::Bytes>>,
        pub(crate) base: String,
    }

    impl Objects {
        /// Those of a simulation.
        pub(crate) fn of(simulation: &dosql_actors::host::simulation::Simulation) -> Self {
            let files = simulation.objects().into_iter().collect();
            Self { files: RefCell::new(files), base: "memory:///".to_owned() }
        }
    }

    pub(crate) fn now<F: Future>(future: F) -> F::Output {
        future.now_or_never().expect("it waits for nothing")
    }
}

/// How long the router may take to answer, in milliseconds of the simulation.
const PATIENCE_MS: u64 = 8_000;

/// Why a walk did not end as it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something acknowledged is missing, or is there twice, or is something that nobody wrote.
    Wrong(String),
    /// It could not be walked to its end.
    Stopped(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(what) => write!(formatter, "wrong: {what}"),
            Self::Stopped(why) => write!(formatter, "stopped: {why}"),
        }
    }
}

pub(crate) fn stopped(what: &str) -> impl Fn(Error) -> Failure {
    move |error| Failure::Stopped(format!("{what}: {error}"))
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Insert(String),
    /// Text that was appended.
    Append(String),
    Delete,
}

/// What the client knows of one row.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) acknowledged: Vec<Step>,
    /// What was never acknowledged and may have happened or not; nothing is written to the row after it.
    pub(crate) open: Option<Step>,
}

impl History {
    pub(crate) fn exists(&self) -> bool {
        !matches!(self.acknowledged.last(), None | Some(Step::Delete))
    }
}

pub(crate) type Histories = BTreeMap<i64, History>;

/// A system of every kind of actor.
pub(crate) fn system(seed: u64, config: SimulationConfig) -> Result<Simulation, Failure> {
    let simulation = Simulation::new(seed, config).map_err(stopped("the simulation"))?;
    simulation.register::<Shard>();
    simulation.register::<Router>();
    simulation.register::<Cdc>();
    simulation.register::<Lake>();
    Ok(simulation)
}
