//! Structured logs on stderr. Nothing on a message's path logs, but what
//! held it up for long ([`crate::held`]), and no line holds a token.

use std::io;

use thiserror::Error;
use tracing::Level;

use crate::config::{Log, LogFormat, LogLevel};

/// Variable of the environment that overrides `log.level`.
pub const LEVEL_VARIABLE: &str = "CHATRING_LOG";

/// Why logs cannot be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The variable holds no level.
    #[error("{LEVEL_VARIABLE} must be error, warn, info, debug or trace, not {0:?}")]
    Level(String),
    /// Somebody else has set up logs in this process.
    #[error("logs are set up already")]
    Twice,
}

/// Sets up the logs of this process.
pub fn start(log: &Log) -> Result<(), LogError> {
    let level = match std::env::var_os(LEVEL_VARIABLE) {
        None => log.level,
        Some(name) => {
            let name = name.to_string_lossy();
            LogLevel::from_name(&name).ok_or_else(|| LogError::Level(name.into_owned()))?
        }
    };
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    let started = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
        }
    };
    started.map_err(|_| LogError::Twice)
}
