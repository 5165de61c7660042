use super::*;

#[test]
fn each_service_has_a_name_of_its_own_that_a_service_may_have() {
    let name = |key: &str| derived_name(&key.parse().expect("a key"));
    assert_eq!(name("shop/web"), name("shop/web"));
    assert_ne!(name("shop/web"), name("shop/api"));
    assert!(ServiceKey::new("shop", &name("shop/web")).is_ok());
}

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::declared::{Declared, DeclaredPort, DeclaredService};
use crate::direct::{DirectEndpoint, PodName};
use crate::gateways::{GatewayRegistration, Gateways, ImportListeners};
use crate::imports::ImportPort;
use crate::model::{
    Condition, ConditionStatus, Endpoint, Import, ImportType, Locality, Service, SessionAffinity,
    SpiffeId,
};
use crate::plan::{Desired, PlannedLink};
use crate::presence::Session;
use crate::testing::{endpoint, link, own, port, service};

const KEY: &str = "shop/web";
/// What stands for port 80 at gateways.
const LISTEN: u16 = 16_000;

/// `shop/web`, exported here and in west, with pods and gateways.
struct World {
    deriver: Deriver,
    start: Instant,
    declared: Declared,
    desired: Desired,
    gateways: Vec<GatewayRegistration>,
}

fn pod(number: u8, ready: bool) -> DirectEndpoint {
    let uid = format!("pod-{number}");
    DirectEndpoint {
        entry: Entry {
            ip: [10, 0, 0, number].into(),
            ready,
            serving: ready,
            terminating: false,
            hostname: None,
            node: None,
            zone: None,
            pod: Some(PodName {
                name: uid.clone(),
                uid,
            }),
        },
        ports: [(String::new(), 8080)].into(),
    }
}

fn gateway(number: u8) -> GatewayRegistration {
    GatewayRegistration {
        replica: format!("g{number}"),
        egress_address: ([10, 1, 0, number], 15_444).into(),
        tunnel_addresses: Vec::new(),
        ready: true,
        draining: false,
        imports: Some(ImportListeners {
            address: [10, 1, 0, number].into(),
            open: [LISTEN].into(),
            failed: BTreeSet::new(),
        }),
    }
}

impl World {
    /// Everybody admits everybody.
    fn new() -> Self {
        let key = service(KEY);
        let capacity = || crate::model::ClusterCapacity {
            localities: vec![(Locality::default(), 2)],
            ports: vec![80],
        };
        let clusters: BTreeMap<ClusterId, _> = ["east", "west"]
            .map(|id| (id.parse().expect("an id"), capacity()))
            .into();
        let declared_service = DeclaredService {
            key: key.clone(),
            selector: [("app".to_owned(), "web".to_owned())].into(),
            ports: vec![DeclaredPort {
                service_port: port(80),
                target_port: 8080,
            }],
            import_type: Some(ImportType::ClusterSetIP),
            session_affinity: SessionAffinity::None,
        };
        let import = Import {
            service: key.clone(),
            ports: vec![port(80)],
            import_type: ImportType::ClusterSetIP,
            session_affinity: SessionAffinity::None,
            unmeshed_clients: clusters.keys().cloned().collect(),
            clusters,
        };
        let west = link("west");
        let planned = PlannedLink {
            addresses: Vec::new(),
            bundle: west.bundle.clone(),
            usable: true,
            up: true,
            stale: false,
            link: Arc::new(west),
        };
        let ready = Condition::new("Ready", ConditionStatus::True, "Ready", "exported");
        let ips = vec![[10, 9, 0, 1].into()];
        let mut world = Self {
            deriver: Deriver::new(&own(), Locality::default()),
            start: Instant::now(),
            declared: Declared {
                services: [(key.clone(), declared_service)].into(),
                clusterset_ips: [(key.clone(), ips)].into(),
                ..Declared::default()
            },
            desired: Desired {
                imports: [(key.clone(), import)].into(),
                import_ports: [(
                    ImportPort {
                        service: key.clone(),
                        port: 80,
                    },
                    LISTEN,
                )]
                .into(),
                import_conditions: [(key, vec![ready])].into(),
                links: [(planned.link.cluster.clone(), planned)].into(),
                ..Desired::default()
            },
            gateways: vec![gateway(1), gateway(2)],
        };
        world.pods(&[true, true], 2);
        world
    }

