//! Durable subscriptions: where each stands, kept in the change stream's own storage. The shards keep the records after it, up
//! to a bound, until it is dropped or expires.

use std::collections::BTreeMap;
use std::rc::Rc;

use dosql_proto::{
    AcknowledgeChanges, DurableSubscription, Error, ErrorCode, StreamPosition, SubscribeRequest, SubscriptionList,
};
use prost::Message;
use rusqlite::{Connection, params};

use super::choice::Choice;
use super::shards::Shards;
use super::{snapshot, start};
use crate::sql_value::sql_error;

/// Longest name, in bytes.
const MAX_NAME: usize = 128;

/// How many there may be.
const MAX_SUBSCRIPTIONS: usize = 1_000;

struct Subscription {
    position: StreamPosition,
    choices: SubscribeRequest,
    created_ms: u64,
    touched_ms: u64,
}

/// All durable subscriptions.
pub(super) struct Durable {
    connection: Rc<Connection>,
    subscriptions: BTreeMap<String, Subscription>,
}

impl Durable {
    /// # Errors
    /// `STORAGE`.
    pub(super) fn open(connection: Rc<Connection>) -> Result<Self, Error> {
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS _dosql_subscriptions (name TEXT PRIMARY KEY, position TEXT NOT NULL, \
                 choices BLOB NOT NULL, created_ms INTEGER NOT NULL, touched_ms INTEGER NOT NULL) WITHOUT ROWID",
            )
            .map_err(sql_error)?;
        let mut subscriptions = BTreeMap::new();
        {
            let mut select = connection
                .prepare("SELECT name, position, choices, created_ms, touched_ms FROM _dosql_subscriptions")
                .map_err(sql_error)?;
            let mut rows = select.query([]).map_err(sql_error)?;
            while let Some(row) = rows.next().map_err(sql_error)? {
                let (name, subscription) = read(row).map_err(sql_error)?;
                subscriptions.insert(name, subscription?);
            }
        }
        Ok(Self { connection, subscriptions })
    }

    fn store(&mut self, name: &str, subscription: Subscription) -> Result<(), Error> {
        let Subscription { position, choices, created_ms, touched_ms } = &subscription;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO _dosql_subscriptions VALUES (?1, ?2, ?3, ?4, ?5)")
            .and_then(|mut insert| {
                let (created, touched) = (signed(*created_ms), signed(*touched_ms));
                insert.execute(params![name, position.to_string(), choices.encode_to_vec(), created, touched])
            })
            .map_err(sql_error)?;
        self.subscriptions.insert(name.to_owned(), subscription);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.connection
            .prepare_cached("DELETE FROM _dosql_subscriptions WHERE name = ?1")
            .and_then(|mut delete| delete.execute([name]))
            .map_err(sql_error)?;
        self.subscriptions.remove(name);
        Ok(())
    }

    fn known(&self, name: &str) -> Result<&Subscription, Error> {
        self.subscriptions
            .get(name)
            .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("there is no durable subscription {name:?}")))
    }

    /// Removes what has expired, and has the shards keep what the others need.
    pub(super) fn tend(&mut self, shards: &Rc<Shards>) -> Result<(), Error> {
        let settings = shards.context.settings();
        let now_ms = shards.context.now_ms();
        let expired = |subscription: &Subscription| {
            subscription.touched_ms.saturating_add(settings.cdc_subscription_expiry_ms) <= now_ms
        };
        let names: Vec<String> =
            self.subscriptions.iter().filter(|(_, held)| expired(held)).map(|(name, _)| name.clone()).collect();
        for name in names {
            tracing::info!(name, "a durable subscription has expired");
            self.remove(&name)?;
        }
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for subscription in self.subscriptions.values() {
            for (shard, lsn) in subscription.needed() {
                let bound = shards.last_lsn(shard).saturating_sub(settings.cdc_subscription_max_records);
                let lsn = lsn.max(bound);
                held.entry(shard.clone()).and_modify(|held| *held = lsn.min(*held)).or_insert(lsn);
            }
        }
        shards.hold(&held);
        Ok(())
    }

    fn move_to(
        &mut self,
        shards: &Rc<Shards>,
        name: &str,
        position: StreamPosition,
    ) -> Result<DurableSubscription, Error> {
        let known = self.known(name)?;
        if let Some(shard) = position.lsns.0.keys().find(|shard| !known.position.lsns.0.contains_key(*shard)) {
            return Err(unknown(format!("{shard} in the position is none of the subscription's shards")));
        }
        // One that comes late has nothing to say.
        let is_news = known.position.lsns.0.iter().all(|(shard, lsn)| position.lsns.lsn(shard) >= *lsn);
        if is_news {
            let touched_ms = shards.context.now_ms();
            let (choices, created_ms) = (known.choices.clone(), known.created_ms);
            self.store(name, Subscription { position, choices, created_ms, touched_ms })?;
            self.tend(shards)?;
        }
        self.shown(shards, name)
    }

    /// # Errors
    /// `NOT_FOUND`; `STORAGE`.
    pub(super) fn drop_one(&mut self, shards: &Rc<Shards>, name: &str) -> Result<DurableSubscription, Error> {
        let shown = self.shown(shards, name)?;
        self.remove(name)?;
        self.tend(shards)?;
        Ok(shown)
    }

    pub(super) fn list(&self, shards: &Shards) -> Result<SubscriptionList, Error> {
        let subscriptions = self.subscriptions.keys().map(|name| self.shown(shards, name)).collect::<Result<_, _>>()?;
        Ok(SubscriptionList { subscriptions })
    }

    fn shown(&self, shards: &Shards, name: &str) -> Result<DurableSubscription, Error> {
        let Subscription { position, choices, created_ms, touched_ms } = self.known(name)?;
        let settings = shards.context.settings();
        let behind = |(shard, lsn): (&String, u64)| shards.last_lsn(shard).saturating_sub(lsn);
        let needed = || self.subscriptions.get(name).into_iter().flat_map(Subscription::needed);
        Ok(DurableSubscription {
            name: name.to_owned(),
            position: position.to_string(),
            choices: Some(choices.clone()),
            created_ms: *created_ms,
            expires_ms: touched_ms.saturating_add(settings.cdc_subscription_expiry_ms),
            behind: needed().map(behind).sum(),
            overrun: needed().any(|needed| behind(needed) > settings.cdc_subscription_max_records),
        })
    }

    /// Where an existing subscription goes on, and with what.
    fn resume(&mut self, name: &str, asked: &SubscribeRequest, now_ms: u64) -> Result<Option<SubscribeRequest>, Error> {
        let Some(Subscription { position, choices, created_ms, .. }) = self.subscriptions.get(name) else {
            return Ok(None);
        };
        let asked = choices_of(asked);
        if asked != SubscribeRequest::default() && asked != *choices {
            let message =
                format!("the durable subscription {name:?} was made with other choices; drop it to make it anew");
            return Err(Error::new(ErrorCode::AlreadyExists, message));
        }
        let opened = SubscribeRequest { from: position.to_string(), ..choices.clone() };
        let (position, choices, created_ms) = (position.clone(), choices.clone(), *created_ms);
        self.store(name, Subscription { position, choices, created_ms, touched_ms: now_ms })?;
        Ok(Some(opened))
    }
}

