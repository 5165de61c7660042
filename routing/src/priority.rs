//! How much of the load each priority takes: Envoy's published arithmetic.
//!
//! The health of a priority is the part of its expected endpoints that is available, times the
//! overprovisioning factor, at most 1. The first priority takes load up to its health, the next
//! takes what is left up to its own, and so on. Where all healths together are below 1 they are
//! scaled up to 1, so that whatever still works takes everything.
//! (Envoy documentation, "Load balancing", "Priority levels".)

/// Where no policy says otherwise, a priority is fully healthy while at least 1/1.4 = 71.4 % of
/// it is available.
pub const OVERPROVISIONING: f64 = 1.4;

/// Differences below this are rounding.
pub(crate) const EPSILON: f64 = 1e-9;

/// The health of a priority by the overprovisioning factor: 0 to 1. One that expects nothing has
/// none.
pub fn health(available: u32, expected: u32, factor: f64) -> f64 {
    if expected == 0 {
        return 0.0;
    }
    (f64::from(available) / f64::from(expected) * factor).min(1.0)
}

/// The part of the load that each priority takes, first priority first. The parts sum to 1, or
/// are all 0 where nothing is healthy.
pub fn loads<const N: usize>(health: &[f64; N]) -> [f64; N] {
    let total: f64 = health.iter().sum::<f64>().min(1.0);
    let mut left = 1.0;
    let mut loads = [0.0; N];
    if total <= 0.0 {
        return loads;
    }
    for (load, health) in loads.iter_mut().zip(health) {
        *load = (health / total).min(left);
        left -= *load;
    }
    loads
}

/// The part of the load that each priority takes when nothing is healthy and ejected endpoints
/// are all there is: in proportion to their numbers (Envoy's total panic).
pub fn panic_loads<const N: usize>(endpoints: &[u32; N]) -> [f64; N] {
    let total: u32 = endpoints.iter().sum();
    if total == 0 {
        return [0.0; N];
    }
    endpoints.map(|count| f64::from(count) / f64::from(total))
}

/// The healths to route by when recovered priorities are held back to `damped` (never above
/// `real`): what then lacks to a full load is taken from what is held back, nearest first, so
/// that damping never leaves load to priorities that cannot take it.
pub(crate) fn relieve<const N: usize>(real: &[f64; N], damped: &[f64; N]) -> [f64; N] {
    let mut lacking = 1.0 - damped.iter().sum::<f64>();
    let mut result = *damped;
    for (result, real) in result.iter_mut().zip(real) {
        let more = (real - *result).max(0.0).min(lacking.max(0.0));
        *result += more;
        lacking -= more;
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn health(available: u32, expected: u32) -> f64 {
        super::health(available, expected, OVERPROVISIONING)
    }

    /// Envoy's own words, in whole percents: `priority_load(P_X) = min(100 - sum(priority_load
    /// (P_0..P_X-1)), health(P_X) * 100 / normalized_total_health)`.
    fn envoy(health: &[f64; 3]) -> [f64; 3] {
        let percent = health.map(|h| h * 100.0);
        let normalized = percent.iter().sum::<f64>().min(100.0);
        let p0 = (percent[0] * 100.0 / normalized).min(100.0);
        let p1 = (percent[1] * 100.0 / normalized).min(100.0 - p0);
        let p2 = (percent[2] * 100.0 / normalized).min(100.0 - p0 - p1);
        [p0, p1, p2].map(|load| load / 100.0)
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn two_of_three_dead_leave_about_half_at_home() {
        let healths = [health(1, 3), health(3, 3)];
        let [home, away] = loads(&healths);
        assert!((home - 0.4667).abs() < 0.0001 && (away - 0.5333).abs() < 0.0001);
    }

    #[test]
    fn the_tables_of_envoys_documentation() {
        for (available, expected) in [
            ([100, 100, 100], [1.0, 0.0, 0.0]),
            ([72, 72, 100], [1.0, 0.0, 0.0]),
            ([71, 71, 100], [0.994, 0.006, 0.0]),
            ([50, 50, 100], [0.7, 0.3, 0.0]),
            ([25, 100, 100], [0.35, 0.65, 0.0]),
            ([25, 25, 100], [0.35, 0.35, 0.3]),
            ([25, 25, 20], [0.357, 0.357, 0.286]),
        ] {
            let loads = loads(&available.map(|part| health(part, 100)));
            for (load, expected) in loads.iter().zip(expected) {
                assert!((load - expected).abs() < 0.0006, "{available:?}: {loads:?}");
            }
        }
    }

    #[test]
    fn nothing_expected_is_nothing_healthy() {
        assert_eq!(health(0, 0), 0.0);
        assert_eq!(loads(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(panic_loads(&[0, 0]), [0.0, 0.0]);
    }

    #[test]
    fn held_back_health_is_used_when_others_cannot_take_the_load() {
        assert!(close(&relieve(&[1.0, 0.2], &[0.4, 0.2]), &[0.8, 0.2]));
        assert!(close(&relieve(&[1.0, 1.0], &[0.4, 1.0]), &[0.4, 1.0]));
        assert!(close(&relieve(&[0.5, 0.0], &[0.0, 0.0]), &[0.5, 0.0]));
    }

    fn healths() -> impl Strategy<Value = [f64; 3]> {
        [(0u32..20), (0u32..20), (0u32..20)]
            .prop_map(|counts| counts.map(|available| health(available, 19)))
    }

    proptest! {
        #[test]
        fn spill_over_is_envoys(healths in healths()) {
            prop_assume!(healths.iter().sum::<f64>() > 0.0);
            prop_assert!(close(&loads(&healths), &envoy(&healths)));
        }

        #[test]
        fn loads_sum_to_one_or_nothing_is_healthy(healths in healths()) {
            let sum: f64 = loads(&healths).iter().sum();
            let wanted = if healths.iter().any(|h| *h > 0.0) { 1.0 } else { 0.0 };
            prop_assert!((sum - wanted).abs() < 1e-9);
        }

        #[test]
        fn more_health_is_never_less_load(healths in healths(), at in 0usize..3, more in 0.0f64..1.0) {
            let mut better = healths;
            better[at] = (better[at] + more).min(1.0);
            prop_assert!(loads(&better)[at] >= loads(&healths)[at] - 1e-9);
        }

        #[test]
        fn relief_stays_between_damped_and_real(real in healths(), part in [0.0f64..=1.0, 0.0f64..=1.0, 0.0f64..=1.0]) {
            let damped: [f64; 3] = std::array::from_fn(|i| real[i] * part[i]);
            let relieved = relieve(&real, &damped);
            for i in 0..3 {
                prop_assert!(relieved[i] >= damped[i] - 1e-9 && relieved[i] <= real[i] + 1e-9);
            }
            // As much load can be taken as without damping.
            let (with, without): (f64, f64) = (relieved.iter().sum(), real.iter().sum());
            prop_assert!(with.min(1.0) >= without.min(1.0) - 1e-9);
            // And never more of it at home than without damping.
            prop_assert!(loads(&relieved)[0] <= loads(&real)[0] + 1e-9);
        }
    }
}
