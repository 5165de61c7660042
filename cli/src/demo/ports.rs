//! Ports that stay ours: outside the kernel's ephemeral range, so that no outgoing
//! connection of anybody takes one while its owner is being restarted.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
};

use anyhow::Context as _;

/// Below are the ports of well-known and of many ordinary services.
const LOWEST: u16 = 10_240;
/// What Linux uses unless it is told otherwise.
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// Hands out free ports, each once.
#[derive(Debug)]
pub struct Ports {
    candidates: std::vec::IntoIter<u16>,
}

impl Ports {
    /// Ports of this machine, beginning somewhere that `seed` decides.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::outside(&ephemeral_range(), seed)
    }

    fn outside(ephemeral: &RangeInclusive<u16>, seed: u64) -> Self {
        let mut candidates: Vec<_> = (LOWEST..=u16::MAX)
            .filter(|port| !ephemeral.contains(port))
            .collect();
        if let Ok(count) = u64::try_from(candidates.len())
            && count > 0
        {
            // Neighbouring seeds begin far apart (the constant is 2^64 divided by the golden ratio).
            let start = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count;
            candidates.rotate_left(usize::try_from(start).unwrap_or_default());
        }
        Self {
            candidates: candidates.into_iter(),
        }
    }

    /// The next port on which nobody listens, neither TCP nor UDP.
    ///
    /// # Errors
    /// If there is none left.
    pub fn take(&mut self) -> anyhow::Result<u16> {
        self.candidates.find(|port| is_free(*port)).context(
            "no free port outside the ephemeral range; \
             see /proc/sys/net/ipv4/ip_local_port_range",
        )
    }
}

fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

fn ephemeral_range() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    text.ok()
        .and_then(|text| parse_range(&text))
        .unwrap_or(DEFAULT_EPHEMERAL)
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace().map(str::parse);
    Some(words.next()?.ok()?..=words.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_form_is_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(parse_range("32768"), None);
        assert_eq!(parse_range("a b"), None);
    }

    #[test]
    fn no_port_of_the_ephemeral_range_is_handed_out() {
        let mut ports = Ports::outside(&(10_300..=65_530), 7);
        let mut handed = Vec::new();
        while let Ok(port) = ports.take() {
            assert!(!(10_300..=65_530).contains(&port));
            handed.push(port);
        }
        let mut distinct = handed.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), handed.len());
        assert!(handed.len() > 20, "{handed:?}");
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let mut ports = Ports::new(3);
        let first = ports.take().expect("a port");
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).expect("free");
        assert_ne!(Ports::new(3).take().expect("another port"), first);
    }

    #[test]
    fn all_ports_ephemeral_is_an_error_with_a_hint() {
        let error = Ports::outside(&(0..=65_535), 1).take().expect_err("none");
        assert!(error.to_string().contains("ip_local_port_range"));
    }
}
