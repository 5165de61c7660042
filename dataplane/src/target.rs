//! The target name: where an inner connection wants to go, as a DNS name in its ClientHello.
//!
//! `[<endpoint-id>.]<port>.<service>.<namespace>.svc.<cluster-label>.linkspan.internal`, or the
//! reserved `federation.<cluster-label>.linkspan.internal`. At most [`MAX_LEN`] characters, parsed
//! from the right with fixed label counts, so that no label can be mistaken for another. There is
//! exactly one spelling of each target: parsing and printing round-trip.

use std::{fmt, str::FromStr};

use linkspan_routing::{ClusterLabel, EndpointId, ServiceKey};

/// Longest target name, characters.
pub const MAX_LEN: usize = 246;
/// What all target names end in.
const SUFFIX: &str = ".linkspan.internal";

/// What an inner connection asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetName {
    /// A Service port, maybe at one endpoint.
    Service(Target),
    /// The federation of a cluster.
    Federation(ClusterLabel),
}

/// A Service port in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The endpoint that the source chose; `None` lets the ingress choose.
    pub endpoint: Option<EndpointId>,
    /// A Service port, never the application's own.
    pub port: u16,
    /// The service.
    pub service: ServiceKey,
    /// Where it is.
    pub cluster: ClusterLabel,
}

/// Why a name is no target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Longer than [`MAX_LEN`].
    #[error("target name is longer than {MAX_LEN} characters")]
    TooLong,
    /// Not below `linkspan.internal`.
    #[error("target name does not end in `{SUFFIX}`")]
    Suffix,
    /// Neither of the two forms.
    #[error("target name has neither the form of a service nor that of a federation")]
    Form,
    /// The port is not 1 to 65535 in plain decimal.
    #[error("target name holds no valid port")]
    Port,
    /// Service, namespace, cluster or endpoint is not valid.
    #[error("target name holds an invalid {0}")]
    Label(&'static str),
}

impl FromStr for TargetName {
    type Err = TargetError;

    fn from_str(name: &str) -> Result<Self, TargetError> {
        if name.len() > MAX_LEN {
            return Err(TargetError::TooLong);
        }
        let labels = name.strip_suffix(SUFFIX).ok_or(TargetError::Suffix)?;
        let mut from_right = labels.rsplit('.');
        let cluster = from_right.next().ok_or(TargetError::Form)?;
        let cluster = cluster.parse().map_err(|_| TargetError::Label("cluster"))?;
        match from_right.next() {
            Some("federation") if from_right.next().is_none() => Ok(Self::Federation(cluster)),
            Some("svc") => service(from_right, cluster).map(Self::Service),
            _ => Err(TargetError::Form),
        }
    }
}

fn service<'a>(
    mut from_right: impl Iterator<Item = &'a str>,
    cluster: ClusterLabel,
) -> Result<Target, TargetError> {
    let mut label = || from_right.next().ok_or(TargetError::Form);
    let (namespace, name, port) = (label()?, label()?, label()?);
    let service = format!("{namespace}/{name}")
        .parse()
        .map_err(|_| TargetError::Label("service"))?;
    let endpoint = from_right.next().map(str::parse).transpose();
    let endpoint = endpoint.map_err(|_| TargetError::Label("endpoint"))?;
    if from_right.next().is_some() {
        return Err(TargetError::Form);
    }
    Ok(Target {
        endpoint,
        port: plain_port(port)?,
        service,
        cluster,
    })
}

/// Decimal without sign or leading zeros: one spelling only.
fn plain_port(text: &str) -> Result<u16, TargetError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let port = if plain { text.parse().ok() } else { None };
    port.ok_or(TargetError::Port)
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(target) => target.fmt(f),
            Self::Federation(cluster) => write!(f, "federation.{cluster}{SUFFIX}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}.")?;
        }
        let ServiceKey { namespace, name } = &self.service;
        write!(
            f,
            "{}.{name}.{namespace}.svc.{}{SUFFIX}",
            self.port, self.cluster
        )
    }
}

impl From<Target> for TargetName {
    fn from(target: Target) -> Self {
        Self::Service(target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENDPOINT: &str = "abcdefghijklmnopqrstuvwxyz";

    fn parse(name: &str) -> Result<TargetName, TargetError> {
        name.parse()
    }

    #[test]
    fn both_forms() {
        let name = format!("{ENDPOINT}.80.checkout.shop.svc.west.linkspan.internal");
        let TargetName::Service(target) = parse(&name).unwrap() else {
            panic!("a service")
        };
        assert_eq!(target.port, 80);
        assert_eq!(target.service, "shop/checkout".parse().unwrap());
        assert_eq!(target.endpoint, Some(ENDPOINT.parse().unwrap()));
        assert_eq!(target.to_string(), name);
        let name = "federation.west.linkspan.internal";
        assert_eq!(parse(name).unwrap().to_string(), name);
    }

    #[test]
    fn odd_names_are_refused() {
        use TargetError::{Form, Label, Port, Suffix};
        for (name, error) in [
            ("80.checkout.shop.svc.west.linkspan.internal.", Suffix),
            ("80.checkout.shop.svc.west.linkspan.local", Suffix),
            ("080.checkout.shop.svc.west.linkspan.internal", Port),
            ("+80.checkout.shop.svc.west.linkspan.internal", Port),
            ("0.checkout.shop.svc.west.linkspan.internal", Port),
            ("65536.checkout.shop.svc.west.linkspan.internal", Port),
            ("checkout.shop.svc.west.linkspan.internal", Form),
            ("a.federation.west.linkspan.internal", Form),
            ("federation.shop.svc.west.linkspan.internal", Form),
            (
                "x.80.checkout.shop.svc.west.linkspan.internal",
                Label("endpoint"),
            ),
            (
                "80.Checkout.shop.svc.west.linkspan.internal",
                Label("service"),
            ),
            (
                "80.checkout.a/b.svc.west.linkspan.internal",
                Label("service"),
            ),
            (
                "80.checkout.shop.svc.we_st.linkspan.internal",
                Label("cluster"),
            ),
            (".linkspan.internal", Label("cluster")),
        ] {
            assert_eq!(parse(name), Err(error), "{name}");
        }
        let long = format!(
            "80.{}.{}.svc.west.linkspan.internal",
            "a".repeat(63),
            "b".repeat(180)
        );
        assert_eq!(parse(&long), Err(TargetError::TooLong));
    }

    proptest! {
        #[test]
        fn round_trips(
            endpoint in proptest::option::of("[a-z2-7]{26}"), port in 1_u16..,
            name in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?", namespace in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        ) {
            let endpoint = endpoint.and_then(|id| id.parse().ok());
            let service = format!("{namespace}/{name}").parse().unwrap();
            let target = TargetName::Service(Target { endpoint, port, service, cluster: "west".parse().unwrap() });
            prop_assert_eq!(parse(&target.to_string()), Ok(target));
        }

        #[test]
        fn never_panics_and_has_one_spelling(name in "([a-z0-9]{0,3}|svc|federation|\\PC){0,3}(\\.[a-z0-9]{1,5}){0,5}(\\.svc)?\\.west\\.linkspan\\.internal") {
            if let Ok(target) = parse(&name) {
                prop_assert_eq!(target.to_string(), name);
            }
        }
    }
}
