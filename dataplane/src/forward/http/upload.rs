//! A request body as the server reads it, never mistaken for complete when it was cut.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{BodyError, Moved};

/// The body of a request that a server took in.
#[derive(Debug)]
pub struct Upload<B = Incoming> {
    body: B,
    /// HTTP/2 gives no error when the client cancels its stream; the stream's state still tells
    /// that from an end. HTTP/1.1 does give one, and knows no such state.
    framed: bool,
    moved: Moved,
}

impl<B: Body<Data = Bytes>> Upload<B> {
    /// Takes over a request; what is read of its body is noted as a movement of its exchange.
    pub fn from_request(request: Request<B>, moved: Moved) -> Request<Self> {
        let framed = request.version() == Version::HTTP_2;
        request.map(|body| Self {
            body,
            framed,
            moved,
        })
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Upload<B>
where
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.moved.note();
        Poll::Ready(match frame {
            Some(frame) => Some(frame.map_err(BodyError::broken)),
            None if this.framed && !this.body.is_end_stream() => {
                Some(Err(BodyError::broken("the client cancelled the request")))
            }
            None => None,
        })
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
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    async fn read(version: Version) -> Result<Bytes, BodyError> {
        // Ends without ever saying that its stream has ended, as a cancelled one does.
        let half = Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"half")));
        let mut request = Request::new(StreamBody::new(stream::iter([half])));
        *request.version_mut() = version;
        let body = Upload::from_request(request, Moved::default()).into_body();
        body.collect().await.map(|collected| collected.to_bytes())
    }

    #[tokio::test]
    async fn a_cancelled_stream_is_no_end() {
        assert!(read(Version::HTTP_2).await.is_err());
        assert_eq!(read(Version::HTTP_11).await.unwrap(), "half");
    }
}