    fn import(&mut self) -> &mut Import {
        let import = self.desired.imports.get_mut(&service(KEY));
        import.expect("there is one")
    }

    /// Pods here, and ready ones in west.
    fn pods(&mut self, here: &[bool], west: usize) {
        let key = service(KEY);
        let numbered = here.iter().zip(1..);
        let pods: Vec<_> = numbered
            .map(|(ready, number)| pod(number, *ready))
            .collect();
        let identity = SpiffeId::unmeshed_server(&own().trust_domain);
        let ours = pods.iter().map(|pod| Endpoint {
            id: crate::model::EndpointId::from_uid(&pod.entry.pod.as_ref().expect("a pod").uid),
            cluster: own().cluster,
            identity: identity.clone(),
            ready: pod.entry.ready,
            address: None,
            ..(*endpoint("east", KEY, "x").endpoint).clone()
        });
        let theirs = (0..west).map(|n| (*endpoint("west", KEY, &format!("w{n}")).endpoint).clone());
        let of = Service {
            key: key.clone(),
            ports: vec![port(80)],
            clusters: self.import().clusters.clone(),
            endpoints: ours.chain(theirs).map(Arc::new).collect(),
            failback: Default::default(),
            policy: None,
            drained: BTreeSet::new(),
        };
        self.desired.services.insert(key.clone(), Arc::new(of));
        self.declared.direct.insert(key, pods);
    }

    /// After so many seconds.
    fn derive(&mut self, seconds: u64) -> Derived {
        let now = self.start + Duration::from_secs(seconds);
        let mut gateways = Gateways::new();
        for gateway in &self.gateways {
            gateways
                .register(gateway.clone(), Session(1), now)
                .expect("good");
        }
        let mut desired = self.desired.clone();
        self.deriver
            .derive(&mut desired, &self.declared, &gateways, now);
        let condition = desired.import_conditions[&service(KEY)][0].clone();
        self.desired.import_conditions = desired.import_conditions.clone();
        self.desired
            .import_conditions
            .insert(service(KEY), vec![condition]);
        desired.derived[&service(KEY)].clone()
    }
}

/// How many entries are ready: our own, and those of west.
fn ready(derived: &Derived) -> (usize, usize) {
    let of = |remote: bool| {
        let slices = derived.slices.values().filter(|of| of.remote == remote);
        let entries = slices.flat_map(|of| &of.entries);
        entries.filter(|entry| entry.ready).count()
    };
    (of(false), of(true))
}

#[test]
fn a_healthy_home_keeps_its_calls() {
    let mut world = World::new();
    let derived = world.derive(0);
    assert_eq!(ready(&derived), (2, 0));
    assert_eq!(derived.ips, [IpAddr::from([10, 9, 0, 1])]);
    let of: Vec<_> = derived
        .slices
        .iter()
        .map(|(key, of)| (key.cluster.as_str(), key.target, of.entries.len()))
        .collect();
    assert_eq!(of, [("east", 8080, 2), ("west", LISTEN, 2)]);
}

#[test]
fn without_pods_at_home_gateways_lead_away_until_home_has_been_back_for_a_while() {
    let mut world = World::new();
    world.derive(0);
    for gone in [&[][..], &[false, false]] {
        world.pods(gone, 2);
        assert_eq!(ready(&world.derive(1)), (0, 2));
    }
    world.pods(&[true, true], 2);
    // Held back as for everybody else, and led by gateways alone while it comes back by and by.
    for seconds in [20, 45, 60, 75] {
        assert_eq!(ready(&world.derive(seconds)), (0, 2), "after {seconds} s");
    }
    assert_eq!(ready(&world.derive(85)), (2, 0));
}

