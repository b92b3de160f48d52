//! What an actor is, how it is reached, and what it may touch. Knows no host.

mod actor;
mod asker;
mod catalog_settings;
mod context;
mod delivery;
mod http;
mod mailbox;
mod objects;
mod settings;

pub use actor::{Actor, Handled};
pub use asker::ToTheEnd;
pub use catalog_settings::{CatalogAccess, CatalogSettings};
pub use context::{Call, Context, Host};
pub use delivery::{Delivery, Input, Payload, packet_reply};
pub use http::{HttpError, HttpMethod, HttpRequest, HttpResponse};
pub use mailbox::{Mailbox, MailboxReceiver, mailbox, supervise};
pub use objects::{ObjectError, ObjectMeta, ObjectStore, range_of};
pub use settings::{AutoShard, Hours, ReadStrategy, Settings, SettingsError, TransactionMode};
