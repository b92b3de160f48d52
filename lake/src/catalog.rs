//! The actor `catalog/default`: the lake's tables as other programs find them and commit to them.
//!
//! It is beside the lake writer, so that nobody waits for a flush or a compaction to read. A commit is made as every commit to
//! the lake is, by creating the table's next metadata version, so writer and catalog need not know of each other: who is late
//! finds the version taken, looks again, and goes on from there if what was required still holds.

use std::rc::Rc;

use dosql_actors::{Actor, Call, Context, Handled};
use dosql_proto::{
    CatalogCommit, CatalogLoad, CatalogProtocol, CatalogReply, CatalogRequest, CatalogTable, CatalogTables, Error,
    ErrorCode, LakeProtocol, LakeRequest, LakeStatusRequest, catalog_reply, catalog_request, lake_reply, lake_request,
};
use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuilder};
use iceberg::{TableRequirement, TableUpdate};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::LakeError;
use crate::authority::Authority;
use crate::table::{LakeTable, is_table_name};

/// How often in a row somebody else may be faster before a commit is refused.
const MOST_CONFLICTS: u32 = 5;
/// The lake writer's own properties of a table.
const OWN_PROPERTIES: &str = "dosql.";

/// The lake's tables as other programs find them in the Iceberg REST catalog, and commit to them.
pub struct Catalog {
    context: Context,
    authority: Rc<Authority>,
}

impl Actor for Catalog {
    type Protocol = CatalogProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let authority = Rc::new(Authority::of(&context));
        Ok(Self { context, authority })
    }

    async fn handle(&mut self, request: CatalogRequest, call: &Call) -> Handled<CatalogReply> {
        use catalog_request::Request;
        let (context, authority, call) = (self.context.clone(), Rc::clone(&self.authority), call.clone());
        Handled::Later(Box::pin(async move {
            let reply = match request.request {
                Some(Request::List(_)) => catalog_reply::Reply::Tables(list(&context, &call).await?),
                Some(Request::Load(request)) => catalog_reply::Reply::Table(load(&authority, request).await?),
                Some(Request::Commit(request)) => catalog_reply::Reply::Table(commit(&authority, request).await?),
                None => return Err(Error::invalid("the catalog request is empty")),
            };
            Ok(CatalogReply { reply: Some(reply) })
        }))
    }
}

/// The tables, which the lake writer knows.
async fn list(context: &Context, call: &Call) -> Result<CatalogTables, Error> {
    let request = LakeRequest { request: Some(lake_request::Request::Status(LakeStatusRequest {})) };
    match context.ask::<LakeProtocol>("default", request, call).await?.reply {
        Some(lake_reply::Reply::Status(status)) => {
            // One without a snapshot may be about to be made.
            let made = status.tables.into_iter().filter(|table| table.snapshot_id != 0);
            Ok(CatalogTables { names: made.map(|table| table.name).collect() })
        }
        _ => Err(Error::internal("the lake answered something else than its status")),
    }
}

async fn find(authority: &Authority, name: &str) -> Result<LakeTable, Error> {
    let missing = || Error::new(ErrorCode::NotFound, format!("the lake has no table {name:?}"));
    if !is_table_name(name) {
        return Err(missing());
    }
    authority.load(name).await?.ok_or_else(missing)
}

fn described(table: &LakeTable, named_snapshots: bool) -> Result<CatalogTable, LakeError> {
    let malformed =
        |error: serde_json::Error| LakeError::Malformed { path: table.metadata_url(), reason: error.to_string() };
    let metadata = if named_snapshots {
        let named = table.named_snapshots()?;
        let mut document = serde_json::to_value(&table.metadata).map_err(malformed)?;
        if let Some(Json::Array(snapshots)) = document.get_mut("snapshots") {
            snapshots.retain(|snapshot| snapshot["snapshot-id"].as_i64().is_some_and(|id| named.contains(&id)));
        }
        serde_json::to_vec(&document)
    } else {
        serde_json::to_vec(&table.metadata)
    };
    let metadata = metadata.map_err(malformed)?;
    Ok(CatalogTable { metadata_location: table.metadata_url(), metadata })
}

