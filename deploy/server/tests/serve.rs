//! `dosql serve` as its clients see it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use dosql_proto::cdc_service_client::CdcServiceClient;
use dosql_proto::query_service_client::QueryServiceClient;
use dosql_proto::{
    Credit, ERROR_CODE_METADATA, Error, ErrorCode, ExecuteRequest, LoadRequest, Operation, QueryRequest, Row,
    Statement, SubscribeRequest, SubscriberMessage, Value, subscriber_message,
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

struct Server {
    process: Child,
    grpc: String,
    http: String,
}

impl Server {
    fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        let mut process = serve(data_dir, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| Some(line.unwrap().strip_prefix("dosql is ready ")?.to_owned())).unwrap();
        let (grpc, http) = ready.split_once(' ').unwrap();
        let url = |part: &str| format!("http://{}", part.split_once('=').unwrap().1);
        Self { process, grpc: url(grpc), http: url(http) }
    }

    /// Asks it to end; returns its exit code.
    fn stop(mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.process.id().to_string()).status().unwrap().success());
        self.process.wait().unwrap().code()
    }

    async fn client(&self) -> QueryServiceClient<Channel> {
        QueryServiceClient::connect(self.grpc.clone()).await.unwrap()
    }

    /// `POST path`: the status and the JSON of the answer.
    fn post(&self, path: &str, body: &[u8]) -> (u16, Json) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.post(format!("{}{path}", self.http)).send(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    fn sql(&self, sql: &str, params: Json) -> Json {
        let (status, answer) = self.post("/sql", json!({"sql": sql, "params": params}).to_string().as_bytes());
        assert_eq!(status, 200, "{sql}: {answer}");
        answer
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_dosql")).args(arguments).args(["--url", &self.grpc]).output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dosql"));
    command
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .args(arguments);
    command.env("LOG_LEVEL", "warn").env_remove("SHARD_COUNT");
    command
}

fn statement(sql: &str, params: Vec<Value>) -> Option<Statement> {
    Some(Statement { sql: sql.to_owned(), params })
}

