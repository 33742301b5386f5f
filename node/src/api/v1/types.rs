//! Forms of ids and bytes that several endpoints share.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use chatring_wire::{Cid, Cmid, InstallationId, Uid};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reads base64url with padding and without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An installation of a client: 16 bytes as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InstallationText(pub InstallationId);

/// A channel: 64 bits as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CidText(pub Cid);

/// A client's id of a message: 16 bytes as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CmidText(pub Cmid);

/// A user in the chat: 64 bits as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UidText(pub Uid);

/// Bytes as base64url.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base64(pub Bytes);

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
    CidText,
    |text| hex8(text).map(|id| CidText(Cid(id))),
    "must be 16 hexadecimal digits",
    |id| id.0.to_string(),
    "^[0-9a-fA-F]{16}$"
);
text_form!(
    UidText,
    |text| hex8(text).map(|id| UidText(Uid(id))),
    "must be 16 hexadecimal digits",
    |id| id.0.to_string(),
    "^[0-9a-fA-F]{16}$"
);
text_form!(
    CmidText,
    |text| hex16(text).map(|id| CmidText(Cmid(id))),
    "must be 32 hexadecimal digits",
    |id| hex_of(&id.0.0),
    "^[0-9a-fA-F]{32}$"
);
text_form!(
    InstallationText,
    |text| hex16(text).map(|id| InstallationText(InstallationId(id))),
    "must be 32 hexadecimal digits",
    |id| hex_of(&id.0.0),
    "^[0-9a-fA-F]{32}$"
);
text_form!(
    Base64,
    |text| BASE64.decode(text).ok().map(|bytes| Base64(bytes.into())),
    "must be base64url",
    |bytes| URL_SAFE_NO_PAD.encode(&bytes.0),
    "^[A-Za-z0-9_-]*={0,2}$"
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

fn hex8(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_bytes_are_read_in_their_forms_alone() {
        let cid = |text: &str| serde_json::from_str::<CidText>(text);
        assert_eq!(cid(r#""00c00000000000aF""#).expect("good").0, Cid(0x00c0_0000_0000_00af));
        for bad in ["\"\"", "\"0c00000000000af\"", "\"+0c00000000000af\"", "12", "null"] {
            assert!(cid(bad).is_err(), "{bad}");
        }
        let bytes = |text: &str| serde_json::from_str::<Base64>(text).map(|bytes| bytes.0);
        assert_eq!(bytes(r#""-_8""#).expect("good"), &[0xfb, 0xff][..]);
        assert_eq!(bytes(r#""-_8=""#).expect("good"), &[0xfb, 0xff][..]);
        assert!(bytes(r#""+/8""#).is_err() && bytes(r#""a""#).is_err());
        assert!(hex16("+123456789abcdef0123456789abcdef").is_none());
    }
}
