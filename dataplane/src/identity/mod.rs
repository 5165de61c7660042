//! This process's certificate: the first one by token, later ones by the one before, and the
//! bundles of the trust domains that it may meet.
//!
//! Keys are made here and never leave; what travels is a certificate request.

mod fresh;

use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1::{IssueRequest, IssueResponse, IssuedFor, identity_client::IdentityClient};
use linkspan_runtime::{
    BoxError, backoff::Backoff, config::Problems, process::chain, stop::Stop,
    telemetry::ControlMetrics,
};
use linkspan_trust::{
    Bundle, BundleSet, MaterialReader, MaterialWriter, PrivateKey, SpiffeId, Svid, TrustDomain,
    TrustPolicy, first_contact_config, generate_csr, material,
};
use rustls::{ClientConfig, pki_types::CertificateDer};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::fresh::Fresh;
use crate::{
    connect::{alpn, grpc},
    discover::{Snapshot, bundle_of},
};

/// Longest wait for a certificate once connected.
const RPC: Duration = Duration::from_secs(10);
/// Between tries at first contact: a part cannot do anything before, so it asks often.
const FIRST_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest token file, bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// How to reach and recognise the own federation.
#[derive(Clone, Debug)]
pub struct FederationClient {
    /// `host:port` of its gRPC.
    pub address: String,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots, for the first contact.
    pub roots: Bundle,
    /// File with the join token; read each time, as it may be replaced.
    pub token: PathBuf,
}

impl FederationClient {
    /// The identity that federation must prove.
    #[must_use]
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::federation(&self.trust_domain)
    }

    /// TLS to federation with our certificate.
    pub(crate) fn mutual_tls(
        &self,
        reader: &MaterialReader,
    ) -> Result<ClientConfig, IdentityError> {
        let servers = TrustPolicy::Exactly([self.identity()].into());
        let config = reader.current().client_config(servers, &[alpn::H2]);
        config.map_err(|error| IdentityError::Tls(error.into()))
    }
}

/// `federation:` in the configuration of gateways and sidecars.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RawFederation {
    /// `host:port` of federation's gRPC.
    pub address: String,
    /// The own trust domain.
    pub trust_domain: String,
    /// PEM file with its roots.
    pub roots: PathBuf,
    /// File with the join token.
    pub token: PathBuf,
}

impl RawFederation {
    /// Checks it, noting problems below `key`; reads the roots, not the token.
    pub fn parse(self, key: &str, problems: &mut Problems) -> Option<FederationClient> {
        let Self {
            address,
            trust_domain,
            roots,
            token,
        } = self;
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            port.parse::<u16>()
                .ok()
                .filter(|port| *port > 0 && !host.is_empty())
        });
        if port.is_none() {
            problems.add(
                format!("{key}.address"),
                format!("`{address}`"),
                "give host:port",
            );
        }
        let domain = problems.check(
            format!("{key}.trustDomain"),
            &trust_domain,
            trust_domain.parse(),
        );
        let bundle = std::fs::read(&roots).map_err(BoxError::from);
        let bundle = bundle.and_then(|pem| Bundle::from_pem(0, &pem).map_err(BoxError::from));
        let bundle =
            bundle.map_err(|error| format!("{}; give a PEM file with the roots", chain(&*error)));
        let bundle = problems.check(format!("{key}.roots"), roots.display(), bundle);
        if token.as_os_str().is_empty() {
            problems.add(
                format!("{key}.token"),
                "an empty path",
                "give the file with the join token",
            );
        }
        port?;
        Some(FederationClient {
            address,
            trust_domain: domain?,
            roots: bundle?,
            token,
        })
    }
}

