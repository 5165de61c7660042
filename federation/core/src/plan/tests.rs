//! From what is known to what should be.

use std::time::Duration;

use super::*;
use crate::declared::{DeclaredExport, DeclaredPort};
use crate::failover::tests::policy;
use crate::gateways::GatewayRegistration;
use crate::model::{
    Address, Condition, EndpointId, ImportType, Locality, ServicePort, SessionAffinity,
};
use crate::peer::{Begin, Event, PeerSettings};
use crate::peers::Peers;
use crate::presence::Session;
use crate::record::RecordBody;
use crate::servers::DeclaredServer;
use crate::testing::{
    Clock, endpoint, export, link, named_port, own, port, received, registration, service,
};

/// Everything that a plan is made from, owned.
struct World {
    clock: Clock,
    own: OwnCluster,
    declared: Declared,
    workloads: Workloads,
    gateways: Gateways,
    peers: Peers,
    high_water: HighWater,
    seen: Seen,
}

impl World {
    fn new() -> Self {
        Self {
            clock: Clock::default(),
            own: own(),
            declared: Declared::default(),
            workloads: Workloads::default(),
            gateways: Gateways::default(),
            peers: Peers::new(PeerSettings::new("demo")),
            high_water: HighWater::new(),
            seen: Seen::new(),
        }
    }

    fn declare(&mut self, key: &str, app: &str, number: u16) {
        let key = service(key);
        let declared = DeclaredService {
            key: key.clone(),
            selector: BTreeMap::from([("app".into(), app.into())]),
            ports: vec![DeclaredPort {
                service_port: port(number),
                target_port: number + 9000,
            }],
            import_type: Some(ImportType::ClusterSetIP),
            session_affinity: SessionAffinity::None,
        };
        self.declared.services.insert(key, declared);
    }

    fn export(&mut self, key: &str) {
        let created = self.clock.now().wall - Duration::from_secs(100);
        self.declared.exports.insert(
            service(key),
            DeclaredExport {
                created,
                unmeshed_clients: false,
            },
        );
    }

    fn register(&mut self, uid: &str, app: &str) {
        let registration = registration(uid, "shop", app);
        self.workloads
            .register(registration, Session(1), self.clock.now().instant)
            .expect("good");
    }

    /// Links `cluster`, whose federation has sent these records.
    fn link(&mut self, cluster: &str, records: Vec<RecordBody>) {
        let link = link(cluster);
        let id = link.cluster.clone();
        self.declared.links.insert(id.clone(), link);
        let now = self.clock.now();
        let _ = self.peers.relink(&self.declared.links, now);
        let begin = Begin {
            cluster: cluster.into(),
            clusterset: "demo".into(),
            epoch: 1,
            clock: now.wall,
        };
        let records = records
            .into_iter()
            .map(|body| Event::Record(Box::new(received(body))));
        let events = [Event::Tunnel { gateways_up: 1 }, Event::Begin(begin)];
        for event in events.into_iter().chain(records).chain([Event::Complete]) {
            let decision = self.peers.handle(&id, event, now);
            assert_eq!(decision.hangup, None);
        }
    }

    fn plan(&mut self) -> Desired {
        let now = self.clock.now();
        self.high_water
            .observe(&listed(&self.declared, &self.workloads), now.instant);
        let peers = self.peers.view(now);
        self.seen.observe(&listed_by_peers(&peers), now.instant);
        let known = Known {
            own: &self.own,
            failback: FailbackConfig::default(),
            declared: &self.declared,
            workloads: &self.workloads,
            gateways: &self.gateways,
            peers: &peers,
            high_water: &self.high_water,
            seen: &self.seen,
        };
        plan(&known, now)
    }
}

fn remote_export(key: &str, ports: Vec<ServicePort>, age: u64) -> RecordBody {
    let capacity = vec![(Locality::default(), 3)];
    RecordBody::Export(Export {
        capacity,
        ..export(key, ports, age)
    })
}

fn remote_endpoint(cluster: &str, key: &str, uid: &str) -> RecordBody {
    RecordBody::Endpoint(endpoint(cluster, key, uid))
}

