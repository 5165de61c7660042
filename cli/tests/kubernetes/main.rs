//! `linkspan run federation` at home in a real Kubernetes API.
//!
//! It needs the Kubernetes programs (built once into a cache), so it runs when asked for:
//! `cargo test -p linkspan --test kubernetes -- --ignored`

mod webhook;

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
use serde_json::{Value, json};

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
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, Value::Null)
    }

    fn start_with(folder: &Path, webhook: Value) -> Self {
        let [listen, admin, debug] = addresses();
        let mut config = json!({
            "cluster": "east",
            "clusterset": "demo",
            "stateDir": folder.join("state"),
            "home": {"kubernetes": {"kubeconfig": folder.join("kubeconfig")}},
            "listen": listen,
            "adminListen": admin,
            "debugListen": debug,
        });
        if !webhook.is_null() {
            config["webhook"] = webhook;
        }
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

/// What `linkspan install` prints, taken by a real API server.
fn install(server: &BareServer) {
    let arguments = ["--cluster", "east", "--clusterset", "demo"];
    let printed = Command::new(env!("CARGO_BIN_EXE_linkspan"))
        .arg("install")
        .args(arguments)
        .args(["--expose", "NodePort"])
        .output()
        .expect("it runs");
    let manifests = String::from_utf8(printed.stdout).expect("text");
    server.apply(&manifests).expect("all of it is taken");
}

/// Federation may do what the manifests allow its account, and nothing else.
fn as_its_account(folder: &Path, server: &BareServer) {
    let path = folder.join("kubeconfig");
    fs::copy(server.kubeconfig(), &path).expect("a copy");
    let path = path.to_str().expect("UTF-8");
    let token = "create token linkspan-federation -n linkspan-system --duration 1h";
    let token = server
        .kubectl(&token.split(' ').collect::<Vec<_>>())
        .expect("a token");
    let credentials = format!("--token={}", token.trim());
    for line in [
        ["config", "set-credentials", "federation", &credentials],
        ["config", "set-context", "--current", "--user=federation"],
    ] {
        let line = [&["--kubeconfig", path][..], &line].concat();
        server.kubectl(&line).expect("a kubeconfig");
    }
}

/// The roots, as gateways find them.
fn published(server: &BareServer) -> String {
    let roots = [
        "get",
        "configmap/linkspan-roots",
        "-n",
        "linkspan-system",
        "-o",
        r"jsonpath={.data.roots\.pem}",
    ];
    server.kubectl(&roots).expect("published roots")
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
    install(&server);
    as_its_account(folder.path(), &server);
    server
        .kubectl(&["create", "namespace", "shop"])
        .expect("a namespace");

    let mut federation = Federation::start(folder.path());
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

    // It stops in order, and the next life goes on, also with nothing left of its directory: what
    // it is it finds in the API.
    assert!(federation.stop().success());
    let roots = published(&server);
    assert!(roots.contains("BEGIN CERTIFICATE"), "{roots}");
    fs::remove_dir_all(folder.path().join("state")).expect("it is there");
    let mut federation = Federation::start(folder.path());
    federation.wait_ready();
    server.apply(&service_and_export("mail")).expect("declares");
    expect_exported(&server, "mail");
    assert!(federation.stop().success());
    assert_eq!(published(&server), roots, "the roots are another's");
}

/// Looks until it holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(LOOK);
    }
}

fn is_standby(federation: &mut Federation) {
    until("it is healthy and not ready", || {
        let ended = federation.process.try_wait().expect("it can be asked");
        assert_eq!(ended, None, "federation has ended");
        federation.readyz().is_ok_and(|line| line.contains(" 503 "))
    });
}

