//! The one node of a cluster: its namespaces, and what makes them a node.
//!
//! The first process of the namespaces only holds them and reaps. `/run`, `/var/lib` and
//! `/var/log` are the node's own, so that containerd, the CNI plugins and the kubelet can keep to
//! their usual paths, and what they leave there is gone with the node.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::{
    Cluster, DNS_SERVICE, Home, POD_CIDR, Programs,
    cluster::NODE_POD_CIDR,
    images,
    machine::{self, Network, bridge, cgroup, cni_plugins, ip},
    process::Program,
    programs::run,
};

/// How long containerd may take to answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// The name of the process that holds a node's namespaces.
pub(crate) const HOLDER: &str = "node";

/// A command line that runs what is appended to it in the namespaces of a node. Not
/// `ip netns exec`: that mounts another `/sys`, without the cgroups.
pub(crate) fn enter(node: Pid) -> Command {
    let mut command = Command::new("nsenter");
    let node = node.as_raw_nonzero().to_string();
    command.args(["--target", &node]);
    command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
    command
}

/// Makes the namespaces and joins them to the bridge; gives the process that holds them.
pub(crate) fn create(
    home: &Home,
    cluster: &Cluster,
    network: Network,
    programs: &Programs,
) -> Result<Pid> {
    let folder = home.cluster(&cluster.name);
    for own in ["lib", "log"] {
        fs::create_dir_all(folder.join(own)).with_context(|| format!("making {own}"))?;
    }
    home.start(&cluster.name, &holder(programs), None)?;
    let holder = home.find(&cluster.name, HOLDER)?;
    let node = holder
        .with_context(|| format!("node {} has ended", cluster.name))?
        .pid;
    let port = format!("{}-{}", bridge(home), cluster.address.octets()[3]);
    let pid = node.as_raw_nonzero().to_string();
    ip(&[
        "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid,
    ])?;
    ip(&["link", "set", &port, "master", &bridge(home), "up"])?;
    run(enter(node)
        .args(["sh", "-euc", SET_UP, "sh"])
        .arg(&cluster.name)
        .arg(format!("{}/24", cluster.address))
        .arg(network.gateway().to_string())
        .arg(&folder)
        .arg(POD_CIDR))
    .context("setting a node up")?;
    machine::make_cgroups(home, &cluster.name)?;
    Ok(node)
}

/// Name, address, gateway, folder, pods' network. Pods' addresses are the same in every cluster:
/// they leave the node as the node's.
const SET_UP: &str = r#"
hostname "$1"
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$4/lib" /var/lib
mount --bind "$4/log" /var/log
ip link set lo up
ip address add "$2" dev eth0
ip link set eth0 up
ip route add default via "$3"
echo 1 >/proc/sys/net/ipv4/ip_forward
nft "
table ip linkspan-clusters {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr $5 oifname eth0 masquerade
    }
}"
"#;

fn holder(programs: &Programs) -> Program {
    let hold = programs.path(HOLDER).display().to_string();
    let unshare = [
        "--fork",
        "--pid",
        "--mount-proc",
        "--mount",
        "--net",
        "--uts",
        "--ipc",
        "--propagation=private",
        &hold,
        "pause",
    ];
    Program {
        name: HOLDER,
        path: "unshare".into(),
        arguments: unshare.map(str::to_owned).to_vec(),
    }
}

/// Starts containerd and gives it the images that every node needs.
pub(crate) fn start_containerd(
    home: &Home,
    cluster: &Cluster,
    programs: &Programs,
    node: Pid,
) -> Result<()> {
    write_configs(home, cluster)?;
    home.start(&cluster.name, &containerd(home, cluster), Some(node))?;
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = run(enter(node).args(["ctr", "version"])) {
        if Instant::now() > deadline {
            return Err(error.context(format!("after {PATIENCE:?} still")));
        }
        std::thread::sleep(LOOK);
    }
    for archive in images::archives(programs) {
        images::import(node, &archive)?;
    }
    Ok(())
}

fn write_configs(home: &Home, cluster: &Cluster) -> Result<()> {
    let folder = home.cluster(&cluster.name);
    let cni = folder.join("cni");
    fs::create_dir_all(&cni).context("making the folder of the CNI configuration")?;
    let plugins = cni_plugins().context("the CNI plugins have gone")?;
    for (file, text) in [
        ("containerd.toml", containerd_config(&cni, plugins)),
        ("cni/10-pods.conflist", cni_config().to_string()),
        ("kubelet.json", kubelet_config(home, cluster).to_string()),
        (
            "kube-proxy.json",
            proxy_config(&folder, cluster).to_string(),
        ),
        // The names of the world outside are nobody's here.
        ("resolv.conf", String::new()),
    ] {
        let path = folder.join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

pub(crate) fn containerd(home: &Home, cluster: &Cluster) -> Program {
    let config = home.cluster(&cluster.name).join("containerd.toml");
    Program {
        name: "containerd",
        path: "containerd".into(),
        arguments: vec![format!("--config={}", config.display())],
    }
}

/// What runs on the node beside containerd.
pub(crate) fn agents(home: &Home, cluster: &Cluster, programs: &Programs) -> [Program; 2] {
    let folder = home.cluster(&cluster.name);
    let file = |name: &str| folder.join(name).display().to_string();
    let labels = format!(
        "topology.kubernetes.io/region={},topology.kubernetes.io/zone={}",
        cluster.region, cluster.zone
    );
    let kubelet = vec![
        format!("--config={}", file("kubelet.json")),
        format!("--kubeconfig={}", file("pki/kubelet.kubeconfig")),
        format!("--hostname-override={}", cluster.name),
        format!("--node-ip={}", cluster.address),
        format!("--node-labels={labels}"),
    ];
    let proxy = vec![format!("--config={}", file("kube-proxy.json"))];
    [
        programs.program("kubelet", kubelet),
        programs.program("kube-proxy", proxy),
    ]
}

/// `restrict_oom_score_adj`: in a container or a small machine there is no right to lower it, and
/// every pod would fail.
fn containerd_config(cni: &Path, plugins: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
"#,
        plugins.display(),
        cni.display(),
        pause = images::POD,
    )
}

/// Point to point, not a bridge: all that pods send each other is routed, so that a Service's
/// address is translated both ways without the kernel's filter for bridges.
fn cni_config() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{ "subnet": NODE_POD_CIDR }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// A machine for tests is small, shared and short of everything: nothing is evicted, nothing is
/// collected, and no limits are put upon what is not ours.
fn kubelet_config(home: &Home, cluster: &Cluster) -> Value {
    let folder = home.cluster(&cluster.name);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": folder.join("pki/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": folder.join("pki/kubelet.crt"),
        "tlsPrivateKeyFile": folder.join("pki/kubelet.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": folder.join("resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup(home, &cluster.name)),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
    })
}

fn proxy_config(folder: &Path, cluster: &Cluster) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": cluster.name,
        "clientConnection": { "kubeconfig": folder.join("pki/kube-proxy.kubeconfig") },
        // The kernel's table is the whole machine's.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}
