//! Money moves between accounts on several shards, in sessions, batches and single statements, while messages are lost, late
//! and doubled, actors die and parts of the system cannot be reached. Every strict read sees all of the money, and all that the
//! clients saw is strictly serialisable.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use dosql_actors::cdc::Cdc;
use dosql_actors::host::simulation::{SimClient, Simulation, SimulationConfig};
use dosql_actors::runtime::TransactionMode;
use dosql_actors::shard::Shard;
use dosql_actors::{Call, Settings};
use dosql_lake::Lake;
use dosql_proto::value::Kind;
use dosql_proto::{
    BatchRequest, Consistency, Error, ErrorCode, ExecuteRequest, OpenSession, QueryOptions, Row, ShardProtocol,
    ShardRequest, ShardStatusRequest, Statement, Value, router_reply, router_request, shard_reply, shard_request,
};
use dosql_router::Router;
use dosql_tests::seeds::{histories, seeds};
use dosql_tests::serialisability::{Operation, Step, Verdict, judge};
use dosql_tests::storms::{Random, ask_router, partitions};
use futures_util::future::{join, join_all};

const ACCOUNTS: i64 = 6;
const BALANCE: i64 = 100;
const CLIENTS: u64 = 3;
const OPERATIONS: u64 = 6;
/// How often a request is sent before the client gives up, not knowing what came of it.
const ATTEMPTS: u32 = 3;
const MOST_STATES: usize = 200_000;

fn settings(transaction_mode: TransactionMode) -> Settings {
    Settings {
        shard_count: 3,
        shard_timeout_ms: 1_500,
        lock_timeout_ms: 400,
        session_idle_timeout_ms: 4_000,
        transaction_timeout_ms: 4_000,
        auto_shard: dosql_actors::runtime::AutoShard::PrimaryKey,
        transaction_mode,
        ..Settings::default()
    }
}

fn stormy(transaction_mode: TransactionMode) -> SimulationConfig {
    SimulationConfig {
        crash_interval: Some(Duration::from_millis(700)),
        longest_restart: Duration::from_millis(400),
        loss_noticed_after: Duration::from_millis(500),
        ..SimulationConfig::stormy(settings(transaction_mode))
    }
}

/// What came of a request.
enum Outcome<T> {
    Done(T),
    /// It has taken no effect.
    Failed,
    /// It may have, or may yet.
    Unknown,
}

struct Client<'a> {
    simulation: SimClient,
    number: u64,
    random: Random,
    requests: Cell<u64>,
    history: &'a RefCell<Vec<Operation>>,
}

