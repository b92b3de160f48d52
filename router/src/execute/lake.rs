//! What statements say to the lake writer: the router passes it on, and knows nothing of it.

use dosql_proto::{
    Error, ExecuteResponse, LakeConfigure, LakeOption, LakeOptions, LakeOptionsRequest, LakeProtocol, LakeReply,
    LakeRequest, Row, lake_reply, lake_request,
};

use super::ddl::response;
use super::{Scope, Shared};
use crate::plan::AlterLake;

/// The name of the one lake writer.
const LAKE: &str = "default";

impl Shared {
    /// Runs an `ALTER LAKE` statement.
    pub(super) async fn alter_lake(&self, change: &AlterLake, call: &Scope) -> Result<ExecuteResponse, Error> {
        let option =
            |(name, value): &(String, String)| LakeOption { name: name.clone(), value: value.clone(), is_set: true };
        let configure = LakeConfigure {
            table: change.table.clone(),
            set: change.set.iter().map(option).collect(),
            reset: change.reset.clone(),
        };
        self.lake_options(lake_request::Request::Configure(configure), call).await?;
        Ok(response(String::new()))
    }

    /// The rows of `SHOW LAKE OPTIONS`.
    pub(super) async fn show_lake_options(&self, table: Option<&str>, call: &Scope) -> Result<Vec<Row>, Error> {
        let request = LakeOptionsRequest { table: table.unwrap_or_default().to_owned() };
        let options = self.lake_options(lake_request::Request::Options(request), call).await?;
        let rows = options.tables.into_iter().flat_map(|of| {
            let row = move |option: LakeOption| Row {
                values: vec![
                    of.table.as_str().into(),
                    option.name.into(),
                    option.value.into(),
                    i64::from(option.is_set).into(),
                ],
            };
            of.options.into_iter().map(row)
        });
        Ok(rows.collect())
    }

    async fn lake_options(&self, request: lake_request::Request, call: &Scope) -> Result<LakeOptions, Error> {
        let request = LakeRequest { request: Some(request) };
        let LakeReply { reply } = self.context.ask::<LakeProtocol>(LAKE, request, call).await?;
        match reply {
            Some(lake_reply::Reply::Options(options)) => Ok(options),
            _ => Err(Error::internal("the lake writer gave an unexpected answer")),
        }
    }
}
