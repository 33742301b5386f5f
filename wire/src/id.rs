//! Identifiers and positions as types of their own, so that none is taken for another.

use std::fmt;

/// Number of vshards; every user and channel belongs to one.
pub const VSHARDS: u16 = 4096;
/// How many top bits of an id name its vshard.
pub const VSHARD_BITS: u32 = 12;

macro_rules! id64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The slot that this id belongs to: its top 12 bits.
            pub const fn vshard(self) -> Vshard {
                Vshard((self.0 >> (64 - VSHARD_BITS)) as u16)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:016x})"), self.0)
            }
        }

        /// Sixteen lower-case hexadecimal digits, the form that JSON uses.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

id64! {
    /// A user. Derived from (issuer, subject) by a keyed hash: evenly spread, never time-ordered.
    Uid
}
id64! {
    /// A channel. A direct one's is derived from its pair of users and lies in the vshard of one.
    Cid
}

/// One of 4,096 slots that users and channels are spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vshard(pub u16);

/// A device of a user, numbered from 1 by the server; 0 stands for sends without an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// One installation of a client: 16 random bytes that it makes once and keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstallationId(pub [u8; 16]);

/// A client's id of a message (UUIDv7), unique per device; a retry carries the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cmid(pub [u8; 16]);

/// Position of a message in its channel: dense, from 1; 0 means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The position after this one. The largest number, which a peer may name, has none.
    pub const fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }
}

/// How many of a channel's entries up to here count as unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u64);

/// A member's number in its channel, never reused; in a direct channel 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberNumber(pub u32);

/// Names one history of a deployment; it changes only when a backup is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryId(pub u64);

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                for byte in self.0 {
                    write!(f, "{byte:02x}")?;
                }
                f.write_str(")")
            }
        }
    )*};
}
hex_debug!(InstallationId, Cmid);
