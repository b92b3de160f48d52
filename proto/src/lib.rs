//! Every message that DoSQL's actors and clients exchange, generated from `proto/dosql/v1/*.proto`, and the few
//! conversions that belong to the messages themselves.

mod address;
mod error;
#[cfg(feature = "json")]
pub mod json;
mod position;
mod protocol;
#[cfg(feature = "grpc")]
mod status;
mod stream_position;
#[cfg(feature = "json")]
pub mod subscriber;
mod typed_value;

/// The generated messages of package `dosql.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated code; the .proto files carry the documentation"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/dosql.v1.rs"));

    /// The compiled descriptors of the package (`google.protobuf.FileDescriptorSet`), for gRPC server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dosql.v1.descriptors.bin"));
}

pub use position::{ParsePositionError, Position};
pub use protocol::{
    AnalyticsProtocol, CatalogProtocol, CdcProtocol, LakeProtocol, ProbeProtocol, Protocol, RouterProtocol,
    ShardProtocol,
};
#[cfg(feature = "grpc")]
pub use status::ERROR_CODE_METADATA;
pub use stream_position::StreamPosition;
pub use v1::*;
