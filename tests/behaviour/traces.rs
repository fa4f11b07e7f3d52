//! Traces: spans of real requests at a collector made of the protocol's own crate, over gRPC and over HTTP.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use warmpath_tests::{Gateway, eventually, request, sims, urls};

use crate::passthrough::one_request;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What a collector has been sent.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>);

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let key = request.metadata().get("x-key").map_or("", |key| key.to_str().unwrap()).to_owned();
        self.0.lock().unwrap().push((key, request.into_inner()));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    async fn over_grpc() -> (Self, SocketAddr) {
        let (collected, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collected.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collected, address)
    }

    async fn over_http() -> (Self, SocketAddr) {
        let (collected, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let took = collected.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let took = took.clone();
                let answer = service_fn(move |request| {
                    let took = took.clone();
                    async move { Ok::<_, Infallible>(took.take(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        (collected, address)
    }

    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let key = request.headers().get("x-key").map_or("", |key| key.to_str().unwrap()).to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.0.lock().unwrap().push((key, ExportTraceServiceRequest::decode(body).unwrap()));
        Response::new(Full::default())
    }

    fn spans(&self) -> Vec<Span> {
        let sent = self.0.lock().unwrap();
        let resources = sent.iter().flat_map(|(_, request)| &request.resource_spans);
        resources.flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans).cloned().collect()
    }

    /// The spans of `count` requests, the roots first.
    async fn traces(&self, count: usize) -> Vec<Tree> {
        eventually("spans at the collector", || async {
            let spans = self.spans();
            let is_root = |span: &&Span| span.kind == SpanKind::Server as i32;
            let roots: Vec<Span> = spans.iter().filter(is_root).cloned().collect();
            let tree = |root| Tree { root, all: spans.clone() };
            (roots.len() >= count).then(|| roots.into_iter().map(tree).collect())
        })
        .await
    }
}

/// One request's spans.
struct Tree {
    root: Span,
    all: Vec<Span>,
}

impl Tree {
    fn children(&self, of: &Span) -> Vec<&Span> {
        let mut children: Vec<&Span> = self
            .all
            .iter()
            .filter(|span| span.trace_id == of.trace_id && span.parent_span_id == of.span_id)
            .collect();
        children.sort_by_key(|span| span.start_time_unix_nano);
        for child in &children {
            assert!(of.start_time_unix_nano <= child.start_time_unix_nano, "{child:?}");
            assert!(child.end_time_unix_nano <= of.end_time_unix_nano, "{child:?}");
        }
        children
    }

    fn dispatches(&self) -> Vec<&Span> {
        let mut children = self.children(&self.root);
        children.retain(|span| span.kind == SpanKind::Client as i32);
        children
    }
}

fn names<'a>(spans: &[&'a Span]) -> Vec<&'a str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn attribute(attributes: &[KeyValue], key: &str) -> Json {
    let value = attributes.iter().find(|of| of.key == key).and_then(|of| of.value.as_ref()?.value.clone());
    match value {
        Some(Value::StringValue(text)) => text.into(),
        Some(Value::IntValue(number)) => number.into(),
        Some(Value::DoubleValue(number)) => number.into(),
        _ => Json::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // to a string: it cannot fail
        text
    })
}

/// A gateway that traces to `collector`.
async fn gateway(workers: &[String], settings: &str) -> (Gateway, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("warmpath.yaml");
    fs::write(&file, format!("traces: {{{settings}}}\n")).unwrap();
    (Gateway::start(workers, &["--config", file.to_str().unwrap()]).await, directory)
}

