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
            Self::Inference(ApiKind::Chat) => "chat",
            Self::Inference(ApiKind::Completions) => "completions",
            Self::Inference(ApiKind::Responses) => "responses",
            Self::Inference(ApiKind::Messages) => "messages",
            Self::Other => "other",
        }
    }
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
}
