use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);

fn held(by: &str, version: u32) -> Seen {
    Seen {
        holder: by.into(),
        duration: Terms::default().duration,
        version: version.to_string(),
        transitions: 3,
    }
}

fn elector(me: &str) -> Elector {
    Elector::new(me, Terms::default())
}

#[test]
fn a_lease_that_is_not_there_is_made() {
    let now = Instant::now();
    let mut a = elector("a");
    assert_eq!(a.step(None, now), Step::Create);
    assert_eq!(a.leads_until(now), None);
    a.written("1".into(), now, now);
    assert_eq!(a.leads_until(now), Some(now + Terms::default().deadline));
}

#[test]
fn a_lease_of_another_is_taken_only_after_it_stood_still_for_its_duration() {
    let start = Instant::now();
    let mut a = elector("a");
    // The first look says nothing about how old it is.
    assert_eq!(a.step(Some(&held("b", 1)), start), Step::Wait(2 * S));
    assert!(matches!(
        a.step(Some(&held("b", 1)), start + 14 * S),
        Step::Wait(_)
    ));
    // A renewal, however late by the other's clock, begins a new term.
    assert!(matches!(
        a.step(Some(&held("b", 2)), start + 15 * S),
        Step::Wait(_)
    ));
    assert!(matches!(
        a.step(Some(&held("b", 2)), start + 29 * S),
        Step::Wait(_)
    ));
    let step = a.step(Some(&held("b", 2)), start + 30 * S);
    let taken = Step::Write {
        version: "2".into(),
        transitions: 4,
    };
    assert_eq!(step, taken);
}

#[test]
fn a_lease_that_was_given_up_is_taken_at_once() {
    let mut a = elector("a");
    assert!(matches!(
        a.step(Some(&held("", 1)), Instant::now()),
        Step::Write { .. }
    ));
}

#[test]
fn a_leader_that_cannot_renew_stops_before_others_take_over() {
    let start = Instant::now();
    let mut a = elector("a");
    a.written("1".into(), start, start + S);
    let last = a.leads_until(start).expect("leads");
    assert_eq!(a.leads_until(last), None);
    // A follower saw that write at the earliest when it was begun.
    assert!(last < start + Terms::default().duration);
}

#[test]
fn a_leader_that_sees_another_leads_no_more() {
    let start = Instant::now();
    let mut a = elector("a");
    a.written("1".into(), start, start);
    a.step(Some(&held("b", 2)), start + S);
    assert_eq!(a.leads_until(start + S), None);
}

/// One server, some candidates whose looks come late or fail, and whose clocks have any offset.
#[derive(Clone, Debug)]
struct Event {
    who: usize,
    after_ms: u64,
    /// How long the answer takes, or that it never comes (the write may have happened or not).
    delay_ms: u64,
    lost: bool,
    applied: bool,
}

fn event() -> impl Strategy<Value = Event> {
    (
        0..3_usize,
        0..4_000_u64,
        0..3_000_u64,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(who, after_ms, delay_ms, lost, applied)| Event {
            who,
            after_ms,
            delay_ms,
            lost,
            applied,
        })
}

proptest! {
    #[test]
    fn never_do_two_lead(events in prop::collection::vec(event(), 1..200)) {
        let start = Instant::now();
        let mut electors: Vec<_> = ["a", "b", "c"].map(elector).into();
        let mut lease: Option<Seen> = None;
        let mut version = 0;
        // When each candidate is free again: it waits for an answer.
        let mut free = [start; 3];
        let mut now = start;
        for event in events {
            now += Duration::from_millis(event.after_ms);
            if now < free[event.who] {
                continue;
            }
            let elector = &mut electors[event.who];
            let step = elector.step(lease.as_ref(), now);
            let transitions = match step {
                Step::Wait(_) => continue,
                Step::Create => 0,
                Step::Write { transitions, .. } => transitions,
            };
            let answered = now + Duration::from_millis(event.delay_ms);
            free[event.who] = answered;
            if event.lost && !event.applied {
                continue;
            }
            version += 1;
            lease = Some(Seen {
                holder: elector.me().into(),
                duration: Terms::default().duration,
                version: version.to_string(),
                transitions,
            });
            if !event.lost {
                elector.written(version.to_string(), now, answered);
            }
            let leaders = electors.iter().filter(|e| e.leads_until(now).is_some()).count();
            prop_assert!(leaders <= 1, "{leaders} leaders");
        }
    }
}
