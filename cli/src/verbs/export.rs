//! `linkspan export NAMESPACE/SERVICE`.

use std::str::FromStr;

use anyhow::bail;
use linkspan_api::v1;
use serde::Serialize;

use crate::{
    exit::{Failure, help},
    operator::{self, Operator, OperatorArgs},
    output::Format,
};

/// Exports a service of this cluster to the clusterset.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan export shop/checkout",
    "linkspan export shop/checkout --state-dir /var/lib/linkspan",
))]
pub struct Args {
    /// The service to export
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: NamespacedName,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct View {
    service: String,
    created: bool,
    path: String,
}

/// `namespace/name`; federation judges the names themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamespacedName {
    namespace: String,
    name: String,
}

impl FromStr for NamespacedName {
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

pub(crate) fn export(args: &Args) -> Result<(), Failure> {
    let key = v1::ServiceKey {
        namespace: args.service.namespace.clone(),
        name: args.service.name.clone(),
    };
    let reply = operator::block_on(async {
        let mut operator = Operator::connect(args.operator.path()).await?;
        operator.export(key).await
    })?;
    let view = View {
        service: format!("{}/{}", args.service.namespace, args.service.name),
        created: reply.created,
        path: reply.path,
    };
    args.output.print(&view, |view| {
        let verb = if view.created {
            "exported"
        } else {
            "was already exported"
        };
        format!("{} {verb} ({})\n", view.service, view.path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_exactly_two_words() {
        let parsed: NamespacedName = "shop/checkout".parse().expect("valid");
        assert_eq!(
            (parsed.namespace.as_str(), parsed.name.as_str()),
            ("shop", "checkout")
        );
        for wrong in ["checkout", "/checkout", "shop/", "a/b/c", ""] {
            assert!(wrong.parse::<NamespacedName>().is_err(), "{wrong}");
        }
    }
}
