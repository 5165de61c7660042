//! The Identity service: certificates for the workloads and parts of this cluster.
//!
//! Whom a certificate is for comes from the join token, or from the certificate with which
//! the caller renews; never from the request, of which only the key counts.

mod authority;
mod limiter;
mod own;
pub(crate) mod tokens;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use linkspan_api::v1;
use linkspan_runtime::telemetry::FederationMetrics;
use linkspan_trust::{Bundle, Csr, Grant, SYSTEM_NAMESPACE, SpiffeId, TrustDomain};
use prometheus::IntCounter;
use tonic::{Request, Response, Status};

use self::{limiter::Limiter, tokens::JoinTokens};
use crate::listener::Caller;

pub(crate) use authority::{Authority, keep_authority};
pub(crate) use own::{Credentials, keep_fresh};

/// Largest certificate request that is looked at; a P-256 one has a few hundred bytes.
const MAX_CSR: usize = 8 * 1024;

/// Issues certificates; shared by all connections.
pub(crate) struct Issuer {
    pub(crate) domain: TrustDomain,
    pub(crate) authority: Arc<Authority>,
    pub(crate) tokens: Arc<JoinTokens>,
    pub(crate) lifetime: Duration,
    limiter: Limiter,
    issued: IntCounter,
    refused: IntCounter,
}

impl Issuer {
    pub(crate) fn new(
        domain: TrustDomain,
        authority: Arc<Authority>,
        tokens: Arc<JoinTokens>,
        lifetime: Duration,
        metrics: &FederationMetrics,
    ) -> Self {
        Self {
            domain,
            authority,
            tokens,
            lifetime,
            limiter: Limiter::default(),
            issued: metrics.issued(),
            refused: metrics.not_issued(),
        }
    }

    /// Whose certificate this caller may have.
    fn identity(&self, caller: &Caller, token: &str) -> Result<SpiffeId, Status> {
        let id = if token.is_empty() {
            caller
                .identity
                .clone()
                .ok_or_else(|| Status::unauthenticated("neither join token nor certificate"))?
        } else {
            self.tokens
                .identity(token, SystemTime::now())
                .ok_or_else(|| {
                    Status::unauthenticated("the join token is not valid here, or has expired")
                })?
        };
        may_be_issued(&id, &self.domain)?;
        Ok(id)
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

    fn issue(&self, id: SpiffeId, csr: &[u8]) -> Result<v1::IssueResponse, Status> {
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
        let chain = self
            .authority
            .current()
            .issue(&csr, &grant, SystemTime::now())
            .map_err(|error| {
                tracing::error!(%error, id = %grant.id, "cannot issue a certificate");
                Status::internal("the certificate could not be issued")
            })?;
        tracing::debug!(id = %grant.id, "issued a certificate");
        Ok(v1::IssueResponse {
            chain: chain
                .iter()
                .map(|der| Bytes::copy_from_slice(der))
                .collect(),
            bundle: Some(trust_bundle(&self.domain, &self.authority.bundle())),
        })
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
            Ok(_) => self.0.issued.inc(),
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
        let id = issuer.identity(&caller, &asked.join_token)?;
        // Checking and signing take a millisecond of CPU: not on the threads that serve streams.
        let issued = tokio::task::spawn_blocking(move || issuer.issue(id, &asked.csr));
        issued
            .await
            .map_err(|_| Status::internal("issuing was cut short"))?
    }
}
