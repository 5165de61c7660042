//! The book of links made by invitation: what is on offer, what was accepted and is not proved
//! yet, and what was removed without the peer knowing. Pure; whoever keeps it writes each change
//! down before acting on it, which makes [`LinkBook::consume`] the compare-and-swap.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use linkspan_resources::ImportPattern;
use serde::{Deserialize, Serialize};

use super::{InvitationId, Problem, Refusal, RootsDigest, hex_serde};
use crate::model::{ClusterId, Link, SpiffeId, TrustDomain};

/// Invitations that can be open at a time: each is a way in, and a line in a file.
pub const MAX_INVITATIONS: usize = 100;
/// How long a removed peer that did not hear of it is told so when it comes back.
pub const TOMBSTONE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A gateway dials a new link within seconds: so long a link may stay pending, however soon its
/// invitation ends.
pub const MIN_PENDING: Duration = Duration::from_secs(60);
/// A link that is declared so soon after its removal is not there any more: whoever shows it read
/// its declaration before.
const ECHO: Duration = Duration::from_secs(5);
/// Tombstones kept; beyond, those that end first go.
const MAX_TOMBSTONES: usize = 1_000;

/// The public half of an invitation's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PublicKey([u8; 32]);
hex_serde!(PublicKey);

/// What an inviter decides about the link to come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Offer {
    /// The only cluster that may accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<ClusterId>,
    /// Whether the accepter may be dialled on loopback and link-local addresses.
    #[serde(default)]
    pub allow_loopback: bool,
    /// What the accepter may contribute; `None` is everything outside reserved namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imports: Option<Vec<ImportPattern>>,
}

/// An invitation as its maker keeps it: without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Invited {
    public_key: PublicKey,
    expires_unix: u64,
    offer: Offer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_by: Option<Accepter>,
}

impl Invited {
    /// The key by which the accepter's proof is checked.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key.0
    }

    /// What was decided when it was made.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Until when it can be used.
    pub fn expires(&self) -> SystemTime {
        time(self.expires_unix)
    }

    /// Whether nobody has used it.
    pub fn is_open(&self) -> bool {
        self.used_by.is_none()
    }
}

/// Who accepts an invitation: a cluster with certain roots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Accepter {
    /// Its cluster id.
    pub cluster: ClusterId,
    /// Its roots.
    pub roots: RootsDigest,
}

/// A link that came of an invitation, or one that is being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Joined {
    /// The link's trust domain: a link declared later under the same name is another one.
    pub trust_domain: TrustDomain,
    /// Of which invitation; `None` for a declared link that is being removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invitation: Option<InvitationId>,
    since_unix: u64,
    /// Until when a tunnel must have been up; absent once one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending_until_unix: Option<u64>,
    /// Whether its declaration is being taken away; the entry goes last, so that the link is never
    /// taken for one that is proved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removing: bool,
}

impl Joined {
    /// Whether data may pass: a tunnel has been up, and the link is not being removed.
    pub fn is_active(&self) -> bool {
        self.pending_until_unix.is_none() && !self.removing
    }

    /// Whether the link is being removed.
    pub fn is_removing(&self) -> bool {
        self.removing
    }

    /// Since when it is in its state.
    pub fn since(&self) -> SystemTime {
        time(self.since_unix)
    }

    /// Until when it may stay pending; `None` if it is active.
    pub fn pending_until(&self) -> Option<SystemTime> {
        self.pending_until_unix.map(time)
    }
}

/// A removed link whose peer was not there to hear of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tombstone {
    /// The peer's cluster id.
    pub cluster: ClusterId,
    /// The peer's gateways, who are told.
    pub gateway_id: SpiffeId,
    /// The roots by which they prove who they are, PEM.
    pub roots: String,
    /// Of which invitation the link came; `None` where it was declared. A link that was made since
    /// is not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invitation: Option<InvitationId>,
    until_unix: u64,
}

impl Tombstone {
    /// Until when it stands.
    pub fn until(&self) -> SystemTime {
        time(self.until_unix)
    }
}

/// What became of an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed {
    /// What was decided when it was made.
    pub offer: Offer,
    /// Until when the first tunnel must be up.
    pub expires: SystemTime,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LinkBook {
    invitations: BTreeMap<InvitationId, Invited>,
    links: BTreeMap<ClusterId, Joined>,
    tombstones: BTreeMap<TrustDomain, Tombstone>,
    /// Trust domains of links that were removed a moment ago, and when: what was read of the
    /// declarations before that may still be under way.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ended: BTreeMap<TrustDomain, u64>,
}

