//! The store engines behind `chatring_core::kv::Kv`.
#![forbid(unsafe_code)]

pub mod embedded;
