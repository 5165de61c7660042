//! The operator API: what the command line asks, over a unix socket in the state directory.

mod explain;
mod failover;
mod links;
pub(crate) mod socket;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId, ConditionStatus, ServiceKey,
    backend::{Declarations, DeclareError, Written},
    declared::{Declared, UNMESHED_CLIENTS},
};
use linkspan_resources::{Object, ServiceExport, Timestamp};
use linkspan_runtime::process::chain;
use linkspan_trust::{SpiffeId, WorkloadId};
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot, watch},
    time::timeout,
};
use tonic::{Request, Response, Status};

use self::failover::Change;
use crate::{
    controller::{Input, World},
    identity::{Issuer, may_be_issued, tokens},
    join::Linker,
};

/// How long a declaration may take to be read and planned before the operator is told that it is
/// only written: a rescan of many files, and less than the operator's own patience.
const SETTLING: Duration = Duration::from_secs(5);

/// The gRPC face of the operator API.
pub(crate) struct OperatorService<D> {
    pub(crate) own: ClusterId,
    pub(crate) linker: Arc<Linker>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) declarations: D,
    /// Where declarations are written, for people.
    pub(crate) place: String,
    /// Makes the resources be read at once.
    pub(crate) nudge: Arc<Notify>,
    /// One change of a policy after the other: each is made from what is in force before it.
    pub(crate) changing: Mutex<()>,
}

#[tonic::async_trait]
impl<D: Declarations> v1::operator_server::Operator for OperatorService<D> {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.ask(Input::Status).await.map(Response::new)
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<v1::ExportResponse>, Status> {
        let request = request.into_inner();
        let key = service_key(request.key)?;
        let declared = Arc::clone(&self.worlds.borrow().declared);
        exportable(&declared, &key, &self.place)?;
        let before = declared.exports.get(&key);
        let wanted = request.unmeshed_clients;
        if before.is_some_and(|before| wanted.is_none_or(|as_is| as_is == before.unmeshed_clients))
        {
            return Ok(Response::new(v1::ExportResponse {
                created: false,
                path: self.place.clone(),
                changed: false,
            }));
        }
        let mut export = ServiceExport::of(key.namespace.as_str(), key.name.as_str());
        // The oldest export wins, so that a change must not make it younger.
        let created = before.map_or_else(SystemTime::now, |before| before.created);
        export.metadata.creation_timestamp = Some(Timestamp::from(created));
        if let Some(admitted) = wanted {
            let word = if admitted { "allow" } else { "deny" };
            let annotations = &mut export.metadata.annotations;
            annotations.insert(UNMESHED_CLIENTS.to_owned(), word.to_owned());
        }
        let written = self.declare(Object::ServiceExport(export)).await?;
        let is_made = |world: &World| {
            let now = world.declared.exports.get(&key);
            now.is_some_and(|now| wanted.is_none_or(|wanted| now.unmeshed_clients == wanted))
        };
        let settled = self.settled(written, is_made).await;
        Ok(Response::new(v1::ExportResponse {
            created: settled.changed && before.is_none(),
            path: settled.place,
            changed: settled.changed && before.is_some(),
        }))
    }

    async fn unexport(
        &self,
        request: Request<v1::UnexportRequest>,
    ) -> Result<Response<v1::DeclareResponse>, Status> {
        let key = service_key(request.into_inner().key)?;
        let written = self.withdraw("ServiceExport", &key).await?;
        let is_gone = |world: &World| !world.declared.exports.contains_key(&key);
        Ok(Response::new(self.settled(written, is_gone).await))
    }

    async fn services(
        &self,
        _request: Request<v1::ServicesRequest>,
    ) -> Result<Response<v1::ServicesResponse>, Status> {
        self.ask(Input::Services).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let asked = request.into_inner();
        let key = service_key(asked.key.clone())?;
        let cluster = explain::cluster(&asked, &self.own)?;
        let shown = self
            .ask(|reply| Input::Shown(key.clone(), cluster, reply))
            .await?;
        // After the answer: then the world is at least as new as what was shown.
        let world = Arc::clone(&self.worlds.borrow());
        let question = explain::Question::new(&asked, key, &self.own, &world, &shown)?;
        let answer = question.answer(&self.own, &world, shown, Instant::now());
        Ok(Response::new(answer))
    }