fn west_checkout() -> Vec<RecordBody> {
    vec![
        remote_export("shop/checkout", vec![port(80)], 50),
        remote_endpoint("west", "shop/checkout", "w1"),
        remote_endpoint("west", "shop/checkout", "w2"),
    ]
}

fn endpoints(desired: &Desired, key: &str) -> Vec<(String, bool)> {
    let endpoints = desired.services[&service(key)].endpoints.iter();
    endpoints
        .map(|e| (e.cluster.to_string(), e.address.is_some()))
        .collect()
}

fn clusters(service: &Service) -> Vec<(String, u32)> {
    let sum = |capacity: &ClusterCapacity| capacity.localities.iter().map(|(_, count)| count).sum();
    service
        .clusters
        .iter()
        .map(|(cluster, capacity)| (cluster.to_string(), sum(capacity)))
        .collect()
}

fn texts(conditions: &[Condition]) -> Vec<String> {
    conditions.iter().map(ToString::to_string).collect()
}

#[test]
fn an_own_service_has_the_endpoints_that_it_selects() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.register("e1", "checkout");
    world.register("x1", "other");
    let desired = world.plan();
    assert_eq!(
        endpoints(&desired, "shop/checkout"),
        [("east".into(), true)]
    );
    assert!(
        desired.imports.is_empty() && desired.exported.is_empty() && desired.outgoing.is_empty()
    );
}

#[test]
fn exports_of_all_clusters_become_one_service() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("e1", "checkout");
    world.link("west", west_checkout());
    let desired = world.plan();
    let all = [
        ("east".into(), true),
        ("west".into(), false),
        ("west".into(), false),
    ];
    assert_eq!(endpoints(&desired, "shop/checkout"), all);
    let service = &desired.services[&service("shop/checkout")];
    assert_eq!(clusters(service), [("east".into(), 1), ("west".into(), 3)]);
    assert_eq!(desired.imports[&service.key].clusters.len(), 2);
}

#[test]
fn a_service_that_we_do_not_export_stays_ours() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.register("e1", "checkout");
    world.link("west", west_checkout());
    let desired = world.plan();
    assert_eq!(
        endpoints(&desired, "shop/checkout"),
        [("east".into(), true)]
    );
    assert!(
        desired.imports.contains_key(&service("shop/checkout")),
        "the import is still shown"
    );
    assert_eq!(
        texts(&desired.import_conditions[&service("shop/checkout")]),
        [
            "Ready=False: OwnService (exported by west, but a Service `shop/checkout` is \
             declared here and not exported, so callers here reach only that; export it to \
             share it, or remove it)"
        ]
    );
}

#[test]
fn an_older_export_of_a_peer_takes_no_own_port_away() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("e1", "checkout");
    let records = vec![
        remote_export("shop/checkout", vec![port(8080)], 5_000),
        remote_endpoint("west", "shop/checkout", "w1"),
    ];
    world.link("west", records);
    let (key, address) = (service("shop/checkout"), "10.99.0.1".parse().unwrap());
    let ips = &mut world.declared.clusterset_ips;
    ips.insert(key.clone(), vec![address]);
    let desired = world.plan();
    let seen = &desired.services[&key];
    assert_eq!(seen.ports, [port(80)]);
    assert_eq!(desired.vips[&address].ports, [80]);
    assert_eq!(seen.clusters[&world.own.cluster].ports, [80]);
    assert_eq!(
        desired.imports[&key].ports,
        [port(8080)],
        "as everywhere else"
    );
    let conditions = texts(&desired.export_conditions[&key]);
    assert!(
        conditions[2].starts_with("Conflict=True: PortConflict"),
        "{conditions:?}"
    );
}

#[test]
fn a_service_that_only_peers_have_is_imported() {
    let mut world = World::new();
    world.link("west", west_checkout());
    let desired = world.plan();
    assert_eq!(endpoints(&desired, "shop/checkout").len(), 2);
    let conditions = &desired.import_conditions[&service("shop/checkout")];
    assert_eq!(texts(conditions), ["Ready=True: Ready (exported by west)"]);
}

