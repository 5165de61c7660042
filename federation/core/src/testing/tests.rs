//! The contract suites run against a backend in memory: they hold each backend to the
//! same promises, and this holds them to being keepable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::backend::{Applied, Removals, Sink, SinkError, Source, SourceError};
use crate::declared::{Declared, Links, Sourced, assemble};
use crate::plan::Desired;
use crate::testing::{SinkBench, SourceBench, own, sink_contract, source_contract};
use crate::{Condition, ServiceKey};
use linkspan_resources::{Object, parse_documents};
use tokio::sync::watch;

/// Documents by name; `None` in the second place until one was good.
type Documents = BTreeMap<String, (String, Option<Vec<Object>>)>;

struct Memory {
    documents: watch::Sender<Documents>,
}

struct MemorySource {
    documents: watch::Receiver<Documents>,
    in_force: Links,
}

impl Source for MemorySource {
    async fn next(&mut self) -> Result<Arc<Declared>, SourceError> {
        self.documents
            .changed()
            .await
            .map_err(|_| SourceError::Ended)?;
        let declared = snapshot(&self.documents.borrow_and_update(), &self.in_force);
        self.in_force.clone_from(&declared.links);
        Ok(Arc::new(declared))
    }
}

fn snapshot(documents: &Documents, in_force: &Links) -> Declared {
    let objects = documents.iter().flat_map(|(name, (_, good))| {
        good.iter().flatten().map(|object| Sourced {
            object: object.clone(),
            origin: name.clone(),
            created: SystemTime::UNIX_EPOCH,
        })
    });
    let mut declared = assemble(&own(), in_force, objects);
    for (name, (text, _)) in documents {
        let problems = parse_documents(name, text).err().into_iter().flatten();
        declared
            .problems
            .extend(problems.map(|problem| problem.to_string()));
    }
    declared
}

impl SourceBench for Memory {
    type Source = MemorySource;

    async fn source(&mut self) -> MemorySource {
        let mut documents = self.documents.subscribe();
        documents.mark_changed();
        MemorySource {
            documents,
            in_force: Links::new(),
        }
    }

    async fn put(&mut self, name: &str, document: &str) -> Result<(), String> {
        self.documents.send_modify(|documents| {
            let last_good = documents.remove(name).and_then(|(_, good)| good);
            let good = parse_documents(name, document).ok().or(last_good);
            documents.insert(name.to_owned(), (document.to_owned(), good));
        });
        Ok(())
    }

    async fn remove(&mut self, name: &str) {
        self.documents.send_modify(|documents| {
            documents.remove(name);
        });
    }
}

type Statuses = Arc<Mutex<BTreeMap<ServiceKey, Vec<Condition>>>>;

struct MemorySink(Statuses);

impl Sink for MemorySink {
    async fn apply(&mut self, desired: &Desired, _: Removals) -> Result<Applied, SinkError> {
        let mut statuses = self.0.lock().expect("no test panics while writing");
        let written = usize::from(*statuses != desired.export_conditions);
        statuses.clone_from(&desired.export_conditions);
        Ok(Applied {
            written,
            refused: Vec::new(),
        })
    }
}

struct Board(Statuses);

impl SinkBench for Board {
    type Sink = MemorySink;

    async fn sink(&mut self) -> MemorySink {
        MemorySink(Arc::clone(&self.0))
    }

    async fn export_conditions(&mut self, service: &ServiceKey) -> Vec<Condition> {
        let statuses = self.0.lock().expect("no test panics while writing");
        statuses.get(service).cloned().unwrap_or_default()
    }
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_source_in_memory_keeps_the_contract() {
    let mut memory = Memory {
        documents: watch::Sender::new(Documents::new()),
    };
    tokio::time::timeout(LIMIT, source_contract(&mut memory))
        .await
        .expect("within the limit");
}

#[tokio::test]
async fn a_sink_in_memory_keeps_the_contract() {
    let mut board = Board(Statuses::default());
    tokio::time::timeout(LIMIT, sink_contract(&mut board))
        .await
        .expect("within the limit");
}
