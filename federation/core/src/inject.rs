//! A sidecar put into pods: what `linkspan inject` does to manifests, and the webhook to pods.
//!
//! The sidecar is a native one (an init container that stays; Kubernetes 1.29): it is there before
//! the pod's containers start and until after they have ended, and a Job ends in spite of it. It
//! finds all that it needs in the pod: its configuration and the cluster's roots in annotations,
//! what is the pod's own by the downward API, its identity by a projected token. So nothing has to
//! be made in the pod's namespace, and the restricted Pod Security profile holds; but where the pod's
//! calls are captured, for a container before it that leads them to the sidecar.

mod capture;
mod outbound;
mod probe;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use crate::model::{ClusterId, Locality, TrustDomain};
pub use capture::{CAPTURE, CONTAINER as CAPTURE_CONTAINER, Capture, EXCEPT};
use outbound::Outbound;

/// Label of a pod: `false` keeps the sidecar out.
pub const INJECT: &str = "linkspan.io/inject";
/// Label of a pod that has a sidecar, always `true`: federation knows by it which pods register by
/// themselves, before they have.
pub const MESHED: &str = "linkspan.io/meshed";
/// Annotation of a pod: the services that it calls, see [`NotInjected::Outbound`].
pub const OUTBOUND: &str = "linkspan.io/outbound";
/// Annotation in which the sidecar finds its configuration.
const CONFIGURATION: &str = "linkspan.io/sidecar";
/// Annotation in which it finds the roots by which it knows its federation.
const ROOTS: &str = "linkspan.io/roots";

/// Name of the container.
pub const CONTAINER: &str = "linkspan-sidecar";
/// Name of the volume with all that the sidecar reads.
const VOLUME: &str = "linkspan";
const FOLDER: &str = "/etc/linkspan";
/// Where other sidecars reach it.
const INBOUND: u16 = 15_008;
const ADMIN: u16 = 15_020;
const DEBUG: u16 = 15_021;
/// The sidecar's user, whose calls are never captured: no application may run as it. It has no name.
pub const USER: u32 = 15_000;
/// Life of the projected token, seconds; the kubelet replaces it in time.
const TOKEN_LIFE: u32 = 3_600;

/// What sidecars of a cluster have in common.
#[derive(Clone, Debug)]
pub struct Injection {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// `host:port` of its federation.
    pub federation: String,
    /// Its roots, PEM.
    pub roots: String,
    /// Where pods are that do not say it.
    pub locality: Locality,
    /// The image.
    pub image: String,
    /// When nodes fetch it.
    pub image_pull_policy: String,
}

/// Why a pod gets no sidecar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInjected {
    /// It is not what its kind says.
    #[error("`{0}` is missing or of the wrong shape")]
    Malformed(&'static str),
    /// Its ports would be the node's.
    #[error(
        "it uses the network of its node (`hostNetwork`), where a sidecar's ports are everybody's; \
         label it `linkspan.io/inject: \"false\"`, or give it a network of its own"
    )]
    HostNetwork,
    /// A port of its own is one that the sidecar needs.
    #[error("container `{container}` has port {port}, which the sidecar needs; use another one")]
    Port {
        /// Whose port it is.
        container: String,
        /// The port.
        port: u16,
    },
    /// A container runs as the sidecar does.
    #[error(
        "container `{0}` runs as user {USER}, which is the sidecar's: its calls would not be captured; \
         choose another `runAsUser`, or annotate the pod `linkspan.io/capture: \"false\"`"
    )]
    User(String),
    /// It is not said whether calls are captured.
    #[error("annotation `linkspan.io/capture`: `{0}` is neither `true` nor `false`")]
    Capture(String),
    /// The pod wants its calls captured where that is forbidden.
    #[error(
        "annotation `linkspan.io/capture: \"true\"`: its namespace enforces a Pod Security profile \
         that forbids the container which captures calls (NET_ADMIN); take the annotation away and \
         name what the pod calls in `linkspan.io/outbound`, or change the namespace's label \
         `pod-security.kubernetes.io/enforce`"
    )]
    Forbidden,
    /// What is called directly is no such thing.
    #[error(
        "annotation `linkspan.io/capture-except`: `{0}` is no port, address or network; write e.g. \
         `5432, 10.0.0.0/8`"
    )]
    Except(String),
    /// The annotation does not say what the pod calls.
    #[error(
        "annotation `linkspan.io/outbound`: {0}; write PORT=NAMESPACE/NAME:PORT, as in \
         `7001=shop/checkout:80`, with commas between several: the first port, 1024 to 65535, is \
         that of 127.0.0.1 which the pod calls"
    )]
    Outbound(String),
}

