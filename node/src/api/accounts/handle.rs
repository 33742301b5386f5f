//! Handles: one spelling of each, and no two that look alike.
//!
//! ```text
//!   "Ａlice" ─▶ NFKC, case folded until nothing changes ─▶ "alice"     the handle
//!   "alice"  ─▶ skeleton (UTS 39), case folded          ─▶ "allce"?    what it looks like
//! ```
//!
//! Characters are those that UTS 39 allows in identifiers, and `.`, `-`, `_` within. All letters
//! are of one script (UTS 39, 5.1; Japanese and Korean count as one), all digits of one system.

use ring::digest;
use thiserror::Error;
use unicode_normalization::UnicodeNormalization as _;
use unicode_security::{GeneralSecurityProfile as _, MixedScript as _, skeleton};

use super::hex;
use super::limits::{HANDLE_BYTES_MAX, HANDLE_CHARS_MAX, HANDLE_CHARS_MIN};

/// Rounds of normalising and folding after which every text that settles has settled.
const ROUNDS_MAX: usize = 4;

/// Handles that nobody may take, because others would take them for the server's voice, or because
/// programs give them a meaning.
const RESERVED: &[&str] = &[
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "all",
    "anonymous",
    "api",
    "bot",
    "channel",
    "chatring",
    "contact",
    "daemon",
    "deleted",
    "everybody",
    "everyone",
    "help",
    "here",
    "hostmaster",
    "info",
    "login",
    "logout",
    "mail",
    "me",
    "mod",
    "moderator",
    "news",
    "nobody",
    "noreply",
    "null",
    "official",
    "operator",
    "owner",
    "postmaster",
    "root",
    "security",
    "server",
    "service",
    "signup",
    "staff",
    "support",
    "sysadmin",
    "system",
    "team",
    "undefined",
    "unknown",
    "user",
    "users",
    "webmaster",
];

/// A handle in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle(String);

/// Why a text is no handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandleError {
    /// Too short or too long.
    #[error("a handle has {HANDLE_CHARS_MIN} to {HANDLE_CHARS_MAX} characters")]
    Length,
    /// A character that handles do not have, or at a place where it may not be.
    #[error("a handle has letters and digits, and `.`, `-` or `_` between them")]
    Character,
    /// Letters of several scripts, or digits of several systems.
    #[error("a handle has letters of one script and digits of one kind")]
    Mixed,
    /// It is reserved, or looks like one that is.
    #[error("this handle is reserved")]
    Reserved,
}

impl Handle {
    /// The handle that a text means.
    pub fn parse(text: &str) -> Result<Handle, HandleError> {
        if text.len() > HANDLE_BYTES_MAX {
            return Err(HandleError::Length);
        }
        let folded = fold(text).ok_or(HandleError::Character)?;
        let chars = folded.chars().count();
        if !(HANDLE_CHARS_MIN..=HANDLE_CHARS_MAX).contains(&chars) {
            return Err(HandleError::Length);
        }
        let mut before = None;
        for c in folded.chars() {
            // Two marks in a row are hard to tell from one.
            let good = if is_joiner(c) {
                before.is_some_and(|before| !is_joiner(before))
            } else {
                is_letter_or_digit(c)
            };
            if !good {
                return Err(HandleError::Character);
            }
            before = Some(c);
        }
        if before.is_some_and(is_joiner) {
            return Err(HandleError::Character);
        }
        let ascii = folded.chars().any(|c| c.is_ascii_digit());
        let other = folded.chars().any(|c| !c.is_ascii() && c.is_numeric() && !c.is_alphabetic());
        if !folded.as_str().is_single_script() || (ascii && other) {
            return Err(HandleError::Mixed);
        }
        Ok(Handle(folded))
    }

