//! Somebody holds an invitation of ours: prove it, fit, and take it, in that order.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1;
use linkspan_core::join::{
    Accepter, Candidate, Consumed, Problem, Refusal, Transcript, check_clock, check_fit, verify,
};
use linkspan_dataplane::frame;
use linkspan_runtime::{
    places::{Full, Place, Places, source},
    process::chain,
    stop::Stop,
};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::{
    linker::{Linker, check_rivals, stopping},
    messages::Request,
    session,
};

/// Joins at a time: each costs a signature check and, if it is good, a file.
const MOST: usize = 64;
/// Of one source: what one gateway carries, so that one that is beset leaves room to the others.
const EACH: usize = 32;
/// Gateways of ours on their way back: each has a few dials under way.
const MOST_BACK: usize = 64;
/// The whole session, as the gateways carry it.
const LIFE: Duration = Duration::from_secs(10);
/// Longest word of a gateway: eight tries with their reasons.
const MAX_DIALLED: usize = 16 * 1024;
/// Connections on their way here, which are taken at once.
const WAITING: usize = 16;

/// A connection of somebody who wants to join; nothing is proved.
type Stranger = (TlsStream<TcpStream>, SocketAddr, Place<IpAddr>);

/// Where the port leaves connections that are not gRPC. What finds no room is too much. Strangers
/// cannot take that of our own gateways.
#[derive(Clone)]
pub(crate) struct Doors {
    places: Places<IpAddr>,
    strangers: mpsc::Sender<Stranger>,
    gateways: mpsc::Sender<TlsStream<TcpStream>>,
}

/// Behind the [`Doors`].
pub(crate) struct Inbound {
    strangers: mpsc::Receiver<Stranger>,
    gateways: mpsc::Receiver<TlsStream<TcpStream>>,
}

/// Doors, and what is behind them.
pub(crate) fn doors() -> (Doors, Inbound) {
    let (strangers, inbound) = mpsc::channel(WAITING);
    let (gateways, back) = mpsc::channel(WAITING);
    let inbound = Inbound {
        strangers: inbound,
        gateways: back,
    };
    (
        Doors {
            places: Places::new(MOST, EACH),
            strangers,
            gateways,
        },
        inbound,
    )
}

impl Doors {
    /// A place for somebody who wants to join, as soon as that is known.
    pub(crate) fn admit(&self, from: IpAddr) -> Result<Place<IpAddr>, Full> {
        self.places.take(&source(from))
    }

    /// Somebody wants to join.
    pub(crate) fn stranger(
        &self,
        tls: TlsStream<TcpStream>,
        remote: SocketAddr,
        place: Place<IpAddr>,
    ) {
        drop(self.strangers.try_send((tls, remote, place)));
    }

    /// A gateway of ours has dialled; its certificate is proved.
    pub(crate) fn gateway(&self, tls: TlsStream<TcpStream>) {
        drop(self.gateways.try_send(tls));
    }
}

/// Serves joins until the stop drains.
pub(crate) async fn serve(linker: Arc<Linker>, mut inbound: Inbound, stop: Stop) {
    let tasks = TaskTracker::new();
    let back = Arc::new(Semaphore::new(MOST_BACK));
    loop {
        // Cancel-safe: channels.
        tokio::select! {
            () = stop.draining() => break,
            Some(stranger) = inbound.strangers.recv() => {
                drop(tasks.spawn(meet(Arc::clone(&linker), stranger)));
            }
            Some(tls) = inbound.gateways.recv() => match Arc::clone(&back).try_acquire_owned() {
                Ok(permit) => drop(tasks.spawn(welcome(Arc::clone(&linker), tls, permit))),
                Err(_) => tracing::warn!("too many gateways come back at once"),
            },
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn meet(linker: Arc<Linker>, (mut tls, remote, _place): Stranger) {
    match timeout(LIFE, Box::pin(answer(&linker, &mut tls))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%remote, error = chain(&error), "a join broke off"),
        Err(_) => tracing::debug!(%remote, "a join took too long"),
    }
}

async fn welcome(
    linker: Arc<Linker>,
    mut tls: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
) {
    let word = frame::read_message::<v1::JoinDialled, _>(&mut tls, MAX_DIALLED);
    match timeout(LIFE, word).await {
        Ok(Ok(dialled)) => linker.dials.deliver(dialled, tls),
        Ok(Err(error)) => tracing::debug!(error = chain(&error), "a gateway came back mute"),
        Err(_) => tracing::debug!("a gateway came back and said nothing"),
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
    session::tell(tls, &own, &verdict).await
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
            "the inviting cluster does not know this invitation: it has expired or was taken back, \
             or its link was removed; ask for a new one (`linkspan link invite`)",
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

async fn take(linker: &Linker, request: &Request, came: SystemTime) -> Result<SystemTime, Refusal> {
    let (card, own) = (&request.card, &linker.own.cluster);
    let show = |time| humantime::format_rfc3339_seconds(time).to_string();
    check_clock(own, &card.cluster, linker.clocks(came, card.now), show)?;
    // Until the link is declared: nobody removes what is half made.
    let _hold = linker
        .take_in_hand(&card.cluster, &card.trust_domain)
        .await?;
    let (world, now) = (linker.known_world().await?, SystemTime::now());
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
        again: joined.is_some_and(|joined| joined.invitation == Some(request.invitation)),
    };
    check_fit(&linker.site(&world), &candidate)?;
    let mut links = world.declared.links.values();
    if candidate.again
        && links.any(|of| of.cluster == card.cluster && of.trust_domain == card.trust_domain)
    {
        // The link is as it was made, or as the operator has changed it since.
        return Ok(invited.expires());
    }
    let consumed = consume(linker, request, accepter).await?;
    let Consumed { offer, expires } = consumed;
    linker
        .declare(
            card,
            request.invitation,
            offer.allow_loopback,
            offer.imports,
        )
        .await?;
    Ok(expires)
}

/// The compare-and-swap, on disk before the answer. That no other link of this name or domain is
/// being made at the same time is part of it.
async fn consume(
    linker: &Linker,
    request: &Request,
    accepter: Accepter,
) -> Result<Consumed, Refusal> {
    let (store, id) = (Arc::clone(&linker.store), request.invitation);
    let (domain, worlds) = (request.card.trust_domain.clone(), linker.worlds.clone());
    let taken = tokio::task::spawn_blocking(move || {
        store.change(|book| {
            let (world, now) = (Arc::clone(&worlds.borrow()), SystemTime::now());
            check_rivals(book, &world, (&id, &accepter.cluster, &domain), now)?;
            book.consume(&id, accepter, domain, now)
        })
    });
    taken.await.map_err(|_| stopping())?
}
