//! From a good `hello` to a live session: find the user's rows, number the device, say welcome.

use bytes::Bytes;
use chatring_wire::frame::{Failure, ServerFrame, Welcome};
use chatring_wire::limits::BODY_BYTES_MAX;
use chatring_wire::{CloseCode, DeviceId, ErrorCode, Uid};

use crate::call::CallDevice;
use crate::effect::{Attach, Effect, Identity, Input, SessionId};
use crate::keys;
use crate::kv::{Order, RangeRead, Read, ReadVersion, Rows, Write};
use crate::placement::CANDIDATES;
use crate::session::{Phase, Session};
use crate::shard::{Asker, Shard, Tag};
use crate::timers::SessionTimer;
use crate::user::{User, UserRows};
use crate::values::{DeviceRow, DeviceStanding, UserRow, ValueError};

/// Devices of a user that are read; more cannot be made.
const DEVICE_ROWS_MAX: u32 = 4_096;
const DAY_MS: u64 = 86_400_000;

/// A token that fits the rows of its user.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// From which device; 0 for none.
    pub(crate) device: DeviceId,
    /// What must be stored before anything is promised.
    pub(crate) writes: Vec<Write>,
}

/// Why a token does not let in.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// It is not good, or not now.
    Refused(Failure),
    /// The id belongs to another user.
    Elsewhere,
}

impl Shard {
    /// A connection said a good `hello`.
    pub(crate) fn attach(&mut self, session: SessionId, attach: Attach) {
        if self.draining || self.deployment().is_none() {
            let failure = Failure::new(ErrorCode::Draining).retry_after(1_000);
            return self.refuse_attach(session, failure);
        }
        let identity = &attach.identity;
        if identity.installation.is_some_and(|bound| bound != attach.installation) {
            return self.refuse_attach(session, Failure::new(ErrorCode::InvalidToken));
        }
        let key = &self.ready().key;
        let uid = key.uid(&identity.issuer, &identity.subject, attach.candidate);
        let (burst, now_ms) = (self.config.limits.sends_burst, self.now.mono_ms);
        let sessions_max = self.config.limits.sessions_per_user_max as usize;
        let user = self.users.entry(uid).or_insert_with(|| Box::new(User::new(burst, now_ms)));
        if user.sessions.len() + user.waiting.len() >= sessions_max {
            return self.refuse_attach(session, Failure::new(ErrorCode::LimitReached));
        }
        if user.rows.is_some() {
            self.sign_in(uid, session, attach);
        } else {
            user.waiting.push_back((session, attach));
            self.attaching.insert(session, uid);
            if !std::mem::replace(&mut user.loading, true) {
                self.load_user(uid);
            }
        }
        self.counters.users = self.users.len() as u64;
    }

    pub(crate) fn load_user(&mut self, uid: Uid) {
        let read = Read {
            gets: vec![keys::user(uid)],
            ranges: vec![RangeRead {
                range: keys::devices(uid),
                rows_max: DEVICE_ROWS_MAX,
                bytes_max: u32::MAX,
                order: Order::Forward,
            }],
            version: ReadVersion::Fresh,
        };
        self.read(Asker::User(uid), read);
    }

    pub(crate) fn user_rows(&mut self, uid: Uid, rows: Rows) {
        let rows = match decode_user(rows) {
            Ok(rows) => rows,
            Err(error) => return self.refuse_waiting_attaches(uid, error),
        };
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.rows = Some(rows);
        user.loading = false;
        for (session, attach) in std::mem::take(&mut user.waiting) {
            self.attaching.remove(&session);
            self.sign_in(uid, session, attach);
        }
        self.enter_waiting_calls(uid);
        self.drop_idle_user(uid);
    }

    /// The user's rows are damaged: nobody can sign in as this user.
    fn refuse_waiting_attaches(&mut self, uid: Uid, error: ValueError) {
        self.note_damage(error);
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.loading = false;
        for (session, _) in std::mem::take(&mut user.waiting) {
            self.attaching.remove(&session);
            self.refuse_attach(session, Failure::new(ErrorCode::Internal));
        }
        self.refuse_waiting_calls(uid);
        self.drop_idle_user(uid);
    }

