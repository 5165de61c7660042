//! The services that a pod calls, as its annotation names them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::model::ServiceKey;

/// The sidecar is not root.
const LOWEST: u16 = 1_024;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outbound {
    /// Port of 127.0.0.1.
    pub(super) listen: u16,
    service: ServiceKey,
    port: u16,
}

impl Outbound {
    /// As the sidecar's configuration has it.
    pub(super) fn document(&self) -> Value {
        json!({
            "listen": format!("127.0.0.1:{}", self.listen),
            "service": self.service.to_string(),
            "port": self.port,
        })
    }
}

/// Reads `7001=shop/checkout:80, …`; nothing is none.
pub(super) fn parse(text: &str) -> Result<Vec<Outbound>, String> {
    let items = text.split(',').map(str::trim);
    let all: Result<Vec<_>, _> = items.filter(|item| !item.is_empty()).map(one).collect();
    let all = all?;
    let mut seen = BTreeSet::new();
    match all.iter().find(|one| !seen.insert(one.listen)) {
        Some(twice) => Err(format!("port {} is there twice", twice.listen)),
        None => Ok(all),
    }
}

fn one(text: &str) -> Result<Outbound, String> {
    let wrong = |why: String| format!("`{text}`: {why}");
    let (listen, called) = text
        .split_once('=')
        .ok_or_else(|| wrong("there is no `=`".into()))?;
    let (service, port) = called
        .rsplit_once(':')
        .ok_or_else(|| wrong("the service has no port".into()))?;
    let number = |text: &str, lowest: u16| {
        let number = text.trim().parse().ok().filter(|port| *port >= lowest);
        number.ok_or_else(|| wrong(format!("`{text}` is no port from {lowest} to 65535")))
    };
    Ok(Outbound {
        listen: number(listen, LOWEST)?,
        service: service
            .trim()
            .parse()
            .map_err(|error| wrong(format!("{error}")))?,
        port: number(port, 1)?,
    })
}