/// A pod that terminates is listed until it is gone.
#[test]
fn a_replaced_pod_is_back_no_sooner() {
    let mut world = World::new();
    let own = own().cluster;
    let expect = |world: &mut World, count| {
        let capacity = world.import().clusters.get_mut(&own).expect("ours");
        capacity.localities[0].1 = count;
    };
    expect(&mut world, 1);
    world.pods(&[true], 2);
    assert_eq!(ready(&world.derive(0)), (1, 0));
    world.pods(&[false], 2);
    assert_eq!(ready(&world.derive(1)), (0, 2));
    expect(&mut world, 2);
    world.pods(&[false, true], 2);
    for seconds in [5, 20, 34] {
        assert_eq!(ready(&world.derive(seconds)), (0, 2), "after {seconds} s");
    }
    expect(&mut world, 1);
    world.pods(&[true], 2);
    assert_eq!(ready(&world.derive(36)), (0, 2));
    assert_eq!(ready(&world.derive(100)), (1, 0));
}

#[test]
fn shares_are_kept_by_gateways_alone_where_they_may_lead_home() {
    let mut world = World::new();
    world.pods(&[true, false], 2);
    assert_eq!(ready(&world.derive(0)), (0, 2));
    // They may not, as our own export does not admit them.
    let mut world = World::new();
    world.pods(&[true, false], 2);
    let own = own().cluster;
    world.import().unmeshed_clients.remove(&own);
    assert_eq!(ready(&world.derive(0)), (1, 2));
}

#[test]
fn a_gateway_is_ready_once_it_has_the_port_open_and_until_it_drains() {
    let mut world = World::new();
    world.pods(&[], 2);
    let imports = world.gateways[0].imports.as_mut().expect("it has");
    imports.open.clear();
    assert_eq!(ready(&world.derive(0)), (0, 1));
    world.gateways[1].draining = true;
    let derived = world.derive(1);
    assert_eq!(ready(&derived), (0, 0));
    let mut entries = derived.slices.values().flat_map(|of| &of.entries);
    assert!(entries.any(|of| of.terminating && of.serving));
    // Nobody leads away, so what there is at home is tried.
    world.pods(&[true, false], 2);
    assert_eq!(ready(&world.derive(2)), (1, 0));
    // No number stands for the import yet.
    world.desired.import_ports.clear();
    assert_eq!(world.derive(3).slices.len(), 1);
}

#[test]
fn pods_that_only_the_cluster_knows_count_at_home() {
    let mut world = World::new();
    let own = own().cluster;
    let capacity = world.import().clusters.get_mut(&own);
    capacity.expect("ours").localities.clear();
    world.pods(&[], 2);
    world
        .declared
        .direct
        .insert(service(KEY), vec![pod(7, true), pod(8, true)]);
    assert_eq!(ready(&world.derive(0)), (2, 0));
}

#[test]
fn who_denies_such_callers_gets_no_slice_and_that_is_said() {
    let mut world = World::new();
    world.pods(&[], 2);
    world.import().unmeshed_clients.clear();
    assert!(world.derive(0).slices.is_empty());
    let told = world.desired.import_conditions[&service(KEY)][0].clone();
    assert_eq!(told.status, ConditionStatus::True, "sidecars reach it");
    assert!(
        told.message
            .contains("reach nothing of west: there they are denied"),
        "{}",
        told.message
    );
}

