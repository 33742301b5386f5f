//! libFuzzer over the target that the environment variable `FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use chatring_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is no target"))
    });
    (target.run)(data);
});
