//! A federation in Kubernetes: its operator socket is in its pod, and whoever may `exec` there may ask.
//! `kubectl` carries the bytes, and `linkspan relay` in the pod puts them onto the socket.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, anyhow};
use linkspan_trust::SYSTEM_NAMESPACE;
use tokio::{
    io::{AsyncReadExt as _, Join},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{exit::Failure, verbs::relay};

/// For `kubectl` to reach the API server, and that the pod; people who log in meanwhile included.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes to and from the operator socket in the cluster of that context, and who carries them.
pub(super) async fn relayed(
    context: &str,
) -> Result<(Join<ChildStdout, ChildStdin>, Child), Failure> {
    let mut child = Command::new("kubectl")
        .args(["--context", context, "--namespace", SYSTEM_NAMESPACE])
        .args(["exec", "--stdin", "deployment/linkspan-federation", "--"])
        .args(["linkspan", relay::VERB])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What it says is for the user: why it fails, or where to log in.
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("`kubectl`, which --context needs, cannot be started")
        .map_err(Failure::Unreachable)?;
    let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both are piped");
    };
    let mut greeting = vec![0; relay::GREETING.len()];
    let why = match timeout(PATIENCE, stdout.read_exact(&mut greeting)).await {
        Ok(Ok(_)) if greeting == relay::GREETING => {
            return Ok((tokio::io::join(stdout, stdin), child));
        }
        Ok(Ok(_)) => "something else than `linkspan relay` answers there",
        Ok(Err(_)) => "`kubectl` ended; what it said is above",
        Err(_) => "it does not answer",
    };
    Err(Failure::Unreachable(anyhow!(why).context(format!(
        "no federation answers in the cluster of the context `{context}`"
    ))))
}
