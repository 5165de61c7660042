//! The names of the MCS API, one by one.

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name).unwrap()
}

fn port(name: &str, number: u16) -> Port {
    Port {
        name: name.into(),
        number,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn zone() -> Zone {
    let host = |addresses: &[&str]| Host {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: vec![port("sql", 5432)],
    };
    let mut zone = Zone::default();
    zone.insert(
        key("checkout"),
        Entry::ClusterSetIP {
            addresses: vec![ip("10.0.0.7"), ip("fd00::7")],
            ports: vec![port("http", 80)],
        },
    );
    zone.insert(
        key("young"),
        Entry::ClusterSetIP {
            addresses: vec![],
            ports: vec![port("http", 80)],
        },
    );
    zone.insert(
        key("db"),
        Entry::Headless(BTreeMap::from([
            ("db-0.east".to_owned(), host(&["10.1.0.1"])),
            ("db-1.east".to_owned(), host(&["10.1.0.2", "fd01::2"])),
            ("db-0.west.eu".to_owned(), host(&["10.1.0.3"])),
        ])),
    );
    zone.insert(key("down"), Entry::Headless(BTreeMap::new()));
    zone
}

fn ask(name: &str, want: Want) -> Answer {
    let name = format!("{name}.clusterset.local");
    let labels = name.split('.').filter(|label| !label.is_empty());
    zone().answer(&Asked::parse(labels.map(str::as_bytes)), want)
}

fn found(addresses: &[&str]) -> Answer {
    Answer::Records(
        addresses
            .iter()
            .map(|text| Data::Address(ip(text)))
            .collect(),
    )
}

fn served(by: &[(&str, u16)]) -> Answer {
    let record = |(target, port): &(&str, u16)| Data::Service {
        port: *port,
        target: format!("{target}.shop.svc.clusterset.local"),
    };
    Answer::Records(by.iter().map(record).collect())
}

#[test]
fn a_service_has_its_clusterset_ips() {
    assert_eq!(ask("checkout.shop.svc", Want::A), found(&["10.0.0.7"]));
    assert_eq!(ask("checkout.shop.svc", Want::Aaaa), found(&["fd00::7"]));
    assert_eq!(ask("checkout.shop.svc", Want::Txt), Answer::NoData);
    assert_eq!(ask("unknown.shop.svc", Want::A), Answer::NoName);
}

#[test]
fn a_service_without_addresses_yet_has_a_name_and_no_records() {
    assert_eq!(ask("young.shop.svc", Want::A), Answer::NoData);
    assert_eq!(ask("_http._tcp.young.shop.svc", Want::Srv), Answer::NoName);
    assert_eq!(ask("_tcp.young.shop.svc", Want::Srv), Answer::NoName);
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    let all = found(&["10.1.0.1", "10.1.0.3", "10.1.0.2"]);
    assert_eq!(ask("db.shop.svc", Want::A), all);
    assert_eq!(ask("db.shop.svc", Want::Aaaa), found(&["fd01::2"]));
    assert_eq!(ask("down.shop.svc", Want::A), Answer::NoName);
    assert_eq!(ask("down.shop.svc", Want::Txt), Answer::NoName);
}

#[test]
fn an_endpoint_has_a_name_with_its_cluster() {
    assert_eq!(ask("db-1.east.db.shop.svc", Want::A), found(&["10.1.0.2"]));
    assert_eq!(
        ask("db-0.west.eu.db.shop.svc", Want::A),
        found(&["10.1.0.3"])
    );
    assert_eq!(ask("db-0.east.db.shop.svc", Want::Aaaa), Answer::NoData);
    assert_eq!(ask("db-2.east.db.shop.svc", Want::A), Answer::NoName);
}

#[test]
fn a_cluster_by_itself_is_never_served() {
    for want in [Want::A, Want::Aaaa, Want::Srv] {
        assert_eq!(ask("east.checkout.shop.svc", want), Answer::NoName);
        assert_eq!(ask("east.db.shop.svc", want), Answer::NoData);
        assert_eq!(ask("eu.db.shop.svc", want), Answer::NoData);
        assert_eq!(ask("ast.db.shop.svc", want), Answer::NoName);
        assert_eq!(ask("north.db.shop.svc", want), Answer::NoName);
    }
}

#[test]
fn named_ports_have_srv_records() {
    let own = served(&[("checkout", 80)]);
    assert_eq!(ask("_http._tcp.checkout.shop.svc", Want::Srv), own);
    assert_eq!(ask("_HTTP._TCP.checkout.shop.svc", Want::Srv), own);
    let each = served(&[
        ("db-0.east.db", 5432),
        ("db-0.west.eu.db", 5432),
        ("db-1.east.db", 5432),
    ]);
    assert_eq!(ask("_sql._tcp.db.shop.svc", Want::Srv), each);
    assert_eq!(ask("_sql._tcp.db.shop.svc", Want::A), Answer::NoData);
    assert_eq!(ask("_tcp.db.shop.svc", Want::Srv), Answer::NoData);
    for absent in [
        "_sql._udp.db",
        "_web._tcp.db",
        "_udp.db",
        "_a._http._tcp.checkout",
    ] {
        let name = format!("{absent}.shop.svc");
        assert_eq!(ask(&name, Want::Srv), Answer::NoName, "{name}");
    }
}

#[test]
fn what_is_above_services_has_names_only() {
    assert_eq!(ask("", Want::Soa), Answer::Records(vec![Data::Authority]));
    for name in ["", "svc", "shop.svc"] {
        assert_eq!(ask(name, Want::A), Answer::NoData, "{name}");
    }
    assert_eq!(ask("bank.svc", Want::A), Answer::NoName);
    let version = Answer::Records(vec![Data::Text("1.0.0")]);
    assert_eq!(ask("dns-version", Want::Txt), version);
    assert_eq!(ask("dns-version", Want::A), Answer::NoData);
}

#[test]
fn other_zones_are_not_ours() {
    for name in ["example.org", "checkout.shop.svc.cluster.local", "local"] {
        let asked = Asked::parse(name.split('.').map(str::as_bytes));
        assert_eq!(zone().answer(&asked, Want::A), Answer::Refused, "{name}");
    }
}

#[test]
fn answers_are_bounded() {
    let hosts = (0..1000u16).map(|n| {
        let host = Host {
            addresses: vec![IpAddr::from([10, 2, (n >> 8) as u8, n as u8])],
            ports: vec![port("sql", n)],
        };
        (format!("db-{n:04}.east"), host)
    });
    let mut zone = Zone::default();
    zone.insert(key("big"), Entry::Headless(hosts.collect()));
    let service = |below: &str| Asked::Service(key("big"), below.to_owned());
    for (below, want) in [("", Want::A), ("_sql._tcp", Want::Srv)] {
        let Answer::Records(records) = zone.answer(&service(below), want) else {
            panic!("{below:?} has records");
        };
        assert_eq!(records.len(), MAX_RECORDS);
    }
    // Those that are not in it can be asked for.
    let last = zone.answer(&service("db-0999.east"), Want::A);
    assert_eq!(last, found(&["10.2.3.231"]));
}

#[test]
fn hosts_are_named_by_what_is_one_label_and_fits() {
    let (east, db) = ("east".parse().unwrap(), key("db"));
    let name = |hostname| host_name(hostname, "abc", &east, &db);
    assert_eq!(name("db-0").as_deref(), Some("db-0.east"));
    for odd in ["", "DB", "db.example", "-"] {
        assert_eq!(name(odd).as_deref(), Some("abc.east"));
    }
    let long: ClusterId = vec!["a".repeat(60); 4].join(".").parse().unwrap();
    assert_eq!(host_name("db-0", "abc", &long, &db), None);
}
