//! How the files that the process may open are shared out: what the store needs first, then
//! WebSockets and HTTP connections half and half, and what one of them leaves to the other.

use crate::config::{Config, Limits};
use crate::gateway::REFUSED_MAX;
use crate::limits::STORE_FILES_MAX;
use crate::node::shards;

/// Connections that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Of clients, over WebSockets.
    pub clients: usize,
    /// Over HTTP.
    pub http: usize,
}

impl Rooms {
    /// Of a node that may have so many files open (`None`: no limit).
    pub fn of_node(config: &Config, files_max: Option<u64>) -> Rooms {
        let Limits { connections_max, http_connections_max, .. } = config.limits;
        let others = STORE_FILES_MAX + REFUSED_MAX * usize::from(shards(config));
        share(files_max, others, Rooms { clients: connections_max, http: http_connections_max })
    }

    /// Of a server that has HTTP alone.
    pub fn of_api(config: &Config, files_max: Option<u64>) -> Rooms {
        let http = config.limits.http_connections_max;
        share(files_max, STORE_FILES_MAX, Rooms { clients: 0, http })
    }
}

/// `others` are files that are opened whatever there is: without them the store would fail for
/// good. Under a small limit they get half.
fn share(files_max: Option<u64>, others: usize, wanted: Rooms) -> Rooms {
    let files = files_max.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let room = files - others.min(files / 2);
    let http = wanted.http.min((room / 2).max(room.saturating_sub(wanted.clients)));
    Rooms { clients: wanted.clients.min(room - http), http }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_has_its_files_and_neither_kind_of_connection_takes_all_of_the_rest() {
        let of = |files, clients, http| {
            let Rooms { clients, http } = share(Some(files), 2_000, Rooms { clients, http });
            (clients, http)
        };
        assert_eq!(of(1 << 20, 100_000, 16_384), (100_000, 16_384));
        assert_eq!(of(20_000, 100_000, 16_384), (9_000, 9_000));
        assert_eq!(of(20_000, 100_000, 500), (17_500, 500), "what HTTP does not want");
        assert_eq!(of(20_000, 4_000, 16_384), (4_000, 14_000), "what WebSockets do not want");
        assert_eq!(of(20_000, 0, 16_384), (0, 16_384));
        assert_eq!(of(1_024, 100_000, 16_384), (256, 256), "half for the store");
        let most = share(None, 2_000, Rooms { clients: 100_000, http: 16_384 });
        assert_eq!(most, Rooms { clients: 100_000, http: 16_384 });
    }
}
