//! The operator API: what the command line asks, over a unix socket in the state directory.

mod links;
pub(crate) mod socket;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use linkspan_api::v1;
use linkspan_core::{ServiceKey, declared::Declared};
use linkspan_trust::{SpiffeId, WorkloadId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use crate::{
    controller::{Input, World},
    directory::{existing_export, write_export},
    identity::{Issuer, may_be_issued, tokens},
    join::Linker,
};

/// The gRPC face of the operator API.
pub(crate) struct OperatorService {
    pub(crate) linker: Arc<Linker>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) resources: PathBuf,
    /// Makes the resources be read at once.
    pub(crate) nudge: Arc<Notify>,
}

#[tonic::async_trait]
impl v1::operator_server::Operator for OperatorService {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let (reply, status) = oneshot::channel();
        self.inputs
            .send(Input::Status(reply))
            .await
            .map_err(|_| stopping())?;
        status.await.map(Response::new).map_err(|_| stopping())
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<v1::ExportResponse>, Status> {
        let key = request.into_inner().key.unwrap_or_default();
        let key = ServiceKey::new(&key.namespace, &key.name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let declared = Arc::clone(&self.worlds.borrow().declared);
        exportable(&declared, &key, &self.resources)?;
        if declared.exports.contains_key(&key) {
            let path = existing_export(&self.resources, &key);
            return Ok(Response::new(v1::ExportResponse {
                created: false,
                path: path.unwrap_or(self.resources.clone()).display().to_string(),
            }));
        }
        let path = self.declare(key).await?;
        Ok(Response::new(v1::ExportResponse {
            created: true,
            path: path.display().to_string(),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let asked = request.into_inner();
        let workload = WorkloadId::new(&asked.namespace, &asked.service_account)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = SpiffeId::workload(&self.issuer.domain, &workload);
        may_be_issued(&id, &self.issuer.domain)?;
        let ttl = match asked.ttl_seconds {
            0 => tokens::DEFAULT_TTL,
            seconds => Duration::from_secs(seconds),
        };
        let renew_for = match asked.renew_for_seconds {
            0 => tokens::DEFAULT_RENEW_FOR,
            seconds => Duration::from_secs(seconds),
        };
        let wanted = tokens::Wanted {
            id: id.clone(),
            ttl,
            renew_for,
            binding: binding(asked.labels, asked.any_address)?,
        };
        let issuer = Arc::clone(&self.issuer);
        let made =
            tokio::task::spawn_blocking(move || issuer.tokens.create(wanted, SystemTime::now()));
        let made = made.await.map_err(|_| stopping())?.map_err(token_refused)?;
        tracing::info!(%id, token = made.id, ttl = ?ttl, "made a join token");
        Ok(Response::new(v1::CreateJoinTokenResponse {
            id: made.id,
            token: made.secret.to_string(),
            spiffe_id: id.to_string(),
            expires_unix: unix(made.expires),
        }))
    }

    async fn list_join_tokens(
        &self,
        _request: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::ListJoinTokensResponse>, Status> {
        let tokens = self.issuer.tokens.list(SystemTime::now());
        let seconds = |unix: u64| i64::try_from(unix).unwrap_or(i64::MAX);
        let token = |of: tokens::Listed| v1::JoinToken {
            id: of.id,
            spiffe_id: of.spiffe_id.to_string(),
            labels: of.binding.labels.into_iter().collect(),
            any_address: of.binding.any_address,
            expires_unix: seconds(of.expires_unix),
            renews_until_unix: seconds(of.renews_until_unix),
            last_used_unix: of.last_used_unix.map(seconds),
        };
        Ok(Response::new(v1::ListJoinTokensResponse {
            tokens: tokens.into_iter().map(token).collect(),
        }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Result<Response<v1::RevokeJoinTokenResponse>, Status> {
        let (issuer, id) = (Arc::clone(&self.issuer), request.into_inner().id);
        let token = id.clone();
        let revoked =
            tokio::task::spawn_blocking(move || issuer.tokens.revoke(&id, SystemTime::now()));
        let of = revoked
            .await
            .map_err(|_| stopping())?
            .map_err(token_refused)?;
        tracing::info!(id = %of, token, "revoked a join token");
        Ok(Response::new(v1::RevokeJoinTokenResponse {
            spiffe_id: of.to_string(),
        }))
    }

    async fn bundle(
        &self,
        _request: Request<v1::BundleRequest>,
    ) -> Result<Response<v1::BundleResponse>, Status> {
        let domain = &self.issuer.domain;
        Ok(Response::new(v1::BundleResponse {
            trust_domain: domain.to_string(),
            federation_spiffe_id: SpiffeId::federation(domain).to_string(),
            gateway_spiffe_id: SpiffeId::gateway(domain).to_string(),
            pem: self.issuer.authority.bundle().to_pem(),
        }))
    }

    async fn invite(
        &self,
        request: Request<v1::InviteRequest>,
    ) -> Result<Response<v1::InviteResponse>, Status> {
        links::invite(&self.linker, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn accept(
        &self,
        request: Request<v1::AcceptRequest>,
    ) -> Result<Response<v1::AcceptResponse>, Status> {
        links::accept(&self.linker, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_link(
        &self,
        request: Request<v1::RemoveLinkRequest>,
    ) -> Result<Response<v1::RemoveLinkResponse>, Status> {
        links::remove(&self.linker, request.into_inner())
            .await
            .map(Response::new)
    }
}

impl OperatorService {
    async fn declare(&self, key: ServiceKey) -> Result<PathBuf, Status> {
        let (directory, service) = (self.resources.clone(), key.clone());
        let written = tokio::task::spawn_blocking(move || {
            write_export(&directory, &service, SystemTime::now())
        });
        let path = written.await.map_err(|_| stopping())?.map_err(|error| {
            Status::internal(format!(
                "the export cannot be written to `{}`: {error}; check free space and ownership",
                self.resources.display()
            ))
        })?;
        self.nudge.notify_one();
        tracing::info!(service = %key, path = %path.display(), "declared an export");
        Ok(path)
    }
}

fn exportable(declared: &Declared, key: &ServiceKey, resources: &Path) -> Result<(), Status> {
    let Some(service) = declared.services.get(key) else {
        let known: Vec<_> = declared
            .services
            .keys()
            .take(20)
            .map(ToString::to_string)
            .collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(Status::not_found(format!(
            "there is no Service `{key}` in this cluster (there is: {known}); \
             declare it in `{}` first",
            resources.display()
        )));
    };
    if service.import_type.is_none() {
        return Err(Status::failed_precondition(format!(
            "Service `{key}` is an ExternalName, which cannot be exported"
        )));
    }
    Ok(())
}

/// What can be registered at all: a token that binds anything else would let nobody in.
fn binding(
    labels: std::collections::HashMap<String, String>,
    any_address: bool,
) -> Result<tokens::Binding, Status> {
    let plain = |text: &str, most| text.len() <= most && !text.chars().any(char::is_control);
    let good =
        |(key, value): (&String, &String)| !key.is_empty() && plain(key, 317) && plain(value, 63);
    if labels.len() > 64 || !labels.iter().all(good) {
        return Err(Status::invalid_argument(
            "a token binds at most 64 labels, with printable keys, and values of at most 63 characters",
        ));
    }
    Ok(tokens::Binding {
        labels: labels.into_iter().collect(),
        any_address,
    })
}

fn token_refused(error: tokens::TokenError) -> Status {
    match error {
        tokens::TokenError::Unknown(_) => Status::not_found(error.to_string()),
        tokens::TokenError::Lifetime(_) | tokens::TokenError::RenewFor(_) => {
            Status::invalid_argument(error.to_string())
        }
        tokens::TokenError::TooMany => Status::resource_exhausted(error.to_string()),
        tokens::TokenError::State(error) => {
            tracing::error!(%error, "cannot keep a join token");
            Status::internal(format!("the token cannot be kept: {error}"))
        }
    }
}

fn unix(time: SystemTime) -> i64 {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn stopping() -> Status {
    Status::unavailable("federation is stopping")
}
