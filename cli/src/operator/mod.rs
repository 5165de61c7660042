//! The client of a federation's operator socket.

mod kubectl;
mod which;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use hyper_util::rt::TokioIo;
use linkspan_api::v1::{self, operator_client::OperatorClient};
use tokio::{net::UnixStream, process::Child};
use tonic::transport::{Channel, Endpoint};

use crate::exit::Failure;

pub use which::OperatorArgs;

/// Where federation's state is when nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/linkspan";
/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "operator.sock";
/// How long one question may take. All but linking is answered from memory; for that gateways dial.
const PATIENCE: Duration = Duration::from_secs(45);
/// Metadata in which a refusal carries the number of its `JoinProblem`.
const PROBLEM: &str = "linkspan-problem";

/// Largest answer: the status of a cluster with as many workloads and services as one can have,
/// which is more than the 4 MiB that gRPC takes unasked.
const MAX_ANSWER: usize = 128 << 20;

/// A federation that can be asked.
#[derive(Clone, Debug)]
pub struct Operator {
    client: OperatorClient<Channel>,
    /// Who carries the bytes, for as long as they are carried.
    _kubectl: Option<Arc<Child>>,
}

impl Operator {
    /// Connects to an operator socket.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if nothing accepts there.
    pub async fn connect(path: PathBuf) -> Result<Self, Failure> {
        let asked = path.clone();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = endpoint().connect_with_connector(dial).await;
        let channel = channel.map_err(|error| unreachable(&asked, &error))?;
        Ok(Self::over(channel, None))
    }

    /// Asks the federation that runs in the cluster of a context of `kubectl`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if `kubectl` is missing, or does not get there.
    pub async fn connect_in(context: &str) -> Result<Self, Failure> {
        let (io, child) = kubectl::relayed(context).await?;
        let io = Arc::new(Mutex::new(Some(io)));
        let dial = tower::service_fn(move |_| {
            let io = io.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Only the channel's first connection: there is no second one to a child.
            let lost = || io::Error::other("what kubectl carried has ended");
            std::future::ready(io.map(TokioIo::new).ok_or_else(lost))
        });
        let channel = endpoint().connect_with_connector(dial).await;
        let channel = channel.map_err(|error| Failure::Unreachable(error.into()))?;
        Ok(Self::over(channel, Some(Arc::new(child))))
    }