/// Puts a sidecar into each pod that the object makes, replacing one that is there: doing it again
/// changes nothing. How many pods (or templates of pods) have one now. `capture` holds for those that
/// do not say it.
///
/// # Errors
/// If one of them cannot have a sidecar; the object is left as it was.
pub fn inject(
    object: &mut Value,
    injection: &Injection,
    capture: Capture,
) -> Result<usize, NotInjected> {
    let mut changed = object.clone();
    let mut count = 0;
    for pod in pods(&mut changed) {
        count += usize::from(inject_pod(pod, injection, capture)? != Done::Nothing);
    }
    *object = changed;
    Ok(count)
}

/// What was done to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is to have no sidecar.
    Nothing,
    /// It has one, and its calls are captured.
    Captured,
    /// It has one, and calls the mesh by the ports that its annotation names.
    Listeners,
}

/// Pods and their templates in an object.
fn pods(object: &mut Value) -> Vec<&mut Value> {
    let place = match object["kind"].as_str().unwrap_or_default() {
        "Pod" => "",
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "List" => {
            let items = object["items"].as_array_mut();
            return items.into_iter().flatten().flat_map(pods).collect();
        }
        _ => return Vec::new(),
    };
    object.pointer_mut(place).into_iter().collect()
}

/// Puts a sidecar into one pod, or template of pods, that is not told to have none.
///
/// # Errors
/// If it cannot have one; the pod may be changed in part.
pub fn inject_pod(
    pod: &mut Value,
    injection: &Injection,
    capture: Capture,
) -> Result<Done, NotInjected> {
    let wish = &pod["metadata"]["labels"][INJECT];
    if wish == "false" || wish == "disabled" {
        return Ok(Done::Nothing);
    }
    let annotations = &pod["metadata"]["annotations"];
    let outbound = annotations[OUTBOUND].as_str();
    let outbound = outbound::parse(outbound.unwrap_or_default()).map_err(NotInjected::Outbound)?;
    let captured = capture::wanted(annotations, capture)?;
    let except = capture::except(annotations)?;
    let spec = pod["spec"]
        .as_object()
        .ok_or(NotInjected::Malformed("spec"))?;
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        return Err(NotInjected::HostNetwork);
    }
    check_ports(spec, &outbound, captured)?;
    let mut configuration = configuration(spec, injection, &outbound);
    if captured {
        capture::check_users(spec)?;
        configuration["capture"] = json!({});
    }
    let annotations = child(pod, "metadata")
        .and_then(|metadata| child(metadata, "annotations"))
        .ok_or(NotInjected::Malformed("metadata"))?;
    // JSON is YAML.
    annotations[CONFIGURATION] = json!(format!("{configuration:#}\n"));
    annotations[ROOTS] = json!(injection.roots);
    let labels = child(pod, "metadata")
        .and_then(|metadata| child(metadata, "labels"))
        .ok_or(NotInjected::Malformed("metadata"))?;
    labels[MESHED] = json!("true");
    put(pod, "volumes", volume(injection), VOLUME)?;
    put(pod, "initContainers", container(injection), CONTAINER)?;
    take(pod, "initContainers", capture::CONTAINER);
    if captured {
        let before = capture::container(injection, &except);
        put(pod, "initContainers", before, capture::CONTAINER)?;
    }
    Ok(match captured {
        true => Done::Captured,
        false => Done::Listeners,
    })
}

fn check_ports(
    spec: &Map<String, Value>,
    outbound: &[Outbound],
    captured: bool,
) -> Result<(), NotInjected> {
    let lists = ["containers", "initContainers"];
    if !spec.get("containers").is_some_and(Value::is_array) {
        return Err(NotInjected::Malformed("spec.containers"));
    }
    let containers = lists.iter().filter_map(|list| spec.get(*list)?.as_array());
    for container in containers.flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        let ports = container["ports"].as_array();
        for port in ports.into_iter().flatten().filter(|_| name != CONTAINER) {
            let port = port["containerPort"].as_u64();
            let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
            if [INBOUND, ADMIN, DEBUG].contains(&port)
                || (captured && port == capture::PORT)
                || outbound.iter().any(|outbound| outbound.listen == port)
            {
                let container = name.to_owned();
                return Err(NotInjected::Port { container, port });
            }
        }
    }
    Ok(())
}

