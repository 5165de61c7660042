//! The file as it is written, and what makes a checked value of it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use linkspan_dataplane::identity::RawFederation;
use linkspan_routing::{Locality, MAX_WEIGHT};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::{
    config::{ConfigError, HumanDuration, Problems},
    trace::RawTelemetry,
};
use linkspan_trust::WorkloadId;
use serde::{Deserialize, Deserializer, de};

use super::{
    Config, DRAIN_GRACE, IDLE_TIMEOUT, Outbound, Own, PROBE_INTERVAL, PROBE_TIMEOUT, Probe,
    Readiness, Workload, labels,
};
use crate::capture::rules::OUTBOUND_PORT;

/// Longest uid: it is hashed, and shown to people.
const MAX_UID: usize = 253;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Raw {
    cluster: String,
    federation: RawFederation,
    workload: RawWorkload,
    inbound_listen: String,
    #[serde(default)]
    outbound: Vec<RawOutbound>,
    capture: Option<RawCapture>,
    admin_listen: String,
    debug_listen: String,
    drain_grace: Option<HumanDuration>,
    idle_timeout: Option<HumanDuration>,
    #[serde(default)]
    access_log: AccessLog,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawWorkload {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    locality: RawLocality,
    #[serde(default)]
    hostname: String,
    weight: Option<u32>,
    app_address: Option<String>,
    address: Option<String>,
    #[serde(default)]
    ports: BTreeMap<Port, Port>,
    probe: Option<RawProbe>,
    ready: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLocality {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProbe {
    tcp: Option<RawTcp>,
    http: Option<RawHttp>,
    interval: Option<HumanDuration>,
    timeout: Option<HumanDuration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    port: NonZeroU16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    port: NonZeroU16,
    #[serde(default)]
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutbound {
    listen: String,
    service: String,
    port: NonZeroU16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCapture {
    port: Option<NonZeroU16>,
}

/// A port, also as a quoted key (as JSON writes keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Port, E> {
                let port = u16::try_from(number).ok().filter(|port| *port > 0);
                port.map(Port)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Port, E> {
                let number = text.parse::<u64>();
                let number =
                    number.map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
                self.visit_u64(number)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Raw {
    /// Takes over what is the workload's own.
    pub(super) fn fill(&mut self, own: Own, problems: &mut Problems) {
        let workload = &mut self.workload;
        let texts = [
            (&mut workload.uid, own.uid),
            (&mut workload.namespace, own.namespace),
            (&mut workload.service_account, own.service_account),
            (&mut workload.hostname, own.hostname),
        ];
        for (field, own) in texts {
            if let Some(own) = own {
                *field = own;
            }
        }
        if let Some(address) = own.address {
            workload.address = Some(address.to_string());
        }
        if let Some(path) = own.labels {
            let read = labels::read(&path);
            if let Some(labels) = problems.check("--labels", path.display(), read) {
                workload.labels = labels;
            }
        }
    }
}

/// Makes a configuration of a file, or tells all that is wrong with it.
pub(super) fn check(raw: Raw, mut problems: Problems) -> Result<Config, ConfigError> {
    let cluster = problems.check("cluster", &raw.cluster, raw.cluster.parse());
    let federation = raw.federation.parse("federation", &mut problems);
    let inbound_listen = listen("inboundListen", &raw.inbound_listen, &mut problems);
    let workload = workload(raw.workload, inbound_listen, &mut problems);
    let outbound = raw.outbound.into_iter().enumerate();
    let outbound: Vec<_> = outbound
        .filter_map(|(index, raw)| self::outbound(index, raw, &mut problems))
        .collect();
    let admin_listen = listen("adminListen", &raw.admin_listen, &mut problems);
    let debug_listen = loopback("debugListen", &raw.debug_listen, &mut problems);
    let idle_timeout = raw.idle_timeout.map_or(IDLE_TIMEOUT, |idle| idle.0);
    if idle_timeout.is_zero() {
        problems.add("idleTimeout", "0", "give a duration, e.g. 5m");
    }
    let otlp = raw.telemetry.typed(&mut problems);
    problems.finish_with(|| {
        Some(Config {
            cluster: cluster?,
            federation: federation?,
            workload: workload?,
            inbound_listen: inbound_listen?,
            outbound,
            capture: raw
                .capture
                .map(|capture| capture.port.map_or(OUTBOUND_PORT, NonZeroU16::get)),
            admin_listen: admin_listen?,
            debug_listen: debug_listen?,
            drain_grace: raw.drain_grace.map_or(DRAIN_GRACE, |grace| grace.0),
            idle_timeout,
            access_log: raw.access_log,
            otlp,
        })
    })
}

fn workload(
    raw: RawWorkload,
    inbound: Option<SocketAddr>,
    problems: &mut Problems,
) -> Option<Workload> {
    if raw.uid.is_empty() || raw.uid.len() > MAX_UID {
        let found = format!("{} characters", raw.uid.len());
        problems.add(
            "workload.uid",
            found,
            "give the workload a stable name of 1 to 253, here or with --uid",
        );
    }
    let name = format!("{}/{}", raw.namespace, raw.service_account);
    let id = WorkloadId::new(&raw.namespace, &raw.service_account);
    let _ = problems.check("workload.namespace and serviceAccount", name, id);
    let app_address = match &raw.app_address {
        None => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some(text) => problems.check("workload.appAddress", text, text.parse()),
    };
    let weight = raw.weight.unwrap_or(1);
    if !(1..=MAX_WEIGHT).contains(&weight) {
        problems.add("workload.weight", weight, format!("give 1 to {MAX_WEIGHT}"));
    }
    let address = advertised(raw.address.as_deref(), inbound, problems);
    let readiness = readiness(raw.probe, raw.ready, problems);
    Some(Workload {
        uid: raw.uid,
        namespace: raw.namespace,
        service_account: raw.service_account,
        labels: raw.labels,
        locality: Locality::new(&raw.locality.region, &raw.locality.zone),
        hostname: raw.hostname,
        weight,
        app_address: app_address?,
        address,
        ports: raw
            .ports
            .into_iter()
            .map(|(target, app)| (target.0, app.0))
            .collect(),
        readiness: readiness?,
    })
}

/// Others must be told an address that they can dial.
fn advertised(
    given: Option<&str>,
    inbound: Option<SocketAddr>,
    problems: &mut Problems,
) -> Option<IpAddr> {
    if given.is_none() && inbound.is_some_and(|inbound| inbound.ip().is_unspecified()) {
        let fix = "give the IP address at which other sidecars reach this one";
        problems.add(
            "workload.address",
            "nothing, while inboundListen is any address",
            fix,
        );
    }
    given.and_then(|text| problems.check("workload.address", text, text.parse()))
}

fn readiness(
    probe: Option<RawProbe>,
    ready: Option<bool>,
    problems: &mut Problems,
) -> Option<Readiness> {
    let Some(raw) = probe else {
        return Some(Readiness::Fixed(ready.unwrap_or(true)));
    };
    if ready.is_some() {
        problems.add(
            "workload.ready",
            "a value beside a probe",
            "keep one of the two",
        );
    }
    let (port, path) = match (raw.tcp, raw.http) {
        (Some(tcp), None) => (tcp.port, None),
        (None, Some(http)) => (http.port, Some(path(http.path, problems))),
        (tcp, _) => {
            let found = if tcp.is_some() {
                "both tcp and http"
            } else {
                "neither tcp nor http"
            };
            problems.add("workload.probe", found, "give one of tcp and http");
            return None;
        }
    };
    let interval = raw.interval.map_or(PROBE_INTERVAL, |interval| interval.0);
    let timeout = raw.timeout.map_or(PROBE_TIMEOUT, |timeout| timeout.0);
    if interval.is_zero() || timeout.is_zero() {
        problems.add(
            "workload.probe",
            "an interval or timeout of 0",
            "give e.g. 1s",
        );
    }
    Some(Readiness::Probe(Probe {
        port: port.get(),
        path,
        interval,
        timeout,
    }))
}

fn path(path: String, problems: &mut Problems) -> String {
    let path = if path.is_empty() {
        "/".to_owned()
    } else {
        path
    };
    if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
        let fix = "give a path that begins with `/`";
        problems.add("workload.probe.http.path", format_args!("`{path}`"), fix);
    }
    path
}

fn outbound(index: usize, raw: RawOutbound, problems: &mut Problems) -> Option<Outbound> {
    let listen = listen(&format!("outbound[{index}].listen"), &raw.listen, problems);
    let service = problems.check(
        format!("outbound[{index}].service"),
        &raw.service,
        raw.service.parse(),
    );
    Some(Outbound {
        listen: listen?,
        service: service?,
        port: raw.port.get(),
    })
}

fn listen(key: &str, text: &str, problems: &mut Problems) -> Option<SocketAddr> {
    let address = text
        .parse()
        .map_err(|_| "give IP:port, e.g. `127.0.0.1:15008`");
    problems.check(key, text, address)
}

fn loopback(key: &str, text: &str, problems: &mut Problems) -> Option<SocketAddr> {
    let address = listen(key, text, problems)?;
    if !address.ip().is_loopback() {
        let fix = "give a loopback address: this face shows configuration and endpoints";
        problems.add(key, address, fix);
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use linkspan_dataplane::inbound::Application;
    use linkspan_runtime::config::parse_yaml;
    use linkspan_trust::testing::Pki;

    use super::*;

    /// A configuration file's text, and the directory that holds its roots.
    fn file(workload: &str, rest: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("roots.pem");
        std::fs::write(
            &roots,
            Pki::new(&["east.test"])
                .authority("east.test")
                .bundle()
                .to_pem(),
        )
        .unwrap();
        let text = format!(
            "cluster: east
federation: {{address: \"127.0.0.1:15010\", trustDomain: east.test, roots: {roots}, token: token}}
workload: {{{workload}}}
inboundListen: 127.0.0.1:15008
adminListen: 127.0.0.1:15020
debugListen: 127.0.0.1:15021
{rest}",
            roots = roots.display()
        );
        (dir, text)
    }

    fn load(workload: &str, rest: &str) -> Result<Config, ConfigError> {
        let (_dir, text) = file(workload, rest);
        check(
            parse_yaml("sidecar.yaml".as_ref(), &text)?,
            Problems::new("sidecar.yaml"),
        )
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let config = load("uid: a, namespace: shop, serviceAccount: a", "").unwrap();
        assert_eq!(config.drain_grace, Duration::from_secs(30));
        assert_eq!(config.idle_timeout, Duration::from_secs(300));
        assert!(
            config.access_log == AccessLog::OFF
                && config.outbound.is_empty()
                && config.capture.is_none()
        );
        let captured = load("uid: a, namespace: shop, serviceAccount: a", "capture: {}");
        assert_eq!(captured.unwrap().capture, Some(15_001));
        assert_eq!(config.workload.readiness, Readiness::Fixed(true));
        let application = Application::Here {
            address: [127, 0, 0, 1].into(),
            ports: BTreeMap::new(),
        };
        assert_eq!(config.workload.application(), application);
    }

    #[test]
    fn a_full_file_is_read() {
        let workload = "uid: a, namespace: shop, serviceAccount: a, labels: {app: a}, \
            locality: {region: eu, zone: a}, hostname: a, weight: 3, appAddress: 127.0.0.2, \
            address: 10.0.0.1, ports: {\"80\": 9001, 81: 9002}, \
            probe: {http: {port: 9001, path: /healthz}, interval: 2s, timeout: 500ms}";
        let rest = "outbound: [{listen: \"127.0.0.1:7001\", service: shop/b, port: 80}]
drainGrace: 5s
idleTimeout: 1m
accessLog: true
capture: {port: 16001}";
        let config = load(workload, rest).unwrap();
        let application = Application::Here {
            address: [127, 0, 0, 2].into(),
            ports: [(80, 9001), (81, 9002)].into(),
        };
        assert_eq!(config.workload.application(), application);
        let probe = Probe {
            port: 9001,
            path: Some("/healthz".to_owned()),
            interval: Duration::from_secs(2),
            timeout: Duration::from_millis(500),
        };
        assert_eq!(config.workload.readiness, Readiness::Probe(probe));
        assert_eq!(config.outbound[0].service.to_string(), "shop/b");
        assert!(config.dump().to_string().contains("shop/b"));
        assert_eq!(config.capture, Some(16_001));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let workload = "uid: \"\", namespace: Shop, serviceAccount: a, weight: 1000, ready: true, \
            probe: {tcp: {port: 1}, http: {port: 1}}";
        let rest = "outbound: [{listen: \"7001\", service: b, port: 80}]";
        let error = load(workload, rest).unwrap_err().to_string();
        for key in [
            "workload.uid",
            "workload.namespace",
            "workload.weight",
            "workload.ready",
            "workload.probe",
            "outbound[0].listen",
            "outbound[0].service",
        ] {
            assert!(error.contains(key), "{key} is missing in {error}");
        }
    }

    #[test]
    fn any_address_must_be_told_to_others() {
        let (_dir, text) = file("uid: a, namespace: shop, serviceAccount: a", "");
        let text = text.replace("127.0.0.1:15008", "0.0.0.0:15008");
        let raw = parse_yaml("sidecar.yaml".as_ref(), &text).unwrap();
        let error = check(raw, Problems::new("sidecar.yaml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("workload.address"), "{error}");
    }
}
