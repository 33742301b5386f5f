//! Format 1 of the links and the calls of the core, either way.

use chatring_core::call::{
    Again, Answer, Call, CallDevice, CallRequest, CallResult, CallSend, CallSync, ChannelView,
    Decision, Event, More, Relation, Synced,
};
use chatring_core::effect::Identity;
use chatring_wire::frame::{
    CacheAction, ChannelKind, Failure, Head, HeadRows, Member, MessageKind, Page, Row,
    SignOutScope, UserRef,
};
use chatring_wire::link::format1 as f1;
use chatring_wire::link::{ARCHIVE_BYTES_MAX, AlignedVec, LinkError};
use chatring_wire::{
    Cid, Cmid, DeviceId, ErrorCode, InstallationId, MemberNumber, Ordinal, Seq, Uid,
};

/// A call as the other side is told it.
pub(super) fn call(ticket: u64, call: Call) -> f1::ToNode {
    let Call { identity, candidate: _, device, request } = call;
    let identity = f1::Identity {
        issuer: identity.issuer,
        subject: identity.subject,
        issued_at_s: identity.issued_at_s,
        expires_at_s: identity.expires_at_s,
        installation: identity.installation.map(|installation| installation.0),
    };
    let device = match device {
        CallDevice::None => f1::Device::None,
        CallDevice::Number(number) => f1::Device::Number(number.0),
        CallDevice::Installation(installation) => f1::Device::Installation(installation.0),
    };
    f1::ToNode::Call(f1::Call { ticket, identity, device, request: request_to(request) })
}

/// A call as it was told.
pub(super) fn call_from(call: f1::Call) -> Call {
    let identity = Identity {
        issuer: call.identity.issuer,
        subject: call.identity.subject,
        issued_at_s: call.identity.issued_at_s,
        expires_at_s: call.identity.expires_at_s,
        installation: call.identity.installation.map(InstallationId),
    };
    let device = match call.device {
        f1::Device::None => CallDevice::None,
        f1::Device::Number(number) => CallDevice::Number(DeviceId(number)),
        f1::Device::Installation(bytes) => CallDevice::Installation(InstallationId(bytes)),
    };
    Call { identity, candidate: 0, device, request: request_from(call.request) }
}

fn request_to(request: CallRequest) -> f1::Request {
    match request {
        CallRequest::SignIn => f1::Request::SignIn,
        CallRequest::Open(UserRef::Subject { issuer, subject }) => {
            f1::Request::Open(f1::User::Subject { issuer, subject })
        }
        CallRequest::Open(UserRef::Uid(uid)) => f1::Request::Open(f1::User::Uid(uid.0)),
        CallRequest::Send(send) => f1::Request::Send(f1::Send {
            cid: send.cid.0,
            cmid: send.cmid.0,
            base: send.base.map(|base| base.0),
            kind: send.kind.0,
            body: send.body,
        }),
        CallRequest::Channels { after, limit } => {
            f1::Request::Channels { after: after.map(|cid| cid.0), limit }
        }
        CallRequest::Channel(cid) => f1::Request::Channel(cid.0),
        CallRequest::History { cid, before, after, limit } => f1::Request::History {
            cid: cid.0,
            before: before.map(|seq| seq.0),
            after: after.map(|seq| seq.0),
            limit,
        },
        CallRequest::Sync(CallSync { cursor, limit, wait_ms }) => {
            f1::Request::Sync { cursor, limit, wait_ms }
        }
        CallRequest::Mark { cid, read, received } => {
            f1::Request::Mark { cid: cid.0, read: read.0, received: received.0 }
        }
        CallRequest::Typing(cid) => f1::Request::Typing(cid.0),
        CallRequest::SignOut(SignOutScope::Everywhere) => f1::Request::SignOutEverywhere,
        CallRequest::SignOut(SignOutScope::Device(device)) => f1::Request::SignOutDevice(device.0),
        CallRequest::Decided(Decision::DeviceSignedOut { installation, at_s }) => {
            f1::Request::DeviceSignedOut { installation: installation.0, at_s }
        }
        CallRequest::Decided(Decision::DeviceRemoved { installation }) => {
            f1::Request::DeviceRemoved { installation: installation.0 }
        }
        CallRequest::Decided(Decision::AccountDeleted { at_s }) => {
            f1::Request::AccountDeleted { at_s }
        }
        CallRequest::Decided(Decision::Relation(relation)) => {
            let Relation { issuer, subject, version, friends, blocked } = relation;
            f1::Request::Relation { issuer, subject, version, friends, blocked }
        }
    }
}

