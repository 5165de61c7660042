//! From configuration to a client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// No connection attempt takes longer: the next address, or the next try, is better.
const CONNECT: Duration = Duration::from_secs(5);
/// A watch is ended by the server after a minute ([`crate::follow`]), so what is silent for longer
/// is dead. It also bounds every other call.
const READ: Duration = Duration::from_secs(90);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig `{}` cannot be used; correct `home.kubernetes.kubeconfig`", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// Not in a pod, and no kubeconfig is named.
    #[error(
        "this is not a pod with a service account; name a kubeconfig in `home.kubernetes.kubeconfig`"
    )]
    NotInCluster(#[source] Box<kube::config::InClusterError>),
    /// The client cannot be made from it.
    #[error("a client of the Kubernetes API cannot be made")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the cluster that `kubeconfig` names, or for the cluster of this pod. Nothing is
/// dialled yet. Needs a tokio runtime.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        None => {
            Config::incluster().map_err(|source| ConnectError::NotInCluster(Box::new(source)))?
        }
        Some(path) => {
            let failed = |source| ConnectError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    Client::try_from(config).map_err(|source| ConnectError::Client(Box::new(source)))
}
