//! From the leaf to a root of the right domain, and nowhere else.

use super::*;

#[test]
fn a_domain_without_a_bundle_is_unknown() {
    let south = ForgedCa::root("south.test", |_| {});
    let leaf = south.leaf("spiffe://south.test/x", |_| {});
    let (_, _, bundles) = east();
    assert_error(&bundles, &leaf, TlsError::UnknownIssuer);
    assert_error(&BundleSet::new(), &leaf, TlsError::UnknownIssuer);
    let rejected = prove(&bundles, &leaf.chain[0], &[], Role::Client, UnixTime::now());
    let no_bundle = Refusal::NoBundle {
        trust_domain: trust_domain("south.test"),
    };
    assert_eq!(rejected, Err(no_bundle.into()));
    assert_accepted(&south.bundles("south.test"), &leaf);
}

#[test]
fn one_domain_cannot_mint_identities_of_another() {
    let (_, _, mut bundles) = east();
    // West is trusted, for west.
    let west = ForgedCa::root("west.test", |p| p.subject_alt_names.clear());
    let bundle = Bundle::new(1, None, vec![west.certificate.clone()]).unwrap();
    bundles.insert(trust_domain("west.test"), bundle).unwrap();
    assert_accepted(&bundles, &west.leaf("spiffe://west.test/x", |_| {}));
    assert_error(
        &bundles,
        &west.leaf(MALLORY, |_| {}),
        TlsError::UnknownIssuer,
    );
    let through = west.intermediate(EAST, |_| {});
    assert_error(
        &bundles,
        &through.leaf(MALLORY, |_| {}),
        TlsError::UnknownIssuer,
    );
}

#[test]
fn the_right_name_from_the_wrong_root_is_refused() {
    let (root, _, bundles) = east();
    let own_name = ForgedCa::root(EAST, |p| {
        p.distinguished_name
            .push(rcgen::DnType::CommonName, "another root");
    });
    assert_error(
        &bundles,
        &own_name.leaf(MALLORY, |_| {}),
        TlsError::UnknownIssuer,
    );
    // A root with the very name of the trusted one, and a key of its own.
    let twin = ForgedCa::root(EAST, |_| {});
    assert_error(
        &bundles,
        &twin.leaf(MALLORY, |_| {}),
        TlsError::BadSignature,
    );
    // Sending the real root along changes nothing.
    let mut leaf = twin.leaf(MALLORY, |_| {});
    leaf.chain.push(root.certificate.clone());
    assert_error(&bundles, &leaf, TlsError::BadSignature);
}

#[test]
fn expired_and_early_issuers_are_refused() {
    let root = ForgedCa::root(EAST, |_| {});
    let bundles = root.bundles(EAST);
    let day = time::Duration::days(1);
    let old = root.intermediate(EAST, |p| {
        p.not_after = p.not_before + time::Duration::seconds(1);
    });
    let old = old.leaf(MALLORY, |_| {});
    let early = root.intermediate(EAST, |p| {
        p.not_before += day;
        p.not_after += day;
    });
    let early = early.leaf(MALLORY, |_| {});
    let now = UnixTime::now();
    let reject = |shown: &Forged| {
        prove(
            &bundles,
            &shown.chain[0],
            &shown.chain[1..],
            Role::Server,
            now,
        )
    };
    assert!(matches!(
        reject(&old),
        Err(Rejection::Path {
            source: webpki::Error::CertExpired { .. },
            ..
        })
    ));
    assert!(matches!(
        reject(&early),
        Err(Rejection::Path {
            source: webpki::Error::CertNotValidYet { .. },
            ..
        })
    ));
}

#[test]
fn roots_out_of_their_time_prove_nothing_and_both_clocks_are_named() {
    let root = ForgedCa::root(EAST, |_| {});
    let bundles = root.bundles(EAST);
    let leaf = root.leaf(MALLORY, |_| {});
    let validity = Signing::parse(&root.certificate).unwrap().validity;
    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let unix = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let judge = |time| match prove(&bundles, &leaf.chain[0], &[], Role::Client, time) {
        Err(Rejection::Path { source, .. }) => Some(source),
        proved => proved.map(|_| None).unwrap(),
    };
    let (first, last) = (seconds(validity.not_before), seconds(validity.not_after));
    assert_eq!([judge(unix(first)), judge(unix(last))], [None, None]);
    let (time, not_before) = (unix(first - 1), unix(first));
    let early = webpki::Error::CertNotValidYet { time, not_before };
    assert_eq!(judge(time), Some(early));
    for late in [last + 1, u64::MAX] {
        let (time, not_after) = (unix(late), unix(last));
        assert_eq!(
            judge(time),
            Some(webpki::Error::CertExpired { time, not_after })
        );
    }
}

#[test]
fn an_empty_bundle_trusts_nobody() {
    let root = ForgedCa::root(EAST, |_| {});
    let leaf = root.leaf(MALLORY, |_| {});
    let mut bundles = BundleSet::new();
    let empty = Bundle::new(1, None, vec![]).unwrap();
    bundles.insert(trust_domain(EAST), empty).unwrap();
    assert_error(&bundles, &leaf, TlsError::UnknownIssuer);
    let rejected = prove(&bundles, &leaf.chain[0], &[], Role::Client, UnixTime::now());
    let no_root = Refusal::NoRoot {
        trust_domain: trust_domain(EAST),
    };
    assert_eq!(rejected, Err(no_root.into()));
}