impl Subscription {
    /// The shards whose records it needs, and after which LSN: not of those whose copy has not begun.
    fn needed(&self) -> impl Iterator<Item = (&String, u64)> {
        let begun = |shard: &String| self.position.snapshot.get(shard).is_none_or(|cursor| !cursor.table.is_empty());
        self.position.lsns.0.iter().filter(move |(shard, _)| begun(shard)).map(|(shard, lsn)| (shard, *lsn))
    }
}

/// What a request chooses, without where and how it starts.
fn choices_of(request: &SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest { from: String::new(), name: String::new(), snapshot: false, heartbeat_ms: 0, ..request.clone() }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, Result<Subscription, Error>)> {
    let (position, choices): (String, Vec<u8>) = (row.get(1)?, row.get(2)?);
    let (created, touched): (i64, i64) = (row.get(3)?, row.get(4)?);
    let damaged = |error: String| Error::new(ErrorCode::Storage, format!("a stored subscription is damaged: {error}"));
    let subscription = || {
        Ok(Subscription {
            position: position.parse().map_err(|error| damaged(format!("{error}")))?,
            choices: SubscribeRequest::decode(choices.as_slice()).map_err(|error| damaged(error.to_string()))?,
            created_ms: u64::try_from(created).unwrap_or(0),
            touched_ms: u64::try_from(touched).unwrap_or(0),
        })
    };
    Ok((row.get(0)?, subscription()))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unknown(message: String) -> Error {
    Error::new(ErrorCode::UnknownPosition, message)
}

/// Moves a durable subscription forward.
///
/// # Errors
/// `NOT_FOUND`; `UNKNOWN_POSITION`; `STORAGE`; those of a shard that must say where it stands.
pub(super) async fn acknowledge(
    shards: &Rc<Shards>,
    request: AcknowledgeChanges,
) -> Result<DurableSubscription, Error> {
    let AcknowledgeChanges { name, position } = request;
    shards.durable.borrow().known(&name)?;
    let position: StreamPosition = position.parse().map_err(|error| unknown(format!("{error}")))?;
    for (shard, lsn) in &position.lsns.0 {
        if !shards.is_shard(shard) {
            return Err(unknown(format!("{shard} in the position is no shard")));
        }
        if *lsn > shards.last_lsn(shard) {
            shards.retained(shard).await?.check(shard, *lsn)?;
        }
    }
    shards.durable.borrow_mut().move_to(shards, &name, position)
}

/// Checks a subscription and finds where it starts: what to poll with. Makes the durable subscription it names, or resumes it.
///
/// # Errors
/// What is wrong with it; `ALREADY_EXISTS` where the name's choices are others; `UNKNOWN_POSITION`.
pub(super) async fn open(shards: &Rc<Shards>, request: SubscribeRequest) -> Result<SubscribeRequest, Error> {
    let name = request.name.clone();
    let heartbeat_ms = request.heartbeat_ms;
    if name.len() > MAX_NAME {
        return Err(Error::invalid(format!("the name of a subscription has at most {MAX_NAME} bytes")));
    }
    let now_ms = shards.context.now_ms();
    let resumed = if name.is_empty() { None } else { shards.durable.borrow_mut().resume(&name, &request, now_ms)? };
    let is_resumed = resumed.is_some();
    let request = resumed.unwrap_or(request);
    let choice = Choice::new(shards, &request)?;
    if !(request.filter.is_empty() && request.columns.is_empty())
        && let Some(shard) = choice.shards().first()
    {
        let shapes = snapshot::tables(shards, &choice, shard, "").await?.0;
        let tables: Vec<_> = shapes.into_iter().map(|shape| shape.table).collect();
        choice.check(&tables)?;
    }
    let position = start::resolve(shards, &choice, &request).await?;
    let opened = SubscribeRequest { from: position.to_string(), heartbeat_ms, ..choices_of(&request) };
    if name.is_empty() || is_resumed {
        return Ok(opened);
    }
    let mut durable = shards.durable.borrow_mut();
    if durable.subscriptions.len() >= MAX_SUBSCRIPTIONS {
        let message = format!("there are {MAX_SUBSCRIPTIONS} durable subscriptions already; drop one");
        return Err(Error::new(ErrorCode::Overloaded, message));
    }
    // Another opening may have been faster.
    if durable.subscriptions.contains_key(&name) {
        return Err(Error::retryable(ErrorCode::Conflict, format!("{name:?} was made at the same time"), 0));
    }
    let choices = choices_of(&request);
    durable.store(&name, Subscription { position, choices, created_ms: now_ms, touched_ms: now_ms })?;
    durable.tend(shards)?;
    Ok(opened)
}
