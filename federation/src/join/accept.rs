//! We hold somebody's invitation: read it, have a gateway dial, prove it, write the link down.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId, TrustDomain,
    join::{Candidate, Invitation, MIN_PENDING, Problem, Refusal, check_clock, check_fit},
};
use linkspan_resources::ImportPattern;
use tokio::time::timeout;

use super::{
    dials::Back,
    invitation,
    linker::{Linker, MAX_TTL, check_rivals, stopping},
    messages::{Card, shown},
    session,
};
use crate::controller::{LiveGateway, World};

/// Gateways that are asked, one after the other.
const GATEWAYS: usize = 3;
/// The session, once a gateway has reached the peer.
const SESSION: Duration = Duration::from_secs(8);
/// Failed tries that are shown.
const SHOWN_TRIES: usize = 8;

/// A link that was just made.
pub(crate) struct Accepted {
    pub(crate) cluster: ClusterId,
    pub(crate) trust_domain: TrustDomain,
    /// Where it is declared; empty where it was before.
    pub(crate) path: String,
    /// Until when the first tunnel must be up.
    pub(crate) expires: SystemTime,
}

impl Linker {
    /// Accepts an invitation.
    pub(crate) async fn accept(
        &self,
        text: &str,
        allow_loopback: bool,
        imports: Option<Vec<ImportPattern>>,
    ) -> Result<Accepted, Refusal> {
        let invitation = invitation::decode(text)?;
        let world = self.known_world().await?;
        self.check_invitation(&invitation, &world, SystemTime::now())?;
        self.await_gateways(|world| world.gateways.iter().any(dials))
            .await;
        let world = Arc::clone(&self.worlds.borrow());
        let back = self.reach(&invitation, &world, allow_loopback).await?;
        let joined = timeout(SESSION, Box::pin(self.join(&invitation, &world, back))).await;
        let (peer, expires) = joined.map_err(|_| too_slow(&invitation))??;
        // Until the link is declared: nobody removes what is half made.
        let _hold = self.take_in_hand(&peer.cluster, &peer.trust_domain).await?;
        let path = match self.is_made(&invitation) {
            // As it was made, or as the operator has changed it since.
            true => String::new(),
            false => {
                self.note(&invitation, expires).await?;
                self.declare(&peer, invitation.id, allow_loopback, imports)
                    .await?
            }
        };
        tracing::info!(peer = %peer.cluster, "accepted an invitation; pending until the first tunnel");
        Ok(Accepted {
            cluster: peer.cluster,
            trust_domain: peer.trust_domain,
            path,
            expires,
        })
    }

    /// What can be told without asking anybody.
    fn check_invitation(
        &self,
        invitation: &Invitation,
        world: &World,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let inviter = &invitation.cluster;
        if *inviter == self.own.cluster && invitation.trust_domain == self.own.trust_domain {
            return Err(Refusal::new(
                Problem::OtherPeer,
                "this cluster made the invitation itself; accept it in the other cluster",
            ));
        }
        if let Some(peer) = invitation
            .peer
            .as_ref()
            .filter(|peer| **peer != self.own.cluster)
        {
            return Err(Refusal::new(
                Problem::OtherPeer,
                format!(
                    "the invitation is meant for cluster `{peer}`, not for `{0}`; accept it there, \
                     or ask for one for `{0}` (`linkspan link invite {0}`)",
                    self.own.cluster
                ),
            ));
        }
        let show = |time| humantime::format_rfc3339_seconds(time).to_string();
        if invitation.created > now + self.clock_skew {
            let clocks = self.clocks(now, invitation.created);
            check_clock(&self.own.cluster, inviter, clocks, show)?;
        }
        // The inviter's own clock decides; ours may be ahead within the tolerance.
        if invitation.expires + self.clock_skew <= now {
            return Err(Refusal::new(
                Problem::Expired,
                format!(
                    "the invitation expired at {} (it is {} here); ask for a new one in `{inviter}` \
                     (`linkspan link invite {}`)",
                    show(invitation.expires),
                    show(now),
                    self.own.cluster
                ),
            ));
        }
        self.check_candidate(invitation, world, &invitation.clusterset, None)
    }

    fn check_candidate(
        &self,
        invitation: &Invitation,
        world: &World,
        clusterset: &str,
        version: Option<&str>,
    ) -> Result<(), Refusal> {
        let (cluster, trust_domain) = (&invitation.cluster, &invitation.trust_domain);
        let book = self.store.current();
        let joined = book.joined(cluster, trust_domain);
        let site = self.site(world);
        let candidate = Candidate {
            cluster,
            clusterset,
            trust_domain,
            version: version.unwrap_or(site.version),
            again: joined.is_some_and(|joined| joined.invitation == Some(invitation.id)),
        };
        check_fit(&site, &candidate)
    }

