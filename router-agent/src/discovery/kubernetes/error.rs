//! What is wrong, and what would be right: an API server's refusals in the words of who has to mend them.

use kube::{core::Status, runtime::watcher};

/// What a source has to be allowed to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed<'a> {
    /// API group; empty: the core group.
    pub(super) group: &'a str,
    /// In the plural, as rules name it.
    pub(super) resource: &'a str,
    /// None: all.
    pub(super) namespace: Option<&'a str>,
}

/// The failure in a line; none where nothing is wrong but that objects have to be listed anew.
pub(super) fn explain(error: &watcher::Error, needed: &Needed<'_>) -> Option<String> {
    match status(error) {
        Some(status) if status.code == 410 => None,
        Some(status) => Some(of_status(status, needed)),
        None => Some(chain(error)),
    }
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

fn of_status(status: &Status, needed: &Needed<'_>) -> String {
    let Needed { group, resource, namespace } = needed;
    let said = &status.message;
    let place =
        namespace.map_or("all namespaces (a ClusterRole)".to_owned(), |name| format!("namespace {name}"));
    match status.code {
        401 => format!("the API server does not know these credentials (401): {said}"),
        403 => format!(
            "missing RBAC rule: {{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [\"list\", \"watch\"]}} in {place}, \
             says the API server: {said}"
        ),
        404 => format!(
            "the cluster has no {resource}{}{group}: install its CRDs, or take another source ({said})",
            if group.is_empty() { "" } else { "." }
        ),
        code => format!("the API server answers {code} to list and watch {resource} in {place}: {said}"),
    }
}

/// An error and what it comes from, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
