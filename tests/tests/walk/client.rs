//! The client: it writes rows of one table in every way, and remembers of each what it knows.

use std::time::Duration;

use dosql_actors::host::simulation::SimClient;
use dosql_proto::{Error, ExecuteRequest, LoadRequest, Row, Statement, Value, router_reply, router_request};
use dosql_tests::storms::{Random, ask_router};

use super::{Failure, Histories, History, PATIENCE_MS, Step, stopped};

/// How often a write is sent before the client gives up, not knowing whether it happened.
const ATTEMPTS: u32 = 4;

/// A write as the client sends it.
struct Write {
    request: Request,
    /// The rows it touches; all are on their way to the same fate on one shard, and to different ones on different shards.
    steps: Vec<(i64, Step)>,
}

enum Request {
    Execute(String, Vec<Value>),
    Load(Vec<Row>),
}

pub(crate) struct Client {
    pub(crate) simulation: SimClient,
    /// Draws what is written; not the faults.
    random: Random,
    pub(crate) histories: Histories,
    /// How many writes it makes, beside the schema changes.
    writes: u64,
}

impl Client {
    pub(crate) fn new(simulation: SimClient, seed: u64, writes: u64) -> Self {
        Self { simulation, random: Random::new(seed), histories: Histories::new(), writes }
    }

    fn below(&self, end: u64) -> u64 {
        self.random.below(end)
    }

    async fn send(&self, request: &Request, id: &str) -> Result<u64, Error> {
        let request_id = id.to_owned();
        let request = match request {
            Request::Execute(sql, params) => router_request::Request::Execute(ExecuteRequest {
                statement: Some(Statement { sql: sql.clone(), params: params.clone() }),
                request_id,
                timeout_ms: 5_000,
                ..ExecuteRequest::default()
            }),
            Request::Load(rows) => router_request::Request::Load(LoadRequest {
                table: "t".to_owned(),
                columns: vec!["id".to_owned(), "v".to_owned()],
                rows: rows.clone(),
                request_id,
                ..LoadRequest::default()
            }),
        };
        match ask_router(&self.simulation, request, PATIENCE_MS).await? {
            router_reply::Reply::Execute(response) => Ok(response.result.unwrap_or_default().rows_affected),
            router_reply::Reply::Load(response) => Ok(response.rows_loaded),
            other => Err(Error::internal(format!("not the answer to a write: {other:?}"))),
        }
    }

    /// Changes the schema, however often that takes, or is told why not.
    async fn change_schema(&self, sql: &str) -> Result<Result<(), Error>, Failure> {
        let request = Request::Execute(sql.to_owned(), Vec::new());
        let mut last = None;
        for _ in 0..200 {
            match self.send(&request, sql).await {
                Err(error) if error.retryable => {
                    last = Some(error);
                    self.simulation.sleep(Duration::from_millis(200)).await;
                }
                definite => return Ok(definite.map(|_| ())),
            }
        }
        Err(Failure::Stopped(format!("{sql}: 200 attempts failed, the last with {last:?}")))
    }

    /// Changes the schema in a way that shards without rows allow and those with rows refuse. What some have done is to be
    /// undone: later writes fail where it is not.
    async fn change_schema_in_vain(&self) -> Result<(), Failure> {
        let sql = "ALTER TABLE t ADD COLUMN x INTEGER NOT NULL";
        match self.change_schema(sql).await? {
            Err(error) if error.message.contains("NOT NULL") => Ok(()),
            other => Err(Failure::Wrong(format!("{sql}, where there are rows: {other:?}"))),
        }
    }

    /// Rows that exist and whose fate is known.
    fn settled(&mut self, most: u64) -> Vec<i64> {
        let known = self.histories.iter().filter(|(_, history)| history.open.is_none() && history.exists());
        let mut ids: Vec<i64> = known.map(|(id, _)| *id).collect();
        let wanted = 1 + self.below(most);
        while ids.len() as u64 > wanted {
            let out = self.below(ids.len() as u64);
            ids.remove(usize::try_from(out).unwrap_or(0));
        }
        ids
    }

