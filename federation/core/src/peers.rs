//! All peers together: one state machine per link, all on the same two clocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::announced::Announced;
use crate::gateways::Gateways;
use crate::journal::{self, Keep};
use crate::model::{ClusterId, Link};
use crate::peer::{Decision, Event, Now, Peer, PeerSettings, PeerView};

#[cfg(test)]
mod tests;

/// All peers as planning and status see them.
pub type PeersView = BTreeMap<ClusterId, PeerView>;

/// Decisions about several peers, those about which there is nothing to do left out.
pub type Decisions = Vec<(ClusterId, Decision)>;

/// All peers.
#[derive(Clone, Debug)]
pub struct Peers {
    settings: Arc<PeerSettings>,
    peers: BTreeMap<ClusterId, Peer>,
    /// Roots announced before a restart, of peers whose links have not been declared since.
    restored: BTreeMap<ClusterId, Announced>,
    /// What was kept over a restart, until its link is declared.
    journals: Journals,
}

/// Peers' journals as they were found, or why they cannot be had.
pub type Journals = BTreeMap<ClusterId, Result<Vec<u8>, String>>;

impl Peers {
    /// No peers.
    pub fn new(settings: PeerSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            peers: BTreeMap::new(),
            restored: BTreeMap::new(),
            journals: Journals::new(),
        }
    }

    /// Remembers what peers announced before a restart, for when their links are declared.
    pub fn restore(&mut self, announced: impl IntoIterator<Item = Announced>) {
        let by_cluster = |announced: Announced| (announced.cluster.clone(), announced);
        self.restored.extend(announced.into_iter().map(by_cluster));
    }

    /// The roots that peers announced, to be kept; also those of links that have not been declared
    /// since the restart, whose file may only be broken now.
    pub fn announced(&self) -> impl Iterator<Item = Announced> {
        let restored = self.restored.values().cloned();
        self.peers
            .values()
            .filter_map(Peer::announced)
            .chain(restored)
    }

    /// Remembers peers' journals, for when their links are declared.
    pub fn remember(&mut self, journals: Journals) {
        self.journals.extend(journals);
    }

    /// What is to outlive a restart, of each peer that is linked.
    pub fn kept(&self, now: Now) -> BTreeMap<ClusterId, (Arc<Link>, Keep)> {
        let of = |(cluster, peer): (&ClusterId, &Peer)| {
            (cluster.clone(), (Arc::clone(peer.link()), peer.keep(now)))
        };
        self.peers.iter().map(of).collect()
    }

    /// Makes the peers those of the declared links. A link that is gone yields a decision
    /// to hang up, after which the peer is unknown here.
    pub fn relink(&mut self, links: &BTreeMap<ClusterId, Link>, now: Now) -> Decisions {
        let mut decisions = Decisions::new();
        self.peers.retain(|cluster, peer| {
            let declared = links.contains_key(cluster);
            if !declared {
                decisions.push((cluster.clone(), peer.remove()));
            }
            declared
        });
        for (cluster, link) in links {
            let decision = match self.peers.get_mut(cluster) {
                Some(peer) => peer.relink(link.clone(), now),
                None => {
                    let journal = self.journals.remove(cluster);
                    let mut peer = met(link, &self.settings, journal, now);
                    if let Some(announced) = self.restored.remove(cluster) {
                        peer.restore(announced);
                    }
                    self.peers.insert(cluster.clone(), peer);
                    Decision {
                        changed: true,
                        ..Decision::default()
                    }
                }
            };
            push(&mut decisions, cluster, decision);
        }
        decisions
    }

    /// An event of one peer. For a peer that is not linked (any more) the decision is to hang up.
    pub fn handle(&mut self, cluster: &ClusterId, event: Event, now: Now) -> Decision {
        match self.peers.get_mut(cluster) {
            Some(peer) => peer.handle(event, now),
            None => Decision {
                hangup: Some(crate::peer::Hangup::Removed),
                ..Decision::default()
            },
        }
    }

    /// Tells each peer how many gateways have it up now.
    pub fn observe(&mut self, gateways: &Gateways, now: Now) -> Decisions {
        self.each(|cluster, peer| {
            let gateways_up = gateways.summary(cluster).gateways_up;
            peer.handle(Event::Tunnel { gateways_up }, now)
        })
    }

    /// Time has passed; call it about once a second.
    pub fn tick(&mut self, now: Now) -> Decisions {
        self.each(|_, peer| peer.handle(Event::Tick, now))
    }

    /// One peer.
    pub fn get(&self, cluster: &ClusterId) -> Option<&Peer> {
        self.peers.get(cluster)
    }

    /// All peers, as they look now.
    pub fn view(&self, now: Now) -> PeersView {
        self.peers
            .iter()
            .map(|(cluster, peer)| (cluster.clone(), peer.view(now)))
            .collect()
    }

    fn each(&mut self, mut decide: impl FnMut(&ClusterId, &mut Peer) -> Decision) -> Decisions {
        let mut decisions = Decisions::new();
        for (cluster, peer) in &mut self.peers {
            let decision = decide(cluster, peer);
            push(&mut decisions, cluster, decision);
        }
        decisions
    }
}

/// A peer whose link was just declared, or found declared at start.
fn met(
    link: &Link,
    settings: &Arc<PeerSettings>,
    journal: Option<Result<Vec<u8>, String>>,
    now: Now,
) -> Peer {
    let (link, settings) = (link.clone(), Arc::clone(settings));
    let read = match journal {
        None => Ok(None),
        Some(Err(why)) => Err(why),
        Some(Ok(bytes)) => {
            journal::decode(&bytes, &link, &settings.quotas).map_err(|error| error.to_string())
        }
    };
    match read {
        Ok(None) => Peer::new(link, settings, now),
        Ok(Some(kept)) => Peer::restored(link, settings, kept, now),
        Err(why) => {
            let why = format!(
                "what was kept of it over the restart cannot be used ({why}); \
                 its services are unknown until it is heard"
            );
            Peer::forgotten(link, settings, why, now)
        }
    }
}

fn push(decisions: &mut Decisions, cluster: &ClusterId, decision: Decision) {
    if decision != Decision::default() {
        decisions.push((cluster.clone(), decision));
    }
}
