//! The server as resolvers see it, and as those who mean it no good do.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use linkspan_core::{
    ServiceKey,
    dns::{Entry, Host, Port},
};
use prometheus::Registry;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    message::{Transport, answer, ask_by_tcp},
    *,
};
use crate::testing::soon;

/// More hosts than there are addresses of in one packet.
const MANY: u8 = 150;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name).unwrap()
}

fn port(name: &str, number: u16) -> Port {
    let name = name.into();
    Port { name, number }
}

fn zone() -> Zone {
    let mut zone = Zone::default();
    let checkout = Entry::ClusterSetIP {
        addresses: vec![IpAddr::from([10, 0, 0, 7])],
        ports: vec![port("http", 80)],
    };
    zone.insert(key("checkout"), checkout);
    let host = |n: u8| {
        let host = Host {
            addresses: vec![IpAddr::from([10, 1, 0, n])],
            ports: vec![port("sql", 5432)],
        };
        (format!("db-{n}.east"), host)
    };
    zone.insert(key("db"), Entry::Headless((0..MANY).map(host).collect()));
    zone
}

struct Server {
    address: SocketAddr,
    zones: watch::Sender<Newest>,
    metrics: DnsMetrics,
    stop: Stop,
    task: JoinHandle<()>,
}

async fn server() -> Server {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sockets = Sockets::bind(any).await.unwrap();
    let (zones, newest) = watch::channel(Some(Arc::new(zone())));
    let metrics = DnsMetrics::register(&Registry::new()).unwrap();
    let stop = Stop::new();
    Server {
        address: sockets.address,
        zones,
        task: tokio::spawn(sockets.serve(newest, metrics.clone(), stop.clone())),
        metrics,
        stop,
    }
}

impl Server {
    async fn stop(self) {
        self.stop.drain();
        soon("the end", self.task).await.unwrap();
    }

    fn resolver(&self, connections: &[ConnectionConfig]) -> TokioResolver {
        let connections = connections.iter().map(|connection| {
            let mut connection = connection.clone();
            connection.port = self.address.port();
            connection
        });
        let server = NameServerConfig::new(self.address.ip(), true, connections.collect());
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        let options = builder.options_mut();
        options.cache_size = 0;
        options.case_randomization = true;
        options.attempts = 0;
        builder.build().unwrap()
    }

    /// One packet and the answer to it.
    async fn exchange(&self, packet: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(packet, self.address).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = soon("an answer", socket.recv(&mut buffer)).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }
}

async fn look(
    resolver: &TokioResolver,
    name: &str,
    of: RecordType,
) -> Result<Vec<RData>, NetError> {
    let found = soon("a look-up", resolver.lookup(format!("{name}."), of)).await?;
    let answers = found.answers().iter();
    Ok(answers.map(|record| record.data.clone()).collect())
}