    fn next_write(&mut self, number: u64) -> Write {
        let next_id = self.histories.len() as i64 + 1;
        let list = |ids: &[i64]| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        match self.below(8) {
            0 | 1 => {
                let most = 5;
                let ids = self.settled(most);
                if !ids.is_empty() {
                    let text = format!("+{number}");
                    let sql = format!("UPDATE t SET v = v || ? WHERE id IN ({})", list(&ids));
                    return Write {
                        request: Request::Execute(sql, vec![Value::from(text.clone())]),
                        steps: ids.into_iter().map(|id| (id, Step::Append(text.clone()))).collect(),
                    };
                }
            }
            2 => {
                let ids = self.settled(3);
                if !ids.is_empty() {
                    let sql = format!("DELETE FROM t WHERE id IN ({})", list(&ids));
                    let steps = ids.into_iter().map(|id| (id, Step::Delete)).collect();
                    return Write { request: Request::Execute(sql, Vec::new()), steps };
                }
            }
            3 => {
                let count = 2 + self.below(6) as i64;
                let steps: Vec<(i64, Step)> =
                    (next_id..next_id + count).map(|id| (id, Step::Insert(format!("load {number}")))).collect();
                let rows = steps
                    .iter()
                    .map(|(id, _)| Row { values: vec![Value::from(*id), Value::from(format!("load {number}"))] });
                return Write { request: Request::Load(rows.collect()), steps };
            }
            4 => {
                // A row that was deleted comes back.
                let gone =
                    |history: &History| history.open.is_none() && history.acknowledged.last() == Some(&Step::Delete);
                let id = self.histories.iter().find(|(_, history)| gone(history)).map(|(id, _)| *id);
                if let Some(id) = id {
                    return insert(id, number);
                }
            }
            _ => {}
        }
        insert(next_id, number)
    }

    /// Writes through a storm.
    pub(crate) async fn write(&mut self) -> Result<(), Failure> {
        // Plain, so that one that was carried out and sent again is refused unless it is recognised.
        let create = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)";
        self.change_schema(create).await?.map_err(stopped(create))?;
        let mut in_vain = false;
        for number in 0..self.writes {
            if !in_vain && !self.settled(1).is_empty() {
                in_vain = true;
                self.change_schema_in_vain().await?;
            }
            if number == self.writes / 2 {
                let alter = "ALTER TABLE t ADD COLUMN w INTEGER";
                self.change_schema(alter).await?.map_err(stopped(alter))?;
            }
            let write = self.next_write(number);
            let mut acknowledged = false;
            for _ in 0..ATTEMPTS {
                match self.send(&write.request, &format!("write-{number}")).await {
                    Ok(rows) if rows == write.steps.len() as u64 => {
                        acknowledged = true;
                        break;
                    }
                    Ok(rows) => {
                        return Err(Failure::Wrong(format!("{rows} rows were affected by {:?}", write.steps)));
                    }
                    Err(error) if !error.retryable => return Err(stopped(&format!("write {number}"))(error)),
                    Err(_) => self.simulation.sleep(Duration::from_millis(100)).await,
                }
            }
            for (id, step) in write.steps {
                let history = self.histories.entry(id).or_default();
                match acknowledged {
                    true => history.acknowledged.push(step),
                    false => history.open = Some(step),
                }
            }
        }
        Ok(())
    }
}

fn insert(id: i64, number: u64) -> Write {
    let text = format!("row {number}");
    Write {
        request: Request::Execute(
            "INSERT INTO t (id, v) VALUES (?, ?)".to_owned(),
            vec![Value::from(id), Value::from(text.clone())],
        ),
        steps: vec![(id, Step::Insert(text))],
    }
}
