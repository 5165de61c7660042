//! `linkspan uninstall`: what is to be deleted.

use super::install::{Form, print, references};
use crate::{
    exit::{Failure, help},
    output::write_out,
};

/// Prints what `linkspan install` makes, by name, for `kubectl delete`.
///
/// With the CustomResourceDefinitions go all objects of these kinds, those of others included: where
/// something else uses the Multi-Cluster Services API, keep them. Linked clusters learn of it by
/// silence; `linkspan link remove PEER` before tells them at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan uninstall",
    "linkspan uninstall --keep-crds -o json",
))]
pub struct Args {
    /// Keep the CustomResourceDefinitions, and what was declared with them
    #[arg(long)]
    keep_crds: bool,
    /// YAML documents, or one JSON list
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

pub(crate) fn uninstall(args: &Args) -> Result<(), Failure> {
    if args.keep_crds {
        eprintln!(
            "ServiceImports stay as they are; remove them with: kubectl delete serviceimports \
             --all-namespaces -l app.kubernetes.io/managed-by=linkspan-federation"
        );
    }
    write_out(print(args.output, &references(!args.keep_crds))?.as_bytes())
}
