//! Links: what API servers and chat nodes say to each other, over TCP.
//!
//! ```text
//!  API server                        node
//!    opening (48 bytes)         ──▶             formats it speaks, nonce
//!                               ◀── reply (80)  format agreed on, nonce, proof
//!    proof (32)                 ──▶
//!                               ◀── envelope*   welcome, answers
//!    envelope*                  ──▶             calls, withdrawals
//! ```
//!
//! The handshake and the envelope are the same for every format. What an envelope holds is an
//! archive of one format, each of which is a module that is never edited once it was released: a
//! change is a new one, and a build speaks its own and the one before. `docs/links.md` has every
//! byte.

mod envelope;
pub mod format1;
mod handshake;

pub use rkyv::util::AlignedVec;
use thiserror::Error;

pub use self::envelope::{Reader, Writer};
pub use self::handshake::{
    Agreed, Answered, ApiHandshake, ClusterKey, Formats, KEY_BYTES, NONCE_BYTES, NodeHandshake,
    OPENING_BYTES, PROOF_BYTES, REPLY_BYTES,
};

/// Longest archive in an envelope: the longest answer (a page of 50 channels, each with a message
/// of 64 KiB) twice over.
pub const ARCHIVE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of an envelope before its archive.
pub const HEADER_BYTES: usize = 16;
/// Bytes of an envelope after its archive.
pub const TAG_BYTES: usize = 16;

/// Why a link was not made, or what it brought was not taken. All but `TooLong` on our own side is
/// the peer's fault, and ends the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// The first bytes are not those of a link.
    #[error("the other side does not speak the protocol of links")]
    NotALink,
    /// The two have no format in common.
    #[error("no common format: it speaks {theirs}, we speak {ours}")]
    NoCommonFormat {
        /// Those of this side.
        ours: Formats,
        /// Those of the other side.
        theirs: Formats,
    },
    /// The other side has another key of the cluster, or none.
    #[error("the other side has another cluster key")]
    WrongKey,
    /// An envelope begins with something else.
    #[error("an envelope does not begin with its magic bytes")]
    Magic,
    /// An envelope of another format than agreed on.
    #[error("an envelope of format {0}, which was not agreed on")]
    Format(u16),
    /// Bits that mean nothing yet are set.
    #[error("an envelope has reserved bits set")]
    Reserved,
    /// An archive above the bound.
    #[error("an archive of {0} bytes, at most {ARCHIVE_BYTES_MAX} are allowed")]
    TooLong(u64),
    /// The checksum does not match: bytes were damaged on the way.
    #[error("an envelope was damaged on the way")]
    Damaged,
    /// The tag does not match: the envelope is not of the one who shook hands, or not the next.
    #[error("an envelope is not the next one of the other side")]
    Forged,
    /// The archive is none of this format.
    #[error("an archive is not what its format says")]
    Archive,
}
