//! Secrets of the system namespace as the place of what must outlive the pod.
//!
//! Each has one writer, on a thread of its own. What may wait is written together, so that an API
//! server, which keeps each version of a Secret for minutes, is not filled with them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, mpsc as reply},
    thread,
    time::Duration,
};

use linkspan_kube::{KubernetesSecret, SECRETS, SecretError};
use linkspan_runtime::process::chain;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use zeroize::Zeroizing;

use crate::{
    bound::BindError,
    state::{
        StateError, Troubles,
        store::{Slots, Store},
    },
};

/// Between two writes of what may wait. At most some 700 KiB in this time.
const PACE: Duration = Duration::from_secs(10);
/// How often it is looked whether a Secret is still there, and ours, though nothing is to be written.
const LOOK: Duration = Duration::from_secs(30);

/// Opens all, as `owner`; `true` from the watch is that another federation writes there now.
pub(super) fn open(
    kubeconfig: Option<&Path>,
    namespace: &str,
    owner: &str,
) -> Result<(Slots, watch::Receiver<bool>), BindError> {
    let (lost, follow) = watch::channel(false);
    let troubles = Troubles::default();
    let mut stores = Vec::new();
    for name in SECRETS {
        let told = (lost.clone(), troubles.clone());
        let store = SecretStore::open(kubeconfig, (namespace, name, owner), told)?;
        stores.push(Arc::new(store) as Arc<dyn Store>);
    }
    let [authority, state, workloads] = &stores[..] else {
        unreachable!("one for each name");
    };
    Ok((
        Slots::entries(authority, state, workloads, troubles),
        follow,
    ))
}

/// One Secret as a [`Store`]; asks its [`Writer`].
struct SecretStore {
    place: String,
    /// Who asks waits for the answer, so that there is one ask of each at a time.
    asks: mpsc::UnboundedSender<Ask>,
}

type Answer<T> = reply::SyncSender<T>;
type Written = Result<(), StateError>;
/// There may be keys among them.
type Entries = BTreeMap<String, Zeroizing<Vec<u8>>>;

enum Ask {
    Read(String, Answer<Option<Vec<u8>>>),
    /// At once.
    Write(Entries, Answer<Written>),
    /// Within [`PACE`].
    Soon(String, Vec<u8>, Answer<Written>),
    Hurry,
}

impl SecretStore {
    fn open(
        kubeconfig: Option<&Path>,
        (namespace, name, owner): (&str, &str, &str),
        (lost, troubles): (watch::Sender<bool>, Troubles),
    ) -> Result<Self, BindError> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (opened, opening) = reply::sync_channel(1);
        let kubeconfig = kubeconfig.map(Path::to_owned);
        let what = [namespace, name, owner].map(str::to_owned);
        // A runtime of its own: those who keep something block, perhaps on a thread of the runtime
        // on which the client would have to run. It ends with the last who may ask.
        let writing = move || match start(kubeconfig.as_deref(), &what) {
            Ok((runtime, secret)) => {
                let _ = opened.send(Ok(secret.place().to_owned()));
                let writer = Writer {
                    secret,
                    lost,
                    troubles,
                    waiting: BTreeMap::new(),
                    answers: Vec::new(),
                    may_write: Instant::now(),
                    hurried: false,
                };
                runtime.block_on(writer.run(asked));
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        let thread = thread::Builder::new().name("linkspan-secret".into());
        thread
            .spawn(writing)
            .map_err(|error| BindError::State(StateError::Runtime(error)))?;
        let place = opening.recv().map_err(|_| BindError::State(ended()))??;
        Ok(Self { place, asks })
    }

    fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, StateError> {
        let (answer, answered) = reply::sync_channel(1);
        self.asks.send(ask(answer)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())
    }
}

fn start(
    kubeconfig: Option<&Path>,
    [namespace, name, owner]: &[String; 3],
) -> Result<(Runtime, KubernetesSecret), BindError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StateError::Runtime)?;
    let secret = runtime.block_on(async {
        let client = linkspan_kube::connect(kubeconfig).await?;
        let opened = KubernetesSecret::open(client, namespace, name, owner).await;
        opened.map_err(|error| BindError::State(Arc::new(error).into()))
    })?;
    Ok((runtime, secret))
}

/// Only if the thread has panicked.
fn ended() -> StateError {
    StateError::Runtime(std::io::Error::other("the writer of a Secret has ended"))
}

