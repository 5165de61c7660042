//! The tasks that sync with peers, one per link, and what each is to do.

use std::collections::BTreeMap;

use linkspan_core::{ClusterId, peers::Peers};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::sync::{Context, Destination, Order, keep_subscribed};

/// Sole writer of the links' orders.
pub(super) struct Links {
    context: Context,
    tasks: TaskTracker,
    links: BTreeMap<ClusterId, LinkTask>,
}

struct LinkTask {
    orders: watch::Sender<Order>,
    /// Why the last stream ended, until one is live again.
    trouble: Option<String>,
}

impl Links {
    /// `tasks` owns the links' tasks, so that stopping can wait for them.
    pub(super) fn new(context: Context, tasks: TaskTracker) -> Self {
        Self {
            context,
            tasks,
            links: BTreeMap::new(),
        }
    }

    /// Makes tasks and orders what `peers` ask for. A task whose link is gone ends.
    pub(super) fn follow(&mut self, clusters: impl Iterator<Item = ClusterId>, peers: &Peers) {
        let clusters: Vec<_> = clusters.collect();
        self.links.retain(|cluster, _| clusters.contains(cluster));
        for cluster in clusters {
            if let Some(peer) = peers.get(&cluster) {
                let federation = peer.link().federation_id.clone();
                let destination = Destination {
                    cluster: cluster.clone(),
                    federation,
                };
                self.order(cluster, destination, peer.wants_sync());
            }
        }
    }

    fn order(&mut self, cluster: ClusterId, destination: Destination, wanted: bool) {
        let (context, tasks) = (&self.context, &self.tasks);
        let link = self.links.entry(cluster.clone()).or_insert_with(|| {
            let first = Order {
                destination: destination.clone(),
                wanted,
                stream: 1,
            };
            let (orders, receiver) = watch::channel(first);
            tasks.spawn(keep_subscribed(context.clone(), cluster, receiver));
            LinkTask {
                orders,
                trouble: None,
            }
        });
        link.orders.send_if_modified(|order| {
            let next = Order {
                destination,
                wanted,
                stream: order.stream,
            };
            let news = *order != next;
            *order = next;
            news
        });
    }

    /// Ends the link's stream, if one is open.
    pub(super) fn hang_up(&mut self, cluster: &ClusterId) {
        if let Some(link) = self.links.get(cluster) {
            link.orders.send_modify(|order| order.stream += 1);
        }
    }

    /// Whether `stream` is the one that counts.
    pub(super) fn is_current(&self, cluster: &ClusterId, stream: u64) -> bool {
        self.links
            .get(cluster)
            .is_some_and(|link| link.orders.borrow().stream == stream)
    }

    /// Notes why a stream ended.
    pub(super) fn note(&mut self, cluster: &ClusterId, trouble: Option<String>) {
        if let Some(link) = self.links.get_mut(cluster) {
            link.trouble = trouble;
        }
    }

    /// Why the last stream ended, if none is live since.
    pub(super) fn trouble(&self, cluster: &ClusterId) -> Option<&str> {
        self.links.get(cluster)?.trouble.as_deref()
    }
}
