//! Goal: one conversation through every way of receiving, changed at random in the middle of
//! whatever is under way, over `kill -9`: nothing lost, doubled or out of order, and nothing given
//! again that the cursor stands for. Method: `chatring-loadgen http` on the real binary, which is
//! killed again and again; the generator keeps the books and reads all of it again at the end.

use std::time::Duration;

use crate::common::Node;
use crate::common::load::{Load, verify};

const KILLS: usize = 5;

#[test]
fn every_way_of_receiving_hands_its_cursor_to_every_other_over_kills() {
    let mut node = Node::start();
    let ledger = node.ready_file().with_file_name("ledger");
    let load = "--users 60 --rate 300 --warmup 1s --duration 10s --receive mix \
                --change-every 250ms --poll-every 50ms";
    let load = Load::start_http(&node, &ledger, load);
    for kill in 0..KILLS {
        // Not in step with anything that the server does once a second.
        std::thread::sleep(Duration::from_millis(1_500 + 70 * kill as u64));
        node.kill_and_restart_at_once();
    }
    let report = load.report();
    assert!(report.is_good() && report.errors == 0, "{report}\n{}", node.log());
    assert_eq!(report.counts.sent, 300 * 11);
    assert!(report.reconnects >= 60 * 10, "the ways change, {report}");
    let verified = verify(&node, &ledger);
    assert!(verified.is_good(), "{verified}");
    assert_eq!(verified.lines as u64, report.counts.acked);
}

#[test]
fn each_way_of_receiving_gives_every_message_once_in_order() {
    let node = Node::start();
    let ledger = node.ready_file().with_file_name("ledger");
    for (way, load) in [
        ("poll", "--rate 200 --poll-every 20ms --base"),
        ("longpoll", "--ramp 50..300"),
        ("sse", "--window 2"),
        ("ws", "--window 1 --base"),
        ("ws-json", "--steps 100,200"),
    ] {
        let load = format!("--users 20 --warmup 200ms --duration 1s --receive {way} {load}");
        let report = Load::start_http(&node, &ledger, &load).report();
        assert!(report.is_good() && report.errors == 0, "{way}: {report}\n{}", node.log());
        assert!(report.counts.delivered > 0, "{way}: {report}");
        let verified = verify(&node, &ledger);
        assert!(verified.is_good(), "{way}: {verified}");
        assert_eq!(verified.lines as u64, report.counts.acked, "{way}");
    }
}