    /// The user's rows are known: checks the token against them and finds or makes the device.
    fn sign_in(&mut self, uid: Uid, session: SessionId, attach: Attach) {
        let device = CallDevice::Installation(attach.installation);
        match self.admit(uid, &attach.identity, device) {
            Ok(Admitted { device, writes }) => self.enter(uid, device, session, attach, writes),
            Err(NotAdmitted::Refused(failure)) => self.refuse_attach(session, failure),
            Err(NotAdmitted::Elsewhere) => self.rehome(session, attach),
        }
    }

    /// Checks a token against the rows of its user, which are known, and finds or makes the device.
    pub(crate) fn admit(
        &mut self,
        uid: Uid,
        identity: &Identity,
        device: CallDevice,
    ) -> Result<Admitted, NotAdmitted> {
        let refused = |code| Err(NotAdmitted::Refused(Failure::new(code)));
        let devices_max = self.config.limits.devices_max as usize;
        let today = self.now.unix_ms / DAY_MS;
        let store = self.ready().store;
        if !self.lane.as_ref().is_some_and(|lane| lane.has_room()) {
            let failure = Failure::new(ErrorCode::Busy).retry_after(1_000);
            return Err(NotAdmitted::Refused(failure));
        }
        let Some(rows) = self.users.get_mut(&uid).and_then(|user| user.rows.as_mut()) else {
            return refused(ErrorCode::Internal);
        };
        let mut writes = Vec::new();
        match &rows.user {
            Some(row) if row.issuer != identity.issuer || row.subject != identity.subject => {
                return Err(NotAdmitted::Elsewhere);
            }
            Some(row) if identity.issued_at_s < row.revoked_before_s => {
                return refused(ErrorCode::RevokedToken);
            }
            Some(_) => {}
            None => {
                let row = UserRow {
                    issuer: identity.issuer.clone(),
                    subject: identity.subject.clone(),
                    revoked_before_s: 0,
                    rest: Default::default(),
                };
                writes.push(row.write(keys::user(uid), store));
                rows.user = Some(row);
            }
        }
        let installation = match device {
            CallDevice::None | CallDevice::Number(DeviceId(0)) => {
                return Ok(Admitted { device: DeviceId(0), writes });
            }
            CallDevice::Number(device) => {
                let row = rows.devices.get(device);
                return match row.is_some_and(|row| row.standing == DeviceStanding::Active) {
                    true => Ok(Admitted { device, writes }),
                    false => refused(ErrorCode::RevokedToken),
                };
            }
            CallDevice::Installation(installation) => installation,
        };
        let device = match rows.devices.of(installation) {
            Some((_, row)) if row.standing == DeviceStanding::Revoked => {
                return refused(ErrorCode::RevokedToken);
            }
            Some((device, row)) if row.last_seen_day == today => device,
            Some((device, row)) => {
                let row = DeviceRow { last_seen_day: today, ..row.clone() };
                writes.push(row.write(keys::device(uid, device), store));
                rows.devices.insert(device, row);
                device
            }
            None if rows.devices.len() >= devices_max => {
                return refused(ErrorCode::LimitReached);
            }
            None => {
                let device = rows.devices.next_number();
                let row = DeviceRow {
                    installation,
                    standing: DeviceStanding::Active,
                    last_seen_day: today,
                    rest: Default::default(),
                };
                writes.push(row.write(keys::device(uid, device), store));
                rows.devices.insert(device, row);
                device
            }
        };
        Ok(Admitted { device, writes })
    }

