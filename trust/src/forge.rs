//! For tests: certificates that no honest authority issues, and handshakes in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::der::encode;
use crate::key::Signer;
use crate::{Bundle, BundleSet, PrivateKey, testing};

/// A signing certificate under which anything can be forged.
pub(crate) struct ForgedCa {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKey,
    /// What follows a leaf of this authority in its chain.
    intermediates: Vec<CertificateDer<'static>>,
}

/// A leaf with the chain up to, but without, its root.
pub(crate) struct Forged {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKey,
}

impl ForgedCa {
    /// A faultless root of a trust domain, before `change` gets at it.
    pub(crate) fn root(domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = signing(domain, "root");
        change(&mut params);
        let certificate = params.self_signed(&Signer(&key)).unwrap().into();
        Self {
            certificate,
            key,
            intermediates: Vec::new(),
        }
    }

    /// A faultless intermediate under this authority, before `change` gets at it.
    pub(crate) fn intermediate(
        &self,
        domain: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        // Roots of one domain share their name, so that they can be mistaken; these do not.
        let mut unique = [0; 8];
        aws_lc_rs::rand::fill(&mut unique).unwrap();
        let mut params = signing(domain, &format!("intermediate {unique:02x?}"));
        change(&mut params);
        let forged = self.sign(&params);
        let [certificate, ..] = forged.chain.as_slice() else {
            unreachable!()
        };
        Self {
            certificate: certificate.clone(),
            key: forged.key,
            intermediates: forged.chain,
        }
    }

    /// A faultless leaf, before `change` gets at it.
    pub(crate) fn leaf(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Forged {
        let mut params = base();
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Forged {
        let key = PrivateKey::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, Signer(&self.key)).unwrap();
        let certificate = params.signed_by(&Signer(&key), &issuer).unwrap();
        let mut chain = vec![certificate.into()];
        chain.extend_from_slice(&self.intermediates);
        Forged { chain, key }
    }

    /// What trusts this root for `domain`, and nothing else.
    pub(crate) fn bundles(&self, domain: &str) -> BundleSet {
        let mut bundles = BundleSet::new();
        let bundle = Bundle::new(1, None, vec![self.certificate.clone()]).unwrap();
        bundles
            .insert(testing::trust_domain(domain), bundle)
            .unwrap();
        bundles
    }
}

impl Forged {
    /// For rustls, unchecked: the key need not even belong to the chain.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(
            self.chain.clone(),
            self.key.to_rustls().unwrap(),
        ))
    }
}

fn base() -> CertificateParams {
    let mut serial = [1; 16];
    aws_lc_rs::rand::fill(&mut serial[1..]).unwrap();
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - Duration::from_secs(600)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    params
}

fn signing(domain: &str, kind: &str) -> CertificateParams {
    let mut params = base();
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{kind} of {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A subject alternative name extension of one URI of any bytes, fewer than 65,000.
pub(crate) fn raw_uri(uri: &[u8]) -> CustomExtension {
    CustomExtension::from_oid_content(&[2, 5, 29, 17], encode(0x30, &encode(0x86, uri)))
}

/// A critical name constraints extension that permits only URIs of `host`.
pub(crate) fn uri_constraint(host: &str) -> CustomExtension {
    let subtree = encode(0x30, &encode(0x86, host.as_bytes()));
    let content = encode(0x30, &encode(0xa0, &subtree));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

/// How a handshake ended on each side.
pub(crate) struct Shaken {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    /// The first error of each side.
    pub(crate) client_error: Option<rustls::Error>,
    pub(crate) server_error: Option<rustls::Error>,
}

impl Shaken {
    pub(crate) fn succeeded(&self) -> bool {
        self.client_error.is_none()
            && self.server_error.is_none()
            && !self.client.is_handshaking()
            && !self.server.is_handshaking()
    }
}

/// Carries bytes between both until neither has anything more to say. Real TLS, no sockets.
pub(crate) fn handshake(client: ClientConfig, server: ServerConfig) -> Shaken {
    let name = ServerName::try_from("not.checked.invalid").unwrap();
    let mut shaken = Shaken {
        client: ClientConnection::new(Arc::new(client), name).unwrap(),
        server: ServerConnection::new(Arc::new(server)).unwrap(),
        client_error: None,
        server_error: None,
    };
    pump(&mut shaken);
    shaken
}

/// As [`handshake`], for what is said later.
pub(crate) fn pump(shaken: &mut Shaken) {
    loop {
        let mut wire = Vec::new();
        while shaken.client.wants_write() {
            shaken.client.write_tls(&mut wire).unwrap();
        }
        let sent = !wire.is_empty();
        let mut rest = wire.as_slice();
        while !rest.is_empty() && shaken.server_error.is_none() {
            shaken.server.read_tls(&mut rest).unwrap();
            shaken.server_error = shaken.server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        while shaken.server.wants_write() {
            shaken.server.write_tls(&mut wire).unwrap();
        }
        let answered = !wire.is_empty();
        let mut rest = wire.as_slice();
        while !rest.is_empty() && shaken.client_error.is_none() {
            shaken.client.read_tls(&mut rest).unwrap();
            shaken.client_error = shaken.client.process_new_packets().err();
        }
        if !sent && !answered {
            return;
        }
    }
}