impl LinkBook {
    /// Invitations that are not over, used ones included.
    pub fn invitations(&self) -> impl Iterator<Item = (&InvitationId, &Invited)> {
        self.invitations.iter()
    }

    /// The invitation of that name.
    pub fn invitation(&self, id: &InvitationId) -> Option<&Invited> {
        self.invitations.get(id)
    }

    /// The link to `cluster`, if it came of an invitation and still is of that trust domain.
    pub fn joined(&self, cluster: &ClusterId, domain: &TrustDomain) -> Option<&Joined> {
        let joined = self.links.get(cluster)?;
        (joined.trust_domain == *domain).then_some(joined)
    }

    /// The invitation of which a declared link came: as the book has it, or else, where the book
    /// was lost or the declaration was away, as the declaration says.
    pub fn origin(&self, link: &Link) -> Option<InvitationId> {
        let known = self.made_by(&link.cluster, &link.trust_domain);
        known.or(link.made_by)
    }

    /// The invitation of which the book knows that the link to `cluster` came of it.
    pub fn made_by(&self, cluster: &ClusterId, domain: &TrustDomain) -> Option<InvitationId> {
        self.joined(cluster, domain)?.invitation
    }

    /// All links that came of invitations, and those that are being removed.
    pub fn links(&self) -> impl Iterator<Item = (&ClusterId, &Joined)> {
        self.links.iter()
    }

    /// Whether another invitation has made a link of that cluster or trust domain, active or not.
    pub fn has_rival(&self, id: &InvitationId, cluster: &ClusterId, domain: &TrustDomain) -> bool {
        self.links.iter().any(|(name, held)| {
            held.invitation != Some(*id) && (name == cluster || held.trust_domain == *domain)
        })
    }

    /// Links removed without their peers' knowledge, by trust domain.
    pub fn tombstones(&self) -> impl Iterator<Item = (&TrustDomain, &Tombstone)> {
        self.tombstones.iter()
    }

    /// Puts an invitation on offer.
    ///
    /// # Errors
    /// If too many are open already.
    pub fn offer(
        &mut self,
        id: InvitationId,
        public_key: [u8; 32],
        expires: SystemTime,
        offer: Offer,
    ) -> Result<(), Refusal> {
        if self.invitations.len() >= MAX_INVITATIONS {
            return Err(Refusal::new(
                Problem::Failed,
                format!(
                    "{MAX_INVITATIONS} invitations are open already; wait until some expire, or \
                     take some back (`linkspan link list`, `linkspan link revoke ID`)"
                ),
            ));
        }
        let invited = Invited {
            public_key: PublicKey(public_key),
            expires_unix: unix(expires),
            offer,
            used_by: None,
        };
        self.invitations.insert(id, invited);
        Ok(())
    }

    /// Takes an invitation back that nobody has used; tells what was decided when it was made.
    ///
    /// # Errors
    /// If it is not there (any more), or has been used; nothing is changed then.
    pub fn revoke(&mut self, id: &InvitationId, now: SystemTime) -> Result<Offer, Refusal> {
        let held = self.invitations.get(id).filter(|of| of.expires() > now);
        let Some(invited) = held else {
            return Err(Refusal::new(
                Problem::Unknown,
                format!(
                    "there is no open invitation `{id}`: it has expired or was taken back already; \
                     `linkspan link list` shows those there are"
                ),
            ));
        };
        if let Some(by) = &invited.used_by {
            let peer = &by.cluster;
            return Err(Refusal::new(
                Problem::Used,
                format!(
                    "invitation `{id}` has been used by cluster `{peer}`; to undo that, remove the \
                     link (`linkspan link remove {peer}`)"
                ),
            ));
        }
        let offer = invited.offer.clone();
        self.invitations.remove(id);
        Ok(offer)
    }

