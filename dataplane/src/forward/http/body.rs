//! What is known when a body ends: an error type that keeps truncation visible, and a body that
//! tells an observer how it ended.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::Moved;

/// Why a body broke off.
///
/// It has no source on purpose: a server that finds an HTTP/2 error of kind `CANCEL` or `NO_ERROR`
/// among the sources resets its own stream with that code, which clients may read as a clean end.
/// Without one the code is `INTERNAL_ERROR`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The connection or stream ended before the body did.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// The body was taken over by a later try.
    #[error("the request was sent again elsewhere")]
    Superseded,
    /// Nothing moved for too long.
    #[error("nothing moved for {0:?}")]
    Idle(Duration),
}

impl BodyError {
    /// A body that broke off because of `error`.
    pub fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Learns about a body as it passes. Dropping it before [`ended`](Self::ended) means that the reader
/// went away.
pub trait Observer {
    /// That many bytes passed.
    fn bytes(&mut self, count: usize);
    /// These trailers passed.
    fn trailers(&mut self, _: &HeaderMap) {}
    /// The body ended: cleanly, or not.
    fn ended(self, end: Result<(), &BodyError>);
}

/// A body that tells an observer how it ends, and breaks off when nothing of its exchange moves for
/// too long, even while nobody reads it.
#[derive(Debug)]
pub struct Watched<B: Send + 'static, O: Observer + Send + 'static> {
    passing: Arc<Mutex<Passing<B, O>>>,
    moved: Moved,
    idle: Duration,
    watch: Option<AbortHandle>,
}

#[derive(Debug)]
struct Passing<B, O> {
    /// None once it has been cut.
    body: Option<B>,
    observer: Option<O>,
    reader: Option<Waker>,
}

impl<B, O> Watched<B, O>
where
    B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
    O: Observer + Send + Unpin + 'static,
{
    /// `body`, whose exchange may stand still for `idle` at a time.
    pub fn new(body: B, observer: O, moved: Moved, idle: Duration) -> Self {
        moved.note();
        let ended = body.is_end_stream();
        let passing = Arc::new(Mutex::new(Passing {
            body: Some(body),
            observer: Some(observer),
            reader: None,
        }));
        // A server does not poll a body that has ended before it began.
        let watch = if ended {
            let observer = lock(&passing).observer.take();
            end(observer, Ok(()));
            None
        } else {
            // A task, because a server whose client takes nothing does not poll the body either.
            // It ends with this body.
            let watching = watch(Arc::downgrade(&passing), moved.clone(), idle);
            Some(tokio::spawn(watching).abort_handle())
        };
        Self {
            passing,
            moved,
            idle,
            watch,
        }
    }
}

impl<B: Send + 'static, O: Observer + Send + 'static> Drop for Watched<B, O> {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// Cuts an exchange that stands still: lets go of what the body holds, and tells reader and observer.
///
/// A server whose HTTP/2 client takes nothing sees the cut only when the client takes something
/// again, or goes. Until then it keeps the stream with what it has buffered for it
/// ([`ServeLimits::stream_window`](super::serve::ServeLimits)). Ending the server's task would reset
/// the stream with `CANCEL`, which clients may read as a clean end.
async fn watch<B, O: Observer>(passing: Weak<Mutex<Passing<B, O>>>, moved: Moved, idle: Duration) {
    let cut = loop {
        moved.idle(idle).await;
        let Some(passing) = passing.upgrade() else {
            return;
        };
        if let Some(cut) = lock(&passing).cut(&moved, idle) {
            break cut;
        }
    };
    drop(cut.body);
    end(cut.observer, Err(&BodyError::Idle(idle)));
    if let Some(reader) = cut.reader {
        reader.wake();
    }
}

impl<B, O> Passing<B, O> {
    /// All that it holds, unless something has moved after all.
    fn cut(&mut self, moved: &Moved, idle: Duration) -> Option<Self> {
        moved.is_still(idle).then(|| Self {
            body: self.body.take(),
            observer: self.observer.take(),
            reader: self.reader.take(),
        })
    }
}

fn end<O: Observer>(observer: Option<O>, end: Result<(), &BodyError>) {
    if let Some(observer) = observer {
        observer.ended(end);
    }
}

fn show(frame: &Frame<Bytes>, observer: &mut impl Observer) {
    if let Some(data) = frame.data_ref() {
        observer.bytes(data.len());
    } else if let Some(trailers) = frame.trailers_ref() {
        observer.trailers(trailers);
    }
}

fn lock<B, O>(passing: &Mutex<Passing<B, O>>) -> MutexGuard<'_, Passing<B, O>> {
    // Each change leaves it whole.
    passing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B, O> Body for Watched<B, O>
where
    B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
    O: Observer + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut passing = lock(&self.passing);
        let passing = &mut *passing;
        let Some(body) = &mut passing.body else {
            return Poll::Ready(Some(Err(BodyError::Idle(self.idle))));
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            match &mut passing.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                reader => *reader = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        self.moved.note();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(observer) = &mut passing.observer {
                    show(frame, observer);
                }
                // The reader may not ask again after the last frame.
                if body.is_end_stream() {
                    end(passing.observer.take(), Ok(()));
                }
            }
            Some(Err(error)) => end(passing.observer.take(), Err(error)),
            None => end(passing.observer.take(), Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let passing = lock(&self.passing);
        passing.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let passing = lock(&self.passing);
        passing
            .body
            .as_ref()
            .map(Body::size_hint)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::{BodyExt, Empty, StreamBody};

    use super::*;
    use crate::forward::http::Upload;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Observer for Seen {
        fn bytes(&mut self, count: usize) {
            self.0.lock().unwrap().push(count.to_string());
        }

        fn trailers(&mut self, trailers: &HeaderMap) {
            self.0.lock().unwrap().push(format!("{trailers:?}"));
        }

        fn ended(self, end: Result<(), &BodyError>) {
            let end = end.map_or_else(ToString::to_string, |()| "end".to_owned());
            self.0.lock().unwrap().push(end);
        }
    }

    fn watched<B>(body: B, seen: &Seen, idle: u64) -> Watched<B, Seen>
    where
        B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
    {
        let idle = Duration::from_secs(idle);
        Watched::new(body, seen.clone(), Moved::default(), idle)
    }

    #[tokio::test]
    async fn an_observer_learns_of_bytes_and_end() {
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"abc"))),
            Err(BodyError::broken("cut")),
        ];
        let seen = Seen::default();
        let body = StreamBody::new(stream::iter(frames));
        let watched = watched(body, &seen, 1);
        assert!(watched.collect().await.is_err());
        assert_eq!(*seen.0.lock().unwrap(), ["3", "the body broke off: cut"]);
    }

    #[tokio::test]
    async fn an_observer_learns_of_trailers_before_the_end() {
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", "3".parse().unwrap());
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"abc"))),
            Ok(Frame::trailers(trailers)),
        ];
        let seen = Seen::default();
        let watched = watched(StreamBody::new(stream::iter(frames)), &seen, 1);
        watched.collect().await.unwrap();
        assert_eq!(*seen.0.lock().unwrap(), ["3", r#"{"sum": "3"}"#, "end"]);
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let seen = Seen::default();
        let empty = Empty::new().map_err(|error: Infallible| match error {});
        let _unread = watched(empty, &seen, 1);
        assert_eq!(*seen.0.lock().unwrap(), ["end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_breaks_a_body_off() {
        let seen = Seen::default();
        let silent = StreamBody::new(stream::pending());
        let watched = watched(silent, &seen, 5);
        assert_eq!(
            watched.collect().await.unwrap_err(),
            BodyError::Idle(Duration::from_secs(5))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_reads_is_let_go() {
        let (seen, held) = (Seen::default(), Arc::new(()));
        let holding = Arc::clone(&held);
        let frames = stream::repeat_with(move || {
            let _ = &holding;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        let mut unread = watched(StreamBody::new(frames), &seen, 5);
        unread.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(*seen.0.lock().unwrap(), ["1", "nothing moved for 5s"]);
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(unread.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_at_the_last_moment_is_not_cut() {
        let (moved, limit) = (Moved::default(), Duration::from_secs(5));
        let mut passing = Passing {
            body: Some(()),
            observer: Some(()),
            reader: None,
        };
        moved.idle(limit).await;
        moved.note();
        assert!(passing.cut(&moved, limit).is_none() && passing.body.is_some());
        moved.idle(limit).await;
        assert!(passing.cut(&moved, limit).is_some() && passing.body.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_moves_keeps_a_silent_answer_alive() {
        let (seen, moved) = (Seen::default(), Moved::default());
        let silent = StreamBody::new(stream::pending());
        let limit = Duration::from_secs(5);
        let answer = Watched::new(silent, seen.clone(), moved.clone(), limit);
        let pieces = Box::pin(stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            let piece = Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"x")));
            (sent < 20).then_some((piece, sent + 1))
        }));
        let request = http::Request::new(StreamBody::new(pieces));
        let upload = Upload::from_request(request, moved).into_body();
        let began = tokio::time::Instant::now();
        let (uploaded, answered) = tokio::join!(upload.collect(), answer.collect());
        assert_eq!(uploaded.unwrap().to_bytes().len(), 20);
        assert_eq!(answered.unwrap_err(), BodyError::Idle(limit));
        // The last piece moved after 80 s, and the end after 84 s.
        assert_eq!(began.elapsed().as_secs(), 89);
    }
}
