//! What is declared in this cluster: resources turned into the model, once, strictly.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkspan_resources as resources;
use linkspan_resources::{Object, ServiceType};

use crate::direct::DirectEndpoint;
use crate::failover::{DeclaredPolicy, Policies};
use crate::join::{BadInvitationId, InvitationId};
use crate::model::{
    AppProtocol, Bundle, ClusterId, ImportFilter, ImportType, Link, OwnCluster, ServiceKey,
    ServicePort, SessionAffinity, SpiffeId, TrustDomain,
};
use crate::servers::{DeclaredServer, servers_of};

#[cfg(test)]
mod tests;

/// Annotation of a ServiceExport: whether callers without a sidecar may use the service, `allow` or
/// `deny`; without it, as the cluster has it ([`OwnCluster::unmeshed_clients`]).
pub const UNMESHED_CLIENTS: &str = "linkspan.io/unmeshed-clients";

/// Annotation of a ClusterLink that federation made: the id of the invitation of which it came. The
/// peer names it when it has removed the link, so that no other is removed by a late word.
pub const MADE_BY: &str = "linkspan.io/invitation";

/// Sequence of a declared bundle: lower than any that a peer announces.
const DECLARED_SEQUENCE: u64 = 0;

/// A complete snapshot of what is declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Services of this cluster.
    pub services: BTreeMap<ServiceKey, DeclaredService>,
    /// Their servers without a sidecar.
    pub servers: BTreeMap<ServiceKey, Vec<DeclaredServer>>,
    /// Where callers of this cluster reach the endpoints of what is exported by themselves; known
    /// on Kubernetes.
    pub direct: BTreeMap<ServiceKey, Vec<DirectEndpoint>>,
    /// Which of them are exported, and since when.
    pub exports: BTreeMap<ServiceKey, DeclaredExport>,
    /// The addresses that stand for an import in this cluster: on Kubernetes, those of the Service
    /// that is derived from it. Traffic to them means the whole clusterset.
    pub clusterset_ips: Vips,
    /// Links by peer.
    pub links: BTreeMap<ClusterId, Link>,
    /// Failover policies.
    pub policies: Policies,
    /// What is wrong with what is declared, each with its place and fix; what it concerns
    /// is left out, or is as it was before.
    pub problems: Vec<String>,
    /// Objects that are refused as they are written now, and why; of a link, what was good before may
    /// still be in force.
    pub refused: BTreeMap<ObjectName, String>,
    /// Of which generation this is, where the home counts them.
    pub generations: BTreeMap<ObjectName, i64>,
    /// Whether something is declared that is or may be a ClusterLink and cannot be taken as it is
    /// written: then a link that is missing here need not be gone.
    pub links_in_doubt: bool,
}

impl Declared {
    /// The servers of a service that have no sidecar.
    pub fn servers_of(&self, service: &ServiceKey) -> &[DeclaredServer] {
        self.servers.get(service).map_or(&[], Vec::as_slice)
    }
}

/// A Service of this cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredService {
    /// Name and namespace.
    pub key: ServiceKey,
    /// Labels that a workload of the namespace must carry; empty selects none.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<DeclaredPort>,
    /// How it is imported; `None` for an `ExternalName`, which cannot be exported.
    pub import_type: Option<ImportType>,
    /// Whether a client stays with one endpoint.
    pub session_affinity: SessionAffinity,
}

impl DeclaredService {
    /// Whether a workload of `namespace` with these labels serves it.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty()
            && self.key.namespace.as_str() == namespace
            && self
                .selector
                .iter()
                .all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Its Service ports.
    pub fn service_ports(&self) -> Vec<ServicePort> {
        self.ports
            .iter()
            .map(|port| port.service_port.clone())
            .collect()
    }
}

/// A port of a [`DeclaredService`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredPort {
    /// The Service port.
    pub service_port: ServicePort,
    /// The application's own port.
    pub target_port: u16,
}

