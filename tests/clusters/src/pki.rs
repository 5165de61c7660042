//! The certificates of one cluster. They are thrown away with it, and valid for as long as it may
//! live.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// Signs certificates for one purpose: the cluster's own, or the API server's as a proxy.
pub(crate) struct Authority<'a> {
    issuer: CertifiedIssuer<'a, KeyPair>,
    folder: &'a Path,
}

/// Whose certificate.
pub(crate) struct Subject<'a> {
    /// The name of its files.
    pub file: &'a str,
    /// The user that it is to the API server.
    pub user: &'a str,
    /// The user's group.
    pub group: Option<&'a str>,
    /// The names by which it is reached, if it serves.
    pub names: &'a [&'a str],
    /// The addresses at which it is reached, if it serves.
    pub addresses: &'a [IpAddr],
}

impl<'a> Authority<'a> {
    /// Makes an authority, and writes it to `<name>.crt` and `<name>.key` in `folder`.
    pub(crate) fn create(folder: &'a Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        write_pair(folder, name, &issuer.pem(), issuer.key())?;
        Ok(Self { issuer, folder })
    }

    /// Issues a certificate, for clients and, where the subject is reached by names or addresses,
    /// servers; writes it beside the authority.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            name.push(DnType::OrganizationName, group);
        }
        for name in subject.names {
            let name = (*name).try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !params.subject_alt_names.is_empty() {
            let usages = &mut params.extended_key_usages;
            usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_pair(self.folder, subject.file, &certificate.pem(), &key)
    }
}

/// The key pair with which the API server signs service accounts' tokens.
pub(crate) fn service_account_keys(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    write(folder.join("sa.pub"), &key.public_key_pem())?;
    write(folder.join("sa.key"), &key.serialize_pem())
}

fn write_pair(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    write(folder.join(format!("{name}.crt")), certificate)?;
    write(folder.join(format!("{name}.key")), &key.serialize_pem())
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
