//! `linkspan run federation` at home in a real Kubernetes API.
//!
//! It needs the Kubernetes programs (built once into a cache), so it runs when asked for:
//! `cargo test -p linkspan --test kubernetes -- --ignored`

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use linkspan_clusters::BareServer;
use linkspan_dataplane::identity::{FederationClient, IdentityError, first_contact};
use linkspan_trust::Bundle;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process that cannot tell us anything.
const LOOK: Duration = Duration::from_millis(50);

struct Federation {
    process: Child,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Federation {
    fn start(folder: &Path, server: &BareServer) -> Self {
        let [listen, admin, debug] = addresses();
        let config = json!({
            "cluster": "east",
            "clusterset": "demo",
            "stateDir": folder.join("state"),
            "home": {"kubernetes": {"kubeconfig": server.kubeconfig()}},
            "listen": listen,
            "adminListen": admin,
            "debugListen": debug,
        });
        let path = folder.join("federation.yaml");
        fs::write(&path, config.to_string()).expect("a configuration");
        let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
        command.args(["run", "federation", "--config"]).arg(&path);
        Self {
            process: command.spawn().expect("it starts"),
            listen,
            admin,
        }
    }

    /// Status line of `/readyz`.
    fn readyz(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.readyz().is_ok_and(|line| line.contains(" 200 ")) {
            let ended = self.process.try_wait().expect("it can be asked");
            assert_eq!(ended, None, "federation has ended");
            assert!(Instant::now() < deadline, "federation is not ready");
            sleep(LOOK);
        }
    }

    fn stop(mut self) -> ExitStatus {
        let id = i32::try_from(self.process.id()).expect("a process id");
        let pid = Pid::from_raw(id).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it runs");
        self.process.wait().expect("it ends")
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        // Of no effect where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Three that are free now.
fn addresses() -> [SocketAddr; 3] {
    let free = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("an address"));
    free.map(|listener| listener.local_addr().expect("an address"))
}

fn service_and_export(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: {name}, namespace: shop}}\n"
    )
}

const POD: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
spec:
  serviceAccountName: web
  automountServiceAccountToken: false
  containers: [{name: app, image: app}]
";

/// By its projected token, as the kubelet would make it; and none once the pod is gone.
fn a_living_pod_gets_its_certificate(server: &BareServer, federation: &Federation, folder: &Path) {
    server.apply(POD).expect("a pod");
    let kubectl = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let said = server.kubectl(&words).expect(line);
        said.trim().to_owned()
    };
    let uid = kubectl("get pod web-1 -n shop -o jsonpath={.metadata.uid}");
    let bound =
        format!("--bound-object-kind Pod --bound-object-name web-1 --bound-object-uid {uid}");
    let token = |audience: &str| {
        kubectl(&format!(
            "create token web -n shop --audience {audience} {bound}"
        ))
    };
    let bundle = Command::new(env!("CARGO_BIN_EXE_linkspan"))
        .args(["bundle", "--state-dir"])
        .arg(folder.join("state"))
        .output()
        .expect("it runs");
    let file = folder.join("token");
    let client = FederationClient {
        address: federation.listen.to_string(),
        trust_domain: "east.demo.linkspan.internal".parse().expect("a domain"),
        roots: Bundle::from_pem(0, &bundle.stdout).expect("roots"),
        token: file.clone(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ask = |token: &str| {
        fs::write(&file, token).expect("a file");
        runtime.block_on(first_contact(&client))
    };

    let good = token("linkspan:east");
    let (_writer, reader) = ask(&good).expect("a certificate");
    let id = reader.current().svid().id().to_string();
    assert_eq!(id, "spiffe://east.demo.linkspan.internal/ns/shop/sa/web");
    let refused = |token: &str| match ask(token) {
        Err(IdentityError::Refused { message, .. }) => message,
        other => panic!("{:?}", other.err()),
    };
    assert!(refused(&token("linkspan:west")).contains("audience"));
    kubectl("delete pod web-1 -n shop --force --grace-period 0");
    assert!(refused(&good).contains("living pod"));
}

fn wait_for(server: &BareServer, what: &str, state: &str) {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let state = format!("--for={state}");
    server
        .kubectl(&["wait", "-n", "shop", &state, &timeout, what])
        .unwrap_or_else(|error| panic!("{what} {state}: {error:#}"));
}

fn expect_exported(server: &BareServer, name: &str) {
    let export = format!("serviceexport/{name}");
    wait_for(server, &export, "condition=Valid");
    wait_for(server, &export, "condition=Ready");
    wait_for(server, &export, "condition=Conflict=False");
    let import = format!("serviceimport/{name}");
    wait_for(server, &import, "create");
    wait_for(server, &import, "condition=Ready");
}

#[test]
#[ignore = "needs the Kubernetes programs"]
fn federation_lives_in_the_api_and_outlives_its_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = BareServer::start(&folder.path().join("k8s")).expect("an API server");
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let crds = crds.to_str().expect("UTF-8");
    server
        .kubectl(&["apply", "--server-side", "-f", crds])
        .expect("our kinds");
    for namespace in ["shop", "linkspan-system"] {
        server
            .kubectl(&["create", "namespace", namespace])
            .expect("a namespace");
    }

    let mut federation = Federation::start(folder.path(), &server);
    federation.wait_ready();
    server
        .apply(&service_and_export("checkout"))
        .expect("declares");
    expect_exported(&server, "checkout");
    let columns = server
        .kubectl(&["get", "svcim,svcex", "-n", "shop"])
        .expect("a table");
    assert!(columns.contains("ClusterSetIP"), "{columns}");

    // A declaration that is wrong in itself is told where it stands.
    let orphan = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
                  metadata: {name: nothing, namespace: shop}\n";
    server.apply(orphan).expect("declares");
    wait_for(&server, "serviceexport/nothing", "condition=Valid=False");

    a_living_pod_gets_its_certificate(&server, &federation, folder.path());

    server.kill().expect("it runs");
    // Nothing about federation depends on it just now.
    assert!(federation.readyz().expect("an answer").contains(" 200 "));
    server.restart().expect("it starts again");
    server.apply(&service_and_export("cart")).expect("declares");
    expect_exported(&server, "cart");

    // Withdrawn here, it is nobody's any more.
    server
        .kubectl(&["delete", "-n", "shop", "serviceexport/checkout"])
        .expect("withdraws");
    wait_for(&server, "serviceimport/checkout", "delete");

    // It stops in order, and the next life goes on, once the Lease is over.
    assert!(federation.stop().success());
    let mut federation = Federation::start(folder.path(), &server);
    federation.wait_ready();
    server.apply(&service_and_export("mail")).expect("declares");
    expect_exported(&server, "mail");
    assert!(federation.stop().success());
}
