//! What stands for imports, in a real API server: Services with addresses, and EndpointSlices.

use std::collections::BTreeMap;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use linkspan_core::backend::{Removals, Sink as _, Source as _};
use linkspan_core::derived::{Derived, Slice, SliceKey, derived_name};
use linkspan_core::direct::Entry;
use linkspan_core::plan::Desired;
use linkspan_core::testing::{own, port};
use linkspan_core::{
    AppProtocol, Condition, ConditionStatus, Import, ImportType, Locality, ServiceKey,
    SessionAffinity,
};
use linkspan_kube::{KubernetesSink, KubernetesSource, Mirrors};
use serde_json::{Value, json};

use crate::server::{Server, api_of, declare, leading, within};

const NAMESPACE: &str = "imported";
const OTHER: &str = "imported-too";

/// A federation as the API server knows it.
struct World {
    client: Client,
    source: KubernetesSource,
    sink: KubernetesSink,
}

impl World {
    async fn new(client: &Client) -> Self {
        let mirrors = Mirrors::watch(client);
        let mut source = KubernetesSource::new(own(), Locality::default(), mirrors.clone());
        within("a first snapshot", source.next())
            .await
            .expect("a snapshot");
        let sink = KubernetesSink::new(client.clone(), mirrors, leading());
        let client = client.clone();
        Self {
            client,
            source,
            sink,
        }
    }

    async fn apply(&mut self, desired: &Desired) -> usize {
        let applied = self.sink.apply(desired, Removals::Made).await;
        let applied = applied.expect("applies");
        assert_eq!(applied.refused, []);
        applied.written
    }

    /// Until what somebody else has changed is seen, and mended.
    async fn mend(&mut self, desired: &Desired) {
        while self.apply(desired).await == 0 {
            within("the change", self.sink.disturbed()).await;
        }
    }

    async fn addresses(&mut self, key: &ServiceKey) -> Vec<std::net::IpAddr> {
        loop {
            let declared = within("an address", self.source.next()).await;
            let declared = declared.expect("a snapshot");
            if let Some(ips) = declared.clusterset_ips.get(key) {
                return ips.clone();
            }
        }
    }

    async fn slices(&self) -> BTreeMap<String, DynamicObject> {
        let any = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": NAMESPACE}});
        let params = ListParams::default()
            .labels("endpointslice.kubernetes.io/managed-by=linkspan-federation");
        let list = api_of(&self.client, &any).list(&params).await;
        let items = list.expect("a list").items.into_iter();
        items.map(|slice| (source(&slice), slice)).collect()
    }

    fn services(&self) -> Api<DynamicObject> {
        let any = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE}});
        api_of(&self.client, &any)
    }

    async fn service(&self) -> DynamicObject {
        let found = self.services().get(&derived_name(&key())).await;
        found.expect("a Service")
    }

    async fn import(&self) -> DynamicObject {
        let any = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
            "metadata": {"namespace": NAMESPACE}});
        let found = api_of(&self.client, &any).get("web").await;
        found.expect("an import")
    }
}

fn key() -> ServiceKey {
    ServiceKey::new(NAMESPACE, "web").expect("a key")
}

/// The cluster that a slice comes from.
fn source(slice: &DynamicObject) -> String {
    slice.labels()["multicluster.kubernetes.io/source-cluster"].clone()
}

fn ready(slice: &DynamicObject) -> Vec<(String, bool)> {
    let endpoints = slice.data["endpoints"].as_array().expect("endpoints");
    let one = |of: &Value| {
        let ip = of["addresses"][0].as_str().expect("an address");
        (ip.to_owned(), of["conditions"]["ready"] == true)
    };
    endpoints.iter().map(one).collect()
}

fn slice(cluster: &str, target: u16, entries: &[(&str, bool)]) -> (SliceKey, Slice) {
    let key = SliceKey {
        cluster: cluster.parse().expect("an id"),
        port: 80,
        target,
        ipv6: false,
        part: 0,
    };
    let entry = |(ip, ready): &(&str, bool)| Entry {
        ip: ip.parse().expect("an IP"),
        ready: *ready,
        serving: *ready,
        terminating: false,
        hostname: None,
        node: None,
        zone: None,
        pod: None,
    };
    let slice = Slice {
        port_name: "".into(),
        app_protocol: AppProtocol::Http,
        remote: cluster != "east",
        entries: entries.iter().map(entry).collect(),
    };
    (key, slice)
}

