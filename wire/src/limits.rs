//! Every bound of the protocol, with its unit last in the name, and how they relate.

/// Longest body of a message.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Smallest "largest frame" that a client may announce in `hello`; a smaller one is refused.
pub const FRAME_BYTES_MIN: usize = 72 * 1024;
/// Largest frame that a server accepts and makes by default.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;
/// Largest WebSocket message: one or many frames.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Most fragments of one WebSocket message.
pub const FRAGMENTS_MAX: usize = 64;
/// Most frames in one WebSocket message.
pub const FRAMES_PER_MESSAGE_MAX: usize = 4096;
/// Longest token.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest cursor.
pub const CURSOR_BYTES_MAX: usize = 1024;
/// Longest issuer or subject of a user.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest human-readable text of an error.
pub const ERROR_TEXT_BYTES_MAX: usize = 256;
/// Longest URL of a node (`moved_to`).
pub const URL_BYTES_MAX: usize = 1024;
/// Most aliases of one direction of a connection; channels beyond it travel with full ids.
pub const ALIASES_MAX: usize = 4096;
/// Most bytes of a varint.
pub const VARINT_BYTES_MAX: usize = 10;
/// Most rows in one `rows` or `page` frame.
pub const ROWS_PER_FRAME_MAX: usize = 256;
/// Most member numbers in one `who`.
pub const WHO_MEMBERS_MAX: usize = 64;
/// Longest request head of a WebSocket handshake.
pub const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;
/// Most headers of a handshake.
pub const HANDSHAKE_HEADERS_MAX: usize = 64;
/// Largest number that JSON carries exactly.
pub const JSON_NUMBER_MAX: u64 = (1 << 53) - 1;

const _: () = assert!(BODY_BYTES_MAX + 1024 <= FRAME_BYTES_MIN);
const _: () = assert!(FRAME_BYTES_MIN <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(CURSOR_BYTES_MAX + TOKEN_BYTES_MAX + 1024 <= FRAME_BYTES_MIN);
