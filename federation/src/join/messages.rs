//! What the two federations say to each other, typed and bounded. All of it is foreign bytes.

use std::{
    fmt::Display,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use linkspan_api::v1::{self, JoinProblem};
use linkspan_core::{
    Address, Bundle, ClusterId, SpiffeId, TrustDomain,
    join::{InvitationId, Party, Problem, Refusal, RootsDigest, roots_digest},
};
use rustls_pki_types::CertificateDer;

use crate::convert::wire_address;

/// Longest message: a bundle in the midst of a rotation, with room; the gateways carry 64 KiB.
pub(crate) const MAX_MESSAGE: usize = 48 * 1024;
/// Addresses that one side names; what it says beyond is not read. Sync tells of all.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// Longest text of somebody else's that is shown.
const SHOWN: usize = 600;

/// One side, as it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Card {
    pub(crate) cluster: ClusterId,
    pub(crate) clusterset: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) version: String,
    pub(crate) bundle: Bundle,
    pub(crate) addresses: Vec<Address>,
    pub(crate) gateway_id: SpiffeId,
    pub(crate) federation_id: SpiffeId,
    pub(crate) now: SystemTime,
}

impl Card {
    /// What of it is signed.
    pub(crate) fn party(&self) -> Party {
        Party {
            cluster: self.cluster.clone(),
            trust_domain: self.trust_domain.clone(),
            roots: roots_digest(&self.bundle.roots),
        }
    }

    /// What of it the inviter says to anybody.
    pub(crate) fn hello(&self) -> v1::JoinHello {
        v1::JoinHello {
            roots_digest: Bytes::copy_from_slice(&self.party().roots.0),
            now_unix_millis: millis(self.now),
        }
    }

    pub(crate) fn request(&self, invitation: InvitationId, proof: Vec<u8>) -> v1::JoinRequest {
        v1::JoinRequest {
            invitation: Bytes::copy_from_slice(&invitation.0),
            accepter: Some(self.message()),
            proof: proof.into(),
        }
    }

    fn message(&self) -> v1::JoinCard {
        v1::JoinCard {
            cluster: self.cluster.to_string(),
            clusterset: self.clusterset.clone(),
            trust_domain: self.trust_domain.to_string(),
            version: self.version.clone(),
            roots: wire_roots(&self.bundle),
            addresses: self.addresses.iter().map(wire_address).collect(),
            gateway_spiffe_id: self.gateway_id.to_string(),
            federation_spiffe_id: self.federation_id.to_string(),
            now_unix_millis: millis(self.now),
        }
    }

    /// Reads what a side says of itself.
    fn of(said: v1::JoinCard) -> Result<Self, Refusal> {
        let trust_domain: TrustDomain = parsed("trust domain", &said.trust_domain)?;
        Ok(Self {
            cluster: parsed("cluster id", &said.cluster)?,
            clusterset: short("clusterset", said.clusterset)?,
            version: short("version", said.version)?,
            bundle: bundle(said.roots)?,
            addresses: addresses(said.addresses)?,
            gateway_id: identity("gateway", &said.gateway_spiffe_id, &trust_domain)?,
            federation_id: identity("federation", &said.federation_spiffe_id, &trust_domain)?,
            now: time(said.now_unix_millis),
            trust_domain,
        })
    }
}

/// What the inviter says before anything is proved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hello {
    pub(crate) roots: RootsDigest,
    pub(crate) now: SystemTime,
}

impl Hello {
    pub(crate) fn of(said: &v1::JoinHello) -> Result<Self, Refusal> {
        let roots: Result<[u8; 32], _> = said.roots_digest.as_ref().try_into();
        Ok(Self {
            roots: RootsDigest(roots.map_err(|_| garbled("hello", "its length"))?),
            now: time(said.now_unix_millis),
        })
    }
}

/// What an accepter asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) invitation: InvitationId,
    pub(crate) card: Card,
    pub(crate) proof: Vec<u8>,
}

impl Request {
    pub(crate) fn of(said: v1::JoinRequest) -> Result<Self, Refusal> {
        let id: Result<[u8; 16], _> = said.invitation.as_ref().try_into();
        let id = id.map_err(|_| garbled("invitation id", "its length"))?;
        Ok(Self {
            invitation: InvitationId(id),
            proof: said.proof.to_vec(),
            card: Card::of(said.accepter.unwrap_or_default())?,
        })
    }
}

/// Writes the inviter's verdict: until when the link may be pending, and who the inviter is.
pub(crate) fn answer(own: &Card, verdict: &Result<SystemTime, Refusal>) -> v1::JoinAnswer {
    use v1::join_answer::Answer;
    let answer = match verdict {
        Ok(expires) => Answer::Accepted(v1::JoinAccepted {
            expires_unix: super::invitation::unix(*expires),
            inviter: Some(own.message()),
        }),
        Err(refusal) => Answer::Refused(v1::JoinRefused {
            problem: wire_problem(refusal.problem).into(),
            message: refusal.message.clone(),
        }),
    };
    v1::JoinAnswer {
        answer: Some(answer),
    }
}