    /// Whether `accepter` may use the invitation; changes nothing.
    ///
    /// # Errors
    /// If it is unknown, expired, meant for another or used by another.
    pub fn check(
        &self,
        id: &InvitationId,
        accepter: &Accepter,
        now: SystemTime,
    ) -> Result<&Invited, Refusal> {
        let refuse = |problem, message: String| Err(Refusal::new(problem, message));
        let Some(invited) = self.invitations.get(id) else {
            return refuse(
                Problem::Unknown,
                "the inviting cluster does not know this invitation: it has expired or was taken \
                 back, or its link was removed; ask for a new one (`linkspan link invite`)"
                    .into(),
            );
        };
        if invited.expires() <= now {
            return refuse(
                Problem::Expired,
                "the invitation has expired; ask for a new one (`linkspan link invite`)".into(),
            );
        }
        if let Some(peer) = invited
            .offer
            .peer
            .as_ref()
            .filter(|p| **p != accepter.cluster)
        {
            return refuse(
                Problem::OtherPeer,
                format!(
                    "the invitation is meant for cluster `{peer}`, not for `{}`; accept it there, \
                     or ask for one of its own",
                    accepter.cluster
                ),
            );
        }
        match &invited.used_by {
            Some(other) if other != accepter => refuse(
                Problem::Used,
                "the invitation has been used already, by another cluster or with other roots; if \
                 that was not you, remove that link at the inviter; then ask for a new invitation"
                    .into(),
            ),
            _ => Ok(invited),
        }
    }

    /// The compare-and-swap: the first accepter takes the invitation, and may take it again.
    ///
    /// # Errors
    /// As [`LinkBook::check`]; nothing is changed then.
    pub fn consume(
        &mut self,
        id: &InvitationId,
        accepter: Accepter,
        domain: TrustDomain,
        now: SystemTime,
    ) -> Result<Consumed, Refusal> {
        self.check(id, &accepter, now)?;
        let Some(invited) = self.invitations.get_mut(id) else {
            unreachable!("checked above");
        };
        let cluster = accepter.cluster.clone();
        invited.used_by = Some(accepter);
        // It may end right after it was accepted.
        let expires = invited.expires().max(now + MIN_PENDING);
        let offer = invited.offer.clone();
        self.pend(cluster, domain, *id, expires, now);
        Ok(Consumed { offer, expires })
    }

    /// Notes a link that waits for its first tunnel. One that has had it stays active.
    pub fn pend(
        &mut self,
        cluster: ClusterId,
        trust_domain: TrustDomain,
        invitation: InvitationId,
        until: SystemTime,
        now: SystemTime,
    ) {
        self.tombstones.remove(&trust_domain);
        self.ended.remove(&trust_domain);
        let joined = Joined {
            trust_domain,
            invitation: Some(invitation),
            since_unix: unix(now),
            pending_until_unix: Some(unix(until)),
            removing: false,
        };
        match self.links.get(&cluster) {
            Some(held)
                if held.invitation == joined.invitation
                    && held.trust_domain == joined.trust_domain => {}
            _ => drop(self.links.insert(cluster, joined)),
        }
    }

    /// A tunnel of that link has been up. True if that is new.
    pub fn activate(&mut self, cluster: &ClusterId, now: SystemTime) -> bool {
        match self.links.get_mut(cluster) {
            Some(joined) if joined.pending_until_unix.is_some() && !joined.removing => {
                joined.pending_until_unix = None;
                joined.since_unix = unix(now);
                true
            }
            _ => false,
        }
    }

    /// Marks the link as being removed, also one that is only `declared`, with that domain; and lets
    /// nobody come back by the invitation it came of. With `buried` the peer is told when it returns.
    pub fn begin_removal(
        &mut self,
        cluster: &ClusterId,
        declared: Option<&TrustDomain>,
        buried: Option<&Link>,
        now: SystemTime,
    ) {
        match (self.links.get_mut(cluster), declared) {
            (Some(joined), None) => joined.removing = true,
            (Some(joined), Some(domain)) if joined.trust_domain == *domain => {
                joined.removing = true;
            }
            // What the book has under that name is of a link that is not there any more.
            (_, Some(domain)) => {
                let joined = Joined {
                    trust_domain: domain.clone(),
                    invitation: None,
                    since_unix: unix(now),
                    pending_until_unix: None,
                    removing: true,
                };
                self.links.insert(cluster.clone(), joined);
            }
            (None, None) => {}
        }
        self.close(cluster, buried, now);
    }

