//! The route table: which paths exist, with which methods, as FastAPI matches them.

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Completions,
    Chat,
    Responses,
    Messages,
    CountTokens,
    RenderCompletion,
    RenderChat,
    Models,
    Health,
    Load,
    Version,
    Metrics,
    Tokenize,
    Detokenize,
    KvEventSources,
    ResetPrefixCache,
    IsSleeping,
    SimFault,
    SimReset,
    SimStats,
}

use Endpoint as E;

const ROUTES: &[(&str, &[&str], Endpoint)] = &[
    ("/v1/completions", &["POST"], E::Completions),
    ("/v1/chat/completions", &["POST"], E::Chat),
    ("/v1/responses", &["POST"], E::Responses),
    ("/v1/messages", &["POST"], E::Messages),
    ("/v1/messages/count_tokens", &["POST"], E::CountTokens),
    ("/v1/completions/render", &["POST"], E::RenderCompletion),
    ("/v1/chat/completions/render", &["POST"], E::RenderChat),
    ("/v1/models", &["GET"], E::Models),
    ("/health", &["GET"], E::Health),
    ("/ping", &["GET", "POST"], E::Health),
    ("/load", &["GET"], E::Load),
    ("/version", &["GET"], E::Version),
    ("/metrics", &["GET"], E::Metrics),
    ("/tokenize", &["POST"], E::Tokenize),
    ("/detokenize", &["POST"], E::Detokenize),
    ("/kv_event_sources", &["GET"], E::KvEventSources),
    ("/reset_prefix_cache", &["POST"], E::ResetPrefixCache),
    ("/is_sleeping", &["GET"], E::IsSleeping),
    ("/sim/fault", &["GET", "POST", "DELETE"], E::SimFault),
    ("/sim/reset", &["POST"], E::SimReset),
    ("/sim/stats", &["GET"], E::SimStats),
];

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// An endpoint, and its path as the metrics name it.
    Found(Endpoint, &'static str),
    /// The methods that the path has.
    MethodNotAllowed(String),
    /// The same path without its last slash.
    Redirect(&'static str),
    NotFound,
}

pub(crate) fn find(method: &str, path: &str) -> Route {
    let by_path = |path: &str| ROUTES.iter().find(|(own, ..)| *own == path);
    if let Some((path, methods, endpoint)) = by_path(path) {
        if methods.contains(&method) {
            Route::Found(*endpoint, path)
        } else {
            Route::MethodNotAllowed(methods.join(", "))
        }
    } else {
        match path.strip_suffix('/').and_then(by_path) {
            Some((path, ..)) => Route::Redirect(path),
            None => Route::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_as_fastapi_matches_them() {
        assert_eq!(find("POST", "/v1/completions"), Route::Found(Endpoint::Completions, "/v1/completions"));
        assert_eq!(find("GET", "/v1/completions"), Route::MethodNotAllowed("POST".to_owned()));
        assert_eq!(find("HEAD", "/health"), Route::MethodNotAllowed("GET".to_owned()));
        assert_eq!(find("POST", "/v1/completions/"), Route::Redirect("/v1/completions"));
        assert_eq!(find("POST", "//v1/completions"), Route::NotFound);
        assert_eq!(find("POST", "/v1/embeddings"), Route::NotFound);
        assert_eq!(find("GET", "/"), Route::NotFound);
    }
}
