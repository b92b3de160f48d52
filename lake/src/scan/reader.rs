//! Reads of the lake without DataFusion, for hosts that have no room for it: files and row groups that cannot hold wanted rows are
//! left out, and the rows of the others sent to whoever finishes the statement.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dosql_actors::{Actor, Call, Context, Handled, ObjectStore};
use dosql_proto::{
    AnalyticsProtocol, AnalyticsReply, AnalyticsRequest, Closed, Error, ErrorCode, LakeDeclined, LakeRows, LakeScan,
    LakeScanStats, analytics_reply::Reply, analytics_request::Request,
};
use parquet::file::metadata::ParquetMetaData;
use prost::Message;

use super::row_group::{GroupBounds, GroupReader};
use super::{Footers, Kept, TableScan, Tables, Values, check, freshen, kept};
use crate::LakeError;

/// An open result that is not read for so long is given up, in milliseconds.
const IDLE_MS: u64 = 60_000;
/// Where batches are cut unless the request says, in bytes.
const BATCH_BYTES: usize = 256 << 10;

/// The actor `analytics/default` of hosts without DataFusion. In memory it has the wanted columns of one row group for each read
/// that is under way.
pub struct LakeReader {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    objects: Rc<dyn ObjectStore>,
    tables: Tables,
    footers: Footers,
    open: RefCell<HashMap<u64, Open>>,
}

/// A read under way.
struct Open {
    scan: TableScan,
    next_file: usize,
    /// The row groups of the file that are still to be read, the next one last.
    groups: Vec<(usize, Kept)>,
    footer: Option<Arc<ParquetMetaData>>,
    reader: Option<GroupReader>,
    max_bytes: usize,
    stats: LakeScanStats,
    position: String,
    used_ms: u64,
}

impl Actor for LakeReader {
    type Protocol = AnalyticsProtocol;

    async fn start(context: Context) -> Result<Self, Error> {
        let objects = context.objects();
        let (tables, footers) = (Tables::new(&context), Footers::new(Rc::clone(&objects)));
        Ok(Self { shared: Rc::new(Shared { context, objects, tables, footers, open: RefCell::default() }) })
    }

    async fn handle(&mut self, request: AnalyticsRequest, call: &Call) -> Handled<AnalyticsReply> {
        let now_ms = self.shared.context.now_ms();
        self.shared.open.borrow_mut().retain(|_, open| open.used_ms + IDLE_MS > now_ms);
        let (shared, call) = (Rc::clone(&self.shared), call.clone());
        Handled::Later(Box::pin(async move {
            let reply = match request.request {
                Some(Request::Scan(scan)) => shared.scan(scan, &call).await?,
                Some(Request::Fetch(fetch)) => {
                    let unknown = || Error::new(ErrorCode::UnknownCursor, "the result of the lake is gone");
                    let open = shared.open.borrow_mut().remove(&fetch.cursor).ok_or_else(unknown)?;
                    Reply::Rows(shared.next(open, fetch.cursor).await?)
                }
                Some(Request::Close(close)) => {
                    shared.open.borrow_mut().remove(&close.cursor);
                    Reply::Closed(Closed {})
                }
                None => return Err(Error::invalid("AnalyticsRequest without a request")),
            };
            Ok(AnalyticsReply { reply: Some(reply) })
        }))
    }
}

impl Shared {
    async fn scan(&self, request: LakeScan, call: &Call) -> Result<Reply, Error> {
        check(&request)?;
        if request.aggregate.is_some() {
            return Ok(Reply::Declined(LakeDeclined { reason: "nothing is aggregated here".to_owned() }));
        }
        let mut position = freshen(&self.context, &request, call).await?;
        let Some(scan) = self.tables.open(&request).await? else {
            let stats = Some(LakeScanStats::default());
            return Ok(Reply::Rows(LakeRows { position: position.to_string(), stats, ..LakeRows::default() }));
        };
        for (shard, lsn) in &scan.position.0 {
            position.advance(shard, *lsn);
        }
        let stats = LakeScanStats {
            files: scan.files.len() as u64 + scan.files_skipped,
            files_skipped: scan.files_skipped,
            ..LakeScanStats::default()
        };
        let open = Open {
            scan,
            next_file: 0,
            groups: Vec::new(),
            footer: None,
            reader: None,
            max_bytes: if request.max_batch_bytes == 0 { BATCH_BYTES } else { request.max_batch_bytes as usize },
            stats,
            position: position.to_string(),
            used_ms: 0,
        };
        Ok(Reply::Rows(self.next(open, request.cursor).await?))
    }

    /// The next rows of a result, which stays open where there may be more.
    async fn next(&self, mut open: Open, cursor: u64) -> Result<LakeRows, Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.next_batch(&mut open).await? {
            let values = Values::of_output(&open.scan, &batch)?;
            for number in 0..values.len() {
                let row = values.row(number)?;
                bytes += row.encoded_len();
                rows.push(row);
            }
            if bytes >= open.max_bytes {
                open.used_ms = self.context.now_ms();
                let position = open.position.clone();
                self.open.borrow_mut().insert(cursor, open);
                return Ok(LakeRows { rows, cursor, position, stats: None });
            }
        }
        Ok(LakeRows { rows, cursor: 0, position: open.position, stats: Some(open.stats) })
    }

    async fn next_batch(&self, open: &mut Open) -> Result<Option<arrow::array::RecordBatch>, LakeError> {
        loop {
            if let Some(batch) = open.reader.as_mut().and_then(Iterator::next) {
                return batch.map(Some);
            }
            open.reader = None;
            if let (Some((group, kept)), Some(footer)) = (open.groups.pop(), &open.footer) {
                let file = &open.scan.files[open.next_file - 1];
                let fields = open.scan.fields(&open.scan.output);
                let (reader, bytes_read) = GroupReader::open(&*self.objects, file, footer, group, fields, kept).await?;
                open.stats.bytes_read += bytes_read;
                open.reader = Some(reader);
                continue;
            }
            let Some(file) = open.scan.files.get(open.next_file) else { return Ok(None) };
            let footer = self.footers.of(file).await?;
            open.next_file += 1;
            open.stats.row_groups += footer.num_row_groups() as u64;
            open.stats.rows_deleted += file.deleted.len() as u64;
            for (group, kept) in kept(&file.deleted, &footer).into_iter().enumerate().rev() {
                let bounds = GroupBounds::new(&footer, group, &open.scan.columns);
                if kept != Kept::Nothing && open.scan.predicate.may_match(&bounds) {
                    open.groups.push((group, kept));
                } else {
                    open.stats.row_groups_skipped += 1;
                }
            }
            open.footer = Some(footer);
        }
    }
}