#[test]
fn values_go_through_http_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", json!([]));
    let values =
        json!([i64::MAX, 1.0, "a\u{0}b", null, {"base64": "AP8="}, {"real": "-Infinity"}, {"text_base64": "Yf8="}]);
    for (id, value) in values.as_array().unwrap().iter().enumerate() {
        assert_eq!(server.sql("INSERT INTO t VALUES (?, ?)", json!([id, value]))["rows_affected"], 1);
    }
    let answer = server.sql("SELECT v FROM t ORDER BY id", json!([]));
    assert_eq!(answer["columns"], json!(["v"]));
    let rows: Vec<Json> = values.as_array().unwrap().iter().map(|value| json!([value])).collect();
    assert_eq!(answer["rows"], Json::Array(rows));
    // An integer and a real differ in JSON, too.
    assert!(answer["rows"][0][0].is_i64() && answer["rows"][1][0].is_f64());
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_large_result_streams() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "1"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", json!([]));
    server.sql(
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) \
         SELECT i, printf('%0100d', i) FROM n",
        json!([]),
    );
    let answer = server.sql("SELECT id, v FROM t ORDER BY id", json!([]));
    let ids: Vec<i64> = answer["rows"].as_array().unwrap().iter().map(|row| row[0].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=20_000).collect::<Vec<_>>());
    assert_eq!(answer["rows_affected"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_code_and_the_server_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2"]);
    let code = |body: &[u8]| {
        let (status, answer) = server.post("/sql", body);
        (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let huge = format!("SELECT '{}'", "x".repeat(100 << 20));
    for (body, expected) in [
        (json!({"sql": "SELEC 1"}).to_string(), (400, "SYNTAX_ERROR")),
        (json!({"sql": "SELECT * FROM nowhere"}).to_string(), (404, "UNKNOWN_TABLE")),
        (json!({"sql": "SELECT ?, ?", "params": [1]}).to_string(), (400, "PARAMETER_COUNT")),
        (json!({"sql": huge}).to_string(), (413, "TOO_LARGE")),
        ("{".to_owned(), (400, "INVALID_REQUEST")),
    ] {
        assert_eq!(code(body.as_bytes()), (expected.0, expected.1.to_owned()));
    }
    assert_eq!(server.post("/nowhere", b"").1["error"]["code"], "NOT_FOUND");
    assert_eq!(server.post("/health", b"").0, 405);

    let mut client = server.client().await;
    let request = |sql: &str| ExecuteRequest { statement: statement(sql, vec![]), ..ExecuteRequest::default() };
    let status = client.execute(request("SELECT * FROM nowhere")).await.unwrap_err();
    assert_eq!(status.metadata().get(ERROR_CODE_METADATA).unwrap(), "UNKNOWN_TABLE");
    assert_eq!(Error::from(&status).code(), ErrorCode::UnknownTable);
    let status = client.execute(request(&huge)).await.unwrap_err();
    assert_eq!(Error::from(&status).code(), ErrorCode::TooLarge, "{status}");
    assert_eq!(server.sql("SELECT 1 + 1", json!([]))["rows"], json!([[2]]));
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_answered_at_both_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2", "--auto-shard", "primary-key"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    for (index, url) in [&server.grpc, &server.http].into_iter().enumerate() {
        let mut client = QueryServiceClient::connect(url.clone()).await.unwrap();
        let first = i64::try_from(index).unwrap() * 1000;
        let requests: Vec<LoadRequest> = (0..5)
            .map(|batch| LoadRequest {
                table: "t".to_owned(),
                columns: vec!["id".to_owned(), "v".to_owned()],
                rows: (0..100)
                    .map(|row| Row { values: vec![Value::from(first + batch * 100 + row), Value::from("text")] })
                    .collect(),
                request_id: format!("{index}-{batch}"),
                ..LoadRequest::default()
            })
            .collect();
        let expected: Vec<_> = requests.iter().map(|request| (request.request_id.clone(), 100)).collect();
        let answers = client.load(futures_util::stream::iter(requests)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
        let acknowledged: Vec<_> = answers.into_iter().map(|answer| (answer.request_id, answer.rows_loaded)).collect();
        assert_eq!(acknowledged, expected);

        let query = QueryRequest {
            statement: statement("SELECT id FROM t WHERE id >= ? ORDER BY id", vec![Value::from(first)]),
            max_batch_bytes: 500,
            ..QueryRequest::default()
        };
        let batches: Vec<_> = client.query(query).await.unwrap().into_inner().map(Result::unwrap).collect().await;
        assert!(batches.len() > 2 && batches[0].columns.len() == 1 && batches[1].columns.is_empty());
        let ids: Vec<Value> = batches.into_iter().flat_map(|batch| batch.rows).flat_map(|row| row.values).collect();
        assert_eq!(ids, (first..first + 500).map(Value::from).collect::<Vec<_>>());
    }
}

#[test]
fn options_of_a_request_are_heeded() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2", "--auto-shard", "primary-key"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    let ask = |body: Json| server.post("/sql", body.to_string().as_bytes());
    let insert = json!({"sql": "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')", "requestId": "once"});
    for _ in 0..2 {
        assert_eq!(ask(insert.clone()).1["rows_affected"], 3);
    }

    let (_, answer) = ask(json!({"sql": "SELECT v FROM t ORDER BY id", "options": {"explain": true, "profile": true}}));
    assert_eq!(answer["rows"], json!([["a"], ["b"], ["c"]]));
    assert_eq!(answer["queryPlan"]["route"], "scatter");
    assert!(
        answer["queryPlan"]["text"].as_str().unwrap().starts_with("merge the sorted rows of each shard"),
        "{answer}"
    );
    let stats = &answer["stats"];
    assert_eq!((&stats["rows"], stats["steps"].as_array().unwrap().len()), (&json!(3), 2), "{answer}");
    assert!(stats["elapsedMs"].as_f64().unwrap() > 0.0 && stats["planningMs"].as_f64().unwrap() > 0.0, "{answer}");
    let (_, plain) = ask(json!({"sql": "SELECT 1"}));
    assert!(plain.get("queryPlan").is_none() && plain.get("stats").is_none(), "{plain}");

    let (status, refused) = ask(json!({"sql": "SELECT * FROM t", "maxRows": 2}));
    assert_eq!((status, &refused["error"]["code"]), (413, &json!("TOO_LARGE")), "{refused}");
    assert_eq!(ask(json!({"sql": "SELECT * FROM t LIMIT 2", "maxRows": 2})).0, 200);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let (status, late) = ask(json!({"sql": endless, "options": {"timeout": 200}}));
    assert_eq!((status, &late["error"]["code"]), (504, &json!("DEADLINE_EXCEEDED")), "{late}");
    let (_, wrong) = ask(json!({"sql": "SELECT 1", "options": {"profil": true}}));
    assert_eq!(wrong["error"]["code"], "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_arrive_and_resume() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    let subscribe = |from: String| {
        let url = format!("{}/cdc?tables=t&from={from}", server.http.replace("http://", "ws://"));
        tokio_tungstenite::connect_async(url)
    };
    let (mut socket, _) = subscribe("latest".to_owned()).await.unwrap();
    for id in 1..=2 {
        server.sql("INSERT INTO t VALUES (?, 'x')", json!([id]));
    }
    let mut frames: Vec<Json> = Vec::new();
    while frames.len() < 2 {
        let message = socket.next().await.unwrap().unwrap();
        if message.is_text() {
            frames.push(serde_json::from_str(message.to_text().unwrap()).unwrap());
        }
    }
    let change = |id: i64| json!([{"table": "t", "op": "insert", "key": {"id": id}, "before": null, "after": {"id": id, "v": "x"}}]);
    assert_eq!((&frames[0]["changes"], &frames[1]["changes"]), (&change(1), &change(2)));

    let (mut again, _) = subscribe(frames[0]["position"].as_str().unwrap().to_owned()).await.unwrap();
    let message = again.next().await.unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Json>(message.to_text().unwrap()).unwrap(), frames[1]);

    let mut cdc = CdcServiceClient::connect(server.grpc.clone()).await.unwrap();
    let request = SubscribeRequest { from: "earliest".to_owned(), ..SubscribeRequest::default() };
    let batch = cdc.subscribe(request).await.unwrap().into_inner().next().await.unwrap().unwrap();
    assert!(!batch.shards[0].records[0].schema_changes.is_empty());

    let refused = subscribe("shard-0:999".to_owned()).await.unwrap_err();
    let tokio_tungstenite::tungstenite::Error::Http(answer) = refused else { panic!("{refused}") };
    let body: Json = serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap();
    assert_eq!((answer.status().as_u16(), &body["error"]["code"]), (400, &json!("UNKNOWN_POSITION")));
    // Open subscriptions do not hold up the end.
    assert_eq!(server.stop(), Some(0));
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn subscribe(server: &Server, parameters: &str) -> Socket {
    let url = format!("{}/cdc?{parameters}", server.http.replace("http://", "ws://"));
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

/// The next frame; `None` where none comes in time.
async fn frame(socket: &mut Socket, patience: Duration) -> Option<Json> {
    let message = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            if message.is_text() {
                return serde_json::from_str(message.to_text().unwrap()).unwrap();
            }
        }
    };
    tokio::time::timeout(patience, message).await.ok()
}

async fn say(socket: &mut Socket, message: Json) {
    socket.send(tokio_tungstenite::tungstenite::Message::text(message.to_string())).await.unwrap();
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_subscriber_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "1"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    // One that has no credit, one that does not read what it is sent, and one that does.
    let mut stuck = subscribe(&server, "tables=t&credit_messages=0&heartbeat_ms=50").await;
    let _deaf = subscribe(&server, "tables=t").await;
    let mut fast = subscribe(&server, "tables=t").await;
    for id in 1..=200 {
        server.sql("INSERT INTO t VALUES (?, ?)", json!([id, "x".repeat(20_000)]));
    }
    let id = |frame: &Json| frame["changes"][0]["after"]["id"].as_i64();
    for expected in 1..=200 {
        assert_eq!(id(&frame(&mut fast, LONG).await.unwrap()), Some(expected));
    }
    assert_eq!(frame(&mut stuck, SHORT).await, None);
    say(&mut stuck, json!({"credit": {"messages": 2}})).await;
    for expected in 1..=2 {
        assert_eq!(id(&frame(&mut stuck, LONG).await.unwrap()), Some(expected));
    }
    assert_eq!(frame(&mut stuck, SHORT).await, None);
    // Bytes count as soon as some were granted.
    say(&mut stuck, json!({"credit": {"messages": 1_000, "bytes": 30_000}})).await;
    for expected in 3..=4 {
        assert_eq!(id(&frame(&mut stuck, LONG).await.unwrap()), Some(expected));
    }
    assert_eq!(frame(&mut stuck, SHORT).await, None);
    say(&mut stuck, json!({"credit": {"bytes": 1_000_000_000}})).await;
    for expected in 5..=200 {
        assert_eq!(id(&frame(&mut stuck, LONG).await.unwrap()), Some(expected));
    }
    let heartbeat = frame(&mut stuck, LONG).await.unwrap();
    assert_eq!((&heartbeat["heartbeat"], &heartbeat["position"]), (&json!(true), &json!("shard-0:201")));
    say(&mut stuck, json!({"credits": 1})).await;
    let refused = loop {
        let frame = frame(&mut stuck, LONG).await.unwrap();
        if frame["heartbeat"].is_null() {
            break frame;
        }
    };
    assert_eq!(refused["error"]["code"], "INVALID_REQUEST");
    assert_eq!(server.stop(), Some(0));
}

/// Subscribers who share questions and frames, in step or not, with some who cannot.
#[tokio::test(flavor = "multi_thread")]
async fn everyone_in_an_audience_sees_everything_once() {
    const ROWS: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2", "--auto-shard", "first-column"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    let mut audience = Vec::new();
    for place in 0..120 {
        let others = match place % 10 {
            7 => "&format=debezium",
            8 => "&filter=id%3E0",
            _ => "",
        };
        audience.push(subscribe(&server, &format!("tables=t{others}")).await);
    }
    let readers: Vec<_> = (0..)
        .zip(audience)
        .map(|(place, mut socket)| {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < ROWS {
                    if place % 20 == 0 && seen.len() % 50 == 0 {
                        tokio::time::sleep(Duration::from_millis(30)).await;
                    }
                    let frame = frame(&mut socket, LONG).await.unwrap();
                    seen.extend(frame["changes"][0]["after"]["id"].as_i64().or(frame["after"]["id"].as_i64()));
                }
                let extra = frame(&mut socket, SHORT).await.filter(|frame| !frame["changes"].is_null());
                assert_eq!(extra, None);
                seen.sort_unstable();
                seen
            })
        })
        .collect();
    for id in 1..=ROWS {
        server.sql("INSERT INTO t VALUES (?, 'x')", json!([id]));
    }
    let everything: Vec<i64> = (1..=ROWS as i64).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), everything);
    }
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_subscriptions_snapshots_and_formats() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "2"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", json!([]));
    server.sql("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')", json!([]));
    let mut first = subscribe(&server, "name=n&tables=t&snapshot=true&filter=id%3C%3E2&format=debezium").await;
    let mut copied = Vec::new();
    while copied.len() < 2 {
        let frame = frame(&mut first, LONG).await.unwrap();
        assert_eq!((&frame["op"], &frame["source"]["snapshot"]), (&json!("r"), &json!("incremental")), "{frame}");
        copied.push(frame);
    }
    assert_eq!((&copied[0]["after"]["v"], &copied[1]["after"]["v"]), (&json!("one"), &json!("three")));
    server.sql("UPDATE t SET v = 'three!' WHERE id = 3", json!([]));
    let mut change = Vec::new();
    while change.len() < 3 {
        change.push(frame(&mut first, LONG).await.unwrap());
    }
    assert_eq!(
        (&change[0]["status"], &change[1]["op"], &change[2]["status"]),
        (&json!("BEGIN"), &json!("u"), &json!("END"))
    );
    let position = change[2]["position"].as_str().unwrap().to_owned();
    say(&mut first, json!({"ack": position})).await;
    let listed = async || {
        let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
        let text = agent.get(format!("{}/cdc/subscriptions", server.http)).call().unwrap().body_mut().read_to_string();
        serde_json::from_str::<Json>(&text.unwrap()).unwrap()["subscriptions"].clone()
    };
    for _ in 0..200 {
        if listed().await[0]["position"] == json!(position) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((&listed().await[0]["position"], &listed().await[0]["filter"]), (&json!(position), &json!("id<>2")));
    drop(first);

    // It goes on from there, over gRPC and with credit.
    server.sql("DELETE FROM t WHERE id = 1", json!([]));
    let mut cdc = CdcServiceClient::connect(server.grpc.clone()).await.unwrap();
    let (messages, said) = tokio::sync::mpsc::channel(4);
    let say = |message| SubscriberMessage { message: Some(message) };
    let name = SubscribeRequest { name: "n".to_owned(), ..SubscribeRequest::default() };
    messages.send(say(subscriber_message::Message::Subscribe(name))).await.unwrap();
    let mut batches = cdc.follow(tokio_stream::wrappers::ReceiverStream::new(said)).await.unwrap().into_inner();
    assert!(tokio::time::timeout(SHORT, batches.next()).await.is_err());
    let credit = Credit { messages: 1, bytes: 0 };
    messages.send(say(subscriber_message::Message::Credit(credit))).await.unwrap();
    let batch = batches.next().await.unwrap().unwrap();
    assert_eq!(batch.shards[0].records[0].changes[0].operation(), Operation::Delete);
    drop(messages);
    assert!(batches.next().await.is_none());

    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let remove = || agent.delete(format!("{}/cdc/subscriptions/n", server.http)).call().unwrap().status().as_u16();
    assert_eq!((remove(), remove()), (200, 404));
    let (status, _) = server.post("/cdc/subscriptions/n/ack", br#"{"ack": "shard-0:1"}"#);
    assert_eq!(status, 404);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn data_and_the_number_of_shards_outlive_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--shards", "3"]);
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY)", json!([]));
    server.sql("INSERT INTO t VALUES (7)", json!([]));
    let second = serve(directory.path(), &[]).output().unwrap();
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("in use by another process"));
    assert_eq!(server.stop(), Some(0));

    let other = serve(directory.path(), &["--shards", "4"]).output().unwrap();
    let message = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && message.contains("over 3 shards"), "{message}");
    let server = Server::start(directory.path(), &[]);
    assert_eq!(server.sql("SELECT id FROM t", json!([]))["rows"], json!([[7]]));
}

