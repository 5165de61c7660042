//! What the loopback admin face shows of links and connections. No secrets.

use linkspan_dataplane::outbound::SourceCell;
use serde::Serialize;

use crate::peers::{Peer, Peers};
use crate::tunnel::connection::Connection;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkDump<'a> {
    cluster: String,
    trust_domain: String,
    gateway: String,
    up: bool,
    rtt_micros: Option<u128>,
    addresses: Vec<String>,
    connections: Vec<ConnectionDump<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionDump<'a> {
    id: u64,
    replica: &'a str,
    purpose: String,
    dialled: bool,
    remote: String,
    suspect: bool,
    draining: bool,
    retiring: bool,
    crowded: bool,
    streams: usize,
    rtt_micros: u128,
    mtu: u16,
    lost_packets: u64,
    sent_packets: u64,
    black_holes: u64,
    congestion_window: u64,
}

/// All links and their connections, and what clients without a sidecar call.
pub(crate) fn dump(peers: &Peers, unmeshed: &SourceCell) -> serde_json::Value {
    let links: Vec<_> = peers.iter().map(link).collect();
    let imports = unmeshed.get().map(|source| {
        serde_json::json!({
            "identity": source.own(),
            "destinations": source.services().dump(),
        })
    });
    serde_json::json!({ "links": links, "imports": imports })
}

/// What is declared of the links.
pub(crate) fn links(peers: &Peers) -> serde_json::Value {
    let links = peers.iter().map(|peer| {
        serde_json::json!({
            "cluster": peer.link.cluster.to_string(),
            "trustDomain": peer.link.trust_domain.to_string(),
            "gateway": peer.link.gateway.to_string(),
            "federation": peer.link.federation.to_string(),
            "allowLoopback": peer.link.allow_loopback,
        })
    });
    serde_json::json!({ "links": links.collect::<Vec<_>>() })
}

fn link(peer: &Peer) -> LinkDump<'_> {
    let addresses = peer.link.addresses.iter();
    LinkDump {
        cluster: peer.link.cluster.to_string(),
        trust_domain: peer.link.trust_domain.to_string(),
        gateway: peer.link.gateway.to_string(),
        up: peer.is_up(),
        rtt_micros: peer.rtt().map(|rtt| rtt.as_micros()),
        addresses: addresses
            .map(|of| format!("{}:{}", of.host, of.port))
            .collect(),
        connections: peer
            .connections
            .iter()
            .map(|held| connection(held))
            .collect(),
    }
}

fn connection(connection: &Connection) -> ConnectionDump<'_> {
    let (state, path) = (connection.state(), connection.quic.stats().path);
    ConnectionDump {
        id: connection.id,
        replica: &connection.replica,
        purpose: format!("{:?}", connection.purpose).to_lowercase(),
        dialled: connection.dialled,
        remote: connection.remote().to_string(),
        suspect: state.suspect,
        draining: state.draining,
        retiring: state.retiring,
        crowded: connection.streams.is_crowded(),
        streams: connection.open_streams(),
        rtt_micros: path.rtt.as_micros(),
        mtu: path.current_mtu,
        lost_packets: path.lost_packets,
        sent_packets: path.sent_packets,
        black_holes: path.black_holes_detected,
        congestion_window: path.cwnd,
    }
}
