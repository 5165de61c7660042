//! A federation in Kubernetes: its operator socket is in its pod, and whoever may `exec` there may ask.
//! `kubectl` carries the bytes, and `linkspan relay` in the pod puts them onto the socket.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, anyhow};
use linkspan_trust::SYSTEM_NAMESPACE;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, Join},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{exit::Failure, verbs::relay};

/// For `kubectl` to reach the API server, and that the pod; plugins that fetch credentials included.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what `kubectl` says is kept.
const MAX_SAID: u64 = 4096;

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
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("`kubectl`, which --context needs, cannot be started")
        .map_err(Failure::Unreachable)?;
    let (Some(stdin), Some(mut stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are piped");
    };
    let said = tokio::spawn(heard(stderr));
    let mut greeting = vec![0; relay::GREETING.len()];
    match timeout(PATIENCE, stdout.read_exact(&mut greeting)).await {
        Ok(Ok(_)) if greeting == relay::GREETING => Ok((tokio::io::join(stdout, stdin), child)),
        Ok(Ok(_)) => Err(told(
            context,
            "something else than `linkspan relay` answers there",
        )),
        Ok(Err(_)) => {
            // It closed its output, so that it ends; what it said is why.
            drop(stdin);
            let said = timeout(PATIENCE, said).await;
            let said = said.ok().and_then(Result::ok).unwrap_or_default();
            Err(told(context, said.trim()))
        }
        Err(_) => Err(told(context, "it does not answer")),
    }
}

fn told(context: &str, why: &str) -> Failure {
    Failure::Unreachable(anyhow!(why.to_owned()).context(format!(
        "no federation answers in the cluster of the context `{context}`"
    )))
}

/// The beginning of what is said, to its end, so that nobody waits for it to be read.
async fn heard(stderr: impl AsyncRead + Unpin) -> String {
    let mut said = Vec::new();
    let mut beginning = stderr.take(MAX_SAID);
    // What could be read counts.
    let _ = beginning.read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut beginning.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).into_owned()
}
