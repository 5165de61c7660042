//! `NAMESPACE/SERVICE` on the command line.

use std::{fmt, str::FromStr};

use anyhow::bail;
use linkspan_api::v1;

/// `namespace/name`; federation judges the names themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ServiceName {
    pub(crate) fn key(&self) -> v1::ServiceKey {
        v1::ServiceKey {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl From<v1::ServiceKey> for ServiceName {
    fn from(key: v1::ServiceKey) -> Self {
        Self {
            namespace: key.namespace,
            name: key.name,
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => bail!("write it as NAMESPACE/SERVICE, for example shop/checkout"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_exactly_two_words() {
        let parsed: ServiceName = "shop/checkout".parse().expect("valid");
        assert_eq!(parsed.to_string(), "shop/checkout");
        for wrong in ["checkout", "/checkout", "shop/", "a/b/c", ""] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
        }
    }
}
