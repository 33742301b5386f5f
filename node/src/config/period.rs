//! Lengths of time as people write them: `"250ms"`, `"30s"`, `"1h"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Units, the largest first, with their length in microseconds.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// A length of time: a whole number and one of the units `us`, `ms`, `s`, `m`, `h`, `d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    micros: u64,
}

/// A text that is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no length of time: write a whole number and us, ms, s, m, h or d, like \"30s\"")]
pub struct PeriodError(String);

impl Period {
    /// From microseconds.
    pub const fn from_us(micros: u64) -> Period {
        Period { micros }
    }

    /// From milliseconds.
    pub const fn from_ms(ms: u64) -> Period {
        Period { micros: ms.saturating_mul(1_000) }
    }

    /// From seconds.
    pub const fn from_s(s: u64) -> Period {
        Period { micros: s.saturating_mul(1_000_000) }
    }

    /// In microseconds.
    pub const fn as_us(self) -> u64 {
        self.micros
    }

    /// In whole milliseconds, rounded down.
    pub const fn as_ms(self) -> u64 {
        self.micros / 1_000
    }

    /// In whole seconds, rounded down.
    pub const fn as_s(self) -> u64 {
        self.micros / 1_000_000
    }

    /// As the standard library has it.
    pub const fn as_duration(self) -> Duration {
        Duration::from_micros(self.micros)
    }
}

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Period, PeriodError> {
        let error = || PeriodError(text.chars().take(40).collect());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| error())?;
        let unit = UNITS.iter().find(|(name, _)| *name == &text[digits..]).ok_or_else(error)?;
        number.checked_mul(unit.1).map(|micros| Period { micros }).ok_or_else(error)
    }
}

/// In the largest unit that needs no fraction.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.micros == 0 {
            return f.write_str("0s");
        }
        let unit = UNITS.iter().find(|(_, micros)| self.micros.is_multiple_of(*micros));
        let (name, micros) = unit.expect("one microsecond divides everything");
        write!(f, "{}{name}", self.micros / micros)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Period, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["0s", "1us", "250ms", "30s", "90s", "5m", "1h", "36h", "7d"] {
            let period: Period = text.parse().expect(text);
            let again: Period = period.to_string().parse().expect("its own text");
            assert_eq!(period, again, "{text}");
        }
        assert_eq!("90s".parse::<Period>().map(|p| p.to_string()), Ok("90s".to_owned()));
        assert_eq!("3600s".parse::<Period>().map(|p| p.to_string()), Ok("1h".to_owned()));
    }

    #[test]
    fn everything_else_is_refused() {
        let texts = ["", "1", "s", "1.5s", "-1s", " 1s", "1 s", "1w", "1sé", "99999999999999999d"];
        for text in texts {
            assert!(text.parse::<Period>().is_err(), "{text:?}");
        }
    }
}
