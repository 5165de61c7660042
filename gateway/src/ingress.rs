//! A stream from a peer: what it says it wants, what its inner ClientHello says, the checks, the
//! connection to the endpoint, and then bytes.
//!
//! ```text
//! StreamOpen ─► ClientHello ─► admit ─► connect ─► StreamResult ok ─► relay
//! ```

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use linkspan_api::v1::{self, StreamCode};
use linkspan_dataplane::connect::tcp;
use linkspan_dataplane::detect::tls::{ClientHello, MAX_CLIENT_HELLO, peek_client_hello};
use linkspan_dataplane::detect::{DetectError, Prefixed};
use linkspan_dataplane::discover::Snapshot;
use linkspan_dataplane::frame::{self, FrameError, MAX_STREAM_OPEN};
use linkspan_dataplane::inbound::Inbound;
use linkspan_routing::{ClusterId, ClusterLabel};
use linkspan_runtime::places::{Full, Place, Places};
use linkspan_runtime::process::chain;
use linkspan_runtime::stop::Stop;
use linkspan_runtime::trace::{Span, Tracer};
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, warn};

use crate::admit::{Admitted, Caller, Reach, Refusal, admit};
use crate::carry::carry;
use crate::limits::Timers;
use crate::spans;
use crate::stream::QuicDuplex;
use crate::tunnel::close::ResetCode;
use crate::tunnel::connection::Connection;
use crate::tunnel::open::{self, BadOpening, Opening};
use crate::tunnel::session::Incoming;
use crate::tunnel::streams::Ticket;
use crate::tunnel::watched::Watched;
use crate::unmeshed::Table;
use crate::unmeshed::pipe::pipe;

/// Where the peer leaves the choice, so many endpoints are tried.
const TRIES: usize = 3;

/// Serves the streams that peers open.
pub(crate) struct Ingress {
    /// Records streams.
    pub(crate) tracer: Tracer,
    pub(crate) own: ClusterLabel,
    /// `host:port` of our own federation.
    pub(crate) federation: String,
    pub(crate) reach: watch::Receiver<Arc<Reach>>,
    pub(crate) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(crate) timers: Timers,
    /// Who takes calls for servers without a sidecar.
    pub(crate) servers: watch::Receiver<Table>,
    /// Places of the calls that are taken for them.
    pub(crate) taken: Places<ClusterId>,
    pub(crate) places: Places<ClusterId>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: Stop,
}

/// Hands each stream to a task of its own.
pub(crate) struct Streams(pub(crate) Arc<Ingress>);

impl Incoming for Streams {
    fn take(&self, from: &Arc<Connection>, stream: (SendStream, RecvStream)) {
        let (ingress, from) = (self.0.clone(), from.clone());
        let (ticket, quic) = (from.streams.ticket(), QuicDuplex::new(stream));
        let span = debug_span!("ingress", peer = %from.cluster, replica = %from.replica);
        let serving = async move {
            tokio::select! {
                () = ingress.stop.aborted() => {}
                () = ingress.serve(&from, quic, &ticket) => {}
            }
        };
        self.0.tasks.spawn(serving.instrument(span));
    }
}

