//! Two machines, a pod and a router between them, made of network namespaces.
//!
//! ```text
//!   east 10.210.1.2 ── 10.210.1.1  router  10.210.2.1 ── 10.210.2.2 west
//!                                  10.210.3.1 ── 10.210.3.2 pod
//! ```
//!
//! Faults are put into the router, where neither side can see them: packets vanish,
//! in one direction or both, all of them or some. Needs root and the tools `ip` and `nft`.
//! Everything is removed when the [`Lab`] is dropped.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::clusters::Machine;

/// One of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// 10.210.1.2
    East,
    /// 10.210.2.2
    West,
    /// 10.210.3.2, and fd00:210:3::2 with a route to nowhere: for a workload with its sidecar
    Pod,
}

impl Side {
    /// The only address of this machine beside loopback.
    #[must_use]
    pub fn address(self) -> IpAddr {
        let net = match self {
            Self::East => 1,
            Self::West => 2,
            Self::Pod => 3,
        };
        Ipv4Addr::new(10, 210, net, 2).into()
    }

    fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
            Self::Pod => "pod",
        }
    }
}

/// What the router does to packets between the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Drops everything, both ways.
    Cut,
    /// Drops everything that this side sends.
    CutFrom(Side),
    /// Drops this share of packets at random, 1 to 99 percent, both ways.
    Loss(u8),
}

/// Four namespaces; see the module.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
}

