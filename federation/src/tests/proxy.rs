//! Proxies as discovery sees them.

use std::{collections::BTreeMap, time::Duration};

use linkspan_api::v1::{
    self, DiscoverRequest, discover_record::Body, discover_request::Message as Said,
    discover_response::Message as Told, discovery_client::DiscoveryClient,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::testing::{Federation, Material, soon};

/// One discovery stream.
pub(super) struct Proxy {
    requests: mpsc::Sender<DiscoverRequest>,
    responses: Streaming<v1::DiscoverResponse>,
    pub(super) records: BTreeMap<String, Body>,
    revision: u64,
    pub(super) complete: bool,
    /// What it was asked to dial.
    pub(super) joins: Vec<v1::JoinDial>,
}

impl Proxy {
    pub(super) async fn open(federation: &Federation, material: &Material) -> Result<Self, Status> {
        Self::of_cluster("", federation, material).await
    }

    /// As [`Proxy::open`], of a proxy whose configuration names that cluster.
    pub(super) async fn of_cluster(
        cluster: &str,
        federation: &Federation,
        material: &Material,
    ) -> Result<Self, Status> {
        let channel = federation
            .channel(&material.1)
            .await
            .map_err(|e| Status::unknown(e.to_string()))?;
        let (requests, receiver) = mpsc::channel(32);
        let request = |message| DiscoverRequest {
            message: Some(message),
        };
        let hello = v1::DiscoverHello {
            instance: "one".into(),
            version: "0".into(),
            cluster: cluster.into(),
            captures: true,
        };
        requests.send(request(Said::Hello(hello))).await.unwrap();
        let opened = DiscoveryClient::new(channel)
            .discover(ReceiverStream::new(receiver))
            .await?;
        let responses = opened.into_inner();
        Ok(Self {
            requests,
            responses,
            records: BTreeMap::new(),
            revision: 0,
            complete: false,
            joins: Vec::new(),
        })
    }

    pub(super) async fn say(&self, message: Said) {
        let _ = self
            .requests
            .send(DiscoverRequest {
                message: Some(message),
            })
            .await;
    }

    pub(super) async fn subscribe(&self, services: &[&str]) {
        let key = |name: &&str| v1::ServiceKey {
            namespace: "shop".into(),
            name: (*name).into(),
        };
        let services = services.iter().map(key).collect();
        self.say(Said::Subscription(v1::Subscription { services }))
            .await;
    }

    /// Applies the next response and acknowledges it; says what it was.
    pub(super) async fn next(&mut self) -> Result<String, Status> {
        let response = soon("a response", self.responses.message()).await?;
        let response = response.ok_or_else(|| Status::cancelled("the stream has ended"))?;
        assert_eq!(
            response.revision,
            self.revision + 1,
            "revisions grow by one"
        );
        self.revision = response.revision;
        self.say(Said::Ack(v1::DiscoverAck {
            revision: self.revision,
        }))
        .await;
        Ok(match response.message {
            Some(Told::Upsert(record)) => {
                self.records
                    .insert(record.key.clone(), record.body.unwrap());
                format!("+{}", record.key)
            }
            Some(Told::Remove(key)) => {
                self.records
                    .remove(&key)
                    .expect("only what was sent is removed");
                format!("-{key}")
            }
            Some(Told::Complete(_)) => {
                self.complete = true;
                "complete".into()
            }
            Some(Told::Join(dial)) => {
                let id = dial.id;
                self.joins.push(dial);
                format!("join {id}")
            }
            None => "nothing".into(),
        })
    }

    pub(super) async fn until(&mut self, so: impl Fn(&Self) -> bool) {
        while !so(self) {
            self.next().await.unwrap();
        }
    }

    /// The reason for which the stream is refused.
    pub(super) async fn refusal(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &v1::Endpoint> {
        self.records.values().filter_map(|body| match body {
            Body::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        })
    }

    pub(super) fn peer(&self, cluster: &str) -> Option<&v1::Peer> {
        match self.records.get(&format!("peer/{cluster}")) {
            Some(Body::Peer(peer)) => Some(peer),
            _ => None,
        }
    }

    /// Lets the proxy live by itself: it beats every 300 ms and applies what it is told.
    pub(super) fn live(mut self, registration: Said, more: Vec<Said>) -> Living {
        let requests = self.requests.clone();
        let task = tokio::spawn(async move {
            self.say(registration.clone()).await;
            for message in more {
                self.say(message).await;
            }
            let mut beat = tokio::time::interval(Duration::from_millis(300));
            loop {
                tokio::select! {
                    _ = beat.tick() => self.say(registration.clone()).await,
                    heard = self.next() => if heard.is_err() { return },
                }
            }
        });
        Living { requests, task }
    }
}

/// A proxy that lives until it is dropped.
pub(super) struct Living {
    requests: mpsc::Sender<DiscoverRequest>,
    task: JoinHandle<()>,
}

impl Living {
    pub(super) async fn say(&self, message: Said) {
        self.requests
            .send(DiscoverRequest {
                message: Some(message),
            })
            .await
            .unwrap();
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn workload(uid: &str, name: &str) -> v1::WorkloadRegistration {
    v1::WorkloadRegistration {
        uid: uid.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        locality: Some(v1::Locality {
            region: "eu".into(),
            zone: "a".into(),
        }),
        address: "127.0.0.1:15008".into(),
        ready: true,
        weight: 0,
        incarnation: 0,
        hostname: uid.into(),
    }
}

pub(super) fn gateway(replica: &str) -> v1::GatewayRegistration {
    v1::GatewayRegistration {
        replica: replica.into(),
        egress_address: "127.0.0.1:15444".into(),
        tunnel_addresses: vec![v1::GatewayAddress {
            host: "127.0.0.1".into(),
            port: 15443,
        }],
        ready: true,
        draining: false,
        imports: None,
    }
}

pub(super) fn health(peer: &str, up: bool) -> Said {
    let peer = v1::PeerHealth {
        cluster: peer.into(),
        up,
        connections: 1,
        rtt_micros: 100,
        removed: false,
        removed_invitation: String::new(),
    };
    Said::LinkHealth(v1::LinkHealth { peers: vec![peer] })
}
