//! Somebody holds an invitation of ours: prove it, fit, and take it, in that order.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1;
use linkspan_core::join::{
    Accepter, Candidate, Consumed, Problem, Refusal, Transcript, check_clock, check_fit, verify,
};
use linkspan_dataplane::frame;
use linkspan_runtime::{process::chain, stop::Stop};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::{
    linker::{Linker, stopping},
    messages::Request,
    session,
};

/// Joins at a time: each costs a signature check and, if it is good, a file.
const MOST: usize = 16;
/// The whole session, as the gateways carry it.
const LIFE: Duration = Duration::from_secs(10);
/// Longest word of a gateway: eight tries with their reasons.
const MAX_DIALLED: usize = 16 * 1024;

/// A connection that is not gRPC.
pub(crate) enum Inbound {
    /// Somebody who wants to join; nothing is proved.
    Peer(TlsStream<TcpStream>, SocketAddr),
    /// A gateway of ours that has dialled; its certificate is proved.
    Gateway(TlsStream<TcpStream>),
}

/// Serves joins until the stop drains.
pub(crate) async fn serve(linker: Arc<Linker>, mut inbound: mpsc::Receiver<Inbound>, stop: Stop) {
    let (tasks, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(MOST)));
    loop {
        let connection = tokio::select! {
            () = stop.draining() => break,
            connection = inbound.recv() => match connection {
                Some(connection) => connection,
                None => break,
            },
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            tracing::debug!("too many joins");
            continue;
        };
        let linker = Arc::clone(&linker);
        tasks.spawn(async move {
            let _ = timeout(LIFE, Box::pin(one(&linker, connection))).await;
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn one(linker: &Linker, connection: Inbound) {
    match connection {
        Inbound::Peer(mut tls, remote) => {
            if let Err(error) = answer(linker, &mut tls).await {
                tracing::debug!(%remote, error = chain(&error), "a join broke off");
            }
        }
        Inbound::Gateway(mut tls) => {
            match frame::read_message::<v1::JoinDialled, _>(&mut tls, MAX_DIALLED).await {
                Ok(dialled) => linker.dials.deliver(dialled, tls),
                Err(error) => tracing::debug!(error = chain(&error), "a gateway came back mute"),
            }
        }
    }
}

async fn answer(linker: &Linker, tls: &mut TlsStream<TcpStream>) -> Result<(), frame::FrameError> {
    let own = linker.card(SystemTime::now());
    let (request, exporter) = session::listen(tls, &own).await?;
    let verdict = match request {
        Ok(request) => {
            let transcript = Transcript {
                exporter,
                invitation: request.invitation,
                inviter: own.party(),
                accepter: request.card.party(),
            };
            judge(linker, request, transcript, SystemTime::now()).await
        }
        Err(refusal) => Err(refusal),
    };
    session::tell(tls, &verdict).await
}

/// The verdict; with a yes, the link is declared and pending.
async fn judge(
    linker: &Linker,
    request: Request,
    transcript: Transcript,
    now: SystemTime,
) -> Result<SystemTime, Refusal> {
    check_proof(linker, &request, &transcript)?;
    let judged = take(linker, &request, now).await;
    let peer = &request.card.cluster;
    match &judged {
        Ok(_) => tracing::info!(%peer, "linked by invitation; pending until the first tunnel"),
        Err(refusal) => {
            tracing::warn!(%peer, problem = ?refusal.problem, reason = refusal.message, "join refused");
        }
    }
    judged
}

/// Before anything else: who does not hold the seed learns nothing about us.
fn check_proof(linker: &Linker, request: &Request, transcript: &Transcript) -> Result<(), Refusal> {
    let book = linker.store.current();
    let Some(invited) = book.invitation(&request.invitation) else {
        return Err(Refusal::new(
            Problem::Unknown,
            format!(
                "cluster `{}` does not know this invitation: it has expired, or its link was \
                 removed; ask for a new one (`linkspan link invite`)",
                linker.own.cluster
            ),
        ));
    };
    if verify(invited.public_key(), transcript, &request.proof) {
        return Ok(());
    }
    tracing::warn!(invitation = %request.invitation, "a join's proof is wrong");
    Err(Refusal::new(
        Problem::BadProof,
        "the proof does not fit the invitation and this session; if nobody meddles with the \
         connection, ask for a new invitation",
    ))
}

async fn take(linker: &Linker, request: &Request, now: SystemTime) -> Result<SystemTime, Refusal> {
    let (card, own) = (&request.card, &linker.own.cluster);
    linker
        .await_removal(&card.cluster, &card.trust_domain)
        .await;
    let world = linker.known_world().await?;
    let show = |time| humantime::format_rfc3339_seconds(time).to_string();
    check_clock(own, &card.cluster, linker.clocks(now, card.now), show)?;
    let accepter = Accepter {
        cluster: card.cluster.clone(),
        roots: card.party().roots,
    };
    let book = linker.store.current();
    let invited = book.check(&request.invitation, &accepter, now)?;
    let joined = book.joined(&card.cluster, &card.trust_domain);
    let candidate = Candidate {
        cluster: &card.cluster,
        clusterset: &card.clusterset,
        trust_domain: &card.trust_domain,
        version: &card.version,
        again: joined.is_some_and(|joined| joined.invitation == request.invitation),
    };
    check_fit(&linker.site(&world), &candidate)?;
    let mut links = world.declared.links.values();
    if candidate.again
        && links.any(|of| of.cluster == card.cluster && of.trust_domain == card.trust_domain)
    {
        // The link is as it was made, or as the operator has changed it since.
        return Ok(invited.expires());
    }
    let consumed = consume(linker, request, accepter, now).await?;
    let Consumed { offer, expires } = consumed;
    linker
        .declare(card, offer.allow_loopback, offer.imports)
        .await?;
    Ok(expires)
}

/// The compare-and-swap, on disk before the answer. That no other link of this name or domain is
/// being made at the same time is part of it.
async fn consume(
    linker: &Linker,
    request: &Request,
    accepter: Accepter,
    now: SystemTime,
) -> Result<Consumed, Refusal> {
    let (store, id) = (Arc::clone(&linker.store), request.invitation);
    let (domain, worlds) = (request.card.trust_domain.clone(), linker.worlds.clone());
    let taken = tokio::task::spawn_blocking(move || {
        store.change(|book| {
            let world = Arc::clone(&worlds.borrow());
            // A link that was removed by hand is no rival.
            book.sweep(&world.declared.links, now);
            if book.has_rival(&id, &accepter.cluster, &domain) {
                return Err(Refusal::new(
                    Problem::DuplicateCluster,
                    "another link of this cluster id or trust domain is there or is being made; \
                     remove it first (`linkspan link remove`)",
                ));
            }
            book.consume(&id, accepter, domain, now)
        })
    });
    taken.await.map_err(|_| stopping())?
}
