//! What a request asks for, by method and path.

use http::Method;

use crate::prompt::ApiKind;

/// The kinds of request that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Has a prompt: routed by prefix.
    Inference(ApiKind),
    /// Everything else goes to the least loaded worker as it is.
    Other,
}

impl Route {
    pub(super) fn of(method: &Method, path: &str) -> Self {
        if method != Method::POST {
            return Self::Other;
        }
        match path {
            "/v1/chat/completions" => Self::Inference(ApiKind::Chat),
            "/v1/completions" => Self::Inference(ApiKind::Completions),
            "/v1/responses" => Self::Inference(ApiKind::Responses),
            "/v1/messages" => Self::Inference(ApiKind::Messages),
            _ => Self::Other,
        }
    }

    /// A bounded label for metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Inference(kind) => kind.label(),
            Self::Other => "other",
        }
    }
}

/// Paths of the inference API that have no parameters.
const API: [&str; 22] = [
    "/classify",
    "/detokenize",
    "/health",
    "/inference/v1/generate",
    "/ping",
    "/pooling",
    "/rerank",
    "/score",
    "/tokenize",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
    "/v2/rerank",
    "/version",
];

/// Whether a path is of vLLM's inference API, and not one by which a worker is controlled (`/sleep`,
/// `/reset_prefix_cache`, `/v1/load_lora_adapter` and whatever a later version may have).
pub(super) fn is_api(path: &str) -> bool {
    let is_plain = |rest: &str| {
        let up = |segment: &str| segment.to_ascii_lowercase().replace("%2e", ".") == "..";
        !rest.is_empty() && !rest.split('/').any(up)
    };
    API.binary_search(&path).is_ok()
        || ["/v1/models/", "/v1/responses/"]
            .iter()
            .any(|start| path.strip_prefix(start).is_some_and(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_posts_with_a_prompt_are_routed_by_prefix() {
        let of = |method: Method, path| Route::of(&method, path);
        assert_eq!(of(Method::POST, "/v1/chat/completions"), Route::Inference(ApiKind::Chat));
        assert_eq!(of(Method::POST, "/v1/messages"), Route::Inference(ApiKind::Messages));
        for (method, path) in [
            (Method::GET, "/v1/chat/completions"),
            (Method::GET, "/v1/models"),
            (Method::POST, "/v1/embeddings"),
            (Method::POST, "/tokenize"),
            (Method::DELETE, "/v1/responses/abc"),
            (Method::POST, "/v1/chat/completions/"),
        ] {
            assert_eq!(of(method.clone(), path), Route::Other, "{method} {path}");
        }
    }

    #[test]
    fn the_inference_api_is_told_from_the_control_of_a_worker() {
        assert!(API.is_sorted());
        for path in
            ["/v1/chat/completions", "/v1/models/org/name", "/v1/responses/resp_1/cancel", "/tokenize"]
        {
            assert!(is_api(path), "{path}");
        }
        for path in [
            "/sleep",
            "/metrics",
            "/v1/load_lora_adapter",
            "/v1",
            "/v1/models/",
            "/v1/models/../../sleep",
            "/v1/models/%2E%2e/%2e./sleep",
            "//v1/models",
            "/v1/completions/",
        ] {
            assert!(!is_api(path), "{path}");
        }
    }
}
