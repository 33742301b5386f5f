//! Reports as a page in one file that opens without network, in light and dark.

pub mod chart;
mod compare;
mod knee;
pub mod page;
mod run;

pub use self::compare::compare;
pub use self::knee::knee;
pub use self::run::run;
