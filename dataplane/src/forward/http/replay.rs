//! A request body that can be sent again: what has passed is kept, as references to the same
//! bytes, up to a bound.
//!
//! The body is read once from the client, by whichever try is the newest. An older try that still
//! holds its body gets an error from it, which resets its stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::BodyError;

/// How many bytes of a body are kept; once more have passed, it cannot be sent again.
pub const REPLAY_LIMIT: usize = 64 * 1024;

/// Hands out the body of one request to its tries, one after the other.
#[derive(Debug)]
pub struct Replay<B> {
    shared: Arc<Mutex<State<B>>>,
}

#[derive(Debug)]
struct State<B> {
    source: B,
    /// The newest try.
    turn: u64,
    /// Frames that have passed; given up when they exceed the bound, or when an answer has begun.
    kept: Option<VecDeque<Bytes>>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    failed: Option<BodyError>,
}

/// The body of one try.
#[derive(Debug)]
pub struct ReplayBody<B> {
    shared: Arc<Mutex<State<B>>>,
    turn: u64,
    /// How many of the kept frames this try has sent.
    position: usize,
    trailers_sent: bool,
}

impl<B> Replay<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// A body that has not been read yet.
    pub fn new(source: B) -> Self {
        let state = State {
            ended: source.is_end_stream(),
            source,
            turn: 0,
            kept: Some(VecDeque::new()),
            kept_bytes: 0,
            trailers: None,
            failed: None,
        };
        Self {
            shared: Arc::new(Mutex::new(state)),
        }
    }

    /// The body for one more try, from its beginning; what earlier tries hold ends in an error.
    /// `None` if its beginning is no longer kept, or the client has broken it off.
    #[must_use]
    pub fn body(&self) -> Option<ReplayBody<B>> {
        let mut state = lock(&self.shared);
        if state.kept.is_none() || state.failed.is_some() {
            return None;
        }
        state.turn += 1;
        let turn = state.turn;
        drop(state);
        Some(ReplayBody {
            shared: Arc::clone(&self.shared),
            turn,
            position: 0,
            trailers_sent: false,
        })
    }

    /// Whether [`body`](Self::body) would give one.
    #[must_use]
    pub fn can_repeat(&self) -> bool {
        let state = lock(&self.shared);
        state.kept.is_some() && state.failed.is_none()
    }

    /// Whether the client has broken the body off.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        lock(&self.shared).failed.is_some()
    }

    /// Lets go of what is kept, once no further try can follow.
    pub fn commit(&self) {
        let mut state = lock(&self.shared);
        // What the newest try has not sent yet must still reach it: forget only when it is past.
        state.kept_bytes = usize::MAX;
    }
}

