//! A real file system that runs full under load, loses its filler, and goes on.
//!
//! ```text
//! mount -t tmpfs -o size=200m tmpfs /mnt/small    # or a loop-mounted ext4
//! CHATRING_FULL_DIR=/mnt/small cargo test -p chatring-node --lib full -- --ignored --nocapture
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::*;

#[test]
#[ignore = "needs a small file system of its own, named by CHATRING_FULL_DIR"]
fn a_real_full_disk_loses_nothing_acked_and_goes_on_once_there_is_room() {
    let root = PathBuf::from(std::env::var_os("CHATRING_FULL_DIR").unwrap());
    let (store_dir, filler) = (root.join("store"), root.join("filler"));
    for memtable_bytes in [4 << 20, 64 << 20] {
        let _ = fs::remove_dir_all(&store_dir);
        let (parts, fatal) = counting_parts();
        let config = EmbeddedConfig { memtable_bytes, ..EmbeddedConfig::default() };
        let store = EmbeddedStore::open_with(&store_dir, config.clone(), parts).unwrap();
        let mut client = Client::new(&store);
        let value = "v".repeat(10_000);
        let (mut acked, mut fillings) = (Vec::new(), 0);
        for number in 0..6_000 {
            if number % 1_000 == 500 {
                fill(&filler, fillings % 2 == 0);
                fillings += 1;
            }
            let key = format!("k{number:06}");
            match client.commit(writes(vec![set(&key, &value)])) {
                Outcome::Committed(_) => acked.push(key),
                Outcome::Unavailable | Outcome::Unknown(_) => {
                    // Time for the disk's own threads to run into the wall as well.
                    std::thread::sleep(Duration::from_millis(200));
                    let _ = fs::remove_file(&filler);
                    let start = Instant::now();
                    while !matches!(
                        client.commit(writes(vec![set("probe", "1")])),
                        Outcome::Committed(_)
                    ) {
                        assert!(start.elapsed() < PATIENCE, "the store goes on");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let missing =
            |client: &mut Client| acked.iter().filter(|key| client.value(key).is_none()).count();
        assert_eq!(missing(&mut client), 0);
        drop(store);
        assert_eq!(missing(&mut Client::new(&open(&store_dir))), 0);
        assert_eq!(fatal.load(SeqCst), 0);
        eprintln!("{} acked, filled up {fillings} times", acked.len());
    }
}

/// Takes all room there is: at once, or while the store goes on.
fn fill(filler: &Path, at_once: bool) {
    let file = fs::File::create(filler).unwrap();
    let take = move || {
        let found = rustix::fs::fstatvfs(&file).unwrap();
        let steps = if at_once { 1 } else { 64 };
        let step = found.f_bavail * found.f_frsize / steps;
        for number in 0..steps {
            let flags = rustix::fs::FallocateFlags::empty();
            let _ = rustix::fs::fallocate(&file, flags, number * step, step);
        }
    };
    if at_once { take() } else { drop(std::thread::spawn(take)) }
}
