//! This program as a child of itself, so that client and origin can have a core of their own.

use std::{env::current_exe, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use linkspan::lifeline;
use tokio::time::timeout;

use crate::{
    load::{Load, Summary},
    pin::Cores,
};

/// What a load may take beyond its own time.
const SLACK: Duration = Duration::from_secs(20);

/// A command for a program, on one core if there is a choice.
///
/// # Errors
/// When this program cannot find itself.
pub fn on(cpu: Option<usize>, program: &Path) -> Result<Command> {
    let Some(cpu) = cpu else {
        return Ok(Command::new(program));
    };
    let mut command = Command::new(current_exe()?);
    command.args(["on", "--cpu", &cpu.to_string(), "--"]);
    command.arg(program);
    Ok(command)
}

/// Options that end a child with this process.
#[must_use]
pub fn tie() -> [String; 2] {
    [lifeline::OPTION.to_owned(), std::process::id().to_string()]
}

/// Runs a load in a process of its own and waits for what it found.
///
/// # Errors
/// When a request failed, or it took far longer than it was told to.
pub async fn load(load: &Load, cores: Option<Cores>) -> Result<Summary> {
    let mut command = on(cores.map(|cores| cores.ends), &current_exe()?)?;
    command.args(tie()).arg("load").args(load.arguments());
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    let output = timeout(load.time() + SLACK, output)
        .await
        .context("the client does not end: requests hang")?
        .context("cannot start the client")?;
    ensure!(
        output.status.success(),
        "the client failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("cannot read what the client found")
}
