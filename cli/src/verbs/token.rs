//! `linkspan token create`.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    exit::{Failure, help},
    operator::{self, Operator, OperatorArgs},
    output,
};

/// Makes join tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, clap::Subcommand)]
enum TokenVerb {
    /// Makes a token with which one workload, or a part, may fetch its first certificate
    ///
    /// The token is a secret. Parts live in the namespace `linkspan-system`; a gateway's
    /// service account is `linkspan-gateway`.
    Create(CreateArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan token create --namespace shop --service-account checkout --out checkout.token",
    "linkspan token create --namespace linkspan-system --service-account linkspan-gateway --ttl 10m",
))]
struct CreateArgs {
    /// Namespace of the workload
    #[arg(long)]
    namespace: String,
    /// Service account of the workload
    #[arg(long)]
    service_account: String,
    /// How long the token is good for, 1s to 30d
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// Write it to this file (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    operator: OperatorArgs,
}

fn ttl(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(30 * 24 * 3600);
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(1) || ttl > MAX || ttl.subsec_nanos() != 0 {
        return Err("whole seconds from 1s to 30d".to_owned());
    }
    Ok(ttl)
}

pub(crate) fn token(args: Args) -> Result<(), Failure> {
    let TokenVerb::Create(args) = args.verb;
    let reply = operator::block_on(async {
        let mut operator = Operator::connect(args.operator.path()).await?;
        operator
            .create_token(&args.namespace, &args.service_account, args.ttl)
            .await
    })?;
    match &args.out {
        None => output::write_out(format!("{}\n", reply.token).as_bytes()),
        Some(path) => {
            write_secret(path, &reply.token)?;
            eprintln!(
                "token for {} written to {}",
                reply.spiffe_id,
                path.display()
            );
            Ok(())
        }
    }
}

/// Writes a new file that only its owner can read; one that exists is replaced, never reused,
/// because its mode may be a looser one.
pub(crate) fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    let write = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(secret.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_time_to_live_is_whole_seconds_within_bounds() {
        assert_eq!(ttl("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(ttl("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in ["0s", "31d", "1500ms", "soon"] {
            assert!(ttl(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_replaces_a_readable_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "old").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
        write_secret(&path, "new").expect("written");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "new");
    }
}
