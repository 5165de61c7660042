//! `linkspan run federation|gateway|sidecar`.

use std::{fmt::Display, net::IpAddr, path::PathBuf};

use anyhow::Context as _;
use linkspan_runtime::{
    config::ConfigError,
    files,
    logging::{self, Format},
    process,
    stop::Stop,
};
use tracing::info;

use crate::exit::{Failure, help};

/// Runs one part until it is told to stop.
///
/// SIGTERM and SIGINT ask it to finish what it has and to end (exit code 0); a second one
/// ends it at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan run federation --config federation.yaml",
    "linkspan run gateway --config gateway-1.yaml",
    "linkspan run sidecar --config sidecar.yaml --log info,linkspan_sidecar=debug",
))]
pub struct Args {
    #[command(subcommand)]
    part: Part,
    /// Which log lines, e.g. `info` or `info,linkspan_gateway=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "LINKSPAN_LOG",
        default_value = "info",
        global = true
    )]
    log: String,
    /// Log as text or JSON; auto is text on a terminal
    #[arg(
        long,
        value_name = "auto|text|json",
        env = "LINKSPAN_LOG_FORMAT",
        default_value = "auto",
        global = true
    )]
    log_format: Format,
}

/// The parts; each takes one configuration file.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Runs the control plane of a cluster
    #[command(after_long_help = help!("linkspan run federation --config federation.yaml"))]
    Federation(PartArgs),
    /// Runs a gateway, which holds the tunnels to other clusters
    #[command(after_long_help = help!(
        "linkspan run gateway --config gateway.yaml",
        "linkspan run gateway --config gateway.yaml --log info,linkspan_gateway=debug",
        "linkspan run gateway --config gateway.yaml --replica gateway-1 --egress-address 192.0.2.7",
    ))]
    Gateway(GatewayArgs),
    /// Runs the sidecar of one workload
    #[command(after_long_help = help!(
        "linkspan run sidecar --config sidecar.yaml",
        "linkspan run sidecar --config sidecar.yaml --uid checkout-1 --labels /etc/podinfo/labels",
    ))]
    Sidecar(SidecarArgs),
}

#[derive(Debug, clap::Args)]
struct PartArgs {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// What workloads whose sidecars read the same file have of their own.
#[derive(Debug, clap::Args)]
struct SidecarArgs {
    #[command(flatten)]
    part: PartArgs,
    /// Name of the workload; goes before `workload.uid` in the file, as the others do
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// Its namespace
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Its service account
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Its host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// IP address at which other sidecars reach this one
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// File with its labels, a line name="value" each, as Kubernetes' downward API writes it
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
}

impl SidecarArgs {
    fn own(&self) -> linkspan_sidecar::Own {
        linkspan_sidecar::Own {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            hostname: self.hostname.clone(),
            address: self.address,
            labels: self.labels.clone(),
        }
    }
}

/// What replicas that read the same file have of their own.
#[derive(Debug, clap::Args)]
struct GatewayArgs {
    #[command(flatten)]
    part: PartArgs,
    /// Stable name of this replica; goes before `replica` in the file
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// IP address that sidecars are told, and clients without one where `imports.address` says no
    /// other; goes before `egressAddress` in the file
    #[arg(long, value_name = "IP")]
    egress_address: Option<IpAddr>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    logging::init(args.log_format, &args.log).map_err(|error| Failure::Usage(error.into()))?;
    files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(part(&args.part))
}

async fn part(part: &Part) -> Result<(), Failure> {
    let stop = Stop::new();
    match part {
        Part::Federation(args) => {
            let config = loaded(linkspan_federation::Config::load(&args.config))?;
            let bound = tokio::select! {
                bound = linkspan_federation::bind(config) => started("federation", bound)?,
                // It may wait for another replica's end for as long as that takes.
                () = process::signals(stop.clone()) => return Ok(()),
                () = stop.draining() => return Ok(()),
            };
            until_stopped(stop.clone(), bound.run(stop)).await
        }
        Part::Gateway(args) => {
            let own = linkspan_gateway::Own {
                replica: args.replica.clone(),
                egress_address: args.egress_address,
            };
            let config = linkspan_gateway::Config::load_with(&args.part.config, own);
            let config = loaded(config)?;
            let bound = linkspan_gateway::bind(config).await;
            let bound = started("gateway", bound)?;
            until_stopped(stop.clone(), bound.run(stop)).await
        }
        Part::Sidecar(args) => {
            let config = loaded(linkspan_sidecar::Config::load_with(
                &args.part.config,
                args.own(),
            ))?;
            let bound = linkspan_sidecar::bind(config).await;
            let bound = started("sidecar", bound)?;
            until_stopped(stop.clone(), bound.run(stop)).await
        }
    }
}

fn loaded<T>(config: Result<T, ConfigError>) -> Result<T, Failure> {
    config.map_err(|error| Failure::Usage(error.into()))
}

fn started<T, E>(part: impl Display, bound: Result<T, E>) -> Result<T, Failure>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let bound = bound.with_context(|| format!("cannot start the {part}"))?;
    info!(%part, version = env!("CARGO_PKG_VERSION"), "started");
    Ok(bound)
}

/// Runs a part and turns signals into its stop.
async fn until_stopped<E>(
    stop: Stop,
    running: impl Future<Output = Result<(), E>>,
) -> Result<(), Failure>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut running = std::pin::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = process::signals(stop) => running.await,
    };
    ended.map_err(|error| Failure::Failed(error.into()))?;
    info!("stopped");
    Ok(())
}
