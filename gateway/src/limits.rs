//! The bounds of memory and time. Each has a reason; tests shorten the timers.

use std::time::Duration;

use crate::stall::Windows;
use crate::tunnel::health::Rhythm;

/// How long the gateway waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// Heartbeats of tunnel connections.
    pub rhythm: Rhythm,
    /// A QUIC or TLS handshake, 3 s: several round trips of 500 ms with one loss.
    pub handshake: Duration,
    /// The hello of either side after the handshake, 3 s.
    pub hello: Duration,
    /// A tunnel connection over which nothing comes ends after 30 s; until then raw TCP waits.
    pub idle: Duration,
    /// The first bytes of a connection or stream, up to the whole inner ClientHello, 5 s.
    pub first_bytes: Duration,
    /// A TCP connection to an endpoint, 1.5 s: one lost SYN (sent again after 1 s) is survived.
    pub connect: Duration,
    /// TCP connections to endpoints, one after the other where the peer leaves the choice, 2 s: the
    /// source's gateway waits for the answer for 3.5 s, of which a round trip or two pass between the
    /// clusters.
    pub connect_any: Duration,
    /// From a caller's ClientHello to the answer that it gets, however many connections to the peer
    /// are tried, 3.5 s: longer than the peer needs to connect and to say no (2 s, and a round trip of
    /// 500 ms with one loss), less than the 4 s that a sidecar waits.
    pub result: Duration,
    /// For the peer to take the answer to its stream opening, 5 s: it fits into any window but none.
    pub answer: Duration,
    /// For a place in the peer's stream limit, 1 s; then the answer is `BUSY`.
    pub busy: Duration,
    /// A relayed stream over which nothing passes in either direction is reset after 1 h.
    pub stream_idle: Duration,
    /// A connection whose work another one does is closed after being idle for 60 s.
    pub surplus: Duration,
    /// Between the announcement of a connection's end and the end, 1 s: streams that were opened
    /// before the announcement arrived are still served.
    pub farewell: Duration,
    /// Names of a link are resolved again after 30 s, after 5 s while an address fails.
    pub resolve: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            rhythm: Rhythm::default(),
            handshake: Duration::from_secs(3),
            hello: Duration::from_secs(3),
            idle: Duration::from_secs(30),
            first_bytes: Duration::from_secs(5),
            connect: Duration::from_millis(1_500),
            connect_any: Duration::from_secs(2),
            result: Duration::from_millis(3_500),
            answer: Duration::from_secs(5),
            busy: Duration::from_secs(1),
            stream_idle: Duration::from_secs(3_600),
            surplus: Duration::from_secs(60),
            farewell: Duration::from_secs(1),
            resolve: Duration::from_secs(30),
        }
    }
}

/// How much the gateway holds at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams that a peer may have open on one connection, 4096.
    pub streams: u32,
    /// Connections of one link, both sides' together, 32: a peer of ten replicas that dials from
    /// each needs 20.
    pub connections: usize,
    /// Connections from sidecars and federation, 16384.
    pub egress: usize,
    /// Streams from peers that are relayed at a time, 16384; one peer may have half of them.
    pub ingress: usize,
    /// Connections of clients without a sidecar, 8192; one of them, and one import, may have half.
    pub imports: usize,
    /// Connections whose inner TLS ends here, for servers without a sidecar, 2048; one peer, and the
    /// own cluster, may have half. With 1 MiB under way in each, 2 GiB at worst.
    pub servers: usize,
    /// Tunnel handshakes in progress above which callers are refused, 1000.
    pub handshakes: usize,
    /// How many of these one source may have, 100; and all together who have not proved that their
    /// address is theirs: above that, callers must, by a Retry token (RFC 9000 §8.1.2).
    pub handshakes_each: usize,
    /// Flow-control windows of what we receive: 2 MiB per stream carry 160 Mbit/s over 100 ms;
    /// 64 MiB per connection bound what one can make us hold.
    pub windows: Windows,
    /// What we hold of unacknowledged data of one connection, 16 MiB.
    pub send_window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 4_096,
            connections: 32,
            egress: 16_384,
            ingress: 16_384,
            imports: 8_192,
            servers: 2_048,
            handshakes: 1_000,
            handshakes_each: 100,
            windows: Windows {
                stream: 2 << 20,
                connection: 64 << 20,
            },
            send_window: 16 << 20,
        }
    }
}
