//! What linking and unlinking need, in one place.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_core::{
    Address, ClusterId, Link, OwnCluster, SpiffeId, TrustDomain,
    backend::LinkHome,
    declared::{Links, MADE_BY, Sourced, assemble},
    join::{
        Clocks, Invitation, InvitationId, LinkBook, Offer, Problem, Refusal, Seed, Site, public_key,
    },
};
use linkspan_resources::{ClusterLink, ClusterLinkSpec, ImportPattern, Metadata, Object};
use linkspan_trust::root_pins;
use tokio::{sync::watch, time::timeout};
use zeroize::Zeroizing;

use super::{
    dials::Dials,
    in_hand::{Hold, InHand},
    invitation::{self, MAX_ADDRESSES, MAX_PINS},
    messages::{self, Card},
    store::LinkStore,
};
use crate::{
    controller::World, discovery::AppliedReader, identity::Authority, sync::Dial, version::VERSION,
};

/// Life of an invitation where nobody says otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
/// Longest life of an invitation: it is a way in, and lies about in somebody's chat.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// For our own side to be clean: one look at the directory, one plan.
const CLEAN: Duration = Duration::from_secs(5);
/// How long a plan may lag behind what status shows.
const SETTLE: Duration = Duration::from_secs(1);

/// Links and unlinks.
pub(crate) struct Linker {
    pub(crate) own: OwnCluster,
    pub(crate) authority: Arc<Authority>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) store: Arc<LinkStore>,
    pub(crate) home: Box<dyn LinkHome>,
    pub(crate) dials: Arc<Dials>,
    /// The way to peers that are linked, to tell them that they are not any more.
    pub(crate) peers: Arc<dyn Dial>,
    /// What our gateways have applied.
    pub(crate) applied: AppliedReader,
    pub(crate) in_hand: InHand,
    pub(crate) clock_skew: Duration,
}

/// A link that there is: one that is made anew is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) domain: TrustDomain,
    /// `None` where it was declared.
    pub(crate) made_by: Option<InvitationId>,
}

/// An invitation as its maker sees it, once.
pub(crate) struct Invited {
    pub(crate) id: InvitationId,
    pub(crate) text: Zeroizing<String>,
    pub(crate) expires: SystemTime,
    pub(crate) addresses: Vec<Address>,
}

impl Linker {
    /// Waits a moment for a gateway that has just become ready: the operator may have seen it
    /// before a plan was made of it.
    pub(crate) async fn await_gateways(&self, enough: impl Fn(&World) -> bool) {
        let mut worlds = self.worlds.clone();
        let _ = timeout(SETTLE, worlds.wait_for(|world| enough(world))).await;
    }

    /// The world, once there is one: before the resources were first read every link is unknown.
    pub(crate) async fn known_world(&self) -> Result<Arc<World>, Refusal> {
        let mut worlds = self.worlds.clone();
        let known = timeout(SETTLE, worlds.wait_for(|world| world.generation > 0)).await;
        match known {
            Ok(Ok(world)) => Ok(Arc::clone(&world)),
            _ => Err(Refusal::new(
                Problem::Unavailable,
                "federation is starting; try again",
            )),
        }
    }