/// A ServiceExport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeclaredExport {
    /// When it was made, in whole seconds: as peers are told, so that all agree on who is oldest.
    pub created: SystemTime,
    /// Whether callers without a sidecar may use it.
    pub unmeshed_clients: bool,
}

/// Kind, namespace (empty where the kind has none) and name.
pub type ObjectName = (&'static str, String, String);

/// A resource and where it came from.
#[derive(Clone, Debug)]
pub struct Sourced {
    /// The resource.
    pub object: Object,
    /// Where it is written, for messages (such as a file name).
    pub origin: String,
    /// Its creation time where the resource itself gives none.
    pub created: SystemTime,
}

/// The addresses that stand for imports.
pub type Vips = BTreeMap<ServiceKey, Vec<IpAddr>>;

/// Links of a snapshot, by peer.
pub type Links = BTreeMap<ClusterId, Link>;

/// Puts a snapshot together. Resources that contradict each other or this cluster are left
/// out, with a problem that names both places; of two with one name the first stands. Only a link
/// of those `in_force` stays as it was: traffic runs over it, and nobody has removed it.
pub fn assemble(
    own: &OwnCluster,
    in_force: &Links,
    objects: impl IntoIterator<Item = Sourced>,
) -> Declared {
    let mut assembly = Assembly {
        own,
        in_force,
        declared: Declared::default(),
        origins: BTreeMap::new(),
    };
    let mut objects: Vec<_> = objects.into_iter().collect();
    objects.sort_by_key(|sourced| assembly.turn(&sourced.object));
    for sourced in objects {
        assembly.add(sourced);
    }
    assembly.declared
}

/// Whose turn it is: who is first holds a trust domain against those that follow.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    InForce,
    Changed,
    New,
}

struct Assembly<'a> {
    own: &'a OwnCluster,
    in_force: &'a Links,
    declared: Declared,
    /// Where each resource was first seen, by kind and name.
    origins: BTreeMap<(&'static str, String), String>,
}