#[test]
fn a_leaf_cannot_issue() {
    let (_, intermediate, bundles) = east();
    let leaf = intermediate.leaf(MALLORY, |_| {});
    let fake = intermediate.intermediate(EAST, |p| {
        p.is_ca = IsCa::ExplicitNoCa;
        p.subject_alt_names = vec![uri(MALLORY)];
    });
    let minted = fake.leaf("spiffe://east.test/ns/shop/sa/admin", |_| {});
    assert_accepted(&bundles, &leaf);
    assert_no_path(&bundles, &minted, webpki::Error::EndEntityUsedAsCa);
}

#[test]
fn an_intermediate_is_a_signing_certificate_of_the_same_domain() {
    let (root, _, bundles) = east();
    let minted =
        |change: fn(&mut CertificateParams)| root.intermediate(EAST, change).leaf(MALLORY, |_| {});
    let no_usage = minted(|p| p.key_usages.clear());
    assert_refused(
        &bundles,
        &no_usage,
        Refusal::Issuer(CertificateError::NoKeyUsage),
    );
    let other_usage = minted(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert_refused(
        &bundles,
        &other_usage,
        Refusal::Issuer(CertificateError::NoKeyCertSign),
    );
    let with_path = minted(|p| p.subject_alt_names = vec![uri("spiffe://east.test/ca")]);
    assert_refused(
        &bundles,
        &with_path,
        Refusal::Issuer(CertificateError::SigningPath),
    );
    let foreign = minted(|p| p.subject_alt_names = vec![uri("spiffe://west.test")]);
    let (leaf, issuer) = (trust_domain(EAST), trust_domain("west.test"));
    assert_refused(&bundles, &foreign, Refusal::IssuerDomain { leaf, issuer });
    let two = minted(|p| p.subject_alt_names.push(uri("https://ca.example/")));
    let several = CertificateError::SeveralUris { count: 2 };
    assert_refused(&bundles, &two, Refusal::Issuer(several));
    let upper = minted(|p| p.subject_alt_names = vec![uri("SPIFFE://west.test")]);
    assert_refused(
        &bundles,
        &upper,
        Refusal::Issuer(CertificateError::Id(IdError::Scheme)),
    );
}

#[test]
fn path_lengths_hold() {
    let (root, _, bundles) = east();
    let limited = root.intermediate(EAST, |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert_accepted(&bundles, &limited.leaf(MALLORY, |_| {}));
    let further = limited.intermediate(EAST, |_| {});
    let leaf = further.leaf(MALLORY, |_| {});
    assert_no_path(&bundles, &leaf, webpki::Error::PathLenConstraintViolated);
}

#[test]
fn long_chains_are_refused_before_they_cost_anything() {
    let (_, intermediate, bundles) = east();
    let mut leaf = intermediate.leaf(MALLORY, |_| {});
    let again = leaf.chain[1].clone();
    leaf.chain.extend(vec![again.clone(); 5]);
    assert_accepted(&bundles, &leaf);
    leaf.chain.push(again);
    assert_refused(&bundles, &leaf, Refusal::LongChain { intermediates: 7 });
}

#[test]
fn name_constraints_hold_and_those_on_uris_refuse_everything() {
    let (root, _, bundles) = east();
    let constraints = |name: &str| NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
        excluded_subtrees: vec![],
    };
    let limited = root.intermediate(EAST, |p| {
        p.name_constraints = Some(constraints("east.example"));
    });
    let with = |name: &str| limited.leaf(MALLORY, |p| p.subject_alt_names.push(dns(name)));
    assert_accepted(&bundles, &with("a.east.example"));
    assert_no_path(
        &bundles,
        &with("west.example"),
        webpki::Error::NameConstraintViolation,
    );
    // Even a URI within the constraint: webpki evaluates none, and errs on the safe side.
    let on_uris = root.intermediate(EAST, |p| p.custom_extensions.push(uri_constraint(EAST)));
    let leaf = on_uris.leaf(MALLORY, |_| {});
    assert_no_path(&bundles, &leaf, webpki::Error::NameConstraintViolation);
}

#[test]
fn each_flipped_bit_in_a_chain_is_noticed() {
    let (_, intermediate, bundles) = east();
    let shown = intermediate.leaf(MALLORY, |_| {});
    let judge = |chain: &[CertificateDer<'static>]| {
        prove(
            &bundles,
            &chain[0],
            &chain[1..],
            Role::Client,
            UnixTime::now(),
        )
    };
    assert!(judge(&shown.chain).is_ok());
    for certificate in 0..shown.chain.len() {
        for bit in 0..shown.chain[certificate].len() * 8 {
            let mut chain = shown.chain.clone();
            let mut der = chain[certificate].to_vec();
            der[bit / 8] ^= 1 << (bit % 8);
            chain[certificate] = der.into();
            assert!(
                judge(&chain).is_err(),
                "bit {bit} of certificate {certificate}"
            );
        }
        let mut chain = shown.chain.clone();
        let cut = chain[certificate].len() - 1;
        chain[certificate] = chain[certificate][..cut].to_vec().into();
        assert!(judge(&chain).is_err());
        let mut chain = shown.chain.clone();
        chain[certificate] = [&chain[certificate][..], &[0]].concat().into();
        assert!(judge(&chain).is_err());
    }
}