fn request_from(request: f1::Request) -> CallRequest {
    match request {
        f1::Request::SignIn => CallRequest::SignIn,
        f1::Request::Open(f1::User::Subject { issuer, subject }) => {
            CallRequest::Open(UserRef::Subject { issuer, subject })
        }
        f1::Request::Open(f1::User::Uid(uid)) => CallRequest::Open(UserRef::Uid(Uid(uid))),
        f1::Request::Send(send) => CallRequest::Send(CallSend {
            cid: Cid(send.cid),
            cmid: Cmid(send.cmid),
            base: send.base.map(Seq),
            kind: MessageKind(send.kind),
            body: send.body,
        }),
        f1::Request::Channels { after, limit } => {
            CallRequest::Channels { after: after.map(Cid), limit }
        }
        f1::Request::Channel(cid) => CallRequest::Channel(Cid(cid)),
        f1::Request::History { cid, before, after, limit } => CallRequest::History {
            cid: Cid(cid),
            before: before.map(Seq),
            after: after.map(Seq),
            limit,
        },
        f1::Request::Sync { cursor, limit, wait_ms } => {
            CallRequest::Sync(CallSync { cursor, limit, wait_ms })
        }
        f1::Request::Mark { cid, read, received } => {
            CallRequest::Mark { cid: Cid(cid), read: Seq(read), received: Seq(received) }
        }
        f1::Request::Typing(cid) => CallRequest::Typing(Cid(cid)),
        f1::Request::SignOutEverywhere => CallRequest::SignOut(SignOutScope::Everywhere),
        f1::Request::SignOutDevice(device) => {
            CallRequest::SignOut(SignOutScope::Device(DeviceId(device)))
        }
        f1::Request::DeviceSignedOut { installation, at_s } => {
            let installation = InstallationId(installation);
            CallRequest::Decided(Decision::DeviceSignedOut { installation, at_s })
        }
        f1::Request::DeviceRemoved { installation } => {
            let installation = InstallationId(installation);
            CallRequest::Decided(Decision::DeviceRemoved { installation })
        }
        f1::Request::AccountDeleted { at_s } => {
            CallRequest::Decided(Decision::AccountDeleted { at_s })
        }
        f1::Request::Relation { issuer, subject, version, friends, blocked } => {
            let relation = Relation { issuer, subject, version, friends, blocked };
            CallRequest::Decided(Decision::Relation(relation))
        }
    }
}

/// The archive of an answer. One that is too long, which none of today's is, becomes a failure.
pub(super) fn answer(ticket: u64, result: CallResult) -> AlignedVec {
    let outcome = match result {
        Ok(answer) => outcome_to(answer),
        Err(failure) => f1::Outcome::Failed(failure_to(failure)),
    };
    let archive = f1::ToApi::Answer { ticket, outcome }.archive();
    if archive.len() <= ARCHIVE_BYTES_MAX {
        return archive;
    }
    let failure = Failure::new(ErrorCode::Internal).text("the answer is too long for a link");
    f1::ToApi::Answer { ticket, outcome: f1::Outcome::Failed(failure_to(failure)) }.archive()
}

/// What a call has come to.
pub(super) fn result_from(outcome: f1::Outcome) -> Result<CallResult, LinkError> {
    Ok(match outcome {
        f1::Outcome::Failed(failure) => Err(failure_from(failure)),
        other => Ok(outcome_from(other)?),
    })
}

fn failure_to(failure: Failure) -> f1::Failure {
    f1::Failure {
        code: failure.code.map_or_else(|number| number, ErrorCode::number),
        text: failure.text,
        retry_after_ms: failure.retry_after_ms,
        moved_to: failure.moved_to,
    }
}

