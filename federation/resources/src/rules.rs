//! What a single text may look like: names, hosts, domains.
//!
//! These are deliberately simple: they catch what an author mistypes. The parts that
//! use a value parse it again with the strict parser that belongs to it.

/// A rule for a text: `Err` says what to write instead.
pub(crate) type TextRule = fn(&str) -> Result<(), String>;

/// Longest DNS label, in bytes (RFC 1035).
pub(crate) const MAX_LABEL: usize = 63;
/// Longest cluster id, in bytes (KEP-2149).
pub(crate) const MAX_CLUSTER_ID: usize = 127;
/// Longest bundle, in bytes: hundreds of roots, and an object that an API server keeps.
pub(crate) const MAX_PEM: usize = 65_536;
/// Most labels or annotations that are exported with a service.
pub(crate) const MAX_TEXTS: usize = 64;
/// Most addresses of a link: more than are ever used, and a bound for what is read.
pub(crate) const MAX_ADDRESSES: usize = 64;
/// Most patterns of what a peer may contribute.
pub(crate) const MAX_IMPORTS: usize = 256;

// The same rules as patterns, for API servers: each is beside its function's name below, and a
// test asks both.
/// [`dns_label`], but for its length.
pub(crate) const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// [`dns_name`], but for its length.
pub(crate) const DNS_NAME: &str =
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// [`trust_domain`], but for its length.
pub(crate) const TRUST_DOMAIN: &str = "^[a-z0-9._-]+$";
/// [`spiffe_id`], but for its length: no segment is empty, `.` or `..`.
pub(crate) const SPIFFE_ID: &str = "^spiffe://[a-z0-9._-]{1,255}(/([A-Za-z0-9_-][A-Za-z0-9._-]*|[.][A-Za-z0-9_-][A-Za-z0-9._-]*|[.][.][A-Za-z0-9._-]+))+$";
/// [`own_or_place`], but for its length in bytes.
pub(crate) const PLACE: &str = r"^[^/\p{Cc}]+$";
/// [`glob`].
pub(crate) const GLOB: &str = "^[a-z0-9*-]{1,63}$";
/// [`label_key`], but for the length of its prefix.
pub(crate) const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// [`label_value`], but for its length.
pub(crate) const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// Longest DNS name, in bytes.
const MAX_NAME: usize = 253;

/// An RFC 1123 label: the names of services and namespaces.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    if is_dns_label(text) {
        return Ok(());
    }
    Err("write a DNS label: 1 to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit".into())
}

/// A name of one or more RFC 1123 labels: cluster ids, hosts.
pub(crate) fn dns_name(text: &str) -> Result<(), String> {
    if text.len() <= MAX_NAME && text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err("write a DNS name: labels of a-z, 0-9 and `-` with dots between them, at most 253 characters".into())
}

/// A cluster id: fewer than 128 characters (KEP-2149).
pub(crate) fn cluster_id(text: &str) -> Result<(), String> {
    if text.len() <= MAX_CLUSTER_ID && text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err("write the peer's cluster id: labels of a-z, 0-9 and `-` with dots between them, fewer than 128 characters".into())
}

/// A cluster id, or the word for the caller's own cluster.
pub(crate) fn own_or_cluster(text: &str) -> Result<(), String> {
    if text == crate::failover_policy::OWN || cluster_id(text).is_ok() {
        return Ok(());
    }
    Err("write a cluster id (labels of a-z, 0-9 and `-` with dots between them), or `Own` for the caller's cluster".into())
}

/// A region or zone, or the word for the caller's own.
pub(crate) fn own_or_place(text: &str) -> Result<(), String> {
    let plain = !text.chars().any(|c| c.is_control() || c == '/');
    if (1..=MAX_LABEL).contains(&text.len()) && plain {
        return Ok(());
    }
    Err("write the name of a region or zone, 1 to 63 characters without `/`, or `Own` for the caller's".into())
}

/// A length of time.
pub(crate) fn span(text: &str) -> Result<(), String> {
    match crate::Span::parse(text) {
        Some(_) => Ok(()),
        None => {
            Err("write a length of time such as `30s`, `1m30s` or `500ms`, at most `24h`".into())
        }
    }
}

