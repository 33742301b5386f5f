//! The devices that the accounts remove in a run, told to the node until it has answered, sometimes
//! once more, and what must hold from the answer on.

use std::collections::BTreeMap;

use chatring_core::call::{Answer, Call, CallId, CallResult, Decision};
use chatring_core::effect::SessionId;
use chatring_core::kv::prng::Prng;
use chatring_wire::InstallationId;

use crate::device::{Device, Outcome, Sent};
use crate::node::Node;
use crate::plan::Plan;

/// Calls about removals are numbered from here, so that nobody else has one of them.
const FIRST_CALL: u64 = 1 << 41;
/// Virtual time after which an answer is not waited for any more.
const PATIENCE_MS: u64 = 3_000;
/// Virtual time in which the sessions of a removed device must have ended.
const END_MS_MAX: u64 = 1_000;
/// Removals of a run, and devices that it keeps at least, so that it gets its messages stored.
const REMOVALS_MAX: usize = 3;
const DEVICES_MIN: usize = 3;
/// Devices that are looked at for one that is connected: those that are not have little to lose.
const DRAWS_MAX: usize = 8;

/// What was removed, and what the node has answered.
pub struct Removals {
    /// What was met, by name.
    pub met: BTreeMap<&'static str, u64>,
    dice: Prng,
    removed: BTreeMap<usize, Removed>,
    open: BTreeMap<CallId, Open>,
    next_ms: u64,
    calls: u64,
    enabled: bool,
}

/// A device that was removed.
struct Removed {
    user: usize,
    installation: InstallationId,
    answered: Option<Answered>,
    try_at_ms: u64,
}

/// How it was when the node answered.
struct Answered {
    at_ms: u64,
    /// The session that the device had then.
    session: Option<SessionId>,
    /// When that is looked at.
    look_at_ms: Option<u64>,
    /// What the device had sent by then.
    sends: usize,
}

struct Open {
    device: usize,
    give_up_ms: u64,
}

impl Removals {
    /// The removals of a plan. Drawn apart, so that the rest of a seed is the same without them.
    pub fn new(plan: &Plan) -> Removals {
        let mut dice = Prng::new(plan.seed ^ 0xdead);
        Removals {
            met: BTreeMap::new(),
            enabled: dice.happens(500),
            next_ms: 500 + dice.below(6_000),
            dice,
            removed: BTreeMap::new(),
            open: BTreeMap::new(),
            calls: FIRST_CALL,
        }
    }

    /// When something happens next.
    pub fn next_ms(&self, quiet: bool) -> Option<u64> {
        let removed = self.removed.iter().filter_map(|(device, removed)| match &removed.answered {
            None => (!self.is_told(*device)).then_some(removed.try_at_ms),
            Some(answered) => answered.look_at_ms,
        });
        let open = self.open.values().map(|open| open.give_up_ms);
        let decides = (self.enabled && !quiet).then_some(self.next_ms);
        removed.chain(open).chain(decides).min()
    }

    /// Whether the node has answered everything.
    pub fn are_settled(&self) -> bool {
        self.removed.values().all(|removed| removed.answered.is_some())
    }

    fn is_told(&self, device: usize) -> bool {
        self.open.values().any(|open| open.device == device)
    }

    /// The accounts remove a device, and tell the node what it has not answered.
    pub fn act(
        &mut self,
        now_ms: u64,
        quiet: bool,
        devices: &mut [Device],
        is_connected: impl Fn(usize) -> bool,
        node: &mut Node,
    ) {
        self.open.retain(|_, open| open.give_up_ms > now_ms);
        if self.enabled && !quiet && self.next_ms <= now_ms {
            self.next_ms = now_ms + 1 + self.dice.below(12_000);
            self.remove(now_ms, devices, is_connected);
        }
        let due: Vec<usize> = self
            .removed
            .iter()
            .filter(|(device, removed)| {
                let waits = removed.answered.is_none() && removed.try_at_ms <= now_ms;
                waits && !self.is_told(**device)
            })
            .map(|(device, _)| *device)
            .collect();
        for device in due {
            if node.is_up() {
                self.tell(now_ms, device, node);
            } else if let Some(removed) = self.removed.get_mut(&device) {
                removed.try_at_ms = now_ms + 1 + self.dice.below(200);
            }
        }
    }

