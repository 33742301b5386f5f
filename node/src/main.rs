//! The binary `chatring`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    chatring_node::cli::run()
}
