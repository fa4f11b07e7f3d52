//! HTTP/2 with clients, by hyper: its limits, and its streams as tasks of the data thread.
//!
//! Each stream is a request of its own. One that its client resets is dropped where it is, and its worker's connection with
//! it. What a client may make this gateway keep is bounded: streams, bytes of heads, bytes of bodies sent ahead, bytes of
//! responses that it does not read, and resets (CVE-2023-44487, CVE-2025-8671; CONTINUATION floods are bounded by h2).

use std::future::Future;

use hyper::{rt::Executor, server::conn::http2};
use hyper_util::rt::TokioTimer;

use crate::limits;

/// hyper's settings for a client's connection of so many streams at the same time.
pub(super) fn builder(streams_max: u32) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_max)
        .max_header_list_size(limits::HEAD_BYTES_MAX as u32)
        .initial_stream_window_size(limits::H2_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_WINDOW_BYTES)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS_MAX)
        .keep_alive_interval(limits::H2_PING_INTERVAL)
        .keep_alive_timeout(limits::H2_PING_INTERVAL);
    builder
}

/// Runs streams on the thread of their connection.
#[derive(Clone)]
pub(super) struct Streams;

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(async move {
            stream.await;
        });
    }
}
