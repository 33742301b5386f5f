//! From whom a request comes that a proxy has passed on.
//!
//! A proxy appends the address that it was asked from to a header. Anybody can write such a header,
//! so it is read only if the peer is a proxy that the operator trusts, and from its end on: what
//! stands before the first address that is no such proxy was written by that one itself.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName};

use crate::config::{ForwardedHeader, Network};

/// Most proxies that are gone through; a chain that is longer ends at the last of them.
const HOPS_MAX: usize = 16;

/// The proxies that are trusted.
#[derive(Clone, Debug)]
pub(super) struct Proxies {
    trusted: Vec<Network>,
    header: ForwardedHeader,
}

impl Proxies {
    pub(super) fn new(trusted: Vec<Network>, header: ForwardedHeader) -> Proxies {
        Proxies { trusted, header }
    }

    /// The address that a request from `peer` comes from in the end.
    pub(super) fn client_of(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if !self.trusts(peer) {
            return client;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => axum::http::header::FORWARDED,
        };
        let lines = headers.get_all(name).into_iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        for hop in hops.take(HOPS_MAX) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => address_of(hop.trim()),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            };
            // A proxy that does not tell stands for whoever is behind it.
            let Some(address) = address else { return client };
            client = address;
            if !self.trusts(address) {
                return client;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }
}

/// The parameter `for` of an element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| address_of(value.trim_matches('"')))?
    })
}

/// An address, with a port or without.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: ForwardedHeader, peer: &str, lines: &[(&str, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "::1"].map(|network| network.parse().expect("a network"));
        let proxies = Proxies::new(trusted.to_vec(), header);
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        proxies.client_of(peer.parse().expect("an address"), &headers).to_string()
    }

    #[test]
    fn what_an_untrusted_peer_says_is_ignored() {
        let said = [("x-forwarded-for", "10.0.0.1, 198.51.100.7")];
        assert_eq!(client(ForwardedHeader::XForwardedFor, "203.0.113.9", &said), "203.0.113.9");
        let nobody = Proxies::new(Vec::new(), ForwardedHeader::XForwardedFor);
        let peer = "127.0.0.1".parse().expect("an address");
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "198.51.100.7".parse().expect("a value"));
        assert_eq!(nobody.client_of(peer, &headers), peer, "by default");
    }

    #[test]
    fn a_chain_is_read_from_its_end_up_to_the_first_that_is_not_trusted() {
        for (lines, found) in [
            (&["198.51.100.7"][..], "198.51.100.7"),
            (&["198.51.100.7:4711"], "198.51.100.7"),
            (&["1.1.1.1, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            (&["1.1.1.1", "198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            (&["1.1.1.1,,10.1.1.1"], "10.1.1.1"),
            (&["1.1.1.1, unknown"], "10.0.0.1"),
            (&["[2001:db8::7]:80"], "2001:db8::7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&[], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(client(ForwardedHeader::XForwardedFor, "10.0.0.1", &lines), found);
        }
        let long = ["10.9.9.9"; 40].join(",");
        let long = format!("1.1.1.1,{long}");
        let long = [("x-forwarded-for", long.as_str())];
        assert_eq!(client(ForwardedHeader::XForwardedFor, "10.0.0.1", &long), "10.9.9.9");
    }

    #[test]
    fn the_other_header_is_one_that_a_client_may_have_written_and_is_not_read() {
        let both = [
            ("x-forwarded-for", "1.1.1.1"),
            ("forwarded", "for=2.2.2.2, For=\"[2001:db8::7]:4711\";proto=https;by=10.0.0.1"),
        ];
        assert_eq!(client(ForwardedHeader::Forwarded, "::1", &both), "2001:db8::7");
        assert_eq!(client(ForwardedHeader::XForwardedFor, "::1", &both), "1.1.1.1");
        let hidden = [("forwarded", "for=2.2.2.2, for=_hidden")];
        assert_eq!(client(ForwardedHeader::Forwarded, "::1", &hidden), "::1");
    }
}
