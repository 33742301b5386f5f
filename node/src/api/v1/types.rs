//! Forms of ids that several endpoints share.

use std::borrow::Cow;

use chatring_wire::InstallationId;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An installation of a client: 16 bytes as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InstallationText(pub InstallationId);

macro_rules! text_form {
    ($name:ident, $read:expr, $must:literal, $write:expr, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                let read: fn(&str) -> Option<$name> = $read;
                read(&text).ok_or_else(|| D::Error::custom($must))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let write: fn(&$name) -> String = $write;
                serializer.serialize_str(&write(self))
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

text_form!(
    InstallationText,
    |text| hex16(text).map(|id| InstallationText(InstallationId(id))),
    "must be 32 hexadecimal digits",
    |id| hex_of(&id.0.0),
    "^[0-9a-fA-F]{32}$"
);

/// 16 bytes from their hexadecimal digits.
pub(super) fn hex16(text: &str) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| digits)?;
    Some(number.to_be_bytes())
}

fn hex_of(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_their_form_alone() {
        let read = |text: &str| serde_json::from_str::<InstallationText>(text);
        let good = r#""00c0000000000000000000000000000A""#;
        assert_eq!(
            read(good).expect("good").0,
            InstallationId((0xc0_u128 << 112 | 10).to_be_bytes())
        );
        assert_eq!(
            serde_json::to_string(&read(good).expect("good")).expect("text"),
            good.to_lowercase()
        );
        for bad in ["\"\"", &good.replace("00c", "0c"), &good.replace("00c", "+0c"), "12", "null"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
