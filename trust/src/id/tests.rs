use proptest::prelude::*;

use super::*;

fn domain(bytes: &[u8]) -> Result<TrustDomain, IdError> {
    TrustDomain::from_bytes(bytes)
}

fn id(text: &str) -> Result<SpiffeId, IdError> {
    text.parse()
}

#[test]
fn each_byte_in_a_trust_domain_is_judged() {
    let allowed = b"abcdefghijklmnopqrstuvwxyz0123456789.-_";
    for position in 0..3 {
        for byte in 0..=255 {
            let mut name = *b"abc";
            name[position] = byte;
            let uri = [b"spiffe://", &name[..], b"/x"].concat();
            if allowed.contains(&byte) {
                assert_eq!(domain(&name).unwrap().as_str().as_bytes(), name);
                assert_eq!(SpiffeId::from_bytes(&uri).unwrap().as_str().as_bytes(), uri);
                continue;
            }
            let refused = IdError::TrustDomainByte { byte, at: position };
            assert_eq!(domain(&name), Err(refused));
            // Within an ID a slash ends the trust domain.
            let expected = match (byte, position) {
                (b'/', 0) => Err(IdError::EmptyTrustDomain),
                (b'/', 1) => Ok("a"),
                (b'/', _) => Err(IdError::EmptySegment),
                _ => Err(refused),
            };
            let found = SpiffeId::from_bytes(&uri);
            let found = found
                .as_ref()
                .map(|id| id.trust_domain().as_str())
                .map_err(|e| *e);
            assert_eq!(found, expected, "byte {byte:#04x} at {position}");
        }
    }
}

#[test]
fn each_byte_in_a_path_is_judged() {
    let allowed = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    let template = *b"spiffe://td/abc/def";
    for (position, at) in [(12, 1), (13, 2), (14, 3), (18, 7)] {
        for byte in 0..=255 {
            let mut uri = template;
            uri[position] = byte;
            let found = SpiffeId::from_bytes(&uri).map(|id| id.as_str().as_bytes().to_vec());
            let expected = match byte {
                b'/' if position == 13 => Ok(uri.to_vec()),
                b'/' if position == 18 => Err(IdError::TrailingSlash),
                b'/' => Err(IdError::EmptySegment),
                _ if allowed.contains(&byte) => Ok(uri.to_vec()),
                _ => Err(IdError::PathByte { byte, at }),
            };
            assert_eq!(found, expected, "byte {byte:#04x} at {position}");
        }
    }
}

#[test]
fn lengths_are_bounded() {
    let longest = "a".repeat(255);
    assert_eq!(domain(longest.as_bytes()).unwrap().as_str(), longest);
    let over = "a".repeat(256);
    assert_eq!(
        domain(over.as_bytes()),
        Err(IdError::LongTrustDomain { length: 256 })
    );
    assert_eq!(
        id(&format!("spiffe://{over}/x")),
        Err(IdError::LongTrustDomain { length: 256 })
    );

    let prefix = "spiffe://td/";
    let longest = format!("{prefix}{}", "x".repeat(2048 - prefix.len()));
    assert_eq!(id(&longest).unwrap().as_str(), longest);
    assert_eq!(
        id(&format!("{longest}x")),
        Err(IdError::LongId { length: 2049 })
    );
}

#[test]
fn odd_spellings_are_refused() {
    for (text, expected) in [
        ("", IdError::Scheme),
        ("spiffe:/td/x", IdError::Scheme),
        ("SPIFFE://td/x", IdError::Scheme),
        ("Spiffe://td/x", IdError::Scheme),
        ("https://td/x", IdError::Scheme),
        (" spiffe://td/x", IdError::Scheme),
        ("spiffe://", IdError::EmptyTrustDomain),
        ("spiffe:///x", IdError::EmptyTrustDomain),
        ("spiffe://td/", IdError::TrailingSlash),
        ("spiffe://td//", IdError::TrailingSlash),
        ("spiffe://td/x/", IdError::TrailingSlash),
        ("spiffe://td//x", IdError::EmptySegment),
        ("spiffe://td/./x", IdError::DotSegment),
        ("spiffe://td/x/..", IdError::DotSegment),
        ("spiffe://td/..", IdError::DotSegment),
        (
            "spiffe://td:443/x",
            IdError::TrustDomainByte { byte: b':', at: 2 },
        ),
        (
            "spiffe://me@td/x",
            IdError::TrustDomainByte { byte: b'@', at: 2 },
        ),
        (
            "spiffe://td?q=1",
            IdError::TrustDomainByte { byte: b'?', at: 2 },
        ),
        ("spiffe://td/x?q=1", IdError::PathByte { byte: b'?', at: 2 }),
        ("spiffe://td/x#f", IdError::PathByte { byte: b'#', at: 2 }),
        ("spiffe://td/%41", IdError::PathByte { byte: b'%', at: 1 }),
        ("spiffe://td/x\0", IdError::PathByte { byte: 0, at: 2 }),
    ] {
        assert_eq!(id(text), Err(expected), "{text:?}");
    }
    // Dots are only special alone.
    for text in [
        "spiffe://td/...",
        "spiffe://td/.x",
        "spiffe://td/x..y",
        "spiffe://.-_/x",
    ] {
        assert_eq!(id(text).unwrap().as_str(), text);
    }
}

