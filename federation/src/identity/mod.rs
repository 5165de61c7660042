//! The Identity service: certificates for the workloads and parts of this cluster.
//!
//! Whom a certificate is for comes from the join token, from the pod that a projected token was
//! given to, or from the certificate with which the caller renews; never from the request, of
//! which only the key counts. Each certificate says itself by which token it was issued: a token that
//! is revoked takes what lives by it along, and what it binds holds for renewed certificates, too,
//! with nothing to be written down and lost.

mod authority;
mod own;
mod pods;
mod standing;
pub(crate) mod tokens;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use linkspan_api::v1;
use linkspan_runtime::rate::{Limiter, Rate};
use linkspan_runtime::telemetry::FederationMetrics;
use linkspan_trust::{Bundle, Csr, Grant, SYSTEM_NAMESPACE, SpiffeId, TrustDomain};
use prometheus::IntCounter;
use tonic::{Request, Response, Status};

use self::tokens::{Binding, JoinTokens, TokenId};
use crate::listener::Caller;

pub(crate) use authority::{Authority, Traces, keep_authority};
pub(crate) use own::{Credentials, keep_fresh};
pub(crate) use pods::Pods;
pub(crate) use standing::Standing;

/// Largest certificate request that is looked at; a P-256 one has a few hundred bytes.
const MAX_CSR: usize = 8 * 1024;

/// How often one source may ask for certificates.
const REQUESTS: Rate = Rate {
    // A machine on which a hundred workloads start together.
    burst: 200,
    // Each costs one signature check and one signature.
    every: Duration::from_millis(50),
    sources: 8_192,
};

/// Issues certificates; shared by all connections.
pub(crate) struct Issuer {
    pub(crate) domain: TrustDomain,
    pub(crate) authority: Arc<Authority>,
    pub(crate) tokens: Arc<JoinTokens>,
    pods: Pods,
    pub(crate) lifetime: Duration,
    limiter: Limiter,
    granted: IntCounter,
    refused: IntCounter,
}

impl Issuer {
    pub(crate) fn new(
        domain: TrustDomain,
        authority: Arc<Authority>,
        (tokens, pods): (Arc<JoinTokens>, Pods),
        lifetime: Duration,
        metrics: &FederationMetrics,
    ) -> Self {
        Self {
            domain,
            authority,
            tokens,
            pods,
            lifetime,
            limiter: Limiter::new(REQUESTS),
            granted: metrics.issued(),
            refused: metrics.not_issued(),
        }
    }

    /// Whose certificate this caller may have, and by which token.
    async fn identity(&self, caller: &Caller, token: &str) -> Result<(TokenId, SpiffeId), Status> {
        let now = SystemTime::now();
        let found = if token.is_empty() {
            self.renewed(caller, now)?
        } else if tokens::is_join_token(token) {
            self.tokens.identity(token, now).ok_or_else(|| {
                Status::unauthenticated("the join token is not valid here, or has expired")
            })?
        } else {
            let (id, attested) = self.pods.attest(token, caller.remote.ip()).await?;
            (id, SpiffeId::workload(&self.domain, &attested.workload))
        };
        may_be_issued(&found.1, &self.domain)?;
        Ok(found)
    }

    /// A certificate renews itself for as long as the token for which it was issued says.
    fn renewed(&self, caller: &Caller, now: SystemTime) -> Result<(TokenId, SpiffeId), Status> {
        let Some(id) = &caller.identity else {
            return Err(Status::unauthenticated(
                "neither join token nor certificate",
            ));
        };
        let token = self.token_of(caller);
        match token.filter(|token| self.tokens.renews(token, now)) {
            Some(token) => Ok((token, id.clone())),
            None => Err(Status::unauthenticated(format!(
                "this certificate of `{id}` cannot be renewed by itself: its join token was \
                 revoked or has no more renewals, or is not known; use a token \
                 (`linkspan token create`)"
            ))),
        }
    }

    fn admit(&self, caller: &Caller) -> Result<(), Status> {
        self.limiter
            .admit(caller.remote.ip(), Instant::now())
            .map_err(|wait| {
                Status::resource_exhausted(format!(
                    "too many certificate requests from {}; try again in {} ms",
                    caller.remote.ip(),
                    wait.as_millis().max(1)
                ))
            })
    }