impl Lab {
    /// Builds the namespaces and their links.
    ///
    /// # Errors
    /// When a tool is missing or the caller lacks the rights.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            prefix: format!("ls{}-{number}", std::process::id()),
        };
        lab.build()
            .context("building network namespaces; this needs root, `ip` and `nft`")?;
        Ok(lab)
    }

    fn build(&self) -> Result<()> {
        let router = self.namespace("router");
        ip(&["netns", "add", &router])?;
        ip(&["-n", &router, "link", "set", "lo", "up"])?;
        for side in [Side::East, Side::West, Side::Pod] {
            self.connect(side, &router)?;
        }
        let pod = self.namespace(Side::Pod.name());
        let six = "fd00:210:3::2/64";
        ip(&["-n", &pod, "address", "add", six, "dev", "eth0", "nodad"])?;
        ip(&[
            "-n",
            &pod,
            "route",
            "add",
            "default",
            "via",
            "fd00:210:3::1",
        ])?;
        run(
            "ip",
            &[
                "netns",
                "exec",
                &router,
                "sysctl",
                "-qw",
                "net.ipv4.ip_forward=1",
            ],
        )?;
        self.ruleset("add table inet faults\nadd chain inet faults forward { type filter hook forward priority 0; }")
    }

    fn connect(&self, side: Side, router: &str) -> Result<()> {
        let machine = self.namespace(side.name());
        let IpAddr::V4(address) = side.address() else {
            unreachable!("the lab is IPv4")
        };
        let [a, b, c, _] = address.octets();
        ip(&["netns", "add", &machine])?;
        ip(&["-n", &machine, "link", "set", "lo", "up"])?;
        ip(&[
            "-n",
            &machine,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            side.name(),
            "netns",
            router,
        ])?;
        ip(&[
            "-n",
            &machine,
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ])?;
        // A batch of segments would cross the router as one packet; on a wire each is its own.
        ip(&["-n", &machine, "link", "set", "eth0", "gso_max_segs", "1"])?;
        ip(&["-n", &machine, "link", "set", "eth0", "up"])?;
        ip(&[
            "-n",
            router,
            "address",
            "add",
            &format!("{a}.{b}.{c}.1/24"),
            "dev",
            side.name(),
        ])?;
        ip(&["-n", router, "link", "set", side.name(), "up"])?;
        ip(&[
            "-n",
            &machine,
            "route",
            "add",
            "default",
            "via",
            &format!("{a}.{b}.{c}.1"),
        ])
    }

    /// A command that will run on that machine.
    #[must_use]
    pub fn command(&self, side: Side, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(side.name()), program]);
        command
    }

    /// Does something there by this process itself; sockets that it makes stay there.
    ///
    /// # Errors
    /// When the machine cannot be entered, and what `on_machine` says.
    pub fn enter<T, F>(&self, side: Side, on_machine: F) -> Result<T>
    where
        T: Send,
        F: FnOnce() -> Result<T> + Send,
    {
        let path = Path::new("/run/netns").join(self.namespace(side.name()));
        let namespace = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        // A thread of its own, as it stays where it went.
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind)?;
                on_machine()
            });
            there.join().map_err(|_| anyhow!("it panicked there"))?
        })
    }

    /// Replaces the present fault.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn inject(&self, fault: Fault) -> Result<()> {
        let rule = match fault {
            Fault::Cut => "counter drop".to_owned(),
            Fault::CutFrom(side) => format!("iifname {} counter drop", side.name()),
            Fault::Loss(percent) => format!("numgen random mod 100 < {percent} counter drop"),
        };
        self.ruleset(&format!(
            "flush chain inet faults forward\nadd rule inet faults forward {rule}"
        ))
    }

    /// Takes the present fault away.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn heal(&self) -> Result<()> {
        self.ruleset("flush chain inet faults forward")
    }

    /// Packets that the present fault has swallowed: proof that it struck.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn swallowed(&self) -> Result<u64> {
        self.count("forward")
    }

    fn count(&self, chain: &str) -> Result<u64> {
        let listing = self.on_router(&["nft", "list", "chain", "inet", "faults", chain])?;
        let count = listing
            .split("packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// Counts packets that come to the router for this network from now on, whatever it does with
    /// them; see [`seen`](Self::seen).
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn watch_for(&self, network: &str) -> Result<()> {
        self.ruleset(&format!(
            "add chain inet faults seen {{ type filter hook prerouting priority 0; }}\n\
             flush chain inet faults seen\nadd rule inet faults seen ip daddr {network} counter"
        ))
    }

    /// How many have come.
    ///
    /// # Errors
    /// When `nft` refuses, or nothing is watched for.
    pub fn seen(&self) -> Result<u64> {
        self.count("seen")
    }

    /// Sets the largest packet that the path carries, in bytes; the machines learn of it only by
    /// probing, as on a real path with a narrow hop whose ICMP is filtered.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn limit_packets(&self, bytes: u16) -> Result<()> {
        self.ruleset(&format!(
            "flush chain inet faults forward\nadd rule inet faults forward meta length > {bytes} counter drop"
        ))
    }

    fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    fn ruleset(&self, rules: &str) -> Result<()> {
        self.on_router(&["nft", rules]).map(drop)
    }

    fn on_router(&self, command: &[&str]) -> Result<String> {
        let router = self.namespace("router");
        run(
            "ip",
            &[&["netns", "exec", router.as_str()], command].concat(),
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for role in ["east", "west", "pod", "router"] {
            let _ = Command::new("ip")
                .args(["netns", "delete", &self.namespace(role)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments).map(drop)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "`{program} {}` failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One of the machines as a place for processes.
#[derive(Debug, Clone)]
pub struct LabMachine {
    lab: Arc<Lab>,
    side: Side,
    next_port: Arc<AtomicU16>,
}

impl LabMachine {
    /// That side of the lab, whose ports are all free.
    #[must_use]
    pub fn new(lab: Arc<Lab>, side: Side) -> Self {
        Self {
            lab,
            side,
            next_port: Arc::new(AtomicU16::new(15_000)),
        }
    }
}

impl Machine for LabMachine {
    fn address(&self) -> IpAddr {
        self.side.address()
    }

    fn port(&self) -> Result<u16> {
        Ok(self.next_port.fetch_add(1, Ordering::Relaxed))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.lab.command(self.side, "env");
        command.arg(program);
        command
    }
}
