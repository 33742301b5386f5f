//! What may go wrong, whose fault it is, and what the other side should do about it.

use thiserror::Error;

/// Who is at fault and whether the same request can ever succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request is wrong; sent again unchanged it fails again.
    Request,
    /// The token or its owner's rights do not allow it.
    Auth,
    /// Nothing is wrong with the request; send it again later (`retry_after_ms`).
    Busy,
    /// The peer broke the protocol; the connection is closed.
    Protocol,
    /// The server's fault.
    Internal,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident, $text:literal;)*) => {
        /// Stable number and name of an error, the same on every transport.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }

        impl ErrorCode {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),*];

            /// The number that travels.
            pub const fn number(self) -> u16 { self as u16 }

            /// The code with this number; `None` if it is none of ours (a newer peer's).
            pub const fn from_number(number: u16) -> Option<ErrorCode> {
                match number { $($number => Some(ErrorCode::$name),)* _ => None }
            }

            /// The name that travels in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// The code with this name.
            pub fn from_name(name: &str) -> Option<ErrorCode> {
                match name { $($text => Some(ErrorCode::$name),)* _ => None }
            }

            /// Whose fault it is.
            pub const fn class(self) -> ErrorClass {
                match self { $(ErrorCode::$name => ErrorClass::$class,)* }
            }
        }
    };
}

error_codes! {
    /// A frame or message that does not parse.
    Malformed = 1, Protocol, "malformed";
    /// A frame, message or handshake above its bound.
    TooLarge = 2, Protocol, "too_large";
    /// A frame whose opcode must be understood and is not.
    UnknownOpcode = 3, Protocol, "unknown_opcode";
    /// An alias that was never defined on this connection.
    UnknownAlias = 4, Protocol, "unknown_alias";
    /// A frame that is not allowed now (the first one is no `hello`, a second `hello`).
    Unexpected = 5, Protocol, "unexpected";
    /// The connection was silent, or did not say `hello`, for too long.
    Timeout = 6, Protocol, "timeout";
    /// The announced largest frame is too small.
    FrameTooSmall = 7, Protocol, "frame_too_small";
    /// The token does not parse, its signature is wrong or its key unknown.
    InvalidToken = 20, Auth, "invalid_token";
    /// The token's time is over.
    ExpiredToken = 21, Auth, "expired_token";
    /// The token was made before its user signed out everywhere, or its device was removed.
    RevokedToken = 22, Auth, "revoked_token";
    /// Wrong handle, wrong password, or no such account; which one is not told. HTTP only.
    WrongCredentials = 23, Auth, "wrong_credentials";
    /// The deployment lets nobody sign up. HTTP only.
    SignUpClosed = 24, Auth, "sign_up_closed";
    /// The other user has blocked this one, or this one the other.
    Blocked = 25, Auth, "blocked";
    /// No such channel, or the user is not in it; the two look the same on purpose.
    UnknownChannel = 40, Request, "unknown_channel";
    /// That user has never signed in.
    UnknownUser = 41, Request, "unknown_user";
    /// A direct channel with oneself.
    SelfChannel = 42, Request, "self_channel";
    /// The body is above the limit.
    BodyTooLarge = 43, Request, "body_too_large";
    /// The owner does not know the send that this one follows; send that one first.
    OutOfOrder = 44, Request, "out_of_order";
    /// So old that the stored messages cannot tell whether it was stored before.
    RetryExpired = 45, Request, "retry_expired";
    /// The asked range lies below the oldest message kept.
    Expired = 46, Request, "expired";
    /// A value is outside of what is allowed (a marker above the head, an empty range).
    Invalid = 47, Request, "invalid";
    /// The same client message id was used for another body.
    CmidReused = 48, Request, "cmid_reused";
    /// A bound on how many (devices, open requests, channels) is reached.
    LimitReached = 49, Request, "limit_reached";
    /// The handle is taken, or one that looks like it. HTTP only.
    HandleTaken = 55, Request, "handle_taken";
    /// There is no such device. HTTP only.
    UnknownDevice = 56, Request, "unknown_device";
    /// Nothing is at this address. HTTP only.
    NotFound = 57, Request, "not_found";
    /// What is at this address does not know this method. HTTP only.
    MethodNotAllowed = 58, Request, "method_not_allowed";
    /// A body that does not say that it is JSON. HTTP only.
    UnsupportedMediaType = 59, Request, "unsupported_media_type";
    /// Too fast, or a queue is full.
    Busy = 60, Busy, "busy";
    /// The store cannot take it now (no room, no quorum).
    Unavailable = 61, Busy, "unavailable";
    /// The server is going away or the user's place has moved; reconnect.
    Draining = 62, Busy, "draining";
    /// A fault of the server.
    Internal = 80, Internal, "internal";
}