/// It only has to claim to be older.
#[test]
fn a_peer_takes_no_port_of_ours_from_the_address() {
    let mut world = World::new();
    let own = own().cluster;
    let import = world.import();
    import.ports = vec![port(8080)];
    for (cluster, of) in &mut import.clusters {
        of.ports = if *cluster == own { vec![] } else { vec![8080] };
    }
    let derived = world.derive(0);
    assert_eq!(derived.ports, [port(80)]);
    assert!(derived.slices.keys().all(|of| of.port == 80));
    assert_eq!(ready(&derived).0, 2);
}

#[test]
fn an_import_without_an_address_is_pending() {
    let mut world = World::new();
    world.declared.clusterset_ips.clear();
    world.derive(0);
    let told = world.desired.import_conditions[&service(KEY)][0].clone();
    assert_eq!(told.status, ConditionStatus::False);
    assert_eq!(told.reason, "Pending");
    assert!(told.message.contains("no address yet"), "{}", told.message);
}

#[test]
fn a_service_that_is_not_shared_stands_before_the_import() {
    let mut world = World::new();
    let own = own().cluster;
    world.import().clusters.remove(&own);
    let derived = world.derive(0);
    assert!(derived.slices.is_empty());
    assert!(!derived.ips.is_empty(), "its address is for life");
}

#[test]
fn what_led_somewhere_goes_on_to_while_removals_are_held() {
    let mut world = World::new();
    world.pods(&[], 2);
    let before = world.derive(0);
    let (_, west) = before
        .slices
        .iter()
        .find(|(_, of)| of.remote)
        .expect("west");
    // After a restart one gateway is back, and no peer is usable yet.
    world.gateways.remove(0);
    let links = world.desired.links.values_mut();
    links.for_each(|link| link.usable = false);
    let after = world.derive(1);
    let (_, now) = after.slices.iter().find(|(_, of)| of.remote).expect("west");
    assert_eq!(ready(&after), (0, 0));
    let kept = held(&west.entries, now);
    assert_eq!(kept.entries, west.entries);
    // One that says that it goes is believed.
    world.gateways[0].draining = true;
    let after = world.derive(2);
    let (_, now) = after.slices.iter().find(|(_, of)| of.remote).expect("west");
    let kept = held(&west.entries, now);
    let ready: Vec<_> = kept.entries.iter().map(|of| of.ready).collect();
    assert_eq!(ready, [true, false]);
    // Our own pods are known at once.
    let of = |ready| Slice {
        remote: false,
        entries: vec![pod(1, ready).entry],
        ..now.clone()
    };
    let was = [pod(1, true).entry, pod(2, true).entry];
    assert_eq!(held(&was, &of(false)), of(false));
}

#[test]
fn ports_have_names_where_there_are_several() {
    let mut world = World::new();
    let ports = &mut world.import().ports;
    assert_eq!(port_names(ports), [(80, Arc::from(""))].into());
    ports.push(crate::testing::named_port("admin", 81));
    let expected = [(80, Arc::from("linkspan-80")), (81, Arc::from("admin"))];
    assert_eq!(port_names(ports), expected.into());
}

/// A cluster beside west, with so many pods.
fn add_south(world: &mut World, pods: usize) {
    let south: ClusterId = "south".parse().expect("an id");
    let import = world.import();
    let capacity = import.clusters[&"west".parse::<ClusterId>().expect("an id")].clone();
    import.clusters.insert(south.clone(), capacity.clone());
    import.unmeshed_clients.insert(south.clone());
    let planned = world.desired.links.values().next().expect("west").clone();
    world.desired.links.insert(south.clone(), planned);
    let service = world.desired.services.get_mut(&service(KEY));
    let service = Arc::make_mut(service.expect("there is one"));
    service.clusters.insert(south, capacity);
    let pods = (0..pods).map(|n| (*endpoint("south", KEY, &format!("s{n}")).endpoint).clone());
    service.endpoints.extend(pods.map(Arc::new));
}

/// Service port, address and the port there.
type At = (u16, IpAddr, u16);
/// Ready, serving, terminating.
type Conditions = (bool, bool, bool);

