use std::{collections::VecDeque, sync::Arc};

use futures_util::stream;
use http_body_util::StreamBody;
use tokio::{io::DuplexStream, sync::Notify};

use super::*;

type Respond = h2::server::SendResponse<Bytes>;

/// A body that knows its end, as one received by HTTP/2 does.
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn pieces(lengths: &[usize]) -> Pieces {
    Pieces(
        lengths
            .iter()
            .map(|length| Bytes::from(vec![b'x'; *length]))
            .collect(),
    )
}

async fn client(io: DuplexStream) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A client of a server whose requests are handled by `handler`, one after the other.
async fn against<H, F>(handler: H) -> SendRequest<Bytes>
where
    H: Fn(RecvStream, Respond) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.unwrap();
        while let Some(Ok((request, respond))) = server.accept().await {
            tokio::spawn(handler(request.into_body(), respond));
        }
    });
    client(ours).await
}

async fn length(mut body: RecvStream, mut respond: Respond) {
    let mut length = 0;
    while let Some(Ok(data)) = body.data().await {
        length += data.len();
        let _ = body.flow_control().release_capacity(data.len());
    }
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(length.to_string().into(), true).unwrap();
}

fn request<B>(body: B) -> Request<B> {
    Request::put("http://x/").body(body).unwrap()
}

#[tokio::test]
async fn every_shape_of_body_ends() {
    let client = against(length).await;
    for lengths in [
        &[][..],
        &[0],
        &[5],
        &[5, 0],
        &[0, 0, 7],
        &[100_000, 1, 0],
        &[70_000, 70_000],
    ] {
        let answer = send(client.clone(), request(pieces(lengths)))
            .await
            .unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let sum = lengths.iter().sum::<usize>().to_string();
        assert_eq!(text, sum.as_bytes(), "{lengths:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_resets_its_stream() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let client = against(move |mut body, respond| {
        let tell = tell.clone();
        async move {
            let mut last = None;
            while let Some(data) = body.data().await {
                let broken = data.is_err();
                last = Some(data.map(drop));
                if broken {
                    break;
                }
            }
            tell.send(last).await.unwrap();
            drop(respond);
        }
    })
    .await;
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"half"))),
        Err(BodyError::broken("cancelled")),
    ];
    let body = StreamBody::new(stream::iter(frames));
    assert!(matches!(
        send(client, request(body)).await,
        Err(SendError::Reset(_))
    ));
    assert!(matches!(told.recv().await.unwrap(), Some(Err(_))));
}

#[tokio::test]
async fn failures_prove_what_they_prove() {
    for (reason, unprocessed) in [
        (Reason::REFUSED_STREAM, true),
        (Reason::INTERNAL_ERROR, false),
        (Reason::CANCEL, false),
    ] {
        let client = against(move |_, mut respond| async move { respond.send_reset(reason) }).await;
        let error = send(client, request(pieces(&[]))).await.unwrap_err();
        assert_eq!(error.is_unprocessed(), unprocessed, "{error:?}");
    }
    // The connection is gone with the request.
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let client = client(ours).await;
    tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.unwrap();
        let _request = server.accept().await;
    });
    let error = send(client.clone(), request(pieces(&[])))
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Lost(_)), "{error:?}");
    let error = send(client, request(pieces(&[]))).await.unwrap_err();
    assert!(matches!(error, SendError::Unsent(_)), "{error:?}");
}

#[tokio::test]
async fn an_answer_ends_cleanly_only_if_the_server_ended_it() {
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::NO_ERROR] {
        let arrived = Arc::new(Notify::new());
        let arrival = Arc::clone(&arrived);
        let client = against(move |_, mut respond| {
            let arrival = Arc::clone(&arrival);
            async move {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream
                    .send_data(Bytes::from_static(b"text"), false)
                    .unwrap();
                arrival.notified().await;
                stream.send_reset(reason);
            }
        })
        .await;
        let answer = send(client, request(pieces(&[]))).await.unwrap();
        let mut body = answer.into_body();
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "text"
        );
        arrived.notify_one();
        let end = body.frame().await;
        assert!(matches!(end, Some(Err(_))), "{reason:?}: {end:?}");
    }
}

#[tokio::test]
async fn a_server_may_need_no_more_of_a_request() {
    let client = against(|_unread, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        // What it drops unread makes it reset the stream with `NO_ERROR` after its answer.
        stream
            .send_data(Bytes::from_static(b"enough"), true)
            .unwrap();
    })
    .await;
    // Far more than the server's window.
    let answer = send(client, request(pieces(&[1_000_000]))).await.unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "enough"
    );
}