#[tokio::test]
async fn a_resolver_finds_services_over_udp_and_tcp() {
    let server = server().await;
    for way in [ConnectionConfig::udp(), ConnectionConfig::tcp()] {
        let resolver = server.resolver(&[way]);
        let name = "checkout.shop.svc.clusterset.local";
        let found = look(&resolver, name, RecordType::A).await.unwrap();
        assert_eq!(
            found,
            [RData::A(std::net::Ipv4Addr::new(10, 0, 0, 7).into())]
        );
        let port = "_http._tcp.checkout.shop.svc.clusterset.local";
        let found = look(&resolver, port, RecordType::SRV).await.unwrap();
        let [RData::SRV(record)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(
            (record.port, record.target.to_ascii()),
            (80, format!("{name}."))
        );
        let version = look(&resolver, "dns-version.clusterset.local", RecordType::TXT).await;
        assert_eq!(version.unwrap()[0].to_string(), "1.0.0");

        let unknown = "unknown.shop.svc.clusterset.local";
        let absent = look(&resolver, unknown, RecordType::A).await.unwrap_err();
        assert!(absent.is_nx_domain(), "{absent}");
        let no_ipv6 = look(&resolver, name, RecordType::AAAA).await.unwrap_err();
        assert!(
            no_ipv6.is_no_records_found() && !no_ipv6.is_nx_domain(),
            "{no_ipv6}"
        );
        assert!(look(&resolver, "example.org", RecordType::A).await.is_err());
    }
    assert!(server.metrics.udp.answered(0).get() >= 3);
    assert!(server.metrics.tcp.answered(0).get() >= 3);
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_a_packet_is_had_over_tcp() {
    let server = server().await;
    let resolver = server.resolver(&[ConnectionConfig::udp(), ConnectionConfig::tcp()]);
    let name = "db.shop.svc.clusterset.local";
    let found = look(&resolver, name, RecordType::A).await.unwrap();
    assert_eq!(found.len(), usize::from(MANY));
    assert!(server.metrics.tcp.answered(0).get() > 0, "it came over TCP");
    server.stop().await;
}

#[tokio::test]
async fn a_new_zone_is_served_at_once_and_none_is_not_an_empty_one() {
    let server = server().await;
    let name = "checkout.shop.svc.clusterset.local";
    let asked = ask(name, RecordType::A).to_vec().unwrap();
    server.zones.send_replace(Some(Arc::default()));
    let code = server.exchange(&asked).await.metadata.response_code;
    assert_eq!(code, ResponseCode::NXDomain);
    server.zones.send_replace(None);
    let code = server.exchange(&asked).await.metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
    server.stop().await;
}

#[tokio::test]
async fn nonsense_over_tcp_ends_its_own_connection_only() {
    let server = server().await;
    let good = ask("dns-version.clusterset.local", RecordType::TXT);
    let good = good.to_vec().unwrap();
    let framed = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length, bytes].concat()
    };
    let mut patient = TcpStream::connect(server.address).await.unwrap();
    for nonsense in [
        &[0xff, 0xff, 1][..],
        &[0, 1, 7],
        &[0, 0],
        &[0, 12, 0, 0, 0x80],
    ] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(nonsense).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Closed or reset, as the system has it.
        let _ = soon("the end", socket.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{nonsense:?}: {answer:?}");
    }
    // Two questions at once on one connection.
    patient
        .write_all(&[framed(&good), framed(&good)].concat())
        .await
        .unwrap();
    for _ in 0..2 {
        let length = soon("an answer", patient.read_u16()).await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        patient.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_in_number() {
    let server = server().await;
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut one_more = TcpStream::connect(server.address).await.unwrap();
    let mut nothing = [0];
    let end = soon("the end", one_more.read(&mut nothing)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert_eq!(server.metrics.tcp.limited.get(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_flood_gets_answers_no_larger_than_its_questions() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addr().unwrap()).await.unwrap();
    let metrics = DnsMetrics::register(&Registry::new()).unwrap().udp;
    let (_zones, newest) = watch::channel(Some(Arc::new(zone())));
    let three = limit::Rate {
        per_second: 0.0,
        burst: 3.0,
    };
    let (limit, stop) = (Limit::new(three), Stop::new());
    let serving = udp::serve(server, newest, metrics.clone(), limit, stop.clone());
    let task = tokio::spawn(serving);
    let asked = ask("db-1.east.db.shop.svc.clusterset.local", RecordType::A);
    let asked = asked.to_vec().unwrap();
    let mut buffer = [0; 1500];
    for n in 0..10 {
        socket.send(&asked).await.unwrap();
        let length = soon("an answer", socket.recv(&mut buffer)).await.unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.truncation, n >= 3, "{n}");
        assert_eq!(length > asked.len(), n < 3, "{n}");
    }
    assert_eq!(metrics.limited.get(), 7);
    stop.drain();
    soon("the end", task).await.unwrap();
}

fn ask(name: &str, of: RecordType) -> Message {
    let mut message = Message::query();
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    message.add_query(Query::query(name, of));
    message
}

fn told(message: &Message, transport: Transport) -> (Message, usize) {
    let reply = answer(&message.to_vec().unwrap(), Some(&zone()), transport).unwrap();
    let read = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!(read.metadata.id, message.metadata.id);
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert!(!read.metadata.recursion_available);
    (read, reply.bytes.len())
}

fn code(message: &Message) -> ResponseCode {
    told(message, Transport::Udp).0.metadata.response_code
}

#[test]
fn the_question_comes_back_in_its_own_case() {
    let mixed = "CheCkOut.shop.SVC.clusterSet.local";
    let (message, _) = told(&ask(mixed, RecordType::A), Transport::Udp);
    assert_eq!(message.queries[0].name().to_ascii(), format!("{mixed}."));
    assert_eq!(message.answers[0].name.to_ascii(), format!("{mixed}."));
    assert_eq!(message.answers[0].ttl, 5);
    assert!(message.metadata.authoritative);
}

#[test]
fn what_is_not_there_is_told_with_who_says_so() {
    for (name, code) in [
        ("unknown.shop.svc.clusterset.local", ResponseCode::NXDomain),
        ("checkout.shop.svc.clusterset.local", ResponseCode::NoError),
        (
            "east.checkout.shop.svc.clusterset.local",
            ResponseCode::NXDomain,
        ),
    ] {
        let (message, _) = told(&ask(name, RecordType::AAAA), Transport::Udp);
        assert_eq!(message.metadata.response_code, code, "{name}");
        let [record] = message.authorities.as_slice() else {
            panic!("{message}");
        };
        let RData::SOA(soa) = &record.data else {
            panic!("{record}");
        };
        assert_eq!((soa.minimum, record.ttl), (5, 5));
        assert_eq!(record.name.to_ascii(), "clusterset.local.");
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    assert_eq!(
        code(&ask("example.org", RecordType::A)),
        ResponseCode::Refused
    );
    assert_eq!(
        code(&ask("clusterset.local", RecordType::AXFR)),
        ResponseCode::Refused
    );
    let mut chaos = ask("dns-version.clusterset.local", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut notify = ask("clusterset.local", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    let mut two = ask("clusterset.local", RecordType::SOA);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let (any, _) = told(
        &ask("db.shop.svc.clusterset.local", RecordType::ANY),
        Transport::Udp,
    );
    assert_eq!(any.answers.len(), 1, "the least that can be said");
}

#[test]
fn an_answer_is_never_answered() {
    let mut message = ask("checkout.shop.svc.clusterset.local", RecordType::A);
    message.metadata.message_type = MessageType::Response;
    let bytes = message.to_vec().unwrap();
    assert!(answer(&bytes, Some(&zone()), Transport::Udp).is_none());
    assert!(ask_by_tcp(&bytes).is_none());
    assert!(answer(&bytes[..11], Some(&zone()), Transport::Udp).is_none());
}

#[test]
fn answers_over_udp_are_no_larger_than_the_asker_takes() {
    let with = |payload: Option<u16>| {
        let mut message = ask("db.shop.svc.clusterset.local", RecordType::A);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message
    };
    for (payload, room) in [
        (None, 512),
        (Some(100), 512),
        (Some(900), 900),
        (Some(65_000), 1232),
    ] {
        let (message, length) = told(&with(payload), Transport::Udp);
        assert!(message.metadata.truncation && message.answers.is_empty());
        assert!(length <= room);
        assert_eq!(message.edns.is_some(), payload.is_some());
        let (message, _) = told(&with(payload), Transport::Tcp);
        assert!(!message.metadata.truncation);
        assert_eq!(message.answers.len(), usize::from(MANY));
    }
    let mut newer = with(Some(1232));
    newer.edns.as_mut().unwrap().set_version(1);
    // As a number: another code has the same one elsewhere.
    assert_eq!(u16::from(code(&newer)), u16::from(ResponseCode::BADVERS));
}

#[test]
fn the_largest_answer_fits_into_a_message() {
    let label = |first: char| first.to_string().repeat(63);
    let long = ServiceKey::new(&label('n'), &label('s')).unwrap();
    let hosts: BTreeMap<_, _> = (0..1000u16)
        .map(|n| {
            let host = Host {
                addresses: vec![IpAddr::from([10, 1, 0, 1])],
                ports: vec![port("sql", n)],
            };
            (format!("{n:0>63}.{}", "c".repeat(20)), host)
        })
        .collect();
    let mut zone = Zone::default();
    zone.insert(long.clone(), Entry::Headless(hosts));
    let name = format!(
        "_sql._tcp.{}.{}.svc.clusterset.local",
        long.name, long.namespace
    );
    let asked = ask(&name, RecordType::SRV).to_vec().unwrap();
    let reply = answer(&asked, Some(&zone), Transport::Tcp).unwrap();
    let read = Message::from_vec(&reply.bytes).unwrap();
    assert!(
        !read.metadata.truncation && read.answers.len() == 200,
        "{}",
        reply.bytes.len()
    );
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_ignored(bytes: Vec<u8>, tail: bool) {
        // Half of them begin as a question does.
        let mut packet = match tail {
            true => ask("db.shop.svc.clusterset.local", RecordType::A).to_vec().unwrap(),
            false => Vec::new(),
        };
        packet.extend(bytes);
        for transport in [Transport::Udp, Transport::Tcp] {
            let _ = answer(&packet, Some(&zone()), transport);
        }
        let _ = ask_by_tcp(&packet);
    }

    #[test]
    fn a_bent_question_is_answered_within_its_room(at: usize, with: u8, cut: usize) {
        let mut edns = ask("db.shop.svc.clusterset.local", RecordType::A);
        edns.set_edns(Edns::new());
        let mut packet = edns.to_vec().unwrap();
        let at = at % packet.len();
        packet[at] = with;
        packet.truncate(12 + cut % packet.len());
        if let Some(reply) = answer(&packet, Some(&zone()), Transport::Udp) {
            prop_assert!(reply.bytes.len() <= 1232);
            prop_assert_eq!(&reply.bytes[..2], &packet[..2]);
        }
    }
}

#[tokio::test]
async fn malformed_packets_do_not_stop_it() {
    let server = server().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 1u32;
    for n in 0..2_000usize {
        let packet: Vec<u8> = (0..n % 300)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        socket.send_to(&packet, server.address).await.unwrap();
    }
    let good = ask("dns-version.clusterset.local", RecordType::TXT)
        .to_vec()
        .unwrap();
    // Its own socket's answers may be those to nonsense, and what is sent in a burst may be lost.
    let answered = async {
        loop {
            let asked = server.exchange(&good);
            match tokio::time::timeout(Duration::from_secs(1), asked).await {
                Ok(message) => return message,
                Err(_) => continue,
            }
        }
    };
    assert_eq!(soon("an answer", answered).await.answers.len(), 1);
    server.stop().await;
}