/// A SPIFFE trust domain.
pub(crate) fn trust_domain(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if !text.is_empty() && text.len() <= 255 && text.chars().all(allowed) {
        return Ok(());
    }
    Err(
        "write a trust domain without `spiffe://`: 1 to 255 of a-z, 0-9, `.`, `-` and `_`, \
         such as `west.demo.linkspan.internal`"
            .into(),
    )
}

/// A SPIFFE ID with a path.
pub(crate) fn spiffe_id(text: &str) -> Result<(), String> {
    let fix = || {
        "write a SPIFFE ID such as `spiffe://west.demo.linkspan.internal/ns/linkspan-system/sa/linkspan-gateway`"
            .to_owned()
    };
    let (domain, path) = text
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(fix)?;
    trust_domain(domain).map_err(|_| fix())?;
    let segment = |s: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        !s.is_empty() && s != "." && s != ".." && s.chars().all(allowed)
    };
    if text.len() <= 2048 && path.split('/').all(segment) {
        Ok(())
    } else {
        Err(fix())
    }
}

/// A host to dial: an IP address or a DNS name.
pub(crate) fn host(text: &str) -> Result<(), String> {
    match text.parse::<std::net::IpAddr>() {
        // Two ways of writing one address are one too many.
        Ok(std::net::IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            return Err("write the IPv4 address itself, without `::ffff:`".into());
        }
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    // A name of digits and dots alone is a mistyped IPv4 address, not a host.
    let numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !numeric && dns_name(text).is_ok() {
        return Ok(());
    }
    Err("write an IP address without brackets, or a DNS name in lower case; the port has a field of its own".into())
}

/// An address to dial.
pub(crate) fn ip_address(text: &str) -> Result<(), String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => host(text),
        Err(_) => {
            Err("write an IP address without brackets; the port has a field of its own".into())
        }
    }
}

/// PEM certificates.
pub(crate) fn pem(text: &str) -> Result<(), String> {
    let begins = text.matches("-----BEGIN CERTIFICATE-----").count();
    let ends = text.matches("-----END CERTIFICATE-----").count();
    if text.contains("PRIVATE KEY") {
        return Err(
            "remove the private key: a bundle holds the peer's root certificates only".into(),
        );
    }
    if text.len() > MAX_PEM {
        return Err(format!(
            "keep it within {MAX_PEM} bytes: a bundle holds the peer's root certificates only"
        ));
    }
    if begins > 0 && begins == ends {
        return Ok(());
    }
    Err(
        "paste the peer's root certificates in PEM form (`-----BEGIN CERTIFICATE-----` … \
         `-----END CERTIFICATE-----`) as a block scalar: `bundle: |`"
            .into(),
    )
}

/// A glob for a DNS label: `*` stands for any characters.
pub(crate) fn glob(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*';
    if !text.is_empty() && text.len() <= MAX_LABEL && text.chars().all(allowed) {
        return Ok(());
    }
    Err(
        "write a name in which `*` stands for any characters: a-z, 0-9, `-` and `*`, at most 63"
            .into(),
    )
}

/// A point in time.
pub(crate) fn timestamp(text: &str) -> Result<(), String> {
    match crate::Timestamp::parse(text) {
        Some(_) => Ok(()),
        None => Err("write the time in RFC 3339, such as `2026-01-02T03:04:05Z`".into()),
    }
}

/// The key of a label or annotation: an optional DNS name and `/`, then a name.
pub(crate) fn label_key(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        Some((prefix, name)) if dns_name(prefix).is_ok() => name,
        Some(_) => "",
        None => text,
    };
    if !name.is_empty() && is_label_text(name) {
        return Ok(());
    }
    Err("write a label key: up to 63 letters, digits, `-`, `_` and `.`, optionally after a DNS name and `/`".into())
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    if is_label_text(text) {
        return Ok(());
    }
    Err("write a label value: up to 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit".into())
}

/// Anything.
pub(crate) fn any_text(_: &str) -> Result<(), String> {
    Ok(())
}

fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_label_text(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL
        && text.chars().all(inner)
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}