#[test]
fn a_file_is_imported_over_the_shards() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("data"), &["--shards", "4"]);
    let file = directory.path().join("rows.csv");
    let rows: String = (0..10_000).map(|id| format!("{id},{},NA\n", f64::from(id) / 4.0)).collect();
    std::fs::write(&file, format!("id,quarter,nothing\n{rows}")).unwrap();
    let file = file.to_str().unwrap();
    let done = server.run(&["import", file, "--table", "t", "--shard-by", "id", "--null", "NA"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(
        server.sql("SELECT COUNT(*), SUM(id), SUM(quarter), COUNT(\"nothing\") FROM t", json!([]))["rows"],
        json!([[10_000, 49_995_000, 12_498_750.0, 0]])
    );
    let shards = server.sql("EXPLAIN SELECT * FROM t", json!([]))["rows"].to_string();
    assert!(shards.contains("shard-3"), "{shards}");

    let refused = server.run(&["import", file, "--table", "t", "--shard-by", "quarter"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("sharded by id"));
    std::fs::write(directory.path().join("bad.csv"), "id,other\n1,2\n").unwrap();
    let bad = server.run(&["import", directory.path().join("bad.csv").to_str().unwrap(), "--table", "t"]);
    let message = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        !bad.status.success() && message.contains("lines 2 to 2") && message.contains("UNKNOWN_COLUMN"),
        "{message}"
    );
}
