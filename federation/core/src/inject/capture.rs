//! Whether a pod's calls are led to its sidecar, and the container that makes it so.

use std::{net::IpAddr, str::FromStr};

use serde_json::{Map, Value, json};

use super::{Injection, NotInjected, USER};

/// Annotation of a pod: whether its calls are captured, `true` or `false`.
pub const CAPTURE: &str = "linkspan.io/capture";
/// Annotation of a pod: what it calls directly although its calls are captured, ports and networks
/// with commas between them.
pub const EXCEPT: &str = "linkspan.io/capture-except";
/// Name of the container.
pub const CONTAINER: &str = "linkspan-capture";
/// Port of loopback on which the sidecar takes captured calls.
pub(super) const PORT: u16 = 15_001;

/// What happens to a pod that does not say whether its calls are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// They are.
    Yes,
    /// They are not.
    No,
    /// They cannot be: its namespace enforces a Pod Security profile that forbids it.
    Forbidden,
}

/// What the pod is to have, as `annotations` and the place say.
pub(super) fn wanted(annotations: &Value, capture: Capture) -> Result<bool, NotInjected> {
    let said = match annotations[CAPTURE].as_str() {
        None => return Ok(capture == Capture::Yes),
        Some("true") => true,
        Some("false") => false,
        Some(other) => return Err(NotInjected::Capture(other.to_owned())),
    };
    if said && capture == Capture::Forbidden {
        return Err(NotInjected::Forbidden);
    }
    Ok(said)
}

/// What is called directly, as the annotation names it.
pub(super) fn except(annotations: &Value) -> Result<Vec<String>, NotInjected> {
    let text = annotations[EXCEPT].as_str().unwrap_or_default();
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    let checked = items.map(|item| match is_except(item) {
        true => Ok(item.to_owned()),
        false => Err(NotInjected::Except(item.to_owned())),
    });
    checked.collect()
}

/// As `linkspan capture up --except` takes it.
fn is_except(text: &str) -> bool {
    if let Ok(port) = text.parse::<u16>() {
        return port > 0;
    }
    let (address, length) = text.split_once('/').unwrap_or((text, "0"));
    let longest = match IpAddr::from_str(address) {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= longest)
}

/// A container of the pod that runs as the sidecar does, whose calls would not be captured.
pub(super) fn check_users(spec: &Map<String, Value>) -> Result<(), NotInjected> {
    let user = |of: &Value| of["securityContext"]["runAsUser"].as_u64();
    let of_pod = spec
        .get("securityContext")
        .and_then(|of| of["runAsUser"].as_u64());
    let lists = ["containers", "initContainers"];
    let containers = lists.iter().filter_map(|list| spec.get(*list)?.as_array());
    for container in containers.flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        let ours = [CONTAINER, super::CONTAINER].contains(&name);
        if !ours && user(container).or(of_pod) == Some(u64::from(USER)) {
            return Err(NotInjected::User(name.to_owned()));
        }
    }
    Ok(())
}

/// It loads the rules and ends, before the sidecar starts. Only root may have a capability here: it
/// has the one, and nothing else.
pub(super) fn container(injection: &Injection, except: &[String]) -> Value {
    let mut arguments = vec!["capture".to_owned(), "up".to_owned()];
    arguments.extend(["--uid".to_owned(), USER.to_string()]);
    for item in except {
        arguments.extend(["--except".to_owned(), item.clone()]);
    }
    json!({
        "name": CONTAINER,
        "image": injection.image,
        "imagePullPolicy": injection.image_pull_policy,
        "args": arguments,
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 0,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}