    async fn failover(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::FailoverResponse>, Status> {
        let only = request.into_inner().key;
        let only = only.map(|key| service_key(Some(key))).transpose()?;
        let world = Arc::clone(&self.worlds.borrow());
        if let Some(key) = only
            .as_ref()
            .filter(|key| !world.desired.services.contains_key(*key))
        {
            return Err(explain::no_service(&world, key));
        }
        Ok(Response::new(failover::show(&world, only.as_ref())))
    }

    async fn set_failover(
        &self,
        request: Request<v1::SetFailoverRequest>,
    ) -> Result<Response<v1::DeclareResponse>, Status> {
        let asked = request.into_inner();
        let key = service_key(asked.key.clone())?;
        let _turn = self.changing.lock().await;
        let world = Arc::clone(&self.worlds.borrow());
        let change = failover::set(&world, &self.own, &key, &asked)?;
        self.change(change).await.map(Response::new)
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DeclareResponse>, Status> {
        let _turn = self.changing.lock().await;
        let world = Arc::clone(&self.worlds.borrow());
        let change = failover::drain(&world, &self.own, &request.into_inner())?;
        self.change(change).await.map(Response::new)
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

    async fn revoke_invitation(
        &self,
        request: Request<v1::RevokeInvitationRequest>,
    ) -> Result<Response<v1::RevokeInvitationResponse>, Status> {
        links::revoke(&self.linker, request.into_inner())
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

impl<D: Declarations> OperatorService<D> {
    /// Asks the controller.
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Input,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let asked = self.inputs.send(question(reply)).await;
        asked.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    async fn declare(&self, object: Object) -> Result<Written, Status> {
        let (kind, name) = (object.kind(), object.metadata().name.clone());
        let namespace = object.metadata().namespace().to_owned();
        let written = self
            .declarations
            .declare(object)
            .await
            .map_err(undeclared)?;
        self.nudge.notify_one();
        tracing::info!(kind, %namespace, %name, place = %written.place, "declared for the operator");
        Ok(written)
    }

    async fn withdraw(&self, kind: &'static str, key: &ServiceKey) -> Result<Written, Status> {
        let withdrawn = self.declarations.withdraw(kind, key).await;
        let written = withdrawn.map_err(undeclared)?;
        self.nudge.notify_one();
        tracing::info!(kind, %key, place = %written.place, "withdrawn for the operator");
        Ok(written)
    }

    async fn change(&self, change: Change) -> Result<v1::DeclareResponse, Status> {
        let key = change.key()?;
        let written = match &change {
            Change::Declare(policy) => {
                self.declare(Object::FailoverPolicy((**policy).clone()))
                    .await?
            }
            Change::Withdraw(key) => self.withdraw(failover::KIND, key).await?,
        };
        let is_made = |world: &World| change.is_made(world.declared.policies.get(&key));
        let mut answer = self.settled(written, is_made).await;
        let world = Arc::clone(&self.worlds.borrow());
        let conditions = world
            .desired
            .policy_conditions
            .get(&key)
            .into_iter()
            .flatten();
        let told = conditions.filter(|condition| {
            matches!(
                (condition.kind, condition.status),
                ("Conflict", ConditionStatus::True)
            )
        });
        answer.notes.extend(told.map(ToString::to_string));
        Ok(answer)
    }

    /// Waits until what was written is in force, so that the next question is answered by it.
    async fn settled(
        &self,
        written: Written,
        is_made: impl Fn(&World) -> bool,
    ) -> v1::DeclareResponse {
        let mut worlds = self.worlds.clone();
        let waiting = timeout(SETTLING, worlds.wait_for(|world| is_made(world)));
        let mut notes = Vec::new();
        if !waiting.await.is_ok_and(|seen| seen.is_ok()) {
            notes.push("written, but not in force yet; see `linkspan status`".to_owned());
        }
        v1::DeclareResponse {
            changed: written.changed,
            place: written.place,
            notes,
        }
    }
}

/// The service that a request names.
fn service_key(key: Option<v1::ServiceKey>) -> Result<ServiceKey, Status> {
    let key = key.unwrap_or_default();
    ServiceKey::new(&key.namespace, &key.name)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

fn undeclared(error: DeclareError) -> Status {
    match error {
        DeclareError::Elsewhere { .. } => Status::failed_precondition(error.to_string()),
        DeclareError::Failed { .. } => Status::internal(chain(&error)),
    }
}

fn exportable(declared: &Declared, key: &ServiceKey, place: &str) -> Result<(), Status> {
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
             declare it in `{place}` first"
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
        uid: None,
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