fn failure_from(failure: f1::Failure) -> Failure {
    Failure {
        code: ErrorCode::from_number(failure.code).ok_or(failure.code),
        text: failure.text,
        retry_after_ms: failure.retry_after_ms,
        moved_to: failure.moved_to,
    }
}

fn outcome_to(answer: Answer) -> f1::Outcome {
    match answer {
        Answer::Done => f1::Outcome::Done,
        Answer::SignedIn { uid, device } => f1::Outcome::SignedIn { uid: uid.0, device: device.0 },
        Answer::Channel(view) => f1::Outcome::Channel(view_to(*view)),
        Answer::Sent { seq, time_ms, again: Again::First } => {
            f1::Outcome::Sent { seq: seq.0, time_ms }
        }
        Answer::Sent { seq, time_ms, again: Again::Repeat } => {
            f1::Outcome::SentBefore { seq: seq.0, time_ms }
        }
        Answer::Unknown => f1::Outcome::Unknown,
        Answer::Continue { checked_to } => f1::Outcome::Continue { checked_to: checked_to.0 },
        Answer::Channels { channels, next } => f1::Outcome::Channels {
            channels: channels.into_iter().map(view_to).collect(),
            next: next.map(|cid| cid.0),
        },
        Answer::History(page) => f1::Outcome::History(page_to(page)),
        Answer::Synced(synced) => f1::Outcome::Synced(f1::Synced {
            replace: synced.cache == CacheAction::Replace,
            events: synced.events.into_iter().map(event_to).collect(),
            cursor: synced.cursor,
            more: synced.more == More::Yes,
        }),
    }
}

fn outcome_from(outcome: f1::Outcome) -> Result<Answer, LinkError> {
    Ok(match outcome {
        f1::Outcome::Done => Answer::Done,
        f1::Outcome::SignedIn { uid, device } => {
            Answer::SignedIn { uid: Uid(uid), device: DeviceId(device) }
        }
        f1::Outcome::Channel(view) => Answer::Channel(Box::new(view_from(view)?)),
        f1::Outcome::Sent { seq, time_ms } => {
            Answer::Sent { seq: Seq(seq), time_ms, again: Again::First }
        }
        f1::Outcome::SentBefore { seq, time_ms } => {
            Answer::Sent { seq: Seq(seq), time_ms, again: Again::Repeat }
        }
        f1::Outcome::Unknown | f1::Outcome::Failed(_) => Answer::Unknown,
        f1::Outcome::Continue { checked_to } => Answer::Continue { checked_to: Seq(checked_to) },
        f1::Outcome::Channels { channels, next } => Answer::Channels {
            channels: channels.into_iter().map(view_from).collect::<Result<_, _>>()?,
            next: next.map(Cid),
        },
        f1::Outcome::History(page) => Answer::History(page_from(page)),
        f1::Outcome::Synced(synced) => Answer::Synced(Synced {
            cache: match synced.replace {
                true => CacheAction::Replace,
                false => CacheAction::Keep,
            },
            events: synced.events.into_iter().map(event_from).collect::<Result<_, _>>()?,
            cursor: synced.cursor,
            more: match synced.more {
                true => More::Yes,
                false => More::No,
            },
        }),
    })
}

fn event_to(event: Event) -> f1::Event {
    match event {
        Event::Channel(head) => f1::Event::Channel(head_to(head)),
        Event::Page(page) => f1::Event::Page(page_to(page)),
        Event::Message { cid, uid, row } => {
            f1::Event::Message { cid: cid.0, uid: uid.0, row: row_to(row) }
        }
        Event::Marker { cid, read, read_ordinal, received } => f1::Event::Marker {
            cid: cid.0,
            read: read.0,
            read_ordinal: read_ordinal.0,
            received: received.0,
        },
        Event::Typing { cid, uid } => f1::Event::Typing { cid: cid.0, uid: uid.0 },
    }
}

