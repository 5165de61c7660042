use std::net::SocketAddr;

use linkspan_core::OwnCluster;
use linkspan_core::declared::{Links, Sourced, assemble};
use linkspan_core::testing::own;
use serde_json::{Value, json};

use super::*;
use crate::seen::SeenNode;

/// `shop/web` with these selectors, exported.
fn declared(own: &OwnCluster, selector: &str) -> Declared {
    let documents = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{selector: {selector}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: web, namespace: shop}}\n"
    );
    let objects = linkspan_resources::parse_documents("a.yaml", &documents).expect("good");
    let sourced = objects.into_iter().map(|object| Sourced {
        object,
        origin: "a.yaml".into(),
        created: std::time::SystemTime::UNIX_EPOCH,
    });
    assemble(own, &Links::new(), sourced)
}

fn slice(writer: &str, family: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "shop",
            "labels": {SERVICE_NAME: "web", SLICE_MANAGED_BY: writer}},
        "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    }))
    .expect("a slice")
}

fn pod(uid: &str, ip: &str) -> Value {
    json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": uid, "uid": uid}})
}

fn with(mut endpoint: Value, key: &str, value: Value) -> Value {
    endpoint[key] = value;
    endpoint
}

/// What runs in `shop` under a name, which is its UID, too.
fn running(name: &str, ips: &[&str]) -> Value {
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": []}, "status": {"podIP": "unread", "podIPs": ips},
    })
}

struct World {
    pods: Pods,
    around: Surroundings,
    selector: &'static str,
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self {
            pods: Pods::new(),
            around: Surroundings::default(),
            selector: "{app: web}",
        };
        world.run(running("a", &["10.0.0.1", "fd00::1"]));
        world.run(running("b", &["10.0.0.2"]));
        world
    }
}

impl World {
    fn run(&mut self, pod: Value) {
        let pod: SeenPod = serde_json::from_value(pod).expect("a pod");
        let of = |of: &Option<String>| of.clone().expect("it has one");
        let key = (of(&pod.metadata.namespace), of(&pod.metadata.name));
        self.pods.insert(key, Arc::new(pod));
    }

    fn read(&self, slices: &[EndpointSlice]) -> Declared {
        let mut declared = declared(&own(), self.selector);
        read(slices.iter(), &self.pods, &self.around, &mut declared);
        declared
    }

    /// Where gateways lead, by the pods of one slice of Kubernetes.
    fn servers(&self, endpoints: Value) -> Vec<IpAddr> {
        let declared = self.read(&[slice(KUBERNETES, "IPv4", endpoints)]);
        ips(&declared)
    }
}

fn key() -> ServiceKey {
    "shop/web".parse().expect("a key")
}

