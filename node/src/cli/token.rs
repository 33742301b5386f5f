//! `chatring token`: makes a token with the deployment's own key.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use chatring_client::token::{TOKEN_KEY_FILE, TokenKey, TokenKeyError};
use chatring_wire::limits::NAME_BYTES_MAX;
use clap::Args;

use super::refuse;
use crate::config::{Period, Server};

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// Data folder of the server.
    #[arg(long, value_name = "DIR", default_value_os_t = Server::default().data)]
    data: PathBuf,
    /// Who signs in with it: 1 to 256 bytes.
    #[arg(long, value_name = "NAME")]
    user: String,
    /// How long it is good.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: Period,
}

pub(super) fn run(args: &TokenArgs) -> ExitCode {
    if args.user.is_empty() || args.user.len() > NAME_BYTES_MAX {
        return refuse(format!("--user must have 1 to {NAME_BYTES_MAX} bytes"));
    }
    if args.ttl.as_s() == 0 {
        return refuse("--ttl must be at least 1s");
    }
    let path = args.data.join(TOKEN_KEY_FILE);
    let key = match TokenKey::read(&path) {
        Ok(key) => key,
        Err(TokenKeyError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            let data = args.data.display();
            return refuse(format!("no token key in {data}: the server makes it when it starts"));
        }
        Err(error) => return refuse(format!("{}: {error}", path.display())),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    println!("{}", key.mint(&args.user, now.as_secs(), args.ttl.as_s()));
    ExitCode::SUCCESS
}
