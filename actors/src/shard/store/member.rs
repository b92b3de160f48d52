//! What a member of a shard knows of itself: its role, its epoch, and the epochs of its log.

use dosql_proto::{Configure, EpochStart, Error, ErrorCode, Fence, Fenced, MemberNoted, MemberState, WalRecord};
use prost::Message;
use rusqlite::{Connection, OptionalExtension};

use super::super::guard::own_sql;
use super::super::log::corrupt;
use super::transactions::Writer;
use super::{Failure, Store};
use crate::sql_value::sql_error;

/// How many tables this makes.
pub(super) const OWN_TABLES: usize = 1;

/// A member of a shard.
pub(in crate::shard) struct Member {
    name: String,
    pub(in crate::shard) state: MemberState,
}

/// The name of the shard that a member belongs to, before it is told: `shard-3` for `shard-3-r1`.
fn shard_of(member: &str) -> &str {
    match member.rsplit_once("-r") {
        Some((shard, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => shard,
        _ => member,
    }
}

impl Member {
    /// Reads what is stored; a member that was never told anything is what its name says.
    pub(super) fn open(connection: &Connection, name: &str) -> Result<Self, Error> {
        connection
            .execute_batch(own_sql!(
                "CREATE TABLE IF NOT EXISTS _dosql_member (id INTEGER PRIMARY KEY, state BLOB NOT NULL)"
            ))
            .map_err(sql_error)?;
        let stored: Option<Vec<u8>> = connection
            .query_row(own_sql!("SELECT state FROM _dosql_member WHERE id = 0"), [], |row| row.get(0))
            .optional()
            .map_err(sql_error)?;
        let state = match stored {
            Some(stored) => MemberState::decode(stored.as_slice()).map_err(corrupt)?,
            None => {
                let shard = shard_of(name).to_owned();
                MemberState { primary: shard.clone(), shard, ..MemberState::default() }
            }
        };
        Ok(Self { name: name.to_owned(), state })
    }

    pub(super) fn save(&self, connection: &Connection) -> Result<(), Error> {
        connection
            .prepare_cached(own_sql!("INSERT OR REPLACE INTO _dosql_member (id, state) VALUES (0, ?1)"))
            .and_then(|mut insert| insert.execute([self.state.encode_to_vec()]))
            .map(|_| ())
            .map_err(sql_error)
    }

    /// The epoch of a record of its log.
    pub(super) fn epoch_at(&self, lsn: u64) -> u64 {
        self.state.epochs.iter().rev().find(|start| start.lsn <= lsn).map_or(0, |start| start.epoch)
    }

    /// The first record of its last epoch; 0 where there was none but the first.
    pub(in crate::shard) fn epoch_begin(&self) -> u64 {
        self.state.epochs.last().map_or(0, |start| start.lsn)
    }

    /// Whether it follows another member.
    pub(in crate::shard) fn is_replica(&self) -> bool {
        self.state.primary != self.name
    }

    /// Whether it may do what only a primary may.
    pub(in crate::shard) fn is_primary(&self) -> bool {
        !self.is_replica() && self.state.promised == self.state.epoch
    }

    /// Whether the shard has other members.
    pub(in crate::shard) fn has_replicas(&self) -> bool {
        self.state.members.len() > 1
    }

    /// Fails where it is not the primary.
    pub(in crate::shard) fn check_primary(&self) -> Result<(), Error> {
        let MemberState { epoch, promised, primary, .. } = &self.state;
        if self.is_replica() {
            let message = format!("{} is a replica; its primary in epoch {epoch} is {primary}", self.name);
            return Err(not_primary(message));
        }
        if promised > epoch {
            let message = format!("{} was the primary until epoch {promised}, in which another is chosen", self.name);
            return Err(not_primary(message));
        }
        Ok(())
    }

    /// Fails where it is not the primary of this epoch.
    pub(in crate::shard) fn check_epoch(&self, epoch: u64) -> Result<(), Error> {
        self.check_primary()?;
        if epoch == self.state.epoch {
            return Ok(());
        }
        let message =
            format!("{} is the primary of epoch {}, and was asked in epoch {epoch}", self.name, self.state.epoch);
        Err(not_primary(message))
    }

    /// Fails where it does not follow the primary of this epoch.
    pub(in crate::shard) fn check_follows(&self, epoch: u64) -> Result<(), Error> {
        let MemberState { epoch: mine, promised, .. } = &self.state;
        if epoch == *mine && promised == mine {
            return Ok(());
        }
        let message = format!("{} follows the primary of epoch {mine}, and was asked in epoch {epoch}", self.name);
        Err(not_primary(message))
    }

    /// Takes over the epochs of its primary's log, as far as its own log has come; returns those that are new.
    pub(super) fn set_epochs(&mut self, epochs: &[EpochStart], last_lsn: u64) -> Vec<EpochStart> {
        let known = self.state.epochs.last().map_or(0, |start| start.epoch);
        let new: Vec<EpochStart> =
            epochs.iter().filter(|start| start.epoch > known && start.lsn <= last_lsn).copied().collect();
        self.state.epochs.extend(&new);
        new
    }
}

pub(super) fn not_primary(message: String) -> Error {
    Error::retryable(ErrorCode::NotPrimary, message, 20)
}

impl Store {
    /// Follows no earlier epoch than this one from now on.
    pub(in crate::shard) fn fence(&mut self, request: &Fence) -> Result<Fenced, Failure> {
        self.set_aside()?;
        if request.epoch > self.member.state.promised {
            // Nothing that is not prepared can become of it here.
            self.drop_writer()?;
            self.member.state.promised = request.epoch;
            self.save_member()?;
        }
        Ok(Fenced {
            last_epoch: self.member.epoch_at(self.log.last_lsn),
            last_lsn: self.log.last_lsn,
            whole: self.member.state.snapshot.is_none(),
        })
    }

    /// Takes the role that the router has decided on.
    pub(in crate::shard) fn configure(&mut self, request: Configure) -> Result<MemberNoted, Failure> {
        let Configure { shard, epoch, primary, members } = request;
        let state = &self.member.state;
        let name = &self.member.name;
        if epoch < state.promised || epoch < state.epoch {
            let message =
                format!("{name} follows epoch {} and no longer epoch {epoch}", state.promised.max(state.epoch));
            return Err(not_primary(message).into());
        }
        let known = epoch == state.epoch && primary == state.primary;
        if known && shard == state.shard && members == state.members && state.promised == epoch {
            return Ok(MemberNoted { last_lsn: self.log.last_lsn });
        }
        if !known && epoch == state.epoch && !(epoch == 0 && self.log.last_lsn == 0) {
            let message = format!("{name} knows {} as the primary of epoch {epoch}, not {primary}", state.primary);
            return Err(Error::internal(message).into());
        }
        let promoted = !known && primary == *name;
        if promoted && (state.promised != epoch || state.snapshot.is_some()) {
            let message = format!("{name} cannot be the primary of epoch {epoch}: it was not asked where it stands");
            return Err(Error::invalid(message).into());
        }
        let next = MemberState { shard, epoch, promised: epoch, primary, members, ..self.member.state.clone() };
        self.set_aside()?;
        self.drop_writer()?;
        self.member.state = next;
        self.writer = None;
        if !self.member.is_replica() {
            let _own = self.guard.own();
            self.writer = Writer::recover(&self.connection, self.context.now_ms())?;
        }
        if promoted && epoch > 0 {
            // It tells logs apart whose last records are otherwise of the same epoch.
            self.begin()?;
            let lsn = self.log.last_lsn + 1;
            let request = self.last_request().map_err(Failure::Crash)?;
            self.member.state.epochs.push(EpochStart { epoch, lsn, request });
            let hlc = self.log.next_hlc(self.context.now_ms());
            let record = WalRecord { lsn, hlc, ..WalRecord::default() }.encode_to_vec();
            let _own = self.guard.own();
            self.log.append(&self.connection, hlc, &record).map_err(Failure::Crash)?;
        }
        self.save_member()?;
        Ok(MemberNoted { last_lsn: self.log.last_lsn })
    }

    pub(super) fn save_member(&mut self) -> Result<(), Failure> {
        self.begin()?;
        let _own = self.guard.own();
        self.member.save(&self.connection).map_err(Failure::Crash)?;
        self.group = self.group.map(|units| units + 1);
        Ok(())
    }
}
