//! The binary `chatring-loadgen`.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() {
    chatring_loadgen::cli::Cli::parse();
}