    /// Refuses handles that look like a reserved one, among the built-in ones and `more`.
    pub fn check_free(&self, more: &[String]) -> Result<(), HandleError> {
        let mine = self.skeleton();
        let built_in = RESERVED.iter().copied();
        let mut all = built_in.chain(more.iter().map(String::as_str));
        match all.any(|reserved| looks_of(&fold(reserved).unwrap_or_default()) == mine) {
            true => Err(HandleError::Reserved),
            false => Ok(()),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it looks like: equal for any two that people could take for each other.
    pub fn skeleton(&self) -> String {
        looks_of(&self.0)
    }

    /// What is kept of a deleted one.
    pub(super) fn retired(skeleton: &str) -> String {
        hex(digest::digest(&digest::SHA256, format!("retired {skeleton}").as_bytes()).as_ref())
    }
}

/// NFKC and case folding until nothing changes. Upper case and then lower case, a character at a
/// time, merges whatever Unicode's full case folding does.
fn fold(text: &str) -> Option<String> {
    let mut folded = text.to_owned();
    for _ in 0..ROUNDS_MAX {
        let cased = folded.nfkc().flat_map(char::to_uppercase).flat_map(char::to_lowercase);
        let next: String = cased.nfkc().collect();
        if next == folded {
            return Some(folded);
        }
        folded = next;
    }
    None
}

fn looks_of(folded: &str) -> String {
    let looks: String = skeleton(folded).collect();
    // `0` looks like `O`, and `O` is `o`.
    fold(&looks).map_or(looks, |folded| skeleton(&folded).collect())
}

fn is_joiner(c: char) -> bool {
    matches!(c, '.' | '-' | '_')
}

fn is_letter_or_digit(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() } else { c.identifier_allowed() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> String {
        Handle::parse(text).expect(text).as_str().to_owned()
    }

    fn looks(text: &str) -> String {
        Handle::parse(text).expect(text).skeleton()
    }

    #[test]
    fn a_handle_has_one_spelling() {
        for text in ["alice", "Alice", "ALICE", "Ａｌｉｃｅ", "ａlice"] {
            assert_eq!(parsed(text), "alice", "{text}");
        }
        assert_eq!(parsed("Straße"), "strasse");
        assert_eq!(parsed("ΣΊΣΥΦΟΣ"), parsed("σίσυφος"));
        assert_eq!(parsed("Zoe\u{308}"), parsed("ZOË"));
        assert_eq!(parsed("ﬁona"), "fiona");
        assert_eq!(parsed("田中さん"), "田中さん");
        assert_eq!(parsed("김철수"), "김철수");
        assert_eq!(parsed("a.b-c_d"), "a.b-c_d");
    }

    #[test]
    fn handles_that_look_alike_have_the_same_looks() {
        let same = [
            ("paypal", "paypa1"),
            ("bob", "b0b"),
            ("modern", "rnodern"),
            ("аса", "aca"), // Cyrillic, Latin
            ("will", "wi11"),
        ];
        for (one, other) in same {
            assert_eq!(looks(one), looks(other), "{one} {other}");
        }
        for (one, other) in [("alice", "alicia"), ("bob", "bod"), ("user1", "user2")] {
            assert_ne!(looks(one), looks(other), "{one} {other}");
        }
    }

    #[test]
    fn texts_that_are_no_handles_are_refused() {
        use HandleError::{Character, Length, Mixed};
        let refused = [
            ("", Length),
            ("a", Length),
            (&"a".repeat(33), Length),
            (&"a".repeat(100_000), Length),
            ("a b", Character),
            (".alice", Character),
            ("alice.", Character),
            ("al..ice", Character),
            ("al@ice", Character),
            ("al/ice", Character),
            ("ali\u{200d}ce", Character),
            ("ali\u{202e}ce", Character),
            ("ali\u{0}ce", Character),
            ("😀😀", Character),
            ("аlice", Mixed), // a Cyrillic letter first
            ("alicе", Mixed), // and last
            ("1٢", Mixed),
        ];
        for (text, error) in refused {
            assert_eq!(Handle::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn reserved_handles_and_their_likes_are_refused() {
        let free = |text: &str| Handle::parse(text).expect(text).check_free(&["Acme".to_owned()]);
        for text in ["admin", "Admin", "ROOT", "r00t", "rne", "support", "acme"] {
            assert_eq!(free(text), Err(HandleError::Reserved), "{text}");
        }
        assert_eq!(free("alice"), Ok(()));
    }

    proptest! {
        #[test]
        fn a_handle_means_itself(text in "\\PC{0,40}") {
            if let Ok(handle) = Handle::parse(&text) {
                prop_assert_eq!(Handle::parse(handle.as_str()), Ok(handle));
            }
        }
    }
}
