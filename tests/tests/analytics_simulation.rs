//! Reads answered by the lake, on a host without DataFusion: whatever is written, and however it was flushed and compacted, they find
//! what the shards find.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use dosql_actors::Settings;
use dosql_actors::cdc::Cdc;
use dosql_actors::host::simulation::{SimClient, Simulation, SimulationConfig};
use dosql_actors::runtime::AutoShard;
use dosql_actors::shard::Shard;
use dosql_lake::Lake;
use dosql_lake::scan::LakeReader;
use dosql_proto::{
    CompactionMode, Error, ErrorCode, ExecuteRequest, LakeCompact, LakeProtocol, LakeReply, LakeRequest, QueryOptions,
    ReadPreference, Row, Statement, StatementResult, Value, lake_reply, lake_request, router_reply, router_request,
};
use dosql_router::Router;
use dosql_tests::seeds::seeds;
use dosql_tests::storms::{Random, ask_router};

const PATIENCE_MS: u64 = 60_000;

fn settings() -> Settings {
    Settings {
        shard_count: 3,
        auto_shard: AutoShard::PrimaryKey,
        lake_flush_interval_ms: 3_600_000,
        lake_parquet_row_group_size: 7,
        ..Settings::default()
    }
}

/// Values of every storage class.
fn values() -> Vec<Value> {
    vec![
        Value::NULL,
        0.into(),
        1.into(),
        (-7).into(),
        ((1_i64 << 53) + 1).into(),
        i64::MAX.into(),
        i64::MIN.into(),
        0.5.into(),
        (-2.5).into(),
        1e300.into(),
        f64::INFINITY.into(),
        "".into(),
        "plain".into(),
        "12".into(),
        "2460340.5".into(),
        "2024-02-29".into(),
        "größe".into(),
        "a\0b".into(),
        Value::blob([0, 255]),
        Value::from_text_bytes(&[0xff, 0x41]),
    ]
}

const COLUMNS: [&str; 7] = ["id", "name", "price", "amount", "data", "day", "n"];

struct Twins {
    client: SimClient,
    random: Random,
    rows: i64,
}

impl Twins {
    async fn execute(&self, sql: &str, params: Vec<Value>, options: QueryOptions) -> Result<StatementResult, Error> {
        let statement = Some(Statement { sql: sql.to_owned(), params });
        let execute = ExecuteRequest { statement, options: Some(options), ..ExecuteRequest::default() };
        match ask_router(&self.client, router_request::Request::Execute(execute), PATIENCE_MS).await? {
            router_reply::Reply::Execute(response) => Ok(response.result.unwrap_or_default()),
            _ => Err(Error::internal("the router answered an Execute with something else")),
        }
    }

    async fn run(&self, sql: &str, params: Vec<Value>) {
        self.execute(sql, params, QueryOptions::default()).await.unwrap();
    }

    fn value(&self) -> Value {
        let values = values();
        values[self.random.below(values.len() as u64) as usize].clone()
    }

    async fn insert(&mut self, count: i64) {
        for _ in 0..count {
            self.rows += 1;
            let mut params = vec![self.rows.into()];
            params.extend((1..COLUMNS.len()).map(|_| self.value()));
            self.run("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", params).await;
        }
    }

    async fn change(&self, count: i64) {
        for _ in 0..count {
            let id = |random: &Random| Value::from(1 + random.below(self.rows as u64) as i64);
            let column = COLUMNS[1 + self.random.below(6) as usize];
            let params = vec![self.value(), id(&self.random)];
            self.run(&format!("UPDATE items SET {column} = ?1 WHERE id = ?2"), params).await;
            self.run("DELETE FROM items WHERE id = ?", vec![id(&self.random)]).await;
        }
    }

