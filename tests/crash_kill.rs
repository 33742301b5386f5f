//! Goal: `kill -9` loses nothing that was acknowledged, doubles nothing and delays only.
//! Method: the real binary is killed again and again under load and started again at once on the
//! same folder; clients live on, and the generator keeps the books. `tests/kill_loop.sh` does the
//! same with release builds.

use std::time::Duration;

use crate::common::Node;
use crate::common::load::{Load, verify};

const KILLS: usize = 6;

#[test]
fn six_kills_under_load_lose_and_double_nothing() {
    let mut node = Node::start();
    let ledger = node.ready_file().with_file_name("ledger");
    let load = "--users 100 --rate 800 --warmup 1s --duration 12s --body 20";
    let load = Load::start(&node, &ledger, load);
    for kill in 0..KILLS {
        // Not in step with anything that the server does once a second.
        std::thread::sleep(Duration::from_millis(1_500 + 70 * kill as u64));
        node.kill_and_restart_at_once();
    }
    assert!(!load.is_finished(), "every kill met the load");
    let report = load.report();
    assert!(report.is_good(), "{report}\n{}", node.log());
    assert_eq!(report.counts.sent, 800 * 13);
    assert!(report.reconnects >= 100 * KILLS as u64 / 2, "{report}");
    let verified = verify(&node, &ledger);
    assert!(verified.is_good(), "{verified}");
    assert_eq!(verified.lines as u64, report.counts.acked);
    // Also after one more restart without load.
    node.restart();
    assert!(verify(&node, &ledger).is_good());
}