/// What is said of each address of each port, one way or several.
fn said(derived: &Derived) -> BTreeMap<At, BTreeSet<Conditions>> {
    let mut said: BTreeMap<At, BTreeSet<Conditions>> = BTreeMap::new();
    for (key, slice) in &derived.slices {
        for entry in &slice.entries {
            let conditions = (entry.ready, entry.serving, entry.terminating);
            let at = said.entry((key.port, entry.ip, key.target));
            at.or_default().insert(conditions);
        }
    }
    said
}

#[test]
fn a_gateway_is_ready_in_the_slices_of_all_clusters_once_one_has_a_share() {
    let mut world = World::new();
    world.pods(&[], 2);
    add_south(&mut world, 0);
    let derived = world.derive(0);
    assert_eq!(ready(&derived), (0, 4), "two gateways in two slices");
    assert!(said(&derived).values().all(|ways| ways.len() == 1));
}

proptest! {
    /// Whatever becomes of whom: nobody is led to what is not ready, nor counted twice.
    #[test]
    fn entries_are_ready_only_for_a_reason(
        moments in proptest::collection::vec(
            (proptest::collection::vec(any::<bool>(), 0..4), 0_usize..3,
             proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..3),
             any::<bool>(), 0_u64..40),
            1..12,
        ),
        own_admits: bool,
    ) {
        let mut world = World::new();
        let own = own().cluster;
        if !own_admits {
            world.import().unmeshed_clients.remove(&own);
        }
        let mut seconds = 0;
        for (here, west, gateways, usable, after) in moments {
            seconds += after;
            world.pods(&here, west);
            let numbered = gateways.iter().zip(1..);
            world.gateways = numbered.map(|((up, draining, open), number)| {
                let mut of = gateway(number);
                (of.ready, of.draining) = (*up, *draining);
                if !open {
                    of.imports.as_mut().expect("it has").open.clear();
                }
                of
            }).collect();
            let links = world.desired.links.values_mut();
            links.for_each(|link| link.usable = usable);
            let derived = world.derive(seconds);
            let (home, away) = ready(&derived);
            let fit = gateways.iter().filter(|(up, draining, open)| *up && !draining && *open);
            let (fit, pods) = (fit.count(), here.iter().filter(|ready| **ready).count());
            prop_assert!(home == 0 || home == pods);
            prop_assert!(away == 0 || away == fit);
            prop_assert!(away == 0 || usable && west > 0);
            prop_assert!(!own_admits || home == 0 || away == 0);
            // Whoever can be reached is.
            prop_assert!(home + away > 0 || pods == 0 && (fit == 0 || !usable || west == 0));
        }
    }

    /// Proxies join the slices of all clusters, in any order.
    #[test]
    fn of_one_address_all_slices_say_the_same(
        here in proptest::collection::vec(any::<bool>(), 0..3),
        (west, south) in (0_usize..3, 0_usize..3),
        gateways in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..3),
        usable in proptest::array::uniform2(any::<bool>()),
        admits in proptest::array::uniform3(any::<bool>()),
    ) {
        let mut world = World::new();
        world.pods(&here, west);
        add_south(&mut world, south);
        let numbered = gateways.iter().zip(1..);
        world.gateways = numbered.map(|((up, draining, open), number)| {
            let mut of = gateway(number);
            (of.ready, of.draining) = (*up, *draining);
            if !open {
                of.imports.as_mut().expect("it has").open.clear();
            }
            of
        }).collect();
        let links = world.desired.links.values_mut();
        links.zip(usable).for_each(|(link, usable)| link.usable = usable);
        let mut admits = admits.into_iter();
        world.import().unmeshed_clients.retain(|_| admits.next().expect("one for each"));
        for (address, ways) in said(&world.derive(0)) {
            prop_assert!(ways.len() == 1, "{address:?}: {ways:?}");
        }
    }
}