impl Client<'_> {
    fn below(&self, end: u64) -> u64 {
        self.random.below(end)
    }

    fn account(&self) -> i64 {
        1 + self.below(ACCOUNTS as u64) as i64
    }

    /// Two accounts, and how much goes from the first to the second.
    fn transfer(&self) -> (i64, i64, i64) {
        let from = self.account();
        let to = 1 + (from + self.below(ACCOUNTS as u64 - 1) as i64) % ACCOUNTS;
        (from, to, 1 + self.below(30) as i64)
    }

    fn request_id(&self) -> String {
        self.requests.set(self.requests.get() + 1);
        format!("{}-{}", self.number, self.requests.get())
    }

    async fn ask(&self, request: router_request::Request) -> Result<router_reply::Reply, Error> {
        ask_router(&self.simulation, request, 2_500).await
    }

    /// Sends a request with an id until it is known what came of it.
    async fn send(&self, request: router_request::Request) -> Outcome<router_reply::Reply> {
        let mut doubt = false;
        for _ in 0..ATTEMPTS {
            match self.ask(request.clone()).await {
                Ok(reply) => return Outcome::Done(reply),
                Err(error) => match error.code() {
                    ErrorCode::LockTimeout | ErrorCode::TransactionAborted if !doubt => return Outcome::Failed,
                    ErrorCode::LockTimeout | ErrorCode::TransactionAborted => return Outcome::Unknown,
                    _ if error.retryable => doubt = true,
                    _ => return if doubt { Outcome::Unknown } else { Outcome::Failed },
                },
            }
            self.simulation.sleep(Duration::from_millis(50)).await;
        }
        Outcome::Unknown
    }

    fn note(&self, began: u64, known: bool, steps: Vec<Step>) {
        let ended = known.then(|| self.simulation.now_ms());
        self.history.borrow_mut().push(Operation { began, ended, steps });
    }

    fn execute(&self, sql: String, params: Vec<i64>, session: &str) -> router_request::Request {
        router_request::Request::Execute(ExecuteRequest {
            statement: Some(statement(&sql, params)),
            request_id: self.request_id(),
            timeout_ms: 2_000,
            session: session.to_owned(),
            ..ExecuteRequest::default()
        })
    }

    async fn batch(&self) {
        let (from, to, amount) = self.transfer();
        let began = self.simulation.now_ms();
        let add = "UPDATE account SET balance = balance + ? WHERE id = ?";
        let request = router_request::Request::Batch(BatchRequest {
            statements: vec![statement(add, vec![-amount, from]), statement(add, vec![amount, to])],
            request_id: self.request_id(),
            timeout_ms: 2_000,
            ..BatchRequest::default()
        });
        let steps = vec![Step::Add(from, -amount), Step::Add(to, amount)];
        match self.send(request).await {
            Outcome::Done(_) => self.note(began, true, steps),
            // A copy of the request may be on its way still, and be carried out after this one was refused.
            Outcome::Unknown | Outcome::Failed => self.note(began, false, steps),
        }
    }

    async fn statement(&self) {
        let (from, to, amount) = self.transfer();
        let began = self.simulation.now_ms();
        let sql = "UPDATE account SET balance = balance + CASE id WHEN ?1 THEN -?3 ELSE ?3 END WHERE id IN (?1, ?2)";
        let request = self.execute(sql.to_owned(), vec![from, to, amount], "");
        let steps = vec![Step::Add(from, -amount), Step::Add(to, amount)];
        match self.send(request).await {
            Outcome::Done(_) => self.note(began, true, steps),
            // A copy of the request may be on its way still, and be carried out after this one was refused.
            Outcome::Unknown | Outcome::Failed => self.note(began, false, steps),
        }
    }

    /// Reads everything at once.
    async fn read(&self) {
        let began = self.simulation.now_ms();
        let options = QueryOptions { consistency: Consistency::Strict.into(), ..QueryOptions::default() };
        let request = router_request::Request::Execute(ExecuteRequest {
            statement: Some(statement("SELECT id, balance FROM account", Vec::new())),
            timeout_ms: 2_000,
            options: Some(options),
            ..ExecuteRequest::default()
        });
        if let Outcome::Done(reply) = self.send(request).await {
            let rows = numbers(&reply);
            assert_eq!(rows.len(), ACCOUNTS as usize, "{rows:?}");
            let steps = rows.iter().map(|row| Step::Read(row[0], Some(row[1]))).collect();
            self.note(began, true, steps);
        }
    }

    /// A transfer in a session: both balances are read, and written as numbers.
    async fn session(&self) {
        let Ok(router_reply::Reply::Session(opened)) =
            self.ask(router_request::Request::OpenSession(OpenSession {})).await
        else {
            return;
        };
        let session = opened.session;
        let (from, to, amount) = self.transfer();
        let began = self.simulation.now_ms();
        let begin = if self.below(4) == 0 { "BEGIN IMMEDIATE" } else { "BEGIN" };
        let mut steps = Vec::new();
        let run =
            async |sql: &str, params: Vec<i64>| match self.send(self.execute(sql.to_owned(), params, &session)).await {
                Outcome::Done(reply) => Some(numbers(&reply)),
                _ => None,
            };
        let Some(_) = run(begin, Vec::new()).await else { return };
        let mut left = BTreeMap::new();
        for (account, change) in [(from, -amount), (to, amount)] {
            let Some(rows) = run("SELECT balance FROM account WHERE id = ?", vec![account]).await else { return };
            let balance = rows[0][0];
            steps.push(Step::Read(account, Some(balance)));
            left.insert(account, balance + change);
        }
        if self.below(3) == 0 {
            // Something that is taken back.
            for (sql, params) in [
                ("SAVEPOINT s", Vec::new()),
                ("UPDATE account SET balance = 0 WHERE id IN (?, ?)", vec![from, to]),
                ("ROLLBACK TO s", Vec::new()),
            ] {
                let Some(_) = run(sql, params).await else { return };
            }
        }
        for (account, balance) in left {
            let Some(_) = run("UPDATE account SET balance = ?2 WHERE id = ?1", vec![account, balance]).await else {
                return;
            };
            steps.push(Step::Write(account, balance));
        }
        if self.below(6) == 0 {
            run("ROLLBACK", Vec::new()).await;
            return;
        }
        match self.send(self.execute("COMMIT".to_owned(), Vec::new(), &session)).await {
            Outcome::Done(_) => self.note(began, true, steps),
            Outcome::Unknown => self.note(began, false, steps),
            Outcome::Failed => {}
        }
    }

    async fn work(&self) {
        for _ in 0..OPERATIONS {
            match self.below(8) {
                0 | 1 => self.batch().await,
                2 => self.statement().await,
                3..6 => self.session().await,
                _ => self.read().await,
            }
            self.simulation.sleep(Duration::from_millis(self.below(200))).await;
        }
    }
}

fn statement(sql: &str, params: Vec<i64>) -> Statement {
    Statement { sql: sql.to_owned(), params: params.into_iter().map(Value::from).collect() }
}

