//! `linkspan relay`: the operator socket, carried by standard input and output. `kubectl exec` runs it in
//! federation's pod for those who ask from outside (`--context`).

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    thread,
};

use anyhow::{Context as _, anyhow};

use crate::{exit::Failure, operator::OperatorArgs};

/// How it is called.
pub(crate) const VERB: &str = "relay";
/// What it says first, once the socket has taken it: the other side then knows who answers.
pub(crate) const GREETING: &[u8] = b"linkspan relay 1\n";

/// Carries standard input to the operator socket, and its answers to standard output
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(crate) fn relay(args: &Args) -> Result<(), Failure> {
    if args.operator.context.is_some() {
        return Err(Failure::Usage(anyhow!(
            "`relay` carries to a socket of this machine; leave --context out"
        )));
    }
    let path = args.operator.path();
    let socket = UnixStream::connect(&path)
        .with_context(|| format!("no federation answers at {}", path.display()))
        .map_err(Failure::Unreachable)?;
    Ok(carry(&socket)?)
}

/// Until the socket ends; input may be open for longer.
fn carry(mut socket: &UnixStream) -> anyhow::Result<()> {
    // Unbuffered: a question may end anywhere in a line.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    output.write_all(GREETING)?;
    let mut asking = socket.try_clone()?;
    thread::spawn(move || {
        // An input that breaks has ended.
        let _ = pump(&mut input, &mut asking);
        let _ = asking.shutdown(Shutdown::Write);
    });
    pump(&mut socket, &mut output)?;
    Ok(())
}

/// Not `io::copy`: that moves bytes with `splice(2)`, which keeps a pipe locked while it waits for the
/// socket, so that whoever reads the pipe waits, too, though there is something to read.
fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