#[test]
#[ignore = "needs the Kubernetes programs"]
fn one_of_two_serves_and_no_lost_secret_becomes_another_authority() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = BareServer::start(&folder.path().join("k8s")).expect("an API server");
    install(&server);
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    for folder in [&one, &other] {
        fs::create_dir(folder).expect("a folder");
        as_its_account(folder, &server);
    }
    let kubectl = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        server.kubectl(&words).expect(line)
    };
    let key = || {
        let key = r"jsonpath={.data.ca\.root\.key}";
        kubectl(&format!(
            "get secret linkspan-authority -n linkspan-system -o {key}"
        ))
    };

    let mut first = Federation::start(&one);
    first.wait_ready();
    until("the roots are published", || {
        let found = "get configmaps -n linkspan-system -o name";
        kubectl(found).contains("linkspan-roots")
    });
    let (roots, made) = (published(&server), key());
    assert!(!made.is_empty());

    // Another one waits, and may be told to end meanwhile.
    let mut second = Federation::start(&other);
    is_standby(&mut second);
    assert!(second.stop().success());
    let mut second = Federation::start(&other);
    is_standby(&mut second);

    // What was lost comes back from the one that serves.
    kubectl("delete secret linkspan-authority linkspan-state -n linkspan-system");
    install(&server);
    until("the Secret is written back", || key() == made);
    first.wait_ready();
    is_standby(&mut second);
    assert!(first.stop().success());
    second.wait_ready();
    assert_eq!(published(&server), roots);
    assert_eq!(key(), made);

    // With nobody left who has it, it is an error, until all traces are removed on purpose.
    assert!(second.stop().success());
    let refuses = || {
        let mut lost = Federation::start(&one);
        let ended = lost.process.wait().expect("it ends");
        assert!(!ended.success(), "{ended}");
        assert_eq!(published(&server), roots);
    };
    kubectl("delete secret linkspan-state -n linkspan-system");
    install(&server);
    refuses();
    assert_eq!(key(), made);
    kubectl("delete secret linkspan-authority -n linkspan-system");
    install(&server);
    refuses();
    let all = "linkspan-authority linkspan-state linkspan-workloads";
    kubectl(&format!("delete secret {all} -n linkspan-system"));
    install(&server);
    refuses();
    assert_eq!(key(), "");
    kubectl(&format!("delete secret {all} -n linkspan-system"));
    kubectl("delete configmap linkspan-roots -n linkspan-system");
    install(&server);
    let mut anew = Federation::start(&one);
    anew.wait_ready();
    assert!(!key().is_empty() && key() != made);
    assert!(anew.stop().success());
}

/// What an API server refuses of the manifests for every way to expose gateways, strictly.
#[test]
#[ignore = "needs the Kubernetes programs"]
fn what_is_installed_is_valid_and_goes_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = BareServer::start(&folder.path().join("k8s")).expect("an API server");
    install(&server);
    let file = folder.path().join("manifests");
    let print = |words: &[&str]| {
        let printed = Command::new(env!("CARGO_BIN_EXE_linkspan"))
            .args(words)
            .output()
            .expect("it runs");
        assert!(printed.status.success(), "{printed:?}");
        fs::write(&file, printed.stdout).expect("a file");
    };
    let path = file.to_str().expect("UTF-8").to_owned();
    for how in ["LoadBalancer", "NodePort", "None"] {
        let words = ["install", "--cluster", "east", "--clusterset", "demo"];
        print(&[&words[..], &["--expose", how, "-o", "json"]].concat());
        let strict = ["--dry-run=server", "--validate=strict", "-f", &path];
        server
            .kubectl(
                &[
                    &["apply", "--server-side", "--force-conflicts"][..],
                    &strict,
                ]
                .concat(),
            )
            .unwrap_or_else(|error| panic!("{how}: {error:#}"));
    }
    print(&["uninstall", "--shared-crds"]);
    // Without controllers a namespace never goes: what is in it does.
    let delete = ["delete", "--ignore-not-found", "--wait=false", "-f", &path];
    server.kubectl(&delete).expect("deleted");
    let labelled = [
        "-l",
        "app.kubernetes.io/part-of=linkspan",
        "-A",
        "-o",
        "name",
    ];
    let kinds = "crds,clusterroles,clusterrolebindings,roles,rolebindings,secrets,configmaps,\
                 services,serviceaccounts,deployments,networkpolicies,poddisruptionbudgets,\
                 mutatingwebhookconfigurations";
    // Definitions go once the objects of their kinds have gone, which is told to nobody.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = server
            .kubectl(&[&["get", kinds][..], &labelled].concat())
            .expect("a list");
        if left.trim().is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left}");
        sleep(LOOK);
    }
}