impl Assembly<'_> {
    fn turn(&self, object: &Object) -> Turn {
        let Object::ClusterLink(link) = object else {
            return Turn::New;
        };
        match self.former(&link.metadata.name) {
            Some(former) if former.trust_domain.as_str() == link.spec.trust_domain => Turn::InForce,
            Some(_) => Turn::Changed,
            None => Turn::New,
        }
    }

    /// The link of that name that is in force.
    fn former(&self, name: &str) -> Option<&Link> {
        self.in_force.get(&name.parse::<ClusterId>().ok()?)
    }

    fn add(&mut self, sourced: Sourced) {
        let Sourced {
            object,
            origin,
            created,
        } = sourced;
        let kind = object.kind();
        let metadata = object.metadata();
        let (namespace, name) = match &object {
            Object::ClusterLink(_) => (String::new(), metadata.name.clone()),
            _ => (metadata.namespace().to_owned(), metadata.name.clone()),
        };
        let full_name = (kind, namespace.clone(), name.clone());
        let name = match namespace.as_str() {
            "" => name,
            namespace => format!("{namespace}/{name}"),
        };
        if let Some(first) = self.origins.get(&(kind, name.clone())) {
            let problem = format!(
                "{origin}: {kind} `{name}` is declared in {first} already; remove one of them"
            );
            return self.declared.problems.push(problem);
        }
        let added = match object {
            Object::Service(service) => self.add_service(&service),
            Object::EndpointSlice(slice) => self.add_slice(&slice, &origin),
            Object::ServiceExport(export) => self.add_export(&export, created),
            Object::ClusterLink(link) => self.add_link(link),
            Object::FailoverPolicy(policy) => self.add_policy(policy, created),
        };
        match added {
            Ok(()) => {
                self.origins.insert((kind, name), origin);
            }
            Err(problem) => {
                let told = format!("{origin}: {kind} `{name}`: {problem}");
                self.declared.problems.push(told);
                self.declared.refused.insert(full_name, problem);
            }
        }
    }

    fn add_service(&mut self, service: &resources::Service) -> Result<(), String> {
        let key = key_of(&service.metadata)?;
        let import_type = match service.spec.service_type {
            ServiceType::ExternalName => None,
            _ if service.spec.is_headless() => Some(ImportType::Headless),
            _ => Some(ImportType::ClusterSetIP),
        };
        let declared = DeclaredService {
            key: key.clone(),
            selector: service.spec.selector.clone(),
            ports: service.spec.ports.iter().map(port_of).collect(),
            import_type,
            session_affinity: service.spec.session_affinity,
        };
        self.declared.services.insert(key, declared);
        Ok(())
    }

    fn add_slice(&mut self, slice: &resources::EndpointSlice, origin: &str) -> Result<(), String> {
        let (key, servers) = servers_of(slice, origin)?;
        for server in servers {
            let of_service = self.declared.servers.entry(key.clone()).or_default();
            match of_service.iter().find(|first| first.id == server.id) {
                None => of_service.push(server),
                Some(first) => self.declared.problems.push(format!(
                    "{}: it is listed in {} already; remove one of them",
                    server.origin, first.origin
                )),
            }
        }
        Ok(())
    }

    fn add_export(
        &mut self,
        export: &resources::ServiceExport,
        created: SystemTime,
    ) -> Result<(), String> {
        let key = key_of(&export.metadata)?;
        let created = export
            .metadata
            .creation_timestamp
            .map_or(created, |written| written.time());
        let declared = DeclaredExport {
            created: whole_seconds(created),
            unmeshed_clients: unmeshed_clients(&export.metadata, self.own)?,
        };
        self.declared.exports.insert(key, declared);
        Ok(())
    }

    fn add_policy(
        &mut self,
        policy: resources::FailoverPolicy,
        created: SystemTime,
    ) -> Result<(), String> {
        let written = policy.metadata.creation_timestamp;
        let created = written.map_or(created, |written| written.time());
        let policy = DeclaredPolicy::new(policy, whole_seconds(created))?;
        self.declared.policies.insert(policy.key.clone(), policy);
        Ok(())
    }

    /// Where the link cannot be taken as it is written, the one in force stays.
    fn add_link(&mut self, link: resources::ClusterLink) -> Result<(), String> {
        let former = self.former(&link.metadata.name).cloned();
        let refused = match link_of(link).and_then(|link| self.check_link(link)) {
            Ok(link) => {
                self.declared.links.insert(link.cluster.clone(), link);
                return Ok(());
            }
            Err(refused) => refused,
        };
        self.declared.links_in_doubt = true;
        let Some(former) = former.and_then(|former| self.check_link(former).ok()) else {
            return Err(refused);
        };
        self.declared.links.insert(former.cluster.clone(), former);
        Err(format!("{refused}; the link stays as it was before"))
    }

    /// The link, if it contradicts neither this cluster nor a link that is there.
    fn check_link(&self, link: Link) -> Result<Link, String> {
        if link.cluster == self.own.cluster {
            return Err(
                "names this cluster itself; name the ClusterLink after the peer's cluster id"
                    .into(),
            );
        }
        if link.trust_domain == self.own.trust_domain {
            return Err(format!(
                "trust domain `{}` is this cluster's own; each cluster needs one of its own",
                link.trust_domain
            ));
        }
        for other in self.declared.links.values() {
            if other.trust_domain == link.trust_domain {
                return Err(format!(
                    "trust domain `{}` belongs to the link to `{}`; each link owns exactly one",
                    link.trust_domain, other.cluster
                ));
            }
        }
        let label = link.cluster.label();
        let known = self.declared.links.keys().chain([&self.own.cluster]);
        if let Some(other) = known.into_iter().find(|other| other.label() == label) {
            return Err(format!(
                "cluster ids `{}` and `{other}` share the label `{label}`; rename one",
                link.cluster
            ));
        }
        Ok(link)
    }
}

