//! Those who dial us: bounded handshakes, then hello, then a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use linkspan_runtime::logging::Sparing;
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
    let in_progress = Arc::new(AtomicUsize::new(0));
    loop {
        let incoming = tokio::select! {
            () = stop.draining() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        let Some(incoming) = admit(&tunnel, incoming, &in_progress) else {
            continue;
        };
        let counted = Counted::new(&in_progress);
        let (tunnel, joins, stop) = (tunnel.clone(), joins.clone(), stop.clone());
        handshakes.spawn(async move {
            tokio::select! {
                () = stop.draining() => {}
                () = accept(&tunnel, &joins, incoming, counted) => {}
            }
        });
    }
    // New callers are refused at once instead of waiting for an answer.
    endpoint.set_server_config(None);
    handshakes.close();
    handshakes.wait().await;
}

/// Above the first bound callers must prove their address; above the second they are refused.
fn admit(
    tunnel: &Tunnel,
    incoming: quinn::Incoming,
    in_progress: &AtomicUsize,
) -> Option<quinn::Incoming> {
    let busy = in_progress.load(Ordering::Relaxed);
    if busy >= tunnel.limits().handshakes {
        incoming.refuse();
        return None;
    }
    if busy >= tunnel.limits().retry_above && !incoming.remote_address_validated() {
        // Fails only where the address is validated already.
        let _ = incoming.retry();
        return None;
    }
    Some(incoming)
}

/// Counts a handshake while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(tunnel: &Tunnel, joins: &Accept, incoming: quinn::Incoming, counted: Counted) {
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
        drop(counted);
        return Box::pin(joins.serve(quic)).await;
    }
    let greeted = greet(tunnel, &quic).await;
    drop(counted);
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
        let code = match peers.is_unlinked(&identity) {
            true => CloseCode::Unlinked,
            false => CloseCode::NotLinked,
        };
        close::close(quic, code);
        return Ok(());
    };
    // Before the hello, so that the peer may use it as soon as it has ours.
    endpoint::widen(quic, tunnel.limits());
    let (cluster, limit) = (&peer.link.cluster, tunnel.timers().hello);
    let (hello, control) = handshake::accept(quic, tunnel.own(), cluster, limit).await?;
    tunnel.start(quic.clone(), hello, control, None);
    Ok(())
}
