//! A supervisor with sample applications only: what the test of "nothing is left behind"
//! kills in every way that there is.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{
    ports::Ports,
    supervisor::{Spec, Supervisor},
};

/// What a nursery says, in one line, once everything runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// The private directory.
    pub dir: std::path::PathBuf,
    /// All processes below the supervisor, the reaper included.
    pub processes: Vec<u32>,
}

/// How to end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Panic when standard input ends, instead of stopping in order
    #[arg(long)]
    panic: bool,
    /// Remove this program's file before the applications are started, as an upgrade does
    #[arg(long)]
    unlink: bool,
}

/// Starts two applications and waits for the end of standard input.
///
/// # Errors
/// If they cannot be started.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let (mut supervisor, _ends) = Supervisor::start().await?;
    if args.unlink {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        std::fs::remove_file(program).context("cannot remove this program")?;
    }
    let mut ports = Ports::new(rand::random());
    std::fs::write(supervisor.dir().join("a-file"), "left behind?").context("writing")?;
    for name in ["one", "two"] {
        let listen = format!("127.0.0.1:{}", ports.take()?);
        let arguments = ["app", "tcp-echo", "--instance", name, "--listen", &listen];
        supervisor.spawn(&Spec::new(name, arguments))?;
    }
    let ready = Ready {
        dir: supervisor.dir().to_owned(),
        processes: supervisor.processes(),
    };
    println!("{}", serde_json::to_string(&ready)?);
    let mut input = tokio::io::stdin();
    tokio::io::copy(&mut input, &mut tokio::io::sink()).await?;
    assert!(!args.panic, "as asked");
    supervisor.stop().await
}
