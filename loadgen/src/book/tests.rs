use super::*;

const RUN: RunTag = RunTag::new(7);
const CID: Cid = Cid(0xc1d);
const BODY_BYTES: usize = 20;

/// Two users whose channel is empty; user 0 has sent `count` messages.
fn book(count: u32) -> (Book, Vec<Bytes>) {
    let mut book = Book::new(RUN, 2, BODY_BYTES);
    book.opened(0, CID, Seq(0));
    book.opened(1, CID, Seq(0));
    let bodies = (0..count).map(|number| book.sending(0, u64::from(number)).body).collect();
    (book, bodies)
}

fn deliver(book: &mut Book, seq: u64, body: &[u8]) -> Verdict {
    book.delivered(1, CID, Seq(seq), Author::Other, body)
}

fn counts(book: Book) -> Counts {
    book.finish().0
}

#[test]
fn a_run_without_fault_is_clean_and_remembers_nothing() {
    let (mut book, bodies) = book(100);
    for (number, body) in (0u32..).zip(&bodies) {
        let good = Verdict::Good { intended_ns: u64::from(number) };
        let seq = u64::from(number) + 1;
        // Ack and delivery race each other.
        if number % 2 == 0 {
            assert_eq!(book.acked(0, number, Seq(seq)), good);
            assert_eq!(deliver(&mut book, seq, body), good);
        } else {
            assert_eq!(deliver(&mut book, seq, body), good);
            assert_eq!(book.acked(0, number, Seq(seq)), good);
        }
    }
    assert_eq!(book.outstanding(), 0);
    assert!(book.users[0].entries.is_empty());
    assert!(book.channels[0].as_ref().unwrap().ahead.is_empty());
    let counts = counts(book);
    assert_eq!((counts.sent, counts.acked, counts.delivered), (100, 100, 100));
    assert!(counts.is_clean(), "{counts:?}");
}

#[test]
fn a_lost_message_is_caught() {
    let (mut book, bodies) = book(3);
    for number in 0..3 {
        book.acked(0, number, Seq(u64::from(number) + 1));
    }
    deliver(&mut book, 1, &bodies[0]);
    deliver(&mut book, 3, &bodies[2]);
    assert_eq!(book.outstanding(), 1);
    let (counts, findings) = book.finish();
    assert_eq!((counts.lost, counts.acked, counts.delivered), (1, 3, 2));
    assert!(!counts.is_clean());
    assert_eq!(findings, ["message 1 of user 0, acked at 2, is lost"]);
}

#[test]
fn an_unanswered_message_is_unacked_and_not_lost() {
    let (mut book, bodies) = book(2);
    deliver(&mut book, 1, &bodies[0]);
    let counts = counts(book);
    assert_eq!((counts.unacked, counts.lost), (2, 0));
    assert!(!counts.is_clean());
}

#[test]
fn a_doubled_message_is_caught_at_once_and_long_after() {
    let (mut book, bodies) = book(3);
    book.acked(0, 0, Seq(1));
    deliver(&mut book, 1, &bodies[0]);
    deliver(&mut book, 2, &bodies[1]);
    assert_eq!(deliver(&mut book, 3, &bodies[1]), Verdict::Fault, "stored twice");
    assert_eq!(deliver(&mut book, 4, &bodies[0]), Verdict::Fault, "forgotten as complete");
    assert_eq!(deliver(&mut book, 2, &bodies[1]), Verdict::Fault, "pushed twice");
    assert_eq!(book.acked(0, 0, Seq(1)), Verdict::Fault, "acked twice");
    let counts = counts(book);
    assert_eq!((counts.duplicated, counts.delivered), (4, 2));
}

#[test]
fn swapped_messages_are_caught() {
    let (mut book, bodies) = book(6);
    // Stored in the wrong order.
    deliver(&mut book, 1, &bodies[1]);
    deliver(&mut book, 2, &bodies[0]);
    assert_eq!(book.counts().reordered, 1);
    // Stored in order, given in the wrong one.
    deliver(&mut book, 4, &bodies[3]);
    deliver(&mut book, 3, &bodies[2]);
    assert_eq!(book.counts().reordered, 2);
    // In the sender's order, with positions that fall.
    deliver(&mut book, 6, &bodies[4]);
    deliver(&mut book, 5, &bodies[5]);
    assert_eq!(counts(book).reordered, 3);
}