    /// Makes an invitation for `ttl`, [`MAX_TTL`] at most; only its public half is kept. Blocks on
    /// the disk.
    pub(crate) fn invite(
        &self,
        offer: Offer,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Invited, Refusal> {
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
        self.check_peer(offer.peer.as_ref())?;
        let world = Arc::clone(&self.worlds.borrow());
        let addresses: Vec<_> = world
            .own_addresses
            .iter()
            .take(MAX_ADDRESSES)
            .cloned()
            .collect();
        if addresses.is_empty() {
            return Err(Refusal::new(
                Problem::NoGateway,
                "no ready gateway of this cluster advertises an address that a peer could dial; \
                 start one with `tunnelAddresses` (in Kubernetes: see that Service \
                 `linkspan-tunnel` has an address), or invite from the other cluster: only the \
                 inviting side must be reachable",
            ));
        }
        let pins = root_pins(&self.authority.bundle())
            .map_err(|error| Refusal::new(Problem::Failed, format!("the own roots: {error}")))?;
        let seconds = Duration::from_secs(invitation::unix(now).unsigned_abs());
        let created = SystemTime::UNIX_EPOCH + seconds;
        let invitation = Invitation {
            cluster: self.own.cluster.clone(),
            clusterset: self.own.clusterset.clone(),
            trust_domain: self.own.trust_domain.clone(),
            addresses,
            pins: pins.into_iter().take(MAX_PINS).collect(),
            id: InvitationId(rand::random()),
            seed: Seed::new(rand::random()),
            created,
            expires: created + ttl,
            peer: offer.peer.clone(),
        };
        let (id, public, expires) = (invitation.id, public_key(&invitation.seed), created + ttl);
        self.store.change(|book| {
            book.sweep(&world.declared.links, now);
            book.offer(id, public, expires, offer)
        })?;
        tracing::info!(invitation = %id, "made an invitation to link");
        Ok(Invited {
            id,
            text: invitation::encode(&invitation),
            expires,
            addresses: invitation.addresses,
        })
    }

    /// Takes an invitation back. Blocks on the disk.
    pub(crate) fn revoke(&self, id: &InvitationId, now: SystemTime) -> Result<Offer, Refusal> {
        let offer = self.store.change(|book| book.revoke(id, now))?;
        tracing::info!(invitation = %id, "took an invitation back");
        Ok(offer)
    }

    /// Better now than when the peer comes.
    fn check_peer(&self, peer: Option<&ClusterId>) -> Result<(), Refusal> {
        let Some(peer) = peer else { return Ok(()) };
        let refuse = |message| Err(Refusal::new(Problem::DuplicateCluster, message));
        if *peer == self.own.cluster {
            return refuse(format!(
                "`{peer}` is this cluster itself; name the one to be linked"
            ));
        }
        if self.worlds.borrow().declared.links.contains_key(peer) {
            return refuse(format!(
                "cluster `{peer}` is linked already; if it is to be linked anew, run \
                 `linkspan link remove {peer}` first"
            ));
        }
        Ok(())
    }

    /// Who we are, for the other side.
    pub(crate) fn card(&self, now: SystemTime) -> Card {
        let domain = &self.own.trust_domain;
        Card {
            cluster: self.own.cluster.clone(),
            clusterset: self.own.clusterset.clone(),
            trust_domain: domain.clone(),
            version: VERSION.into(),
            bundle: self.authority.bundle(),
            addresses: self
                .worlds
                .borrow()
                .own_addresses
                .iter()
                .take(messages::MAX_ADDRESSES)
                .cloned()
                .collect(),
            gateway_id: SpiffeId::gateway(domain),
            federation_id: SpiffeId::federation(domain),
            now,
        }
    }

    /// This side, for judging whether another fits.
    pub(crate) fn site<'a>(&'a self, world: &'a World) -> Site<'a> {
        Site {
            own: &self.own,
            version: VERSION,
            links: &world.declared.links,
        }
    }

    pub(crate) fn clocks(&self, own: SystemTime, peer: SystemTime) -> Clocks {
        Clocks {
            own,
            peer,
            tolerance: self.clock_skew,
        }
    }

    /// Declares the link to a peer that has proved itself, after the store knows it. Tells where.
    pub(crate) async fn declare(
        &self,
        peer: &Card,
        made_by: InvitationId,
        allow_loopback: bool,
        imports: Option<Vec<ImportPattern>>,
    ) -> Result<String, Refusal> {
        let link = cluster_link(peer, made_by, allow_loopback, imports);
        check_readable(&self.own, &link)?;
        self.home.declare(&link).await.map_err(|error| {
            let reason = linkspan_runtime::process::chain(&error);
            tracing::error!(peer = %peer.cluster, %reason, "the link cannot be written");
            Refusal::new(
                Problem::Failed,
                format!("the ClusterLink cannot be written: {reason}; then try again"),
            )
        })
    }

    /// Which link to `cluster` there is now, as it is declared or else as the book has it.
    pub(crate) fn present(&self, cluster: &ClusterId) -> Option<Present> {
        let (world, book) = (Arc::clone(&self.worlds.borrow()), self.store.current());
        let declared = world.declared.links.get(cluster);
        if let Some(link) = declared {
            return Some(Present {
                domain: link.trust_domain.clone(),
                made_by: book.origin(link),
            });
        }
        let (_, joined) = book.links().find(|(name, _)| *name == cluster)?;
        Some(Present {
            domain: joined.trust_domain.clone(),
            made_by: joined.invitation,
        })
    }

    /// Whether the link to `cluster` is known to have come of another invitation than `id`.
    pub(crate) fn is_another(&self, cluster: &ClusterId, id: &str) -> bool {
        let known = self.present(cluster).and_then(|present| present.made_by);
        !id.is_empty() && known.is_some_and(|known| known.to_string() != id)
    }

    /// Waits a moment for the removal of a former link of that name or domain, then takes the new
    /// one in hand.
    pub(crate) async fn take_in_hand(
        &self,
        cluster: &ClusterId,
        domain: &TrustDomain,
    ) -> Result<Hold, Refusal> {
        let mut books = self.store.subscribe();
        let gone = books.wait_for(|book| !book.is_leaving(cluster, domain));
        let _ = timeout(SETTLE, gone).await;
        let hold = self.in_hand.take(cluster).await;
        if !self.store.current().is_leaving(cluster, domain) {
            return Ok(hold);
        }
        let message = format!(
            "the former link between `{cluster}` and `{own}` is still being removed by `{own}`; \
             see why not in the log of its federation, then try again with the same invitation",
            own = self.own.cluster
        );
        Err(Refusal::new(Problem::Unavailable, message))
    }

    /// Takes the link away: the declaration, and then what is known of it. `buried` is told when
    /// it comes back. When this returns, our side is clean. The caller has the link in hand.
    pub(crate) async fn unlink(
        &self,
        cluster: &ClusterId,
        domain: &TrustDomain,
        buried: Option<Link>,
    ) -> Result<(), Refusal> {
        self.detach(cluster, domain, buried.clone()).await?;
        self.settle(cluster, domain, buried).await
    }

    /// Marks the link as being removed, and removes the declaration. What fails here or in
    /// [`Linker::settle`] is tried again by the keeper, which finds the mark; until then the link
    /// carries nothing.
    pub(crate) async fn detach(
        &self,
        cluster: &ClusterId,
        domain: &TrustDomain,
        buried: Option<Link>,
    ) -> Result<(), Refusal> {
        self.mark(cluster, buried).await?;
        self.home.remove(cluster, domain).await.map_err(|error| {
            let reason = linkspan_runtime::process::chain(&error);
            Refusal::new(
                Problem::Failed,
                format!("the ClusterLink `{cluster}` cannot be removed: {reason}"),
            )
        })
    }

    /// Marks the link as being removed: it carries nothing from here on.
    pub(crate) async fn mark(
        &self,
        cluster: &ClusterId,
        buried: Option<Link>,
    ) -> Result<(), Refusal> {
        let (cluster, worlds) = (cluster.clone(), self.worlds.clone());
        self.write(move |book| {
            let world = Arc::clone(&worlds.borrow());
            let declared = world.declared.links.get(&cluster);
            let domain = declared.map(|link| &link.trust_domain);
            book.begin_removal(&cluster, domain, buried.as_ref(), SystemTime::now());
        })
        .await
    }

    /// Forgets the link once it is declared nowhere.
    pub(crate) async fn settle(
        &self,
        cluster: &ClusterId,
        domain: &TrustDomain,
        buried: Option<Link>,
    ) -> Result<(), Refusal> {
        let mut worlds = self.worlds.clone();
        let gone = worlds.wait_for(|world| {
            let link = world.declared.links.get(cluster);
            link.is_none_or(|link| link.trust_domain != *domain)
        });
        if !matches!(timeout(CLEAN, gone).await, Ok(Ok(_))) {
            let message = format!(
                "the ClusterLink `{cluster}` is still declared; look for it among the problems of \
                 `linkspan status`, and remove it by hand"
            );
            return Err(Refusal::new(Problem::Failed, message));
        }
        self.forget(cluster, buried).await
    }

    /// Drops what is known of a link that is not declared; one that was made anew stays.
    pub(crate) async fn forget(
        &self,
        cluster: &ClusterId,
        buried: Option<Link>,
    ) -> Result<(), Refusal> {
        let cluster = cluster.clone();
        self.write(move |book| {
            let entry = book.links().find(|(name, _)| **name == cluster);
            if entry.is_none_or(|(_, joined)| joined.is_removing()) {
                book.remove(&cluster, buried.as_ref(), SystemTime::now());
            }
        })
        .await
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut LinkBook) + Send + 'static,
    ) -> Result<(), Refusal> {
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || {
            store.change(|book| {
                change(book);
                Ok(())
            })
        });
        written.await.map_err(|_| stopping())?
    }
}

