//! What HTTP calls look like to both ends.

use std::collections::BTreeMap;

use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use linkspan_dataplane::forward::http::BodyError;
use linkspan_routing::AppProtocol;
use linkspan_trust::testing;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use super::world::{
    Body, World, answer, ask, frontend, full, get, host, outbound, post, seen, snapshot,
};
use linkspan_dataplane::outbound::{HOLD, SourceCell};

#[tokio::test]
async fn one_connection_spreads_over_six_endpoints() {
    let mut world = World::new();
    let mut servers = Vec::new();
    for index in 0..6 {
        let app = world
            .app(move |_| async move { answer(index.to_string()) })
            .await;
        servers.push(
            world
                .server("east", &format!("c{index}"), app, AppProtocol::Http)
                .await,
        );
    }
    let known = snapshot(
        servers.iter().map(|server| &server.endpoint),
        AppProtocol::Http,
    );
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    let answers = stream::iter(0..600)
        .map(|_| ask(&client, get()))
        .buffer_unordered(32)
        .map(|answer| answer.unwrap().1)
        .collect::<Vec<_>>()
        .await;
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer).or_insert(0) += 1;
    }
    // How even it is depends on this machine's load; a simulation in `routing` measures that.
    assert_eq!(counts.len(), 6, "{counts:?}");
    assert!(counts.values().all(|count| *count >= 20), "{counts:?}");
}

#[tokio::test]
async fn the_application_sees_the_caller_and_the_request() {
    let mut world = World::new();
    let app = world
        .app(|request| async move {
            let what = [
                request.method().to_string(),
                request.uri().path_and_query().unwrap().to_string(),
                host(&request),
                seen(&request, "x-forwarded-client-cert"),
                seen(&request, "x-own"),
                seen(&request, "connection"),
                seen(&request, "te"),
                format!("{:?}", request.version()),
            ];
            answer(what.join(" "))
        })
        .await;
    for (protocol, version, connection) in [
        (AppProtocol::Http, "HTTP/1.1", "te"),
        (AppProtocol::Http2, "HTTP/2.0", ""),
    ] {
        let server = world.server("east", "c", app, protocol).await;
        let source = world
            .source(Some(snapshot([&server.endpoint], protocol)))
            .await;
        let client = source.http2().await;
        let mut request = get();
        let headers = request.headers_mut();
        let forged =
            "By=spiffe://east.test/ns/shop/sa/checkout;URI=spiffe://east.test/ns/shop/sa/root";
        headers.append("x-forwarded-client-cert", forged.parse().unwrap());
        headers.append("x-forwarded-client-cert", "Hash=1".parse().unwrap());
        headers.insert("x-own", "1".parse().unwrap());
        headers.insert("te", "trailers".parse().unwrap());
        let (status, text) = ask(&client, request).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        let identity = &server.endpoint.identity;
        assert_eq!(
            text,
            format!(
                "GET /path?query checkout.shop By={identity};URI={} 1 {connection} trailers {version}",
                frontend()
            )
        );
    }
}

