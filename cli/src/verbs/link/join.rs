//! `linkspan link invite` and `linkspan link accept`.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use linkspan_api::v1;
use serde::Serialize;

use super::{Imports, addresses, rfc3339};
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, write_out},
    secret_file::SecretFile,
};

/// An invitation has some hundred characters; more is not read.
const MAX_INVITATION: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan link invite",
    "linkspan link invite east --ttl 1h",
    "linkspan link invite east --imports shop/*,pay/api --out east.invitation",
))]
pub(super) struct InviteArgs {
    /// The only cluster that may accept it; any may without
    #[arg(value_name = "PEER")]
    peer: Option<String>,
    /// How long it is good for, 1s to 7d
    #[arg(long, default_value = "15m", value_parser = ttl)]
    ttl: Duration,
    #[command(flatten)]
    imports: Imports,
    /// The peer's gateways may be dialled on loopback addresses (all on one machine)
    #[arg(long)]
    allow_loopback: bool,
    /// Write it to this file (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan link accept -",
    "linkspan link accept --file east.invitation --imports shop/*",
))]
pub(super) struct AcceptArgs {
    /// The invitation, or `-` to read it from standard input (so that `ps` does not show it)
    #[arg(
        value_name = "INVITATION",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    invitation: Option<String>,
    /// Read the invitation from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    imports: Imports,
    /// The peer's gateways may be dialled on loopback addresses (all on one machine)
    #[arg(long)]
    allow_loopback: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct Invited {
    id: String,
    invitation: Option<String>,
    expires: String,
    addresses: Vec<String>,
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Accepted {
    cluster: String,
    trust_domain: String,
    /// Absent where it was declared before.
    path: Option<String>,
    pending_until: String,
}

fn ttl(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(7 * 24 * 3600);
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(1) || ttl > MAX || ttl.subsec_nanos() != 0 {
        return Err("whole seconds from 1s to 7d".to_owned());
    }
    Ok(ttl)
}

pub(super) fn invite(args: &InviteArgs) -> Result<(), Failure> {
    let request = v1::InviteRequest {
        peer: args.peer.clone().unwrap_or_default(),
        ttl_seconds: args.ttl.as_secs(),
        allow_loopback: args.allow_loopback,
        imports: args.imports.wire(),
    };
    let file = args.out.as_deref().map(SecretFile::new).transpose()?;
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.invite(request).await
    })?;
    if let Some(file) = file {
        file.write(&format!("{}\n", reply.invitation))?;
    }
    let view = Invited {
        id: reply.id.clone(),
        invitation: args.out.is_none().then(|| reply.invitation.clone()),
        expires: rfc3339(reply.expires_unix),
        addresses: addresses(&reply.addresses),
        file: args.out.clone(),
    };
    match args.output {
        Format::Json => args.output.print(&view, |_| String::new()),
        // Standard output has the invitation and nothing else, for pipes.
        Format::Text => {
            let whose = args.peer.as_deref().unwrap_or("the other cluster");
            let how = match &args.out {
                Some(path) => format!("--file {}", path.display()),
                None => "-".to_owned(),
            };
            let how = match args.allow_loopback {
                true => format!("--allow-loopback {how}"),
                false => how,
            };
            eprintln!(
                "good for one use until {}; in {whose}: linkspan link accept {how}\n\
                 to take it back: linkspan link revoke {}",
                view.expires, view.id
            );
            match &view.invitation {
                Some(invitation) => write_out(format!("{invitation}\n").as_bytes()),
                None => Ok(()),
            }
        }
    }
}

pub(super) fn accept(args: &AcceptArgs) -> Result<(), Failure> {
    let request = v1::AcceptRequest {
        invitation: invitation(args)?,
        allow_loopback: args.allow_loopback,
        imports: args.imports.wire(),
    };
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.accept(request).await
    })?;
    let view = Accepted {
        cluster: reply.cluster,
        trust_domain: reply.trust_domain,
        path: Some(reply.path).filter(|path| !path.is_empty()),
        pending_until: rfc3339(reply.expires_unix),
    };
    args.output.print(&view, |view| {
        let (cluster, domain) = (&view.cluster, &view.trust_domain);
        match &view.path {
            Some(path) => format!(
                "linked to {cluster} ({domain}), declared in {path}\n\
                 pending until the first tunnel is up: linkspan link wait {cluster}\n"
            ),
            None => format!(
                "linked to {cluster} ({domain}) by this invitation before; nothing is changed\n"
            ),
        }
    })
}

fn invitation(args: &AcceptArgs) -> Result<String, Failure> {
    let mut text = String::new();
    match (&args.file, args.invitation.as_deref()) {
        (Some(path), _) => {
            let file = std::fs::File::open(path);
            let read = file.and_then(|file| file.take(MAX_INVITATION).read_to_string(&mut text));
            let what = || format!("cannot read the invitation from {}", path.display());
            read.with_context(what).map_err(Failure::Usage)?;
        }
        (None, None | Some("-")) => {
            let input = std::io::stdin();
            if input.is_terminal() {
                eprintln!("paste the invitation, then press Ctrl-D:");
            }
            let read = input.lock().take(MAX_INVITATION).read_to_string(&mut text);
            read.context("cannot read the invitation from standard input")
                .map_err(Failure::Usage)?;
        }
        (None, Some(given)) => given.clone_into(&mut text),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_whole_seconds_within_bounds() {
        assert_eq!(ttl("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["0s", "8d", "1500ms", "soon"] {
            assert!(ttl(wrong).is_err(), "{wrong}");
        }
    }
}
