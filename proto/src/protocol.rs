//! Which messages each kind of actor understands.

use crate::v1;

/// A kind of actor as others see it: what it is called, what it is asked and what it answers.
pub trait Protocol: 'static {
    /// The first part of an address, as in `shard/shard-3`.
    const KIND: &'static str;
    /// What it is asked.
    type Request: prost::Message + Default + Send + 'static;
    /// What it answers.
    type Reply: prost::Message + Default + Send + 'static;
}

macro_rules! protocol {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $request:ty, $reply:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Protocol for $name {
            const KIND: &'static str = $kind;
            type Request = $request;
            type Reply = $reply;
        }
    };
}

protocol!(
    /// The query router.
    RouterProtocol, "router", v1::RouterRequest, v1::RouterReply
);
protocol!(
    /// One shard.
    ShardProtocol, "shard", v1::ShardRequest, v1::ShardReply
);
protocol!(
    /// The change stream.
    CdcProtocol, "cdc", v1::CdcRequest, v1::CdcReply
);
protocol!(
    /// The lake writer.
    LakeProtocol, "lake", v1::LakeRequest, v1::LakeReply
);
protocol!(
    /// The Iceberg catalog.
    CatalogProtocol, "catalog", v1::CatalogRequest, v1::CatalogReply
);
protocol!(
    /// Reads of the lake.
    AnalyticsProtocol, "analytics", v1::AnalyticsRequest, v1::AnalyticsReply
);
protocol!(
    /// The conformance suite's small actor.
    ProbeProtocol, "probe", v1::ProbeRequest, v1::ProbeReply
);