fn event_from(event: f1::Event) -> Result<Event, LinkError> {
    Ok(match event {
        f1::Event::Channel(head) => Event::Channel(head_from(head)?),
        f1::Event::Page(page) => Event::Page(page_from(page)),
        f1::Event::Message { cid, uid, row } => {
            Event::Message { cid: Cid(cid), uid: Uid(uid), row: row_from(row) }
        }
        f1::Event::Marker { cid, read, read_ordinal, received } => Event::Marker {
            cid: Cid(cid),
            read: Seq(read),
            read_ordinal: Ordinal(read_ordinal),
            received: Seq(received),
        },
        f1::Event::Typing { cid, uid } => Event::Typing { cid: Cid(cid), uid: Uid(uid) },
    })
}

fn view_to(view: ChannelView) -> f1::ChannelView {
    let peer = view.peer.map(|member| f1::Member {
        number: member.number.0,
        uid: member.uid.0,
        issuer: member.issuer,
        subject: member.subject,
    });
    f1::ChannelView { head: head_to(view.head), peer, last: view.last.map(row_to) }
}

fn view_from(view: f1::ChannelView) -> Result<ChannelView, LinkError> {
    let peer = view.peer.map(|member| Member {
        number: MemberNumber(member.number),
        uid: Uid(member.uid),
        issuer: member.issuer,
        subject: member.subject,
    });
    Ok(ChannelView { head: head_from(view.head)?, peer, last: view.last.map(row_from) })
}

fn head_to(head: Head) -> f1::Head {
    f1::Head {
        cid: head.cid.0,
        kind: head.kind as u8,
        peer: head.peer.map(|uid| uid.0),
        me: head.me.0,
        head: head.head.0,
        ordinal: head.ordinal.0,
        floor: head.floor.0,
        read: head.read.0,
        read_ordinal: head.read_ordinal.0,
        received: head.received.0,
        rows: match head.rows {
            HeadRows::Unchanged => f1::HeadRows::Unchanged,
            HeadRows::Follow => f1::HeadRows::Follow,
            HeadRows::Stale => f1::HeadRows::Stale,
        },
    }
}

fn head_from(head: f1::Head) -> Result<Head, LinkError> {
    Ok(Head {
        cid: Cid(head.cid),
        kind: ChannelKind::from_number(head.kind).ok_or(LinkError::Archive)?,
        peer: head.peer.map(Uid),
        me: MemberNumber(head.me),
        head: Seq(head.head),
        ordinal: Ordinal(head.ordinal),
        floor: Seq(head.floor),
        read: Seq(head.read),
        read_ordinal: Ordinal(head.read_ordinal),
        received: Seq(head.received),
        rows: match head.rows {
            f1::HeadRows::Unchanged => HeadRows::Unchanged,
            f1::HeadRows::Follow => HeadRows::Follow,
            f1::HeadRows::Stale => HeadRows::Stale,
        },
    })
}

fn page_to(page: Page) -> f1::Page {
    f1::Page {
        cid: page.cid.0,
        from: page.from.0,
        to: page.to.0,
        gap: page.gap,
        rows: page.rows.into_iter().map(row_to).collect(),
    }
}

fn page_from(page: f1::Page) -> Page {
    Page {
        cid: Cid(page.cid),
        from: Seq(page.from),
        to: Seq(page.to),
        gap: page.gap,
        rows: page.rows.into_iter().map(row_from).collect(),
    }
}

fn row_to(row: Row) -> f1::Row {
    f1::Row {
        seq: row.seq.0,
        ordinal: row.ordinal.0,
        kind: row.kind.0,
        sender: row.sender.0,
        device: row.device.0,
        cmid: row.cmid.0,
        time_ms: row.time_ms,
        body: row.body,
    }
}

fn row_from(row: f1::Row) -> Row {
    Row {
        seq: Seq(row.seq),
        ordinal: Ordinal(row.ordinal),
        kind: MessageKind(row.kind),
        sender: MemberNumber(row.sender),
        device: DeviceId(row.device),
        cmid: Cmid(row.cmid),
        time_ms: row.time_ms,
        body: row.body,
    }
}