fn ips(declared: &Declared) -> Vec<IpAddr> {
    let mut ips: Vec<_> = declared.servers_of(&key()).iter().map(|of| of.ip).collect();
    ips.sort();
    ips
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn pods_of_an_exported_service_are_its_servers() {
    let mut world = World::default();
    let locality = Locality::new("eu", "eu-a");
    world.around.nodes = [("n1".to_owned(), locality.clone())].into();
    let endpoint = with(pod("a", "10.0.0.1"), "nodeName", json!("n1"));
    let endpoint = with(endpoint, "hostname", json!("web-0"));
    let declared = world.read(&[slice(KUBERNETES, "IPv4", json!([endpoint]))]);
    let [server] = declared.servers_of(&key()) else {
        panic!("{:?}", declared.servers);
    };
    assert_eq!(server.id, EndpointId::from_uid("a"));
    let at: SocketAddr = "10.0.0.1:8080".parse().expect("an address");
    let service = &declared.services[&key()];
    assert_eq!(server.addresses(service), [(80, at)].into());
    assert_eq!((server.ready, &server.locality), (true, &locality));
    assert_eq!(server.hostname, "web-0");
    let [direct] = &declared.direct[&key()][..] else {
        panic!("{:?}", declared.direct);
    };
    assert_eq!(direct.ports, [("http".to_owned(), 8080)].into());
    assert_eq!(
        direct.entry.pod.as_ref().map(|pod| pod.uid.as_str()),
        Some("a")
    );
}

#[test]
fn what_nobody_exports_is_not_read() {
    let slices = [slice(KUBERNETES, "IPv4", json!([pod("a", "10.0.0.1")]))];
    let mut declared = declared(&own(), "{app: web}");
    declared.exports.clear();
    let world = World::default();
    read(slices.iter(), &world.pods, &world.around, &mut declared);
    assert!(declared.servers.is_empty() && declared.direct.is_empty());
}

#[test]
fn only_pods_that_kubernetes_names_are_dialled() {
    let world = World::default();
    let bare = json!({"addresses": ["10.0.0.1"]});
    let other =
        json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Node", "name": "n", "uid": "u"}});
    assert!(world.servers(json!([bare, other])).is_empty());
    let theirs = slice("them", "IPv4", json!([pod("a", "10.0.0.1")]));
    let declared = world.read(&[theirs]);
    assert!(declared.servers.is_empty());
    // The cluster's own proxies lead there; so may we, within the cluster.
    assert_eq!(declared.direct[&key()].len(), 1);
    let selectorless = World {
        selector: "{}",
        ..World::default()
    };
    let found = selectorless.servers(json!([pod("a", "10.0.0.1")]));
    assert!(found.is_empty());
}

#[test]
fn pods_with_a_sidecar_are_not_dialled_in_plain_text() {
    let mut world = World::default();
    let mut meshed = running("a", &["10.0.0.1"]);
    meshed["metadata"]["labels"]["linkspan.io/meshed"] = json!("true");
    world.run(meshed);
    let both = json!([pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]);
    assert_eq!(world.servers(both.clone()), [ip("10.0.0.2")]);
    let declared = world.read(&[slice(KUBERNETES, "IPv4", both.clone())]);
    assert_eq!(declared.direct[&key()].len(), 2, "callers here reach both");
    // While nobody knows which pods have one, no new pod is taken for one without.
    world.around.only = Some([EndpointId::from_uid("c")].into());
    assert!(world.servers(both).is_empty());
}

#[test]
fn no_peer_is_led_to_nodes_or_api_servers() {
    let mut world = World::default();
    let mut on_host = running("h", &["10.0.0.8"]);
    on_host["spec"]["hostNetwork"] = json!(true);
    world.run(on_host);
    world.around.api_servers = [ip("10.9.9.9")].into();
    let node = json!({"metadata": {"name": "n"}, "spec": {}, "status": {"addresses": [
        {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.9"}]}});
    let node: SeenNode = serde_json::from_value(node).expect("a node");
    world.around.node_ips = node.ips();
    // Whatever the pods say.
    let refused = ["10.9.9.9", "127.0.0.1", "169.254.0.1", "10.0.0.9"];
    world.run(running("r", &refused));
    let refused = refused.iter().map(|ip| pod("r", ip));
    let others = [pod("h", "10.0.0.8"), pod("b", "10.0.0.2")];
    let endpoints = json!(refused.chain(others).collect::<Vec<_>>());
    assert_eq!(world.servers(endpoints.clone()), [ip("10.0.0.2")]);
    let told = world.read(&[slice(KUBERNETES, "IPv4", endpoints)]).problems;
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(
        told.iter().all(|of| of.starts_with("Service shop/web: ")),
        "{told:?}"
    );
}

/// Whoever may write slices can write Kubernetes' label, and any UID.
#[test]
fn a_slice_is_believed_only_what_pods_bear_out() {
    let mut world = World::default();
    let mut others = running("o", &["10.0.0.3"]);
    others["metadata"]["labels"]["app"] = json!("other");
    world.run(others);
    let mut elsewhere = running("e", &["10.0.0.4"]);
    elsewhere["metadata"]["namespace"] = json!("bank");
    world.run(elsewhere);
    let mut nameless = pod("a", "10.0.0.1");
    nameless["targetRef"]["name"] = Value::Null;
    let mut replaced = pod("a", "10.0.0.1");
    replaced["targetRef"]["uid"] = json!("of the one before");
    let mut abroad = pod("e", "10.0.0.4");
    abroad["targetRef"]["namespace"] = json!("bank");
    for forged in [
        pod("nobody", "10.0.0.1"),
        pod("a", "10.0.0.2"),
        pod("a", "192.0.2.1"),
        pod("o", "10.0.0.3"),
        nameless,
        replaced,
        abroad,
    ] {
        assert!(world.servers(json!([forged])).is_empty(), "{forged}");
    }
    assert_eq!(world.servers(json!([pod("a", "10.0.0.1")])).len(), 1);
}

#[test]
fn a_slice_that_is_being_deleted_leads_nobody() {
    let mut slice = slice(KUBERNETES, "IPv4", json!([pod("a", "10.0.0.1")]));
    let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    slice.metadata.deletion_timestamp = Some(now);
    let declared = World::default().read(&[slice]);
    assert!(declared.servers.is_empty() && declared.direct.is_empty());
}

#[test]
fn a_pod_that_terminates_takes_nothing_new() {
    let conditions = json!({"ready": true, "serving": true, "terminating": true});
    let going = with(pod("a", "10.0.0.1"), "conditions", conditions);
    let unready = with(pod("b", "10.0.0.2"), "conditions", json!({"ready": false}));
    let declared = World::default().read(&[slice(KUBERNETES, "IPv4", json!([going, unready]))]);
    let servers = declared.servers_of(&key());
    assert_eq!(servers.len(), 2);
    assert!(servers.iter().all(|server| !server.ready));
    let direct = &declared.direct[&key()];
    assert!(direct[0].entry.terminating && direct[0].entry.serving);
    assert!(!direct[1].entry.serving);
}

#[test]
fn a_pod_of_two_families_is_one_server() {
    let slices = [
        slice(KUBERNETES, "IPv6", json!([pod("a", "fd00::1")])),
        slice(KUBERNETES, "IPv4", json!([pod("a", "10.0.0.1")])),
    ];
    let declared = World::default().read(&slices);
    assert_eq!(ips(&declared), [ip("10.0.0.1")]);
    assert_eq!(declared.direct[&key()].len(), 2);
}

#[test]
fn where_nodes_say_nothing_the_cluster_does() {
    let mut world = World::default();
    world.around.locality = Locality::new("eu", "eu-z");
    let zoned = with(pod("b", "10.0.0.2"), "zone", json!("eu-b"));
    let plain = pod("a", "10.0.0.1");
    let declared = world.read(&[slice(KUBERNETES, "IPv4", json!([plain, zoned]))]);
    let found = declared.servers_of(&key()).iter();
    let found: BTreeMap<_, _> = found.map(|of| (of.ip, of.locality.clone())).collect();
    assert_eq!(found[&ip("10.0.0.1")], Locality::new("eu", "eu-z"));
    assert_eq!(found[&ip("10.0.0.2")], Locality::new("eu", "eu-b"));
}