/// Why a stream was not admitted.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("the stream's opening did not arrive in time")]
    Late,
    #[error("the stream's first message is no opening")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Opening(#[from] BadOpening),
    #[error("no inner ClientHello follows the opening")]
    Hello(#[from] DetectError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("no endpoint took the connection")]
    Connect(#[source] io::Error),
    #[error("too many streams of peers are open: {0}")]
    Full(#[from] Full),
    #[error("this gateway is draining")]
    Draining,
    #[error("nothing has been heard of the control plane yet")]
    NoSnapshot,
    #[error("there is no certificate for servers without a sidecar yet")]
    NoCertificate,
}

impl Denied {
    /// What the peer is told; `None` where its bytes were no request at all.
    fn code(&self) -> Option<StreamCode> {
        match self {
            Self::Late | Self::Frame(_) => None,
            Self::Opening(_) | Self::Hello(_) => Some(StreamCode::BadRequest),
            Self::Refused(refusal) => Some(refusal.code),
            Self::Connect(_) => Some(StreamCode::ConnectFailed),
            Self::Full(_) | Self::NoSnapshot | Self::NoCertificate => Some(StreamCode::Busy),
            Self::Draining => Some(StreamCode::Draining),
        }
    }
}

/// Where a stream ends.
enum End {
    Tcp(TcpStream),
    /// Here; whoever it is speaks for a server without a sidecar.
    Here(Inbound, Place<ClusterId>),
}

/// A stream that has been admitted and connected.
struct Begun {
    end: End,
    span: Span,
    /// The inner ClientHello, which has been read from the stream.
    hello: Bytes,
    place: Place<ClusterId>,
}

impl Ingress {
    /// Completes once every stream has ended; none may come any more.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn serve(&self, from: &Connection, mut quic: QuicDuplex, ticket: &Ticket) {
        let _open = from.inbound.open();
        let cause = quic.cause();
        let begun = tokio::select! {
            begun = self.begin(from, &mut quic, ticket) => begun,
            code = ticket.cut() => {
                cause.set(code);
                return from.inbound.ended(code.label());
            }
        };
        match begun {
            Ok(begun) => self.relay(from, quic, begun, ticket).await,
            Err(denied) => self.refuse(from, quic, &denied, ticket).await,
        }
    }

    /// Everything before the answer.
    async fn begin(
        &self,
        from: &Connection,
        quic: &mut QuicDuplex,
        ticket: &Ticket,
    ) -> Result<Begun, Denied> {
        let place = self.places.take(&from.cluster)?;
        if self.stop.is_draining() {
            return Err(Denied::Draining);
        }
        let limit = self.timers.first_bytes;
        let open: v1::StreamOpen = timeout(limit, frame::read_message(quic, MAX_STREAM_OPEN))
            .await
            .map_err(|_| Denied::Late)??;
        let opening = Opening::parse(open)?;
        let (hello, rest) = peek_client_hello(&mut *quic, MAX_CLIENT_HELLO, limit).await?;
        let (bytes, _) = rest.into_parts();
        if hello.offers_http() {
            ticket.expendable();
        }
        let trace = Some(opening.trace.clone()).filter(|trace| !trace.is_empty());
        let (mut span, _) = spans::begin(&self.tracer, "ingress", trace);
        span.text("linkspan.target", &opening.target);
        span.text("linkspan.cluster", &from.cluster);
        let end = async {
            let admitted = self.admit(from, &opening, &hello)?;
            self.connect(&from.cluster, admitted).await
        };
        let end = end.await.inspect_err(|denied| span.fail(chain(denied)))?;
        Ok(Begun {
            end,
            span,
            hello: bytes,
            place,
        })
    }

    fn admit(
        &self,
        from: &Connection,
        opening: &Opening,
        hello: &ClientHello,
    ) -> Result<Admitted, Denied> {
        let snapshot = self.snapshot.borrow().clone().ok_or(Denied::NoSnapshot)?;
        let caller = Caller {
            cluster: &from.cluster,
            purpose: from.purpose,
        };
        let name = hello.server_name.as_deref();
        let reach = self.reach.borrow().clone();
        Ok(admit(opening, name, caller, &self.own, &snapshot, &reach)?)
    }

    async fn connect(&self, from: &ClusterId, admitted: Admitted) -> Result<End, Denied> {
        let addresses = match admitted {
            Admitted::Endpoints(addresses) => shuffled(addresses),
            Admitted::Federation => self.resolve_federation().await.map_err(Denied::Connect)?,
            Admitted::Server(id) => {
                let inbound = self.servers.borrow().get(&id).cloned();
                let place = self.taken.take(from)?;
                return Ok(End::Here(inbound.ok_or(Denied::NoCertificate)?, place));
            }
        };
        let connected = self.connect_any(addresses).await;
        Ok(End::Tcp(connected.map_err(Denied::Connect)?))
    }

    async fn connect_any(&self, addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        // However many are tried, the answer must come before the source gives up waiting for it.
        let deadline = Instant::now() + self.timers.connect_any;
        for address in addresses.into_iter().take(TRIES) {
            let left = deadline.saturating_duration_since(Instant::now());
            match tcp::connect(address, self.timers.connect.min(left)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn resolve_federation(&self) -> io::Result<Vec<SocketAddr>> {
        let found = timeout(
            self.timers.connect,
            tokio::net::lookup_host(&self.federation),
        )
        .await;
        let found = found.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(found.collect())
    }

    async fn relay(
        &self,
        from: &Connection,
        mut quic: QuicDuplex,
        mut begun: Begun,
        ticket: &Ticket,
    ) {
        let cause = quic.cause();
        if let Err(code) = self.answer(&mut quic, StreamCode::Ok, ticket).await {
            return from.inbound.ended(code.label());
        }
        let counters = from.inbound.counters();
        let quic = Prefixed::new(begun.hello, quic);
        let idle = self.timers.stream_idle;
        let code = match begun.end {
            End::Tcp(tcp) => {
                let tcp = Watched::new(tcp, ticket.gauge());
                carry(quic, tcp, ticket, &cause, idle, &counters).await
            }
            End::Here(inbound, _place) => {
                let (ours, theirs) = pipe();
                let ours = Watched::new(ours, ticket.gauge());
                // Each ends soon after the other, as its end of the pipe does.
                let carrying = carry(quic, ours, ticket, &cause, idle, &counters);
                let serving = Box::pin(inbound.connection(theirs, None));
                tokio::join!(carrying, serving).0
            }
        };
        let (received, sent) = (counters.sent(), counters.received());
        debug!(code, received, sent, "stream ended");
        spans::ended(&mut begun.span, code, (received, sent));
        from.inbound.ended(code);
        drop(begun.place);
    }

    /// The peer learns the code, our operator the rule.
    async fn refuse(
        &self,
        from: &Connection,
        mut quic: QuicDuplex,
        denied: &Denied,
        ticket: &Ticket,
    ) {
        let rule = chain(denied as &dyn Error);
        let Some(code) = denied.code() else {
            quic.cause().set(ResetCode::BadOpen);
            debug!(rule, "stream reset");
            return from.inbound.ended(ResetCode::BadOpen.label());
        };
        let label = open::label(code);
        let common = matches!(denied, Denied::Connect(_) | Denied::Draining);
        if !common && from.is_news(code) {
            let (peer, replica) = (&from.cluster, &from.replica);
            warn!(%peer, %replica, rule, code = label, "stream refused; more like it go to debug");
        } else {
            debug!(rule, code = label, "stream refused");
        }
        from.inbound.ended(label);
        // A peer that takes no answer needs none.
        if self.answer(&mut quic, code, ticket).await.is_ok() {
            let _ = quic.shutdown().await;
        }
    }

    /// Answers. A peer that gives the stream no window must not keep it, and what it holds, for ever.
    async fn answer(
        &self,
        quic: &mut QuicDuplex,
        code: StreamCode,
        ticket: &Ticket,
    ) -> Result<(), ResetCode> {
        let (cause, answer) = (quic.cause(), open::answer(code));
        let told = tokio::select! {
            told = timeout(self.timers.answer, quic.write_all(&answer)) => match told {
                Ok(told) => told.map_err(|_| ResetCode::Reset),
                Err(_) => Err(ResetCode::Idle),
            },
            code = ticket.cut() => Err(code),
        };
        told.inspect_err(|code| cause.set(*code))
    }
}

/// So that a peer that leaves the choice does not always get the first.
fn shuffled(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if !addresses.is_empty() {
        let first = rand::random_range(0..addresses.len());
        addresses.rotate_left(first);
    }
    addresses
}
