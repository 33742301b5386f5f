//! Tests of the whole product, one module per behaviour, all in one binary.

mod cli_chat;
mod cli_config;
mod cli_serve;
mod cli_token;
mod common;
mod crash_full;
mod crash_kill;
mod crash_sync;
mod hostile_floods;
mod hostile_frames;
mod hostile_handshake;
mod hostile_requests;
mod hostile_tokens;
mod http_accounts;
mod http_port;
mod load_share;
mod net_behind;
mod net_chat;
mod net_drain;
mod net_drivers;
mod net_foreign;
mod net_resume;
mod net_wakeups;
mod tidy;
