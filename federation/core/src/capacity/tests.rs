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
fn what_was_lost_is_expected_after_a_restart_as_long_as_before_it() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    assert_eq!(hand.after(100, &[("a", 1)]), [(zone("a"), 3)]);
    let kept = hand.marks.kept(hand.clock.now());
    let text = serde_json::to_string(&kept).expect("JSON");
    hand.clock.pass(Duration::from_secs(50));
    let kept: Vec<KeptMark> = serde_json::from_str(&text).expect("JSON");
    hand.marks = HighWater::restored(kept, hand.clock.now());
    assert_eq!(hand.after(0, &[("a", 1)]), [(zone("a"), 3)]);
    assert_eq!(hand.after(51, &[("a", 1)]), [(zone("a"), 2)]);
    assert_eq!(hand.after(400, &[("a", 1)]), [(zone("a"), 1)]);
}

#[test]
fn odd_clocks_make_a_mark_new_and_never_panic() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    let now = hand.clock.now();
    for at_unix in [0, u64::MAX, 2_000_000_000] {
        let mut kept = hand.marks.kept(now);
        kept[0].at_unix = Some(at_unix);
        let restored = HighWater::restored(kept, now);
        let expected = restored.expected(&service("shop/checkout"), &BTreeMap::new(), now.instant);
        assert!(
            expected.is_empty() || expected == [(zone("a"), 3)],
            "{at_unix}"
        );
    }
}

#[test]
fn what_is_kept_changes_with_the_marks_and_not_with_time() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    let steady = hand.marks.kept(hand.clock.now());
    hand.after(3_600, &[("a", 3)]);
    assert_eq!(hand.marks.kept(hand.clock.now()), steady);
    // Two are lost: from then on it counts since when.
    hand.after(100, &[("a", 1)]);
    let falling = hand.marks.kept(hand.clock.now());
    assert_ne!(falling, steady);
    hand.after(100, &[("a", 1)]);
    assert_eq!(hand.marks.kept(hand.clock.now()), falling);
    hand.after(0, &[("a", 4)]);
    assert_ne!(hand.marks.kept(hand.clock.now()), steady);
}

#[test]
fn a_steady_mark_is_new_after_the_restart_a_falling_one_as_old_as_it_is() {
    let mut hand = Hand::new();
    hand.observe(&[("a", 3)]);
    let (steady, nothing) = (hand.marks.kept(hand.clock.now()), BTreeMap::new());
    let later = hand.clock.pass(DECAY);
    let expected = |kept| {
        let restored = HighWater::restored(kept, later);
        restored.expected(&service("shop/checkout"), &nothing, later.instant)
    };
    assert_eq!(expected(steady), [(zone("a"), 3)]);
    assert_eq!(expected(hand.marks.kept(later)), []);
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

/// What we know of a peer's one service, and when.
struct Witness {
    clock: Clock,
    seen: Seen,
}

impl Witness {
    fn new() -> Self {
        Self {
            clock: Clock::default(),
            seen: Seen::new(),
        }
    }

    /// After so many seconds the peer lists this and claims that; what is believed?
    fn after(
        &mut self,
        seconds: u64,
        of: &[(&str, u32)],
        claimed: &[(&str, u32)],
    ) -> Vec<(Locality, u32)> {
        let (west, key) = (cluster("west"), service("shop/checkout"));
        self.clock.pass(Duration::from_secs(seconds));
        let now = self.clock.now().instant;
        let listed = Listed::from([(key.clone(), counts(of))]);
        self.seen
            .observe(&BTreeMap::from([(west.clone(), listed)]), now);
        let claimed: Vec<_> = counts(claimed).into_iter().collect();
        believed(&counts(of), &claimed, &self.seen.of(&west, &key, now))
    }
}

fn cluster(id: &str) -> ClusterId {
    id.parse().expect("a cluster id")
}

#[test]
fn a_peer_is_believed_up_to_four_times_what_it_lists() {
    let claim = |count| Witness::new().after(0, &[("a", 100)], &[("a", count)]);
    assert_eq!(claim(400), [(zone("a"), 400)]);
    assert_eq!(claim(u32::MAX), [(zone("a"), 400)]);
    assert_eq!(claim(3), [(zone("a"), 100)], "never less than it lists");
}

#[test]
fn where_a_peer_never_listed_anything_it_is_not_believed() {
    // A claim in the callers' own zone would make that zone look ill, and so send its traffic on.
    let believed = Witness::new().after(0, &[("far", 5)], &[("near", 64), ("far", 5)]);
    assert_eq!(believed, [(zone("far"), 5)]);
    assert_eq!(Witness::new().after(0, &[], &[("near", 64)]), []);
}

#[test]
fn a_peer_that_lost_most_of_what_it_was_seen_to_list_is_believed_until_that_fades() {
    let mut west = Witness::new();
    west.after(0, &[("a", 1000)], &[("a", 1000)]);
    let lost = west.after(1, &[("a", 10)], &[("a", 1000)]);
    assert_eq!(lost, [(zone("a"), 1000)], "it looks as ill as it is");
    let later = west.after(600, &[("a", 10)], &[("a", 1000)]);
    assert_eq!(later, [(zone("a"), 40)], "the mark is gone");
}

#[test]
fn endpoints_that_wander_through_localities_do_not_add_up() {
    let mut west = Witness::new();
    let zones: Vec<_> = (0..50).map(|at| format!("z{at}")).collect();
    let claimed: Vec<_> = zones.iter().map(|zone| (zone.as_str(), u32::MAX)).collect();
    let mut last = Vec::new();
    for zone in &zones {
        last = west.after(1, &[(zone, 10)], &claimed);
    }
    let sum: u32 = last.iter().map(|(_, count)| count).sum();
    assert!((10..=40).contains(&sum), "{sum}");
}

#[test]
fn what_was_seen_of_a_peer_goes_with_its_export_and_its_link() {
    let (west, key) = (cluster("west"), service("shop/checkout"));
    let now = Clock::default().now().instant;
    let exports = Listed::from([(key.clone(), counts(&[("a", 9)]))]);
    for without in [
        BTreeMap::new(),
        BTreeMap::from([(west.clone(), Listed::new())]),
    ] {
        let mut seen = Seen::new();
        seen.observe(&BTreeMap::from([(west.clone(), exports.clone())]), now);
        assert_eq!(seen.of(&west, &key, now).in_all, 9);
        seen.observe(&without, now);
        assert_eq!(seen.of(&west, &key, now).in_all, 0);
        assert!(seen.of(&west, &key, now).by_locality.is_empty());
    }
}