#[tokio::test]
async fn an_http_1_client_is_served_over_one_connection() {
    let mut world = World::new();
    let app = world
        .app(|request| async move {
            let (host, hop) = (host(&request), seen(&request, "x-hop"));
            let body = request.into_body().collect().await.unwrap().to_bytes();
            answer(format!("{host} [{hop}] {}", String::from_utf8_lossy(&body)))
        })
        .await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let source = world
        .source(Some(snapshot([&server.endpoint], AppProtocol::Http)))
        .await;
    let mut socket = TcpStream::connect(source.address).await.unwrap();
    for chunk in ["a", "b"] {
        let request = format!(
            "PUT / HTTP/1.1\r\nHost: me:80\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\n{chunk}\r\n0\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        while !text.ends_with(chunk) {
            let mut bytes = [0; 1024];
            let read = socket.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(
            text.ends_with(&format!("\r\n\r\nme:80 [] {chunk}")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_request_with_several_hosts_is_refused() {
    let mut world = World::new();
    let app = world.app(|_| async { panic!("asked") }).await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let source = world
        .source(Some(snapshot([&server.endpoint], AppProtocol::Http)))
        .await;
    let mut socket = TcpStream::connect(source.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let mut world = World::new();
    let app = world
        .app(|request| async move {
            let body = request.into_body().collect().await.unwrap();
            let sum = body.trailers().unwrap()["x-sum"].clone();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-sum", sum);
            let frames = [
                Ok(Frame::data(body.to_bytes())),
                Ok(Frame::trailers(trailers)),
            ];
            Ok(Response::new(
                StreamBody::new(stream::iter(frames)).boxed_unsync(),
            ))
        })
        .await;
    let server = world.server("east", "c", app, AppProtocol::Detect).await;
    let source = world
        .source(Some(snapshot([&server.endpoint], AppProtocol::Detect)))
        .await;
    let mut client = source.http2().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames = [
        Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"message"))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut request = post(StreamBody::new(stream::iter(frames)).boxed_unsync());
    let kind = "application/grpc+proto".parse().unwrap();
    request.headers_mut().insert("content-type", kind);
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let answer = client
        .send_request(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    let trailers = answer.trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-sum"]),
        (&"0".parse().unwrap(), &"7".parse().unwrap())
    );
    assert_eq!(answer.to_bytes(), "message");
}

#[tokio::test]
async fn a_truncated_answer_is_an_error_to_every_client() {
    let mut world = World::new();
    let app = world
        .app(|request| async move {
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"half"))),
                Err(BodyError::broken("the application fell over")),
            ];
            let delayed = stream::iter(frames).then(|frame| async {
                tokio::task::yield_now().await;
                frame
            });
            drop(request);
            Ok(Response::new(StreamBody::new(delayed).boxed_unsync()))
        })
        .await;
    for protocol in [AppProtocol::Http, AppProtocol::Http2] {
        let server = world.server("east", "c", app, protocol).await;
        let source = world
            .source(Some(snapshot([&server.endpoint], protocol)))
            .await;
        let mut http2 = source.http2().await;
        if let Ok(answer) = http2.send_request(get()).await {
            assert!(answer.into_body().collect().await.is_err());
        }
        let io = TokioIo::new(TcpStream::connect(source.address).await.unwrap());
        let (mut http1, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/")
            .header("host", "x")
            .body(full(""))
            .unwrap();
        if let Ok(answer) = http1.send_request(request).await {
            assert!(
                answer.status().is_server_error() || answer.into_body().collect().await.is_err()
            );
        }
    }
}

#[tokio::test]
async fn a_cancelled_upload_never_looks_complete() {
    let mut world = World::new();
    let (tell, mut told) = watch::channel(None);
    let app = world
        .app(move |request| {
            let tell = tell.clone();
            async move {
                let complete = request.into_body().collect().await.is_ok();
                tell.send_replace(Some(complete));
                answer("")
            }
        })
        .await;
    for protocol in [AppProtocol::Http, AppProtocol::Http2] {
        let server = world.server("east", "c", app, protocol).await;
        let source = world
            .source(Some(snapshot([&server.endpoint], protocol)))
            .await;
        let (arrived, arrival) = tokio::sync::oneshot::channel();
        let mut frames = Some(Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"half"))));
        let mut arrived = Some(arrived);
        let body = StreamBody::new(stream::poll_fn(move |_| match frames.take() {
            Some(frame) => std::task::Poll::Ready(Some(frame)),
            None => {
                if let Some(arrived) = arrived.take() {
                    let _ = arrived.send(());
                }
                std::task::Poll::Pending
            }
        }));
        let mut client = source.http2().await;
        let sending = tokio::spawn(client.send_request(post(body.boxed_unsync())));
        arrival.await.unwrap();
        sending.abort();
        // The application either never began, or sees an error.
        let seen = timeout(
            std::time::Duration::from_secs(1),
            told.wait_for(Option::is_some),
        )
        .await;
        assert!(!matches!(seen, Ok(Ok(complete)) if *complete == Some(true)));
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_application_down() {
    const LIMIT: usize = 32 * 1024 * 1024;
    let mut world = World::new();
    let (sent, mut progress) = watch::channel(0);
    let app = world
        .app(move |_| {
            let sent = sent.clone();
            async move {
                let chunk = Bytes::from(vec![0; 16 * 1024]);
                let body = stream::repeat_with(move || {
                    sent.send_modify(|sent| *sent += chunk.len());
                    Ok(Frame::data(chunk.clone()))
                });
                Ok(Response::new(StreamBody::new(body).boxed_unsync()))
            }
        })
        .await;
    for protocol in [AppProtocol::Http, AppProtocol::Http2] {
        let server = world.server("east", "c", app, protocol).await;
        let source = world
            .source(Some(snapshot([&server.endpoint], protocol)))
            .await;
        let mut client = source.http2().await;
        let before = *progress.borrow();
        // Never read.
        let _answer = client.send_request(get()).await.unwrap();
        // Until the application is silent, which it must become before the limit.
        while timeout(std::time::Duration::from_millis(500), progress.changed())
            .await
            .is_ok()
        {
            assert!(*progress.borrow_and_update() - before < LIMIT);
        }
    }
}

#[tokio::test]
async fn a_call_is_held_until_its_service_is_known() {
    let mut world = World::new();
    let app = world.app(|_| async { answer("held") }).await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let source = world.source(None).await;
    let address = source.address;
    let call = tokio::spawn(async move {
        let client = super::world::http2(TcpStream::connect(address).await.unwrap()).await;
        ask(&client, get()).await.unwrap()
    });
    tokio::task::yield_now().await;
    source.tell(snapshot([&server.endpoint], AppProtocol::Http));
    assert_eq!(call.await.unwrap(), (StatusCode::OK, "held".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_in_vain_for_a_while_only() {
    let address = outbound(SourceCell::default(), linkspan_runtime::stop::Stop::new()).await;
    let begun = tokio::time::Instant::now();
    let client = super::world::http2(TcpStream::connect(address).await.unwrap()).await;
    let (status, text) = ask(&client, get()).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("no certificate yet"), "{text}");
    // For the connection, but not once more for its first request.
    let held = begun.elapsed();
    assert!(held >= HOLD && held < HOLD * 2, "{held:?}");
}

#[tokio::test]
async fn what_cannot_be_served_is_told() {
    let mut world = World::new();
    let app = world.app(|_| async { answer("") }).await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let mut known = snapshot([&server.endpoint], AppProtocol::Http);
    let source = world.source(Some(known.clone())).await;
    let client = source.http2().await;
    let mut odd = Request::new(full(""));
    *odd.method_mut() = Method::CONNECT;
    *odd.uri_mut() = "checkout.shop:80".parse().unwrap();
    assert_eq!(
        client.clone().send_request(odd).await.unwrap().status(),
        405
    );
    let service = known.services.values_mut().next().unwrap();
    std::sync::Arc::make_mut(service).ports[0].port = 81;
    source.tell(known);
    let mut seen = ask(&client, get()).await.unwrap();
    while seen.0 == StatusCode::OK {
        tokio::task::yield_now().await;
        seen = ask(&client, get()).await.unwrap();
    }
    assert!(
        seen.0 == StatusCode::SERVICE_UNAVAILABLE && seen.1.contains("no port 80"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_drain_lets_requests_finish() {
    let mut world = World::new();
    let (begun, mut begins) = watch::channel(false);
    let (finish, finishes) = watch::channel(false);
    let app = world
        .app(move |_| {
            begun.send_replace(true);
            let mut finishes = finishes.clone();
            async move {
                finishes.wait_for(|finish| *finish).await.unwrap();
                answer("finished")
            }
        })
        .await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let source = world
        .source(Some(snapshot([&server.endpoint], AppProtocol::Http)))
        .await;
    let client = source.http2::<Body>().await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, get()).await }
    });
    begins.wait_for(|begun| *begun).await.unwrap();
    source.stop.drain();
    server.stop.drain();
    while TcpStream::connect(source.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    finish.send_replace(true);
    assert_eq!(call.await.unwrap().unwrap().1, "finished");
}

#[tokio::test]
async fn an_endpoint_of_another_identity_is_not_asked() {
    let mut world = World::new();
    let app = world.app(|_| async { panic!("asked") }).await;
    let server = world.server("east", "c", app, AppProtocol::Http).await;
    let mut endpoint = server.endpoint.clone();
    endpoint.identity = testing::workload("east.test", "shop", "other");
    let source = world
        .source(Some(snapshot([&endpoint], AppProtocol::Http)))
        .await;
    let (status, text) = ask(&source.http2().await, get()).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
}
