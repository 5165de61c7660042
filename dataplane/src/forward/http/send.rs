//! One try: a request over one HTTP/2 connection.
//!
//! Spoken by the `h2` crate itself, because what a failure proves (was the request ever looked at?)
//! and how a body ends must be known exactly; see [`SendError`] and [`ReceivedBody`].

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use super::BodyError;

/// Why no answer began.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing of the request was written.
    #[error("the connection was closed before the request was sent")]
    Unsent(#[source] h2::Error),
    /// The other side says that it did not look at the request (`REFUSED_STREAM`).
    #[error("the endpoint refused the request unseen")]
    Refused(#[source] h2::Error),
    /// The connection is closing, and the request came too late for it (GOAWAY).
    #[error("the endpoint closes the connection and did not look at the request")]
    Closing(#[source] h2::Error),
    /// The request's stream was reset: by the other side, or by us because its body broke off.
    #[error("the request was reset")]
    Reset(#[source] h2::Error),
    /// The connection was lost.
    #[error("the connection was lost before the answer")]
    Lost(#[source] h2::Error),
}

impl SendError {
    /// Whether the request was provably not processed, so that it may be repeated whatever it is.
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::Unsent(_) | Self::Refused(_) | Self::Closing(_))
    }

    fn of_answer(error: h2::Error) -> Self {
        // RFC 9113 §8.7. A GOAWAY reaches a stream as an error only if the stream is above the
        // last one that the other side takes; when streams below it are lost, that is an I/O error.
        if error.is_remote() && error.is_go_away() {
            Self::Closing(error)
        } else if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
            Self::Refused(error)
        } else if error.is_reset() {
            Self::Reset(error)
        } else {
            Self::Lost(error)
        }
    }
}

/// Sends a request and waits for the head of its answer. Dropping this future, or later the
/// answer's body, cancels the request: its stream is reset.
///
/// # Errors
/// See [`SendError`].
pub async fn send<B>(
    connection: SendRequest<Bytes>,
    request: Request<B>,
) -> Result<Response<ReceivedBody>, SendError>
where
    B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    let mut connection = connection.ready().await.map_err(SendError::Unsent)?;
    let (head, body) = request.into_parts();
    let ended = body.is_end_stream();
    let head = Request::from_parts(head, ());
    let (answer, stream) = connection
        .send_request(head, ended)
        .map_err(SendError::Unsent)?;
    let upload = if ended {
        Upload(None)
    } else {
        Upload::start(body, stream)
    };
    let answer = answer.await.map_err(SendError::of_answer)?;
    Ok(answer.map(|stream| ReceivedBody {
        stream,
        data_ended: false,
        _upload: upload,
    }))
}

/// The task that sends a request's body; ends with the request.
#[derive(Debug)]
struct Upload(Option<JoinHandle<()>>);

impl Upload {
    fn start<B>(body: B, stream: SendStream<Bytes>) -> Self
    where
        B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
    {
        let mut sending = Box::pin(upload(body, stream));
        // Most bodies are complete by now and need no task.
        match sending.as_mut().now_or_never() {
            Some(()) => Self(None),
            // Owned by the answer, and aborted with it.
            None => Self(Some(tokio::spawn(sending))),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Sends a body as fast as the other side takes it. One that breaks off resets the stream.
async fn upload<B>(mut body: B, mut stream: SendStream<Bytes>)
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The other side wants no more; the answer's future tells why.
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
        };
        let more = match frame {
            Some(Ok(frame)) => send_frame(&mut stream, frame, body.is_end_stream()).await,
            // These fail only when the stream is over, which the answer's future tells.
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            None => return drop(stream.send_data(Bytes::new(), true)),
        };
        if !more {
            return;
        }
    }
}

/// Sends data or trailers; false if nothing is to follow.
async fn send_frame(stream: &mut SendStream<Bytes>, frame: Frame<Bytes>, last: bool) -> bool {
    let frame = match frame.into_data() {
        Ok(data) => return send_data(stream, data, last).await,
        Err(frame) => frame,
    };
    match frame.into_trailers() {
        Ok(trailers) => {
            let _ = stream.send_trailers(trailers);
            false
        }
        Err(_unknown) => true,
    }
}

/// Sends one piece within the other side's window; false if nothing is to follow.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes, last: bool) -> bool {
    if data.is_empty() && last {
        // Clients that do not know the length beforehand (gRPC ones) end with an empty frame.
        let _ = stream.send_data(data, true);
        return false;
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return false;
        };
        let piece = data.split_to(room.min(data.len()));
        if stream.send_data(piece, last && data.is_empty()).is_err() {
            return false;
        }
    }
    !last
}

/// The body of an answer. Ends cleanly only if the other side ended it.
///
/// RFC 9113 §8.1: a server that has sent its whole answer may reset with `NO_ERROR` to say that it
/// needs no more of the request. `h2` keeps that end apart from the reset, so every reset that
/// comes up here, `NO_ERROR` too, cut the answer.
#[derive(Debug)]
pub struct ReceivedBody {
    stream: RecvStream,
    data_ended: bool,
    _upload: Upload,
}

impl ReceivedBody {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let data = match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::broken(error)))),
            None => return Poll::Ready(None),
        };
        // The reader asks for more only when it has room, so its pace is the sender's pace. An
        // error means that the stream is gone, which the next poll tells.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(data)))
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.data_ended {
            if let Some(data) = ready!(this.poll_data(cx)) {
                return Poll::Ready(Some(data.map(Frame::data)));
            }
            this.data_ended = true;
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => None,
            Err(error) => Some(Err(BodyError::broken(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::default()
        }
    }
}

#[cfg(test)]
mod tests;
