//! The Worker's entry point: the interface of `dosql serve` over HTTP and WebSocket, on Durable Objects.

use dosql_actors::{Call, Settings};
use dosql_proto::json::{
    ErrorBody, ResultWriter, http_status, promoted_document, query_from_json, status_document, topology_document,
    value_from_json,
};
use dosql_proto::{
    CdcProtocol, CdcRequest, CdcStatusRequest, CloseSession, Error, ErrorCode, FetchRequest, LoadRequest, OpenSession,
    Promote, QueryRequest, RouterProtocol, RouterRequest, Row, RowBatch, ShardsHealthRequest, cdc_reply, cdc_request,
    router_reply, router_request,
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::value::RawValue;
use worker::{Context, Env, Method, Request, Response};

use crate::host::variable;
use crate::reach::Reach;
use crate::{conformance, subscriptions};

/// The name of the one router, change stream and lake writer there is.
pub(crate) const DEFAULT: &str = "default";

/// The largest body a request may have, in bytes. It is copied a few times on its way, within an isolate's 128 MB.
const LARGEST_BODY: usize = 16 << 20;
/// The longest that a client may have a statement take, in milliseconds.
const LONGEST_TIMEOUT_MS: u64 = 3_600_000;

/// What answering a request takes.
pub(crate) struct Entry {
    pub(crate) reach: Reach,
    pub(crate) env: Env,
    pub(crate) settings: Settings,
}

/// Answers one request.
pub(crate) async fn fetch(request: Request, env: Env, _context: Context) -> worker::Result<Response> {
    let entry = match Entry::new(env) {
        Ok(entry) => entry,
        Err(error) => return refuse(&error),
    };
    let path = request.path();
    let answer = match (request.method(), path.as_str()) {
        (Method::Get, "/health") => json(br#"{"status":"ok"}"#.to_vec()),
        (Method::Post, "/sql") => entry.sql(request).await,
        (Method::Post, "/session") => entry.open_session().await,
        (Method::Delete, "/session") => entry.close_session(&request).await,
        (Method::Post, "/load") => entry.load(request).await,
        (Method::Post, "/flush") => entry.flush().await,
        (Method::Get, "/status") => entry.status().await,
        (Method::Post, "/admin/compact") => entry.compact(request).await,
        (Method::Post, "/admin/cleanup") => entry.clean_up(request).await,
        (Method::Get, "/admin/lake/options") => entry.lake_options(&request).await,
        (Method::Post, "/admin/lake/options") => entry.configure_lake(request).await,
        (Method::Get, "/admin/shards/health") => entry.shards_health().await,
        (Method::Get, "/cdc") => entry.subscribe(request).await,
        (Method::Get, "/cdc/subscriptions") => entry.subscriptions().await,
        (method, path) => match (method, promoted_shard(path), subscriptions::named(path)) {
            (Method::Post, Some(shard), _) => entry.promote(shard, &request).await,
            (Method::Delete, _, Some((name, ""))) => entry.drop_subscription(name).await,
            (Method::Post, _, Some((name, "ack"))) => entry.acknowledge(name, request).await,
            (_, shard, named) if shard.is_some() || named.is_some() || PATHS.contains(&path) => {
                let error = Error::invalid("this path does not take this method");
                return Ok(refuse(&error)?.with_status(405));
            }
            (method, ..) if conformance::enabled(&entry.env) => conformance::fetch(&entry, method, path, request).await,
            _ => Err(Error::new(ErrorCode::NotFound, format!("there is no {path}"))),
        },
    };
    answer.or_else(|error| refuse(&error))
}

/// The paths that something is at.
const PATHS: [&str; 12] = [
    "/health",
    "/sql",
    "/session",
    "/load",
    "/flush",
    "/status",
    "/admin/compact",
    "/admin/cleanup",
    "/admin/lake/options",
    "/admin/shards/health",
    "/cdc",
    "/cdc/subscriptions",
];

impl Entry {
    fn new(env: Env) -> Result<Self, Error> {
        crate::log::start(&env);
        let settings =
            Settings::from_variables(|name| variable(&env, name)).map_err(|error| Error::invalid(error.to_string()))?;
        let reach = Reach::new(&env).map_err(platform)?;
        Ok(Self { reach, env, settings })
    }

    /// A client's call that may take `timeout_ms`.
    pub(crate) fn call(&self, timeout_ms: u64) -> Result<Call, Error> {
        let mut trace = [0; 16];
        getrandom::fill(&mut trace).map_err(|error| Error::internal(format!("no randomness: {error}")))?;
        let now_ms = js_sys::Date::now() as u64;
        let trace_id = trace.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Call { deadline_ms: now_ms + timeout_ms, trace_id, ..Call::system() })
    }

    async fn router(&self, request: router_request::Request, call: &Call) -> Result<router_reply::Reply, Error> {
        let request = RouterRequest { request: Some(request) };
        let reply = self.reach.ask::<RouterProtocol>(DEFAULT, request, call).await?;
        reply.reply.ok_or_else(|| Error::internal("the router answered nothing"))
    }

    async fn rows(&self, request: router_request::Request, call: &Call) -> Result<RowBatch, Error> {
        match self.router(request, call).await? {
            router_reply::Reply::Rows(batch) => Ok(batch),
            _ => Err(Error::internal("the router answered something else than rows")),
        }
    }

    /// The next batch of an open result.
    async fn fetch(&self, cursor: u64, timeout_ms: u64) -> Result<RowBatch, Error> {
        let call = self.call(timeout_ms)?;
        self.rows(router_request::Request::Fetch(FetchRequest { cursor }), &call).await
    }

    pub(crate) async fn cdc(&self, request: cdc_request::Request, call: &Call) -> Result<cdc_reply::Reply, Error> {
        let request = CdcRequest { request: Some(request) };
        let reply = self.reach.ask::<CdcProtocol>(DEFAULT, request, call).await?;
        reply.reply.ok_or_else(|| Error::internal("the change stream answered nothing"))
    }

    /// `POST /sql`: the answer is written while further batches are fetched, so that no result has to fit memory.
    async fn sql(self, request: Request) -> Result<Response, Error> {
        let session = session_of(&request)?;
        let query = QueryRequest { session, ..query_from_json(&body(request).await?)? };
        let timeout_ms = match query.timeout_ms {
            0 => self.settings.query_timeout_ms,
            timeout_ms => timeout_ms.min(LONGEST_TIMEOUT_MS),
        };
        let call = self.call(timeout_ms)?;
        let batch = self.rows(router_request::Request::Query(query), &call).await?;

        let mut writer = ResultWriter::new();
        let mut out = Vec::new();
        writer.columns(&batch.columns, &mut out);
        writer.rows(&batch.rows, &mut out);
        if batch.cursor == 0 {
            writer.finish(&batch, &mut out);
            return json(out);
        }
        let rest = stream::unfold(Some((self, writer, batch.cursor)), move |open| async move {
            let (entry, mut writer, cursor) = open?;
            let mut out = Vec::new();
            let next = match entry.fetch(cursor, timeout_ms).await {
                Ok(batch) => {
                    writer.rows(&batch.rows, &mut out);
                    if batch.cursor == 0 {
                        writer.finish(&batch, &mut out);
                        None
                    } else {
                        Some((entry, writer, batch.cursor))
                    }
                }
                Err(error) => {
                    writer.fail(&error, &mut out);
                    None
                }
            };
            Some((Ok::<_, worker::Error>(out), next))
        });
        let first = stream::once(async move { Ok(out) });
        as_json(Response::from_stream(futures_util::StreamExt::chain(first, rest)).map_err(platform)?)
    }

    /// `POST /session`: opens a session, which requests name in the header `dosql-session`.
    async fn open_session(&self) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        match self.router(router_request::Request::OpenSession(OpenSession {}), &call).await? {
            router_reply::Reply::Session(opened) => json(
                serde_json::json!({"session": opened.session, "idleTimeoutMs": opened.idle_timeout_ms})
                    .to_string()
                    .into(),
            ),
            _ => Err(Error::internal("the router answered something else than a session")),
        }
    }

    /// `DELETE /session`: closes it; what is open in it is rolled back.
    async fn close_session(&self, request: &Request) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        let close = CloseSession { session: session_of(request)? };
        self.router(router_request::Request::CloseSession(close), &call).await?;
        json(b"{}".to_vec())
    }

    /// `POST /load`: rows in bulk, `{"table": "...", "columns": [...], "rows": [[...]], "request_id": "..."}`.
    async fn load(&self, request: Request) -> Result<Response, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Load {
            table: String,
            columns: Vec<String>,
            rows: Vec<Vec<Box<RawValue>>>,
            #[serde(default)]
            request_id: String,
        }
        let load: Load = serde_json::from_slice(&body(request).await?)
            .map_err(|error| Error::invalid(format!("expected a table, its columns and rows: {error}")))?;
        let rows = load
            .rows
            .into_iter()
            .map(|row| Ok(Row { values: row.iter().map(|value| value_from_json(value)).collect::<Result<_, _>>()? }))
            .collect::<Result<_, Error>>()?;
        let call = self.call(self.settings.query_timeout_ms)?;
        let request_id = if load.request_id.is_empty() { call.trace_id.clone() } else { load.request_id };
        let request =
            LoadRequest { table: load.table, columns: load.columns, rows, request_id, ..LoadRequest::default() };
        match self.router(router_request::Request::Load(request), &call).await? {
            router_reply::Reply::Load(loaded) => json(
                serde_json::json!({"request_id": loaded.request_id, "rows_loaded": loaded.rows_loaded})
                    .to_string()
                    .into(),
            ),
            _ => Err(Error::internal("the router answered something else than a load")),
        }
    }

    /// `GET /admin/shards/health`: the members of the shards, and how far they are.
    async fn shards_health(&self) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        match self.router(router_request::Request::Health(ShardsHealthRequest {}), &call).await? {
            router_reply::Reply::Topology(topology) => json(topology_document(&topology).to_string().into()),
            _ => Err(Error::internal("the router answered something else than the topology")),
        }
    }

    /// `POST /admin/shards/SHARD/promote?member=NAME`: makes another member the primary.
    async fn promote(&self, shard: &str, request: &Request) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        let [member] = parameters(request, ["member"])?;
        let promote = Promote { shard: shard.to_owned(), member };
        match self.router(router_request::Request::Promote(promote), &call).await? {
            router_reply::Reply::Promoted(promoted) => json(promoted_document(&promoted).to_string().into()),
            _ => Err(Error::internal("the router answered something else than a promotion")),
        }
    }

    /// `GET /status`: where the change stream and the lake stand.
    async fn status(&self) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        let cdc = match self.cdc(cdc_request::Request::Status(CdcStatusRequest {}), &call).await? {
            cdc_reply::Reply::Status(status) => status,
            _ => return Err(Error::internal("the change stream answered something else than its status")),
        };
        json(status_document(&cdc, &self.lake_status().await?).to_string().into())
    }
}

