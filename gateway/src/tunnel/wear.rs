//! What a connection's path has cost and lost, as QUIC counts it.

use linkspan_runtime::telemetry::{IntCounter, LinkHandles};
use quinn::ConnectionStats;

/// What has been counted of one connection.
#[derive(Debug, Default)]
pub(super) struct Wear {
    sent: u64,
    lost: u64,
    black_holes: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Wear {
    /// Counts what is new since the last time.
    pub(super) fn count(&mut self, now: &ConnectionStats, to: &LinkHandles) {
        let add = |last: &mut u64, now: u64, counter: &IntCounter| {
            counter.inc_by(now.saturating_sub(*last));
            *last = now.max(*last);
        };
        let path = &now.path;
        add(&mut self.sent, path.sent_packets, &to.packets_sent);
        add(&mut self.lost, path.lost_packets, &to.packets_lost);
        let holes = path.black_holes_detected;
        add(&mut self.black_holes, holes, &to.black_holes);
        add(&mut self.bytes_sent, now.udp_tx.bytes, &to.wire_sent);
        let received = now.udp_rx.bytes;
        add(&mut self.bytes_received, received, &to.wire_received);
    }
}

#[cfg(test)]
mod tests {
    use linkspan_runtime::telemetry::{LinkLabels, LinkMetrics, Registry};

    use super::*;

    #[test]
    fn only_what_is_new_is_counted() {
        let metrics = LinkMetrics::register(&Registry::new()).unwrap();
        let to = metrics.link(&LinkLabels { peer: "west" });
        let (mut wear, mut now) = (Wear::default(), ConnectionStats::default());
        for sent in [10, 25, 25] {
            now.path.sent_packets = sent;
            now.udp_rx.bytes = sent * 2;
            wear.count(&now, &to);
        }
        // A second connection of the link counts on its own.
        Wear::default().count(&now, &to);
        assert_eq!((to.packets_sent.get(), to.wire_received.get()), (50, 100));
        assert_eq!(to.packets_lost.get(), 0);
    }
}