    fn over(channel: Channel, kubectl: Option<Arc<Child>>) -> Self {
        Self {
            client: OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER),
            _kubectl: kubectl,
        }
    }

    /// Everything that federation knows.
    pub async fn status(&mut self) -> Result<v1::StatusResponse, Failure> {
        answer(self.client.status(v1::StatusRequest {}).await)
    }

    /// The cluster's roots and the identities of its parts.
    pub async fn bundle(&mut self) -> Result<v1::BundleResponse, Failure> {
        answer(self.client.bundle(v1::BundleRequest {}).await)
    }

    /// Declares an export; idempotent.
    pub async fn export(
        &mut self,
        key: v1::ServiceKey,
        unmeshed_clients: Option<bool>,
    ) -> Result<v1::ExportResponse, Failure> {
        let request = v1::ExportRequest {
            key: Some(key),
            unmeshed_clients,
        };
        answer(self.client.export(request).await)
    }

    /// Makes an invitation.
    pub async fn invite(
        &mut self,
        request: v1::InviteRequest,
    ) -> Result<v1::InviteResponse, Failure> {
        answer(self.client.invite(request).await)
    }

    /// Takes an invitation back.
    pub async fn revoke_invitation(
        &mut self,
        id: &str,
    ) -> Result<v1::RevokeInvitationResponse, Failure> {
        let request = v1::RevokeInvitationRequest { id: id.to_owned() };
        answer(self.client.revoke_invitation(request).await)
    }

    /// Accepts an invitation.
    pub async fn accept(
        &mut self,
        request: v1::AcceptRequest,
    ) -> Result<v1::AcceptResponse, Failure> {
        answer(self.client.accept(request).await)
    }

    /// Removes a link.
    pub async fn remove_link(&mut self, peer: &str) -> Result<v1::RemoveLinkResponse, Failure> {
        let request = v1::RemoveLinkRequest {
            cluster: peer.to_owned(),
        };
        answer(self.client.remove_link(request).await)
    }

    /// Takes that declaration back; idempotent.
    pub async fn unexport(&mut self, key: v1::ServiceKey) -> Result<v1::DeclareResponse, Failure> {
        let request = v1::UnexportRequest { key: Some(key) };
        answer(self.client.unexport(request).await)
    }

    /// Exports, imports and their endpoints.
    pub async fn services(&mut self) -> Result<v1::ServicesResponse, Failure> {
        answer(self.client.services(v1::ServicesRequest {}).await)
    }

    /// Where the next request goes, and why.
    pub async fn explain(
        &mut self,
        request: v1::ExplainRequest,
    ) -> Result<v1::ExplainResponse, Failure> {
        answer(self.client.explain(request).await)
    }

    /// The failover policies and what is in force, for one service or all.
    pub async fn failover(
        &mut self,
        key: Option<v1::ServiceKey>,
    ) -> Result<v1::FailoverResponse, Failure> {
        answer(self.client.failover(v1::FailoverRequest { key }).await)
    }

    /// Declares the failover policy of one service.
    pub async fn set_failover(
        &mut self,
        request: v1::SetFailoverRequest,
    ) -> Result<v1::DeclareResponse, Failure> {
        answer(self.client.set_failover(request).await)
    }

    /// Drains a cluster, or ends that.
    pub async fn drain(
        &mut self,
        request: v1::DrainRequest,
    ) -> Result<v1::DeclareResponse, Failure> {
        answer(self.client.drain(request).await)
    }

    /// Makes a join token; `ttl` is whole seconds.
    pub async fn create_token(
        &mut self,
        namespace: &str,
        service_account: &str,
        ttl: Duration,
    ) -> Result<v1::CreateJoinTokenResponse, Failure> {
        let request = v1::CreateJoinTokenRequest {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            ttl_seconds: ttl.as_secs(),
            ..v1::CreateJoinTokenRequest::default()
        };
        self.create_token_with(request).await
    }

    /// Makes a join token that may bind something.
    pub async fn create_token_with(
        &mut self,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Failure> {
        answer(self.client.create_join_token(request).await)
    }

    /// The join tokens that are good for anything.
    pub async fn list_tokens(&mut self) -> Result<Vec<v1::JoinToken>, Failure> {
        let request = v1::ListJoinTokensRequest {};
        Ok(answer(self.client.list_join_tokens(request).await)?.tokens)
    }

    /// Takes a join token back.
    pub async fn revoke_token(&mut self, id: &str) -> Result<v1::RevokeJoinTokenResponse, Failure> {
        let request = v1::RevokeJoinTokenRequest { id: id.to_owned() };
        answer(self.client.revoke_join_token(request).await)
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://operator.linkspan.internal")
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
}

fn answer<T>(reply: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Failure> {
    reply.map(tonic::Response::into_inner).map_err(|status| {
        let code = status.code();
        let message = match status.message() {
            "" => format!("federation answered {code:?}"),
            text => text.to_owned(),
        };
        if let Some(code) = not_linked(&status) {
            return Failure::NotLinked(code, anyhow!(message));
        }
        match code {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => {
                Failure::Unreachable(anyhow!(message).context("federation does not answer"))
            }
            tonic::Code::InvalidArgument => Failure::Usage(anyhow!(message)),
            _ => Failure::Failed(anyhow!(message).context("federation refused")),
        }
    })
}

/// The exit code of a refused link, if it has one of its own.
fn not_linked(status: &tonic::Status) -> Option<u8> {
    use v1::JoinProblem as P;
    let number: i32 = status
        .metadata()
        .get(PROBLEM)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    match P::try_from(number).ok()? {
        P::Malformed => Some(10),
        P::Expired | P::Unknown => Some(11),
        P::Used => Some(12),
        P::OtherPeer => Some(13),
        P::Unreachable | P::NoGateway => Some(14),
        P::DuplicateCluster | P::OtherClusterset | P::TrustDomainTaken | P::Version => Some(15),
        P::ClockSkew => Some(16),
        P::WrongRoots | P::BadProof => Some(17),
        P::Garbled => Some(18),
        P::Unavailable => Some(19),
        P::Failed | P::Unspecified => None,
    }
}

/// What really happened, below the layers of a transport error.
fn unreachable(path: &Path, error: &tonic::transport::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let path = path.display();
    let denied = cause
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let hint = match denied {
        true => format!(
            "{path} may be opened only by the user that federation runs as; ask as that user, or as root"
        ),
        false => format!(
            "no federation answers at {path}; is it running, and is this its socket \
             (--socket, --state-dir or LINKSPAN_SOCKET)? One in Kubernetes is asked with --context"
        ),
    };
    Failure::Unreachable(anyhow!(cause.to_string()).context(hint))
}

/// Asks the one question of a verb on a small runtime of its own.
pub(crate) fn block_on<T>(
    question: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_socket_is_unreachable_and_says_what_to_look_at() {
        let failure = Operator::connect("/nonexistent/operator.sock".into())
            .await
            .expect_err("nothing there");
        assert_eq!(failure.code(), 3);
        let Failure::Unreachable(error) = failure else {
            panic!("{failure:?}")
        };
        let text = format!("{error:#}");
        assert!(text.contains("/nonexistent/operator.sock"), "{text}");
        assert!(text.contains("No such file"), "{text}");
    }
}
