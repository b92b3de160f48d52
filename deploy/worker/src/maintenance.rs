//! The lake's maintenance on request, and what it makes of tables.

use dosql_proto::json::{CleanupBody, CompactBody, compactions_document, configure_from_json, options_document};
use dosql_proto::{
    Error, FlushLake, LakeCleaned, LakeCleanup, LakeCompact, LakeCompacted, LakeOptions, LakeOptionsRequest,
    LakeProtocol, LakeRequest, LakeStatus, LakeStatusRequest, cdc_reply, cdc_request, lake_reply, lake_request,
};
use worker::{Request, Response};

use crate::entry::{DEFAULT, Entry, body, json, parameters};

/// How long one step of the lake's may take, in milliseconds.
const STEP_TIMEOUT_MS: u64 = 600_000;

impl Entry {
    async fn lake(&self, request: lake_request::Request, timeout_ms: u64) -> Result<lake_reply::Reply, Error> {
        let request = LakeRequest { request: Some(request) };
        let reply = self.reach.ask::<LakeProtocol>(DEFAULT, request, &self.call(timeout_ms)?).await?;
        reply.reply.ok_or_else(|| Error::internal("the lake answered nothing"))
    }

    pub(crate) async fn lake_status(&self) -> Result<LakeStatus, Error> {
        let request = lake_request::Request::Status(LakeStatusRequest {});
        match self.lake(request, self.settings.query_timeout_ms).await? {
            lake_reply::Reply::Status(status) => Ok(status),
            _ => Err(Error::internal("the lake answered something else than its status")),
        }
    }

    async fn compact_lake(&self, step: LakeCompact) -> Result<LakeCompacted, Error> {
        match self.lake(lake_request::Request::Compact(step), STEP_TIMEOUT_MS).await? {
            lake_reply::Reply::Compacted(compacted) => Ok(compacted),
            _ => Err(Error::internal("the lake answered something else than a compaction")),
        }
    }

    async fn clean_up_lake(&self, cleanup: LakeCleanup) -> Result<LakeCleaned, Error> {
        match self.lake(lake_request::Request::Cleanup(cleanup), STEP_TIMEOUT_MS).await? {
            lake_reply::Reply::Cleaned(cleaned) => Ok(cleaned),
            _ => Err(Error::internal("the lake answered something else than a clean-up")),
        }
    }

    async fn ask_options(&self, request: lake_request::Request) -> Result<LakeOptions, Error> {
        match self.lake(request, self.settings.query_timeout_ms).await? {
            lake_reply::Reply::Options(options) => Ok(options),
            _ => Err(Error::internal("the lake answered something else than options")),
        }
    }

    /// `POST /flush`: has the lake commit everything written before.
    pub(crate) async fn flush(&self) -> Result<Response, Error> {
        match self.cdc(cdc_request::Request::FlushLake(FlushLake {}), &self.call(STEP_TIMEOUT_MS)?).await? {
            cdc_reply::Reply::Flushed(flushed) => {
                json(serde_json::json!({"position": flushed.position}).to_string().into())
            }
            _ => Err(Error::internal("the change stream answered something else than a flush")),
        }
    }

    /// `POST /admin/compact`: compacts until nothing is left to do.
    pub(crate) async fn compact(&self, request: Request) -> Result<Response, Error> {
        let wanted = CompactBody::from_json(&body(request).await?)?;
        let mut done = Vec::new();
        for table in wanted.tables(&self.lake_status().await?)? {
            while let Some(compaction) = self.compact_lake(wanted.step(&table)).await?.compaction {
                done.push(compaction);
            }
        }
        json(compactions_document(&done).to_string().into())
    }

    /// `POST /admin/cleanup`: cleans every table up, one after the other.
    pub(crate) async fn clean_up(&self, request: Request) -> Result<Response, Error> {
        let wanted = CleanupBody::from_json(&body(request).await?)?;
        let mut done = Vec::new();
        for table in wanted.tables(&self.lake_status().await?)? {
            done.push(self.clean_up_lake(wanted.cleanup(&table)).await?);
        }
        json(wanted.document(&done).to_string().into())
    }

    /// `GET /admin/lake/options`: of a table, or of all that have options of their own.
    pub(crate) async fn lake_options(&self, request: &Request) -> Result<Response, Error> {
        let [table] = parameters(request, ["table"])?;
        let options = self.ask_options(lake_request::Request::Options(LakeOptionsRequest { table })).await?;
        json(options_document(options).to_string().into())
    }

    /// `POST /admin/lake/options`.
    pub(crate) async fn configure_lake(&self, request: Request) -> Result<Response, Error> {
        let configure = configure_from_json(&body(request).await?)?;
        json(options_document(self.ask_options(lake_request::Request::Configure(configure)).await?).to_string().into())
    }
}