async fn chat(gateway: &Gateway, headers: &[(&str, &str)], stream: bool) {
    let body = json!({"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3,
        "ignore_eos": true, "stream": stream, "stream_options": {"include_usage": true}});
    let body = if stream {
        body
    } else {
        json!({"model": "sim", "messages": body["messages"], "max_tokens": 3, "ignore_eos": true})
    };
    let headers = [&[("content-type", "application/json")][..], headers].concat();
    let reply = request(gateway.address, "POST", "/v1/chat/completions", &headers, body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// What every trace of a chat must look like.
fn check(tree: &Tree, sims: &[String]) {
    let Tree { root, .. } = tree;
    assert_eq!(root.name, "POST /v1/chat/completions");
    assert_eq!(attribute(&root.attributes, "http.response.status_code"), 200);
    assert_eq!(attribute(&root.attributes, "gen_ai.request.model"), "sim");
    assert_eq!(attribute(&root.attributes, "warmpath.tenant"), "default");
    let children = tree.children(root);
    assert_eq!(names(&children), ["admit", "receive", "parse", "tokenize", "decide", "chat sim"]);
    let dispatch = children[5];
    assert_eq!(dispatch.kind, SpanKind::Client as i32);
    assert_eq!(names(&tree.children(dispatch)), ["first-byte", "relay"]);
    let of = |key| attribute(&dispatch.attributes, key);
    assert_eq!((of("gen_ai.operation.name"), of("gen_ai.request.model")), ("chat".into(), "sim".into()));
    assert_eq!((of("warmpath.policy"), of("warmpath.attempt")), ("warm".into(), 1.into()));
    assert_eq!(of("warmpath.end"), "completed");
    let address = format!("http://{}:{}", of("server.address").as_str().unwrap(), of("server.port"));
    assert!(sims.contains(&address), "{address}");
}

#[tokio::test]
async fn a_request_s_spans_make_a_tree_over_grpc() {
    let (collected, collector) = Collected::over_grpc().await;
    let sims = sims(2).await;
    let settings =
        format!("endpoint: 'http://{collector}', sample: 1, service_name: edge, headers: {{x-key: k3y}}");
    let (gateway, _directory) = gateway(&urls(&sims), &settings).await;
    chat(&gateway, &[], false).await;
    let traces = collected.traces(1).await;
    check(&traces[0], &urls(&sims));
    assert!(traces[0].root.parent_span_id.is_empty(), "nobody's child");
    let dispatch = traces[0].dispatches()[0];
    assert_eq!(attribute(&dispatch.attributes, "gen_ai.usage.output_tokens"), 3);
    assert_eq!(attribute(&traces[0].root.attributes, "gen_ai.usage.output_tokens"), 3);
    let sent = collected.0.lock().unwrap();
    assert!(sent.iter().all(|(key, _)| key == "k3y"));
    let resource = sent[0].1.resource_spans[0].resource.clone().unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name"), "edge");
}

#[tokio::test]
async fn a_client_s_trace_goes_on_over_http_and_its_word_on_sampling_counts() {
    let (collected, collector) = Collected::over_http().await;
    let sims = sims(1).await;
    let settings = format!("endpoint: 'http://{collector}', protocol: http, sample: 0");
    let (gateway, _directory) = gateway(&urls(&sims), &settings).await;
    chat(&gateway, &[], true).await;
    let unsampled = PARENT.replace("-01", "-00");
    chat(&gateway, &[("traceparent", &unsampled)], true).await;
    chat(&gateway, &[("traceparent", PARENT)], true).await;
    let traces = collected.traces(1).await;
    check(&traces[0], &urls(&sims));
    let root = &traces[0].root;
    assert_eq!(hex(&root.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&root.parent_span_id), "b7ad6b7169203331");
    assert!(collected.spans().iter().all(|span| span.trace_id == root.trace_id), "the others are not traced");
    let exported = gateway.metric("warmpath_trace_spans_total{result=\"exported\"}").await;
    assert_eq!(exported as usize, collected.spans().len());
}

#[tokio::test]
async fn the_worker_is_told_of_its_span_and_the_vendors_words_pass() {
    let (collected, collector) = Collected::over_grpc().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = format!("http://{}", listener.local_addr().unwrap());
    let seen = tokio::spawn(one_request(listener));
    let (gateway, _directory) =
        gateway(&[worker], &format!("endpoint: 'http://{collector}', sample: 0")).await;
    let headers = [("content-type", "application/json"), ("traceparent", PARENT), ("tracestate", "a=1,b=2")];
    let body = json!({"messages": [{"role": "user", "content": "hello"}]}).to_string();
    request(gateway.address, "POST", "/v1/chat/completions", &headers, body).await;
    let seen = String::from_utf8(seen.await.unwrap()).unwrap();
    let traces = collected.traces(1).await;
    let dispatch = traces[0].dispatches()[0];
    let expected = format!("traceparent: 00-{}-{}-01\r\n", hex(&dispatch.trace_id), hex(&dispatch.span_id));
    assert!(seen.contains(&expected), "{expected} in {seen}");
    assert!(seen.contains("tracestate: a=1,b=2\r\n"), "{seen}");
}

#[tokio::test]
async fn every_try_has_a_span_and_a_failed_one_says_why() {
    let (collected, collector) = Collected::over_grpc().await;
    let sims = sims(2).await;
    let (gateway, _directory) =
        gateway(&urls(&sims), &format!("endpoint: 'http://{collector}', sample: 1")).await;
    sims[0].kill().await;
    sims[1].kill().await;
    gateway.chat("hello").await;
    let traces = collected.traces(1).await;
    let tries = traces[0].dispatches();
    assert!(!tries.is_empty());
    for span in &tries {
        assert_eq!(attribute(&span.attributes, "error.type"), "connect");
        assert_eq!(span.status.as_ref().unwrap().code, 2, "error");
    }
    assert!(attribute(&traces[0].root.attributes, "http.response.status_code").as_i64() >= Some(500));
    let decides = traces[0].children(&traces[0].root).iter().filter(|span| span.name == "decide").count();
    assert!(decides >= tries.len());
}

#[tokio::test]
async fn a_collector_that_is_down_costs_spans_and_nothing_else() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sims = sims(1).await;
    for protocol in ["grpc", "http"] {
        let settings = format!("endpoint: 'http://{free}', protocol: {protocol}, sample: 1");
        let (mut gateway, _directory) = gateway(&urls(&sims), &settings).await;
        for _ in 0..10 {
            chat(&gateway, &[], false).await;
        }
        eventually("spans that are lost", || async {
            let lost = gateway.metric("warmpath_trace_spans_total{result=\"failed\"}").await;
            (lost >= 10.0).then_some(())
        })
        .await;
        let output = gateway.output();
        assert_eq!(output.matches("traces: the collector does not take them").count(), 1, "{output}");
        gateway.signal(warmpath_tests::Signal::TERM);
        assert_eq!(gateway.ended().await, Some(0), "{protocol}");
    }
}

#[tokio::test]
async fn a_scraper_that_asks_for_openmetrics_gets_exemplars_and_others_do_not() {
    let (_collected, collector) = Collected::over_grpc().await;
    let sims = sims(1).await;
    let (gateway, _directory) =
        gateway(&urls(&sims), &format!("endpoint: 'http://{collector}', sample: 0")).await;
    chat(&gateway, &[("traceparent", PARENT)], true).await;
    let scrape = async |accept| request(gateway.admin, "GET", "/metrics", &[("accept", accept)], "").await;
    let wants = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    // The answer's last byte may be here before it is counted.
    let new = eventually("an exemplar", async || {
        let is_counted =
            |text: String| text.contains(" # {trace_id=") && text.contains("\nwarmpath_requests_total{");
        Some(scrape(wants).await).filter(|new| is_counted(new.text()))
    })
    .await;
    assert!(new.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    let text = new.text();
    let exemplar =
        text.lines().find(|line| line.contains(" # {trace_id=")).unwrap_or_else(|| panic!("{text}"));
    assert!(exemplar.starts_with("warmpath_time_to_first_token_seconds_bucket{"), "{exemplar}");
    assert!(exemplar.contains("# {trace_id=\"0af7651916cd43dd8448eb211c80319c\"} 0."), "{exemplar}");
    assert!(text.ends_with("\n# EOF\n") && text.contains("\n# TYPE warmpath_requests counter\n"));
    let old = scrape("text/plain;version=0.0.4").await;
    assert!(old.header("content-type").starts_with("text/plain"));
    assert!(!old.text().contains("trace_id") && !old.text().contains("# EOF"));
}
