//! From a registered workload to what DNS says of it.

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use linkspan_api::v1::discover_request::Message as Said;
use tokio::net::UdpSocket;

use super::proxy::{Proxy, workload};
use crate::testing::{Federation, Home, export_yaml, service_yaml, soon};

async fn ask(federation: &Federation, name: &str) -> Message {
    let mut message = Message::query();
    let name = Name::from_ascii(format!("{name}.shop.svc.clusterset.local.")).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = federation.addresses.dns.unwrap();
    let question = message.to_vec().unwrap();
    socket.send_to(&question, server).await.unwrap();
    let mut buffer = [0; 1500];
    let length = soon("an answer", socket.recv(&mut buffer)).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn a_headless_service_is_named_while_somebody_serves_it() {
    let home = Home::new("east");
    let headless = service_yaml("db").replace("spec:\n", "spec:\n  clusterIP: None\n");
    home.declare("db.yaml", &headless);
    home.declare("export.yaml", &export_yaml("db"));
    let federation = home.start().await;
    federation
        .until("the import", |world| !world.desired.imports.is_empty())
        .await;
    // Worlds are shown to all at once, and taken by the server a moment later.
    let until = async |name, code| loop {
        let message = ask(&federation, name).await;
        if message.metadata.response_code == code {
            return message;
        }
        tokio::task::yield_now().await;
    };
    soon("no name", until("db", ResponseCode::NXDomain)).await;
    let material = federation.member("shop", "db").await;
    let proxy = Proxy::open(&federation, &material).await.unwrap();
    let living = proxy.live(Said::Workload(workload("db-0", "db")), Vec::new());
    let answer = soon("a name", until("db-0.east.db", ResponseCode::NoError)).await;
    let [record] = answer.answers.as_slice() else {
        panic!("{answer}");
    };
    assert_eq!(record.data, RData::A(std::net::Ipv4Addr::LOCALHOST.into()));
    let mut gone = workload("db-0", "db");
    gone.ready = false;
    living.say(Said::Workload(gone)).await;
    drop(living);
    soon("no name", until("db", ResponseCode::NXDomain)).await;
    federation.stop().await;
}
