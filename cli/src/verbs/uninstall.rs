//! `linkspan uninstall`: what is to be deleted.

use super::install::{Crds, Form, print, references};
use crate::{
    exit::{Failure, help},
    output::write_out,
};

/// Prints what `linkspan install` makes, by name, for `kubectl delete`.
///
/// With a CustomResourceDefinition go all objects of its kind. Those of the Multi-Cluster Services and
/// About APIs stay unless `--shared-crds` says otherwise: others may have installed them, or use
/// them. Linked clusters learn of it by silence; `linkspan link remove PEER` before tells them at
/// once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan uninstall",
    "linkspan uninstall --shared-crds",
    "linkspan uninstall --keep-crds -o json",
))]
pub struct Args {
    /// Also delete the definitions of the Multi-Cluster Services and About APIs, with every
    /// ServiceExport, ServiceImport and ClusterProperty, whoever made it
    #[arg(long)]
    shared_crds: bool,
    /// Keep all CustomResourceDefinitions, and what was declared with them
    #[arg(long, conflicts_with = "shared_crds")]
    keep_crds: bool,
    /// YAML documents, or one JSON list
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

pub(crate) fn uninstall(args: &Args) -> Result<(), Failure> {
    let crds = match (args.shared_crds, args.keep_crds) {
        (true, _) => Crds::All,
        (_, true) => Crds::Kept,
        _ => Crds::Own,
    };
    if crds != Crds::All {
        eprintln!(
            "ServiceImports stay as they are; remove them with: kubectl delete serviceimports \
             --all-namespaces -l app.kubernetes.io/managed-by=linkspan-federation"
        );
    }
    write_out(print(args.output, &references(crds))?.as_bytes())
}
