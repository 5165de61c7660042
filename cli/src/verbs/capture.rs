//! `linkspan capture`: the packet filter's rules that lead a workload's calls to its sidecar.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use ipnet::IpNet;
use linkspan_sidecar::capture::rules::{OUTBOUND_PORT, Redirection, SIDECAR_UID, TABLE, at_rest};

use crate::{
    exit::{Failure, help},
    output::write_out,
};

/// Leads a workload's TCP calls to its sidecar, by nftables, or stops doing so.
///
/// It concerns the network namespace in which it runs: a pod, or a whole machine. All rules are in
/// one table, `inet linkspan_capture`, which nothing else should touch. It needs the capability
/// NET_ADMIN and the program `nft`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan capture up",
    "linkspan capture up --except 5432 --except 10.0.0.0/8",
    "linkspan capture show",
    "linkspan capture down",
))]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Leads new TCP connections to the sidecar; those that stand are left as they are
    #[command(after_long_help = help!(
        "linkspan capture up",
        "linkspan capture up --uid 999 --except 10.0.0.0/8",
    ))]
    Up(UpArgs),
    /// Takes the rules away; done already is fine
    #[command(after_long_help = help!("linkspan capture down"))]
    Down(Nft),
    /// Prints the rules that are in force
    #[command(after_long_help = help!("linkspan capture show"))]
    Show(Nft),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Port of loopback on which the sidecar takes captured calls (`capture.port`)
    #[arg(long, value_name = "PORT", default_value_t = OUTBOUND_PORT,
        value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The user as whom the sidecar runs, by number; its own calls are left alone, so no application
    /// may run as it
    #[arg(long, value_name = "NUMBER", default_value_t = SIDECAR_UID)]
    uid: u32,
    /// What is called directly: a port, an address, or a network such as 10.0.0.0/8; may be repeated
    #[arg(long, value_name = "PORT|CIDR")]
    except: Vec<Except>,
    /// Print the rules that would be loaded, and load nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    nft: Nft,
}

#[derive(Debug, clap::Args)]
struct Nft {
    /// The program that loads rules
    #[arg(long, value_name = "PATH", default_value = "nft")]
    nft: PathBuf,
}

/// What is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Except {
    Port(u16),
    Network(IpNet),
}

impl std::str::FromStr for Except {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "give a port, an IP address, or a network such as 10.0.0.0/8";
        if let Ok(port) = text.parse::<u16>() {
            return (port > 0).then_some(Self::Port(port)).ok_or(wrong);
        }
        let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
        let network = text.parse().ok().or_else(address);
        network
            .map(|of: IpNet| Self::Network(of.trunc()))
            .ok_or(wrong)
    }
}

pub(crate) fn capture(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Up(args) => up(args),
        Verb::Down(nft) => down(nft),
        Verb::Show(nft) => show(nft),
    }
}

fn up(args: &UpArgs) -> Result<(), Failure> {
    let mut ports = BTreeSet::new();
    let mut networks = BTreeSet::new();
    for except in &args.except {
        match *except {
            Except::Port(port) => ports.insert(port),
            Except::Network(network) => networks.insert(network),
        };
    }
    if args.uid == 0 {
        let error = "--uid 0: as root run the programs whose calls are to be captured, too; \
            let the sidecar run as a user of its own";
        return Err(Failure::Usage(anyhow!(error)));
    }
    let redirection = Redirection {
        to: args.port,
        uid: args.uid,
        except_ports: ports,
        except_networks: networks,
    };
    let rules = redirection.ruleset();
    if args.dry_run {
        return write_out(rules.as_bytes());
    }
    args.nft.load(&rules)?;
    let said = format!(
        "new TCP connections go to the sidecar at port {} of loopback, but those of user {}\n",
        args.port, args.uid
    );
    write_out(said.as_bytes())
}

fn down(nft: &Nft) -> Result<(), Failure> {
    if nft.table()?.is_none() {
        return write_out(NOT_CAPTURED);
    }
    nft.load(&at_rest())?;
    write_out(b"calls are not captured any more; captured connections go on by the sidecar\n")
}

fn show(nft: &Nft) -> Result<(), Failure> {
    match nft.table()? {
        Some(rules) if rules.contains(" redirect ") => write_out(rules.as_bytes()),
        _ => write_out(NOT_CAPTURED),
    }
}

const NOT_CAPTURED: &[u8] = b"calls are not captured here\n";

impl Nft {
    /// Our table as it is loaded.
    fn table(&self) -> Result<Option<String>, Failure> {
        let tables = self.run(&["list", "tables", "inet"], "")?;
        let ours = format!("table inet {TABLE}");
        let listed = String::from_utf8_lossy(&tables.stdout);
        if !listed.lines().any(|line| line.trim() == ours) {
            return Ok(None);
        }
        let rules = self.run(&["list", "table", "inet", TABLE], "")?;
        Ok(Some(String::from_utf8_lossy(&rules.stdout).into_owned()))
    }

    /// Loads rules, all of them or none.
    fn load(&self, rules: &str) -> Result<(), Failure> {
        self.run(&["-f", "-"], rules).map(drop)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<Output, Failure> {
        let output = self.output(arguments, input).map_err(Failure::Failed)?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Failed(anyhow!(
            "`{} {}` failed: {}; it needs the capability NET_ADMIN, and a kernel with nftables",
            self.nft.display(),
            arguments.join(" "),
            said.trim()
        )))
    }

    fn output(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        let what = || {
            format!(
                "cannot run `{}`; install nftables, or name the program with --nft",
                self.nft.display()
            )
        };
        let mut child = Command::new(&self.nft)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            // It says itself why it took no more.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().with_context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excepted_is_a_port_an_address_or_a_network() {
        let network = |text: &str| Ok(Except::Network(text.parse().unwrap()));
        assert_eq!("5432".parse(), Ok(Except::Port(5432)));
        assert_eq!("10.1.2.3/8".parse(), network("10.0.0.0/8"));
        assert_eq!("192.0.2.7".parse(), network("192.0.2.7/32"));
        assert_eq!("fd00::1".parse(), network("fd00::1/128"));
        for wrong in ["0", "70000", "ten", "10.0.0.0/33", ""] {
            wrong.parse::<Except>().unwrap_err();
        }
    }
}