#[test]
fn an_address_stands_for_its_service_also_while_nobody_exports_it() {
    let mut world = World::new();
    let address = "10.99.0.1".parse().unwrap();
    let ips = &mut world.declared.clusterset_ips;
    ips.insert(service("shop/checkout"), vec![address]);
    let vip = |ports: &[u16]| Vip {
        service: service("shop/checkout"),
        ports: ports.to_vec(),
    };
    assert_eq!(world.plan().vips[&address], vip(&[]));
    world.link("west", west_checkout());
    assert_eq!(world.plan().vips[&address], vip(&[80]));
}

#[test]
fn an_address_leads_to_no_service_that_is_not_exported() {
    let mut world = World::new();
    let address = "10.99.0.1".parse().unwrap();
    let ips = &mut world.declared.clusterset_ips;
    ips.insert(service("shop/checkout"), vec![address]);
    world.link("west", west_checkout());
    world.declare("shop/checkout", "checkout", 80);
    world.register("e1", "checkout");
    assert!(world.plan().vips[&address].ports.is_empty());
    world.export("shop/checkout");
    assert_eq!(world.plan().vips[&address].ports, [80]);
}

#[test]
fn endpoints_without_an_export_contribute_nothing() {
    let mut world = World::new();
    world.link("west", vec![remote_endpoint("west", "shop/checkout", "w1")]);
    assert!(world.plan().services.is_empty());
}

#[test]
fn a_peer_cannot_shadow_an_endpoint() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("same", "checkout");
    let records = vec![
        remote_export("shop/checkout", vec![port(80)], 50),
        remote_endpoint("west", "shop/checkout", "same"),
    ];
    world.link("west", records);
    assert_eq!(
        endpoints(&world.plan(), "shop/checkout"),
        [("east".into(), true)]
    );
}

#[test]
fn a_peer_cannot_shadow_another_peers_endpoint() {
    let mut world = World::new();
    for peer in ["mallory", "west"] {
        let records = vec![
            remote_export("shop/checkout", vec![port(80)], 50),
            remote_endpoint(peer, "shop/checkout", "same"),
        ];
        world.link(peer, records);
    }
    assert_eq!(
        endpoints(&world.plan(), "shop/checkout"),
        [("mallory".into(), false), ("west".into(), false)]
    );
}

#[test]
fn lost_endpoints_are_still_expected() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    for uid in ["e1", "e2", "e3"] {
        world.register(uid, "checkout");
    }
    world.plan();
    let now = world.clock.pass(Duration::from_secs(5)).instant;
    world.register("e1", "checkout");
    world.workloads.tick(now + Duration::from_secs(5));
    let desired = world.plan();
    assert_eq!(endpoints(&desired, "shop/checkout").len(), 1);
    assert_eq!(
        clusters(&desired.services[&service("shop/checkout")]),
        [("east".into(), 3)]
    );
}

#[test]
fn a_peer_cannot_claim_a_capacity_out_of_proportion() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    let mut claims = export("shop/checkout", vec![port(80)], 60);
    claims.capacity = vec![(Locality::default(), u32::MAX)];
    let records = vec![
        RecordBody::Export(claims),
        remote_endpoint("west", "shop/checkout", "w1"),
    ];
    world.link("west", records);
    for uid in 0..100 {
        world.register(&format!("e{uid}"), "checkout");
    }
    world.plan();
    let now = world.clock.pass(Duration::from_secs(5)).instant;
    world.workloads.tick(now + Duration::from_secs(5));
    let desired = world.plan();
    assert_eq!(
        clusters(&desired.services[&service("shop/checkout")]),
        [("east".into(), 100), ("west".into(), 4)],
        "what this cluster itself remembers is not cut"
    );
}

#[test]
fn workloads_learn_what_they_serve_and_for_whom() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.declare("shop/private", "checkout", 81);
    world.export("shop/checkout");
    world.register("e1", "checkout");
    world.register("x1", "other");
    world.link("west", vec![]);
    let inbound = world.plan().inbound;
    let served: Vec<_> = inbound["e1"]
        .iter()
        .map(|s| {
            (
                s.service.to_string(),
                s.ports[0].target_port,
                s.exported_to.len(),
            )
        })
        .collect();
    assert_eq!(
        served,
        [
            ("shop/checkout".into(), 9080, 1),
            ("shop/private".into(), 9081, 0)
        ]
    );
    assert!(inbound["x1"].is_empty());
}