    fn remove(
        &mut self,
        now_ms: u64,
        devices: &mut [Device],
        is_connected: impl Fn(usize) -> bool,
    ) {
        let room = devices.len().saturating_sub(DEVICES_MIN).min(REMOVALS_MAX);
        let draws: [usize; DRAWS_MAX] =
            std::array::from_fn(|_| self.dice.below(devices.len() as u64) as usize);
        let device = draws.into_iter().find(|device| is_connected(*device)).unwrap_or(draws[0]);
        let chosen = &mut devices[device];
        // The accounts know of a device once it has signed in.
        if self.removed.len() >= room || chosen.is_removed || chosen.uid.is_none() {
            return;
        }
        chosen.is_removed = true;
        let (user, installation) = (chosen.user, chosen.image.installation);
        let removed = Removed { user, installation, answered: None, try_at_ms: now_ms };
        self.removed.insert(device, removed);
        *self.met.entry("removal").or_default() += 1;
        if is_connected(device) {
            *self.met.entry("removal: of a connected device").or_default() += 1;
        }
    }

    fn tell(&mut self, now_ms: u64, device: usize, node: &mut Node) {
        let Some(removed) = self.removed.get(&device) else { return };
        self.calls += 1;
        let call = CallId(self.calls);
        let decision = Decision::DeviceRemoved { installation: removed.installation };
        self.open.insert(call, Open { device, give_up_ms: now_ms + PATIENCE_MS });
        node.call(call, Call::decided(String::new(), format!("user-{}", removed.user), decision));
    }

    /// Whether an answer is one to a removal.
    pub fn made(call: CallId) -> bool {
        call.0 >= FIRST_CALL
    }

    /// Takes in an answer. `session` is what a device has.
    pub fn answered(
        &mut self,
        now_ms: u64,
        call: CallId,
        answer: &CallResult,
        devices: &[Device],
        session: impl Fn(usize) -> Option<SessionId>,
        node: &mut Node,
    ) {
        let Some(Open { device, .. }) = self.open.remove(&call) else { return };
        let Some(removed) = self.removed.get_mut(&device) else { return };
        if removed.answered.is_some() {
            return;
        }
        if !matches!(answer, Ok(Answer::Done)) {
            removed.try_at_ms = now_ms + 1 + self.dice.below(100);
            return;
        }
        let (session, sends) = (session(device), devices[device].sends.len());
        *self.met.entry("removal: answered").or_default() += 1;
        if session.is_some() {
            *self.met.entry("removal: answered to a live device").or_default() += 1;
        }
        let look_at_ms = session.map(|_| now_ms + END_MS_MAX);
        removed.answered = Some(Answered { at_ms: now_ms, session, look_at_ms, sends });
        // Somebody else carries the same out.
        if self.dice.happens(300) {
            self.tell(now_ms, device, node);
        }
    }

    /// The node died, and all calls with it.
    pub fn node_died(&mut self) {
        self.open.clear();
    }

    /// The session of a removed device has ended in time.
    pub fn have_ended(
        &mut self,
        now_ms: u64,
        devices: &[Device],
        node: &Node,
    ) -> Result<(), String> {
        for (device, removed) in &mut self.removed {
            let Some(answered) = &mut removed.answered else { continue };
            if answered.look_at_ms.take_if(|at| *at <= now_ms).is_some()
                && answered.session.is_some_and(|session| node.has(session))
            {
                let (name, at_ms) = (&devices[*device].name, answered.at_ms);
                return Err(format!("{name} was removed at {at_ms}, but its session goes on"));
            }
        }
        Ok(())
    }

    /// A session was welcomed: none of a device that was removed before it began.
    pub fn lets_in(&self, index: usize, name: &str, session: SessionId) -> Result<(), String> {
        let answered = self.removed.get(&index).and_then(|removed| removed.answered.as_ref());
        match answered {
            Some(answered) if answered.session != Some(session) => {
                Err(format!("{name} was removed at {}, but let in", answered.at_ms))
            }
            _ => Ok(()),
        }
    }

    /// Nothing that a device sent after its end was acknowledged or is stored.
    pub fn hold(
        &self,
        devices: &[Device],
        is_stored: impl Fn(&Sent) -> bool,
    ) -> Result<(), String> {
        for (device, removed) in &self.removed {
            let Some(answered) = &removed.answered else { continue };
            let device = &devices[*device];
            for send in &device.sends[answered.sends..] {
                if matches!(send.outcome, Outcome::Stored(_)) || is_stored(send) {
                    let (body, at_ms) = (&send.body, answered.at_ms);
                    return Err(format!("{} was removed at {at_ms}, but sent {body}", device.name));
                }
            }
        }
        Ok(())
    }
}
