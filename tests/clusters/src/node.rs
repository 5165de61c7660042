//! The one node of a cluster.

use std::process::Command;

use rustix::process::Pid;

/// A command line that runs what is appended to it in the namespaces of a node.
pub(crate) fn enter(node: Pid) -> Command {
    let mut command = Command::new("nsenter");
    let node = node.as_raw_nonzero().to_string();
    command.args(["--target", &node]);
    command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
    command
}
