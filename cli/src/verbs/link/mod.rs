//! `linkspan link`: linking two clusters, looking at links, and unlinking.

mod join;
mod remove;
mod revoke;
mod show;
mod wait;

use std::str::FromStr;

use linkspan_api::v1;

use crate::exit::{Failure, help};

pub use remove::Args as UnlinkArgs;
pub(crate) use remove::unlink;

/// Links this cluster to others, and shows and removes links.
///
/// One cluster invites, the other accepts; only the inviting side must be reachable.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan link invite east",
    "linkspan link accept -",
    "linkspan link list",
))]
pub struct Args {
    #[command(subcommand)]
    verb: LinkVerb,
}

#[derive(Debug, clap::Subcommand)]
enum LinkVerb {
    /// Makes an invitation for another cluster, good for one use
    ///
    /// It is printed alone on standard output and is a secret until it is used: send it to
    /// whoever runs the other cluster, who gives it to `linkspan link accept`.
    Invite(join::InviteArgs),
    /// Takes an invitation back that nobody has used
    Revoke(revoke::Args),
    /// Links this cluster to the one that made an invitation
    Accept(join::AcceptArgs),
    /// Lists links, removed ones whose peer does not know it yet, and open invitations
    List(show::ListArgs),
    /// Shows one link
    Show(show::ShowArgs),
    /// Waits until a link is active, or up
    Wait(wait::Args),
    /// Removes a link on both sides
    ///
    /// Works also when the peer is dead: this side is clean at once, and for seven days the peer
    /// is told when it comes back.
    #[command(visible_alias = "unlink")]
    Remove(remove::Args),
}

pub(crate) fn link(args: Args) -> Result<(), Failure> {
    match args.verb {
        LinkVerb::Invite(args) => join::invite(&args),
        LinkVerb::Revoke(args) => revoke::revoke(&args),
        LinkVerb::Accept(args) => join::accept(&args),
        LinkVerb::List(args) => show::list(&args),
        LinkVerb::Show(args) => show::show(&args),
        LinkVerb::Wait(args) => wait::wait(&args),
        LinkVerb::Remove(args) => remove::unlink(&args),
    }
}

/// `namespace/name`, each a glob; federation judges the globs themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob(v1::ImportGlob);

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !name.contains('/') => Ok(Self(v1::ImportGlob {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })),
            _ => Err("write it as NAMESPACE/SERVICE, with `*` for any characters".to_owned()),
        }
    }
}

/// The services that the peer may contribute to, for `invite` and `accept`.
#[derive(Debug, clap::Args)]
struct Imports {
    /// What the peer may contribute, as globs; all but kube-* and linkspan-system without any
    #[arg(long, value_name = "NAMESPACE/SERVICE", value_delimiter = ',')]
    imports: Vec<Glob>,
}

impl Imports {
    fn wire(&self) -> Vec<v1::ImportGlob> {
        self.imports.iter().map(|glob| glob.0.clone()).collect()
    }
}

/// A time as people and programs read it; empty for none.
fn rfc3339(unix: i64) -> String {
    match u64::try_from(unix) {
        Ok(seconds @ 1..253_402_300_800) => {
            let since = std::time::Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
        }
        _ => String::new(),
    }
}

fn addresses(of: &[v1::GatewayAddress]) -> Vec<String> {
    of.iter()
        .map(|a| format!("{}:{}", a.host, a.port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_have_two_parts() {
        let glob: Glob = "shop/*".parse().expect("good");
        assert_eq!(
            (glob.0.namespace.as_str(), glob.0.name.as_str()),
            ("shop", "*")
        );
        for wrong in ["shop", "a/b/c"] {
            assert!(wrong.parse::<Glob>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_that_is_none_is_empty() {
        assert_eq!(rfc3339(0), "");
        assert_eq!(rfc3339(i64::MAX), "");
        assert_eq!(rfc3339(1_800_000_000), "2027-01-15T08:00:00Z");
    }
}
