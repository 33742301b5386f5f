//! Version 1 of the HTTP API: each endpoint in one line, and what it does in a module by subject.

mod friends;
mod problems;
mod profile;
mod sessions;
mod types;

use axum::http::Method;
use chatring_wire::ErrorCode;

use super::describe::About;
use super::endpoints::Endpoints;

/// All of them.
pub(super) fn endpoints() -> Endpoints {
    let endpoints = with_sessions(Endpoints::new());
    let endpoints = with_profiles(endpoints);
    with_friends(endpoints)
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
            about("signUp", "Sign up; with an installation, log in, too"),
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
