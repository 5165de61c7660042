//! The programs that make a cluster an API: etcd, the API server, the controllers and the
//! scheduler.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::Pid;
use serde_json::json;

use crate::{
    Home, Programs,
    cluster::{API_SERVICE, Cluster, SERVICE_CIDR},
    kubectl::Kubectl,
    pki::{self, Authority, Subject},
    process::{Program, tail},
};

/// A machine that is busy with something else takes a minute for what an idle one does in five
/// seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at a process that cannot tell us anything.
const LOOK: Duration = Duration::from_millis(50);

/// Whether a cluster has nodes, or is nothing but an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Objects can be kept and watched; nothing acts on them.
    Api,
    /// Nodes join, Deployments become Pods, deleted namespaces go away.
    Full,
}

/// Writes certificates, keys and kubeconfigs.
pub(crate) fn prepare(home: &Home, cluster: &Cluster) -> Result<()> {
    let folder = home.cluster(&cluster.name);
    let pki = folder.join("pki");
    fs::create_dir_all(&pki).with_context(|| format!("making {}", pki.display()))?;
    certificates(&pki, cluster)?;
    let server = format!("https://{}:{}", cluster.address, cluster.port);
    for (user, file) in [
        ("admin", folder.join("kubeconfig")),
        (
            "kube-controller-manager",
            pki.join("kube-controller-manager.kubeconfig"),
        ),
        ("kube-scheduler", pki.join("kube-scheduler.kubeconfig")),
        ("kubelet", pki.join("kubelet.kubeconfig")),
        ("kube-proxy", pki.join("kube-proxy.kubeconfig")),
    ] {
        let text = kubeconfig(&pki, &cluster.name, user, &server)?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn certificates(pki: &Path, cluster: &Cluster) -> Result<()> {
    let address = IpAddr::from(cluster.address);
    let node = format!("system:node:{}", cluster.name);
    let local = [address, IpAddr::from([127, 0, 0, 1]), API_SERVICE.into()];
    let client = |file, user, group| Subject {
        file,
        user,
        group,
        names: &[],
        addresses: &[],
    };
    let ca = Authority::create(pki, "ca")?;
    ca.issue(&Subject {
        names: &[
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ],
        addresses: &local,
        ..client("kube-apiserver", "kube-apiserver", None)
    })?;
    ca.issue(&Subject {
        names: &[&cluster.name],
        addresses: &[address],
        ..client("kubelet", &node, Some("system:nodes"))
    })?;
    for (file, user, group) in [
        ("admin", "admin", Some("system:masters")),
        ("kubelet-client", "kube-apiserver", Some("system:masters")),
        (
            "kube-controller-manager",
            "system:kube-controller-manager",
            None,
        ),
        ("kube-scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
    ] {
        ca.issue(&client(file, user, group))?;
    }
    // Of its own: whoever it signs for may claim to be anybody.
    let front = Authority::create(pki, "front-proxy-ca")?;
    front.issue(&client("front-proxy", "front-proxy", None))?;
    pki::service_account_keys(pki)
}

/// With the certificates inside, so that the file can be taken elsewhere, and with names of its own,
/// so that several can be read as one.
fn kubeconfig(pki: &Path, cluster: &str, user: &str, server: &str) -> Result<String> {
    let embed = |file: String| -> Result<String> {
        let path = pki.join(file);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(STANDARD.encode(bytes))
    };
    Ok(format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: {cluster}-{user}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {cluster}
  context:
    cluster: {cluster}
    user: {cluster}-{user}
current-context: {cluster}
",
        embed("ca.crt".to_owned())?,
        embed(format!("{user}.crt"))?,
        embed(format!("{user}.key"))?,
    ))
}

/// Starts etcd and the API server, without waiting for them.
pub(crate) fn launch(
    home: &Home,
    cluster: &Cluster,
    programs: &Programs,
    kind: Kind,
    inside: Option<Pid>,
) -> Result<()> {
    let folder = home.cluster(&cluster.name);
    let config = folder.join("etcd.json");
    fs::write(&config, etcd_config(&folder, cluster).to_string())
        .with_context(|| format!("writing {}", config.display()))?;
    for program in api(&folder, cluster, programs, kind) {
        home.start(&cluster.name, &program, inside)?;
    }
    Ok(())
}

/// Waits until the API server answers that it is ready.
pub(crate) fn wait_ready(home: &Home, cluster: &Cluster, programs: &Programs) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let address = SocketAddr::from((cluster.address, cluster.port));
    let kubectl = Kubectl::new(home, &cluster.name, programs);
    // It listens shortly before it is ready; asking costs a process, connecting does not.
    while TcpStream::connect_timeout(&address, PATIENCE).is_err()
        || kubectl.run(&["get", "--raw", "/readyz"]).is_err()
    {
        for program in ["etcd", "kube-apiserver"] {
            if home.find(&cluster.name, program)?.is_none() {
                let log = home.log(&cluster.name, program);
                bail!(
                    "{program} of cluster `{}` has ended; the end of {} says:\n{}",
                    cluster.name,
                    log.display(),
                    tail(&log)
                );
            }
        }
        if Instant::now() > deadline {
            bail!(
                "the API server of cluster `{}` is not ready after {PATIENCE:?}; see {}",
                cluster.name,
                home.log(&cluster.name, "kube-apiserver").display()
            );
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// One member that need not outlive a power cut.
fn etcd_config(folder: &Path, cluster: &Cluster) -> serde_json::Value {
    let client = etcd_url(cluster);
    let peer = format!("http://{}:{}", etcd_host(cluster), cluster.port - 2);
    json!({
        "name": cluster.name,
        "data-dir": folder.join("etcd"),
        "unsafe-no-fsync": true,
        "log-level": "warn",
        // In nanoseconds. Embedded, its default is to warn of every request.
        "warning-unary-request-duration": 1_000_000_000,
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": format!("{}={peer}", cluster.name),
    })
}

fn etcd_url(cluster: &Cluster) -> String {
    format!("http://{}:{}", etcd_host(cluster), cluster.port - 1)
}

/// Loopback in any case: etcd has no password here.
fn etcd_host(cluster: &Cluster) -> IpAddr {
    if cluster.address.is_loopback() {
        cluster.address.into()
    } else {
        [127, 0, 0, 1].into()
    }
}

/// The programs that make an API. The server waits for etcd by itself.
pub(crate) fn api(
    folder: &Path,
    cluster: &Cluster,
    programs: &Programs,
    kind: Kind,
) -> [Program; 2] {
    let config = folder.join("etcd.json").display().to_string();
    [
        programs.program("etcd", vec![config]),
        programs.program("kube-apiserver", api_server(folder, cluster, kind)),
    ]
}

/// The programs that act on objects. The controllers give up if the API is not ready soon, so both
/// are started when it is.
pub(crate) fn controllers(folder: &Path, programs: &Programs) -> [Program; 2] {
    [
        programs.program("kube-controller-manager", controller_manager(folder)),
        programs.program("kube-scheduler", scheduler(folder)),
    ]
}

/// Without nodes nobody leads to Services; those of loopback are reached all the same, where
/// somebody listens on their addresses.
fn service_cidr(kind: Kind) -> &'static str {
    match kind {
        Kind::Api => "127.96.0.0/16",
        _ => SERVICE_CIDR,
    }
}

fn api_server(folder: &Path, cluster: &Cluster, kind: Kind) -> Vec<String> {
    let pki = |file: &str| folder.join("pki").join(file).display().to_string();
    let mut arguments = vec![
        format!("--etcd-servers={}", etcd_url(cluster)),
        format!("--bind-address={}", cluster.address),
        format!("--secure-port={}", cluster.port),
        format!("--service-cluster-ip-range={}", service_cidr(kind)),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("kube-apiserver.crt")),
        format!("--tls-private-key-file={}", pki("kube-apiserver.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        format!(
            "--requestheader-client-ca-file={}",
            pki("front-proxy-ca.crt")
        ),
        "--requestheader-allowed-names=front-proxy".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", pki("front-proxy.crt")),
        format!("--proxy-client-key-file={}", pki("front-proxy.key")),
    ];
    match kind {
        Kind::Full => arguments.extend([
            // To pods: nothing leads from here to the addresses of Services.
            "--enable-aggregator-routing".to_owned(),
            format!("--advertise-address={}", cluster.address),
            "--endpoint-reconciler-type=lease".to_owned(),
        ]),
        // It is nobody's backend: loopback may not be advertised, and an address of this machine
        // need not exist. This one is for documentation.
        Kind::Api => arguments.extend([
            "--advertise-address=192.0.2.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
        ]),
    }
    arguments
}

fn controller_manager(folder: &Path) -> Vec<String> {
    let pki = |file: &str| folder.join("pki").join(file).display().to_string();
    vec![
        format!("--kubeconfig={}", pki("kube-controller-manager.kubeconfig")),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials".to_owned(),
        "--allocate-node-cidrs".to_owned(),
        format!("--cluster-cidr={}", crate::cluster::POD_CIDR),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("sa.key")),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

fn scheduler(folder: &Path) -> Vec<String> {
    let config = folder.join("pki/kube-scheduler.kubeconfig");
    vec![
        format!("--kubeconfig={}", config.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}