#[test]
fn a_forged_body_is_caught() {
    let (mut book, bodies) = book(2);
    let mut forged = bodies[0].to_vec();
    forged[19] ^= 1;
    assert_eq!(deliver(&mut book, 1, &forged), Verdict::Fault, "a changed byte");
    assert_eq!(deliver(&mut book, 1, &bodies[0][..19]), Verdict::Fault, "cut");
    let never = Stamp { run: RUN, sender: 0, number: 2 }.body(BODY_BYTES);
    assert_eq!(deliver(&mut book, 1, &never), Verdict::Fault, "never sent");
    let other = Stamp { run: RUN, sender: 4, number: 0 }.body(BODY_BYTES);
    assert_eq!(deliver(&mut book, 1, &other), Verdict::Fault, "of a user of another channel");
    let longer = Stamp { run: RUN, sender: 0, number: 0 }.body(BODY_BYTES + 1);
    assert_eq!(deliver(&mut book, 1, &longer), Verdict::Fault, "of another length");
    let elsewhere = book.delivered(1, Cid(1), Seq(1), Author::Other, &bodies[0]);
    assert_eq!(elsewhere, Verdict::Fault, "in another channel");
    let misnamed = book.delivered(1, CID, Seq(1), Author::Receiver, &bodies[0]);
    assert_eq!(misnamed, Verdict::Fault, "with another sender");
    let counts = counts(book);
    assert_eq!((counts.corrupt, counts.delivered), (7, 0));
}

#[test]
fn an_ack_at_another_position_than_the_delivery_is_caught() {
    let (mut book, bodies) = book(2);
    book.acked(0, 0, Seq(1));
    deliver(&mut book, 2, &bodies[0]);
    assert_eq!(book.counts().conflicting, 1);
    // Two messages at one position.
    book.acked(0, 1, Seq(1));
    assert_eq!(counts(book).conflicting, 2);
}

#[test]
fn a_hole_in_the_positions_is_caught() {
    let (mut book, bodies) = book(2);
    for (number, seq) in [(0, 1), (1, 5)] {
        book.acked(0, number, Seq(seq));
        deliver(&mut book, seq, &bodies[number as usize]);
    }
    let (counts, findings) = book.finish();
    assert_eq!((counts.gaps, counts.lost), (3, 0));
    assert!(!counts.is_clean());
    assert!(findings[0].contains("3 holes, the first at 2"), "{findings:?}");
}

#[test]
fn a_hole_that_never_fills_costs_bounded_memory() {
    let mut channel = ChannelBook { cid: CID, next: 1, ahead: BTreeSet::new(), given_up: 0 };
    for seq in 3..(3 + 2 * AHEAD_MAX as u64) {
        channel.fill(Seq(seq));
        assert!(channel.ahead.len() <= AHEAD_MAX);
    }
    channel.fill(Seq(1_000_000));
    assert_eq!(channel.holes(), 2 + 1_000_000 - 3 - 2 * AHEAD_MAX as u64);
}

#[test]
fn messages_of_others_fill_positions_and_count_as_foreign() {
    let (mut book, bodies) = book(1);
    assert_eq!(deliver(&mut book, 1, b"hello from a person"), Verdict::Other);
    book.delivered(0, CID, Seq(1), Author::Other, b"hello from a person");
    let old = Stamp { run: RunTag::new(6), sender: 0, number: 9 }.body(BODY_BYTES);
    assert_eq!(deliver(&mut book, 2, &old), Verdict::Other);
    book.acked(0, 0, Seq(3));
    deliver(&mut book, 3, &bodies[0]);
    let counts = counts(book);
    assert_eq!((counts.foreign, counts.delivered), (3, 1));
    assert!(counts.is_clean(), "{counts:?}");
}

#[test]
fn ones_own_message_read_back_is_checked_and_not_counted() {
    let (mut book, bodies) = book(1);
    book.acked(0, 0, Seq(1));
    assert_eq!(book.delivered(0, CID, Seq(1), Author::Receiver, &bodies[0]), Verdict::Other);
    assert_eq!(book.counts().conflicting, 0);
    assert_eq!(book.counts().reordered, 0);
    book.delivered(0, CID, Seq(2), Author::Receiver, &bodies[0]);
    assert_eq!((book.counts().conflicting, book.counts().reordered), (1, 0));
    book.delivered(0, CID, Seq(1), Author::Receiver, &bodies[0]);
    assert_eq!((book.counts().conflicting, book.counts().reordered), (1, 1));
}

#[test]
fn a_refused_message_must_not_turn_up() {
    let (mut book, bodies) = book(2);
    book.refused(0, 1);
    assert_eq!((book.outstanding(), book.counts().refused), (1, 1));
    assert_eq!(deliver(&mut book, 1, &bodies[1]), Verdict::Fault);
    assert_eq!(book.acked(0, 1, Seq(1)), Verdict::Fault);
    assert_eq!((book.outstanding(), book.counts().conflicting), (1, 2));
}

#[test]
fn both_users_must_name_the_same_channel() {
    let mut book = Book::new(RUN, 4, BODY_BYTES);
    book.opened(2, CID, Seq(9));
    book.opened(3, Cid(5), Seq(9));
    assert_eq!((book.channel(0), book.channel(3)), (None, Some(CID)));
    assert_eq!(counts(book).conflicting, 1);
}