    /// Makes the session; it lives once the rows of its user and device are stored.
    fn enter(
        &mut self,
        uid: Uid,
        device: DeviceId,
        session: SessionId,
        attach: Attach,
        writes: Vec<Write>,
    ) {
        self.replace_session_of(uid, device);
        let expires_at_s = attach.identity.expires_at_s;
        let made = Session::new(uid, device, attach, self.now.mono_ms);
        self.sessions.insert(session, Box::new(made));
        self.counters.sessions = self.sessions.len() as u64;
        if let Some(user) = self.users.get_mut(&uid) {
            user.sessions.push(session);
        }
        let silence_ms = self.silence_ms_max();
        self.set_timer(session, SessionTimer::Heartbeat, self.now.mono_ms + silence_ms);
        self.set_expiry(session, expires_at_s);
        let Some(user) = self.users.get_mut(&uid) else { return };
        if writes.is_empty() && user.sign_ins_in_lane == 0 {
            return self.welcome(session);
        }
        // What this session relies on may be another one's that is still in the lane: it waits too.
        user.sign_ins_in_lane += 1;
        if self.append(writes, Tag::SignIn(uid, session)).is_err() {
            debug_assert!(false, "the lane had room");
            self.close_with(session, Failure::new(ErrorCode::Busy).retry_after(1_000));
        }
    }

    /// Of one device only the newest session lives.
    fn replace_session_of(&mut self, uid: Uid, device: DeviceId) {
        let Some(user) = self.users.get(&uid) else { return };
        let of_device =
            |id: &SessionId| self.sessions.get(id).is_some_and(|session| session.device == device);
        for old in user.sessions.iter().copied().filter(of_device).collect::<Vec<_>>() {
            self.effect(Effect::Close { session: old, code: CloseCode::Replaced });
            self.forget_session(old);
        }
    }

    pub(crate) fn sign_in_stored(&mut self, uid: Uid, session: SessionId) {
        if let Some(user) = self.users.get_mut(&uid) {
            user.sign_ins_in_lane -= 1;
        }
        self.welcome(session);
        self.drop_idle_user(uid);
    }

    fn welcome(&mut self, id: SessionId) {
        let limits = &self.config.limits;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::SigningIn { cursor } = std::mem::replace(&mut session.phase, Phase::Attached)
        else {
            return;
        };
        let welcome = Welcome {
            uid: session.uid,
            device: session.device,
            history: self.deployment.as_ref().expect("sessions exist after the start").history,
            time_ms: self.now.unix_ms,
            heartbeat_ms: limits.heartbeat_ms,
            window_pushes: limits.window_pushes,
            window_bytes: limits.window_bytes,
            frame_bytes_max: limits.frame_bytes_max,
            body_bytes_max: BODY_BYTES_MAX as u32,
            open_sends_max: limits.open_sends_max,
            durability: self.config.kv.durability,
        };
        self.counters.sessions_attached += 1;
        self.send(id, ServerFrame::Welcome(welcome));
        self.start_sync(id, chatring_wire::frame::RequestId(0), *cursor);
    }

    /// The id belongs to another user: the next candidate, which may lie with another shard.
    fn rehome(&mut self, session: SessionId, mut attach: Attach) {
        attach.candidate += 1;
        if attach.candidate >= CANDIDATES {
            return self.refuse_attach(session, Failure::new(ErrorCode::Internal));
        }
        let identity = &attach.identity;
        let uid = self.ready().key.uid(&identity.issuer, &identity.subject, attach.candidate);
        let to = self.owner_of(uid.vshard());
        if to == self.config.shard {
            let now = self.now;
            self.step(now, Input::Attach { session, attach });
        } else {
            self.effect(Effect::Rehome { session, attach, to });
        }
    }

    fn refuse_attach(&mut self, session: SessionId, failure: Failure) {
        self.counters.sessions_refused += 1;
        self.close_with(session, failure);
    }

    /// Forgets a user that nothing keeps in memory.
    pub(crate) fn drop_idle_user(&mut self, uid: Uid) {
        if self.users.get(&uid).is_some_and(|user| user.is_idle()) {
            self.users.remove(&uid);
            self.counters.users = self.users.len() as u64;
        }
    }
}

fn decode_user(rows: Rows) -> Result<UserRows, ValueError> {
    let user = rows.gets.into_iter().next().flatten().map(UserRow::decode).transpose()?;
    let decode = |(key, value): (Bytes, Bytes)| {
        let device = keys::device_of_row(&key).ok_or(ValueError::Damaged)?;
        Ok((device, DeviceRow::decode(value)?))
    };
    let rows = rows.ranges.into_iter().flat_map(|range| range.rows);
    Ok(UserRows { user, devices: rows.map(decode).collect::<Result<_, ValueError>>()? })
}
