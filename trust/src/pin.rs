//! Trust before there is any: a server known only by the digests of its roots' keys, as an
//! invitation carries them. The server sends its root along, which no other session here does.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::Signing;
use crate::material::checked_alpn;
use crate::verify::{
    MAX_INTERMEDIATES, Refusal, Rejection, Role, Verifier, algorithms, prove, tls12_refused,
};
use crate::{
    Bundle, BundleError, BundleSet, MaterialError, SpiffeId, TlsMaterial, TrustPolicy, tls,
};

/// SHA-256 of a root's `SubjectPublicKeyInfo`.
pub type RootPin = [u8; 32];

/// The pins of a bundle's roots, in their order.
///
/// # Errors
/// If a root does not parse or is not a CA.
pub fn root_pins(bundle: &Bundle) -> Result<Vec<RootPin>, BundleError> {
    let pin = |(index, root): (usize, &CertificateDer<'_>)| {
        pin_of(root).map_err(|source| BundleError::Root { index, source })
    };
    bundle.roots.iter().enumerate().map(pin).collect()
}

fn pin_of(certificate: &CertificateDer<'_>) -> Result<RootPin, crate::CertificateError> {
    let signing = Signing::parse(certificate)?;
    let mut pin = [0; 32];
    pin.copy_from_slice(digest(&SHA256, &signing.public_key_info).as_ref());
    Ok(pin)
}

/// A client's configuration that accepts exactly `server`, proved by a chain that ends in a root
/// with one of `pins`, sent along with it. It shows no certificate.
///
/// # Errors
/// If a protocol of `alpn` is empty or longer than 255 bytes.
pub fn pinned_config(
    server: &SpiffeId,
    pins: &[RootPin],
    alpn: &[&[u8]],
) -> Result<ClientConfig, MaterialError> {
    let verifier = Pinned {
        server: server.clone(),
        pins: pins.to_vec(),
    };
    let mut config = no_one();
    config.alpn_protocols = checked_alpn(alpn)?;
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(verifier));
    Ok(config)
}

/// A client's configuration that accepts whatever answers: for a connection that only carries
/// another session's bytes, in which the peer proves who it is.
///
/// # Errors
/// If a protocol of `alpn` is empty or longer than 255 bytes.
pub fn carrier_config(alpn: &[&[u8]]) -> Result<ClientConfig, MaterialError> {
    let mut config = no_one();
    config.alpn_protocols = checked_alpn(alpn)?;
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anyone));
    Ok(config)
}

/// Accepts nobody until it is given another verifier.
fn no_one() -> ClientConfig {
    let nobody = TrustPolicy::AnyOf(Vec::new());
    tls::client(Verifier::of_servers(Arc::default(), nobody), None)
}

impl TlsMaterial {
    /// A configuration for a server that sends its roots along, for clients that know only their
    /// pins, and asks clients for no certificate.
    ///
    /// # Errors
    /// If a protocol of `alpn` is empty or longer than 255 bytes.
    pub fn pinnable_server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, MaterialError> {
        let svid = self.svid();
        let own = svid.certified();
        let mut chain = own.cert.clone();
        let roots = self.bundles().get(svid.id().trust_domain());
        let room = (MAX_INTERMEDIATES + 1).saturating_sub(chain.len());
        chain.extend(
            roots
                .into_iter()
                .flat_map(|bundle| bundle.roots.iter().take(room).cloned()),
        );
        let sent = CertifiedKey::new(chain, own.key.clone());
        let mut config = tls::server_for_anyone(Arc::new(sent));
        config.alpn_protocols = checked_alpn(alpn)?;
        Ok(config)
    }
}

#[derive(Debug)]
struct Pinned {
    server: SpiffeId,
    pins: Vec<RootPin>,
}

impl Pinned {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Rejection> {
        if others.len() > MAX_INTERMEDIATES {
            let intermediates = others.len();
            return Err(Refusal::LongChain { intermediates }.into());
        }
        let pinned =
            |of: &&CertificateDer<'_>| pin_of(of).is_ok_and(|pin| self.pins.contains(&pin));
        let (roots, between): (Vec<_>, Vec<_>) = others.iter().partition(pinned);
        let domain = self.server.trust_domain();
        let not_pinned = || Refusal::NotPinned {
            trust_domain: domain.clone(),
        };
        if roots.is_empty() {
            return Err(not_pinned().into());
        }
        let roots = roots.into_iter().map(|root| root.clone().into_owned());
        let mut bundles = BundleSet::new();
        Bundle::new(0, None, roots.collect())
            .and_then(|bundle| bundles.insert(domain.clone(), bundle))
            .map_err(|_| not_pinned())?;
        let between: Vec<_> = between.into_iter().cloned().collect();
        let id = prove(&bundles, leaf, &between, Role::Server, now)?;
        if id != self.server {
            return Err(Refusal::Policy { id }.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies nothing about who it is; the signature still ties the session to its certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::testing::{Pki, trust_domain};

    const ALPN: &[&[u8]] = &[b"join"];

    /// Both sides in memory; the client's verdict.
    fn shake(client: ClientConfig, server: ServerConfig) -> Result<(), rustls::Error> {
        let name = ServerName::try_from("federation.linkspan.internal").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut io::Cursor::new(wire)).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut io::Cursor::new(wire)).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    fn federation(domain: &str) -> SpiffeId {
        SpiffeId::federation(&trust_domain(domain))
    }

    fn server(pki: &Pki, id: &SpiffeId) -> ServerConfig {
        let (_writer, reader) = pki.material(id);
        reader.current().pinnable_server_config(ALPN).unwrap()
    }

    fn pins(pki: &Pki) -> Vec<RootPin> {
        root_pins(&pki.authority("west.test").bundle()).unwrap()
    }

    #[test]
    fn any_one_pin_suffices() {
        let pki = Pki::new(&["west.test"]);
        let west = federation("west.test");
        let pins = [vec![[0; 32]], pins(&pki)].concat();
        let client = pinned_config(&west, &pins, ALPN).unwrap();
        shake(client, server(&pki, &west)).unwrap();
    }

    #[test]
    fn the_same_names_under_another_root_are_refused() {
        let (real, forged) = (Pki::new(&["west.test"]), Pki::new(&["west.test"]));
        let west = federation("west.test");
        let client = pinned_config(&west, &pins(&real), ALPN).unwrap();
        let refused = shake(client, server(&forged, &west)).unwrap_err();
        assert!(
            matches!(refused, rustls::Error::InvalidCertificate(_)),
            "{refused}"
        );
    }

    #[test]
    fn another_identity_of_the_pinned_root_is_refused() {
        let pki = Pki::new(&["west.test"]);
        let client = pinned_config(&federation("west.test"), &pins(&pki), ALPN).unwrap();
        let gateway = SpiffeId::gateway(&trust_domain("west.test"));
        shake(client, server(&pki, &gateway)).unwrap_err();
    }

    #[test]
    fn without_the_root_in_the_chain_nothing_is_pinned() {
        let pki = Pki::new(&["west.test"]);
        let west = federation("west.test");
        let (_writer, reader) = pki.material(&west);
        let anybody = crate::ClientPolicy::Optional(TrustPolicy::only(west.clone()));
        let bare = reader.current().server_config(anybody, ALPN).unwrap();
        let client = pinned_config(&west, &pins(&pki), ALPN).unwrap();
        shake(client, bare).unwrap_err();
    }

    #[test]
    fn a_carrier_takes_anybody() {
        let pki = Pki::new(&["west.test"]);
        let server = server(&pki, &federation("west.test"));
        shake(carrier_config(ALPN).unwrap(), server).unwrap();
    }
}
