//! What simulations of bad weather share: choices, questions to the router, and cuts.

use std::cell::Cell;
use std::time::Duration;

use dosql_actors::Call;
use dosql_actors::host::simulation::{SimClient, Simulation};
use dosql_proto::{Address, Error, RouterProtocol, RouterRequest, router_reply, router_request};

/// A linear congruential generator: choices need not be well distributed, only different from seed to seed.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// One that begins with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    fn next(&self) -> u64 {
        let next = self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.set(next);
        next
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }
}

/// Asks the router, for `patience_ms` milliseconds of the simulation's time.
///
/// # Errors
/// What the router answered, or that no answer came.
pub async fn ask_router(
    client: &SimClient,
    request: router_request::Request,
    patience_ms: u64,
) -> Result<router_reply::Reply, Error> {
    let call = Call::system().within(client.now_ms(), patience_ms);
    let request = RouterRequest { request: Some(request) };
    let reply = client.ask::<RouterProtocol>("default", request, &call).await?;
    reply.reply.ok_or_else(|| Error::internal("an empty answer"))
}

/// Now and then cuts the router or one of three shards off for a while, until `done`.
pub async fn partitions(simulation: &Simulation, client: &SimClient, seed: u64, done: &Cell<bool>) {
    let random = Random::new(seed);
    while !done.get() {
        let drawn = random.next();
        client.sleep(Duration::from_millis(200 + (drawn >> 33) % 2_000)).await;
        let cut = match (drawn >> 20) % 4 {
            3 => Address::new("router", "default"),
            shard => Address::new("shard", format!("shard-{shard}")),
        };
        simulation.isolate(&cut);
        client.sleep(Duration::from_millis(100 + (drawn >> 40) % 500)).await;
        simulation.heal();
    }
}
