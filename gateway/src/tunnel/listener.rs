//! Those who dial us: bounded handshakes, then hello, then a session.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_runtime::logging::Sparing;
use linkspan_runtime::places::{self, Full, Place, Places};
use linkspan_runtime::process::chain;
use linkspan_runtime::stop::Stop;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Tunnel;
use super::close::{self, CloseCode};
use super::endpoint;
use super::handshake::{self, Refused};
use crate::join::{self, accept::Accept};

/// Warnings of refused peers.
static REFUSALS: Sparing = Sparing::new(Duration::from_secs(10));

/// Accepts until the stop drains; sessions live on in the tunnel's tracker.
pub(crate) async fn run(
    tunnel: Arc<Tunnel>,
    endpoint: quinn::Endpoint,
    joins: Arc<Accept>,
    stop: Stop,
) {
    let handshakes = TaskTracker::new();
    let limits = tunnel.limits();
    let places = Places::new(limits.handshakes, limits.handshakes_each);
    loop {
        let incoming = tokio::select! {
            () = stop.draining() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        let Some((incoming, place)) = admit(&places, incoming) else {
            continue;
        };
        let (tunnel, joins, stop) = (tunnel.clone(), joins.clone(), stop.clone());
        handshakes.spawn(async move {
            tokio::select! {
                () = stop.draining() => {}
                () = accept(&tunnel, &joins, incoming, place) => {}
            }
        });
    }
    // New callers are refused at once instead of waiting for an answer.
    endpoint.set_server_config(None);
    handshakes.close();
    handshakes.wait().await;
}

/// Who has a handshake in progress. An address that is not proved may be anybody's: it must not
/// take the places of whom it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Unproved,
    At(IpAddr),
}

/// A place for this caller, or it must prove its address first, or is refused.
fn admit(
    handshakes: &Places<Caller>,
    incoming: quinn::Incoming,
) -> Option<(quinn::Incoming, Place<Caller>)> {
    let caller = match incoming.remote_address_validated() {
        true => Caller::At(places::source(incoming.remote_address().ip())),
        false => Caller::Unproved,
    };
    match handshakes.take(&caller) {
        Ok(place) => return Some((incoming, place)),
        // Fails only where the address is validated already.
        Err(Full::Share) if caller == Caller::Unproved => drop(incoming.retry()),
        Err(Full::Share | Full::All) => incoming.refuse(),
    }
    None
}

async fn accept(tunnel: &Tunnel, joins: &Accept, incoming: quinn::Incoming, place: Place<Caller>) {
    let remote = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return debug!(%remote, %error, "tunnel caller refused"),
    };
    let quic = match timeout(tunnel.timers().handshake, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            // As a string, so that the caller's words in it are escaped.
            return debug!(%remote, error = error.to_string(), "tunnel handshake failed");
        }
        Err(_) => return debug!(%remote, "tunnel handshake took too long"),
    };
    if handshake::protocol(&quic).as_deref() == Some(join::ALPN) {
        // The handshake is done; joins have limits of their own.
        drop(place);
        return Box::pin(joins.serve(quic)).await;
    }
    let greeted = greet(tunnel, &quic).await;
    drop(place);
    if let Err(refused) = greeted {
        let code = refused.code();
        let reason = chain(&refused);
        let code_word = code.label();
        // Anybody can come without a certificate, and peers otherwise, as often as they like.
        let due = (code != CloseCode::NoCertificate).then(|| REFUSALS.due(Instant::now()));
        match due.flatten() {
            Some(unsaid) => {
                warn!(%remote, reason, code = code_word, unsaid, "a linked peer's gateway was refused");
            }
            None => debug!(%remote, reason, code = code_word, "tunnel caller refused"),
        }
        close::close(&quic, code);
    }
}

async fn greet(tunnel: &Tunnel, quic: &quinn::Connection) -> Result<(), Refused> {
    let identity = handshake::identity(quic)?;
    let peers = tunnel.peers();
    let Some(peer) = peers.by_gateway(&identity) else {
        // Unlinked, and it has not heard of it; or linked when the handshake began, but no longer.
        match peers.unlinked(&identity) {
            Some(invitation) => close::unlinked(quic, invitation),
            None => close::close(quic, CloseCode::NotLinked),
        }
        return Ok(());
    };
    // Before the hello, so that the peer may use it as soon as it has ours.
    endpoint::widen(quic, tunnel.limits());
    let (cluster, limit) = (&peer.link.cluster, tunnel.timers().hello);
    let (hello, control) = handshake::accept(quic, tunnel.own(), cluster, limit).await?;
    tunnel.start(quic.clone(), hello, control, None);
    Ok(())
}
