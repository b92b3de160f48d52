//! What every reader of the lake does with a request before it looks at files.

use dosql_actors::{Call, Context};
use dosql_proto::{
    CdcProtocol, CdcRequest, Error, ErrorCode, FlushLake, LakeOptionsRequest, LakeProtocol, LakeRequest, LakeScan,
    Position, cdc_reply, cdc_request, lake_reply, lake_request,
};

/// Refuses a request that refers to columns which it does not name.
///
/// # Errors
/// `INVALID_REQUEST`.
pub fn check(request: &LakeScan) -> Result<(), Error> {
    let aggregates = request.aggregate.iter().flat_map(|aggregate| {
        aggregate.groups.iter().copied().chain(aggregate.calls.iter().filter_map(|call| call.column))
    });
    let mut used = aggregates.chain(request.output.iter().copied());
    match used.find(|column| *column as usize >= request.columns.len()) {
        Some(column) => Err(Error::invalid(format!("the scan has no column {column}"))),
        None if request.cursor == 0 => Err(Error::invalid("the scan has no number for its result")),
        None => Ok(()),
    }
}

/// Makes sure that the lake keeps the table's rows. Where the request asks for freshness, has the lake commit all that the shards
/// had committed, and says how far that is.
///
/// # Errors
/// `UNSUPPORTED` where the table has no mirror; `REPLICA_LAGGING` where the lake has not come as far as the request demands; what keeps it from being flushed.
pub async fn freshen(context: &Context, request: &LakeScan, call: &Call) -> Result<Position, Error> {
    if !keeps_rows(context, &request.table, call).await? {
        let message = format!("the lake keeps no rows of {}: its option mirror is off", request.table);
        return Err(Error::new(ErrorCode::Unsupported, message));
    }
    if !request.fresh {
        return Ok(Position::default());
    }
    let flush = CdcRequest { request: Some(cdc_request::Request::FlushLake(FlushLake {})) };
    let position: Position = match context.ask::<CdcProtocol>("default", flush, call).await?.reply {
        Some(cdc_reply::Reply::Flushed(flushed)) => {
            flushed.position.parse().map_err(|error| Error::internal(format!("the change stream's answer: {error}")))?
        }
        _ => return Err(Error::internal("the change stream answered a flush with something else")),
    };
    let wanted: Position = request
        .at_least
        .parse()
        .map_err(|error| Error::new(ErrorCode::UnknownPosition, format!("the bookmark: {error}")))?;
    match wanted.0.iter().find(|(shard, lsn)| position.lsn(shard) < **lsn) {
        None => Ok(position),
        Some((shard, lsn)) => {
            let message = format!("the lake has {shard} up to {}, and is to have {lsn}", position.lsn(shard));
            Err(Error::retryable(ErrorCode::ReplicaLagging, message, 100))
        }
    }
}

/// Whether a table has a mirror, as its options say: one that was turned off stays as it was, and tells nothing of that.
async fn keeps_rows(context: &Context, table: &str, call: &Call) -> Result<bool, Error> {
    let options = LakeOptionsRequest { table: table.to_owned() };
    let request = LakeRequest { request: Some(lake_request::Request::Options(options)) };
    match context.ask::<LakeProtocol>("default", request, call).await?.reply {
        Some(lake_reply::Reply::Options(options)) => {
            let mut options = options.tables.iter().flat_map(|table| &table.options);
            Ok(!options.any(|option| option.name == "mirror" && option.value == "off"))
        }
        _ => Err(Error::internal("the lake answered a question for options with something else")),
    }
}
