//! Tests of the whole product, one module per behaviour, all in one binary.

mod cli_config;
mod cli_serve;
mod cli_token;
mod common;
mod crash_kill;
mod crash_sync;
mod net_foreign;
mod tidy;