/// Without its fraction; times before 1970 are 1970.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// What the export says of callers without a sidecar. An annotation, since the fields of the kind are
/// those of the MCS API; an AuthorizationPolicy will say the same more finely.
fn unmeshed_clients(metadata: &resources::Metadata, own: &OwnCluster) -> Result<bool, String> {
    match metadata
        .annotations
        .get(UNMESHED_CLIENTS)
        .map(String::as_str)
    {
        None => Ok(own.unmeshed_clients),
        Some("deny") => Ok(false),
        Some("allow") => Ok(true),
        Some(other) => Err(format!(
            "metadata.annotations[{UNMESHED_CLIENTS}]: found {other:?}; write `allow` or `deny`"
        )),
    }
}

fn key_of(metadata: &resources::Metadata) -> Result<ServiceKey, String> {
    ServiceKey::new(metadata.namespace(), &metadata.name).map_err(|error| error.to_string())
}

fn port_of(port: &resources::ServicePort) -> DeclaredPort {
    let app_protocol = match port.app_protocol() {
        resources::AppProtocol::Detect => AppProtocol::Detect,
        resources::AppProtocol::Tcp => AppProtocol::Tcp,
        resources::AppProtocol::Http => AppProtocol::Http,
        resources::AppProtocol::Http2 => AppProtocol::Http2,
    };
    let name = port
        .name
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(Arc::from);
    DeclaredPort {
        service_port: ServicePort {
            name,
            port: port.port,
            app_protocol,
        },
        target_port: port.target_port(),
    }
}

fn link_of(link: resources::ClusterLink) -> Result<Link, String> {
    let spec = link.spec;
    let cluster: ClusterId = link
        .metadata
        .name
        .parse()
        .map_err(|error| format!("metadata.name: {error}"))?;
    let trust_domain: TrustDomain = spec
        .trust_domain
        .parse()
        .map_err(|error| format!("spec.trustDomain: {error}"))?;
    let bundle = Bundle::from_pem(DECLARED_SEQUENCE, spec.bundle.as_bytes()).map_err(|error| {
        format!("spec.bundle: {error}; paste the peer's roots as `linkspan` prints them there")
    })?;
    let made_by = made_by(&link.metadata)?;
    let gateway_id = pinned(
        spec.gateway_id,
        "gatewayID",
        &trust_domain,
        SpiffeId::gateway,
    )?;
    let federation_id = pinned(
        spec.federation_id,
        "federationID",
        &trust_domain,
        SpiffeId::federation,
    )?;
    Ok(Link {
        cluster,
        trust_domain,
        gateway_id,
        federation_id,
        addresses: spec.addresses,
        bundle,
        allow_loopback: spec.allow_loopback,
        imports: ImportFilter {
            patterns: spec.imports,
        },
        made_by,
        pending: false,
    })
}

/// What federation noted when it made the link: so the link is known by its invitation although the
/// book of links was lost, or the declaration was away for a while.
fn made_by(metadata: &resources::Metadata) -> Result<Option<InvitationId>, String> {
    let noted = metadata.annotations.get(MADE_BY);
    let id = noted.map(|noted| noted.parse()).transpose();
    id.map_err(|BadInvitationId| {
        format!(
            "metadata.annotations[{MADE_BY}]: found {:?}; federation notes the id of the link's \
             invitation there, 32 hexadecimal digits: leave it as it was, or take the annotation away",
            noted.map_or("", String::as_str)
        )
    })
}

fn pinned(
    written: Option<String>,
    field: &str,
    trust_domain: &TrustDomain,
    default: fn(&TrustDomain) -> SpiffeId,
) -> Result<SpiffeId, String> {
    let Some(written) = written else {
        return Ok(default(trust_domain));
    };
    let id: SpiffeId = written
        .parse()
        .map_err(|error| format!("spec.{field}: {error}"))?;
    if id.trust_domain() != trust_domain {
        return Err(format!(
            "spec.{field} is not of trust domain `{trust_domain}`; a link owns exactly one"
        ));
    }
    if id.is_workload() {
        return Err(format!(
            "spec.{field} is the identity of a workload, which may call services; name one of the \
             system namespace, or one that is not of the form /ns/NAMESPACE/sa/ACCOUNT"
        ));
    }
    Ok(id)
}
