//! The TLS configuration of the port, rebuilt when certificate, bundles or links change.

use std::{collections::BTreeSet, sync::Arc};

use linkspan_trust::{
    ClientPolicy, MaterialError, MaterialReader, SpiffeId, TlsMaterial, TrustDomain, TrustPolicy,
};
use tokio::sync::watch;

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

/// Keeps `configs` what `material` and `peers` (the federations of linked clusters) ask for.
/// Ends when either of its sources does. Connections that exist are not touched: services
/// check links again for each stream.
pub(crate) async fn follow_links(
    own: TrustDomain,
    mut material: MaterialReader,
    mut peers: watch::Receiver<BTreeSet<SpiffeId>>,
    configs: watch::Sender<Option<Arc<rustls::ServerConfig>>>,
) {
    loop {
        let allowed = peers.borrow_and_update().clone();
        match server_config(&material.current(), &own, &allowed) {
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
