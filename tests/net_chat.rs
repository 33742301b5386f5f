//! Goal: people who chat see every message once and in order on each of their devices. Method: real
//! clients against the real binary, in both subprotocols.

use chatring_client::Event;
use chatring_wire::frame::Durability;
use chatring_wire::{ClientFrame, Seq, ServerFrame, Subprotocol};

use crate::common::raw::{Raw, hello, text};
use crate::common::{Node, Person, run};

#[test]
fn two_people_chat_live_both_ways_and_all_their_devices_agree() {
    let node = Node::start();
    run(async {
        let mut alice = Person::new(&node, "alice");
        let mut alice_phone = Person::speaking(&node, "alice", Subprotocol::Json);
        let mut bob = Person::speaking(&node, "bob", Subprotocol::Json);
        let mut bob_phone = Person::new(&node, "bob");
        for person in [&mut alice, &mut alice_phone, &mut bob, &mut bob_phone] {
            let connected = person.until(|event| matches!(event, Event::Connected { .. })).await;
            let fsync = matches!(connected, Event::Connected { durability, .. }
                if durability == Durability::Fsync);
            assert!(fsync, "{connected:?}");
            person.synced().await;
        }
        let cid = alice.open("bob").await;
        assert_eq!(bob.open("alice").await, cid, "one channel for the pair");
        for n in 0..20 {
            alice.say(cid, format!("alice {n}")).await;
            bob.say(cid, format!("bob {n}")).await;
            if n % 5 == 0 {
                bob.sees(&format!("alice {n}")).await;
                alice.sees(&format!("bob {n}")).await;
            }
        }
        alice_phone.open("bob").await;
        alice_phone.say(cid, "from the phone").await;
        let mut all = Vec::new();
        for person in [&mut alice, &mut alice_phone, &mut bob, &mut bob_phone] {
            for last in ["alice 19", "bob 19", "from the phone"] {
                person.sees(last).await;
            }
            all.push(person.texts(cid));
        }
        assert_eq!(all[0].len(), 41);
        assert!(all.iter().all(|texts| *texts == all[0]), "{all:?}");
        for name in ["alice", "bob"] {
            let own = all[0].iter().filter(|text| text.starts_with(name));
            let sent = (0..20).map(|n| format!("{name} {n}"));
            assert!(own.eq(&sent.collect::<Vec<_>>()), "in the order of sending");
        }
    });
}

#[test]
fn what_one_device_has_read_the_other_learns() {
    let node = Node::start();
    run(async {
        let mut alice = Person::new(&node, "alice");
        alice.synced().await;
        let mut laptop = Person::new(&node, "bob");
        let mut phone = Person::speaking(&node, "bob", Subprotocol::Json);
        laptop.synced().await;
        phone.synced().await;
        let cid = alice.open("bob").await;
        for n in 1..=5 {
            alice.say(cid, format!("{n}")).await;
        }
        laptop.sees("5").await;
        phone.sees("5").await;
        unread_is(&mut phone, cid, 5).await;
        laptop
            .client
            .with(move |session, now| session.mark(now, cid, Seq(3), Seq(5)))
            .await
            .expect("it lives")
            .expect("the positions exist");
        unread_is(&mut phone, cid, 2).await;
        let head = phone.head(cid).await;
        assert_eq!((head.read, head.received), (Seq(3), Seq(5)));
        // Markers only rise, on either device.
        phone
            .client
            .with(move |session, now| session.mark(now, cid, Seq(2), Seq(2)))
            .await
            .expect("it lives")
            .expect("the positions exist");
        // An answer counts as having read what came before it.
        phone.open("alice").await;
        phone.say(cid, "6").await;
        laptop.sees("6").await;
        unread_is(&mut laptop, cid, 0).await;
        // A device that comes later sees the same.
        let mut tablet = Person::new(&node, "bob");
        tablet.synced().await;
        let head = tablet.head(cid).await;
        assert_eq!((head.read, head.unread()), (Seq(3), 0));
    });
}

/// Waits until a person's client knows of so many unread messages.
async fn unread_is(person: &mut Person, cid: chatring_wire::Cid, unread: u64) {
    while person
        .client
        .with(move |session, _| session.channel(cid))
        .await
        .expect("it lives")
        .is_none_or(|head| head.unread() != unread)
    {
        person.event().await;
    }
}

#[test]
fn one_message_sent_again_and_again_from_two_connections_is_stored_once() {
    let node = Node::start();
    let mut bob = Raw::sign_in(&node, "bob");
    // The same installation on two connections at a time is one device: the older one is replaced,
    // in the middle of what it says.
    let token = node.token("alice");
    let mut positions = Vec::new();
    let mut cid = None;
    for round in 0..10u8 {
        let mut sessions: Vec<Raw> = Vec::new();
        for subprotocol in [Subprotocol::Binary, Subprotocol::Json] {
            let mut raw = Raw::sign_in_with(&node, subprotocol, hello(&token, "alice"));
            let cid = *cid.get_or_insert_with(|| raw.open("bob").cid);
            let frames: Vec<_> = (0..5u8)
                .flat_map(|n| [n, n])
                .map(|n| ClientFrame::Send(text(raw.next_request(), cid, n, 0, &[b'a' + n])))
                .collect();
            raw.say(&frames);
            sessions.push(raw);
        }
        let mut second = sessions.pop().expect("two");
        for _ in 0..10 {
            let answer = second.until(|frame| crate::common::raw::answers(frame).is_some());
            let ServerFrame::Sent { seq, .. } = answer else { panic!("{answer:?}") };
            positions.push(seq);
        }
        assert_eq!(positions.len(), 10 * (usize::from(round) + 1));
    }
    let expected: Vec<Seq> = (1..=5).flat_map(|n| [Seq(n), Seq(n)]).collect();
    assert!(positions.chunks(10).all(|round| round == expected), "{positions:?}");
    let mut pushed = Vec::new();
    while pushed.len() < 5 {
        if let ServerFrame::Text { seq, body, .. } = bob.frame() {
            pushed.push((seq.0, body[0] - b'a' + 1));
        }
    }
    assert_eq!(pushed, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    bob.say(&[ClientFrame::Ping { pushes: 5 }]);
    assert!(matches!(bob.frame(), ServerFrame::Pong { pushes: 5, .. }), "no sixth");
}
