use std::io::{Read, Write};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{
    CertificateError as TlsError, Error, HandshakeKind, PeerIncompatible, ProtocolVersion,
};

use super::*;
use crate::forge::{Shaken, handshake, pump};
use crate::testing::{Pki, trust_domain, workload};
use crate::{Refusal, TrustDomain, spiffe_id_of};

const ALPN: &[&[u8]] = &[b"linkspan-tcp/1"];

struct World {
    pki: Pki,
    alice: (MaterialWriter, MaterialReader),
    bob: (MaterialWriter, MaterialReader),
}

/// Alice in east, a client; Bob in west, a server. Each knows both domains.
fn world() -> World {
    let pki = Pki::new(&["east.test", "west.test"]);
    let alice = pki.material(&alice());
    let bob = pki.material(&bob());
    World { pki, alice, bob }
}

fn alice() -> SpiffeId {
    workload("east.test", "shop", "alice")
}

fn bob() -> SpiffeId {
    workload("west.test", "shop", "bob")
}

impl World {
    /// A connection made of what both have at the moment.
    fn connect(&self) -> Shaken {
        handshake(
            self.client(),
            self.server(ClientPolicy::Required(TrustPolicy::only(alice()))),
        )
    }

    fn client(&self) -> ClientConfig {
        self.alice
            .1
            .current()
            .client_config(TrustPolicy::only(bob()), ALPN)
            .unwrap()
    }

    fn server(&self, clients: ClientPolicy) -> ServerConfig {
        self.bob.1.current().server_config(clients, ALPN).unwrap()
    }
}

