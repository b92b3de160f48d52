//! A lake writer on the server's host, with nothing else beside it.

use std::path::{Path, PathBuf};

use dosql_actors::host::actix::{Node, NodeConfig};
use dosql_actors::{Call, Settings};
use dosql_lake::Lake;
use dosql_proto::{
    CompactionMode, LakeAppend, LakeCompact, LakeCompaction, LakeConfigure, LakeFlush, LakeOption, LakeProtocol,
    LakeRequest, lake_reply, lake_request,
};
use tokio::runtime::Runtime;

/// The actor, its threads and its directory.
pub(crate) struct LakeWriter {
    node: Node,
    runtime: Runtime,
    data_dir: PathBuf,
}

impl LakeWriter {
    /// Starts one with these settings in a directory of its own.
    pub(crate) fn start(data_dir: &Path, settings: Settings) -> Self {
        let config = NodeConfig { data_dir: data_dir.to_owned(), arbiters: 1, settings, ..NodeConfig::default() };
        let node = Node::new(config).unwrap();
        node.register::<Lake>().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { node, runtime, data_dir: data_dir.to_owned() }
    }

    fn ask(&self, request: lake_request::Request) -> lake_reply::Reply {
        let request = LakeRequest { request: Some(request) };
        let call = Call::system();
        let answer = self.runtime.block_on(self.node.client().ask::<LakeProtocol>("default", request, &call));
        answer.unwrap().reply.unwrap()
    }

    /// Delivers changes.
    pub(crate) fn append(&self, append: LakeAppend) {
        self.ask(lake_request::Request::Append(append));
    }

    /// Commits what is buffered.
    pub(crate) fn flush(&self) {
        self.ask(lake_request::Request::Flush(LakeFlush {}));
    }

    /// Has a source table no change log.
    pub(crate) fn mirror_only(&self, table: &str) {
        let option = LakeOption { name: "changes".into(), value: "off".into(), is_set: false };
        self.ask(lake_request::Request::Configure(LakeConfigure {
            table: table.into(),
            set: vec![option],
            reset: Vec::new(),
        }));
    }

    /// One step of compaction.
    pub(crate) fn compact(&self, table: &str) -> Option<LakeCompaction> {
        let mode = CompactionMode::Full.into();
        match self.ask(lake_request::Request::Compact(LakeCompact { table: table.into(), mode, ..Default::default() }))
        {
            lake_reply::Reply::Compacted(compacted) => compacted.compaction,
            other => panic!("not a compaction: {other:?}"),
        }
    }

    /// The data files of a lake table.
    pub(crate) fn data_files(&self, table: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.data_dir.join("lake/warehouse/default").join(table).join("data")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { directories.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }
}