/// Reads the inviter's verdict.
pub(crate) fn verdict(said: v1::JoinAnswer) -> Result<(Card, SystemTime), Refusal> {
    use v1::join_answer::Answer;
    match said.answer {
        Some(Answer::Accepted(accepted)) => Ok((
            Card::of(accepted.inviter.unwrap_or_default())?,
            time(accepted.expires_unix.saturating_mul(1_000)),
        )),
        Some(Answer::Refused(refused)) => Err(Refusal::new(
            problem(refused.problem()),
            shown(&refused.message),
        )),
        None => Err(garbled("answer", "it is neither yes nor no")),
    }
}

const PROBLEMS: [(Problem, JoinProblem); 17] = [
    (Problem::Malformed, JoinProblem::Malformed),
    (Problem::Expired, JoinProblem::Expired),
    (Problem::Used, JoinProblem::Used),
    (Problem::Unknown, JoinProblem::Unknown),
    (Problem::OtherPeer, JoinProblem::OtherPeer),
    (Problem::Unreachable, JoinProblem::Unreachable),
    (Problem::NoGateway, JoinProblem::NoGateway),
    (Problem::DuplicateCluster, JoinProblem::DuplicateCluster),
    (Problem::OtherClusterset, JoinProblem::OtherClusterset),
    (Problem::TrustDomainTaken, JoinProblem::TrustDomainTaken),
    (Problem::Version, JoinProblem::Version),
    (Problem::ClockSkew, JoinProblem::ClockSkew),
    (Problem::WrongRoots, JoinProblem::WrongRoots),
    (Problem::BadProof, JoinProblem::BadProof),
    (Problem::Unavailable, JoinProblem::Unavailable),
    (Problem::Garbled, JoinProblem::Garbled),
    (Problem::Failed, JoinProblem::Failed),
];

pub(crate) fn wire_problem(problem: Problem) -> JoinProblem {
    let found = PROBLEMS.iter().find(|(ours, _)| *ours == problem);
    found.map_or(JoinProblem::Unspecified, |(_, wire)| *wire)
}

/// What a newer peer may have found wrong counts as unavailable.
fn problem(wire: JoinProblem) -> Problem {
    let found = PROBLEMS.iter().find(|(_, theirs)| *theirs == wire);
    found.map_or(Problem::Unavailable, |(ours, _)| *ours)
}

fn garbled(what: &str, why: impl Display) -> Refusal {
    let why = shown(&why.to_string());
    Refusal::new(
        Problem::Garbled,
        format!("the other side's {what} cannot be used ({why}); are both sides up to date?"),
    )
}

fn parsed<T: std::str::FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error| garbled(what, error))
}

fn short(what: &str, text: String) -> Result<String, Refusal> {
    let plain = text.chars().all(|c| c.is_ascii_graphic());
    match (1..=128).contains(&text.len()) && plain {
        true => Ok(text),
        false => Err(garbled(what, "use 1 to 128 printable characters")),
    }
}

fn bundle(roots: Vec<Bytes>) -> Result<Bundle, Refusal> {
    let roots: Vec<_> = roots
        .into_iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    if roots.is_empty() {
        return Err(garbled("bundle", "it has no roots"));
    }
    Bundle::new(0, None, roots).map_err(|error| garbled("bundle", error))
}

fn identity(what: &str, text: &str, domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let id: SpiffeId = parsed(what, text)?;
    if id.trust_domain() != domain || id.path().is_empty() || id.is_workload() {
        return Err(garbled(
            what,
            format_args!("`{id}` is no part of `{domain}`"),
        ));
    }
    Ok(id)
}

fn addresses(said: Vec<v1::GatewayAddress>) -> Result<Vec<Address>, Refusal> {
    let address = |of: v1::GatewayAddress| match (of.host.len(), u16::try_from(of.port)) {
        (1..=253, Ok(port)) if port > 0 => Ok(Address {
            host: of.host,
            port,
        }),
        _ => Err(garbled("addresses", "one cannot be dialled")),
    };
    let read = said.into_iter().take(MAX_ADDRESSES);
    read.map(address).collect()
}

