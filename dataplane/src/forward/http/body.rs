//! What is known when a body ends: an error type that keeps truncation visible, and a body that
//! tells an observer how it ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

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
    /// The body ended: cleanly, or not.
    fn ended(self, end: Result<(), &BodyError>);
}

/// A body that tells an observer how it ends, and breaks off when nothing moves for too long.
#[derive(Debug)]
pub struct Watched<B, O> {
    body: B,
    observer: Option<O>,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin, O: Observer + Unpin> Watched<B, O> {
    /// `body`, which may be silent for `idle` at a time.
    pub fn new(body: B, observer: O, idle: Duration) -> Self {
        let mut watched = Self {
            observer: Some(observer),
            idle,
            timer: Box::pin(sleep_until(Instant::now() + idle)),
            body,
        };
        // A server does not poll a body that has ended before it began.
        if watched.body.is_end_stream() {
            watched.end(Ok(()));
        }
        watched
    }

    fn end(&mut self, end: Result<(), &BodyError>) {
        if let Some(observer) = self.observer.take() {
            observer.ended(end);
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer.as_mut().reset(Instant::now() + self.idle);
            return Poll::Ready(frame);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::Idle(self.idle))))
    }
}

impl<B, O> Body for Watched<B, O>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
    O: Observer + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_body(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(observer)) = (frame.data_ref(), &mut self.observer) {
                    observer.bytes(data.len());
                }
                // The reader may not ask again after the last frame.
                if self.body.is_end_stream() {
                    self.end(Ok(()));
                }
            }
            Some(Err(error)) => self.end(Err(error)),
            None => self.end(Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use futures_util::stream;
    use http_body_util::{BodyExt, Empty, StreamBody};

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Observer for Seen {
        fn bytes(&mut self, count: usize) {
            self.0.lock().unwrap().push(count.to_string());
        }

        fn ended(self, end: Result<(), &BodyError>) {
            let end = end.map_or_else(ToString::to_string, |()| "end".to_owned());
            self.0.lock().unwrap().push(end);
        }
    }

    #[tokio::test]
    async fn an_observer_learns_of_bytes_and_end() {
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"abc"))),
            Err(BodyError::broken("cut")),
        ];
        let seen = Seen::default();
        let body = StreamBody::new(stream::iter(frames));
        let watched = Watched::new(body, seen.clone(), Duration::from_secs(1));
        assert!(watched.collect().await.is_err());
        assert_eq!(*seen.0.lock().unwrap(), ["3", "the body broke off: cut"]);
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let seen = Seen::default();
        let empty = Empty::new().map_err(|error: Infallible| match error {});
        let _unread = Watched::new(empty, seen.clone(), Duration::from_secs(1));
        assert_eq!(*seen.0.lock().unwrap(), ["end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_breaks_a_body_off() {
        let seen = Seen::default();
        let silent = StreamBody::new(stream::pending());
        let watched = Watched::new(silent, seen.clone(), Duration::from_secs(5));
        assert_eq!(
            watched.collect().await.unwrap_err(),
            BodyError::Idle(Duration::from_secs(5))
        );
    }
}
