//! What a projected token says of itself. Nobody has checked its signature: it says whether to ask
//! the API server at all, and never who somebody is. Pure.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// By so much our clock may be ahead of that of the API server, which judges.
const SKEW: Duration = Duration::from_secs(60);

/// The claims that are looked at (RFC 7519 §4.1; `kubernetes.io` is of bound service account tokens).
#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    pod: Object,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: String,
}

/// Whether a token could be one of a pod, for that audience, and not over at `now`.
pub(crate) fn is_plausible(token: &str, audience: &str, now: SystemTime) -> bool {
    claims(token).is_some_and(|claims| {
        let named = match &claims.aud {
            Audience::One(one) => one == audience,
            Audience::Several(several) => several.iter().any(|one| one == audience),
        };
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
        let over = end.is_some_and(|end| end + SKEW <= now);
        let pod = &claims.kubernetes.pod;
        named && !over && !pod.name.is_empty() && !pod.uid.is_empty()
    })
}

/// Of three parts (RFC 7515 §3.1), of which none is empty.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || header.is_empty() || signature.is_empty() {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const OURS: &str = "linkspan:east";
    const END: u64 = 1_800_000_000;

    fn token(claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(claims))
    }

    fn good() -> Value {
        json!({
            "aud": [OURS], "exp": END, "iss": "https://kubernetes.default.svc",
            "kubernetes.io": {"namespace": "shop", "pod": {"name": "web-1", "uid": "u-1"}},
        })
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn plausible(token: &str) -> bool {
        is_plausible(token, OURS, at(END - 1))
    }

    #[test]
    fn a_token_of_a_pod_for_us_is_worth_a_question_until_it_is_over() {
        let good = token(&good());
        assert!(plausible(&good));
        assert!(is_plausible(&good, OURS, at(END + 59)));
        assert!(!is_plausible(&good, OURS, at(END + 60)));
        assert!(!is_plausible(&good, "linkspan:west", at(0)));
    }

    #[test]
    fn everything_else_is_not() {
        let without = |change: &dyn Fn(&mut Value)| {
            let mut claims = good();
            change(&mut claims);
            token(&claims)
        };
        let good = token(&good());
        let (head, signature) = good.rsplit_once('.').unwrap();
        for odd in [
            String::new(),
            "x".into(),
            "..".into(),
            head.to_owned(),
            format!("{head}."),
            format!("{good}.{signature}"),
            format!(".{}", good.split_once('.').unwrap().1),
            without(&|of| of["aud"] = json!("linkspan:west")),
            without(&|of| of["aud"] = json!([])),
            without(&|of| of["exp"] = json!("soon")),
            without(&|of| of["kubernetes.io"]["pod"] = Value::Null),
            without(&|of| of["kubernetes.io"]["pod"]["uid"] = json!("")),
        ] {
            assert!(!plausible(&odd), "{odd}");
        }
        assert!(plausible(&without(&|of| of["aud"] = json!(OURS))));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(token in "\\PC{0,200}", payload in ".{0,200}") {
            plausible(&token);
            plausible(&format!("a.{}.b", URL_SAFE_NO_PAD.encode(payload)));
        }
    }
}
