//! One question to a hook and its answer, over connections that a data thread keeps.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::message::{Answer, Misunderstood};
use crate::{config::HookConfig, limits};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::gateway) enum HookError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error(transparent)]
    Http(#[from] hyper_util::client::legacy::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("broken answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("not an answer of a hook: {0}")]
    Misunderstood(#[from] Misunderstood),
}

impl HookError {
    pub(super) fn is_late(&self) -> bool {
        matches!(self, Self::Late(_))
    }
}

/// One thread's connections to hooks.
pub(in crate::gateway) struct HookClient(Client<HttpConnector, Full<Bytes>>);

impl HookClient {
    /// Without a connection yet.
    pub(in crate::gateway) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(
            Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(limits::HOOK_IDLE_CONNECTIONS)
                .build(connector),
        )
    }

    /// Posts `about` to the hook. Whatever it answers takes no longer than its timeout and no more memory than a body of
    /// `body_bytes_max` does.
    pub(super) async fn ask(
        &self,
        hook: &HookConfig,
        about: Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<Answer, HookError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(hook.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(about))
            .expect("a checked URL makes a request");
        let body_bytes_max = if hook.sends_body { body_bytes_max } else { 0 };
        let bytes_max = limits::HOOK_ANSWER_BYTES_MAX + body_bytes_max;
        let exchange = async {
            let response = self.0.request(request).await?;
            match response.status() {
                StatusCode::NO_CONTENT => return Ok(Answer::Allow),
                status if !status.is_success() => return Err(HookError::Status(status)),
                _ => {}
            }
            let answer = Limited::new(response.into_body(), bytes_max).collect().await;
            Ok(Answer::parse(&answer.map_err(HookError::Body)?.to_bytes(), body_bytes_max)?)
        };
        tokio::time::timeout(hook.timeout, exchange).await.map_err(|_| HookError::Late(hook.timeout))?
    }
}
