//! For the tests of backends and servers: samples, and the contracts of the backend traits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use linkspan_trust::CertificateAuthority;

use crate::delta::RecordHash;
use crate::model::{
    AppProtocol, Bundle, Endpoint, EndpointId, Export, ExportedEndpoint, ImportFilter, ImportType,
    Link, Locality, OwnCluster, ServiceKey, ServicePort, SessionAffinity, SpiffeId, TrustDomain,
    WorkloadId,
};
use crate::peer::Now;
use crate::record::{ReceivedRecord, RecordBody};
use crate::workloads::Registration;

mod contract;
pub mod secret;
#[cfg(test)]
mod tests;

pub use contract::{
    JournalBench, SinkBench, SourceBench, journal_contract, sink_contract, source_contract,
};

/// A clock that only moves when it is told to; both its faces start at a round time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now: Now,
}

impl Default for Clock {
    fn default() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self {
            now: Now {
                instant: Instant::now(),
                wall,
            },
        }
    }
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Lets time pass; gives the time then.
    pub fn pass(&mut self, time: Duration) -> Now {
        self.now.instant += time;
        self.now.wall += time;
        self.now
    }
}

/// The own cluster `east` of clusterset `demo`, trust domain `east.test`.
pub fn own() -> OwnCluster {
    OwnCluster {
        cluster: parsed("east"),
        clusterset: "demo".into(),
        trust_domain: parsed("east.test"),
        unmeshed_clients: false,
    }
}

/// A trust bundle with one root of its own.
pub fn bundle(trust_domain: &str, sequence: u64) -> Bundle {
    let trust_domain: TrustDomain = parsed(trust_domain);
    let authority = CertificateAuthority::create(&trust_domain, Clock::default().now().wall)
        .expect("a fresh authority can be made");
    Bundle {
        sequence,
        ..authority.bundle()
    }
}

/// A link to `cluster`, whose trust domain is `<cluster>.test`.
pub fn link(cluster: &str) -> Link {
    let trust_domain: TrustDomain = parsed(&format!("{cluster}.test"));
    Link {
        cluster: parsed(cluster),
        gateway_id: SpiffeId::gateway(&trust_domain),
        federation_id: SpiffeId::federation(&trust_domain),
        addresses: Vec::new(),
        bundle: Bundle {
            sequence: 0,
            ..bundle(trust_domain.as_str(), 0)
        },
        trust_domain,
        allow_loopback: false,
        imports: ImportFilter::default(),
        made_by: None,
        pending: false,
    }
}

/// A service by `namespace/name`.
pub fn service(key: &str) -> ServiceKey {
    parsed(key)
}

/// An unnamed port.
pub fn port(port: u16) -> ServicePort {
    ServicePort {
        name: None,
        port,
        app_protocol: AppProtocol::Detect,
    }
}

/// A named port.
pub fn named_port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        ..port(number)
    }
}

/// An export of `key` with these ports, made `age` seconds before [`Clock`] starts.
pub fn export(key: &str, ports: Vec<ServicePort>, age: u64) -> Export {
    Export {
        service: service(key),
        ports,
        import_type: ImportType::ClusterSetIP,
        session_affinity: SessionAffinity::None,
        created: Clock::default().now().wall - Duration::from_secs(age),
        capacity: Vec::new(),
        unmeshed_clients: false,
    }
}

/// A workload's SPIFFE ID in `<cluster>.test`.
pub fn identity(cluster: &str, namespace: &str, service_account: &str) -> SpiffeId {
    let id = WorkloadId::new(namespace, service_account).expect("samples are valid");
    SpiffeId::workload(&parsed(&format!("{cluster}.test")), &id)
}

/// The endpoint of workload `uid` in `cluster`, which serves `key`.
pub fn endpoint(cluster: &str, key: &str, uid: &str) -> ExportedEndpoint {
    let service = service(key);
    let endpoint = Endpoint {
        id: EndpointId::from_uid(uid),
        cluster: parsed(cluster),
        locality: Locality::default(),
        identity: identity(cluster, service.namespace.as_str(), "sa"),
        ready: true,
        weight: 1,
        incarnation: 0,
        address: None,
        labels: BTreeMap::new(),
    };
    ExportedEndpoint {
        service,
        endpoint: Arc::new(endpoint),
        hostname: uid.into(),
    }
}

/// A record as it would arrive.
pub fn received(body: RecordBody) -> ReceivedRecord {
    let encoded = format!("{body:?}");
    ReceivedRecord {
        key: body.key(),
        hash: RecordHash::of(encoded.as_bytes()),
        size: encoded.len(),
        body,
    }
}

/// The registration of workload `uid` of `own()`, labelled `app: <app>`.
pub fn registration(uid: &str, namespace: &str, app: &str) -> Registration {
    Registration {
        uid: uid.into(),
        identity: identity("east", namespace, app),
        namespace: namespace.into(),
        labels: BTreeMap::from([("app".into(), app.into())]),
        locality: Locality::default(),
        address: ([127, 0, 0, 1], 15008).into(),
        ready: true,
        weight: 1,
        incarnation: 0,
        hostname: uid.into(),
    }
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("sample {text:?} is malformed"))
}
