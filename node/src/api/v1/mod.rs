//! Version 1 of the HTTP API: each endpoint in one line, and what it does in a module by subject.

mod account;
mod channels;
mod export;
mod friends;
mod messages;
mod nodes;
mod problems;
mod profile;
mod sessions;
mod sync;
mod types;

use axum::http::Method;
use chatring_wire::ErrorCode;

use super::describe::About;
use super::endpoints::Endpoints;

/// All of them.
pub(super) fn endpoints() -> Endpoints {
    let endpoints = with_sessions(Endpoints::new());
    let endpoints = with_profiles(endpoints);
    let endpoints = with_friends(endpoints);
    let endpoints = with_channels(endpoints);
    let endpoints = with_news(endpoints);
    let about = About { id: "getNodes", tag: "nodes", summary: "The chat nodes" };
    endpoints.add((GET, "/v1/nodes"), about, &[], nodes::list)
}

const POST: Method = Method::POST;
const GET: Method = Method::GET;
const PUT: Method = Method::PUT;
const DELETE: Method = Method::DELETE;

fn with_sessions(endpoints: Endpoints) -> Endpoints {
    let about = |id, summary| About { id, tag: "accounts", summary };
    endpoints
        .add(
            (POST, "/v1/accounts"),
            about("signUp", "Sign up, and log in"),
            &[ErrorCode::HandleTaken, ErrorCode::SignUpClosed],
            sessions::sign_up,
        )
        .add(
            (POST, "/v1/sessions"),
            about("logIn", "Log in"),
            &[ErrorCode::WrongCredentials, ErrorCode::RevokedToken, ErrorCode::UnknownUser],
            sessions::log_in,
        )
        .add(
            (POST, "/v1/sessions/refresh"),
            about("refresh", "Exchange a refresh token for new tokens"),
            &[ErrorCode::InvalidToken, ErrorCode::UnknownUser],
            sessions::refresh,
        )
        .add((DELETE, "/v1/sessions/current"), about("logOut", "Log out"), &[], sessions::log_out)
        .add(
            (DELETE, "/v1/sessions"),
            about("logOutEverywhere", "Log out on all devices"),
            &[],
            sessions::log_out_everywhere,
        )
}

fn with_profiles(endpoints: Endpoints) -> Endpoints {
    let about = |id, summary| About { id, tag: "profile", summary };
    let gone = &[ErrorCode::UnknownUser];
    endpoints
        .add((GET, "/v1/me"), about("getMe", "Who I am"), gone, profile::show)
        .add(
            (Method::PATCH, "/v1/me"),
            about("changeMe", "Change my profile"),
            gone,
            profile::change,
        )
        .add(
            (DELETE, "/v1/me"),
            about("deleteMe", "Delete my account"),
            &[ErrorCode::UnknownUser, ErrorCode::WrongCredentials],
            account::delete,
        )
        .add(
            (PUT, "/v1/me/password"),
            about("changePassword", "Change my password; my other log-ins end"),
            &[ErrorCode::UnknownUser, ErrorCode::WrongCredentials],
            account::change_password,
        )
        .add((GET, "/v1/me/export"), about("export", "Everything of mine"), gone, export::export)
        .add(
            (GET, "/v1/users/{handle}"),
            about("getUser", "The profile of a user"),
            gone,
            profile::user,
        )
        .add((GET, "/v1/me/devices"), about("getDevices", "My devices"), &[], profile::devices)
        .add(
            (DELETE, "/v1/me/devices/{id}"),
            about("removeDevice", "Remove a device; its session ends"),
            &[ErrorCode::UnknownDevice],
            profile::remove_device,
        )
}

fn with_friends(endpoints: Endpoints) -> Endpoints {
    let about = |id, summary| About { id, tag: "friends", summary };
    let unknown = &[ErrorCode::UnknownUser];
    let full = &[ErrorCode::UnknownUser, ErrorCode::LimitReached];
    let befriend = &[ErrorCode::UnknownUser, ErrorCode::LimitReached, ErrorCode::Blocked];
    endpoints
        .add(
            (GET, "/v1/friends"),
            about("getFriends", "My friends, and requests in both directions"),
            &[],
            friends::list,
        )
        .add(
            (PUT, "/v1/friends/{handle}"),
            about("befriend", "Ask for friendship, or accept"),
            befriend,
            friends::befriend,
        )
        .add(
            (DELETE, "/v1/friends/{handle}"),
            about("unfriend", "Take a request back, refuse one, or end a friendship"),
            unknown,
            friends::unfriend,
        )
        .add(
            (GET, "/v1/blocks"),
            about("getBlocks", "The users that I have blocked"),
            &[],
            friends::blocks,
        )
        .add((PUT, "/v1/blocks/{handle}"), about("block", "Block a user"), full, friends::block)
        .add(
            (DELETE, "/v1/blocks/{handle}"),
            about("unblock", "Block a user no more"),
            unknown,
            friends::unblock,
        )
}

fn with_channels(endpoints: Endpoints) -> Endpoints {
    let about = |id, summary| About { id, tag: "channels", summary };
    let unknown = &[ErrorCode::UnknownChannel];
    let open = &[ErrorCode::UnknownUser, ErrorCode::SelfChannel, ErrorCode::LimitReached];
    let send = &[
        ErrorCode::UnknownChannel,
        ErrorCode::Blocked,
        ErrorCode::BodyTooLarge,
        ErrorCode::CmidReused,
        ErrorCode::RetryExpired,
    ];
    endpoints
        .add(
            (POST, "/v1/channels"),
            about("openChannel", "Open the direct channel with a user"),
            open,
            channels::open,
        )
        .add((GET, "/v1/channels"), about("getChannels", "My channels"), &[], channels::list)
        .add(
            (GET, "/v1/channels/{id}"),
            about("getChannel", "One of my channels"),
            unknown,
            channels::show,
        )
        .add(
            (POST, "/v1/channels/{id}/messages"),
            about("send", "Send a message"),
            send,
            messages::send,
        )
        .add(
            (GET, "/v1/channels/{id}/messages"),
            about("getHistory", "Messages of a channel"),
            &[ErrorCode::UnknownChannel, ErrorCode::Expired],
            messages::history,
        )
        .add(
            (PUT, "/v1/channels/{id}/markers"),
            about("mark", "Say how far I have read and received"),
            unknown,
            channels::mark,
        )
        .add(
            (POST, "/v1/channels/{id}/typing"),
            about("typing", "Say that I am typing"),
            &[ErrorCode::UnknownChannel, ErrorCode::Blocked],
            channels::typing,
        )
}

fn with_news(endpoints: Endpoints) -> Endpoints {
    let about = |id, summary| About { id, tag: "news", summary };
    endpoints
        .add(
            (GET, "/v1/sync"),
            about("sync", "What is new since a cursor; waits for it if asked to"),
            &[],
            sync::sync,
        )
        .add(
            (GET, "/v1/events"),
            about("events", "What is new, as server-sent events"),
            &[],
            sync::events,
        )
}
