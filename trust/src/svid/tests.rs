use proptest::prelude::*;

use super::*;
use crate::forge::ForgedCa;
use crate::testing::{Pki, trust_domain, workload};

const ALICE: &str = "spiffe://east.test/ns/shop/sa/alice";

#[test]
fn a_chain_with_its_key_makes_an_svid() {
    let intermediate = ForgedCa::root("east.test", |_| {}).intermediate("east.test", |_| {});
    let forged = intermediate.leaf(ALICE, |_| {});
    let svid = Svid::new(forged.chain.clone(), forged.key).unwrap();
    assert_eq!(svid.id().as_str(), ALICE);
    assert_eq!(svid.chain(), forged.chain);
    assert_eq!(crate::spiffe_id_of(svid.chain()), Ok(svid.id().clone()));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let root = ForgedCa::root("east.test", |_| {});
    let made = |chain: Vec<CertificateDer<'static>>, key| Svid::new(chain, key).unwrap_err();
    let leaf = || root.leaf(ALICE, |_| {});

    let none = made(vec![], PrivateKey::generate().unwrap());
    assert_eq!(none, SvidError::Leaf(CertificateError::NoCertificate));
    assert_eq!(
        crate::spiffe_id_of(&[]),
        Err(CertificateError::NoCertificate)
    );
    assert_eq!(made(leaf().chain, leaf().key), SvidError::OtherKey);

    let no_uri = root.leaf(ALICE, |p| p.subject_alt_names.clear());
    assert_eq!(
        crate::spiffe_id_of(&no_uri.chain),
        Err(CertificateError::NoUri)
    );
    assert_eq!(
        made(no_uri.chain, no_uri.key),
        SvidError::Leaf(CertificateError::NoUri)
    );

    let mut trailing = leaf();
    trailing.chain[0] = [&trailing.chain[0][..], &[0]].concat().into();
    assert_eq!(
        crate::spiffe_id_of(&trailing.chain),
        Err(CertificateError::Malformed)
    );
    assert_eq!(
        made(trailing.chain, trailing.key),
        SvidError::Leaf(CertificateError::Malformed)
    );

    let mut behind = leaf();
    behind.chain.extend(leaf().chain);
    assert_eq!(
        made(behind.chain, behind.key),
        SvidError::Issuer(CertificateError::NotCa)
    );

    let west = root.intermediate("west.test", |_| {}).leaf(ALICE, |_| {});
    let (issuer, domain) = (trust_domain("west.test"), trust_domain("east.test"));
    assert_eq!(
        made(west.chain, west.key),
        SvidError::IssuerDomain {
            issuer,
            leaf: domain
        }
    );

    let mut long = root.intermediate("east.test", |_| {}).leaf(ALICE, |_| {});
    long.chain.extend(vec![long.chain[1].clone(); 6]);
    assert_eq!(
        made(long.chain, long.key),
        SvidError::LongChain { intermediates: 7 }
    );
}

#[test]
fn the_whole_chain_bounds_the_validity() {
    let root = ForgedCa::root("east.test", |_| {});
    let short = time::Duration::minutes(20);
    let intermediate = root.intermediate("east.test", |p| p.not_after = p.not_before + short);
    let forged = intermediate.leaf(ALICE, |p| p.not_after = p.not_before + 100 * short);
    let svid = Svid::new(forged.chain, forged.key).unwrap();
    let life = svid.not_after().duration_since(svid.not_before()).unwrap();
    assert!(life <= Duration::from_secs(20 * 60), "{life:?}");
}

#[test]
fn renewal_is_due_around_half_of_the_life() {
    let pki = Pki::new(&["east.test"]);
    let svid = |seconds| {
        let to = pki.now() + Duration::from_secs(seconds);
        pki.svid_between(&workload("east.test", "shop", "alice"), pki.now(), to)
    };
    let hour = svid(3600);
    let after = |jitter| {
        hour.renew_at(jitter)
            .duration_since(hour.not_before())
            .unwrap()
    };
    assert_eq!(after(0.5).as_secs(), 1800);
    assert_eq!(after(0.0).as_secs(), 1440);
    assert_eq!(after(1.0).as_secs(), 2160);
    assert_eq!(
        [after(-1.0), after(f64::INFINITY), after(f64::NAN)].map(|d| d.as_secs()),
        [1440, 2160, 1800]
    );
    assert_eq!(svid(0).renew_at(0.7), svid(0).not_before());
}

#[test]
fn a_short_lived_svid_is_not_due_when_it_is_issued() {
    let pki = Pki::new(&["east.test"]);
    for seconds in [4, 60, 900, 3600, 86_400] {
        let lifetime = Duration::from_secs(seconds);
        let grant = crate::Grant {
            id: workload("east.test", "shop", "alice"),
            lifetime,
        };
        let svid = pki
            .authority("east.test")
            .issue_svid(&grant, pki.now())
            .unwrap();
        // A second, since certificates know no fractions.
        assert!(
            svid.renew_at(0.0) + Duration::from_secs(1) > pki.now(),
            "{lifetime:?}"
        );
        assert!(svid.renew_at(1.0) < pki.now() + lifetime, "{lifetime:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_leaf_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(crate::spiffe_id_of(&[bytes.into()]).is_err());
    }

    #[test]
    fn mutated_leaves_are_a_leaf_or_refused(
        at in any::<prop::sample::Index>(),
        cut in 0..8usize,
        insert in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut leaf = ForgedCa::root("east.test", |_| {}).leaf(ALICE, |_| {}).chain[0].to_vec();
        let at = at.index(leaf.len());
        let end = leaf.len().min(at + cut);
        leaf.splice(at..end, insert);
        let _ = crate::spiffe_id_of(&[leaf.into()]);
    }
}
