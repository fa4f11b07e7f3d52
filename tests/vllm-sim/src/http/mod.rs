//! HTTP/1.1 by hand, because the imitation is in the details that a library decides for itself: which bytes leave in
//! which write, in which order headers come, when a connection is closed and what its closing means.

pub(crate) mod connection;
pub(crate) mod head;
pub(crate) mod response;
