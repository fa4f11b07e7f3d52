//! `traces:`: which requests are traced, and where their spans go.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::{
    ConfigError,
    file::set,
    secret::{Hidden, Place},
};

/// How spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// OTLP over gRPC, as a rule port 4317.
    #[default]
    Grpc,
    /// OTLP as protobuf over HTTP, as a rule port 4318.
    Http,
}

/// Traces; see docs/traces.md.
#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    /// The collector, `http://HOST:PORT`; none: nothing is traced.
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: TraceProtocol,
    /// The share of requests without a `traceparent` that is traced, 0 to 1.
    pub sample: f64,
    /// `service.name`.
    pub service_name: String,
    /// What the collector is shown.
    pub headers: HeaderMap,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: TraceProtocol::default(),
            sample: 0.01,
            service_name: "warmpath".to_owned(),
            headers: HeaderMap::new(),
        }
    }
}

impl Traces {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if let Some(endpoint) = &self.endpoint {
            let uri = endpoint.parse::<http::Uri>().ok();
            let is_right = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.port().is_some());
            if !is_right {
                return value(
                    "traces.endpoint",
                    format!("{endpoint:?}: http://HOST:PORT of a collector, e.g. http://127.0.0.1:4317"),
                );
            }
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return value("traces.sample", format!("{} is no share of requests: 0 to 1", self.sample));
        }
        Ok(())
    }
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TracesFile {
    /// The OTLP collector, `http://HOST:PORT`; nothing is traced where not set.
    endpoint: Option<String>,
    /// OTLP over gRPC, or as protobuf over HTTP.
    protocol: Option<TraceProtocol>,
    /// The share of requests that is traced, of those whose client does not say; 0 to 1.
    sample: Option<f64>,
    /// `service.name` of the spans.
    service_name: Option<String>,
    /// What the collector is shown, e.g. `{x-api-key: "${VARIABLE}"}`.
    headers: Option<BTreeMap<String, Hidden>>,
}

impl TracesFile {
    pub(super) fn apply(self, traces: &mut Traces) -> Result<(), ConfigError> {
        if self.endpoint.is_some() {
            traces.endpoint = self.endpoint;
        }
        set(&mut traces.protocol, self.protocol);
        set(&mut traces.sample, self.sample);
        set(&mut traces.service_name, self.service_name);
        if let Some(headers) = self.headers {
            traces.headers = headers.into_iter().map(header).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

fn header((name, value): (String, Hidden)) -> Result<(HeaderName, HeaderValue), ConfigError> {
    const KEY: &str = "traces.headers";
    let wrong = |message: String| ConfigError::Value { key: KEY, message };
    let parsed = name.parse().map_err(|_| wrong(format!("{name:?} is no name of a header")))?;
    let secret = Place { key: KEY, value: Some(value), file: None }.read()?;
    let secret = secret.ok_or_else(|| wrong(format!("{name}: no value")))?;
    Ok((parsed, secret.header()))
}