fn serial_seen_by(certificates: Option<&[CertificateDer<'_>]>) -> Vec<u8> {
    certificates.unwrap()[0].to_vec()
}

fn without(bundles: &BundleSet, domain: &str) -> BundleSet {
    let mut bundles = bundles.clone();
    bundles.remove(&trust_domain(domain)).unwrap();
    bundles
}

fn unknown_issuer() -> Option<Error> {
    Some(Error::InvalidCertificate(TlsError::UnknownIssuer))
}

#[test]
fn both_sides_prove_who_they_are_and_agree() {
    let shaken = world().connect();
    assert!(shaken.succeeded());
    assert_eq!(
        spiffe_id_of(shaken.server.peer_certificates().unwrap()),
        Ok(alice())
    );
    assert_eq!(
        spiffe_id_of(shaken.client.peer_certificates().unwrap()),
        Ok(bob())
    );
    assert_eq!(shaken.client.alpn_protocol(), Some(ALPN[0]));
    assert_eq!(
        shaken.client.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    // The root stays at home, and so does the order: leaf, then intermediate.
    assert_eq!(shaken.client.peer_certificates().unwrap().len(), 2);
}

#[test]
fn connections_after_a_renewal_show_the_new_svid() {
    let mut world = world();
    let before = world.connect();
    let old = serial_seen_by(before.server.peer_certificates());
    world.alice.0.set_svid(world.pki.svid(&alice())).unwrap();
    let after = world.connect();
    assert!(after.succeeded());
    let new = serial_seen_by(after.server.peer_certificates());
    assert_ne!(old, new);
    assert_eq!(new, world.alice.1.current().svid().chain()[0].to_vec());
    // The same holds for servers.
    let old = serial_seen_by(after.client.peer_certificates());
    world.bob.0.set_svid(world.pki.svid(&bob())).unwrap();
    let again = world.connect();
    assert!(again.succeeded());
    assert_ne!(old, serial_seen_by(again.client.peer_certificates()));
}

#[test]
fn a_removed_root_is_refused_and_a_new_one_accepted() {
    let mut world = world();
    let mut open = world.connect();
    assert!(open.succeeded());
    let all = world.bob.1.current().bundles().clone();

    world.bob.0.set_bundles(without(&all, "east.test"));
    assert_eq!(world.connect().server_error, unknown_issuer());
    world.bob.0.set_bundles(all.clone());
    assert!(world.connect().succeeded());
    world.alice.0.set_bundles(without(&all, "west.test"));
    assert_eq!(world.connect().client_error, unknown_issuer());
    world.alice.0.set_bundles(all);
    assert!(world.connect().succeeded());

    // The connection from before all this still carries bytes both ways.
    open.client.writer().write_all(b"to bob").unwrap();
    open.server.writer().write_all(b"to alice").unwrap();
    pump(&mut open);
    let mut read = [0; 16];
    assert_eq!(open.server.reader().read(&mut read).unwrap(), 6);
    assert_eq!(open.client.reader().read(&mut read).unwrap(), 8);
}

#[test]
fn roots_overlap_while_they_are_rotated() {
    let mut world = world();
    let next = Pki::new(&["east.test"]);
    let east = trust_domain("east.test");
    let roots = |pki: &Pki| pki.authority("east.test").bundle().roots;
    let known = |sequence, roots: Vec<CertificateDer<'static>>| {
        let mut bundles = world.pki.bundles();
        bundles
            .insert(east.clone(), Bundle::new(sequence, None, roots).unwrap())
            .unwrap();
        bundles
    };
    let (old, new) = (roots(&world.pki), roots(&next));
    let (both, only_new) = (known(2, [&old[..], &new].concat()), known(3, new));

    world.bob.0.set_bundles(both);
    assert!(world.connect().succeeded());
    world.alice.0.set_svid(next.svid(&alice())).unwrap();
    assert!(world.connect().succeeded());
    world.bob.0.set_bundles(only_new);
    assert!(world.connect().succeeded());
    world.alice.0.set_svid(world.pki.svid(&alice())).unwrap();
    assert_eq!(world.connect().server_error, unknown_issuer());
}

#[test]
fn another_identity_is_refused_and_the_last_good_one_stays() {
    let mut world = world();
    let before = world.alice.1.current();
    let (own, found) = (alice(), workload("east.test", "shop", "mallory"));
    let refused = world.alice.0.set_svid(world.pki.svid(&found));
    assert_eq!(refused, Err(MaterialError::OtherIdentity { own, found }));
    assert!(Arc::ptr_eq(&before, &world.alice.1.current()));
    assert!(world.connect().succeeded());
}

#[tokio::test]
async fn readers_learn_of_each_generation() {
    let World {
        pki,
        alice: (mut writer, mut reader),
        ..
    } = world();
    assert_eq!(reader.current().generation(), 1);
    writer.set_svid(pki.svid(&alice())).unwrap();
    reader.changed().await.unwrap();
    assert_eq!(reader.current().generation(), 2);
    // The same bundles again are no news.
    writer.set_bundles(pki.bundles());
    assert_eq!(reader.current().generation(), 2);
    // A reader who comes late starts at what is current, and hears of what follows.
    let (mut late, mut cloned) = (writer.reader(), reader.clone());
    writer.set_bundles(pki.bundles_of(&["east.test"]));
    for reader in [&mut reader, &mut late, &mut cloned] {
        reader.changed().await.unwrap();
        assert_eq!(reader.current().generation(), 3);
    }
    drop(writer);
    assert_eq!(reader.changed().await, Err(MaterialClosed));
    assert_eq!(reader.current().generation(), 3);
}

#[test]
fn only_what_concerns_a_domain_makes_a_generation_towards_it() {
    let World {
        pki,
        alice: (mut writer, reader),
        ..
    } = world();
    let towards = |domain| reader.current().generation_towards(&trust_domain(domain));
    writer.set_bundles(pki.bundles_of(&["east.test"]));
    assert_eq!((towards("east.test"), towards("west.test")), (1, 1));
    writer.set_bundles(pki.bundles());
    assert_eq!((towards("east.test"), towards("west.test")), (1, 3));
    let other = Pki::new(&["west.test"]).authority("west.test").bundle();
    let mut bundles = pki.bundles();
    bundles.insert(trust_domain("west.test"), other).unwrap();
    writer.set_bundles(bundles);
    assert_eq!((towards("east.test"), towards("west.test")), (1, 4));
    writer.set_svid(pki.svid(&alice())).unwrap();
    assert_eq!((towards("east.test"), towards("west.test")), (5, 5));
}

#[test]
fn clients_without_a_certificate_come_in_only_where_that_is_optional() {
    let world = world();
    let roots = world.pki.authority("west.test").bundle();
    let client = || first_contact_config(&bob(), &roots, ALPN).unwrap();
    let anybody = || TrustPolicy::Domains([trust_domain("east.test")].into());

    let required = handshake(client(), world.server(ClientPolicy::Required(anybody())));
    assert_eq!(required.server_error, Some(Error::NoCertificatesPresented));
    let optional = handshake(client(), world.server(ClientPolicy::Optional(anybody())));
    assert!(optional.succeeded());
    assert!(optional.server.peer_certificates().is_none());
    // One that is shown must still be good.
    let shown = handshake(
        world.client(),
        world.server(ClientPolicy::Optional(anybody())),
    );
    assert!(shown.succeeded());
    assert_eq!(
        spiffe_id_of(shown.server.peer_certificates().unwrap()),
        Ok(alice())
    );
    let nobody = ClientPolicy::Optional(TrustPolicy::AnyOf(vec![]));
    let shown = handshake(world.client(), world.server(nobody));
    assert_eq!(
        refusal(shown.server_error),
        Some(Refusal::Policy { id: alice() })
    );
}

fn refusal(error: Option<Error>) -> Option<Refusal> {
    match error {
        Some(Error::InvalidCertificate(TlsError::Other(other))) => {
            std::error::Error::source(&other)?.downcast_ref().cloned()
        }
        _ => None,
    }
}

#[test]
fn first_contact_accepts_the_one_server_under_the_given_roots() {
    let world = world();
    let bundle = |domain: &str| world.pki.authority(domain).bundle();
    let meet = |server: &SpiffeId, roots: &Bundle| {
        let client = first_contact_config(server, roots, ALPN).unwrap();
        let anybody = TrustPolicy::Domains(Default::default());
        handshake(client, world.server(ClientPolicy::Optional(anybody))).client_error
    };
    assert_eq!(meet(&bob(), &bundle("west.test")), None);
    let carol = workload("west.test", "shop", "carol");
    let wrong_id = meet(&carol, &bundle("west.test"));
    assert_eq!(refusal(wrong_id), Some(Refusal::Policy { id: bob() }));
    let other_root = Pki::new(&["west.test"]);
    let wrong_root = meet(&bob(), &other_root.authority("west.test").bundle());
    assert_eq!(wrong_root, unknown_issuer());
    // Roots of another domain are not even taken.
    let taken = first_contact_config(&bob(), &bundle("east.test"), ALPN);
    assert!(matches!(
        taken,
        Err(MaterialError::Bundle(BundleError::OtherDomain { .. }))
    ));
    let wrong_domain = meet(&workload("east.test", "shop", "bob"), &bundle("east.test"));
    assert_eq!(wrong_domain, unknown_issuer());
}

#[test]
fn nothing_is_resumed() {
    let world = world();
    let client = world.client();
    let server = world.server(ClientPolicy::Required(TrustPolicy::only(alice())));
    for _ in 0..2 {
        let shaken = handshake(client.clone(), server.clone());
        assert!(shaken.succeeded());
        assert_eq!(shaken.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(shaken.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn older_tls_is_not_spoken() {
    let world = world();
    let old = |versions| {
        ClientConfig::builder_with_provider(tls::provider().clone())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    };
    let server = world.server(ClientPolicy::Optional(TrustPolicy::only(alice())));
    let shaken = handshake(old(&[&rustls::version::TLS12]), server);
    let refused = Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);
    assert_eq!(shaken.server_error, Some(refused));

    let resolver = rustls::sign::SingleCertAndKey::from(world.bob.1.current().svid.certified());
    let server = ServerConfig::builder_with_provider(tls::provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    let shaken = handshake(world.client(), server);
    assert_eq!(
        shaken.server_error,
        Some(Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled
        ))
    );
}

#[test]
fn protocols_must_fit_tls_and_be_shared() {
    let world = world();
    let material = world.alice.1.current();
    let longest = [b'x'; 255];
    assert!(
        material
            .client_config(TrustPolicy::only(bob()), &[&longest])
            .is_ok()
    );
    let clients = || ClientPolicy::Required(TrustPolicy::only(alice()));
    for bad in [&[][..], &[b'x'; 256][..]] {
        let alpn: &[&[u8]] = &[b"h2", bad];
        let roots = world.pki.authority("west.test").bundle();
        assert_eq!(
            material.client_config(TrustPolicy::only(bob()), alpn).err(),
            Some(MaterialError::Alpn)
        );
        assert_eq!(
            material.server_config(clients(), alpn).err(),
            Some(MaterialError::Alpn)
        );
        assert_eq!(
            first_contact_config(&bob(), &roots, alpn).err(),
            Some(MaterialError::Alpn)
        );
    }
    let client = material
        .client_config(TrustPolicy::only(bob()), &[b"h2"])
        .unwrap();
    let shaken = handshake(client, world.server(clients()));
    assert_eq!(shaken.server_error, Some(Error::NoApplicationProtocol));
}

#[test]
fn quic_is_satisfied_with_the_configurations() {
    let world = world();
    let server = world.server(ClientPolicy::Required(TrustPolicy::only(alice())));
    let client = rustls::quic::ClientConnection::new(
        Arc::new(world.client()),
        rustls::quic::Version::V1,
        "not.checked.invalid".try_into().unwrap(),
        vec![],
    );
    assert!(client.is_ok());
    let server =
        rustls::quic::ServerConnection::new(Arc::new(server), rustls::quic::Version::V1, vec![]);
    assert!(server.is_ok());
}

#[test]
fn debug_shows_no_keys() {
    let pki = Pki::new(&["east.test"]);
    let ca = pki.authority("east.test");
    let pem = ca.to_pem();
    let key = crate::PrivateKey::from_pem(pem.root_key.as_bytes()).unwrap();
    let (writer, reader) = pki.material(&alice());
    let current = reader.current();
    let shown = format!(
        "{pem:?} {ca:?} {key:?} {writer:?} {reader:?} {current:?} {:?} {pki:?}",
        current.svid()
    );
    assert!(shown.contains("east.test") && !shown.contains("PRIVATE KEY"));
    for line in pem.root_key.lines().chain(pem.intermediate_key.lines()) {
        assert!(line.starts_with("-----") || !shown.contains(line));
    }
    // Nor as numbers, which is how a careless `Debug` would show them.
    let der = key.to_pkcs8();
    let bytes = format!("{:?}", &der.secret_pkcs8_der()[40..44]);
    let inner = bytes.trim_matches(['[', ']']).to_owned();
    assert!(!shown.contains(&inner));
}

#[test]
fn domains_of_a_set_are_found_by_name() {
    let world = world();
    let current = world.alice.1.current();
    let domains: Vec<&TrustDomain> = current.bundles().iter().map(|(domain, _)| domain).collect();
    assert_eq!(
        domains,
        [&trust_domain("east.test"), &trust_domain("west.test")]
    );
    assert!(current.svid().not_after() > world.pki.now() + Duration::from_secs(3600));
}