#[test]
fn peers_and_gateways_learn_only_of_what_is_exported() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.declare("shop/private", "checkout", 81);
    world.export("shop/checkout");
    world.register("e1", "checkout");
    world.link("west", vec![]);
    let gateway = GatewayRegistration {
        replica: "g1".into(),
        egress_address: ([127, 0, 0, 1], 1).into(),
        tunnel_addresses: vec![Address {
            host: "10.0.0.1".into(),
            port: 15443,
        }],
        ready: true,
        draining: false,
        imports: None,
    };
    world
        .gateways
        .register(gateway, Session(1), world.clock.now().instant)
        .expect("good");
    let desired = world.plan();
    assert_eq!(
        desired
            .exported
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["shop/checkout"]
    );
    let exported = &desired.exported[&service("shop/checkout")];
    assert_eq!(
        (
            exported.ports.as_slice(),
            exported.peers.len(),
            exported.endpoints.len()
        ),
        (&[80][..], 1, 1)
    );
    let outgoing = desired.outgoing.values().next().expect("one peer");
    assert_eq!(outgoing.exports.len(), 1);
    assert!(
        outgoing
            .endpoints
            .values()
            .all(|told| told.endpoint.address.is_none() && told.hostname == "e1")
    );
    assert_eq!(outgoing.endpoints.len(), 1);
    assert_eq!(outgoing.gateways[0].host, "10.0.0.1");
}

#[test]
fn links_have_declared_addresses_before_announced_ones() {
    let mut world = World::new();
    let address = |host: &str| Address {
        host: host.into(),
        port: 1,
    };
    world.link(
        "west",
        vec![RecordBody::Gateways(vec![
            address("b"),
            address("a"),
            address("b"),
        ])],
    );
    world
        .declared
        .links
        .values_mut()
        .for_each(|link| link.addresses = vec![address("a")]);
    let _ = world.peers.relink(&world.declared.links, world.clock.now());
    let links = world.plan().links;
    let link = links.values().next().expect("one link");
    assert_eq!(link.addresses, [address("a"), address("b")]);
    assert!(link.usable && !link.stale);
}

#[test]
fn a_peer_whose_sync_merely_restarts_is_not_stale_for_policies() {
    let mut world = World::new();
    let records = vec![
        remote_export("shop/checkout", vec![port(80)], 60),
        remote_endpoint("west", "shop/checkout", "w1"),
    ];
    world.link("west", records);
    let (key, policy) = policy("shop/p", 1, serde_json::json!({"stalePeers": "exclude"}));
    world.declared.policies.insert(key, policy);
    let west: ClusterId = "west".parse().unwrap();
    let _ = world.peers.handle(&west, Event::Lost, world.clock.now());
    let excluded = |world: &mut World| {
        let service = Arc::clone(&world.plan().services[&service("shop/checkout")]);
        service.policy.as_ref().unwrap().excluded.contains(&west)
    };
    world.clock.pass(STALE_AFTER - Duration::from_secs(1));
    assert!(!excluded(&mut world));
    world.clock.pass(Duration::from_secs(1));
    assert!(excluded(&mut world));
}

#[test]
fn exports_say_what_became_of_them() {
    let mut world = World::new();
    world.export("shop/missing");
    world.export("shop/alias");
    world.export("shop/checkout");
    world.declare("shop/checkout", "checkout", 80);
    world.declare("shop/alias", "alias", 80);
    world
        .declared
        .services
        .get_mut(&service("shop/alias"))
        .expect("declared")
        .import_type = None;
    world.link(
        "west",
        vec![remote_export(
            "shop/checkout",
            vec![named_port("http", 80)],
            1,
        )],
    );
    let conditions = world.plan().export_conditions;
    let of = |key: &str| texts(&conditions[&service(key)]);
    assert!(of("shop/missing")[0].starts_with("Valid=False: NoService (there is no Service"));
    assert!(of("shop/alias")[0].starts_with("Valid=False: InvalidServiceType"));
    assert_eq!(
        of("shop/checkout")[..2],
        [
            "Valid=True: Valid",
            "Ready=True: Exported (offered to 1 linked cluster)"
        ]
    );
    assert!(
        of("shop/checkout")[2].starts_with("Conflict=True: PortConflict"),
        "{:?}",
        of("shop/checkout")
    );
}

