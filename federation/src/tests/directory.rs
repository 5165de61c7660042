//! The directory keeps what every home of resources must keep.

use std::{fs, path::PathBuf, time::Duration};

use linkspan_api::v1;
use linkspan_core::{
    Condition, ConditionStatus, ServiceKey,
    testing::{SinkBench, SourceBench, sink_contract, source_contract},
};
use tempfile::TempDir;

use crate::{
    directory::{DirectorySink, DirectorySource},
    testing::{Home, own_cluster, service_yaml, soon},
};

struct Files(TempDir);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.yaml"))
    }
}

impl SourceBench for Files {
    type Source = DirectorySource;

    async fn source(&mut self) -> DirectorySource {
        // Never without a sign of change: the watch itself is under test.
        DirectorySource::watch(
            own_cluster("east"),
            self.0.path(),
            Duration::from_secs(3600),
            Default::default(),
        )
        .unwrap()
    }

    async fn put(&mut self, name: &str, document: &str) -> Result<(), String> {
        fs::write(self.path(name), document).unwrap();
        Ok(())
    }

    async fn remove(&mut self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

#[tokio::test]
async fn the_directory_is_a_source() {
    let mut files = Files(tempfile::tempdir().unwrap());
    soon("the contract's end", source_contract(&mut files)).await;
}

struct Statuses(TempDir);

impl SinkBench for Statuses {
    type Sink = DirectorySink;

    async fn sink(&mut self) -> DirectorySink {
        DirectorySink::new(self.0.path().into())
    }

    async fn export_conditions(&mut self, service: &ServiceKey) -> Vec<Condition> {
        let name = format!("serviceexport.{}.{}.json", service.namespace, service.name);
        let Ok(text) = fs::read_to_string(self.0.path().join(name)) else {
            return Vec::new();
        };
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let conditions = status["status"]["conditions"].as_array().unwrap();
        conditions.iter().map(condition).collect()
    }
}

fn condition(json: &serde_json::Value) -> Condition {
    assert_eq!(json["type"], "Valid");
    let status = match json["status"].as_str().unwrap() {
        "True" => ConditionStatus::True,
        "False" => ConditionStatus::False,
        _ => ConditionStatus::Unknown,
    };
    let text = |field: &str| json[field].as_str().unwrap().to_owned();
    Condition::new("Valid", status, text("reason"), text("message"))
}

#[tokio::test]
async fn the_directory_is_a_sink() {
    let mut statuses = Statuses(tempfile::tempdir().unwrap());
    soon("the contract's end", sink_contract(&mut statuses)).await;
}

#[tokio::test]
async fn statuses_of_a_former_life_are_cleared() {
    use linkspan_core::backend::{Removals, Sink as _};
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("serviceexport.shop.gone.json"), "{}").unwrap();
    let import = directory.path().join("serviceimport.shop.unknown.json");
    fs::write(&import, "{}").unwrap();
    let mut sink = DirectorySink::new(directory.path().into());
    sink.apply(&Default::default(), Removals::Held)
        .await
        .unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(import.exists(), "what is not known yet is not gone");
    sink.apply(&Default::default(), Removals::Made)
        .await
        .unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_bad_file_shows_in_status_and_changes_nothing() {
    let home = Home::new("east");
    home.declare("checkout.yaml", &service_yaml("checkout"));
    let federation = home.start().await;
    federation
        .until("the Service", |world| world.declared.services.len() == 1)
        .await;
    home.declare(
        "checkout.yaml",
        &service_yaml("checkout").replace("port: 80,", "port: x,"),
    );
    let world = federation
        .until("the problem", |world| !world.declared.problems.is_empty())
        .await;
    assert_eq!(world.declared.services.len(), 1);
    let status = federation
        .operator()
        .await
        .status(v1::StatusRequest {})
        .await
        .unwrap();
    let problems = status.into_inner().problems;
    for part in ["checkout.yaml:", "spec.ports[0].port"] {
        assert!(problems[0].contains(part), "{part}: {problems:?}");
    }
    federation.stop().await;
}