fn wire_roots(bundle: &Bundle) -> Vec<Bytes> {
    let roots = bundle.roots.iter();
    roots.map(|root| Bytes::copy_from_slice(root)).collect()
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Bounded to what people can be shown: 1970 to 9999.
fn time(millis: i64) -> SystemTime {
    let millis = u64::try_from(millis).unwrap_or(0).min(253_402_300_799_000);
    UNIX_EPOCH + Duration::from_millis(millis)
}

/// Somebody else's words, short and without what could steer a terminal.
pub(crate) fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use linkspan_trust::CertificateAuthority;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::testing::domain;

    pub(crate) fn card(cluster: &str) -> Card {
        let trust_domain = domain(cluster);
        let authority = CertificateAuthority::create(&trust_domain, SystemTime::now()).unwrap();
        Card {
            cluster: cluster.parse().unwrap(),
            clusterset: "demo".into(),
            version: "0.1.0".into(),
            bundle: Bundle {
                sequence: 0,
                ..authority.bundle()
            },
            addresses: vec![Address {
                host: "gw.example".into(),
                port: 15443,
            }],
            gateway_id: SpiffeId::gateway(&trust_domain),
            federation_id: SpiffeId::federation(&trust_domain),
            now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            trust_domain,
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let card = card("east");
        assert_eq!(Card::of(card.message()).unwrap(), card);
        let hello = Hello::of(&card.hello()).unwrap();
        assert_eq!((hello.roots, hello.now), (card.party().roots, card.now));
        let request = Request::of(card.request(InvitationId([1; 16]), vec![7; 64])).unwrap();
        assert_eq!((request.card, request.proof), (card.clone(), vec![7; 64]));
        let until = UNIX_EPOCH + Duration::from_secs(5);
        let yes = verdict(answer(&card, &Ok(until)));
        assert_eq!(yes, Ok((card.clone(), until)));
        for (ours, _) in PROBLEMS {
            let refusal = Refusal::new(ours, "no");
            assert_eq!(verdict(answer(&card, &Err(refusal.clone()))), Err(refusal));
        }
    }

    #[test]
    fn a_part_is_of_the_own_domain_and_no_workload() {
        let of = |id: &str| identity("gateway", id, &"east.test".parse().unwrap());
        of("spiffe://east.test/ns/linkspan-system/sa/linkspan-gateway").unwrap();
        of("spiffe://east.test/gateway").unwrap();
        for id in [
            "//west.test/gateway",
            "//east.test",
            "//east.test/ns/shop/sa/cart",
        ] {
            of(&format!("spiffe:{id}")).unwrap_err();
        }
    }

    #[test]
    fn strangers_hear_nothing_of_what_we_are() {
        let card = card("east");
        let hello = card.hello().encode_to_vec();
        let shown = String::from_utf8_lossy(&hello);
        for part in ["east", "demo", "0.1.0", "gw.example", "spiffe"] {
            assert!(!shown.contains(part), "{part}: {shown}");
        }
        assert!(hello.len() < 64);
    }

    #[test]
    fn addresses_beyond_those_that_are_read_do_no_harm() {
        let mut said = card("east").message();
        said.addresses = vec![said.addresses[0].clone(); MAX_ADDRESSES + 1];
        let heard = Card::of(said).unwrap();
        assert_eq!(heard.addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let card = card("east");
        let changes: [fn(&mut v1::JoinCard); 8] = [
            |it| it.cluster = "No".into(),
            |it| it.clusterset = String::new(),
            |it| it.trust_domain = "No Domain".into(),
            |it| it.version = "\u{1b}[2J".into(),
            |it| it.roots.clear(),
            |it| it.roots = vec![Bytes::from_static(b"no certificate")],
            |it| it.addresses[0].port = 0,
            |it| it.gateway_spiffe_id = "spiffe://other.test/ns/a/sa/b".into(),
        ];
        for change in changes {
            let mut said = card.message();
            change(&mut said);
            let refused = Card::of(said.clone()).unwrap_err();
            assert_eq!(refused.problem, Problem::Garbled, "{said:?}");
        }
        let silent = verdict(v1::JoinAnswer::default()).unwrap_err();
        assert_eq!(silent.problem, Problem::Garbled);
        let short = v1::JoinHello {
            roots_digest: Bytes::from_static(b"short"),
            now_unix_millis: 0,
        };
        assert_eq!(Hello::of(&short).unwrap_err().problem, Problem::Garbled);
    }

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        let refusal = Refusal::new(Problem::Used, format!("\u{1b}[2J{}", "x".repeat(9_000)));
        let heard = verdict(answer(&card("east"), &Err(refusal))).unwrap_err();
        assert!(!heard.message.contains('\u{1b}') && heard.message.len() <= SHOWN);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(hello) = v1::JoinHello::decode(bytes.as_slice()) {
                let _ = Hello::of(&hello);
            }
            if let Ok(card) = v1::JoinCard::decode(bytes.as_slice()) {
                let _ = Card::of(card);
            }
            if let Ok(request) = v1::JoinRequest::decode(bytes.as_slice()) {
                let _ = Request::of(request);
            }
            if let Ok(said) = v1::JoinAnswer::decode(bytes.as_slice()) {
                let _ = verdict(said);
            }
            let _ = v1::JoinDialled::decode(bytes.as_slice());
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0..2_000_usize, to: u8, millis: i64) {
            let mut said = card("east").message();
            said.now_unix_millis = millis;
            let mut bytes = said.encode_to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(said) = v1::JoinCard::decode(bytes.as_slice()) {
                let _ = Card::of(said);
            }
        }
    }
}
