//! One API server for all tests that run at the same time.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{
    Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::Status;
use linkspan_clusters::BareServer;
use linkspan_kube::Lead;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

/// A machine that is busy with something else is slow; what hangs is cut off.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A running API server that has our kinds.
pub(crate) struct Server {
    // Stopped before its folder goes.
    server: BareServer,
    _folder: TempDir,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    /// The one that others use, too; each test has names of its own there.
    pub(crate) async fn shared() -> Arc<Self> {
        let started = tokio::task::spawn_blocking(|| {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(server) = shared.upgrade() {
                return server;
            }
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        });
        let server = started.await.expect("it starts");
        server.define().await;
        server
    }

    /// One of this test's own, to be killed.
    pub(crate) async fn own() -> Arc<Self> {
        let started = tokio::task::spawn_blocking(Self::start);
        let server = Arc::new(started.await.expect("it starts"));
        server.define().await;
        server
    }

    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = BareServer::start(&folder.path().join("k8s"));
        Self {
            server: server.expect("an API server"),
            _folder: folder,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        let kubeconfig = self.server.kubeconfig();
        linkspan_kube::connect(Some(&kubeconfig))
            .await
            .expect("a client")
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> http::Uri {
        let server = self.kubeconfig()["clusters"][0]["cluster"]["server"].clone();
        server.as_str().expect("an address").parse().expect("a URL")
    }

    /// Its certificate authority, DER.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        let data =
            self.kubeconfig()["clusters"][0]["cluster"]["certificate-authority-data"].clone();
        let pem = STANDARD
            .decode(data.as_str().expect("base64"))
            .expect("base64");
        CertificateDer::pem_slice_iter(&pem)
            .map(|der| der.expect("PEM").to_vec())
            .collect()
    }

    fn kubeconfig(&self) -> Value {
        let text = std::fs::read_to_string(self.server.kubeconfig()).expect("a kubeconfig");
        serde_saphyr::from_str(&text).expect("YAML")
    }

    pub(crate) async fn kill(self: &Arc<Self>) {
        self.blocking(|server| server.server.kill().expect("it is killed"))
            .await;
    }

    pub(crate) async fn restart(self: &Arc<Self>) {
        self.blocking(|server| server.server.restart().expect("it is back"))
            .await;
    }

    async fn blocking(self: &Arc<Self>, act: fn(&Self)) {
        let server = Arc::clone(self);
        tokio::task::spawn_blocking(move || act(&server))
            .await
            .expect("it is done");
    }

    /// Applies every definition of deploy/crds and waits until all are served.
    async fn define(&self) {
        let client = self.client().await;
        let resource = resource(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        );
        let api = Api::<DynamicObject>::all_with(client, &resource);
        for definition in definitions() {
            let name = definition["metadata"]["name"].as_str().expect("a name");
            let params = PatchParams::apply("test").force();
            api.patch(name, &params, &Patch::Apply(&definition))
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            within("a definition is served", established(&api, name)).await;
        }
    }

    /// A client that may do only this in that namespace.
    pub(crate) async fn client_with(&self, user: &str, namespace: &str, rules: &Value) -> Client {
        let group = "rbac.authorization.k8s.io";
        let metadata = json!({"name": user, "namespace": namespace});
        let role = json!({"apiVersion": format!("{group}/v1"), "kind": "Role",
            "metadata": metadata, "rules": rules});
        let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}]});
        let all = self.client().await;
        for object in [role, binding] {
            declare(&all, &object, false).await.expect("a right");
        }
        let kubeconfig = kube::config::Kubeconfig::read_from(self.server.kubeconfig());
        let options = kube::config::KubeConfigOptions::default();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig.expect("it is there"), &options);
        let mut config = config.await.expect("a kubeconfig");
        config.auth_info.impersonate = Some(user.to_owned());
        Client::try_from(config).expect("a client")
    }

    /// Makes a namespace.
    pub(crate) async fn namespace(&self, name: &str) {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.into());
        let api = Api::<Namespace>::all(self.client().await);
        api.create(&PostParams::default(), &namespace)
            .await
            .expect("a namespace");
    }
}

/// Waits until a definition is served.
async fn established(api: &Api<DynamicObject>, name: &str) {
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    // From the beginning: the state now comes first.
    let mut events = api.watch(&params, "0").await.expect("a watch").boxed();
    while let Some(event) = events.next().await {
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event.expect("an event")
        else {
            continue;
        };
        let conditions = object.data["status"]["conditions"].as_array();
        let holds = |kind| {
            conditions
                .into_iter()
                .flatten()
                .any(|of| of["type"] == kind && of["status"] == "True")
        };
        assert!(!holds("NonStructuralSchema"), "{name}: {conditions:?}");
        if holds("Established") {
            return;
        }
    }
    panic!("{name}: the watch has ended");
}

/// The files of deploy/crds.
fn definitions() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let files = std::fs::read_dir(folder).expect("deploy/crds");
    files
        .map(|file| std::fs::read_to_string(file.expect("an entry").path()).expect("text"))
        .map(|text| serde_saphyr::from_str(&text).expect("YAML"))
        .collect()
}

/// The lead of the only replica there is.
pub(crate) fn leading() -> watch::Receiver<Lead> {
    watch::channel(Lead::always()).1
}

/// Fails instead of hanging.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {LIMIT:?}"),
    }
}

pub(crate) fn resource(version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// Where an object of the kinds that tests declare lives.
pub(crate) fn api_of(client: &Client, object: &Value) -> Api<DynamicObject> {
    let kind = object["kind"].as_str().expect("a kind");
    let version = object["apiVersion"].as_str().expect("a version");
    let plural = match kind {
        "ClusterProperty" => "clusterproperties".to_owned(),
        "FailoverPolicy" => "failoverpolicies".to_owned(),
        kind => format!("{}s", kind.to_ascii_lowercase()),
    };
    let resource = resource(version, kind, &plural);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Declares an object as `kubectl apply --server-side` does, strictly.
pub(crate) async fn declare(
    client: &Client,
    object: &Value,
    dry_run: bool,
) -> Result<DynamicObject, Box<Status>> {
    let params = PatchParams {
        dry_run,
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("somebody").force()
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match api_of(client, object)
        .patch(name, &params, &Patch::Apply(object))
        .await
    {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

/// A ServiceExport of `shop/<name>`.
pub(crate) fn export(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    })
}

/// A Service.
pub(crate) fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    })
}
