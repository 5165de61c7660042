//! Names under `clusterset.local`, read from the right with fixed label counts.

use crate::model::ServiceKey;

/// The zone, from left to right.
pub const ORIGIN: [&str; 2] = ["clusterset", "local"];
/// Below the zone: services.
const SVC: &str = "svc";
/// Below the zone: which version of the scheme this is.
const VERSION: &str = "dns-version";

/// What a name means, whether there is such a thing or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Not under `clusterset.local`.
    Elsewhere,
    /// `clusterset.local` itself.
    Origin,
    /// `dns-version.clusterset.local`.
    Version,
    /// `svc.clusterset.local`, below which all services are.
    Services,
    /// `NS.svc.clusterset.local`.
    Namespace(String),
    /// A service, or what is below it: the labels from left to right, in lower case, joined by dots;
    /// empty for the service itself.
    Service(ServiceKey, String),
    /// Under `clusterset.local`, and nothing that could ever be there.
    Nothing,
}

impl Asked {
    /// Of the labels from left to right, without the root's, in any case. Any bytes mean something.
    pub fn parse<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let labels: Vec<&[u8]> = labels.into_iter().collect();
        let Some((below, origin)) = labels.split_last_chunk::<{ ORIGIN.len() }>() else {
            return Self::Elsewhere;
        };
        let ours = ORIGIN.map(str::as_bytes);
        if !std::iter::zip(origin, ours).all(|(label, ours)| label.eq_ignore_ascii_case(ours)) {
            return Self::Elsewhere;
        }
        // Whatever else a label may be made of stands in no name of ours.
        let Some(below) = below.iter().map(|label| plain(label)).collect() else {
            return Self::Nothing;
        };
        Self::below(below)
    }

    /// Of the labels below the zone.
    fn below(mut labels: Vec<String>) -> Self {
        let Some(first) = labels.pop() else {
            return Self::Origin;
        };
        if first == VERSION && labels.is_empty() {
            return Self::Version;
        }
        if first != SVC {
            return Self::Nothing;
        }
        let Some(namespace) = labels.pop() else {
            return Self::Services;
        };
        let Some(name) = labels.pop() else {
            return Self::Namespace(namespace);
        };
        match ServiceKey::new(&namespace, &name) {
            Ok(service) => Self::Service(service, labels.join(".")),
            Err(_) => Self::Nothing,
        }
    }
}

/// In lower case, if it is made of letters, digits, hyphens and underscores: no dot within a label may
/// be taken for one between two.
fn plain(label: &[u8]) -> Option<String> {
    let of_ours = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let text = std::str::from_utf8(label).ok()?;
    (!label.is_empty() && label.iter().all(of_ours)).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(name: &str) -> Asked {
        Asked::parse(name.split('.').map(str::as_bytes))
    }

    fn service(below: &str) -> Asked {
        Asked::Service(ServiceKey::new("shop", "checkout").unwrap(), below.into())
    }

    #[test]
    fn names_are_read_from_the_right() {
        for (name, asked) in [
            ("clusterset.local", Asked::Origin),
            ("dns-version.clusterset.local", Asked::Version),
            ("svc.clusterset.local", Asked::Services),
            ("shop.svc.clusterset.local", Asked::Namespace("shop".into())),
            ("checkout.shop.svc.clusterset.local", service("")),
            ("CheckOut.shop.SVC.clusterset.LOCAL", service("")),
            (
                "_Http._tcp.checkout.shop.svc.clusterset.local",
                service("_http._tcp"),
            ),
            ("a.b.c.checkout.shop.svc.clusterset.local", service("a.b.c")),
            ("a.dns-version.clusterset.local", Asked::Nothing),
            ("pod.clusterset.local", Asked::Nothing),
            ("-.shop.svc.clusterset.local", Asked::Nothing),
            ("local", Asked::Elsewhere),
            ("checkout.shop.svc.cluster.local", Asked::Elsewhere),
            ("clusterset.local.example", Asked::Elsewhere),
        ] {
            assert_eq!(parse(name), asked, "{name}");
        }
    }

    #[test]
    fn a_dot_within_a_label_separates_nothing() {
        let labels: [&[u8]; 4] = [b"checkout.shop", b"svc", b"clusterset", b"local"];
        assert_eq!(Asked::parse(labels), Asked::Nothing);
        let labels: [&[u8]; 3] = [b"\xff", b"example", b"org"];
        assert_eq!(Asked::parse(labels), Asked::Elsewhere);
    }

    proptest! {
        #[test]
        fn any_labels_mean_something(labels: Vec<Vec<u8>>, ours: bool) {
            let origin = ORIGIN.map(|label| label.as_bytes().to_vec());
            let all: Vec<_> = labels.iter().chain(ours.then_some(&origin).into_iter().flatten()).collect();
            let asked = Asked::parse(all.iter().map(|label| label.as_slice()));
            prop_assert!(!ours || asked != Asked::Elsewhere);
        }

        #[test]
        fn what_is_written_is_read_in_any_case(
            host in "[a-z0-9]{1,63}", cluster in "[a-z]{1,20}(\\.[a-z]{1,20})?",
            service in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?", namespace in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
            upper: u64,
        ) {
            let name = format!("{host}.{cluster}.{service}.{namespace}.svc.clusterset.local");
            let mixed: String = name.char_indices().map(|(at, c)| match upper >> (at % 64) & 1 {
                1 => c.to_ascii_uppercase(),
                _ => c,
            }).collect();
            let key = ServiceKey::new(&namespace, &service).unwrap();
            prop_assert_eq!(parse(&mixed), Asked::Service(key, format!("{host}.{cluster}")));
        }
    }
}
