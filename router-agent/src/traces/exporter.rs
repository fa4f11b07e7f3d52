//! The thread that makes spans of traces and sends them to the collector.
//!
//! It looks into the queue every [`LOOK_EVERY`], so that no request wakes it. A batch that the collector does not take in
//! [`EXPORT_TIMEOUT`] is lost and counted; what is wrong is said once, until a batch is taken again.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::metadata::MetadataMap,
};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};

use super::{Tracer, spans};
use crate::config::{TraceProtocol, Traces};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// For one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// At the end of the process.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Spans of one batch.
const BATCH_SPANS: usize = 512;

/// The thread. Dropped, it sends what is in the queue and ends.
#[derive(Debug)]
pub struct ExporterThread {
    tracer: Arc<Tracer>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for ExporterThread {
    fn drop(&mut self) {
        self.tracer.stop();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join(); // a panic is in the log
        }
    }
}

impl Tracer {
    /// Starts the thread. To be called once.
    pub fn start(self: &Arc<Self>) -> io::Result<ExporterThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tracer = self.clone();
        let run = move || runtime.block_on(Sender { tracer, exporter: None, is_told: false }.run());
        let handle = std::thread::Builder::new().name("traces".to_owned()).spawn(run)?;
        Ok(ExporterThread { tracer: self.clone(), handle: Some(handle) })
    }
}

struct Sender {
    tracer: Arc<Tracer>,
    exporter: Option<SpanExporter>,
    /// What is wrong was said.
    is_told: bool,
}

impl Sender {
    async fn run(mut self) {
        self.configure();
        loop {
            let is_idle = self.exporter.is_none();
            let is_changed = tokio::select! {
                () = self.tracer.changed.notified() => true,
                () = tokio::time::sleep(LOOK_EVERY), if !is_idle => false,
            };
            let is_stopping = self.tracer.is_stopping.load(Relaxed);
            self.send(if is_stopping { LAST_EXPORT_TIMEOUT } else { EXPORT_TIMEOUT }).await;
            if is_stopping {
                return;
            }
            if is_changed {
                self.configure();
            }
        }
    }

    fn configure(&mut self) {
        let config = self.tracer.config.lock().clone();
        self.is_told = false;
        self.exporter = match build(&config) {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(%error, "traces: the exporter cannot be made, and nothing is traced");
                None
            }
        };
    }

    async fn send(&mut self, timeout: Duration) {
        let finished = std::mem::take(&mut *self.tracer.queue.lock());
        let spans: Vec<SpanData> = finished.iter().flat_map(spans::of).collect();
        let mut spans = spans.into_iter().peekable();
        while spans.peek().is_some() {
            let batch: Vec<SpanData> = spans.by_ref().take(BATCH_SPANS).collect();
            let count = batch.len() as u64;
            let Some(exporter) = &self.exporter else {
                self.tracer.metrics.failed.inc_by(count);
                continue;
            };
            let error = match tokio::time::timeout(timeout, exporter.export(batch)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut self.is_told) {
                        tracing::info!("traces: the collector takes them again");
                    }
                    self.tracer.metrics.exported.inc_by(count);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {timeout:?}"),
            };
            self.tracer.metrics.failed.inc_by(count);
            if !std::mem::replace(&mut self.is_told, true) {
                tracing::warn!(
                    %error,
                    "traces: the collector does not take them, they are lost until it does; requests are not affected"
                );
            }
        }
    }
}

/// To be called within a runtime: connections are made there.
fn build(config: &Traces) -> Result<Option<SpanExporter>, ExporterBuildError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let mut exporter = match config.protocol {
        TraceProtocol::Grpc => SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .with_metadata(MetadataMap::from_headers(config.headers.clone()))
            .build()?,
        TraceProtocol::Http => {
            let client = HyperClient::with_default_connector(EXPORT_TIMEOUT, None);
            let headers: HashMap<String, String> = config
                .headers
                .iter()
                .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
                .collect();
            let path = if endpoint.ends_with("/v1/traces") { "" } else { "/v1/traces" };
            SpanExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{}{path}", endpoint.trim_end_matches('/')))
                .with_timeout(EXPORT_TIMEOUT)
                .with_headers(headers)
                .build()?
        }
    };
    let resource = Resource::builder_empty()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    exporter.set_resource(&resource);
    Ok(Some(exporter))
}