    /// Has our gateways dial, one after the other, until one comes back with a stream.
    async fn reach(
        &self,
        invitation: &Invitation,
        world: &World,
        allow_loopback: bool,
    ) -> Result<Back, Refusal> {
        let ready = world.gateways.iter().filter(|of| dials(of));
        let mut replicas: Vec<_> = ready.map(|of| of.replica.as_str()).collect();
        if replicas.is_empty() {
            return Err(Refusal::new(
                Problem::NoGateway,
                "no gateway of this cluster is ready to dial; start one, or see why it is not \
                 (`linkspan status`), then try again with the same invitation",
            ));
        }
        let start = rand::random_range(0..replicas.len());
        replicas.rotate_left(start);
        let (mut tries, mut busy) = (Vec::new(), false);
        for replica in replicas.into_iter().take(GATEWAYS) {
            let dialled = self
                .dials
                .dial(replica, &invitation.addresses, allow_loopback);
            match dialled.await {
                Some((said, back)) if said.connected => return Ok(back),
                Some((said, _)) => {
                    busy |= said.tries.iter().any(|of| of.busy);
                    tries.extend(said.tries.into_iter().map(|of| tried(replica, &of)));
                }
                None => tries.push(format!("gateway `{replica}` did not come back in time")),
            }
        }
        match busy {
            true => Err(self::busy(invitation)),
            false => Err(unreachable(invitation, tries)),
        }
    }

    /// The session with the inviter; nothing is written yet.
    async fn join(
        &self,
        invitation: &Invitation,
        world: &World,
        back: Back,
    ) -> Result<(Card, SystemTime), Refusal> {
        let mut tls = session::open(back, invitation).await?;
        let hello = session::hear(&mut tls, invitation).await?;
        let now = SystemTime::now();
        let show = |time| humantime::format_rfc3339_seconds(time).to_string();
        let clocks = self.clocks(now, hello.now);
        check_clock(&self.own.cluster, &invitation.cluster, clocks, show)?;
        let own = self.card(now);
        let (peer, expires) = session::ask(&mut tls, invitation, &own, hello.roots).await?;
        self.check_candidate(invitation, world, &peer.clusterset, Some(&peer.version))?;
        Ok((peer, by_own_clock(now, hello.now, expires)))
    }

    /// Whether this very invitation has made the link that is declared.
    fn is_made(&self, invitation: &Invitation) -> bool {
        let (cluster, domain) = (&invitation.cluster, &invitation.trust_domain);
        let world = Arc::clone(&self.worlds.borrow());
        let declared = world.declared.links.get(cluster);
        declared.is_some_and(|link| {
            link.trust_domain == *domain && self.store.current().origin(link) == Some(invitation.id)
        })
    }

    /// Before the link is declared, so that it is never taken for one that is proved.
    async fn note(&self, invitation: &Invitation, expires: SystemTime) -> Result<(), Refusal> {
        let store = Arc::clone(&self.store);
        let (cluster, domain) = (invitation.cluster.clone(), invitation.trust_domain.clone());
        let (id, worlds) = (invitation.id, self.worlds.clone());
        let noted = tokio::task::spawn_blocking(move || {
            store.change(|book| {
                let (world, now) = (Arc::clone(&worlds.borrow()), SystemTime::now());
                check_rivals(book, &world, (&id, &cluster, &domain), now)?;
                book.pend(cluster, domain, id, expires, now);
                Ok(())
            })
        });
        noted.await.map_err(|_| stopping())?
    }
}

/// The end of waiting by our clock, where the inviter said it by its own. Within the life of an
/// invitation, and not so soon that the first tunnel has no chance.
fn by_own_clock(own: SystemTime, peer: SystemTime, expires: SystemTime) -> SystemTime {
    let left = expires.duration_since(peer).unwrap_or_default();
    own + left.clamp(MIN_PENDING, MAX_TTL)
}

/// Whether a gateway takes new work.
fn dials(gateway: &LiveGateway) -> bool {
    gateway.ready && !gateway.draining
}

fn tried(replica: &str, one: &v1::JoinTry) -> String {
    let (address, error) = (shown(&one.address), shown(&one.error));
    format!("{address} from gateway `{replica}`: {error}")
}

fn unreachable(invitation: &Invitation, mut tries: Vec<String>) -> Refusal {
    tries.truncate(SHOWN_TRIES);
    Refusal::new(
        Problem::Unreachable,
        format!(
            "no gateway of `{}` could be reached; tried {}; open UDP port {} from this cluster's \
             gateways to these addresses, then try again with the same invitation (or let the \
             other side accept: only the inviter must be reachable)",
            invitation.cluster,
            tries.join("; "),
            ports(invitation)
        ),
    )
}

/// A gateway of the inviter answered, and had no room for the join.
fn busy(invitation: &Invitation) -> Refusal {
    Refusal::new(
        Problem::Unavailable,
        format!(
            "the gateways of `{}` carry as many joins as they may, in all or from this cluster's \
             address or network; wait 10 s, then try again with the same invitation. If that \
             does not end, somebody besets UDP port {} there: the other side may accept instead",
            invitation.cluster,
            ports(invitation)
        ),
    )
}

fn ports(invitation: &Invitation) -> String {
    let ports: BTreeSet<_> = invitation.addresses.iter().map(|of| of.port).collect();
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

fn too_slow(invitation: &Invitation) -> Refusal {
    Refusal::new(
        Problem::Unavailable,
        format!(
            "the federation of `{}` did not answer within {} s; try again with the same invitation",
            invitation.cluster,
            SESSION.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_link_waits_by_our_own_clock() {
        let own = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let peer = own - Duration::from_secs(240);
        let left = |seconds| by_own_clock(own, peer, peer + Duration::from_secs(seconds));
        assert_eq!(left(900), own + Duration::from_secs(900));
        assert_eq!(left(5), own + MIN_PENDING);
        assert_eq!(left(u64::from(u32::MAX)), own + MAX_TTL);
        assert_eq!(
            by_own_clock(own, peer, peer - MIN_PENDING),
            own + MIN_PENDING
        );
    }
}