fn lock<B>(shared: &Mutex<State<B>>) -> MutexGuard<'_, State<B>> {
    // A panic in the source's poll leaves at worst a frame lost, and the try ends with it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> State<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// The next frame for a try that has sent `position` of the kept ones.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        position: &mut usize,
        trailers_sent: &mut bool,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.kept.as_ref().and_then(|kept| kept.get(*position)) {
            *position += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if self.kept_bytes > REPLAY_LIMIT {
            self.kept = None;
        }
        if !self.ended {
            match ready!(self.poll_source(cx)) {
                Some(Ok(data)) => {
                    *position += 1;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
        }
        if let Some(trailers) = self.trailers.as_ref().filter(|_| !*trailers_sent) {
            *trailers_sent = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        Poll::Ready(None)
    }

    /// Data from the client; `None` when there is no more, with trailers then kept.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let frame = match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return self.fail(BodyError::broken(error)),
            None => {
                self.ended = true;
                return Poll::Ready(None);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                self.keep(&data);
                self.ended = self.source.is_end_stream();
                Poll::Ready(Some(Ok(data)))
            }
            Err(frame) => {
                self.trailers = frame.into_trailers().ok();
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.failed = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }

    fn keep(&mut self, data: &Bytes) {
        self.kept_bytes = self.kept_bytes.saturating_add(data.len());
        if self.kept_bytes > REPLAY_LIMIT {
            self.kept = None;
        }
        if let Some(kept) = &mut self.kept {
            kept.push_back(data.clone());
        }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut state = lock(&this.shared);
        if state.turn != this.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        state.poll(cx, &mut this.position, &mut this.trailers_sent)
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.shared);
        let behind = state
            .kept
            .as_ref()
            .is_some_and(|kept| self.position < kept.len());
        let owes_trailers = state.trailers.is_some() && !self.trailers_sent;
        state.turn == self.turn && state.ended && !behind && !owes_trailers
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.shared);
        match (state.source.size_hint().exact(), &state.kept) {
            (Some(rest), Some(kept)) => {
                let behind = kept
                    .iter()
                    .skip(self.position)
                    .map(Bytes::len)
                    .sum::<usize>();
                SizeHint::with_exact(rest + behind as u64)
            }
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, Full, StreamBody};
    use proptest::prelude::*;

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, BodyError>>;

    struct Source(std::vec::IntoIter<Result<Frame<Bytes>, BodyError>>);

    impl Body for Source {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.next())
        }

        fn is_end_stream(&self) -> bool {
            self.0.as_slice().is_empty()
        }
    }

    fn replay(frames: Frames) -> Replay<Source> {
        Replay::new(Source(frames.into_iter()))
    }

    fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::data(bytes.into()))
    }

    #[tokio::test]
    async fn a_try_takes_over_in_the_middle() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = vec![
            data("one"),
            data("two"),
            Ok(Frame::trailers(trailers.clone())),
        ];
        let replay = replay(frames);
        let mut first = replay.body().unwrap();
        assert_eq!(
            first.frame().await.unwrap().unwrap().into_data().unwrap(),
            "one"
        );
        let second = replay.body().unwrap();
        assert_eq!(
            first.frame().await.unwrap().unwrap_err(),
            BodyError::Superseded
        );
        let collected = second.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "onetwo");
        let third = replay.body().unwrap().collect().await.unwrap();
        assert_eq!(third.to_bytes(), "onetwo");
    }

    #[tokio::test]
    async fn a_long_body_passes_once() {
        let frames = vec![data(vec![1; REPLAY_LIMIT]), data("x")];
        let replay = replay(frames);
        let mut first = replay.body().unwrap();
        first.frame().await.unwrap().unwrap();
        assert!(replay.can_repeat());
        first.frame().await.unwrap().unwrap();
        assert!(!replay.can_repeat() && replay.body().is_none());
        assert!(first.frame().await.is_none());
    }

    #[tokio::test]
    async fn nothing_is_kept_once_committed() {
        let replay = replay(vec![data("one"), data("two")]);
        let mut body = replay.body().unwrap();
        body.frame().await.unwrap().unwrap();
        replay.commit();
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "two"
        );
        assert!(!replay.can_repeat());
    }

    #[tokio::test]
    async fn a_broken_upload_cannot_be_repeated() {
        let replay = replay(vec![data("half"), Err(BodyError::broken("cancelled"))]);
        let body = replay.body().unwrap();
        assert!(matches!(body.collect().await, Err(BodyError::Broken(_))));
        assert!(!replay.can_repeat());
    }

    #[tokio::test]
    async fn the_length_stays_known() {
        let replay = Replay::new(Full::new(Bytes::from_static(b"abc")));
        let mut first = replay.body().unwrap();
        assert_eq!(first.size_hint().exact(), Some(3));
        first.frame().await.unwrap().unwrap();
        assert_eq!(first.size_hint().exact(), Some(0));
        assert_eq!(replay.body().unwrap().size_hint().exact(), Some(3));
        let streamed = StreamBody::new(stream::iter([Ok::<_, BodyError>(Frame::data(
            Bytes::new(),
        ))]));
        assert_eq!(
            Replay::new(streamed).body().unwrap().size_hint().exact(),
            None
        );
    }

    proptest! {
        #[test]
        fn each_try_sends_the_same_bytes(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8),
            stops in proptest::collection::vec(0usize..10, 0..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let expected: Vec<u8> = chunks.concat();
            let replay = replay(chunks.into_iter().map(data).collect());
            let sent = runtime.block_on(async {
                for stop in stops {
                    let mut body = replay.body().unwrap();
                    for _ in 0..stop {
                        let _ = body.frame().await;
                    }
                }
                replay.body().unwrap().collect().await.unwrap().to_bytes()
            });
            prop_assert_eq!(sent, expected);
        }
    }
}