fn numbers(reply: &router_reply::Reply) -> Vec<Vec<i64>> {
    let router_reply::Reply::Execute(response) = reply else { panic!("{reply:?}") };
    let number = |value: &Value| match value.kind {
        Some(Kind::Integer(number)) => number,
        _ => panic!("{value:?}"),
    };
    let rows: &[Row] = response.result.as_ref().map_or(&[], |result| &result.rows);
    rows.iter().map(|row| row.values.iter().map(number).collect()).collect()
}

/// One history; says what is wrong with it.
fn history(seed: u64, config: SimulationConfig) -> Result<(u64, usize), String> {
    let simulation = Simulation::new(seed, config).map_err(|error| error.to_string())?;
    simulation.register::<Shard>();
    simulation.register::<Router>();
    simulation.register::<Cdc>();
    simulation.register::<Lake>();
    let noted = RefCell::default();
    let client = |number: u64| Client {
        simulation: simulation.client(),
        number,
        random: Random::new(seed.wrapping_mul(31) + number),
        requests: Cell::new(0),
        history: &noted,
    };
    simulation.set_faults(false);
    let setup = client(CLIENTS);
    simulation.block_on(async {
        let rows: Vec<String> = (1..=ACCOUNTS).map(|id| format!("({id}, {BALANCE})")).collect();
        for sql in [
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)".to_owned(),
            format!("INSERT INTO account VALUES {}", rows.join(", ")),
        ] {
            setup.ask(setup.execute(sql, Vec::new(), "")).await.expect("no fault is on");
        }
    });
    simulation.set_faults(true);
    let done = Cell::new(false);
    let sleeper = simulation.client();
    simulation.block_on(async {
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let work = async {
            join_all(clients.iter().map(Client::work)).await;
            done.set(true);
        };
        join(work, partitions(&simulation, &sleeper, seed, &done)).await
    });
    simulation.quiesce(Duration::from_secs(20));
    simulation.block_on(setup.read());
    let before = noted.borrow().len();
    let locked = simulation.block_on(async {
        let mut locked = Vec::new();
        for shard in 0..3 {
            let name = format!("shard-{shard}");
            let request = ShardRequest {
                request: Some(shard_request::Request::Status(ShardStatusRequest {})),
                ..Default::default()
            };
            let call = Call::system().within(sleeper.now_ms(), 5_000);
            let reply = sleeper.ask::<ShardProtocol>(&name, request, &call).await;
            match reply.map(|reply| reply.reply) {
                Ok(Some(shard_reply::Reply::Status(status))) if status.transaction.is_empty() => {}
                other => locked.push(format!("{name}: {other:?}")),
            }
        }
        locked
    });
    if !locked.is_empty() {
        return Err(format!("a lock was never given up: {locked:?}"));
    }
    let operations = noted.into_inner();
    for operation in &operations {
        let reads: Vec<i64> = operation
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Read(_, balance) => *balance,
                _ => None,
            })
            .collect();
        let total: i64 = reads.iter().sum();
        if reads.len() == ACCOUNTS as usize && total != ACCOUNTS * BALANCE {
            return Err(format!("a strict read saw {total} in all: {operation:?}"));
        }
    }
    let initial = (1..=ACCOUNTS).map(|id| (id, BALANCE)).collect();
    match judge(&initial, &operations, MOST_STATES) {
        Verdict::Serialisable => Ok((simulation.faults().crashes, before)),
        Verdict::Undecided => Err(format!("undecided: {operations:#?}")),
        Verdict::Violation => Err(format!("not strictly serialisable: {operations:#?}")),
    }
}

#[test]
fn transactions_are_strictly_serialisable_through_storms() {
    let seeds = seeds(200);
    let told = histories(&seeds, |seed| match history(seed, stormy(TransactionMode::TwoPhase)) {
        Err(what) if what.starts_with("undecided") => Ok(None),
        told => told.map(Some),
    });
    let count = seeds.len();
    let undecided = told.iter().filter(|told| told.is_none()).count();
    let crashes: u64 = told.iter().flatten().map(|(died, _)| died).sum();
    let operations: usize = told.iter().flatten().map(|(_, noted)| noted).sum();
    println!("{count} histories of {operations} transactions, {crashes} deaths, {undecided} undecided");
    assert!(undecided * 50 <= count, "{undecided} of {count} histories could not be judged");
    if count >= 100 {
        assert!(operations >= 6 * count, "only {operations} transactions took effect: they prove too little");
        assert!(crashes as usize >= count, "only {crashes} actors died: they prove too little");
    }
}

/// The histories can fail: without two-phase commit, some show half of a transaction.
#[test]
fn a_commit_shard_by_shard_is_noticed() {
    let outcomes: Vec<_> = (0..60).map(|seed| history(seed, stormy(TransactionMode::Multi))).collect();
    let noticed = outcomes.iter().filter(|outcome| outcome.as_ref().is_err_and(|what| !what.starts_with("undecided")));
    let noticed = noticed.count();
    assert!(noticed >= 5, "only {noticed} of 60 histories showed a violation");
}