#[test]
fn the_same_knowledge_gives_the_same_plan() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("e1", "checkout");
    world.link("west", west_checkout());
    assert_eq!(world.plan(), world.plan());
}

#[test]
fn an_unusable_peer_keeps_its_endpoints_and_says_so() {
    let mut world = World::new();
    world.link("west", west_checkout());
    let west: ClusterId = "west".parse().expect("valid");
    let _ = world
        .peers
        .handle(&west, Event::Tunnel { gateways_up: 0 }, world.clock.now());
    let desired = world.plan();
    assert_eq!(endpoints(&desired, "shop/checkout").len(), 2);
    assert!(!desired.links[&west].usable);
}

#[test]
fn unmeshed_clients_get_the_part_of_those_who_admit_them() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("checkout-1", "checkout");
    world.link("west", west_checkout());
    let key = service("shop/checkout");
    let part = |desired: &Desired| {
        let service = desired.services.get(&key).unwrap();
        crate::imports::admitting(service, desired)
    };
    let desired = world.plan();
    assert_eq!(part(&desired), None);
    assert!(!desired.inbound["checkout-1"][0].unmeshed_clients);
    let export = world.declared.exports.get_mut(&key).unwrap();
    export.unmeshed_clients = true;
    let desired = world.plan();
    let part = part(&desired).unwrap();
    let clusters: Vec<_> = part.clusters.keys().map(ClusterId::as_str).collect();
    assert_eq!(clusters, ["east"], "west has not said so");
    let east = |endpoint: &Arc<Endpoint>| endpoint.cluster.as_str() == "east";
    assert!(!part.endpoints.is_empty() && part.endpoints.iter().all(east));
    assert!(desired.inbound["checkout-1"][0].unmeshed_clients);
    // To callers who have a sidecar it makes no difference.
    assert_eq!(desired.services[&key].clusters.len(), 2);
}

#[test]
fn dns_names_imports_and_ready_headless_endpoints_of_this_cluster() {
    use crate::dns::{Answer, Asked, Data, Want};
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    let ip = std::net::IpAddr::from([10, 0, 0, 7]);
    let ips = BTreeMap::from([(service("shop/checkout"), vec![ip])]);
    world.declared.clusterset_ips = ips;
    world.declare("shop/db", "db", 5432);
    let db = world
        .declared
        .services
        .get_mut(&service("shop/db"))
        .unwrap();
    db.import_type = Some(ImportType::Headless);
    db.ports[0].service_port = named_port("sql", 5432);
    world.export("shop/db");
    world.register("db-0", "db");
    world.declare("shop/private", "private", 80);
    let remote = export("shop/db", vec![named_port("sql", 5432)], 50);
    let records = vec![
        RecordBody::Export(remote),
        RecordBody::Endpoint(endpoint("west", "shop/db", "db-1")),
    ];
    world.link("west", records);
    let zone = world.plan().zone;
    let ask = |name: &str, want| {
        let name = format!("{name}.shop.svc.clusterset.local");
        zone.answer(&Asked::parse(name.split('.').map(str::as_bytes)), want)
    };
    let address = |ip| Answer::Records(vec![Data::Address(ip)]);
    assert_eq!(ask("checkout", Want::A), address(ip));
    let own = std::net::IpAddr::from([127, 0, 0, 1]);
    assert_eq!(ask("db", Want::A), address(own));
    assert_eq!(ask("db-0.east.db", Want::A), address(own));
    // In this cluster nothing stands for an endpoint of another one.
    assert_eq!(ask("db-1.west.db", Want::A), Answer::NoName);
    // The port at which the application itself listens.
    let sql = Data::Service {
        port: 14_432,
        target: "db-0.east.db.shop.svc.clusterset.local".into(),
    };
    assert_eq!(ask("_sql._tcp.db", Want::Srv), Answer::Records(vec![sql]));
    assert_eq!(ask("private", Want::A), Answer::NoName);
    let db = world
        .declared
        .services
        .get_mut(&service("shop/db"))
        .unwrap();
    db.selector = BTreeMap::from([("app".into(), "nobody".into())]);
    let asked = Asked::Service(service("shop/db"), String::new());
    let answer = world.plan().zone.answer(&asked, Want::A);
    assert_eq!(answer, Answer::NoName, "nobody is ready");
}

