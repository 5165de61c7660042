//! One request, from one cluster into another, as the user's own collector sees it: real processes, a
//! real collector.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use linkspan_runtime::trace::SpanContext;
use linkspan_tests::clusters::{Cluster, Host, Service, binary};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, interval, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};
const PATIENCE: Duration = Duration::from_secs(60);
/// The client's own span.
const ASKED: SpanContext = SpanContext {
    trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
    span: 0x00f0_67aa_0ba9_02b7,
    sampled: true,
};
/// One of a trace that the client does not record.
const UNASKED: SpanContext = SpanContext {
    trace: 0x1bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
    span: 1,
    sampled: false,
};

/// A span, and who sent it.
#[derive(Clone, Debug)]
struct Sent {
    service: String,
    span: Span,
}

struct Collector(mpsc::UnboundedSender<Sent>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let attributes = of.resource.unwrap_or_default().attributes;
            let mut names = attributes.into_iter().filter(|of| of.key == "service.name");
            let service = match names.next().and_then(|of| of.value?.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            for span in of.scope_spans.into_iter().flat_map(|of| of.spans) {
                let service = service.clone();
                let _ = self.0.send(Sent { service, span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> Result<(SocketAddr, mpsc::UnboundedReceiver<Sent>)> {
    let (sent, received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = TraceServiceServer::new(Collector(sent));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    Ok((address, received))
}

async fn get(target: SocketAddr, path: &str, trace: Option<SpanContext>) -> Result<(u16, String)> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = http::Request::get(path).header("host", "checkout");
    if let Some(trace) = trace {
        request = request.header("traceparent", trace.to_string());
    }
    let sending = sender.send_request(request.body(Empty::<Bytes>::new())?);
    let answer = timeout(PATIENCE, sending).await??;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

struct World {
    east: Cluster<Host>,
    west: Cluster<Host>,
    checkout: SocketAddr,
    spans: mpsc::UnboundedReceiver<Sent>,
}

/// East calls, west answers; each has one gateway.
async fn world(seed: u64) -> Result<World> {
    let (collector, spans) = collector().await?;
    let host = Host::new(seed);
    let mut east = Cluster::start("east", host.clone(), &[], 0).await?;
    let mut west = Cluster::start("west", host, &[CHECKOUT], 0).await?;
    for cluster in [&mut east, &mut west] {
        cluster.trace_to(collector);
        cluster.start_gateway(1).await?;
    }
    east.link(&west).await?;
    west.link(&east).await?;
    let arguments = [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        "west",
    ];
    let names = ["--instance", "one", "--name", "one"];
    let arguments: Vec<_> = arguments
        .into_iter()
        .chain(names)
        .map(str::to_owned)
        .collect();
    west.endpoint("checkout", "one", &binary()?, &arguments)
        .await?;
    let listeners = east.caller("frontend", &["checkout"]).await?;
    east.wait_for_endpoints("checkout", &[("west", 1)]).await?;
    Ok(World {
        east,
        west,
        checkout: listeners["checkout"],
        spans,
    })
}

impl World {
    /// Waits for that many spans in all; none may be of a trace that nobody asked for.
    async fn until(&mut self, count: usize, known: &mut Vec<Sent>) -> Result<()> {
        while known.len() < count {
            let next = timeout(PATIENCE, self.spans.recv()).await;
            let logs = || format!("{known:?}\n{}\n{}", self.east.logs(), self.west.logs());
            let sent = next
                .with_context(logs)?
                .context("the collector has ended")?;
            let trace = ASKED.trace.to_be_bytes();
            ensure!(sent.span.trace_id == trace, "nobody asked for {sent:?}");
            known.push(sent);
        }
        Ok(())
    }
}

impl World {
    /// The lines of the access log of that sidecar, wherever it is.
    fn lines(&self, name: &str) -> Result<Vec<String>> {
        let file = format!("{name}-sidecar.log");
        let folders = [&self.east, &self.west].map(|cluster| cluster.directory().join(&file));
        let found = folders.iter().find(|path| path.exists());
        let text = std::fs::read_to_string(found.context("a log")?)?;
        let lines = text
            .lines()
            .filter(|line| line.contains("linkspan::access"));
        Ok(lines.map(str::to_owned).collect())
    }
}

fn find<'a>(spans: &'a [Sent], name: &str, service: &str) -> Result<&'a Span> {
    let mut found = spans.iter().filter(|of| of.service == service);
    let found = found.find(|of| of.span.name == name);
    Ok(&found
        .with_context(|| format!("{name} of {service} in {spans:?}"))?
        .span)
}

#[tokio::test]
async fn a_request_is_one_trace_through_two_clusters() -> Result<()> {
    let mut world = world(601).await?;
    let mut first = Vec::new();
    let (status, body) = get(world.checkout, "/cart?card=1234", Some(ASKED)).await?;
    ensure!(status == 200, "{status} {body}\n{}", world.east.logs());
    let (status, body) = get(world.checkout, "/", Some(UNASKED)).await?;
    ensure!(status == 200, "{status} {body}");
    world.until(3, &mut first).await?;
    let client = find(&first, "GET shop/checkout", "frontend")?;
    let connect = find(&first, "connect", "frontend")?;
    let server = find(&first, "GET shop/checkout", "checkout")?;
    ensure!(
        client.parent_span_id == ASKED.span.to_be_bytes(),
        "{client:?}"
    );
    ensure!(server.parent_span_id == client.span_id, "{server:?}");
    ensure!(connect.parent_span_id == client.span_id, "{connect:?}");
    let links: Vec<_> = client.links.iter().map(|link| &link.span_id).collect();
    ensure!(links == [&connect.span_id], "{client:?}");
    ensure!(
        !format!("{first:?}").contains("1234"),
        "queries may hold secrets: {first:?}"
    );

    // Streams end with the connection.
    world.east.kill("frontend-sidecar")?;
    world.until(5, &mut first).await?;
    let connect = find(&first, "connect", "frontend")?.span_id.clone();
    let gateways = first.iter().filter(|of| of.service == "linkspan-gateway");
    let gateways: Vec<_> = gateways.map(|of| &of.span).collect();
    let of = |name: &str| gateways.iter().find(|span| span.name == name);
    let egress = of("egress").context("egress")?;
    let ingress = of("ingress").context("ingress")?;
    ensure!(egress.parent_span_id == connect, "{egress:?}");
    ensure!(ingress.parent_span_id == egress.span_id, "{ingress:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_counted_says_from_where_to_where() -> Result<()> {
    let world = world(602).await?;
    let (status, body) = get(world.checkout, "/", None).await?;
    ensure!(status == 200, "{body}\n{}", world.east.logs());
    let path = "destination_cluster=\"west\",destination_locality=\"west/a\",\
                destination_namespace=\"shop\",destination_service=\"checkout\",\
                destination_workload=\"checkout\"";
    let from = |locality: &str| {
        format!(
            "source_cluster=\"east\",source_locality=\"{locality}\",source_namespace=\"shop\",\
             source_workload=\"frontend\""
        )
    };
    for (cluster, name, direction, locality) in [
        (&world.east, "frontend", "outbound", "east/a"),
        (&world.west, "one", "inbound", ""),
    ] {
        let face = cluster.debug_face(name).context("a debug face")?;
        let (_, metrics) = get(face, "/metrics", None).await?;
        let source = from(locality);
        let line = format!(
            "linkspan_requests_total{{code=\"2xx\",{path},direction=\"{direction}\",{source}}} 1"
        );
        ensure!(metrics.contains(&line), "no {line} in\n{metrics}");
    }
    // Who sends the answer on writes the line a moment later.
    let (deadline, mut every) = (
        Instant::now() + PATIENCE,
        interval(Duration::from_millis(50)),
    );
    loop {
        let lines: Vec<_> = ["frontend", "one"]
            .map(|name| world.lines(name))
            .into_iter()
            .collect::<Result<_>>()?;
        if lines.iter().all(|lines| lines.len() == 1) {
            let [outbound, inbound] = [&lines[0][0], &lines[1][0]];
            for (line, direction) in [(outbound, "outbound"), (inbound, "inbound")] {
                let says = |text: String| {
                    let there = line.contains(&text);
                    there
                        .then_some(())
                        .with_context(|| format!("no {text} in {line}"))
                };
                says(format!("\"direction\":\"{direction}\""))?;
                says("\"service\":\"shop/checkout\"".to_owned())?;
                says("\"status\":200".to_owned())?;
                says("/ns/shop/sa/frontend\"".to_owned())?;
                says("/ns/shop/sa/checkout\"".to_owned())?;
            }
            break;
        }
        ensure!(Instant::now() < deadline, "one line each, but {lines:?}");
        every.tick().await;
    }
    let face = world.east.debug_face("frontend").context("a debug face")?;
    let (_, metrics) = get(face, "/metrics", None).await?;
    let line = "linkspan_endpoint_choices_total{destination_cluster=\"west\",\
                destination_namespace=\"shop\",destination_service=\"checkout\",";
    ensure!(metrics.contains(line), "no {line} in\n{metrics}");
    Ok(())
}