/// Close codes of the WebSocket, which say what to do next (RFC 6455, 7.4; ours from 4000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// The work is done.
    Normal = 1000,
    /// The endpoint goes away: reconnect after the time that `drain` gave.
    GoingAway = 1001,
    /// The peer broke the WebSocket protocol.
    Protocol = 1002,
    /// Text where binary was agreed, or the reverse.
    Unsupported = 1003,
    /// Text that is not UTF-8.
    InvalidPayload = 1007,
    /// A message above the bound.
    TooBig = 1009,
    /// A fault of the server: reconnect later.
    Internal = 1011,
    /// Reconnect now: the session is gone but nothing is wrong with it.
    Reconnect = 4000,
    /// Reconnect later (busy).
    Later = 4001,
    /// Do not reconnect with this token.
    Auth = 4003,
    /// Do not reconnect: the client broke the protocol.
    Never = 4004,
    /// No `hello`, or no heartbeat, in time.
    Timeout = 4008,
    /// The same device connected again; the newer session lives on.
    Replaced = 4009,
}

impl CloseCode {
    /// The number that travels.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The close code that goes with an error that ends a connection.
    pub const fn for_error(code: ErrorCode) -> CloseCode {
        match code {
            ErrorCode::TooLarge => CloseCode::TooBig,
            ErrorCode::Timeout => CloseCode::Timeout,
            ErrorCode::Draining => CloseCode::GoingAway,
            _ => match code.class() {
                ErrorClass::Protocol | ErrorClass::Request => CloseCode::Never,
                ErrorClass::Auth => CloseCode::Auth,
                ErrorClass::Busy => CloseCode::Later,
                ErrorClass::Internal => CloseCode::Internal,
            },
        }
    }
}

/// Why bytes from a peer were not taken. All of these are the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("the frame ends inside a field")]
    Truncated,
    /// Bytes are left after the last field of a frame without payload.
    #[error("{0} bytes follow the last field")]
    TrailingBytes(usize),
    /// A varint that is longer than it needs to be, or longer than 10 bytes.
    #[error("a varint is not in its shortest form")]
    Varint,
    /// A number is outside of its field's range.
    #[error("the field {field} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
    },
    /// A length is above its bound.
    #[error("{field} has {actual} bytes, at most {max} are allowed")]
    TooLarge {
        /// Name of the field.
        field: &'static str,
        /// What was announced.
        actual: u64,
        /// What is allowed.
        max: u64,
    },
    /// A text field that is not UTF-8.
    #[error("the field {field} is not UTF-8")]
    NotUtf8 {
        /// Name of the field.
        field: &'static str,
    },
    /// An alias that was never defined.
    #[error("alias {0} was never defined")]
    UnknownAlias(u64),
    /// A frame that must be understood and is not.
    #[error("opcode {0:#04x} is unknown and must be understood")]
    UnknownOpcode(u8),
    /// JSON that does not parse.
    #[error("the JSON frame is not valid: {0}")]
    Json(&'static str),
    /// A JSON frame that lacks a field.
    #[error("the JSON frame lacks the field {field}")]
    MissingField {
        /// Name of the field.
        field: &'static str,
    },
    /// A JSON frame that must be understood and is not.
    #[error("the type of a JSON frame is unknown and must be understood")]
    UnknownType,
    /// More frames in one message than allowed.
    #[error("more than {0} frames in one message")]
    TooManyFrames(usize),
}

impl WireError {
    /// The stable code that is told to the peer before the connection closes.
    pub const fn code(self) -> ErrorCode {
        match self {
            WireError::TooLarge { .. } | WireError::TooManyFrames(_) => ErrorCode::TooLarge,
            WireError::UnknownAlias(_) => ErrorCode::UnknownAlias,
            WireError::UnknownOpcode(_) | WireError::UnknownType => ErrorCode::UnknownOpcode,
            _ => ErrorCode::Malformed,
        }
    }
}
