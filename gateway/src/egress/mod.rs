//! Local callers: sidecars, and our own federation, on the egress port.
//!
//! ```text
//! TCP ─► [outer TLS of federation] ─► PROXY header ─► ClientHello ─► target ─► stream ─► relay
//! ```
//!
//! A connection from a sidecar begins with the PROXY header. One from federation begins with a
//! TLS handshake of its own ([`control`]); inside it follows the same. The first bytes back are
//! a framed `StreamResult`, then raw bytes.

mod control;
mod opener;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use linkspan_api::v1::StreamCode;
use linkspan_dataplane::accept::{Accept, AcceptLimits};
use linkspan_dataplane::detect::tls::{ClientHello, MAX_CLIENT_HELLO, peek_client_hello};
use linkspan_dataplane::detect::{DetectError, Prefixed};
use linkspan_dataplane::discover::Snapshot;
use linkspan_dataplane::forward::bytes::Duplex;
use linkspan_dataplane::inbound::Inbound;
use linkspan_dataplane::proxy_header::{ProxyHeader, ProxyHeaderError};
use linkspan_dataplane::target::{Target, TargetName};
use linkspan_routing::{ClusterId, ClusterLabel};
use linkspan_runtime::places::{Full, Place, Places};
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::{Direction, LinkMetrics};
use linkspan_runtime::trace::{Span, Tracer};
use linkspan_trust::{MaterialReader, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{Instrument, debug, debug_span};

use crate::account::StreamMetrics;
use crate::admit::{Reach, Refusal, admit_local};
use crate::carry::carry;
use crate::limits::{Limits, Timers};
use crate::peers::Peers;
use crate::spans::{self, ended};
use crate::tunnel::close::ResetCode;
use crate::tunnel::open::{self, Opening};
use crate::tunnel::plan::Purpose;
use crate::tunnel::watched::Watched;
use crate::unmeshed::Table;
use control::{Control, ControlError};
use opener::{Established, Failure, Opener, Wanted};

/// The first byte of a TLS handshake record.
const TLS: u8 = 0x16;

/// For a refused caller to take its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves the egress port.
#[derive(Clone)]
pub(crate) struct Egress {
    own: ClusterLabel,
    /// Of those who may use the reserved targets.
    control: Arc<Control>,
    opener: Opener,
    here: Here,
    timers: Timers,
    limits: Limits,
    tracer: Tracer,
    /// For what never gets as far as a peer.
    nowhere: StreamMetrics,
}

/// What is in this cluster itself.
#[derive(Clone)]
pub(crate) struct Here {
    /// Who takes calls for servers without a sidecar.
    pub(crate) servers: watch::Receiver<Table>,
    /// Places of the calls that are taken for them.
    pub(crate) taken: Places<ClusterId>,
    pub(crate) own: ClusterId,
    pub(crate) reach: watch::Receiver<Arc<Reach>>,
    pub(crate) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
}

/// How a connection goes on.
enum Opened {
    /// As a stream to a peer.
    Stream(Established, Span),
    /// Here, with what has been read of it.
    Here(Inbound, Place<ClusterId>, Bytes),
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Anybody who can reach the port; what it may do, the inner TLS decides.
    Sidecar,
    /// Our own federation, proven by certificate.
    Federation,
}

/// Why a connection got no stream.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    #[error("no first byte within {0:?}")]
    Silent(Duration),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Header(#[from] ProxyHeaderError),
    #[error("no inner ClientHello follows the PROXY header")]
    Hello(#[from] DetectError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the server name `{0}` is no target")]
    NoTarget(String),
    #[error("federation is in our own cluster, which no gateway is needed for")]
    OwnCluster,
    #[error("nothing that gateways take calls for: {0}")]
    NotHere(#[from] Refusal),
    #[error("there is no certificate for servers without a sidecar yet, or no word of federation")]
    NotYet,
    #[error("too many calls are taken for servers without a sidecar: {0}")]
    Full(#[from] Full),
    #[error("a reserved target was asked for by somebody who is not our federation")]
    Reserved,
    #[error("cluster label `{0}` is not linked")]
    NotLinked(ClusterLabel),
    #[error("the stream was refused with {}", open::label(*.0))]
    Refused(StreamCode),
}

impl Unserved {
    /// What the caller is told; nothing where there is nobody to tell, or no way to.
    fn code(&self) -> Option<StreamCode> {
        match self {
            Self::Silent(_) | Self::Io(_) | Self::Control(_) => None,
            Self::Header(_) | Self::Hello(_) | Self::NoTarget(_) | Self::OwnCluster => {
                Some(StreamCode::BadRequest)
            }
            Self::Reserved => Some(StreamCode::Denied),
            Self::NotHere(refusal) => Some(refusal.code),
            Self::NotYet | Self::Full(_) => Some(StreamCode::Busy),
            Self::NotLinked(_) => Some(StreamCode::NoTunnel),
            Self::Refused(code) => Some(*code),
        }
    }
}

impl Egress {
    pub(crate) fn new(
        own: ClusterLabel,
        federation: SpiffeId,
        material: MaterialReader,
        peers: watch::Receiver<Arc<Peers>>,
        here: Here,
        (metrics, tracer): (&LinkMetrics, Tracer),
        (timers, limits): (Timers, Limits),
    ) -> Self {
        let opener = Opener { peers, timers };
        let nowhere = StreamMetrics::new(metrics, "", Direction::Outbound);
        Self {
            own,
            control: Arc::new(Control::new(federation, material)),
            opener,
            here,
            timers,
            limits,
            tracer,
            nowhere,
        }
    }

    /// Accepts until the stop drains, then waits for what is open, until the stop aborts.
    pub(crate) async fn run(self, listener: TcpListener, stop: Stop) {
        let accept = Accept::new(AcceptLimits {
            connections: self.limits.egress,
        });
        let egress = Arc::new(self);
        let handle = move |tcp: TcpStream, from: SocketAddr| {
            let egress = egress.clone();
            let span = debug_span!("egress", %from);
            async move { Box::pin(egress.accepted(tcp)).await }.instrument(span)
        };
        accept.run(listener, stop, handle).await;
    }

    async fn accepted(&self, tcp: TcpStream) {
        let served = match self.first_byte(&tcp).await {
            Ok(TLS) => self.federation(tcp).await,
            Ok(_) => self.serve(tcp, Caller::Sidecar).await,
            Err(error) => Err(error),
        };
        if let Err(unserved) = served {
            let rule = linkspan_runtime::process::chain(&unserved);
            debug!(rule, "connection not served");
        }
    }

    async fn first_byte(&self, tcp: &TcpStream) -> Result<u8, Unserved> {
        let limit = self.timers.first_bytes;
        let mut byte = [0];
        let peeked = timeout(limit, tcp.peek(&mut byte)).await;
        match peeked.map_err(|_| Unserved::Silent(limit))?? {
            0 => Err(Unserved::Io(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(byte[0]),
        }
    }

    async fn federation(&self, tcp: TcpStream) -> Result<(), Unserved> {
        let tls = self.control.accept(tcp, self.timers.handshake).await?;
        self.serve(tls, Caller::Federation).await
    }

    /// One connection, from its PROXY header on.
    async fn serve<IO>(&self, mut io: IO, caller: Caller) -> Result<(), Unserved>
    where
        IO: Duplex + 'static,
    {
        match self.open(&mut io, caller).await {
            Ok(Opened::Stream(established, span)) => {
                self.relay(io, established, span).await;
                Ok(())
            }
            Ok(Opened::Here(inbound, _place, read)) => {
                io.write_all(&open::answer(StreamCode::Ok)).await?;
                let io = Prefixed::new(read, io);
                Box::pin(inbound.connection(io, None)).await;
                Ok(())
            }
            Err(unserved) => {
                self.refuse(&mut io, &unserved).await;
                Err(unserved)
            }
        }
    }

    /// Everything before the answer.
    async fn open<IO: Duplex>(&self, io: &mut IO, caller: Caller) -> Result<Opened, Unserved> {
        let limit = self.timers.first_bytes;
        let header = timeout(limit, ProxyHeader::read(io)).await;
        let header = header.map_err(|_| Unserved::Silent(limit))??;
        let (hello, mut io) = peek_client_hello(io, MAX_CLIENT_HELLO, limit).await?;
        let target = target(&hello)?;
        if let TargetName::Service(target) = &target
            && target.cluster == self.own
        {
            let (read, _) = io.into_parts();
            let (inbound, place) = self.here.inbound(target)?;
            return Ok(Opened::Here(inbound, place, read));
        }
        let (mut span, trace) = spans::begin(&self.tracer, "egress", header.trace);
        span.text("linkspan.target", &target);
        let wanted = self.wanted(&hello, target, trace, caller)?;
        let opened = self.opener.open(&wanted, &mut io).await;
        let opened = opened.map_err(|failure| match failure {
            Failure::Refused(code) => Unserved::Refused(code),
            Failure::Caller(error) => Unserved::Io(error),
        });
        let mut established = opened.inspect_err(|error| span.fail(error.to_string()))?;
        let (unread, _) = io.into_parts();
        if !unread.is_empty() {
            established.rest = [established.rest, unread].concat().into();
        }
        Ok(Opened::Stream(established, span))
    }

    /// What the caller asks for, and whether it may.
    fn wanted(
        &self,
        hello: &ClientHello,
        target: TargetName,
        trace: Option<String>,
        caller: Caller,
    ) -> Result<Wanted, Unserved> {
        let (cluster, purpose) = match &target {
            TargetName::Service(service) => (&service.cluster, Purpose::Data),
            TargetName::Federation(_) if caller != Caller::Federation => {
                return Err(Unserved::Reserved);
            }
            TargetName::Federation(cluster) => (cluster, Purpose::Sync),
        };
        if *cluster == self.own {
            return Err(Unserved::OwnCluster);
        }
        let cluster = cluster.clone();
        if self.opener.peers.borrow().by_label(&cluster).is_none() {
            return Err(Unserved::NotLinked(cluster));
        }
        let http = hello.offers_http();
        Ok(Wanted {
            cluster,
            purpose,
            opening: Opening::new(target, trace),
            http,
        })
    }

    async fn relay<IO: Duplex>(&self, mut io: IO, established: Established, mut span: Span) {
        let Established {
            connection,
            quic,
            ticket,
            rest,
        } = established;
        let _open = connection.outbound.open();
        let cause = quic.cause();
        if let Err(error) = io.write_all(&open::answer(StreamCode::Ok)).await {
            debug!(%error, "the caller takes no answer");
            return connection.outbound.ended(ResetCode::Reset.label());
        }
        let counters = connection.outbound.counters();
        let io = Prefixed::new(rest, Watched::new(io, ticket.gauge()));
        let code = carry(
            io,
            quic,
            &ticket,
            &cause,
            self.timers.stream_idle,
            &counters,
        )
        .await;
        let (sent, received) = (counters.sent(), counters.received());
        debug!(peer = %connection.cluster, code, sent, received, "stream ended");
        span.text("linkspan.cluster", &connection.cluster);
        ended(&mut span, code, (sent, received));
        connection.outbound.ended(code);
    }

    /// Tells the caller the code, where there is one.
    async fn refuse<IO: Duplex>(&self, io: &mut IO, unserved: &Unserved) {
        let Some(code) = unserved.code() else {
            return io.reset();
        };
        self.nowhere.ended(open::label(code));
        let answer = open::answer(code);
        let telling = async {
            io.write_all(&answer).await?;
            io.shutdown().await?;
            swallow(io).await
        };
        // Whoever does not take the answer in time goes without.
        let _ = timeout(FAREWELL, telling).await;
    }
}

/// Where the caller wants to go.
fn target(hello: &ClientHello) -> Result<TargetName, Unserved> {
    let name = hello.server_name.as_deref().unwrap_or_default();
    let no_target = |_| Unserved::NoTarget(name.escape_debug().to_string());
    name.parse().map_err(no_target)
}

impl Here {
    /// Who takes the calls for a target of this cluster.
    fn inbound(&self, target: &Target) -> Result<(Inbound, Place<ClusterId>), Unserved> {
        let snapshot = self.snapshot.borrow().clone().ok_or(Unserved::NotYet)?;
        let reach = self.reach.borrow().clone();
        let id = admit_local(target, &snapshot, &reach)?;
        let place = self.taken.take(&self.own)?;
        let taking = self.servers.borrow().get(&id).cloned();
        Ok((taking.ok_or(Unserved::NotYet)?, place))
    }
}

/// Reads and drops what still comes, so that closing does not reset the answer away.
async fn swallow<IO: Duplex>(io: &mut IO) -> io::Result<()> {
    let mut dropped = [0; 1024];
    let mut left = MAX_CLIENT_HELLO;
    while left > 0 {
        match io.read(&mut dropped).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}