fn import(key: &ServiceKey) -> Import {
    let clusters = ["east", "west"].map(|id| (id.parse().expect("an id"), Default::default()));
    Import {
        service: key.clone(),
        ports: vec![port(80)],
        import_type: ImportType::ClusterSetIP,
        session_affinity: SessionAffinity::ClientIP,
        clusters: clusters.into(),
        unmeshed_clients: Default::default(),
    }
}

fn desired(keys: &[ServiceKey], of: &Derived) -> Desired {
    let condition = Condition::new("Ready", ConditionStatus::True, "Ready", "exported");
    let each = || keys.iter().cloned();
    Desired {
        imports: each().map(|key| (key.clone(), import(&key))).collect(),
        derived: each().map(|key| (key, of.clone())).collect(),
        import_conditions: each().map(|key| (key, vec![condition.clone()])).collect(),
        ..Desired::default()
    }
}

fn derived() -> Derived {
    let east = slice("east", 8080, &[("10.0.0.1", true), ("10.0.0.2", false)]);
    let west = slice("west", 16000, &[("10.0.1.1", false), ("10.0.1.2", false)]);
    Derived {
        ips: Vec::new(),
        ports: vec![port(80)],
        slices: [east, west].into(),
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn an_import_has_an_address_and_leads_somewhere() {
    let server = Server::own().await;
    server.namespace(NAMESPACE).await;
    let client = server.client().await;
    let mut world = World::new(&client).await;
    let mut of = derived();
    world.apply(&desired(&[key()], &of)).await;

    let (service, import) = (world.service().await, world.import().await);
    assert_eq!(service.data["spec"].get("selector"), None);
    assert_eq!(
        service.labels()["multicluster.kubernetes.io/service-name"],
        "web"
    );
    assert_eq!(service.owner_references()[0].uid, import.uid().unwrap());
    assert_eq!(
        import.annotations()["multicluster.kubernetes.io/derived-service"],
        service.name_any()
    );
    assert_eq!(import.data["status"]["endpointSliceObjects"], "Present");
    let slices = world.slices().await;
    assert_eq!(slices.keys().collect::<Vec<_>>(), ["east", "west"]);
    for slice in slices.values() {
        let labels = slice.labels();
        assert_eq!(labels["kubernetes.io/service-name"], service.name_any());
        assert_eq!(labels["multicluster.kubernetes.io/service-name"], "web");
        assert_eq!(slice.owner_references()[0].uid, import.uid().unwrap());
    }
    assert_eq!(slices["west"].data["ports"][0]["port"], 16000);
    assert_eq!(ready(&slices["east"])[0], ("10.0.0.1".to_owned(), true));

    // The address is read back.
    let ips = world.addresses(&key()).await;
    assert_eq!(
        service.data["spec"]["clusterIPs"][0],
        json!(ips[0].to_string())
    );
    of.ips = ips.clone();
    let with_address = desired(&[key()], &of);
    world.apply(&with_address).await;
    let import = world.import().await;
    assert_eq!(import.data["spec"]["ips"], json!([ips[0].to_string()]));
    assert_eq!(import.data["spec"]["ipFamilies"], json!(["IPv4"]));

    // The same again, also by a federation that has just started, writes nothing.
    assert_eq!(world.apply(&with_address).await, 0);
    let mut world = World::new(&client).await;
    assert_eq!(world.apply(&with_address).await, 0);

    what_others_change_is_put_right(&mut world, &with_address).await;
    nothing_is_taken_while_removals_are_held(&mut world, &of).await;
    one_that_is_refused_holds_up_no_other(&server, &mut world, &of).await;

    // With the last export all of it goes.
    world.apply(&Desired::default()).await;
    assert!(world.slices().await.is_empty());
    assert!(
        world
            .services()
            .get_opt(&derived_name(&key()))
            .await
            .expect("an answer")
            .is_none()
    );
}

async fn what_others_change_is_put_right(world: &mut World, desired: &Desired) {
    let name = derived_name(&key());
    let before = world.service().await;
    let meddling = json!({"spec": {"selector": {"app": "theirs"},
        "ports": [{"port": 99, "protocol": "TCP"}], "sessionAffinity": "None"}});
    let services = world.services();
    services
        .patch(&name, &PatchParams::default(), &Patch::Merge(&meddling))
        .await
        .expect("meddles");
    world.mend(desired).await;
    let service = world.service().await;
    assert_eq!(service.data["spec"].get("selector"), None);
    assert_eq!(service.data["spec"]["ports"][0]["port"], 80);
    assert_eq!(service.data["spec"]["sessionAffinity"], "ClientIP");
    assert_eq!(
        service.data["spec"]["clusterIP"],
        before.data["spec"]["clusterIP"]
    );

    let slices = world.slices().await;
    let (east, west) = (&slices["east"], &slices["west"]);
    let api = |slice: &DynamicObject| {
        let any = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": slice.namespace()}});
        api_of(&world.client, &any)
    };
    let meddling = json!({"endpoints": [{"addresses": ["10.6.6.6"]}]});
    let params = PatchParams::default();
    api(east)
        .patch(&east.name_any(), &params, &Patch::Merge(&meddling))
        .await
        .expect("meddles");
    api(west)
        .delete(&west.name_any(), &DeleteParams::default())
        .await
        .expect("deletes");
    // They may be heard of one by one.
    loop {
        world.mend(desired).await;
        let now = world.slices().await;
        let mended = now.get("east").map(ready) == Some(ready(east));
        if mended && now.get("west").map(ready) == Some(ready(west)) {
            break;
        }
    }
}

async fn nothing_is_taken_while_removals_are_held(world: &mut World, of: &Derived) {
    // As after a restart: no gateway is back, and home has lost a pod.
    let leading = slice("west", 16000, &[("10.0.1.1", true), ("10.0.1.2", true)]);
    let home = slice("east", 8080, &[("10.0.0.1", true), ("10.0.0.2", true)]);
    let before = Derived {
        slices: [leading, home].into(),
        ..of.clone()
    };
    world.apply(&desired(&[key()], &before)).await;
    let after = Derived {
        slices: [slice("east", 8080, &[("10.0.0.1", true)])].into(),
        ..of.clone()
    };
    let after = desired(&[key()], &after);
    let applied = world.sink.apply(&after, Removals::Held).await;
    assert_eq!(applied.expect("applies").refused, []);
    let slices = world.slices().await;
    assert!(ready(&slices["west"]).iter().all(|(_, ready)| *ready));
    assert_eq!(ready(&slices["east"]), [("10.0.0.1".to_owned(), true)]);
    world.apply(&after).await;
    assert_eq!(world.slices().await.len(), 1);
}

/// Somebody else's Service has the name, and does not give it up.
async fn one_that_is_refused_holds_up_no_other(server: &Server, world: &mut World, of: &Derived) {
    server.namespace(OTHER).await;
    let other = ServiceKey::new(OTHER, "web").expect("a key");
    let theirs = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": derived_name(&other), "namespace": OTHER},
        "spec": {"type": "ClusterIP", "sessionAffinity": "None", "ports": [{"port": 1}]}});
    declare(&world.client, &theirs, false)
        .await
        .expect("a Service of theirs");
    within("the namespace", world.sink.disturbed()).await;
    let both = Derived {
        slices: [slice("east", 8081, &[("10.0.0.5", true)])].into(),
        ..of.clone()
    };
    let both = desired(&[other.clone(), key()], &both);
    let applied = world.sink.apply(&both, Removals::Made).await;
    let applied = applied.expect("applies");
    assert_eq!(applied.refused.len(), 1, "{:?}", applied.refused);
    assert_eq!(
        applied.refused[0].0,
        format!("Service {OTHER}/{}", derived_name(&other))
    );
    assert_eq!(world.slices().await["east"].data["ports"][0]["port"], 8081);
    let api = api_of(&world.client, &theirs);
    let found = api.get(&derived_name(&other)).await.expect("theirs");
    assert!(!found.labels().contains_key("app.kubernetes.io/managed-by"));
}
