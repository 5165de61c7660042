//! The mark rises at once and falls in a straight line.

use proptest::prelude::*;

use super::*;
use crate::testing::{Clock, service};

fn zone(zone: &str) -> Locality {
    Locality {
        region: "eu".into(),
        zone: zone.into(),
    }
}

fn counts(of: &[(&str, u32)]) -> BTreeMap<Locality, u32> {
    of.iter()
        .map(|(name, count)| (zone(name), *count))
        .collect()
}

struct Hand {
    clock: Clock,
    marks: HighWater,
}

impl Hand {
    fn new() -> Self {
        Self {
            clock: Clock::default(),
            marks: HighWater::new(),
        }
    }

    fn observe(&mut self, of: &[(&str, u32)]) -> Vec<(Locality, u32)> {
        let key = service("shop/checkout");
        let now = self.clock.now().instant;
        self.marks
            .observe(&Listed::from([(key.clone(), counts(of))]), now);
        self.marks.expected(&key, &counts(of), now)
    }

    fn after(&mut self, seconds: u64, of: &[(&str, u32)]) -> Vec<(Locality, u32)> {
        self.clock.pass(Duration::from_secs(seconds));
        self.observe(of)
    }
}

#[test]
fn what_was_lost_is_still_expected_and_fades() {
    let mut hand = Hand::new();
    assert_eq!(hand.observe(&[("a", 3)]), [(zone("a"), 3)]);
    assert_eq!(hand.after(1, &[("a", 1)]), [(zone("a"), 3)]);
    assert_eq!(hand.after(198, &[("a", 1)]), [(zone("a"), 3)]);
    assert_eq!(hand.after(2, &[("a", 1)]), [(zone("a"), 2)]);
    assert_eq!(hand.after(200, &[("a", 1)]), [(zone("a"), 1)]);
    assert_eq!(hand.after(600, &[("a", 1)]), [(zone("a"), 1)]);
}

#[test]
fn a_zone_that_lost_all_is_expected_until_the_mark_is_gone() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 2), ("b", 1)]);
    assert_eq!(hand.after(1, &[("a", 2)]), [(zone("a"), 2), (zone("b"), 1)]);
    assert_eq!(hand.after(600, &[("a", 2)]), [(zone("a"), 2)]);
}

#[test]
fn growth_counts_at_once_and_renews_the_mark() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    assert_eq!(hand.after(300, &[("a", 5)]), [(zone("a"), 5)]);
    assert_eq!(hand.after(100, &[("a", 1)]), [(zone("a"), 5)]);
}

#[test]
fn holding_level_keeps_the_mark_fresh() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    hand.after(500, &[("a", 3)]);
    assert_eq!(hand.after(190, &[("a", 1)]), [(zone("a"), 3)]);
}

#[test]
fn a_service_that_is_no_longer_declared_is_forgotten() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    hand.marks.observe(&Listed::new(), hand.clock.now().instant);
    assert_eq!(hand.observe(&[]), []);
}

#[test]
fn ever_new_localities_are_bounded() {
    let mut hand = Hand::new();
    let steady = ("z", 3);
    let mut told = hand.observe(&[steady]);
    for round in 0..MAX_LOCALITIES + 50 {
        let name = format!("zone-{round}");
        hand.clock.pass(Duration::from_secs(1));
        told = hand.observe(&[steady, (&name, 1)]);
        assert!(told.len() <= MAX_LOCALITIES, "{}", told.len());
    }
    assert!(told.contains(&(zone("z"), 3)), "{told:?}");
}

proptest! {
    #[test]
    fn never_less_than_listed_nor_more_than_ever_seen(steps in prop::collection::vec((0u64..400, 0u32..9), 1..30)) {
        let mut hand = Hand::new();
        let mut most = 0;
        for (seconds, count) in steps {
            most = most.max(count);
            let expected = hand.after(seconds, &[("a", count)]).first().map_or(0, |(_, count)| *count);
            prop_assert!((count..=most).contains(&expected), "{count} {expected} {most}");
        }
    }

    #[test]
    fn with_nothing_new_it_only_falls(count in 1u32..50, left in 0u32..50, steps in prop::collection::vec(0u64..100, 1..30)) {
        let mut hand = Hand::new();
        hand.observe(&[("a", count)]);
        let mut last = count;
        for seconds in steps {
            let now = hand.after(seconds, &[("a", left.min(count))]).first().map_or(0, |(_, count)| *count);
            prop_assert!(now <= last);
            last = now;
        }
    }
}

#[test]
fn a_peer_is_believed_up_to_four_times_what_it_lists() {
    let listed = BTreeMap::from([(zone("a"), 100)]);
    let claim = |count| believed(&listed, &[(zone("a"), count)]);
    assert_eq!(claim(400), [(zone("a"), 400)]);
    assert_eq!(claim(u32::MAX), [(zone("a"), 400)]);
    assert_eq!(claim(3), [(zone("a"), 100)], "never less than it lists");
}

#[test]
fn a_peer_that_lists_nothing_is_believed_to_have_had_64() {
    let none = BTreeMap::new();
    let claim = |count| believed(&none, &[(zone("a"), count)]);
    assert_eq!(claim(64), [(zone("a"), 64)]);
    assert_eq!(claim(65), [(zone("a"), 64)]);
}

#[test]
fn many_localities_do_not_multiply_what_a_peer_may_claim() {
    let listed = BTreeMap::from([(zone("z0"), 4)]);
    let claimed: Vec<_> = (0..MAX_LOCALITIES)
        .map(|at| (zone(&format!("z{at}")), u32::MAX))
        .collect();
    let believed = believed(&listed, &claimed);
    let sum: u32 = believed.iter().map(|(_, count)| count).sum();
    assert!(sum <= 64, "{sum}");
    assert!(
        believed
            .iter()
            .any(|(of, count)| *of == zone("z0") && *count >= 4)
    );
}
