//! A request as it goes to workers.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};

use super::{headers, wishes::Wishes};
use crate::{fleet::Worker, upstream};

/// The same bytes for every try.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) wishes: Wishes,
    /// Of which bodies hyper does not read more than the head, until it is decided who moves them.
    pub(super) hold: upstream::Hold,
}

impl Outgoing {
    pub(super) fn lists_models(&self) -> bool {
        self.method == Method::GET && self.uri.path() == "/v1/models"
    }

    /// As `worker` gets it, with this body; `traceparent`: that of its span, if it has one.
    pub(super) fn request(
        &self,
        worker: &Worker,
        body: Bytes,
        traceparent: Option<&HeaderValue>,
    ) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        headers::set_worker(request.headers_mut(), worker);
        if let Some(traceparent) = traceparent {
            request.headers_mut().insert(headers::TRACEPARENT, traceparent.clone());
        }
        request
    }
}
