//! The configuration: a TOML file, overridden by flags; every key has a default.

mod load;
mod period;
mod sections;

pub use self::load::{ConfigError, Overrides};
pub use self::period::{Period, PeriodError};
pub use self::sections::{
    Accounts, Auth, Config, Issuer, IssuerKey, KeyAlgorithm, Limits, Log, LogFormat, LogLevel,
    Server, SignUps, Store, Tls, public_algorithms,
};
