//! What this gateway tells its own federation of itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_api::v1;
use linkspan_dataplane::discover::{Registration, Snapshot};
use linkspan_runtime::readiness::Gate;
use linkspan_runtime::stop::Stop;
use tokio::sync::watch;

use crate::bind::Addresses;
use crate::config::Config;

/// The registration before anything is known: not ready.
pub(crate) fn first(config: &Config, addresses: &Addresses) -> Registration {
    let egress = egress(config, addresses);
    let tunnel = config
        .tunnel_addresses
        .iter()
        .map(|(host, port)| v1::GatewayAddress {
            host: host.clone(),
            port: u32::from(if *port == 0 {
                addresses.tunnel.port()
            } else {
                *port
            }),
        });
    Registration::Gateway(v1::GatewayRegistration {
        replica: config.replica.to_string(),
        egress_address: egress.to_string(),
        tunnel_addresses: tunnel.collect(),
        ready: false,
        draining: false,
        imports: config.imports.as_ref().map(|imports| v1::ImportListeners {
            address: imports.address.to_string(),
            open: Vec::new(),
            failed: Vec::new(),
        }),
    })
}

/// Tells which ports are open for clients without a sidecar, and which cannot be opened.
pub(crate) fn listening(
    registration: &watch::Sender<Registration>,
    open: &BTreeSet<u16>,
    failed: &BTreeSet<u16>,
) {
    let wire = |ports: &BTreeSet<u16>| ports.iter().map(|port| u32::from(*port)).collect();
    let (open, failed): (Vec<_>, Vec<_>) = (wire(open), wire(failed));
    registration.send_if_modified(|registration| {
        let Registration::Gateway(v1::GatewayRegistration {
            imports: Some(told),
            ..
        }) = registration
        else {
            return false;
        };
        let news = told.open != open || told.failed != failed;
        (told.open, told.failed) = (open, failed);
        news
    });
}

/// Where others reach the egress port.
pub(crate) fn egress(config: &Config, addresses: &Addresses) -> SocketAddr {
    SocketAddr::new(
        config.egress_address.unwrap_or(addresses.egress.ip()),
        addresses.egress.port(),
    )
}

fn change(
    registration: &watch::Sender<Registration>,
    change: impl FnOnce(&mut v1::GatewayRegistration),
) {
    registration.send_modify(|registration| {
        if let Registration::Gateway(gateway) = registration {
            change(gateway);
        }
    });
}

/// Ready once the first snapshot has come, and from then on until the end; draining when told.
/// Also keeps the number of ready replicas that the hellos tell.
pub(crate) async fn keep(
    registration: watch::Sender<Registration>,
    mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    ready: watch::Sender<u32>,
    gate: Gate,
    stop: Stop,
) {
    loop {
        if let Some(snapshot) = snapshot.borrow_and_update().as_deref() {
            gate.open();
            count(snapshot, &ready);
            change_once(&registration);
        }
        tokio::select! {
            () = stop.draining() => break,
            changed = snapshot.changed() => if changed.is_err() { break },
        }
    }
    stop.draining().await;
    change(&registration, |gateway| gateway.draining = true);
    // The channel lives as long as discovery may still have to tell this.
    stop.aborted().await;
}

fn change_once(registration: &watch::Sender<Registration>) {
    let ready = matches!(&*registration.borrow(), Registration::Gateway(gateway) if gateway.ready);
    if !ready {
        change(registration, |gateway| gateway.ready = true);
    }
}

/// Gateways of our own cluster that take new work; ourselves at least.
fn count(snapshot: &Snapshot, ready: &watch::Sender<u32>) {
    let others = snapshot
        .gateways
        .iter()
        .filter(|gateway| !gateway.draining)
        .count();
    let count = u32::try_from(others).unwrap_or(u32::MAX).max(1);
    ready.send_if_modified(|told| std::mem::replace(told, count) != count);
}
