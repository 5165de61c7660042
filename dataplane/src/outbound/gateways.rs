//! The gateways of the own cluster: which one leads to which peer, and which to leave alone for now.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::discover::GatewayInfo;
use arc_swap::ArcSwap;
use linkspan_routing::ClusterId;
use tokio::sync::Notify;

/// How long a gateway that failed is used only if no other is left.
pub(super) const BACK_OFF: Duration = Duration::from_millis(500);
/// The same for one that did not answer, as each further try would wait for seconds: about the time
/// in which discovery will have heard that it is gone, if it is.
pub(super) const SILENT_BACK_OFF: Duration = Duration::from_secs(5);
/// How long a cluster to which no gateway has a tunnel counts as unusable, whatever discovery says:
/// about the time in which discovery will have heard of it.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// What is known of the gateways. The snapshot's part is replaced as a whole; what connecting
/// teaches is short-lived and kept beside it.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    /// On this very machine: tried before the others.
    nearest: Option<SocketAddr>,
    known: ArcSwap<Vec<GatewayInfo>>,
    turn: AtomicUsize,
    learnt: Mutex<Learnt>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Learnt {
    failed: HashMap<(SocketAddr, ClusterId), Instant>,
    unreachable: HashMap<ClusterId, Instant>,
}

impl Gateways {
    /// None known yet; `nearest` is tried before all others where it leads to the cluster.
    pub(super) fn with_nearest(nearest: Option<SocketAddr>) -> Self {
        Self {
            nearest,
            ..Self::default()
        }
    }

    /// Takes over what discovery says.
    pub(super) fn update(&self, gateways: &[GatewayInfo], now: Instant) {
        self.known.store(gateways.to_vec().into());
        let mut learnt = self.learnt();
        learnt.failed.retain(|_, until| *until > now);
        learnt.unreachable.retain(|_, until| *until > now);
    }

    /// Gateways that lead to a cluster, in the order in which to try them: in turn, those that have
    /// just failed last.
    pub(super) fn towards(&self, cluster: &ClusterId, now: Instant) -> Vec<SocketAddr> {
        let known = self.known.load();
        let usable = known.iter().filter(|gateway| leads_to(gateway, cluster));
        let mut addresses: Vec<_> = usable.map(|gateway| gateway.egress).collect();
        if addresses.len() > 1 {
            let turn = self.turn.fetch_add(1, Relaxed) % addresses.len();
            addresses.rotate_left(turn);
        }
        let learnt = self.learnt();
        let failed = |address: &SocketAddr| {
            let until = learnt.failed.get(&(*address, cluster.clone()));
            until.is_some_and(|until| *until > now)
        };
        addresses.sort_by_key(|address| (failed(address), self.nearest != Some(*address)));
        addresses
    }

    /// Whether a gateway leads to a cluster, as far as is known.
    pub(super) fn reach(&self, cluster: &ClusterId, now: Instant) -> bool {
        let doubted = self
            .learnt()
            .unreachable
            .get(cluster)
            .is_some_and(|until| *until > now);
        !doubted
            && self
                .known
                .load()
                .iter()
                .any(|gateway| leads_to(gateway, cluster))
    }

    /// A gateway could not help towards a cluster, and had better be left alone until then.
    pub(super) fn failed(&self, gateway: SocketAddr, cluster: &ClusterId, until: Instant) {
        self.learnt()
            .failed
            .insert((gateway, cluster.clone()), until);
    }

    /// No gateway has a tunnel to a cluster.
    pub(super) fn unreachable(&self, cluster: &ClusterId, now: Instant) {
        let before = self
            .learnt()
            .unreachable
            .insert(cluster.clone(), now + UNREACHABLE);
        if before.is_none_or(|until| until <= now) {
            self.changed.notify_one();
        }
    }

    /// Waits until connecting has taught that a cluster is unreachable. Cancel-safe.
    pub(super) async fn learnt_more(&self) {
        self.changed.notified().await;
    }