impl Store for SecretStore {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.ask(|answer| Ask::Read(key.to_owned(), answer))
    }

    fn write(&self, entries: &[(&str, &[u8])]) -> Result<(), StateError> {
        let entries = entries.iter();
        let entries = entries.map(|(key, bytes)| ((*key).to_owned(), bytes.to_vec().into()));
        self.ask(|answer| Ask::Write(entries.collect(), answer))?
    }

    fn write_soon(&self, key: &str, bytes: Vec<u8>) -> Result<(), StateError> {
        self.ask(|answer| Ask::Soon(key.to_owned(), bytes, answer))?
    }

    fn hurry(&self) {
        // Without a writer nothing waits.
        let _ = self.asks.send(Ask::Hurry);
    }

    fn place(&self, key: &str) -> PathBuf {
        format!("{key} in Secret {}", self.place).into()
    }
}

/// The only one that writes a Secret here.
struct Writer {
    secret: KubernetesSecret,
    lost: watch::Sender<bool>,
    troubles: Troubles,
    /// What is written with the next write, and who waits for that.
    waiting: Entries,
    answers: Vec<Answer<Written>>,
    /// Before, what may wait does.
    may_write: Instant,
    hurried: bool,
}

impl Writer {
    /// Until nobody is left to ask.
    async fn run(mut self, mut asks: mpsc::UnboundedReceiver<Ask>) {
        let mut look = Instant::now() + LOOK;
        loop {
            let waits = !self.answers.is_empty() && !self.hurried;
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.take(ask).await,
                    None => return,
                },
                () = sleep_until(self.may_write), if waits => self.write_waiting().await,
                () = sleep_until(look) => {
                    self.look().await;
                    look = Instant::now() + LOOK;
                }
            }
        }
    }

    async fn take(&mut self, ask: Ask) {
        match ask {
            // Who has stopped waiting needs no answer.
            Ask::Read(key, answer) => {
                let _ = answer.send(self.secret.get(&key).map(<[u8]>::to_vec));
            }
            Ask::Write(entries, answer) => {
                let written = self.write(entries).await;
                let _ = answer.send(written.map_err(StateError::from));
            }
            Ask::Soon(key, bytes, answer) => {
                self.waiting.insert(key, bytes.into());
                self.answers.push(answer);
                if self.hurried {
                    self.write_waiting().await;
                }
            }
            Ask::Hurry => {
                if !std::mem::replace(&mut self.hurried, true) {
                    // Whoever follows must find all of it, and this is the last who has it.
                    self.look().await;
                }
                self.write_waiting().await;
            }
        }
    }

    async fn look(&mut self) {
        let looked = self.secret.look().await;
        self.noticed(&looked);
    }

    /// Writes this now, and takes along what waits, if that fits beside it.
    async fn write(&mut self, entries: Entries) -> Result<(), Arc<SecretError>> {
        let mut all = self.waiting.clone();
        all.extend(entries.clone());
        match self.put(all).await {
            Err(error) if matches!(*error, SecretError::TooLarge { .. }) => self.put(entries).await,
            written => {
                if written.is_ok() {
                    self.answer(&written);
                }
                written
            }
        }
    }

    async fn write_waiting(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let written = self.put(self.waiting.clone()).await;
        // Who is told that it failed tries again.
        self.answer(&written);
    }

    fn answer(&mut self, written: &Result<(), Arc<SecretError>>) {
        self.waiting.clear();
        for answer in self.answers.drain(..) {
            let _ = answer.send(written.clone().map_err(StateError::from));
        }
    }

    /// What is there already is not written again.
    async fn put(&mut self, mut entries: Entries) -> Result<(), Arc<SecretError>> {
        entries.retain(|key, bytes| self.secret.get(key) != Some(bytes.as_slice()));
        if entries.is_empty() {
            return Ok(());
        }
        let entries = entries.iter();
        let entries: Vec<_> = entries
            .map(|(key, bytes)| (key.as_str(), &bytes[..]))
            .collect();
        let written = self.secret.put(&entries).await;
        self.may_write = Instant::now() + PACE;
        self.noticed(&written);
        written.map_err(Arc::new)
    }

    /// Tells of what an answer of the API server means for the Secret as a whole.
    fn noticed(&self, result: &Result<(), SecretError>) {
        let place = format!("Secret {}", self.secret.place()).into();
        match result {
            Ok(()) => {
                if self.troubles.set(place, None) {
                    tracing::info!(secret = self.secret.place(), "it can be written again");
                }
            }
            Err(SecretError::TakenOver(_)) => drop(self.lost.send_replace(true)),
            Err(SecretError::TooLarge { .. }) => {}
            Err(error) => {
                let error = chain(error);
                if self.troubles.set(place, Some(error.clone())) {
                    tracing::error!(error, "what must outlive this process cannot be kept");
                }
            }
        }
    }
}