    fn condition(&self, params: &mut Vec<Value>) -> String {
        let mut value = || {
            params.push(self.value());
            format!("?{}", params.len())
        };
        let column = COLUMNS[self.random.below(7) as usize];
        match self.random.below(6) {
            0 => format!("{column} BETWEEN {} AND {}", value(), value()),
            1 => format!("{column} NOT IN ({}, {})", value(), value()),
            2 => format!("{column} IS NOT NULL"),
            3 => {
                let (one, other) = (self.condition(params), self.condition(params));
                format!("NOT ({one} {} {other})", ["AND", "OR"][self.random.below(2) as usize])
            }
            _ => {
                let operator = ["=", "<>", "<", "<=", ">", ">="][self.random.below(6) as usize];
                format!("{column} {operator} {}", value())
            }
        }
    }

    /// Asks the shards and the lake the same, many times.
    async fn check(&self, what: &str) {
        for _ in 0..40 {
            let mut params = Vec::new();
            let condition = self.condition(&mut params);
            let (wanted, tail) = [("*", ""), ("COUNT(*), SUM(id)", ""), ("name, COUNT(*)", " GROUP BY name")]
                [self.random.below(3) as usize];
            let sql = format!("SELECT {wanted} FROM items WHERE {condition}{tail}");
            let found = self.execute(&sql, params.clone(), analytics()).await.unwrap();
            let expected = self.execute(&sql, params.clone(), QueryOptions::default()).await.unwrap();
            assert_eq!(sorted(found.rows), sorted(expected.rows), "{what}: {sql} {params:?}");
        }
    }

    async fn compact(&self) {
        let compact =
            LakeCompact { table: "items".to_owned(), partition: String::new(), mode: CompactionMode::Full.into() };
        let call = dosql_actors::Call::system().within(self.client.now_ms(), PATIENCE_MS);
        loop {
            let request = LakeRequest { request: Some(lake_request::Request::Compact(compact.clone())) };
            let LakeReply { reply } = self.client.ask::<LakeProtocol>("default", request, &call).await.unwrap();
            match reply.unwrap() {
                lake_reply::Reply::Compacted(step) if step.compaction.is_some() => {}
                lake_reply::Reply::Compacted(_) => return,
                other => panic!("not a compaction: {other:?}"),
            }
        }
    }
}

fn analytics() -> QueryOptions {
    let mut options = QueryOptions { max_staleness_ms: 1, ..QueryOptions::default() };
    options.set_read_preference(ReadPreference::Analytics);
    options
}

fn sorted(mut rows: Vec<Row>) -> Vec<String> {
    rows.sort_by_cached_key(|row| format!("{row:?}"));
    rows.into_iter().map(|row| format!("{row:?}")).collect()
}

#[test]
fn the_lake_finds_what_the_shards_find() {
    for seed in seeds(4) {
        println!("DOSQL_SEED={seed}");
        let simulation = Simulation::new(seed, SimulationConfig::calm(settings())).unwrap();
        simulation.register::<Shard>();
        simulation.register::<Cdc>();
        simulation.register::<Router>();
        simulation.register::<Lake>();
        simulation.register::<LakeReader>();
        let mut twins = Twins { client: simulation.client(), random: Random::new(seed), rows: 0 };
        simulation.block_on(async {
            let table = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, amount NUMERIC, data BLOB, day DATE, n INT)";
            twins.run(table, Vec::new()).await;
            twins.check("no rows").await;
            twins.insert(40).await;
            twins.check("after inserts").await;
            twins.change(15).await;
            twins.insert(10).await;
            twins.check("after changes").await;
            twins.compact().await;
            twins.check("after compaction").await;
            twins.run("CREATE TABLE loose (id INTEGER PRIMARY KEY, anything)", Vec::new()).await;
            twins.run("INSERT INTO loose VALUES (1, 5)", Vec::new()).await;
            let error = twins.execute("SELECT anything FROM loose", Vec::new(), analytics()).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unsupported);
            assert!(error.message.contains("anything of loose"), "{error}");
        });
    }
}
