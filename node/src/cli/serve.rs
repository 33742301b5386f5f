//! `chatring serve`: runs the server until it is told to stop.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{ConfigSource, EXIT_FORCED, refuse};
use crate::config::Config;
use crate::held::HELD;
use crate::node::EmbeddedNode;
use crate::server::{self, Addresses, Ended};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// File that appears, with addresses in JSON, once the server accepts.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(super) fn run(args: ServeArgs) -> ExitCode {
    let config = match args.source.load() {
        Ok(config) => config,
        Err(error) => return refuse(error),
    };
    if let Err(error) = crate::log::start(&config.log) {
        return refuse(error);
    }
    let welcome = |addresses: &Addresses| {
        // A start may be slow, and one that fails says so in one line.
        HELD.set_bound(Duration::from_micros(config.log.held_up.as_us()));
        // Nobody may be reading; that is no reason to end.
        let _ = io::stdout().write_all(welcome(&config, addresses).as_bytes());
    };
    match server::run(&config, args.ready_file.as_deref(), EmbeddedNode::start, welcome) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        // A thread still opens the store: nothing of it is waited for.
        Ok(Ended::Unstarted) => std::process::exit(0),
        Ok(Ended::Forced) => std::process::exit(EXIT_FORCED),
        Err(error) => refuse(error),
    }
}

/// Where it listens, and lines that work in any folder, whichever way the server was started.
fn welcome(config: &Config, addresses: &Addresses) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("chatring"));
    let (program, data) = (quoted(&program), quoted(&absolute(&config.server.data)));
    let Addresses { ws, http } = addresses;
    // Whoever signs their own certificate has it trusted by name.
    let ca = match config.tls.certificate.as_os_str().is_empty() {
        true => String::new(),
        false => format!("--ca {} ", quoted(&absolute(&config.tls.certificate))),
    };
    let line = |user: &str, peer: &str| {
        format!(
            "  {program} chat --url {ws} {ca}\
             --token \"$({program} token --data {data} --user {user})\" --to {peer}\n"
        )
    };
    format!(
        "Chatring {version}\n\n  \
         clients  {ws}\n  HTTP     {http}\n  data     {data}\n\n\
         To see two people chat, paste each line into a terminal of its own:\n\n{alice}{bob}\n\
         Ctrl-C stops the server.\n",
        version = env!("CARGO_PKG_VERSION"),
        alice = line("alice", "bob"),
        bob = line("bob", "alice"),
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_odd_characters_is_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.2")), "/a/b-1.2");
        let odd = "/a b/it's $HOME";
        let script = format!("printf %s {}", quoted(Path::new(odd)));
        let output = std::process::Command::new("sh").args(["-c", &script]).output();
        assert_eq!(output.expect("a shell").stdout, odd.as_bytes());
    }
}
