//! HTTP/1.1 as far as a load generator needs it: requests as bytes, answers piece by piece.

pub mod answer;
pub mod bodies;
pub mod events;
pub mod requests;
