//! The sample applications of the demo, each a process of its own.
//!
//! They know nothing of Linkspan: plain HTTP, gRPC and TCP on loopback. Their sidecars
//! do the rest. What they promise the demo is honesty: each process has a nonce that the
//! supervisor gave it, and each answer carries that nonce and the request's own, so that
//! a wrong, stale or mixed-up answer cannot pass for a good one.

pub mod checkout;
pub mod echo;
pub mod frontend;
pub mod grpc;
pub mod report;

use anyhow::Context as _;

use crate::exit::Failure;

/// The sample applications of the demo.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    app: App,
}

#[derive(Debug, clap::Subcommand)]
enum App {
    /// Calls `checkout` in an open loop and reports each answer on standard output
    Frontend(frontend::Args),
    /// Answers HTTP/1.1 and HTTP/2 requests
    Checkout(checkout::Args),
    /// Answers gRPC calls with what they carried
    GrpcEcho(grpc::Args),
    /// Sends back the bytes of a TCP connection
    TcpEcho(echo::Args),
    /// Removes what a demo leaves when it ends, however it ends
    Reaper,
    /// A supervisor to be killed in tests
    Nursery(crate::demo::nursery::Args),
}

/// Runs one application until it is killed.
///
/// # Errors
/// If it cannot listen or dial.
pub fn run(args: Args) -> Result<(), Failure> {
    if let App::Reaper = args.app {
        return Ok(crate::demo::reaper::run()?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match args.app {
            App::Frontend(args) => frontend::run(args).await,
            App::Checkout(args) => checkout::run(args).await,
            App::GrpcEcho(args) => grpc::run(args).await,
            App::TcpEcho(args) => echo::run(args).await,
            App::Nursery(args) => crate::demo::nursery::run(&args).await,
            App::Reaper => Ok(()),
        }
    })?;
    Ok(())
}
