//! The operator's words about links, typed; what is refused carries its problem for the exit code.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId,
    join::{BadInvitationId, InvitationId, Offer, Problem, Refusal},
};
use linkspan_resources::{ImportPattern, Object, parse_documents};
use tonic::{Code, Status, metadata::MetadataValue};

use super::stopping;
use crate::{
    convert::wire_address,
    join::{Linker, MAX_TTL, Removed, messages::wire_problem, unix},
};

/// Globs that one link may have.
const MAX_IMPORTS: usize = 100;
/// Metadata in which a refusal carries the number of its `JoinProblem`.
const PROBLEM: &str = "linkspan-problem";

pub(super) async fn invite(
    linker: &Arc<Linker>,
    asked: v1::InviteRequest,
) -> Result<v1::InviteResponse, Status> {
    let peer = match asked.peer.as_str() {
        "" => None,
        peer => Some(cluster(peer)?),
    };
    let offer = Offer {
        peer,
        allow_loopback: asked.allow_loopback,
        imports: imports(asked.imports)?,
    };
    linker
        .await_gateways(|world| !world.own_addresses.is_empty())
        .await;
    let (linker, ttl) = (Arc::clone(linker), Duration::from_secs(asked.ttl_seconds));
    if ttl > MAX_TTL {
        let message = "an invitation lives 7 days at most; choose a shorter --ttl";
        return Err(Status::invalid_argument(message));
    }
    let made =
        tokio::task::spawn_blocking(move || linker.invite(offer, ttl, SystemTime::now())).await;
    let made = made.map_err(|_| stopping())?.map_err(refused)?;
    Ok(v1::InviteResponse {
        invitation: made.text.to_string(),
        expires_unix: unix(made.expires),
        addresses: made.addresses.iter().map(wire_address).collect(),
        id: made.id.to_string(),
    })
}

pub(super) async fn revoke(
    linker: &Arc<Linker>,
    asked: v1::RevokeInvitationRequest,
) -> Result<v1::RevokeInvitationResponse, Status> {
    let id: InvitationId = asked
        .id
        .parse()
        .map_err(|error: BadInvitationId| Status::invalid_argument(error.to_string()))?;
    let linker = Arc::clone(linker);
    let revoked = tokio::task::spawn_blocking(move || linker.revoke(&id, SystemTime::now())).await;
    let offer = revoked.map_err(|_| stopping())?.map_err(refused)?;
    Ok(v1::RevokeInvitationResponse {
        peer: offer.peer.map(|peer| peer.to_string()).unwrap_or_default(),
    })
}

pub(super) async fn accept(
    linker: &Arc<Linker>,
    asked: v1::AcceptRequest,
) -> Result<v1::AcceptResponse, Status> {
    let imports = imports(asked.imports)?;
    let (linker, allow) = (Arc::clone(linker), asked.allow_loopback);
    // In a task of its own: what has begun is finished, also when the operator loses patience.
    let accepting = async move { linker.accept(&asked.invitation, allow, imports).await };
    let accepted = tokio::spawn(accepting).await.map_err(|_| stopping())?;
    let accepted = accepted.map_err(refused)?;
    Ok(v1::AcceptResponse {
        cluster: accepted.cluster.to_string(),
        trust_domain: accepted.trust_domain.to_string(),
        path: accepted.path,
        expires_unix: unix(accepted.expires),
    })
}

pub(super) async fn remove(
    linker: &Arc<Linker>,
    asked: v1::RemoveLinkRequest,
) -> Result<v1::RemoveLinkResponse, Status> {
    let (linker, peer) = (Arc::clone(linker), cluster(&asked.cluster)?);
    let removing = async move { linker.remove(&peer).await };
    let removed = tokio::spawn(removing).await.map_err(|_| stopping())?;
    let Removed {
        untold,
        tombstone_until,
        late,
    } = removed.map_err(refused)?;
    Ok(v1::RemoveLinkResponse {
        told: untold.is_none(),
        tombstone_until_unix: tombstone_until.map_or(0, unix),
        problem: untold.unwrap_or_default(),
        late_gateways: late,
    })
}

fn cluster(text: &str) -> Result<ClusterId, Status> {
    text.parse().map_err(|error| {
        Status::invalid_argument(format!("{error}; name the peer by its cluster id"))
    })
}

/// `None` where nothing is said; globs are judged as in a ClusterLink.
fn imports(asked: Vec<v1::ImportGlob>) -> Result<Option<Vec<ImportPattern>>, Status> {
    if asked.is_empty() {
        return Ok(None);
    }
    if asked.len() > MAX_IMPORTS {
        let message = format!("a link has at most {MAX_IMPORTS} imports");
        return Err(Status::invalid_argument(message));
    }
    let patterns: Vec<_> = asked
        .into_iter()
        .map(|glob| ImportPattern {
            namespace: glob.namespace,
            name: glob.name,
        })
        .collect();
    check_globs(&patterns).map_err(Status::invalid_argument)?;
    Ok(Some(patterns))
}

fn check_globs(patterns: &[ImportPattern]) -> Result<(), String> {
    // Judged by the very rules of the resource; everything else in it is good.
    let link = linkspan_resources::ClusterLink {
        metadata: linkspan_resources::Metadata {
            name: "peer".into(),
            ..Default::default()
        },
        spec: linkspan_resources::ClusterLinkSpec {
            trust_domain: "peer.internal".into(),
            bundle: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            imports: Some(patterns.to_vec()),
            ..Default::default()
        },
    };
    let yaml = Object::ClusterLink(link).to_yaml()?;
    let problems = parse_documents("imports", &yaml).err().unwrap_or_default();
    match problems.first() {
        Some(problem) => Err(problem.to_string()),
        None => Ok(()),
    }
}

fn refused(refusal: Refusal) -> Status {
    let code = match refusal.problem {
        Problem::Malformed => Code::InvalidArgument,
        Problem::Unknown => Code::NotFound,
        Problem::Unavailable | Problem::Unreachable | Problem::NoGateway | Problem::Failed => {
            Code::Aborted
        }
        _ => Code::FailedPrecondition,
    };
    let mut status = Status::new(code, refusal.message);
    let number = MetadataValue::from(wire_problem(refusal.problem) as i32);
    status.metadata_mut().insert(PROBLEM, number);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_judged_as_in_a_resource() {
        let glob = |namespace: &str, name: &str| v1::ImportGlob {
            namespace: namespace.into(),
            name: name.into(),
        };
        assert_eq!(imports(vec![]).unwrap(), None);
        let good = imports(vec![glob("shop", "*"), glob("*", "api-*")]).unwrap();
        assert_eq!(good.map(|all| all.len()), Some(2));
        for bad in [glob("Shop!", "*"), glob("", "*"), glob("shop", "a b")] {
            let refused = imports(vec![bad.clone()]).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
        }
        imports(vec![glob("a", "b"); MAX_IMPORTS + 1]).unwrap_err();
    }

    #[test]
    fn a_refusal_carries_its_problem() {
        let status = refused(Refusal::new(Problem::Used, "used"));
        let number = status.metadata().get(PROBLEM).unwrap();
        assert_eq!(number, "3");
    }
}