    /// Forgets the link once its declaration is gone; otherwise as [`LinkBook::begin_removal`].
    pub fn remove(&mut self, cluster: &ClusterId, buried: Option<&Link>, now: SystemTime) {
        self.close(cluster, buried, now);
        if let Some(joined) = self.links.remove(cluster) {
            self.ended.insert(joined.trust_domain, unix(now));
        }
    }

    /// Whether the link of that trust domain was removed a moment ago: if it still is declared, that
    /// is how it was before.
    pub fn has_just_ended(&self, domain: &TrustDomain) -> bool {
        self.ended.contains_key(domain)
    }

    fn close(&mut self, cluster: &ClusterId, buried: Option<&Link>, now: SystemTime) {
        self.invitations.retain(|_, invited| {
            let by = invited.used_by.as_ref();
            by.is_none_or(|accepter| accepter.cluster != *cluster)
        });
        let Some(link) = buried else {
            return;
        };
        while self.tombstones.len() >= MAX_TOMBSTONES {
            let first = self.tombstones.iter().min_by_key(|(_, of)| of.until_unix);
            let Some(domain) = first.map(|(domain, _)| domain.clone()) else {
                break;
            };
            self.tombstones.remove(&domain);
        }
        // Once the link is forgotten, only the tombstone still says what it came of: a second word
        // about the same removal must not unname it, or the peer would never believe it.
        let buried = self.tombstones.get(&link.trust_domain);
        let named = buried.and_then(|tombstone| tombstone.invitation);
        let tombstone = Tombstone {
            cluster: link.cluster.clone(),
            gateway_id: link.gateway_id.clone(),
            roots: link.bundle.to_pem(),
            invitation: self.origin(link).or(named),
            until_unix: unix(now + TOMBSTONE_LIFE),
        };
        self.tombstones.insert(link.trust_domain.clone(), tombstone);
    }

    /// Drops what is over: invitations, tombstones, also those of domains that are `declared`
    /// anew, and what is said of links that are not. True if anything was.
    pub fn sweep(&mut self, declared: &BTreeMap<ClusterId, Link>, now: SystemTime) -> bool {
        let before = (
            self.invitations.len(),
            self.links.len(),
            self.tombstones.len(),
            self.ended.len(),
        );
        self.ended.retain(|_, ended| time(*ended) + ECHO > now);
        self.invitations
            .retain(|_, invited| invited.expires() > now);
        // One that is being removed is declared still.
        let (links, ended) = (&self.links, &self.ended);
        let leaving = |domain: &TrustDomain| {
            let mut links = links.values();
            ended.contains_key(domain)
                || links.any(|joined| joined.removing && joined.trust_domain == *domain)
        };
        let linked =
            |domain: &TrustDomain| declared.values().any(|link| link.trust_domain == *domain);
        self.tombstones
            .retain(|domain, of| of.until() > now && (!linked(domain) || leaving(domain)));
        // One that waits may not have been read back from its file yet.
        let is_declared = |cluster: &ClusterId, joined: &Joined| {
            let link = declared.get(cluster);
            link.is_some_and(|link| link.trust_domain == joined.trust_domain)
        };
        self.links
            .retain(|cluster, joined| !joined.is_active() || is_declared(cluster, joined));
        before
            != (
                self.invitations.len(),
                self.links.len(),
                self.tombstones.len(),
                self.ended.len(),
            )
    }

    /// Links whose first tunnel did not come in time.
    pub fn overdue(&self, now: SystemTime) -> Vec<ClusterId> {
        let late = |joined: &Joined| joined.pending_until().is_some_and(|until| until <= now);
        let links = self.links.iter().filter(|(_, joined)| late(joined));
        links.map(|(cluster, _)| cluster.clone()).collect()
    }

    /// Links whose removal has begun and is not known to be done.
    pub fn removing(&self) -> Vec<ClusterId> {
        let links = self.links.iter().filter(|(_, joined)| joined.removing);
        links.map(|(cluster, _)| cluster.clone()).collect()
    }

    /// Whether a link of that cluster or trust domain is being removed.
    pub fn is_leaving(&self, cluster: &ClusterId, domain: &TrustDomain) -> bool {
        self.links.iter().any(|(name, joined)| {
            joined.removing && (name == cluster || joined.trust_domain == *domain)
        })
    }
}

fn unix(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A time that no clock can show is long over.
fn time(unix: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix));
    time.unwrap_or(UNIX_EPOCH)
}
