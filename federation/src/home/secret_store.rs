//! Secrets of the system namespace as the place of what must outlive the pod.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use linkspan_kube::{KubernetesSecret, SECRETS, SecretError};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

use crate::{
    bound::BindError,
    state::{
        StateError,
        store::{Slots, Store},
    },
};

/// Opens both; `true` from the watch is that another federation writes there now.
pub(super) fn open(
    kubeconfig: Option<&Path>,
    namespace: &str,
) -> Result<(Slots, watch::Receiver<bool>), BindError> {
    let (lost, follow) = watch::channel(false);
    let [state, workloads] =
        SECRETS.map(|name| SecretStore::open(kubeconfig, namespace, name, lost.clone()));
    let (state, workloads): (Arc<dyn Store>, Arc<dyn Store>) =
        (Arc::new(state?), Arc::new(workloads?));
    Ok((Slots::entries(&state, &workloads), follow))
}

/// One Secret as a [`Store`].
struct SecretStore {
    place: String,
    /// `None` only while it is dropped.
    inner: Mutex<Option<Inner>>,
    lost: watch::Sender<bool>,
}

/// A client has a runtime of its own: those who keep something block, perhaps on a thread of the
/// runtime on which the client would have to run.
struct Inner {
    runtime: Runtime,
    secret: KubernetesSecret,
}

impl SecretStore {
    fn open(
        kubeconfig: Option<&Path>,
        namespace: &str,
        name: &str,
        lost: watch::Sender<bool>,
    ) -> Result<Self, BindError> {
        let opening = || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StateError::Runtime)?;
            let secret = runtime.block_on(async {
                let client = linkspan_kube::connect(kubeconfig).await?;
                let opened = KubernetesSecret::open(client, namespace, name).await;
                opened.map_err(|error| BindError::State(error.into()))
            });
            match secret {
                Ok(secret) => Ok(Inner { runtime, secret }),
                Err(error) => {
                    runtime.shutdown_background();
                    Err(error)
                }
            }
        };
        let inner: Result<Inner, BindError> = apart(opening);
        let inner = inner?;
        Ok(Self {
            place: inner.secret.place().to_owned(),
            inner: Mutex::new(Some(inner)),
            lost,
        })
    }

    fn with<T: Send>(&self, act: impl FnOnce(&mut Inner) -> T + Send) -> T {
        apart(|| {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            act(inner.as_mut().expect("it is taken when dropped only"))
        })
    }
}

/// On a thread of its own, where blocking is allowed whatever the caller is.
fn apart<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(act).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl Store for SecretStore {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.with(|inner| inner.secret.get(key).map(<[u8]>::to_vec)))
    }

    fn write(&self, entries: &[(&str, &[u8])]) -> Result<(), StateError> {
        let written = self.with(|Inner { runtime, secret }| runtime.block_on(secret.put(entries)));
        if matches!(written, Err(SecretError::TakenOver(_))) {
            self.lost.send_replace(true);
        }
        Ok(written?)
    }

    fn place(&self, key: &str) -> PathBuf {
        format!("{key} in Secret {}", self.place).into()
    }
}

impl Drop for SecretStore {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(Inner { runtime, .. }) = inner.take() {
            // Dropping it would block, which is not allowed everywhere.
            runtime.shutdown_background();
        }
    }
}
