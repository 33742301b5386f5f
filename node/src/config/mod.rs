//! The configuration: a TOML file, overridden by flags; every key has a default.

mod load;
mod network;
mod period;
mod secret;
mod sections;

pub use self::load::{ConfigError, Overrides};
pub use self::network::Network;
pub use self::period::{Period, PeriodError};
pub use self::secret::DatabaseUrl;
pub use self::sections::{
    Accounts, Auth, Config, ForwardedHeader, Issuer, IssuerKey, KeyAlgorithm, Limits, Log,
    LogFormat, LogLevel, Server, SignUps, Store, Tls, public_algorithms,
};
