//! `linkspan token create`, `list`, `revoke`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use linkspan_api::v1;
use serde::Serialize;

use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{self, Format},
    secret_file::SecretFile,
};

/// Makes, lists and revokes join tokens.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan token create --namespace shop --service-account checkout --out checkout.token",
    "linkspan token list",
    "linkspan token revoke 3fa90c11d27e",
))]
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
    /// Lists the tokens by which anybody can still join, renew or be here
    List(ListArgs),
    /// Takes a token back
    ///
    /// Nothing more is issued for it, certificates that were are not renewed any more, and their
    /// processes are told nothing more by federation. Connections between workloads go on until
    /// their certificates end.
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan token list", "linkspan token list -o json"))]
struct ListArgs {
    #[command(flatten)]
    operator: OperatorArgs,
    /// Table for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan token revoke 3fa90c11d27e"))]
struct RevokeArgs {
    /// The token's id, as `linkspan token list` shows it
    id: String,
    #[command(flatten)]
    operator: OperatorArgs,
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
    /// Let workloads register exactly these labels (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Let workloads register another address than the one that they call from
    #[arg(long)]
    any_address: bool,
    /// How long certificates may be renewed without the token, 1s to 366d
    #[arg(long, default_value = "90d", value_parser = renew_for)]
    renew_for: Duration,
    /// Write it to this new file (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    operator: OperatorArgs,
}

fn ttl(text: &str) -> Result<Duration, String> {
    seconds(text, 30)
}

fn renew_for(text: &str) -> Result<Duration, String> {
    seconds(text, 366)
}

fn seconds(text: &str, most_days: u64) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let most = Duration::from_secs(most_days * 24 * 3600);
    if time < Duration::from_secs(1) || time > most || time.subsec_nanos() != 0 {
        return Err(format!("whole seconds from 1s to {most_days}d"));
    }
    Ok(time)
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, for example app=checkout".to_owned()),
    }
}

pub(crate) fn token(args: Args) -> Result<(), Failure> {
    match args.verb {
        TokenVerb::Create(args) => create(&args),
        TokenVerb::List(args) => list(&args),
        TokenVerb::Revoke(args) => revoke(&args),
    }
}

/// A token as it is listed.
#[derive(Serialize)]
struct View {
    id: String,
    spiffe_id: String,
    namespace: String,
    service_account: String,
    labels: BTreeMap<String, String>,
    any_address: bool,
    expires: String,
    renews_until: String,
    last_used: Option<String>,
}

impl From<v1::JoinToken> for View {
    fn from(token: v1::JoinToken) -> Self {
        // `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
        let part = |at| {
            token
                .spiffe_id
                .split('/')
                .nth(at)
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            namespace: part(4),
            service_account: part(6),
            id: token.id,
            labels: token.labels.into_iter().collect(),
            any_address: token.any_address,
            expires: time(token.expires_unix),
            renews_until: time(token.renews_until_unix),
            last_used: token.last_used_unix.map(time),
            spiffe_id: token.spiffe_id,
        }
    }
}

fn time(unix: i64) -> String {
    let since = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    // The last second that RFC 3339 can write; an operator sees that it is far away.
    let last = Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since.min(last)).to_string()
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let tokens = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.list_tokens().await
    })?;
    let views: Vec<View> = tokens.into_iter().map(View::from).collect();
    args.output.print(&views, |views| text(views))
}

fn text(views: &[View]) -> String {
    if views.is_empty() {
        return "no join tokens\n".to_owned();
    }
    let header = [
        "ID",
        "NAMESPACE",
        "SERVICE ACCOUNT",
        "LABELS",
        "EXPIRES",
        "RENEWS UNTIL",
        "LAST USED",
    ];
    let row = |view: &View| {
        let mut bound: Vec<_> = view
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if view.any_address {
            bound.push("(any address)".to_owned());
        }
        let dash = || "-".to_owned();
        [
            view.id.clone(),
            view.namespace.clone(),
            view.service_account.clone(),
            if bound.is_empty() {
                dash()
            } else {
                bound.join(" ")
            },
            view.expires.clone(),
            view.renews_until.clone(),
            view.last_used.clone().unwrap_or_else(dash),
        ]
    };
    output::table(header, views.iter().map(row).collect())
}

fn revoke(args: &RevokeArgs) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.revoke_token(&args.id).await
    })?;
    output::write_out(format!("revoked {} of {}\n", args.id, reply.spiffe_id).as_bytes())
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let request = v1::CreateJoinTokenRequest {
        namespace: args.namespace.clone(),
        service_account: args.service_account.clone(),
        ttl_seconds: args.ttl.as_secs(),
        labels: args.labels.iter().cloned().collect(),
        any_address: args.any_address,
        renew_for_seconds: args.renew_for.as_secs(),
    };
    let file = args.out.as_deref().map(SecretFile::new).transpose()?;
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.create_token_with(request).await
    })?;
    match file {
        None => output::write_out(format!("{}\n", reply.token).as_bytes()),
        Some(file) => {
            let path = file.path().to_owned();
            file.write(&reply.token)?;
            eprintln!(
                "token {} for {} written to {}",
                reply.id,
                reply.spiffe_id,
                path.display()
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn tokens_are_listed_without_secrets_and_in_words() {
        let token = v1::JoinToken {
            id: "3fa90c11d27e".into(),
            spiffe_id: "spiffe://east.test/ns/shop/sa/checkout".into(),
            labels: [("app".into(), "checkout".into())].into(),
            any_address: false,
            expires_unix: 0,
            renews_until_unix: i64::MAX,
            last_used_unix: None,
        };
        let text = text(&[View::from(token)]);
        let row = text.lines().nth(1).expect("a row");
        let words: Vec<_> = row.split_whitespace().collect();
        let times = ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "-"];
        assert_eq!(
            words[..4],
            ["3fa90c11d27e", "shop", "checkout", "app=checkout"]
        );
        assert_eq!(words[4..], times);
    }

    #[test]
    fn a_label_has_a_key_and_a_value() {
        assert_eq!(label("app=a=b"), Ok(("app".into(), "a=b".into())));
        for wrong in ["app", "=a", ""] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