/// A server without a sidecar at `shop/checkout`, by the UID of its pod.
fn server(uid: &str) -> DeclaredServer {
    DeclaredServer {
        id: EndpointId::from_uid(uid),
        ip: [10, 0, 0, 1].into(),
        ports: BTreeMap::new(),
        ready: true,
        terminating: false,
        locality: Locality::default(),
        hostname: String::new(),
        origin: String::new(),
    }
}

#[test]
fn who_has_registered_is_no_server_without_a_sidecar() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    world.register("checkout-1", "checkout");
    let key = service("shop/checkout");
    let servers = vec![server("checkout-1"), server("checkout-2")];
    world.declared.servers.insert(key.clone(), servers);
    let count = |desired: &Desired| {
        let unmeshed = desired.unmeshed.get(&key).map_or(0, |of| of.servers.len());
        (desired.services[&key].endpoints.len(), unmeshed)
    };
    assert_eq!(count(&world.plan()), (2, 1));
    // It does not become one while its sidecar is silent.
    world
        .workloads
        .disconnect("checkout-1", Session(1), world.clock.now().instant);
    let later = world.clock.pass(Duration::from_secs(11));
    assert!(world.workloads.tick(later.instant));
    assert_eq!(count(&world.plan()), (1, 1));
}

#[test]
fn a_replaced_server_is_not_missed() {
    let mut world = World::new();
    world.declare("shop/checkout", "checkout", 80);
    world.export("shop/checkout");
    let key = service("shop/checkout");
    let declare = |world: &mut World, servers: Vec<DeclaredServer>| {
        world.declared.servers.insert(key.clone(), servers);
        world.clock.pass(Duration::from_secs(1));
        let desired = world.plan();
        let own = &desired.services[&key].clusters[&own().cluster];
        own.localities.iter().map(|(_, count)| count).sum::<u32>()
    };
    let going = DeclaredServer {
        ready: false,
        terminating: true,
        ..server("a")
    };
    assert_eq!(declare(&mut world, vec![server("a")]), 1);
    declare(&mut world, vec![going, server("b")]);
    assert_eq!(declare(&mut world, vec![server("b")]), 1);
    // One that is merely not ready is.
    declare(&mut world, vec![server("b"), server("c")]);
    assert_eq!(declare(&mut world, vec![server("b")]), 2);
}

#[test]
fn what_is_refused_says_so_whether_or_not_something_of_it_is_in_force() {
    let mut world = World::new();
    for cluster in ["north", "west"] {
        world.link(cluster, Vec::new());
    }
    let name = |kind, namespace: &str, name: &str| (kind, namespace.to_owned(), name.to_owned());
    world.declared.refused = BTreeMap::from([
        (
            name("ClusterLink", "", "west"),
            "spec.bundle: no PEM".into(),
        ),
        (name("ClusterLink", "", "south"), "x".repeat(5_000)),
        (name("FailoverPolicy", "shop", "main"), "spec: odd".into()),
        (name("Service", "shop", "main"), "spec: odd".into()),
    ]);
    let generation = name("ClusterLink", "", "west");
    world.declared.generations.insert(generation.clone(), 3);
    let desired = world.plan();
    let texts = |of: &Vec<Condition>| of.iter().map(ToString::to_string).collect::<Vec<_>>();
    let link = |cluster: &str| texts(&desired.link_conditions[cluster]);
    assert_eq!(link("north")[0], "Accepted=True: Accepted");
    let west = link("west");
    assert_eq!(west[0], "Accepted=False: Invalid (spec.bundle: no PEM)");
    assert!(
        west[1].starts_with("Ready=True"),
        "what was good before: {west:?}"
    );
    let south = link("south");
    assert!(south[0].starts_with("Accepted=False: Invalid") && south[0].len() < 2_100);
    assert!(south[1].starts_with("Ready=False: Invalid"), "{south:?}");
    assert_eq!(desired.policy_conditions.len(), 1);
    let policy = texts(&desired.policy_conditions[&service("shop/main")]);
    assert_eq!(policy, ["Accepted=False: Invalid (spec: odd)"]);
    assert_eq!(desired.generations[&generation], 3);
}