    /// When something learnt is to be forgotten next.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let learnt = self.learnt();
        learnt
            .unreachable
            .values()
            .copied()
            .filter(|until| *until > now)
            .min()
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        // Each change leaves it whole.
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn leads_to(gateway: &GatewayInfo, cluster: &ClusterId) -> bool {
    !gateway.draining && gateway.reachable.contains(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(port: u16, reachable: &[&str], draining: bool) -> GatewayInfo {
        GatewayInfo {
            replica: port.to_string(),
            egress: SocketAddr::from(([127, 0, 0, 1], port)),
            reachable: reachable.iter().map(|id| id.parse().unwrap()).collect(),
            draining,
        }
    }

    fn ports(addresses: &[SocketAddr]) -> Vec<u16> {
        addresses.iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn only_gateways_that_lead_there_in_turn() {
        let (gateways, now) = (Gateways::default(), Instant::now());
        let (west, north): (ClusterId, ClusterId) =
            ("west".parse().unwrap(), "north".parse().unwrap());
        let known = [
            gateway(1, &["west"], false),
            gateway(2, &["west"], false),
            gateway(3, &["west"], true),
            gateway(4, &[], false),
        ];
        gateways.update(&known, now);
        assert_eq!(ports(&gateways.towards(&west, now)), [1, 2]);
        assert_eq!(ports(&gateways.towards(&west, now)), [2, 1]);
        assert!(gateways.reach(&west, now) && !gateways.reach(&north, now));
        assert!(gateways.towards(&north, now).is_empty());
    }

    #[test]
    fn the_nearest_comes_first_unless_it_failed() {
        let (two, now) = (SocketAddr::from(([127, 0, 0, 1], 2)), Instant::now());
        let gateways = Gateways::with_nearest(Some(two));
        let west: ClusterId = "west".parse().unwrap();
        let known = [1, 2, 3].map(|port| gateway(port, &["west"], false));
        gateways.update(&known, now);
        for _ in 0..3 {
            assert_eq!(gateways.towards(&west, now)[0], two);
        }
        gateways.failed(two, &west, now + BACK_OFF);
        assert_eq!(gateways.towards(&west, now)[2], two);
        // Where it does not lead, it is none.
        gateways.update(&[gateway(2, &[], false)], now);
        assert!(gateways.towards(&west, now).is_empty());
    }

    #[test]
    fn one_that_failed_comes_last_for_a_while() {
        let (gateways, now) = (Gateways::default(), Instant::now());
        let west: ClusterId = "west".parse().unwrap();
        gateways.update(
            &[gateway(1, &["west"], false), gateway(2, &["west"], false)],
            now,
        );
        let one = SocketAddr::from(([127, 0, 0, 1], 1));
        gateways.failed(one, &west, now + BACK_OFF);
        for _ in 0..3 {
            assert_eq!(ports(&gateways.towards(&west, now)), [2, 1]);
        }
        let later = now + BACK_OFF;
        let firsts: Vec<_> = (0..2)
            .map(|_| gateways.towards(&west, later)[0].port())
            .collect();
        assert!(firsts.contains(&1), "{firsts:?}");
    }

    #[tokio::test]
    async fn an_unreachable_cluster_is_doubted_briefly() {
        let (gateways, now) = (Gateways::default(), Instant::now());
        let west: ClusterId = "west".parse().unwrap();
        gateways.update(&[gateway(1, &["west"], false)], now);
        gateways.unreachable(&west, now);
        gateways.learnt_more().await;
        assert!(!gateways.reach(&west, now));
        assert_eq!(gateways.next_change(now), Some(now + UNREACHABLE));
        assert!(gateways.reach(&west, now + UNREACHABLE));
        // Still tried if there is nothing else.
        assert_eq!(ports(&gateways.towards(&west, now)), [1]);
    }
}
