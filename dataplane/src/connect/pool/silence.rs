//! When the silence of a connection means that the other side is gone.
//!
//! While requests are in flight the other side is asked soon, and given up soon, as somebody waits;
//! while there are none, there is no hurry. What counts is silence, so bytes of any kind are an
//! answer, and nothing else is: callers who give up and come again do not make it begin anew. Time
//! in which we ran late ourselves does not count.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often silence is looked at while requests are in flight.
const BUSY_TICK: Duration = Duration::from_millis(250);
/// And while there are none: twice a second costs little, and finds the next request soon.
const IDLE_TICK: Duration = Duration::from_millis(500);

/// How long silence may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Until the other side is asked.
    pub(super) ask: Duration,
    /// From then on, until it is given up.
    pub(super) patience: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Send a ping.
    Ask,
    /// The other side is gone.
    GiveUp,
}

/// The silence of one connection.
#[derive(Debug)]
pub(super) struct Silence {
    idle: Pace,
    busy: Pace,
    is_busy: bool,
    /// Since something was heard.
    quiet: Duration,
    /// The part of it in which requests were in flight.
    waited: Duration,
    /// Since the other side was asked; only what is heard forgets it.
    asked: Option<Duration>,
}

impl Silence {
    /// Of an idle connection that has just been heard.
    pub(super) fn new(idle: Pace, busy: Pace) -> Self {
        Self {
            idle,
            busy,
            is_busy: false,
            quiet: Duration::ZERO,
            waited: Duration::ZERO,
            asked: None,
        }
    }

    /// After how long to look again.
    pub(super) fn tick(&self) -> Duration {
        if self.is_busy { BUSY_TICK } else { IDLE_TICK }
    }

    /// Looks, `elapsed` after the last time: whether anything was heard since, and whether
    /// requests are in flight.
    ///
    /// Silence of the idle pace's `ask + patience` is the end in any case; where requests wait, be
    /// it now and then only, the end comes sooner.
    pub(super) fn look(&mut self, elapsed: Duration, heard: bool, busy: bool) -> Next {
        let elapsed = elapsed.min(self.tick() * 2);
        self.is_busy = busy;
        if heard {
            (self.quiet, self.waited, self.asked) = (Duration::ZERO, Duration::ZERO, None);
            return Next::Wait;
        }
        self.quiet += elapsed;
        if busy {
            // A request that has just come has not waited since the last look.
            self.waited += elapsed.min(BUSY_TICK);
        }
        match &mut self.asked {
            None if self.quiet >= self.idle.ask || self.waited >= self.busy.ask => {
                self.asked = Some(Duration::ZERO);
                Next::Ask
            }
            None => Next::Wait,
            Some(since) => {
                *since += elapsed;
                let pace = if busy { self.busy } else { self.idle };
                if *since >= pace.patience {
                    Next::GiveUp
                } else {
                    Next::Wait
                }
            }
        }
    }
}

/// A connection that notes when something is received.
#[derive(Debug)]
pub(super) struct Listening<IO> {
    io: IO,
    heard: Arc<AtomicBool>,
}

impl<IO> Listening<IO> {
    /// And where it is noted.
    pub(super) fn new(io: IO) -> (Self, Arc<AtomicBool>) {
        let heard = Arc::<AtomicBool>::default();
        let noted = Arc::clone(&heard);
        (Self { io, heard }, noted)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Listening<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.store(true, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Listening<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(ask: u64, patience: u64) -> Pace {
        Pace {
            ask: Duration::from_secs(ask),
            patience: Duration::from_secs(patience),
        }
    }

    fn silence() -> Silence {
        Silence::new(seconds(10, 5), seconds(1, 2))
    }

    /// After how long of silence the other side is given up, at the latest in a minute.
    fn given_up(silence: &mut Silence, busy: bool) -> Option<Duration> {
        let mut passed = Duration::ZERO;
        while passed < Duration::from_secs(60) {
            let tick = silence.tick();
            passed += tick;
            if silence.look(tick, false, busy) == Next::GiveUp {
                return Some(passed);
            }
        }
        None
    }

    #[test]
    fn a_request_in_flight_makes_haste() {
        let busy = given_up(&mut silence(), true).unwrap();
        assert!(
            busy > Duration::from_secs(3) && busy < Duration::from_secs(4),
            "{busy:?}"
        );
        assert_eq!(
            given_up(&mut silence(), false),
            Some(Duration::from_secs(15))
        );
        // However long it has been silent before, without anybody waiting.
        let mut silence = silence();
        for _ in 0..16 {
            assert_eq!(silence.look(silence.tick(), false, false), Next::Wait);
        }
        assert_eq!(given_up(&mut silence, true), Some(busy));
        // And it is known sooner if the other side owes an answer already.
        let mut silence = self::silence();
        while silence.look(silence.tick(), false, false) != Next::Ask {}
        assert!(given_up(&mut silence, true) < Some(busy));
    }

    #[test]
    fn callers_who_give_up_and_come_again_do_not_hide_that_nothing_is_heard() {
        // A request waits for 1 s in every 2.
        let (mut silence, mut passed) = (silence(), Duration::ZERO);
        let gone = loop {
            let tick = silence.tick();
            passed += tick;
            let waiting = passed.as_millis() % 2000 < 1000;
            match silence.look(tick, false, waiting) {
                Next::GiveUp => break passed,
                _ => assert!(passed < Duration::from_secs(60), "never given up"),
            }
        };
        assert!(gone <= Duration::from_secs(6), "{gone:?}");
    }

    #[test]
    fn being_late_ourselves_is_no_silence_of_the_other_side() {
        let mut silence = silence();
        silence.look(IDLE_TICK, false, true);
        let hour = Duration::from_secs(3600);
        assert_eq!(silence.look(hour, false, true), Next::Wait);
    }

    proptest! {
        #[test]
        fn who_is_not_heard_is_given_up_however_requests_come_and_go(
            looks in prop::collection::vec(any::<bool>(), 80),
        ) {
            let (mut silence, mut passed) = (silence(), Duration::ZERO);
            let mut looks = looks.into_iter();
            loop {
                let tick = silence.tick();
                passed += tick;
                // At the pace of idle connections, and a look late at each of the two steps.
                prop_assert!(passed <= Duration::from_secs(15) + 2 * IDLE_TICK);
                let Some(busy) = looks.next() else { break };
                if silence.look(tick, false, busy) == Next::GiveUp {
                    break;
                }
            }
        }

        #[test]
        fn whoever_answers_within_two_seconds_is_never_given_up(
            looks in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..10_000), 1..200),
        ) {
            let (mut silence, mut quiet) = (silence(), Duration::ZERO);
            for (heard, busy, late) in looks {
                let elapsed = silence.tick() + Duration::from_millis(late);
                let heard = heard || quiet + elapsed > Duration::from_secs(2);
                quiet = if heard { Duration::ZERO } else { quiet + elapsed };
                prop_assert_ne!(silence.look(elapsed, heard, busy), Next::GiveUp);
            }
        }
    }
}
