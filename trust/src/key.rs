//! Private keys: ECDSA on P-256, wiped when dropped, never printed.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

/// An ECDSA key on P-256. It is wiped from memory on drop, and `Debug` does not show it.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl PrivateKey {
    /// Makes a new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Random)?;
        Self::from_pair(pair)
    }

    /// Reads a key in PKCS #8 DER. Keys other than ECDSA on P-256 are refused.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|_| KeyError::NotP256)?;
        Self::from_pair(pair)
    }

    /// Reads the first key of a PEM text, in PKCS #8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`).
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::NoKey)?;
        let pair = match &der {
            PrivateKeyDer::Pkcs1(_) => None,
            other => EcdsaKeyPair::from_private_key_der(
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                other.secret_der(),
            )
            .ok(),
        };
        der.zeroize();
        Self::from_pair(pair.ok_or(KeyError::NotP256)?)
    }

    /// The key as PKCS #8 PEM, for a file that only its owner may read.
    pub fn to_pem(&self) -> Zeroizing<String> {
        crate::certificate::pem_of("PRIVATE KEY", &self.pkcs8)
    }

    fn from_pair(pair: EcdsaKeyPair) -> Result<Self, KeyError> {
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::NotP256)?;
        Ok(Self {
            pkcs8: Zeroizing::new(document.as_ref().to_vec()),
            pair,
        })
    }

    /// The public half, as an X.509 `SubjectPublicKeyInfo`.
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        Signer(self).subject_public_key_info()
    }

    /// The key as rustls signs with it.
    pub(crate) fn to_rustls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        any_ecdsa_type(&der).map_err(|_| KeyError::NotP256)
    }

    /// The key in PKCS #8 DER; the copy is the caller's to wipe.
    #[cfg(test)]
    pub(crate) fn to_pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// Why a private key cannot be made or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("no randomness to make a key from")]
    Random,
    /// The text holds no private key.
    #[error("no private key in PEM form found")]
    NoKey,
    /// The key is of another kind, or damaged.
    #[error("the private key is not an ECDSA key on P-256")]
    NotP256,
}

/// A key as rcgen signs with it; keeps rcgen's traits out of this crate's public surface.
pub(crate) struct Signer<'a>(pub(crate) &'a PrivateKey);

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.pair.sign(&SystemRandom::new(), message);
        Ok(signature
            .map_err(|_| rcgen::Error::RingUnspecified)?
            .as_ref()
            .to_vec())
    }
}
