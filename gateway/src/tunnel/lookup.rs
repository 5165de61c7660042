//! Resolves the names of a link beside its dialler, which goes on with what it has meanwhile: a
//! slow name server must not delay a redial.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_dataplane::discover::LinkInfo;
use tokio::task::JoinSet;

use super::addresses::{Resolved, Resolver};

/// What came of a look-up.
#[derive(Debug)]
pub(super) struct Answer {
    /// What they led to.
    pub(super) found: Resolved,
    /// Whether the link declares other addresses than at the answer before.
    pub(super) is_new: bool,
}

/// The look-ups of one link, one at a time.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    resolver: Resolver,
    /// Answered last, and when.
    answered: Option<(Arc<LinkInfo>, Instant)>,
    asked: Option<Arc<LinkInfo>>,
    running: JoinSet<(Resolver, Resolved)>,
}

impl Lookup {
    /// Begins a look-up where what `link` declares is new or the last answer is older than
    /// `every`. One for addresses that are declared no more is given up.
    pub(super) fn look(&mut self, link: &Arc<LinkInfo>, now: Instant, every: Duration) {
        if let Some(asked) = &self.asked {
            if same(asked, link) {
                return;
            }
            self.running = JoinSet::new();
        } else if self.answered.as_ref().is_some_and(|(answered, at)| {
            same(answered, link) && now.saturating_duration_since(*at) < every
        }) {
            return;
        }
        self.asked = Some(link.clone());
        let (link, mut resolver) = (link.clone(), self.resolver.clone());
        self.running.spawn(async move {
            let found = resolver.resolve(&link.addresses, link.allow_loopback).await;
            (resolver, found)
        });
    }

    /// The answer to the look-up under way; never where there is none. Cancel-safe.
    pub(super) async fn answer(&mut self) -> Answer {
        loop {
            match self.running.join_next().await {
                Some(Ok((resolver, found))) => {
                    if let Some(answer) = self.take(resolver, found) {
                        return answer;
                    }
                }
                // Cut short: the next look begins another.
                Some(Err(_)) => self.asked = None,
                None => std::future::pending().await,
            }
        }
    }

    fn take(&mut self, resolver: Resolver, found: Resolved) -> Option<Answer> {
        self.resolver = resolver;
        let link = self.asked.take()?;
        let now = tokio::time::Instant::now().into_std();
        let before = self.answered.take();
        let is_new = !before.is_some_and(|(before, _)| same(&before, &link));
        self.answered = Some((link, now));
        Some(Answer { found, is_new })
    }
}

fn same(left: &LinkInfo, right: &LinkInfo) -> bool {
    left.addresses == right.addresses && left.allow_loopback == right.allow_loopback
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use linkspan_dataplane::discover::TunnelAddress;
    use linkspan_trust::SpiffeId;
    use linkspan_trust::testing::trust_domain;

    use super::*;

    const EVERY: Duration = Duration::from_secs(30);

    fn link(host: &str) -> Arc<LinkInfo> {
        let domain = trust_domain("west.test");
        Arc::new(LinkInfo {
            cluster: "west".parse().unwrap(),
            gateway: SpiffeId::gateway(&domain),
            federation: SpiffeId::federation(&domain),
            trust_domain: domain,
            addresses: vec![TunnelAddress {
                host: host.to_owned(),
                port: 15443,
            }],
            allow_loopback: false,
        })
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_again_when_it_is_time_or_the_link_changed() {
        let mut lookup = Lookup::default();
        let west = link("192.0.2.7");
        lookup.look(&west, now(), EVERY);
        let answer = lookup.answer().await;
        assert!(answer.is_new);
        assert_eq!(answer.found.addresses, ["192.0.2.7:15443".parse().unwrap()]);
        lookup.look(&west, now(), EVERY);
        assert!(lookup.running.is_empty(), "it is not time yet");
        tokio::time::advance(EVERY).await;
        lookup.look(&west, now(), EVERY);
        assert!(!lookup.answer().await.is_new);
        lookup.look(&link("192.0.2.8"), now(), EVERY);
        assert!(lookup.answer().await.is_new);
    }

    /// Nothing here waits: the dialler's loop goes on while names are looked up.
    #[tokio::test(start_paused = true)]
    async fn a_look_up_for_addresses_declared_no_more_is_given_up() {
        let mut lookup = Lookup::default();
        lookup.look(&link("192.0.2.7"), now(), EVERY);
        assert!(
            lookup.answer().now_or_never().is_none(),
            "it has only begun"
        );
        lookup.look(&link("192.0.2.8"), now(), EVERY);
        let answer = lookup.answer().await;
        assert_eq!(answer.found.addresses, ["192.0.2.8:15443".parse().unwrap()]);
        assert!(
            lookup.answer().now_or_never().is_none(),
            "one answer for one look-up"
        );
    }
}
