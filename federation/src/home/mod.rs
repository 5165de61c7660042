//! The one place that picks where resources live: a directory, or the Kubernetes API.
//!
//! Everything else sees the traits of `linkspan_core::backend`.

mod directory_journal;
mod keep;
mod published;
mod secret_store;

use std::{
    future::Future,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use linkspan_core::{
    ClusterId, OwnCluster, ServiceKey,
    backend::{
        Applied, AttestError, Attested, Attestor, Declarations, DeclareError, Journal,
        JournalEntry, JournalError, LinkHome, Removals, Sink, SinkError, Source, SourceError,
        Written,
    },
    declared::Declared,
    plan::Desired,
};
use linkspan_kube::{
    Client, Elector, KubernetesAttestor, KubernetesDeclarations, KubernetesJournal,
    KubernetesLinks, KubernetesSink, KubernetesSource, Lead, Mirrors, Terms,
};
use linkspan_resources::Object;
use tokio::sync::{Notify, watch};

use crate::{
    bound::BindError,
    config::{Config, Home},
    directory::{DirectoryDeclarations, DirectoryLinks, DirectorySink, DirectorySource},
    state::{StateDir, store::Slots},
};

pub(crate) use directory_journal::DirectoryJournal;
pub(crate) use keep::{KeptPeers, Newest, keep_journal};
pub(crate) use published::Surroundings;

/// Name of the Lease, and of the account under which federation runs.
const LEASE: &str = "linkspan-federation";

/// What a home consists of.
pub(crate) struct Backend {
    pub(crate) source: AnySource,
    pub(crate) sink: AnySink,
    pub(crate) journal: AnyJournal,
    /// What the operator declares.
    pub(crate) declarations: AnyDeclarations,
    /// Where that is, for people.
    pub(crate) place: String,
    /// Makes the resources be read at once, where nothing else tells of a change.
    pub(crate) nudge: Arc<Notify>,
    /// Where links that we make or end ourselves are declared.
    pub(crate) links: Box<dyn LinkHome>,
    pub(crate) leading: Leading,
    /// Where the cluster itself is told and asked things.
    pub(crate) surroundings: Option<Surroundings>,
}

/// Where what must outlive the process is kept: in the state directory, or in Secrets. Whether the
/// watch is true: another federation writes there now.
pub(crate) fn slots(
    home: &Home,
    state: &StateDir,
) -> Result<(Slots, watch::Receiver<bool>), BindError> {
    match home {
        // Its lock keeps others away.
        Home::Directory { .. } => Ok((state.slots(), watch::channel(false).1)),
        Home::Kubernetes {
            kubeconfig,
            namespace,
        } => secret_store::open(kubeconfig.as_deref(), namespace, &candidate()),
    }
}

/// Whether this replica writes.
pub(crate) struct Leading {
    /// Never changes where there is only one replica.
    pub(crate) lead: watch::Receiver<Lead>,
    /// Keeps it, until nobody listens to `lead` any more.
    pub(crate) task: Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Backend {
    /// Opens the home that `config` names, and finds who tells whose projected tokens are. Nothing
    /// is read yet.
    pub(crate) async fn open(
        config: &Config,
        own: OwnCluster,
        state: &StateDir,
    ) -> Result<(Self, AnyAttestor), BindError> {
        match &config.home {
            Home::Directory { resources } => {
                let backend = Self::directory(config, own, state, resources)?;
                Ok((backend, AnyAttestor::Nobody))
            }
            Home::Kubernetes {
                kubeconfig,
                namespace,
            } => {
                let client = linkspan_kube::connect(kubeconfig.as_deref()).await?;
                let attestor = KubernetesAttestor::new(client.clone(), &own.cluster);
                let backend = Self::kubernetes(client, own, config, namespace);
                Ok((backend, AnyAttestor::Kubernetes(attestor)))
            }
        }
    }

    /// Where the roots of an earlier life are published, if they are.
    pub(crate) async fn published(&self) -> Result<Option<String>, BindError> {
        match &self.surroundings {
            Some(surroundings) => surroundings.published().await,
            None => Ok(None),
        }
    }

    fn directory(
        config: &Config,
        own: OwnCluster,
        state: &StateDir,
        resources: &std::path::Path,
    ) -> Result<Self, BindError> {
        let watched =
            DirectorySource::watch(own, resources, config.timers.rescan, config.vips.clone());
        let source = watched.map_err(|source| BindError::Resources {
            path: resources.to_owned(),
            source,
        })?;
        let nudge = source.nudge();
        Ok(Self {
            source: AnySource::Directory(source),
            sink: AnySink::Directory(DirectorySink::new(state.status())),
            journal: AnyJournal::Directory(DirectoryJournal::new(state.journal())),
            links: Box::new(DirectoryLinks::new(
                resources.to_owned(),
                Arc::clone(&nudge),
            )),
            declarations: AnyDeclarations::Directory(DirectoryDeclarations::new(
                resources.to_owned(),
            )),
            place: resources.display().to_string(),
            nudge,
            leading: Leading::always(),
            surroundings: None,
        })
    }

    fn kubernetes(client: Client, own: OwnCluster, config: &Config, namespace: &str) -> Self {
        let mirrors = Mirrors::watch(&client);
        let leading = Leading::elected(client.clone(), namespace);
        let lead = leading.lead.clone();
        let sink = KubernetesSink::new(client.clone(), mirrors.clone(), lead.clone());
        let journal = KubernetesJournal::new(client.clone(), namespace, lead.clone());
        let declarations = KubernetesDeclarations::new(client.clone(), lead.clone());
        let links = KubernetesLinks::new(client.clone(), lead);
        Self {
            source: AnySource::Kubernetes(Box::new(KubernetesSource::new(
                own,
                config.locality.clone(),
                mirrors,
            ))),
            sink: AnySink::Kubernetes(Box::new(sink)),
            journal: AnyJournal::Kubernetes(journal),
            declarations: AnyDeclarations::Kubernetes(declarations),
            place: "the Kubernetes API".to_owned(),
            nudge: Arc::default(),
            links: Box::new(links),
            leading,
            surroundings: Some(Surroundings {
                client,
                namespace: namespace.to_owned(),
            }),
        }
    }
}

impl Leading {
    /// Waits until this replica leads; from now on the lease is kept.
    pub(crate) async fn wait(&mut self) {
        if let Some(task) = self.task.take() {
            // It ends by itself, once nobody listens, and is joined with the others.
            let task = tokio::spawn(task);
            self.task = Some(Box::pin(async move {
                if let Err(error) = task.await
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            }));
        }
        // It fails only where the task has panicked, which shows later.
        let _ = self.lead.wait_for(|lead| lead.leading).await;
    }

    fn always() -> Self {
        Self {
            lead: watch::channel(Lead::always()).1,
            task: None,
        }
    }

    fn elected(client: Client, namespace: &str) -> Self {
        let (sender, lead) = watch::channel(Lead::default());
        let elector = Elector::new(candidate(), Terms::default());
        let task = linkspan_kube::lead(client, namespace.to_owned(), LEASE.into(), elector, sender);
        Self {
            lead,
            task: Some(Box::pin(task)),
        }
    }
}

/// A name that no other replica has, and no other life of this one.
fn candidate() -> String {
    // In a pod that is the pod's name.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let started = since.unwrap_or_default().as_secs();
    format!("{host}_{started}_{:08x}", rand::random::<u32>())
}

/// Either source.
pub(crate) enum AnySource {
    Directory(DirectorySource),
    Kubernetes(Box<KubernetesSource>),
}

impl Source for AnySource {
    async fn next(&mut self) -> Result<Arc<Declared>, SourceError> {
        match self {
            Self::Directory(source) => source.next().await,
            Self::Kubernetes(source) => source.next().await,
        }
    }
}

/// Either sink.
pub(crate) enum AnySink {
    Directory(DirectorySink),
    Kubernetes(Box<KubernetesSink>),
}

impl Sink for AnySink {
    async fn apply(&mut self, desired: &Desired, removals: Removals) -> Result<Applied, SinkError> {
        match self {
            Self::Directory(sink) => sink.apply(desired, removals).await,
            Self::Kubernetes(sink) => sink.apply(desired, removals).await,
        }
    }

    async fn disturbed(&mut self) {
        match self {
            Self::Directory(sink) => sink.disturbed().await,
            Self::Kubernetes(sink) => sink.disturbed().await,
        }
    }
}

/// Either journal.
pub(crate) enum AnyJournal {
    Directory(DirectoryJournal),
    Kubernetes(KubernetesJournal),
}

impl Journal for AnyJournal {
    async fn load(&mut self) -> Result<Vec<JournalEntry>, JournalError> {
        match self {
            Self::Directory(journal) => journal.load().await,
            Self::Kubernetes(journal) => journal.load().await,
        }
    }

    async fn save(&mut self, peer: &ClusterId, content: &[u8]) -> Result<(), JournalError> {
        match self {
            Self::Directory(journal) => journal.save(peer, content).await,
            Self::Kubernetes(journal) => journal.save(peer, content).await,
        }
    }

    async fn forget(&mut self, peer: &ClusterId) -> Result<(), JournalError> {
        match self {
            Self::Directory(journal) => journal.forget(peer).await,
            Self::Kubernetes(journal) => journal.forget(peer).await,
        }
    }
}

/// Who tells whose a projected token is.
pub(crate) enum AnyAttestor {
    /// There are no pods here.
    Nobody,
    Kubernetes(KubernetesAttestor),
}

impl Attestor for AnyAttestor {
    async fn attest(&self, token: &str) -> Result<Attested, AttestError> {
        match self {
            Self::Nobody => Err(AttestError::Refused),
            Self::Kubernetes(attestor) => attestor.attest(token).await,
        }
    }
}

/// Either place of declarations.
pub(crate) enum AnyDeclarations {
    Directory(DirectoryDeclarations),
    Kubernetes(KubernetesDeclarations),
}

impl Declarations for AnyDeclarations {
    async fn declare(&self, object: Object) -> Result<Written, DeclareError> {
        match self {
            Self::Directory(declarations) => declarations.declare(object).await,
            Self::Kubernetes(declarations) => declarations.declare(object).await,
        }
    }

    async fn withdraw(
        &self,
        kind: &'static str,
        key: &ServiceKey,
    ) -> Result<Written, DeclareError> {
        match self {
            Self::Directory(declarations) => declarations.withdraw(kind, key).await,
            Self::Kubernetes(declarations) => declarations.withdraw(kind, key).await,
        }
    }
}