    fn issue(
        &self,
        (token, id): (TokenId, SpiffeId),
        csr: &[u8],
    ) -> Result<v1::IssueResponse, Status> {
        if csr.len() > MAX_CSR {
            return Err(Status::invalid_argument(
                "the certificate request is too long",
            ));
        }
        let csr = Csr::parse(csr).map_err(|error| {
            Status::invalid_argument(format!("certificate request refused: {error}"))
        })?;
        let grant = Grant {
            id,
            lifetime: self.lifetime,
        };
        let now = SystemTime::now();
        let chain = self
            .authority
            .current()
            .issue_noted(&csr, &grant, Some(&token), now)
            .map_err(|error| {
                tracing::error!(%error, id = %grant.id, "cannot issue a certificate");
                Status::internal("the certificate could not be issued")
            })?;
        self.tokens.used(&token, now + self.lifetime, now);
        tracing::debug!(id = %grant.id, token, "issued a certificate");
        Ok(v1::IssueResponse {
            chain: chain
                .iter()
                .map(|der| Bytes::copy_from_slice(der))
                .collect(),
            bundle: Some(trust_bundle(&self.domain, &self.authority.bundle())),
        })
    }
}

impl Issuer {
    /// By which token a caller's certificate was issued here; `None` where it does not say.
    fn token_of(&self, caller: &Caller) -> Option<TokenId> {
        // What others' authorities note means nothing here.
        let own = caller.identity.as_ref()?.trust_domain() == &self.domain;
        caller.note.clone().filter(|_| own)
    }

    /// What a token binds; `None` where it is revoked or long gone.
    fn binding(&self, token: &TokenId) -> Option<Binding> {
        match pods::uid(token) {
            Some(uid) => Some(Binding {
                uid: Some(uid.to_owned()),
                ..Binding::default()
            }),
            None => self.tokens.binding(token),
        }
    }
}

/// The own domain only, and never federation itself: its certificate is made in this process.
pub(crate) fn may_be_issued(id: &SpiffeId, own: &TrustDomain) -> Result<(), Status> {
    if id.trust_domain() != own {
        return Err(Status::permission_denied(format!(
            "certificates of trust domain `{}` are not issued here, but of `{own}`",
            id.trust_domain()
        )));
    }
    let workload = id.workload_id().ok_or_else(|| {
        Status::permission_denied(format!("`{id}` is not the identity of a workload"))
    })?;
    if workload.namespace() == SYSTEM_NAMESPACE && *id != SpiffeId::gateway(own) {
        return Err(Status::permission_denied(format!(
            "`{id}` is reserved: in namespace `{SYSTEM_NAMESPACE}` only the gateway is issued a certificate"
        )));
    }
    Ok(())
}

/// For whom a caller that proved to be `found` is issued a certificate.
fn issued_for(
    asked: v1::IssuedFor,
    (token, found): (TokenId, SpiffeId),
    own: &TrustDomain,
) -> Result<(TokenId, SpiffeId), Status> {
    let stands_for = match asked {
        v1::IssuedFor::Unspecified => return Ok((token, found)),
        v1::IssuedFor::UnmeshedClients => SpiffeId::unmeshed_client(own),
        v1::IssuedFor::UnmeshedServers => SpiffeId::unmeshed_server(own),
    };
    if found != SpiffeId::gateway(own) {
        return Err(Status::permission_denied(format!(
            "`{found}` is no gateway; only gateways stand for those who have no sidecar"
        )));
    }
    Ok((token, stands_for))
}

/// A bundle as it is sent to proxies.
pub(crate) fn trust_bundle(domain: &TrustDomain, bundle: &Bundle) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: domain.to_string(),
        sequence: bundle.sequence,
        roots: bundle
            .roots
            .iter()
            .map(|der| Bytes::copy_from_slice(der))
            .collect(),
    }
}

/// The gRPC face of an [`Issuer`].
pub(crate) struct IdentityService(pub(crate) Arc<Issuer>);

#[tonic::async_trait]
impl v1::identity_server::Identity for IdentityService {
    async fn issue(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<Response<v1::IssueResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let result = self.answer(caller, request.into_inner()).await;
        match &result {
            Ok(_) => self.0.granted.inc(),
            Err(_) => self.0.refused.inc(),
        }
        result.map(Response::new)
    }
}

impl IdentityService {
    async fn answer(
        &self,
        caller: Caller,
        asked: v1::IssueRequest,
    ) -> Result<v1::IssueResponse, Status> {
        let issuer = Arc::clone(&self.0);
        issuer.admit(&caller)?;
        let found = issuer.identity(&caller, &asked.join_token).await?;
        let found = issued_for(asked.issued_for(), found, &issuer.domain)?;
        // Checking and signing take a millisecond of CPU: not on the threads that serve streams.
        let issued = tokio::task::spawn_blocking(move || issuer.issue(found, &asked.csr));
        issued
            .await
            .map_err(|_| Status::internal("issuing was cut short"))?
    }
}