#[test]
fn parts_of_an_id() {
    let whole = id("spiffe://east.test/ns/shop/sa/checkout").unwrap();
    assert_eq!(whole.trust_domain().as_str(), "east.test");
    assert_eq!(whole.path(), "/ns/shop/sa/checkout");
    let workload = WorkloadId::new("shop", "checkout").unwrap();
    assert_eq!(whole.workload_id(), Some(workload.clone()));
    assert_eq!(SpiffeId::workload(whole.trust_domain(), &workload), whole);

    let bare = id("spiffe://east.test").unwrap();
    assert_eq!((bare.path(), bare.workload_id()), ("", None));
    assert_eq!(whole.trust_domain().id(), bare);
}

#[test]
fn only_the_exact_form_names_a_workload() {
    for path in [
        "/ns/shop",
        "/ns/shop/sa",
        "/ns/shop/sa/a/b",
        "/ns/sa/sa",
        "/x/ns/shop/sa/a",
        "/NS/shop/sa/a",
        "/ns/Shop/sa/a",
        "/ns/shop/sa/a_b",
        "/ns/a/b/sa/c",
        "/sa/a/ns/shop",
    ] {
        assert_eq!(
            id(&format!("spiffe://td{path}")).unwrap().workload_id(),
            None,
            "{path}"
        );
    }
    // The first `/sa/` ends the namespace, and no account has a slash, so there is one reading.
    assert_eq!(
        id("spiffe://td/ns/sa/sa/sa")
            .unwrap()
            .workload_id()
            .unwrap()
            .namespace(),
        "sa"
    );
}

#[test]
fn workloads_have_kubernetes_names() {
    let label = "a".repeat(63);
    let account = format!("{}a", "ab.".repeat(84));
    assert_eq!(account.len(), 253);
    assert!(WorkloadId::new(&label, &account).is_ok());
    assert!(WorkloadId::new("0-9", "a.b-c.0").is_ok());
    let over = format!("{label}a");
    for bad in [
        "",
        "-a",
        "a-",
        "A",
        "a.b",
        "a/b",
        "a_b",
        "ä",
        "a b",
        "..",
        over.as_str(),
    ] {
        assert_eq!(
            WorkloadId::new(bad, "a"),
            Err(IdError::Namespace),
            "{bad:?}"
        );
    }
    let over = format!("{account}a");
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a.-b",
        "A",
        "a/b",
        "a_b",
        over.as_str(),
    ] {
        assert_eq!(
            WorkloadId::new("a", bad),
            Err(IdError::ServiceAccount),
            "{bad:?}"
        );
    }
    // The longest of all parts still makes an ID that parses.
    let domain = domain("d".repeat(255).as_bytes()).unwrap();
    let longest = SpiffeId::workload(&domain, &WorkloadId::new(&label, &account).unwrap());
    assert_eq!(id(longest.as_str()), Ok(longest));
}

#[test]
fn the_parts_of_linkspan_have_fixed_ids() {
    let domain = domain(b"east.demo.linkspan.internal").unwrap();
    assert_eq!(
        SpiffeId::gateway(&domain).as_str(),
        "spiffe://east.demo.linkspan.internal/ns/linkspan-system/sa/linkspan-gateway"
    );
    assert_eq!(
        SpiffeId::federation(&domain).as_str(),
        "spiffe://east.demo.linkspan.internal/ns/linkspan-system/sa/linkspan-federation"
    );
    assert!(SpiffeId::gateway(&domain).workload_id().is_some());
}

#[test]
fn serde_is_by_string_and_checks() {
    let whole = id("spiffe://east.test/x").unwrap();
    let json = serde_json::to_string(&whole).unwrap();
    assert_eq!(json, r#""spiffe://east.test/x""#);
    assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), whole);
    assert!(serde_json::from_str::<SpiffeId>(r#""spiffe://East/x""#).is_err());
    let domain: TrustDomain = serde_json::from_str(r#""east.test""#).unwrap();
    assert_eq!(serde_json::to_string(&domain).unwrap(), r#""east.test""#);
    assert!(serde_json::from_str::<TrustDomain>(r#""""#).is_err());
}

proptest! {
    #[test]
    fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(domain) = TrustDomain::from_bytes(&bytes) {
            prop_assert_eq!(domain.as_str().as_bytes(), &bytes[..]);
        }
        let uri = [b"spiffe://", &bytes[..]].concat();
        for candidate in [&bytes, &uri] {
            if let Ok(id) = SpiffeId::from_bytes(candidate) {
                prop_assert_eq!(id.as_str().as_bytes(), &candidate[..]);
            }
        }
    }

    #[test]
    fn near_misses_parse_to_themselves(uri in r"spiffe://[a-c./_-]{0,6}(/[aB.]{0,3}){0,4}/?") {
        if let Ok(id) = uri.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str(), &uri);
            let parts = format!("spiffe://{}{}", id.trust_domain(), id.path());
            prop_assert_eq!(parts, uri);
            let segments = id.path().split('/').skip(1);
            prop_assert!(segments.into_iter().all(|s| !matches!(s, "" | "." | "..")));
        }
    }

    #[test]
    fn well_formed_ids_round_trip(
        domain in "[a-z0-9._-]{1,255}",
        path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}){0,20}",
    ) {
        let uri = format!("spiffe://{domain}{path}");
        let id: SpiffeId = uri.parse().unwrap();
        prop_assert_eq!(id.trust_domain().as_str(), domain);
        prop_assert_eq!(id.path(), path);
        prop_assert_eq!(id.to_string(), uri);
    }

    #[test]
    fn workloads_round_trip(namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
                            account in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}") {
        let workload = WorkloadId::new(&namespace, &account).unwrap();
        let id = SpiffeId::workload(&"td".parse().unwrap(), &workload);
        prop_assert_eq!(id.workload_id(), Some(workload));
    }
}
