//! A request as it goes to workers.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::Full;

use super::headers;
use crate::{fleet::Worker, upstream};

/// The same bytes for every try.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Of which bodies hyper does not read more than the head, until it is decided who moves them.
    pub(super) hold: upstream::Hold,
}

impl Outgoing {
    pub(super) fn lists_models(&self) -> bool {
        self.method == Method::GET && self.uri.path() == "/v1/models"
    }

    pub(super) fn request(&self, worker: &Worker) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        headers::set_host(request.headers_mut(), worker);
        request
    }
}
