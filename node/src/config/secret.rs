//! The URL of a database, which may hold a password: it is never shown.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize, Serializer};

/// What stands in the place of a password.
const HIDDEN: &str = "***";

/// The URL of a database. Its text is read by [`Deref`]; whoever prints, logs or writes it gets it
/// without its password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The same without its password.
    pub fn shown(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return self.0.clone() };
        // A password may hold any character unescaped, so whatever is before the last "@" is taken
        // for it rather than shown.
        let (user, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => {
                let user = credentials.split_once(':').map(|(user, _)| format!("{user}:{HIDDEN}"));
                (user.unwrap_or_else(|| credentials.to_owned()) + "@", place)
            }
            None => (String::new(), rest),
        };
        let place = match place.split_once('?') {
            Some((place, query)) => {
                let shown = query.split('&').map(|one| match one.split_once('=') {
                    Some((name, _)) if name.to_ascii_lowercase().contains("pass") => {
                        format!("{name}={HIDDEN}")
                    }
                    _ => one.to_owned(),
                });
                format!("{place}?{}", shown.collect::<Vec<_>>().join("&"))
            }
            None => place.to_owned(),
        };
        format!("{scheme}://{user}{place}")
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> DatabaseUrl {
        DatabaseUrl(url)
    }
}

impl Deref for DatabaseUrl {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown(), f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("", ""),
            ("postgres://db/chat", "postgres://db/chat"),
            ("postgres://chat@db:5432/chat", "postgres://chat@db:5432/chat"),
            ("postgres://chat:s3cret@db/chat", "postgres://chat:***@db/chat"),
            ("postgres://chat:s3/c@r:et@db/chat", "postgres://chat:***@db/chat"),
            (
                "postgres:///chat?host=/run&password=s3cret&sslpassword=s3cret",
                "postgres:///chat?host=/run&password=***&sslpassword=***",
            ),
        ] {
            let url = DatabaseUrl::from(url.to_owned());
            assert_eq!(url.shown(), shown);
            assert!(!format!("{url:?}").contains("s3cret"));
        }
    }
}
