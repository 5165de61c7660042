//! The TLS configuration of the port, rebuilt when certificate, bundles or links change.

use std::{collections::BTreeSet, sync::Arc};

use linkspan_trust::{
    ClientPolicy, MaterialError, MaterialReader, SpiffeId, TlsMaterial, TrustDomain, TrustPolicy,
};
use tokio::sync::watch;

use crate::join;

const ALPN: &[&[u8]] = &[b"h2"];

/// Admits callers without a certificate, callers of the own domain, and exactly `peers`.
fn server_config(
    material: &TlsMaterial,
    own: &TrustDomain,
    peers: &BTreeSet<SpiffeId>,
) -> Result<rustls::ServerConfig, MaterialError> {
    let policy = TrustPolicy::AnyOf(vec![
        TrustPolicy::Domains(BTreeSet::from([own.clone()])),
        TrustPolicy::Exactly(peers.clone()),
    ]);
    material.server_config(ClientPolicy::Optional(policy), ALPN)
}

/// What the port speaks, by the application protocol that a caller offers.
pub(crate) struct PortConfigs {
    /// gRPC, also where nothing is offered.
    pub(crate) grpc: Arc<rustls::ServerConfig>,
    /// A peer that is not linked yet; it shows no certificate, and gets our root along.
    pub(crate) join: Arc<rustls::ServerConfig>,
    /// A gateway of ours that has dialled for a join.
    pub(crate) back: Arc<rustls::ServerConfig>,
}

fn port_configs(
    material: &TlsMaterial,
    own: &TrustDomain,
    peers: &BTreeSet<SpiffeId>,
) -> Result<PortConfigs, MaterialError> {
    let gateways = ClientPolicy::Required(TrustPolicy::only(SpiffeId::gateway(own)));
    Ok(PortConfigs {
        grpc: Arc::new(server_config(material, own, peers)?),
        join: Arc::new(material.pinnable_server_config(&[join::ALPN])?),
        back: Arc::new(material.server_config(gateways, &[join::BACK_ALPN])?),
    })
}

/// Keeps `configs` what `material` and `peers` (the federations of linked clusters) ask for.
/// Ends when either of its sources does. Connections that exist are not touched: services
/// check links again for each stream.
pub(crate) async fn follow_links(
    own: TrustDomain,
    mut material: MaterialReader,
    mut peers: watch::Receiver<BTreeSet<SpiffeId>>,
    configs: watch::Sender<Option<Arc<PortConfigs>>>,
) {
    loop {
        let allowed = peers.borrow_and_update().clone();
        match port_configs(&material.current(), &own, &allowed) {
            Ok(config) => drop(configs.send_replace(Some(Arc::new(config)))),
            Err(error) => tracing::error!(%error, "keeping the former TLS configuration"),
        }
        let changed = tokio::select! {
            changed = material.changed() => changed.is_ok(),
            changed = peers.changed() => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}