/// The values of the only parameters that a request may have; "" for one that it has not.
pub(crate) fn parameters<const N: usize>(request: &Request, names: [&str; N]) -> Result<[String; N], Error> {
    let url = request.url().map_err(platform)?;
    let mut values = [const { String::new() }; N];
    for (name, value) in url.query_pairs() {
        let known = names.iter().position(|known| *known == name);
        let at = known.ok_or_else(|| Error::invalid(format!("unknown parameter {name}")))?;
        values[at] = value.into_owned();
    }
    Ok(values)
}

/// The session that a request names; "" where it names none.
fn session_of(request: &Request) -> Result<String, Error> {
    Ok(request.headers().get("dosql-session").map_err(platform)?.unwrap_or_default())
}

/// The shard of `/admin/shards/SHARD/promote`.
fn promoted_shard(path: &str) -> Option<&str> {
    path.strip_prefix("/admin/shards/")?.strip_suffix("/promote")
}

/// A request's body, within the limit.
pub(crate) async fn body(mut request: Request) -> Result<Vec<u8>, Error> {
    let too_large = |bytes: usize| {
        let message = format!("the request has {bytes} bytes; at most {LARGEST_BODY} are taken");
        Err(Error::new(ErrorCode::TooLarge, message))
    };
    let announced = request.headers().get("content-length").ok().flatten().and_then(|text| text.parse().ok());
    match announced {
        Some(bytes) if bytes > LARGEST_BODY => return too_large(bytes),
        _ => {}
    }
    let bytes = request.bytes().await.map_err(platform)?;
    if bytes.len() > LARGEST_BODY { too_large(bytes.len()) } else { Ok(bytes) }
}

/// A JSON answer.
pub(crate) fn json(body: Vec<u8>) -> Result<Response, Error> {
    as_json(Response::from_bytes(body).map_err(platform)?)
}

fn as_json(mut response: Response) -> Result<Response, Error> {
    response.headers_mut().set("content-type", "application/json").map_err(platform)?;
    Ok(response)
}

/// An error as an HTTP answer.
pub(crate) fn refuse(error: &Error) -> worker::Result<Response> {
    let mut response = Response::from_bytes(ErrorBody(error).to_json().into_bytes())?.with_status(http_status(error));
    response.headers_mut().set("content-type", "application/json")?;
    if error.retry_after_ms > 0 {
        response.headers_mut().set("retry-after", &error.retry_after_ms.div_ceil(1_000).to_string())?;
    }
    Ok(response)
}

/// An error of the platform's.
pub(crate) fn platform(error: worker::Error) -> Error {
    Error::internal(error.to_string())
}