async fn load(authority: &Authority, request: CatalogLoad) -> Result<CatalogTable, Error> {
    let table = find(authority, &request.table).await?;
    Ok(described(&table, request.named_snapshots)?)
}

/// The body of a commit. What else clients put into it says nothing more.
#[derive(Debug, Deserialize)]
struct Body {
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
}

async fn commit(authority: &Authority, request: CatalogCommit) -> Result<CatalogTable, Error> {
    let CatalogCommit { table: name, commit } = request;
    if authority.is_shared() {
        let message = format!("{} is there to commit to", authority.place(&name));
        return Err(Error::new(ErrorCode::Unsupported, message));
    }
    let Body { requirements, updates } = serde_json::from_slice(&commit)
        .map_err(|error| Error::invalid(format!("the commit is not as the protocol has it: {error}")))?;
    let mut conflicts = 0;
    loop {
        let mut table = find(authority, &name).await?;
        for requirement in &requirements {
            // What is required of a table holds or does not; the message says which.
            requirement
                .check(Some(&table.metadata))
                .map_err(|error| Error::new(ErrorCode::Conflict, error.message().to_owned()))?;
        }
        let metadata = updated(&table, updates.clone())?;
        if metadata == table.metadata {
            return Ok(described(&table, false)?);
        }
        require_successor(authority, &table, metadata.clone()).await?;
        match authority.commit(&mut table, metadata).await {
            Ok(()) => {
                tracing::info!(table = name, version = table.version, "another program committed by the catalog");
                return Ok(described(&table, false)?);
            }
            Err(LakeError::Conflict { .. }) if conflicts < MOST_CONFLICTS => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn updated(table: &LakeTable, updates: Vec<TableUpdate>) -> Result<TableMetadata, Error> {
    let refused =
        |error: iceberg::Error| Error::invalid(format!("the table cannot be changed so: {}", error.message()));
    let mut builder = TableMetadataBuilder::new_from_metadata(table.metadata.clone(), Some(table.metadata_url()));
    for update in updates {
        builder = update.apply(builder).map_err(refused)?;
    }
    Ok(builder.build().map_err(refused)?.metadata)
}

/// Refuses what the lake writer could not go on from.
async fn require_successor(authority: &Authority, table: &LakeTable, metadata: TableMetadata) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::invalid(format!("the lake's tables are DoLake's to write: {what}")));
    let old = &table.metadata;
    if metadata.format_version() != FormatVersion::V2 {
        return refused("their format version stays 2");
    }
    if metadata.location() != old.location() || metadata.uuid() != old.uuid() {
        return refused("they stay where they are");
    }
    if metadata.current_schema().as_struct() != old.current_schema().as_struct() {
        return refused("their columns follow the source table's");
    }
    if metadata.default_partition_spec() != old.default_partition_spec() {
        return refused("their partitioning is a setting of the lake");
    }
    let own = |metadata: &TableMetadata| {
        let mut own: Vec<_> =
            metadata.properties().clone().into_iter().filter(|(name, _)| name.starts_with(OWN_PROPERTIES)).collect();
        own.sort();
        own
    };
    if own(&metadata) != own(old) {
        return refused("properties that begin with dosql. stay as they are");
    }
    let next = table.as_successor(metadata)?;
    if next.watermarks() != table.watermarks() {
        return refused(
            "the branch main goes on from its newest snapshot, which says how far the shards were taken in",
        );
    }
    if next.metadata.current_snapshot_id() != old.current_snapshot_id() {
        // Reads all manifests: files elsewhere and equality deletes are refused.
        next.live_files(authority.objects()).await.map_err(|error| Error::invalid(error.to_string()))?;
    }
    Ok(())
}