fn configuration(spec: &Map<String, Value>, injection: &Injection, outbound: &[Outbound]) -> Value {
    let mut workload = json!({});
    let locality = &injection.locality;
    if !locality.region.is_empty() {
        workload["locality"] = json!({ "region": locality.region, "zone": locality.zone });
    }
    if let Some(probe) = probe::of(spec) {
        workload["probe"] = probe;
    }
    json!({
        "cluster": injection.cluster.as_str(),
        "federation": {
            "address": injection.federation,
            "trustDomain": injection.trust_domain.as_str(),
            "roots": format!("{FOLDER}/roots.pem"),
            "token": format!("{FOLDER}/token"),
        },
        "workload": workload,
        "inboundListen": format!("0.0.0.0:{INBOUND}"),
        "outbound": outbound.iter().map(Outbound::document).collect::<Vec<_>>(),
        "adminListen": format!("0.0.0.0:{ADMIN}"),
        "debugListen": format!("127.0.0.1:{DEBUG}"),
    })
}

fn volume(injection: &Injection) -> Value {
    let field =
        |path: String, file: &str| json!({ "path": file, "fieldRef": { "fieldPath": path } });
    let annotation = |name: &str| format!("metadata.annotations['{name}']");
    json!({
        "name": VOLUME,
        "projected": { "sources": [
            { "serviceAccountToken": {
                "audience": format!("linkspan:{}", injection.cluster),
                "expirationSeconds": TOKEN_LIFE,
                "path": "token",
            } },
            { "downwardAPI": { "items": [
                field(annotation(CONFIGURATION), "sidecar.yaml"),
                field(annotation(ROOTS), "roots.pem"),
                field("metadata.labels".to_owned(), "labels"),
            ] } },
        ] },
    })
}

fn container(injection: &Injection) -> Value {
    let own = [
        ("POD_UID", "metadata.uid"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("POD_IP", "status.podIP"),
    ];
    let own = own.map(
        |(name, path)| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }),
    );
    json!({
        "name": CONTAINER,
        "image": injection.image,
        "imagePullPolicy": injection.image_pull_policy,
        "restartPolicy": "Always",
        "args": [
            "run", "sidecar",
            "--config", format!("{FOLDER}/sidecar.yaml"),
            "--uid", "$(POD_UID)",
            "--hostname", "$(POD_NAME)",
            "--namespace", "$(POD_NAMESPACE)",
            "--service-account", "$(POD_SERVICE_ACCOUNT)",
            "--address", "$(POD_IP)",
            "--labels", format!("{FOLDER}/labels"),
        ],
        "env": own,
        "ports": [
            { "name": "linkspan-mtls", "containerPort": INBOUND, "protocol": "TCP" },
            { "name": "linkspan-admin", "containerPort": ADMIN, "protocol": "TCP" },
        ],
        // The pod's containers need not wait for a certificate: while there is none, their calls
        // are held for a moment.
        "startupProbe": {
            "httpGet": { "path": "/healthz", "port": ADMIN },
            "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 1,
        },
        "readinessProbe": {
            "httpGet": { "path": "/readyz", "port": ADMIN },
            "periodSeconds": 2, "timeoutSeconds": 2,
        },
        "livenessProbe": {
            "httpGet": { "path": "/healthz", "port": ADMIN },
            "periodSeconds": 10, "timeoutSeconds": 2,
        },
        "resources": { "requests": { "cpu": "20m", "memory": "32Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [{ "name": VOLUME, "mountPath": FOLDER, "readOnly": true }],
    })
}

/// The mapping under `key`, made if there is none.
fn child<'a>(of: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let child = of.as_object_mut()?.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = json!({});
    }
    child.is_object().then_some(child)
}

/// Takes an item out of a list of the spec, if it is there.
fn take(pod: &mut Value, list: &'static str, name: &str) {
    if let Some(items) = pod["spec"][list].as_array_mut() {
        items.retain(|item| item["name"] != name);
    }
}

/// Puts an item first into a list of the spec, in place of the one with its name.
fn put(pod: &mut Value, list: &'static str, item: Value, name: &str) -> Result<(), NotInjected> {
    let spec = pod["spec"].as_object_mut();
    let found = spec.map(|spec| spec.entry(list).or_insert(Value::Null));
    let found = found.ok_or(NotInjected::Malformed("spec"))?;
    if found.is_null() {
        *found = json!([]);
    }
    let items = found.as_array_mut().ok_or(NotInjected::Malformed(list))?;
    items.retain(|item| item["name"] != name);
    items.insert(0, item);
    Ok(())
}
