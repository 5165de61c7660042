//! `linkspan install`: everything that a Kubernetes cluster needs, as manifests.
//!
//! ```text
//! flags ─► Settings (cannot be wrong) ─► manifests (pure) ─► YAML, a JSON list, or a kustomize base
//! ```
//! Nothing here talks to an API server: `kubectl` applies what is printed, and whoever prefers
//! another tool uses that. The same settings give the same bytes.

mod federation;
mod gateway;
mod kustomize;
mod manifest;
mod network;
mod people;
mod pod;
mod rights;
mod settings;
#[cfg(test)]
mod tests;
mod webhook;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{
    exit::{Failure, help},
    output::write_out,
};

pub(super) use manifest::{Form, print};
use manifest::{cluster_wide, reference};
pub(super) use settings::{Flags, Settings};

/// Namespace of all parts; the parts' identities name it.
pub(super) use linkspan_trust::SYSTEM_NAMESPACE;

/// Prints the manifests that make a Kubernetes cluster a member of a clusterset.
///
/// They hold no secret, and applying them again changes nothing. `linkspan uninstall` prints what
/// is to be deleted.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan install --cluster east --clusterset demo",
    "linkspan install --cluster east --clusterset demo --region eu --expose NodePort",
    "linkspan install --cluster east --clusterset demo --gateway-address gw.example.org:15443 -o json",
    "linkspan install --cluster east --clusterset demo --kustomize base",
))]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// YAML documents, or one JSON list
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    /// Write a kustomize base into this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    kustomize: Option<PathBuf>,
}

pub(crate) fn install(args: &Args) -> Result<(), Failure> {
    let settings = Settings::of(&args.flags).map_err(Failure::Usage)?;
    let manifests = manifests(&settings);
    match &args.kustomize {
        Some(folder) => kustomize::write(folder, &manifests),
        None => write_out(print(args.output, &manifests)?.as_bytes()),
    }
}

/// All objects, in the order in which they are to be made.
pub(super) fn manifests(settings: &Settings) -> Vec<Value> {
    let mut all = vec![namespace(settings)];
    if settings.crds {
        all.extend(linkspan_resources::crd::documents());
    }
    all.extend(rights::objects());
    all.extend(people::objects());
    all.extend(federation::objects(settings));
    all.extend(gateway::objects(settings));
    all.extend(network::objects());
    all.extend(webhook::objects());
    all.sort_by_key(manifest::order);
    all
}

/// Which CustomResourceDefinitions are to be deleted, and with them all objects of their kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crds {
    /// None.
    Kept,
    /// Our own.
    Own,
    /// Also those of standard APIs, which others may have installed or use.
    All,
}

impl Crds {
    fn include(self, object: &Value) -> bool {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match self {
            _ if object["kind"] != "CustomResourceDefinition" => true,
            Self::Kept => false,
            Self::Own => name.ends_with(".linkspan.io"),
            Self::All => true,
        }
    }
}

/// What names an object and no more, in the order in which they are to be deleted: first what holds
/// up others' pods, then what writes, last what was written. Of every setting: what was not made is not missed.
pub(super) fn references(crds: Crds) -> Vec<Value> {
    let all = manifests(&Settings::everything());
    let deleted = all.iter().filter(|object| crds.include(object));
    let mut references: Vec<_> = deleted.map(reference).collect();
    references.reverse();
    references.sort_by_key(|object| match object["kind"].as_str() {
        Some("MutatingWebhookConfiguration") => 0,
        Some("Deployment") => 1,
        _ => 2,
    });
    references
}

fn namespace(settings: &Settings) -> Value {
    let mut namespace = cluster_wide("v1", "Namespace", SYSTEM_NAMESPACE);
    for mode in ["enforce", "audit", "warn"] {
        let label = format!("pod-security.kubernetes.io/{mode}");
        namespace["metadata"]["labels"][label] = json!("restricted");
    }
    namespace["metadata"]["annotations"] = json!({ "linkspan.io/install": settings.flags() });
    namespace
}
