use std::time::SystemTime;

use super::*;
use crate::declared::{Links, Sourced, assemble};
use crate::testing::{own, service};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\n\
    spec: {ports: [{name: web, port: 80, targetPort: 8080}, {name: admin, port: 81}]}\n";

fn slice(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  \
         namespace: shop\n  labels: {{kubernetes.io/service-name: a, \
         topology.kubernetes.io/region: eu}}\naddressType: IPv4\n{rest}\n"
    )
}

fn declared(text: &str) -> Declared {
    let objects = linkspan_resources::parse_documents("a.yaml", text).expect("well-formed");
    let sourced = objects.into_iter().map(|object| Sourced {
        object,
        origin: "a.yaml".to_owned(),
        created: SystemTime::UNIX_EPOCH,
    });
    let mut declared = assemble(&own(), &Links::new(), sourced);
    leave_out_unserved(&mut declared);
    declared
}

#[test]
fn a_slice_tells_where_servers_listen_for_each_port() {
    let text = SERVICE.to_owned()
        + &slice(
            "named",
            "endpoints: [{addresses: [10.0.0.1], zone: b}]\n\
             ports: [{name: web, port: 9001}, {name: admin, port: 9002}]",
        )
        + &slice(
            "plain",
            "endpoints: [{addresses: [10.0.0.2], conditions: {ready: false}}]",
        );
    let declared = declared(&text);
    assert!(declared.problems.is_empty(), "{:?}", declared.problems);
    let key = service("shop/a");
    let [named, plain] = declared.servers_of(&key) else {
        panic!("{:?}", declared.servers);
    };
    let of = &declared.services[&key];
    let at = |text: &str| text.parse().expect("an address");
    let expected = [(80, at("10.0.0.1:9001")), (81, at("10.0.0.1:9002"))];
    assert_eq!(named.addresses(of), expected.into());
    let expected = [(80, at("10.0.0.2:8080")), (81, at("10.0.0.2:81"))];
    assert_eq!(plain.addresses(of), expected.into());
    assert!(named.ready && !plain.ready);
    assert_eq!(
        (&*named.locality.region, &*named.locality.zone),
        ("eu", "b")
    );
    assert_ne!(named.id, plain.id);
    let endpoint = named.endpoint(&own());
    assert_eq!(endpoint.address, None, "gateways lead there");
    let identity = SpiffeId::unmeshed_server(&own().trust_domain);
    assert_eq!(endpoint.identity, identity);
}

#[test]
fn servers_of_nothing_and_servers_that_lack_a_port_are_left_out() {
    let one = "endpoints: [{addresses: [10.0.0.1]}]\nports: [{name: web, port: 9001}]";
    for (text, words) in [
        (SERVICE.to_owned() + &slice("one", one), "port 81"),
        (slice("one", one), "there is no such Service"),
    ] {
        let declared = declared(&text);
        assert!(declared.servers.is_empty());
        assert_eq!(declared.problems.len(), 1, "{:?}", declared.problems);
        assert!(
            declared.problems[0].contains(words),
            "{:?}",
            declared.problems
        );
    }
}

#[test]
fn a_server_is_listed_once() {
    let one = "endpoints: [{addresses: [10.0.0.1]}]";
    let declared = declared(&(SERVICE.to_owned() + &slice("one", one) + &slice("two", one)));
    assert_eq!(declared.servers_of(&service("shop/a")).len(), 1);
    assert!(
        declared.problems[0].contains("already"),
        "{:?}",
        declared.problems
    );
}

#[test]
fn no_workload_can_have_the_id_of_a_server() {
    let text = SERVICE.to_owned() + &slice("one", "endpoints: [{addresses: [10.0.0.1]}]");
    let declared = declared(&text);
    let server = &declared.servers_of(&service("shop/a"))[0];
    let uid = "shop/a@10.0.0.1:";
    assert_ne!(server.id, EndpointId::from_uid(uid));
    assert_eq!(server.id, EndpointId::from_uid(&format!("\0{uid}")));
}

#[test]
fn a_slice_is_good_by_itself() {
    let text = slice("one", "endpoints: [{addresses: [10.0.0.1]}]");
    let objects = linkspan_resources::parse_documents("a.yaml", &text).expect("well-formed");
    let sourced = objects.into_iter().map(|object| Sourced {
        object,
        origin: "a.yaml".to_owned(),
        created: SystemTime::UNIX_EPOCH,
    });
    let declared = assemble(&own(), &Links::new(), sourced);
    assert!(declared.problems.is_empty(), "{:?}", declared.problems);
}