/// Why no certificate was had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The token cannot be read.
    #[error("cannot read the join token from {}; make one with `linkspan token create`", file.display())]
    Token {
        /// Where it should be.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No key or request could be made.
    #[error("cannot make a certificate request")]
    Request(#[source] BoxError),
    /// Our roots or certificate make no TLS configuration.
    #[error("TLS to federation cannot be set up")]
    Tls(#[source] BoxError),
    /// Nobody answers, or not federation.
    #[error("cannot reach federation at {address}; is it running, and are the roots its own?")]
    Unreachable {
        /// Where.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Federation refused.
    #[error("federation refused to issue a certificate ({code}): {message}")]
    Refused {
        /// Its code.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// No answer in time.
    #[error("federation did not answer within {RPC:?}")]
    Timeout,
    /// Federation's answer is of no use.
    #[error("federation's answer cannot be used")]
    Answer(#[source] BoxError),
}

/// Fetches the first certificate: server-authenticated TLS, the token, a new key.
///
/// # Errors
/// See [`IdentityError`]; trying again is the caller's, or use [`first_contact_until`].
pub async fn first_contact(
    client: &FederationClient,
) -> Result<(MaterialWriter, MaterialReader), IdentityError> {
    let (svid, bundle) = issue_by_token(client, IssuedFor::Unspecified).await?;
    let mut bundles = BundleSet::new();
    let inserted = bundles.insert(client.trust_domain.clone(), bundle);
    inserted.map_err(|error| IdentityError::Answer(error.into()))?;
    Ok(material(svid, bundles))
}

/// Fetches the first certificate, trying until it succeeds, or until the stop drains (`None`).
pub async fn first_contact_until(
    client: &FederationClient,
    stop: &Stop,
) -> Option<(MaterialWriter, MaterialReader)> {
    let contact = persist("first certificate", FIRST_RETRY, || first_contact(client));
    tokio::select! {
        () = stop.draining() => None,
        material = contact => Some(material),
    }
}

/// Keeps the certificate and bundles fresh until the stop aborts: renews at half-life with jitter,
/// applies what discovery says of bundles (own and linked). Sole user of `writer`.
pub async fn keep_fresh(
    writer: MaterialWriter,
    reader: MaterialReader,
    client: FederationClient,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    stop: Stop,
) {
    keep_fresh_counted(
        writer,
        reader,
        client,
        snapshots,
        ControlMetrics::detached(),
        stop,
    )
    .await;
}

/// As [`keep_fresh`], counting into `metrics`.
pub async fn keep_fresh_counted(
    writer: MaterialWriter,
    reader: MaterialReader,
    client: FederationClient,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    metrics: ControlMetrics,
    stop: Stop,
) {
    let renewal = {
        let (reader, client) = (reader.clone(), client.clone());
        move || {
            let (reader, client) = (reader.clone(), client.clone());
            async move { renew(&reader, &client).await }
        }
    };
    let own = client.trust_domain;
    let mut fresh = Fresh {
        writer,
        reader,
        own,
        snapshots,
        metrics,
        now: SystemTime::now,
    };
    tokio::select! {
        () = stop.aborted() => {}
        () = fresh.keep(renewal) => {}
    }
}

/// Those who have no sidecar, for whom a gateway stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmeshed {
    /// It calls for them.
    Clients,
    /// It takes calls for them.
    Servers,
}

impl Unmeshed {
    fn issued_for(self) -> IssuedFor {
        match self {
            Self::Clients => IssuedFor::UnmeshedClients,
            Self::Servers => IssuedFor::UnmeshedServers,
        }
    }

    /// Their identity.
    #[must_use]
    pub fn identity(self, own: &TrustDomain) -> SpiffeId {
        match self {
            Self::Clients => SpiffeId::unmeshed_client(own),
            Self::Servers => SpiffeId::unmeshed_server(own),
        }
    }

    fn certificate(self) -> &'static str {
        match self {
            Self::Clients => "certificate for unmeshed clients",
            Self::Servers => "certificate for unmeshed servers",
        }
    }
}

/// Fetches the certificate for those who have no sidecar, trying until it succeeds, or until the stop
/// drains (`None`). `gateway` is the gateway's own.
pub async fn unmeshed_until(
    whom: Unmeshed,
    client: &FederationClient,
    gateway: &MaterialReader,
    stop: &Stop,
) -> Option<(MaterialWriter, MaterialReader)> {
    let contact = persist(whom.certificate(), FIRST_RETRY, || async {
        let (svid, bundle) = issue_for_unmeshed(whom, gateway, client).await?;
        let mut bundles = BundleSet::new();
        let inserted = bundles.insert(client.trust_domain.clone(), bundle);
        inserted.map_err(|error| IdentityError::Answer(error.into()))?;
        Ok(material(svid, bundles))
    });
    tokio::select! {
        () = stop.draining() => None,
        material = contact => Some(material),
    }
}

/// As [`keep_fresh_counted`], for the certificate that [`unmeshed_until`] gave: it does not renew
/// itself, but is issued anew to the gateway.
pub async fn keep_unmeshed_fresh(
    whom: Unmeshed,
    (writer, reader): (MaterialWriter, MaterialReader),
    gateway: MaterialReader,
    client: FederationClient,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    metrics: ControlMetrics,
    stop: Stop,
) {
    let own = client.trust_domain.clone();
    let renewal = move || {
        let (gateway, client) = (gateway.clone(), client.clone());
        async move { issue_for_unmeshed(whom, &gateway, &client).await }
    };
    let mut fresh = Fresh {
        writer,
        reader,
        own,
        snapshots,
        metrics,
        now: SystemTime::now,
    };
    tokio::select! {
        () = stop.aborted() => {}
        () = fresh.keep(renewal) => {}
    }
}

async fn issue_for_unmeshed(
    whom: Unmeshed,
    gateway: &MaterialReader,
    client: &FederationClient,
) -> Result<(Svid, Bundle), IdentityError> {
    let issued = issue_anew(gateway, client, whom.issued_for()).await?;
    let (wanted, found) = (whom.identity(&client.trust_domain), issued.0.id());
    if wanted != *found {
        // One that does not know of them issues what the caller is.
        let text = format!("certificate is for `{found}`, not for `{wanted}`; update federation");
        return Err(IdentityError::Answer(text.into()));
    }
    Ok(issued)
}

async fn renew(
    reader: &MaterialReader,
    client: &FederationClient,
) -> Result<(Svid, Bundle), IdentityError> {
    let issued = issue_anew(reader, client, IssuedFor::Unspecified).await?;
    let (own, found) = (reader.current().svid().id().clone(), issued.0.id());
    if own != *found {
        let text = format!("certificate is for `{found}`, but this process is `{own}`");
        return Err(IdentityError::Answer(text.into()));
    }
    Ok(issued)
}

/// A new certificate: by the token where that is a projected one, which tells who runs here now;
/// else by the present certificate.
async fn issue_anew(
    reader: &MaterialReader,
    client: &FederationClient,
    whom: IssuedFor,
) -> Result<(Svid, Bundle), IdentityError> {
    match read_token(client).await {
        Ok(token) if is_projected(&token) => issue_by_token(client, whom).await,
        _ => renew_by_certificate(reader, client, whom).await,
    }
}

/// By the present certificate, else (say, because it expired) by token.
async fn renew_by_certificate(
    reader: &MaterialReader,
    client: &FederationClient,
    whom: IssuedFor,
) -> Result<(Svid, Bundle), IdentityError> {
    let by_certificate = issue(client, client.mutual_tls(reader)?, String::new(), whom).await;
    match by_certificate {
        Ok(issued) => Ok(issued),
        Err(by_certificate) => {
            issue_by_token(client, whom)
                .await
                .map_err(|by_token| match by_token {
                    // Of two failures the first tells more, unless federation itself answered the second.
                    IdentityError::Refused { .. } => by_token,
                    _ => by_certificate,
                })
        }
    }
}

/// Whether it is a service account token (a JWT) that Kubernetes keeps fresh in the pod.
fn is_projected(token: &str) -> bool {
    token.starts_with("ey") && token.split('.').count() == 3
}

async fn issue_by_token(
    client: &FederationClient,
    whom: IssuedFor,
) -> Result<(Svid, Bundle), IdentityError> {
    let token = read_token(client).await?;
    let tls = first_contact_config(&client.identity(), &client.roots, &[alpn::H2]);
    issue(
        client,
        tls.map_err(|error| IdentityError::Tls(error.into()))?,
        token,
        whom,
    )
    .await
}

async fn read_token(client: &FederationClient) -> Result<String, IdentityError> {
    let failed = |source| IdentityError::Token {
        file: client.token.clone(),
        source,
    };
    let size = tokio::fs::metadata(&client.token)
        .await
        .map_err(failed)?
        .len();
    if size > MAX_TOKEN {
        return Err(failed(std::io::Error::other(
            "the file is too large to be a token",
        )));
    }
    let token = tokio::fs::read_to_string(&client.token)
        .await
        .map_err(failed)?;
    Ok(token.trim().to_owned())
}

async fn issue(
    client: &FederationClient,
    tls: ClientConfig,
    join_token: String,
    issued_for: IssuedFor,
) -> Result<(Svid, Bundle), IdentityError> {
    let (key, csr) = generate_csr().map_err(|error| IdentityError::Request(error.into()))?;
    let channel = grpc::channel(&client.address, tls).await;
    let channel = channel.map_err(|source| IdentityError::Unreachable {
        address: client.address.clone(),
        source,
    })?;
    let request = IssueRequest {
        csr: csr.into(),
        join_token,
        issued_for: issued_for.into(),
    };
    let mut service = IdentityClient::new(channel);
    let answer = timeout(RPC, service.issue(request))
        .await
        .map_err(|_| IdentityError::Timeout)?;
    let answer = answer.map_err(|status| IdentityError::Refused {
        code: status.code(),
        message: status.message().to_owned(),
    })?;
    use_answer(client, key, answer.into_inner()).map_err(IdentityError::Answer)
}

fn use_answer(
    client: &FederationClient,
    key: PrivateKey,
    answer: IssueResponse,
) -> Result<(Svid, Bundle), BoxError> {
    let chain = answer
        .chain
        .into_iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    let svid = Svid::new(chain, key)?;
    if *svid.id().trust_domain() != client.trust_domain {
        return Err(format!("certificate is of another trust domain: {}", svid.id()).into());
    }
    let (domain, bundle) = bundle_of(answer.bundle.ok_or("the bundle is missing")?)?;
    if domain != client.trust_domain {
        return Err(format!("bundle is of another trust domain: {domain}").into());
    }
    Ok((svid, bundle))
}

/// Tries until it succeeds; logs the first failure, each other kind of failure, and the recovery.
async fn persist<T, F>(
    what: &str,
    (min, max): (Duration, Duration),
    mut attempt: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Result<T, IdentityError>>,
{
    let mut backoff = Backoff::new(min, max);
    let mut logged = None;
    loop {
        match attempt().await {
            Ok(value) => {
                if logged.is_some() {
                    info!(what, "succeeded after failures");
                }
                return value;
            }
            Err(error) => {
                let kind = std::mem::discriminant(&error);
                if logged.replace(kind) != Some(kind) {
                    warn!(what, error = %chain(&error), "failed; trying on");
                }
            }
        }
        sleep(backoff.next(rand::random())).await;
    }
}

#[cfg(test)]
mod tests;
