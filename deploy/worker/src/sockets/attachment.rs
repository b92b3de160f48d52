//! Where a subscriber stands, kept with its WebSocket while the object is not in memory. What is too long for the platform's
//! attachments (positions of many shards) is a row of the object's storage.

use std::rc::Rc;

use dosql_proto::{Error, ErrorCode, SubscriberState};
use js_sys::Uint8Array;
use prost::Message as _;
use wasm_bindgen::{JsCast as _, JsValue};
use worker::worker_sys::ext::WebSocketExt as _;
use worker::{SqlStorageValue, State, WebSocket};

use super::Tag;

/// Longest attachment, in bytes; the platform takes 16,384 with what it adds to it.
const LONGEST: usize = 16_000;

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS _dosql_subscribers (tag TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID";

pub(super) struct Attachments {
    state: Rc<State>,
}

impl Attachments {
    pub(super) fn new(state: Rc<State>) -> Self {
        Self { state }
    }

    /// # Errors
    /// `STORAGE`.
    pub(super) fn write(&self, tag: &Tag, socket: &WebSocket, state: &SubscriberState) -> Result<(), Error> {
        let bytes = state.encode_to_vec();
        let attachment: JsValue = if bytes.len() <= LONGEST {
            Uint8Array::from(&bytes[..]).into()
        } else {
            self.exec(TABLE, Vec::new())?;
            let row = vec![SqlStorageValue::String(tag.clone()), SqlStorageValue::Blob(bytes)];
            self.exec("INSERT OR REPLACE INTO _dosql_subscribers VALUES (?, ?)", row)?;
            JsValue::NULL
        };
        socket.as_ref().serialize_attachment(attachment).map_err(|error| failed(&crate::reach::describe(&error)))
    }

    /// # Errors
    /// `STORAGE`; also where nothing was kept.
    pub(super) fn read(&self, tag: &Tag, socket: &WebSocket) -> Result<SubscriberState, Error> {
        let attached = socket.as_ref().deserialize_attachment();
        let attached = attached.map_err(|error| failed(&crate::reach::describe(&error)))?;
        let bytes = match attached.dyn_into::<Uint8Array>() {
            Ok(attached) => attached.to_vec(),
            Err(_) => {
                self.exec(TABLE, Vec::new())?;
                let tag = vec![SqlStorageValue::String(tag.clone())];
                let rows = self.exec("SELECT state FROM _dosql_subscribers WHERE tag = ?", tag)?;
                match rows.into_iter().flatten().next() {
                    Some(SqlStorageValue::Blob(bytes)) => bytes,
                    _ => return Err(failed(&"nothing was kept")),
                }
            }
        };
        SubscriberState::decode(&bytes[..]).map_err(|error| failed(&error))
    }

    /// Drops what was kept for a socket that is gone.
    pub(super) fn forget(&self, tag: &Tag) {
        // A row that stays goes when the object wakes the next time.
        let _ = self.exec("DELETE FROM _dosql_subscribers WHERE tag = ?", vec![SqlStorageValue::String(tag.clone())]);
    }

    /// Drops what was kept for sockets that went without a word.
    ///
    /// # Errors
    /// `STORAGE`.
    pub(super) fn keep_only(&self, open: &[Tag]) -> Result<(), Error> {
        self.exec(TABLE, Vec::new())?;
        for tag in self.exec("SELECT tag FROM _dosql_subscribers", Vec::new())?.into_iter().flatten() {
            if let SqlStorageValue::String(tag) = tag
                && !open.contains(&tag)
            {
                self.forget(&tag);
            }
        }
        Ok(())
    }

    fn exec(&self, sql: &str, bindings: Vec<SqlStorageValue>) -> Result<Vec<Vec<SqlStorageValue>>, Error> {
        let cursor = self.state.storage().sql().exec(sql, bindings).map_err(|error| failed(&error))?;
        cursor.raw().collect::<Result<_, _>>().map_err(|error| failed(&error))
    }
}

fn failed(reason: &dyn ToString) -> Error {
    Error::new(ErrorCode::Storage, format!("where a subscriber stands: {}", reason.to_string()))
}
