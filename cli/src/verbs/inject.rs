//! `linkspan inject`.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};
use linkspan_core::{
    Locality,
    inject::{Capture, INJECT, Injection, inject as put_in},
};
use serde_json::Value;

use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::write_out,
};

/// Manifests of a whole installation; more is a mistake.
const MAX_INPUT: u64 = 64 * 1024 * 1024;
/// Where pods find federation once `linkspan install` was applied.
const FEDERATION: &str = "linkspan-federation.linkspan-system.svc:15010";
const IMAGE: &str = concat!("linkspan:", env!("CARGO_PKG_VERSION"));

/// Puts a sidecar into the pods of Kubernetes manifests, and prints them.
///
/// Asks the federation of the cluster for its name and roots; in a cluster it is run in federation's
/// own pod, with the manifests at standard input. What makes no pods is printed as it is, and pods
/// that have a sidecar get the newest one: doing it again changes nothing.
///
/// A pod calls services by the ports of 127.0.0.1 that its annotation names:
/// `linkspan.io/outbound: "7001=shop/checkout:80"`; with --capture, by their addresses. Calls to it come in by mTLS; those that do not
/// come through the mesh reach it as before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan inject app.yaml",
    "linkspan inject -",
    "linkspan inject app.yaml --capture",
    "linkspan inject app.yaml --image registry.example.org/linkspan:1.0 --region eu --zone a",
))]
pub struct Args {
    /// The manifests, YAML or JSON; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Image of the sidecar
    #[arg(long, value_name = "NAME:TAG", env = "LINKSPAN_IMAGE", default_value = IMAGE)]
    image: String,
    /// When nodes fetch the image: Always, IfNotPresent or Never
    #[arg(
        long,
        value_name = "WHEN",
        env = "LINKSPAN_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"],
    )]
    image_pull_policy: String,
    /// Where pods reach federation
    #[arg(long, value_name = "HOST:PORT", default_value = FEDERATION)]
    federation: String,
    /// Region of the pods
    #[arg(long, value_name = "REGION", default_value = "")]
    region: String,
    /// Zone of the pods
    #[arg(long, value_name = "ZONE", requires = "region", default_value = "")]
    zone: String,
    /// Lead all calls of the pods to their sidecars, but of those annotated
    /// `linkspan.io/capture: "false"`. It takes a container with the capability NET_ADMIN, which the
    /// Pod Security profiles baseline and restricted forbid
    #[arg(long)]
    capture: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(crate) fn inject(args: &Args) -> Result<(), Failure> {
    let mut objects = read(args)?;
    let (status, bundle) = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        let status = operator.status().await?;
        Ok((status, operator.bundle().await?))
    })?;
    let injection = Injection {
        cluster: said(status.cluster)?,
        trust_domain: said(status.trust_domain)?,
        federation: args.federation.clone(),
        roots: bundle.pem,
        locality: Locality::new(&args.region, &args.zone),
        image: args.image.clone(),
        image_pull_policy: args.image_pull_policy.clone(),
    };
    let capture = match args.capture {
        true => Capture::Yes,
        false => Capture::No,
    };
    let mut pods = 0;
    for object in &mut objects {
        let injected = put_in(object, &injection, capture).map_err(|error| {
            let error = anyhow!("{}: {error}", named(object));
            Failure::Usage(error)
        });
        pods += injected?;
    }
    if pods == 0 {
        eprintln!(
            "note: nothing here makes pods that are to have a sidecar (label `{INJECT}: \"false\"` \
             keeps it out); the manifests are printed as they are"
        );
    }
    write_out(yaml(&objects)?.as_bytes())
}

fn said<T: std::str::FromStr>(text: String) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    let wrong = |error| anyhow!("federation says `{text}`: {error}; do both have one version?");
    text.parse()
        .map_err(|error: T::Err| Failure::Failed(wrong(error)))
}

fn read(args: &Args) -> Result<Vec<Value>, Failure> {
    let mut text = String::new();
    let read = match args.file.to_str() {
        Some("-") => {
            let input = std::io::stdin();
            if input.is_terminal() {
                eprintln!("reading manifests from the terminal; end with Ctrl-D");
            }
            input.take(MAX_INPUT).read_to_string(&mut text)
        }
        _ => std::fs::File::open(&args.file)
            .and_then(|file| file.take(MAX_INPUT).read_to_string(&mut text)),
    };
    let what = || format!("cannot read {}", args.file.display());
    read.with_context(what).map_err(Failure::Usage)?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)
        .with_context(|| format!("{} is no YAML", args.file.display()))
        .map_err(Failure::Usage)?;
    Ok(objects.into_iter().filter(|of| !of.is_null()).collect())
}

fn yaml(objects: &[Value]) -> Result<String, Failure> {
    let documents = objects.iter().map(serde_saphyr::to_string);
    let documents: Result<Vec<_>, _> = documents.collect();
    let documents = documents.map_err(|error| Failure::Failed(anyhow!("writing YAML: {error}")))?;
    Ok(documents.join("---\n"))
}

fn named(object: &Value) -> String {
    let metadata = &object["metadata"];
    let of = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!(
            "{} {namespace}/{}",
            of(&object["kind"]),
            of(&metadata["name"])
        ),
        None => format!("{} {}", of(&object["kind"]), of(&metadata["name"])),
    }
}

#[cfg(test)]
mod tests {
    use linkspan_sidecar::capture::rules;

    /// They are said in two places, of which neither may know the other.
    #[test]
    fn what_captures_and_what_is_captured_agree() {
        assert_eq!(linkspan_core::inject::USER, rules::SIDECAR_UID);
        assert_eq!(rules::OUTBOUND_PORT, 15_001);
    }
}