/// The link, as an operator would have declared it.
fn cluster_link(
    peer: &Card,
    made_by: InvitationId,
    allow_loopback: bool,
    imports: Option<Vec<ImportPattern>>,
) -> ClusterLink {
    ClusterLink {
        metadata: Metadata {
            name: peer.cluster.to_string(),
            annotations: [(MADE_BY.to_owned(), made_by.to_string())].into(),
            ..Metadata::default()
        },
        spec: ClusterLinkSpec {
            trust_domain: peer.trust_domain.to_string(),
            addresses: peer.addresses.clone(),
            bundle: peer.bundle.to_pem(),
            gateway_id: Some(peer.gateway_id.to_string()),
            federation_id: Some(peer.federation_id.to_string()),
            allow_loopback,
            // Written out, so that who reads the file sees what it grants.
            imports: Some(imports.unwrap_or_else(|| vec![ImportPattern::default()])),
        },
    }
}

/// What a peer says must make a good resource; else a later reader would stumble over it.
fn check_readable(own: &OwnCluster, link: &ClusterLink) -> Result<(), Refusal> {
    let refuse = |problem: String| Refusal::new(Problem::Garbled, problem);
    let yaml = Object::ClusterLink(link.clone())
        .to_yaml()
        .map_err(refuse)?;
    let parsed = linkspan_resources::parse_documents("the link", &yaml);
    let objects = parsed.map_err(|problems| {
        refuse(
            problems
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
        )
    })?;
    let sourced = objects.into_iter().map(|object| Sourced {
        object,
        origin: "the link".into(),
        created: SystemTime::UNIX_EPOCH,
    });
    match assemble(own, &Links::new(), sourced).problems.pop() {
        Some(problem) => Err(refuse(problem)),
        None => Ok(()),
    }
}

/// That no other link of that name or domain is there or is being made.
pub(crate) fn check_rivals(
    book: &mut LinkBook,
    world: &World,
    (id, cluster, domain): (&InvitationId, &ClusterId, &TrustDomain),
    now: SystemTime,
) -> Result<(), Refusal> {
    // A link that was removed by hand is no rival.
    book.sweep(&world.declared.links, now);
    if !book.has_rival(id, cluster, domain) {
        return Ok(());
    }
    Err(Refusal::new(
        Problem::DuplicateCluster,
        "another link of this cluster id or trust domain is there or is being made; \
         remove it first (`linkspan link remove`)",
    ))
}

pub(crate) fn stopping() -> Refusal {
    Refusal::new(Problem::Unavailable, "federation is stopping")
}
