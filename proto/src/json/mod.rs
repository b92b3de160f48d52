//! The JSON form of values, results, errors and changes, as HTTP and WebSocket clients see it on every host.
//!
//! Every value survives the way there and back: INTEGER is a JSON number with all its digits, REAL is a JSON number that
//! has a fraction or an exponent, TEXT is a string, NULL is `null`. What JSON has no word for is an object of one field:
//! `{"base64": "..."}` is a BLOB, `{"text_base64": "..."}` is TEXT that is not valid UTF-8, and
//! `{"real": "Infinity"}` (or `"-Infinity"`, `"NaN"`) is a REAL that is no finite number.

mod changes;
mod debezium;
mod error;
mod lake_options;
mod maintenance;
mod plan;
mod request;
mod result;
mod status;
mod subscription;
mod topology;
mod value;

pub use changes::{Frame, change_frames, heartbeat_frame};
pub use debezium::{debezium_frames, debezium_heartbeat};
pub use error::{ErrorBody, http_status};
pub use lake_options::{configure_from_json, options_document};
pub use maintenance::{CleanupBody, CompactBody, compactions_document};
pub use request::query_from_json;
pub use result::ResultWriter;
pub use status::status_document;
pub use subscription::{
    StreamParameters, acknowledgement_from_json, messages_from_json, stream_parameters, subscription_document,
    subscriptions_document,
};
pub use topology::{promoted_document, topology_document};
pub use value::{JsonRow, JsonValue, value_from_json};
