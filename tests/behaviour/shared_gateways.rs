//! Several gateways with one Redis, for the tests of what they share.

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, Redis, eventually, request};

/// A configuration that shares through `redis`, with a deadline that holds on a busy machine, and says `more`.
pub(crate) fn config(redis: &Redis, more: &str) -> NamedTempFile {
    write(&format!("shared: {{urls: ['{}'], hints: {{deadline: 1s}}}}\n{more}", redis.url()))
}

/// A file with this configuration.
pub(crate) fn write(text: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// A gateway with that configuration.
pub(crate) async fn gateway(workers: &[String], config: &NamedTempFile, args: &[&str]) -> Gateway {
    let file = config.path().to_str().unwrap();
    Gateway::start(workers, &[&["--config", file], args].concat()).await
}

/// Waits until a series has this value.
pub(crate) async fn metric_is(gateway: &Gateway, series: &str, value: f64) {
    eventually(&format!("{series} {value}"), || async {
        ((gateway.metric(series).await - value).abs() < 0.01).then_some(())
    })
    .await;
}

/// What would become of a chat with this prompt.
pub(crate) async fn explain(gateway: &Gateway, prompt: &str) -> Value {
    let body = json!({"messages": [{"role": "user", "content": prompt}]}).to_string();
    let headers = [("content-type", "application/json")];
    request(gateway.admin, "POST", "/explain", &headers, body).await.json()
}
