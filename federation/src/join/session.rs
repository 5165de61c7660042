//! The session itself: three messages inside TLS 1.3 between the two federations.
//!
//! ```text
//! accepter (TLS client, no certificate)      inviter (TLS server, its root in the chain)
//!          ◄──────────── JoinHello ────────────      nothing of what it is
//!          ──── JoinRequest, with proof ──────►      bound to this session's exporter
//!          ◄─────────── JoinAnswer ────────────      and who the inviter is
//! ```

use std::{io, sync::Arc};

use linkspan_api::v1;
use linkspan_core::{
    SpiffeId,
    join::{Invitation, Party, Problem, Refusal, RootsDigest, Transcript, sign},
};
use linkspan_dataplane::frame::{self, FrameError};
use linkspan_trust::pinned_config;
use rustls::CertificateError;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, client, server};

use super::{
    ALPN,
    messages::{self, Card, Hello, MAX_MESSAGE, Request},
};

/// Label of the exporter (RFC 8446, section 7.5).
pub(crate) const EXPORTER: &[u8] = b"EXPORTER-linkspan-join";
const SERVER_NAME: &str = "federation.linkspan.internal";

/// Opens the accepter's side: whoever answers holds a pinned root, or nothing is said.
pub(crate) async fn open<S>(io: S, invitation: &Invitation) -> Result<client::TlsStream<S>, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = SpiffeId::federation(&invitation.trust_domain);
    let config = pinned_config(&server, &invitation.pins, &[ALPN]).map_err(own_fault)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(own_fault)?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, io).await;
    connected.map_err(|error| unproved(invitation, &error))
}

/// Hears the inviter's first words: what the proof must sign of it, and its clock.
pub(crate) async fn hear<S>(
    tls: &mut client::TlsStream<S>,
    invitation: &Invitation,
) -> Result<Hello, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello: v1::JoinHello = frame::read_message(tls, MAX_MESSAGE)
        .await
        .map_err(|error| broken(invitation, &error))?;
    Hello::of(&hello)
}

/// Proves that we hold the invitation, and hears the verdict: with a yes, who the inviter is, and
/// until when the link may be pending.
pub(crate) async fn ask<S>(
    tls: &mut client::TlsStream<S>,
    invitation: &Invitation,
    own: &Card,
    roots: RootsDigest,
) -> Result<(Card, std::time::SystemTime), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let inviter = Party {
        cluster: invitation.cluster.clone(),
        trust_domain: invitation.trust_domain.clone(),
        roots,
    };
    let transcript = Transcript {
        exporter: exporter(
            &tls.get_ref()
                .1
                .export_keying_material([0; 32], EXPORTER, None),
        )?,
        invitation: invitation.id,
        inviter: inviter.clone(),
        accepter: own.party(),
    };
    let proof = sign(&invitation.seed, &transcript);
    let request = own.request(invitation.id, proof);
    frame::write_message(tls, &request)
        .await
        .map_err(|error| broken(invitation, &error))?;
    let answer: v1::JoinAnswer = frame::read_message(tls, MAX_MESSAGE)
        .await
        .map_err(|error| lost(invitation, &error))?;
    // The verdict counts, however the stream ends.
    let _ = tls.shutdown().await;
    let (card, expires) = messages::verdict(answer)?;
    match card.party() == inviter {
        true => Ok((card, expires)),
        false => Err(another(invitation, &card)),
    }
}

/// It says of itself what the invitation does not.
fn another(invitation: &Invitation, card: &Card) -> Refusal {
    Refusal::new(
        Problem::WrongRoots,
        format!(
            "the invitation is from cluster `{}` of trust domain `{}`, but `{}` of `{}` answered, \
             or with other roots than it began with; ask for a new invitation",
            invitation.cluster, invitation.trust_domain, card.cluster, card.trust_domain
        ),
    )
}

/// Says the first words, and hears what the accepter asks, with what its proof must sign.
pub(crate) async fn listen<S>(
    tls: &mut server::TlsStream<S>,
    own: &Card,
) -> Result<(Result<Request, Refusal>, [u8; 32]), FrameError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exporter = exporter(
        &tls.get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None),
    );
    let exporter = exporter.map_err(|refusal| FrameError::Io(io::Error::other(refusal)))?;
    frame::write_message(tls, &own.hello()).await?;
    let request: v1::JoinRequest = frame::read_message(tls, MAX_MESSAGE).await?;
    Ok((Request::of(request), exporter))
}

/// Tells the verdict, and who we are with a yes.
pub(crate) async fn tell<S>(
    tls: &mut server::TlsStream<S>,
    own: &Card,
    verdict: &Result<std::time::SystemTime, Refusal>,
) -> Result<(), FrameError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    frame::write_message(tls, &messages::answer(own, verdict)).await?;
    tls.shutdown().await.map_err(FrameError::from)
}

pub(crate) fn exporter(exported: &Result<[u8; 32], rustls::Error>) -> Result<[u8; 32], Refusal> {
    exported.clone().map_err(own_fault)
}

fn own_fault(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        Problem::Failed,
        format!("the session cannot be set up: {error}"),
    )
}

/// Why the TLS handshake failed, in the words that help.
fn unproved(invitation: &Invitation, error: &io::Error) -> Refusal {
    let (cluster, domain) = (&invitation.cluster, &invitation.trust_domain);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            wrong @ (CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::NotValidYet),
        )) => Refusal::new(
            Problem::ClockSkew,
            format!(
                "by this cluster's clock, which says {}, the certificate of `{cluster}` is not \
                 valid: {wrong}; set the clocks of both clusters (NTP)",
                humantime::format_rfc3339_seconds(std::time::SystemTime::now())
            ),
        ),
        Some(rustls::Error::InvalidCertificate(wrong)) => Refusal::new(
            Problem::WrongRoots,
            format!(
                "whoever answered at the addresses of `{cluster}` does not hold a root of trust \
                 domain `{domain}` that the invitation names ({wrong}); nothing was sent: check \
                 who is at these addresses, then ask for a new invitation"
            ),
        ),
        _ => Refusal::new(
            Problem::Unavailable,
            format!(
                "a gateway of `{cluster}` answered, but its federation did not ({}); is it \
                 running? Then try again with the same invitation",
                messages::shown(&error.to_string())
            ),
        ),
    }
}

fn broken(invitation: &Invitation, error: &FrameError) -> Refusal {
    Refusal::new(
        Problem::Unavailable,
        format!(
            "the session with the federation of `{}` broke off ({error}); try again with the same \
             invitation",
            invitation.cluster
        ),
    )
}

fn lost(invitation: &Invitation, error: &FrameError) -> Refusal {
    Refusal::new(
        Problem::Unavailable,
        format!(
            "the answer of `{}` was lost ({error}); run the same command again: the invitation is \
             still good for this cluster",
            invitation.cluster
        ),
    )
}
