//! Links and their streams, at a gateway.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::{
    Direction, LinkLabels, TelemetryError, catalogue,
    family::{Counters, FloatGauges, Gauges},
};

/// Links and their streams, at a gateway.
#[derive(Clone, Debug)]
pub struct LinkMetrics {
    up: Gauges,
    connections: Gauges,
    rtt: FloatGauges,
    mtu: Gauges,
    packets: Counters,
    black_holes: Counters,
    wire_bytes: Counters,
    suspicions: Counters,
    dials: Counters,
    streams: Counters,
    streams_open: Gauges,
    bytes: Counters,
    /// Of the peers whose streams are counted: whether they were forgotten.
    forgotten: Arc<Mutex<BTreeMap<String, Arc<AtomicBool>>>>,
}

impl LinkMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            up: catalogue::LINK_UP.gauges(registry)?,
            connections: catalogue::LINK_CONNECTIONS.gauges(registry)?,
            rtt: catalogue::LINK_RTT.float_gauges(registry)?,
            mtu: catalogue::LINK_MTU.gauges(registry)?,
            packets: catalogue::LINK_PACKETS.counters(registry)?,
            black_holes: catalogue::LINK_BLACK_HOLES.counters(registry)?,
            wire_bytes: catalogue::LINK_WIRE_BYTES.counters(registry)?,
            suspicions: catalogue::LINK_SUSPICIONS.counters(registry)?,
            dials: catalogue::LINK_DIALS.counters(registry)?,
            streams: catalogue::STREAMS.counters(registry)?,
            streams_open: catalogue::STREAMS_OPEN.gauges(registry)?,
            bytes: catalogue::LINK_BYTES.counters(registry)?,
            forgotten: Arc::default(),
        })
    }

    /// What the owner of a link keeps.
    #[must_use]
    pub fn link(&self, labels: &LinkLabels<'_>) -> LinkHandles {
        let peer = labels.peer;
        let connections = |state| self.connections.of(&[peer, "quic", state]);
        LinkHandles {
            up: self.up.of(&[peer]),
            clear: connections("clear"),
            suspect: connections("suspect"),
            draining: connections("draining"),
            rtt_seconds: self.rtt.of(&[peer]),
            mtu: self.mtu.of(&[peer]),
            packets_sent: self.packets.of(&[peer, "sent"]),
            packets_lost: self.packets.of(&[peer, "lost"]),
            black_holes: self.black_holes.of(&[peer]),
            wire_sent: self.wire_bytes.of(&[peer, "sent"]),
            wire_received: self.wire_bytes.of(&[peer, "received"]),
            suspicions: self.suspicions.of(&[peer]),
            dials_ok: self.dials.of(&[peer, "ok"]),
            dials_failed: self.dials.of(&[peer, "failed"]),
        }
    }

    /// What the streams of a link in one direction share.
    #[must_use]
    pub fn streams(&self, labels: &LinkLabels<'_>, direction: Direction) -> StreamHandles {
        let peer = labels.peer;
        let way = direction.as_str();
        let mut peers = self.peers();
        StreamHandles {
            open: self.streams_open.of(&[peer, way]),
            sent: self.bytes.of(&[peer, way, "sent"]),
            received: self.bytes.of(&[peer, way, "received"]),
            ended: self.streams.clone(),
            peer: peer.to_owned(),
            direction,
            forgotten: Arc::clone(peers.entry(peer.to_owned()).or_default()),
        }
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AtomicBool>>> {
        // Each change leaves it whole.
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a peer that is no longer linked.
    pub fn forget(&self, labels: &LinkLabels<'_>) {
        if let Some(forgotten) = self.peers().remove(labels.peer) {
            forgotten.store(true, Ordering::Relaxed);
        }
        let peer = &[("peer", labels.peer)];
        for gauges in [&self.up, &self.connections, &self.mtu, &self.streams_open] {
            gauges.forget(peer);
        }
        self.rtt.forget(peer);
        for counters in [
            &self.packets,
            &self.black_holes,
            &self.wire_bytes,
            &self.suspicions,
            &self.dials,
            &self.streams,
            &self.bytes,
        ] {
            counters.forget(peer);
        }
    }
}

/// Handles of one link.
#[derive(Clone, Debug)]
pub struct LinkHandles {
    /// 1 while a connection may carry streams.
    pub up: IntGauge,
    /// Connections that are neither suspect nor draining.
    pub clear: IntGauge,
    /// Suspect ones.
    pub suspect: IntGauge,
    /// Draining ones that are not suspect.
    pub draining: IntGauge,
    /// Smoothed round-trip time of the best connection.
    pub rtt_seconds: Gauge,
    /// Largest UDP payload of the narrowest path, bytes.
    pub mtu: IntGauge,
    /// QUIC packets sent.
    pub packets_sent: IntCounter,
    /// Those of them that were lost.
    pub packets_lost: IntCounter,
    /// Black holes that were noticed.
    pub black_holes: IntCounter,
    /// Bytes of UDP payload sent.
    pub wire_sent: IntCounter,
    /// Bytes of UDP payload received.
    pub wire_received: IntCounter,
    /// Times a connection became suspect.
    pub suspicions: IntCounter,
    /// Dials that led to a connection.
    pub dials_ok: IntCounter,
    /// Dials that did not.
    pub dials_failed: IntCounter,
}

/// Handles of a link's streams in one direction.
#[derive(Clone, Debug)]
pub struct StreamHandles {
    /// Open now.
    pub open: IntGauge,
    /// Bytes from the accepted side to the other.
    pub sent: IntCounter,
    /// Bytes back.
    pub received: IntCounter,
    ended: Counters,
    peer: String,
    direction: Direction,
    forgotten: Arc<AtomicBool>,
}

impl StreamHandles {
    /// Counts a stream that ended with `code`, the name of a `StreamCode` (or `reset`); no more once
    /// the peer was forgotten.
    pub fn ended(&self, code: &'static str) {
        if !self.forgotten.load(Ordering::Relaxed) {
            let labels = [&*self.peer, self.direction.as_str(), code];
            self.ended.of(&labels).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_peer_is_left_when_it_is_forgotten() {
        let registry = Registry::new();
        let links = LinkMetrics::register(&registry).unwrap();
        let open = ["west", "north"].map(|peer| {
            let labels = LinkLabels { peer };
            let _ = links.link(&labels);
            links.streams(&labels, Direction::Outbound)
        });
        open.iter().for_each(|streams| streams.ended("ok"));
        links.forget(&LinkLabels { peer: "west" });
        // What was open ends later.
        open.iter().for_each(|streams| streams.ended("reset"));
        let encoder = prometheus::TextEncoder::new();
        let text = encoder.encode_to_string(&registry.gather()).unwrap();
        assert!(!text.contains("\"west\""), "{text}");
        assert!(text.contains(
            "linkspan_streams_total{code=\"ok\",direction=\"outbound\",peer=\"north\"} 1"
        ));
    }
}
