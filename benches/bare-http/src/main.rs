//! The binary `chatring-bare-http`: what HTTP costs by itself, on the libraries that the node uses.

#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What it answers: as long as what the node does.
const ANSWER: &str = concat!(
    r#"{"seq":100000,"time":1795000000000,"durability":"none","#,
    r#""cmid":"0123456789abcdef0123456789abcdef"}"#
);

/// An axum handler in one thread that takes a message and answers 201, and keeps nothing.
#[derive(Debug, Parser)]
#[command(name = "chatring-bare-http", version)]
struct Cli {
    /// Where to listen; a line on standard output says which port it is
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chatring-bare-http: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let router = Router::new().route("/v1/channels/{id}/messages", post(send));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(cli.listen).await?;
        println!("listening on {}", listener.local_addr()?);
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // As the node does.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router).await
    })
}

async fn send(_body: Bytes) -> impl IntoResponse {
    (StatusCode::CREATED, [(CONTENT_TYPE, "application/json")], ANSWER)
}
